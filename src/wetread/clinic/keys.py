"""What the worklist is sorted and searched by: a study's values, made comparable. Pure functions.

The database keeps them beside the values that people see, because no two databases fold letters alike. Whoever writes
one of the values of `SOURCES` writes its key with it, by `keyed`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

AGELESS = 999.0  # sorts behind every age


def words(text: str | None) -> str:
    """Return the letters and digits of a text, folded: ``Müller, Jörg`` is ``muller jorg``."""
    plain = unicodedata.normalize("NFKD", text or "").casefold()
    kept = (c for c in plain if not unicodedata.combining(c))
    return " ".join("".join(c if c.isalnum() else " " for c in kept).split())


def number(text: str | None) -> str:
    """Return an identifier without what people write between its parts: ``47-11 A`` is ``4711a``."""
    return words(text).replace(" ", "")


def beyond(text: str) -> str:
    """Return the first text, by code points, that comes after all that begin with `text`, which is not empty."""
    last = ord(text[-1]) + 1
    return text[:-1] + chr(0xE000 if 0xD800 <= last < 0xE000 else last) if last < 0x110000 else text + chr(0x10FFFF)


def age(years: float | None) -> float:
    """Return an age in years; who has none comes last."""
    return AGELESS if years is None else years


def place(moment: datetime) -> float:
    """Return the place of somebody who stands in a queue since `moment`, in seconds."""
    return moment.timestamp()


SOURCES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "name_key": ("patient_name", words),
    "id_key": ("patient_id", number),
    "accession_key": ("accession", number),
    "title_key": ("title", words),
    "age_key": ("age_years", age),
}


def keyed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of a study with the keys of those that have one."""
    return {**values, **{key: fold(values[name]) for key, (name, fold) in SOURCES.items() if name in values}}

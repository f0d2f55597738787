"""Pages in the reader's language: gettext catalogues, keyed by the English words.

Templates call `_`, `ngettext` and `{% trans %}`, modules of pages the functions of the same names here, and the front
end its own (`frontend/src/language.ts`), all with one catalogue for each language in `locale/`. What is stored, sent
or refused below the pages stays English; pages show it by `word` (a finding, a call, a class) and `told` (a sentence).
"""

from __future__ import annotations

import gettext as standard
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path

from babel import Locale
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from fastapi import APIRouter, Response
from jinja2 import Environment

from wetread.errors import NotFoundError
from wetread.web import vocabulary

router = APIRouter(include_in_schema=False)

ENGLISH = "en"
FOLDER = Path(__file__).parent / "locale"
_FILE = "LC_MESSAGES/wetread.po"
_now: ContextVar[str] = ContextVar("language", default=ENGLISH)


@cache
def languages() -> dict[str, str]:
    """Return the languages that there are: code and own name, as ``de`` and ``Deutsch``."""
    codes = (file.parents[1].name for file in sorted(FOLDER.glob(f"*/{_FILE}")))
    return {ENGLISH: "English"} | {code: Locale.parse(code).get_display_name(code) or code for code in codes}


@cache
def catalogue(code: str) -> Catalog:
    """Return the catalogue of a language."""
    with (FOLDER / code / _FILE).open("rb") as file:
        return read_po(file, locale=code)


@cache
def _translations(code: str) -> standard.NullTranslations:
    if code == ENGLISH:
        return standard.NullTranslations()
    write_mo(made := BytesIO(), catalogue(code))
    return standard.GNUTranslations(BytesIO(made.getvalue()))


# ---------------------------------------------------------------- which one


def wanted(header: str, usual: str) -> str:
    """Return the language that a browser asks for (Accept-Language), as far as there is one; else `usual`."""
    asked = []
    for place, part in enumerate(header[:1000].split(",")):
        name, _, weight = part.strip().partition(";q=")
        with_weight = re.fullmatch(r"[01](\.\d{0,3})?", weight.strip() or "1")
        if with_weight and float(with_weight[0]) > 0:
            asked.append((-float(with_weight[0]), place, name.split("-")[0].lower()))
    return next((code for _, _, code in sorted(asked) if code in languages()), usual)


def now() -> str:
    """Return the language in which pages are written now."""
    return _now.get()


def use(code: str) -> None:
    """Write in this language from now on, for as long as this request lasts."""
    _now.set(code)


@contextmanager
def using(code: str) -> Iterator[None]:
    """Write in this language meanwhile."""
    token = _now.set(code)
    try:
        yield
    finally:
        _now.reset(token)


# ---------------------------------------------------------------- words


def gettext(english: str, **values: object) -> str:
    """Return a text in the reader's language; ``%(name)s`` in it is filled with `values`."""
    return _gettext(english) % values


def ngettext(one: str, many: str, count: int, **values: object) -> str:
    """Return the form of a text that goes with `count`; it is filled with `values` and ``%(num)s``, the count."""
    return _ngettext(one, many, count) % {"num": number(f"{count:,}"), **values}


def pgettext(context: str, english: str, **values: object) -> str:
    """Return a text that means something else elsewhere, as it is said in this context."""
    return _pgettext(context, english) % values


def _gettext(english: str) -> str:
    return _translations(_now.get()).gettext(english)


def _ngettext(one: str, many: str, count: int) -> str:
    return _translations(_now.get()).ngettext(one, many, count)


def _pgettext(context: str, english: str) -> str:
    return _translations(_now.get()).pgettext(context, english)


def _npgettext(context: str, one: str, many: str, count: int) -> str:
    return _translations(_now.get()).npgettext(context, one, many, count)


def word(english: str | None, kind: str = "") -> str:
    """Return a word of ours in the reader's language; another, as somebody's own, as it is.

    Parameters
    ----------
    english : str, optional
    kind : str
        Of `vocabulary.WORDS`; empty for what a module marked by `N_`.
    """
    if not english:
        return ""
    return _pgettext(kind, english) if kind else _gettext(english)


def N_(english: str) -> str:  # noqa: N802  gettext's own name for it
    """Mark a text for the catalogue that is put into the reader's language later, by `word`."""
    return english


def number(text: str) -> str:
    """Return a number, written with commas between thousands and a point, as the reader's language writes it."""
    code = _now.get()
    return text if code == ENGLISH else text.translate(_signs(code))


@cache
def _signs(code: str) -> dict[int, str]:
    symbols = Locale.parse(code).number_symbols["latn"]
    return str.maketrans({",": symbols["group"], ".": symbols["decimal"]})


def moment(at: datetime, english: str) -> str:
    """Return a moment as the reader's language writes it: `english` is made of YYYY, MM or MON, DD, hh, mm, ss."""
    return re.sub("YYYY|MON|MM|DD|hh|mm|ss", lambda found: at.strftime(_PARTS[found[0]]).zfill(len(found[0])), english)


_PARTS = {"YYYY": "%Y", "MON": "%b", "MM": "%m", "DD": "%d", "hh": "%H", "mm": "%M", "ss": "%S"}


# ---------------------------------------------------------------- sentences from below


def told(english: str | None) -> str:
    """Return a sentence that was stored or refused in English in the reader's language; see `vocabulary.SENTENCES`."""
    code = _now.get()
    return english or "" if code == ENGLISH or not english else _told(code, english)


def _told(code: str, english: str) -> str:
    sentences = [f"{part}." for part in english.removesuffix(".").split(". ")]
    several = [_known(code, sentence) for sentence in sentences] if english.endswith(".") and sentences[1:] else [None]
    if all(several):
        return " ".join(filter(None, several))
    return _known(code, english) or english


@lru_cache(maxsize=4096)
def _known(code: str, english: str) -> str | None:
    for known, pattern in vocabulary.patterns().items():
        if found := pattern.fullmatch(english):
            values = {name: _part(code, name.rstrip("0123456789"), value) for name, value in found.groupdict().items()}
            return _translations(code).pgettext("told", known) % values
    return None


def _part(code: str, kind: str, value: str) -> str:
    if kind in vocabulary.WORDS:
        return _translations(code).pgettext(kind, value)
    if kind == "moment":
        with using(code):
            return moment(datetime.fromisoformat(value), gettext("YYYY-MM-DD hh:mm"))
    if kind == "list":
        return ", ".join(_told(code, each) for each in value.split(", "))
    return _told(code, value) if kind == "rest" else value


# ---------------------------------------------------------------- templates and the front end


def install(environment: Environment) -> None:
    """Give templates the functions and filters of this module."""
    environment.add_extension("jinja2.ext.i18n")
    environment.policies["ext.i18n.trimmed"] = True
    environment.install_gettext_callables(  # type: ignore[attr-defined]
        _gettext, _ngettext, newstyle=True, pgettext=_pgettext, npgettext=_npgettext
    )
    environment.filters |= {"word": word, "told": told, "number": number}


@cache
def script(code: str) -> bytes:
    """Return the words of the front end in a language, as a script that gives them to `language.ts`."""
    found = catalogue(code)
    words: dict[str, str | list[str]] = {}
    sentences = []
    for message in found:
        if not message.id or not message.string or message.fuzzy:
            continue
        if message.context == "told":
            sentences.append([message.id, message.string])
        elif message.context in vocabulary.WORDS or any(name.endswith(".ts") for name, _ in message.locations):
            one = message.id if isinstance(message.id, str) else message.id[0]
            words["\4".join(filter(None, (message.context, one)))] = (
                message.string if isinstance(message.string, str) else list(message.string)
            )
    order = {known: place for place, known in enumerate(vocabulary.SENTENCES)}
    sentences.sort(key=lambda each: order.get(str(each[0]), len(order)))
    data = {"decimal": _signs(code)[ord(".")], "words": words, "sentences": sentences, "kinds": vocabulary.KINDS}
    return f"globalThis.wetread={{plural:n=>Number({found.plural_expr}),...{json.dumps(data)}}};\n".encode()


@cache
def address(code: str) -> str:
    """Return where the front end's words are, by their content; empty for English, which needs none."""
    if code == ENGLISH:
        return ""
    return f"/static/language/{code}.js?v={hashlib.sha256(script(code)).hexdigest()[:16]}"


@router.get("/static/language/{code}.js")
def get_script(code: str) -> Response:
    """Return the words of the front end."""
    if code == ENGLISH or code not in languages():
        raise NotFoundError(f"language {code[:20]!r}: there is no catalogue")
    return Response(script(code), media_type="text/javascript; charset=utf-8", headers={"Cache-Control": _FOR_EVER})


_FOR_EVER = "public, max-age=31536000, immutable"  # another content has another address

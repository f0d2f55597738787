"""The written record of what a stage did or found: ``DATA/improve/STAGE/ID/``, as JSON and in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wetread import whole


def write(folder: Path, values: Mapping[str, Any], words: str, *, name: str = "record", chart: str = "") -> None:
    """Write ``NAME.md``, ``chart.svg`` where there is one, and last ``NAME.json``; each is whole or as it was.

    Parameters
    ----------
    folder : Path
        Made where it is not there.
    values : mapping
        As JSON has them; a number that it has not is refused.
    words : str
        The same for people, in Markdown.
    chart : str
        SVG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    as_words(folder / f"{name}.md", words)
    if chart:
        as_words(folder / "chart.svg", chart)
    as_json(folder / f"{name}.json", values)


def as_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write one file as JSON."""
    as_words(file, json.dumps(values, indent=1, allow_nan=False) + "\n")


def as_words(file: Path, words: str) -> None:
    """Write one file of text."""
    whole.write(file, words.encode())

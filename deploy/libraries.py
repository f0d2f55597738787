"""Print what Wetread is built on, with licences as the installed packages state them: a table of docs/system.md.

python deploy/libraries.py          # between the markers of docs/system.md, by --write
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/system.md"
BEGIN, END = "<!-- libraries -->\n", "<!-- end of libraries -->\n"
# Not for those who use Wetread, but for those who change it.
WITHOUT = {"dev", "docs"}

_NAMES = {
    "apache software": "Apache-2.0",
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "osi approved :: apache software license": "Apache-2.0",
    "mit license": "MIT",
    "bsd": "BSD",
    "bsd license": "BSD",
    "bsd 3-clause license": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
}


def licence(name: str) -> str:
    """Return the licence that an installed distribution states, or an empty string when it is not installed."""
    try:
        stated = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return ""
    words = (stated.get("License-Expression") or "").strip()
    classifiers = [c.rsplit(" :: ", 1)[1] for c in stated.get_all("Classifier") or [] if c.startswith("License :: OSI")]
    if not words:
        first = (stated.get("License") or "").strip()
        # Some put the whole text there.
        useful = first and "\n" not in first and len(first) < 40 and first.upper() != "LICENSE"
        words = first if useful else ", ".join(classifiers)
    plain = re.sub(r"^the ", "", words.lower().removesuffix(" license"))
    return _NAMES.get(words.lower(), _NAMES.get(plain, words)) or "see its files"


def required() -> dict[str, str]:
    """Return each library that Wetread names, and the extra that brings it; an empty one is the base install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found: dict[str, str] = {}
    for extra, lines in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for line in lines if extra not in WITHOUT else ():
            name = re.match(r"[A-Za-z0-9._-]+", line)
            assert name is not None
            found.setdefault(name[0], extra)
    return found


def front_end() -> Iterator[tuple[str, str]]:
    """Yield each library of the pages, and its licence by the file that it comes with (empty: not installed)."""
    wanted = json.loads((ROOT / "frontend/package.json").read_text("utf-8"))["dependencies"]
    for name in sorted(wanted):
        file = ROOT / "frontend/node_modules" / name / "package.json"
        yield name, json.loads(file.read_text("utf-8"))["license"] if file.is_file() else ""


def rows() -> dict[str, tuple[str, str]]:
    """Return name → (where it is needed, licence)."""
    order = sorted(required().items(), key=lambda item: (item[1] != "", item[1], item[0].lower()))
    found = {name: (extra or "base", licence(name)) for name, extra in order}
    return found | {name: ("pages", terms) for name, terms in front_end()}


def table() -> str:
    """Return the table in Markdown."""
    lines = [f"| {name} | {where} | {terms} |" for name, (where, terms) in rows().items()]
    return "\n".join(["| library | install | licence |", "|---|---|---|", *lines]) + "\n"


def read(page: str) -> dict[str, tuple[str, str]]:
    """Return the rows of the table in a page."""
    inside = page.split(BEGIN)[1].split(END)[0]
    cells = ([cell.strip() for cell in line.strip("|\n ").split("|")] for line in inside.splitlines()[2:] if line)
    return {name: (where, terms) for name, where, terms in cells}


if __name__ == "__main__":
    if "--write" in sys.argv:
        text = PAGE.read_text("utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}{table()}{END}{after}", "utf-8")
    else:
        sys.stdout.write(table())

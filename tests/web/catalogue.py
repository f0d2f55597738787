"""The words of the pages: which there are, and the catalogues of their translations.

`python tests/web/catalogue.py` brings all catalogues up to date and says what is left to translate;
`python tests/web/catalogue.py fr` begins a new one.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from babel.messages.catalog import Catalog
from babel.messages.extract import DEFAULT_KEYWORDS, extract
from babel.messages.pofile import read_po, write_po

from wetread.web import language, vocabulary

ROOT = Path(__file__).parents[2]
WEB = ROOT / "src/wetread/web"
# Where words are, how they are taken from there, and how that is told.
SOURCES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("src/wetread/web/templates/*.html", "jinja2.ext:babel_extract", {"trimmed": "true", "silent": "false"}),
    ("src/wetread/web/*.py", "python", {}),
    ("frontend/src/*.ts", "javascript", {"parse_template_string": "true"}),
)
KEYWORDS = DEFAULT_KEYWORDS | {"_": None, "N_": None}


def extracted() -> Catalog:
    """Take every text of templates, modules and front end, and the words and sentences of `vocabulary`."""
    found = Catalog(
        project="Wetread", charset="utf-8", header_comment="# The words of the pages. See docs/languages.md."
    )
    for pattern, method, options in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            with path.open("rb") as file:
                for _, messages, comments, context in extract(method, file, KEYWORDS, ("T:",), options):
                    found.add(messages, locations=[(name, 0)], auto_comments=comments, context=context)
    for kind, words in vocabulary.WORDS.items():
        for word in words:
            found.add(word, locations=[("src/wetread/web/vocabulary.py", 0)], context=kind)
    for sentence in vocabulary.SENTENCES:
        found.add(sentence, locations=[("src/wetread/web/vocabulary.py", 0)], context="told")
    return found


def file_of(code: str) -> Path:
    return language.FOLDER / code / "LC_MESSAGES/wetread.po"


def written(catalog: Catalog) -> bytes:
    """Write a catalogue so that only what changes in it changes in its file."""
    out = BytesIO()
    write_po(out, catalog, width=120, omit_header=False, sort_output=False, include_lineno=False, ignore_obsolete=True)
    volatile = (b'"POT-Creation-Date', b'"PO-Revision-Date', b'"Generated-By', b'"Report-Msgid', b'"Last-Translator')
    return b"".join(line for line in out.getvalue().splitlines(True) if not line.startswith(volatile))


def update(code: str) -> list[Any]:
    """Bring a catalogue up to date, or begin it; return what has no translation."""
    file, template = file_of(code), extracted()
    if file.is_file():
        with file.open("rb") as old:
            catalog = read_po(old, locale=code)
        catalog.update(template, no_fuzzy_matching=True)
    else:
        catalog = Catalog(locale=code, project="Wetread", charset="utf-8", header_comment=template.header_comment)
        catalog.update(template, no_fuzzy_matching=True)
    catalog.fuzzy = False
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(written(catalog))
    return [message.id for message in catalog if message.id and not all(forms(message))]


def forms(message: Any) -> tuple[str, ...]:
    """Return all forms of a translation."""
    return tuple(message.string or ("",)) if isinstance(message.string, tuple | list) else (message.string or "",)


if __name__ == "__main__":
    for code in sys.argv[1:] or [code for code in language.languages() if code != language.ENGLISH]:
        missing = update(code)
        print(f"{file_of(code).relative_to(ROOT)}: {len(missing)} to translate")  # noqa: T201
        for words in missing:
            print(f"  {words!r}")  # noqa: T201

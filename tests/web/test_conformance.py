"""The conformance statement says what the program does, and is committed as the program writes it."""

import re
from pathlib import Path

from clinic_dimse import listening
from pynetdicom import AE, build_context
from ward import Ward

from wetread.clinic.dimse import REJECTIONS, STORAGE_CLASSES, TRANSFER_SYNTAXES
from wetread.web import conformance

PAGE = Path(__file__).parents[2] / "docs/conformance.md"


def parts(text):
    """Split the page: what the code says, and the tables that grow with the libraries."""
    text = re.sub(r"^\d+ classes\.", "", text, flags=re.MULTILINE)
    body, classes = text.split("## Storage SOP classes")
    return body, set(re.findall(r"\| ([0-9.]+) \|$", classes, re.MULTILINE))


def test_the_page_is_current_see_make_docs():
    committed, classes = parts(PAGE.read_text(encoding="utf-8"))
    written, known = parts(conformance.page())
    assert committed == written, "python -m wetread.web.conformance docs/conformance.md"
    assert classes <= known
    unnamed = re.findall(r"^\| [0-9.]+ \| [0-9.]+ \|$", conformance.page(), re.MULTILINE)
    assert not unnamed, "a class that the dictionary does not name; see conformance._NAMES"


def test_every_class_and_syntax_that_it_names_is_accepted(tmp_path):
    wanted = [build_context(uid, list(TRANSFER_SYNTAXES)) for uid in STORAGE_CLASSES]
    syntaxes = [build_context(next(iter(STORAGE_CLASSES)), uid) for uid in TRANSFER_SYNTAXES]
    ward = Ward(tmp_path)
    with listening(ward) as listener:
        for contexts in (wanted[:128], wanted[128:], syntaxes):
            link = AE("MODALITY").associate("127.0.0.1", listener.port, contexts, "WETREAD")
            assert len(link.accepted_contexts) == len(contexts)
            link.release()
    ward.database.close()


def test_each_refusal_that_it_names_is_one_of_the_standard():
    assert {code[:2] for code in REJECTIONS} <= {(1, 1), (2, 3)}

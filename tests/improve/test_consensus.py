"""What readers say together: agreed, uncertain where they differ, and never more certain than they are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetread.findings import CHEXPERT
from wetread.improve import consensus
from wetread.improve.consensus import Reading

START = datetime(2026, 3, 1, tzinfo=UTC)
LIKELY, UNLIKELY = ("agree", "likely"), ("agree", "unlikely")
DENIED, UNSURE, ADDED = ("disagree", "likely"), ("unsure", "likely"), ("added", None)


def read(number: int, reader: str = "ann", parent: int | None = None, **said: Any) -> Reading:
    """Return a reading; findings by keyword, with underscores for spaces."""
    own = said.pop("own_call", None)
    normal = said.pop("normal", False)
    answers = {finding.replace("_", " "): answer for finding, answer in said.items()}
    before = None if parent is None else str(parent)
    at = START + timedelta(minutes=number)
    return Reading(str(number), reader, before, own is None, at, normal, answers, own)


def own(*findings: str, normal: bool = False) -> dict[str, Any]:
    return {"normal": normal, "findings": list(findings)}


@pytest.mark.parametrize(
    ("readings", "wanted", "disputed"),
    [
        ([read(1, Edema=LIKELY, Pneumothorax=UNLIKELY, Fracture=UNSURE)],
         {"Edema": 1, "Pneumothorax": 0, "Fracture": -1, "No Finding": 0}, set()),
        # One's own addendum corrects, another's answer disagrees, a repeated word is no second opinion.
        ([read(1, Edema=LIKELY), read(2, parent=1, Edema=DENIED)], {"Edema": 0}, set()),
        ([read(1, Edema=LIKELY), read(2, "bob", 1, Edema=DENIED)], {"Edema": -1, "No Finding": 0}, {"Edema"}),
        ([read(1, Edema=LIKELY), read(2, "bob", 1, Edema=LIKELY), read(3, parent=2, Edema=DENIED)],
         {"Edema": 0}, set()),
        ([read(1, Edema=LIKELY), read(2, "bob", Edema=LIKELY)], {"Edema": 1, "No Finding": 0}, set()),
        # A new image opened the study again, and somebody else signed it.
        ([read(1, normal=True), read(2, "bob", Edema=LIKELY)],
         {"Edema": -1, "Lung Opacity": -1, "Pneumothorax": 0, "No Finding": -1}, {"Edema", "No Finding"}),
        # Blind: what was seen only when the model said so is not certain; what was seen before and stands is.
        ([read(1, Edema=LIKELY, own_call=own())], {"Edema": -1, "No Finding": 0}, {"Edema"}),
        ([read(1, Edema=LIKELY, own_call=own("Edema"))], {"Edema": 1, "Lung Opacity": 1, "No Finding": 0}, set()),
        ([read(1, Edema=LIKELY, own_call=own("Lung Opacity"))], {"Edema": 1, "Lung Opacity": 1}, set()),
        ([read(1, Edema=DENIED, own_call=own("Edema"))], {"Edema": -1, "Lung Opacity": 1}, {"Edema"}),
        ([read(1, Edema=UNSURE, own_call=own("Edema"))], {"Edema": -1, "Lung Opacity": 1}, set()),
        ([read(1, own_call=own("Fracture"))], {"Fracture": 1, "No Finding": 0}, set()),
        ([read(1, Support_Devices=ADDED, own_call=own("Edema"))], {"Support Devices": 1, "Edema": 1}, set()),
        ([read(1, Edema=LIKELY, own_call=own(normal=True))],
         {"Edema": -1, "Lung Opacity": -1, "No Finding": -1, "Fracture": 0}, {"Edema", "No Finding"}),
        ([read(1, normal=True, own_call=own(normal=True))], {"No Finding": 1, "Edema": 0}, set()),
        # The own call stays with its reader through an addendum.
        ([read(1, own_call=own("Edema")), read(2, parent=1, Edema=DENIED)], {"Edema": -1}, {"Edema"}),
    ],
)  # fmt: skip
def test_labels(readings: list[Reading], wanted: dict[str, int], disputed: set[str]) -> None:
    found, differ = consensus.labels(readings, CHEXPERT)
    assert {finding: found.get(finding) for finding in wanted} == wanted
    assert differ & set(CHEXPERT.findings) == disputed


def test_a_finding_of_no_task_is_no_trouble() -> None:
    found, _ = consensus.labels([read(1, own_call=own("Zebra sign"), Quagga=ADDED)], CHEXPERT)
    assert (found["Zebra sign"], found["Quagga"]) == (1, -1)


def test_blind_labels_are_those_of_the_own_call_alone() -> None:
    first = read(1, Edema=DENIED, own_call=own("Edema"))
    found = consensus.blind_labels([first], CHEXPERT)
    assert found is not None
    assert {f for f, value in found.items() if value == 1} == {"Edema", "Lung Opacity"}
    assert set(found.values()) == {0, 1}
    assert "Support Devices" not in found  # nobody names all of them
    normal = consensus.blind_labels([read(1, own_call=own(normal=True))], CHEXPERT)
    assert normal is not None
    assert [f for f in CHEXPERT.findings if normal.get(f)] == ["No Finding"]
    both = consensus.blind_labels([first, read(2, "bob", own_call=own("Fracture"))], CHEXPERT)
    assert both is not None
    assert {f for f in CHEXPERT.findings if both.get(f) == -1} == {"Edema", "Lung Opacity", "Fracture"}
    assert consensus.blind_labels([read(1, Edema=LIKELY)], CHEXPERT) is None
    assert [consensus.is_blind([one]) for one in (first, read(1, Edema=LIKELY))] == [True, False]


FINDINGS = ["Edema", "Lung Opacity", "Pneumothorax", "No Finding", "Support Devices"]
ANSWERS = st.sampled_from([LIKELY, UNLIKELY, DENIED, UNSURE, ADDED, ("disagree", "unlikely"), ("disagree", "unsure")])
CALLS = st.none() | st.builds(lambda f: own(*f), st.lists(st.sampled_from(FINDINGS[:3]), unique=True))


@st.composite
def readings(draw: st.DrawFn) -> list[Reading]:
    found: list[Reading] = []
    for number in range(draw(st.integers(1, 4))):
        said = draw(st.dictionaries(st.sampled_from(FINDINGS), ANSWERS))
        parent = str(draw(st.integers(0, number - 1))) if number and draw(st.booleans()) else None
        call, reader = draw(CALLS), draw(st.sampled_from(["ann", "bob"]))
        at = START + timedelta(minutes=number)
        found.append(Reading(str(number), reader, parent, call is None, at, False, said, call))
    return found


@given(readings())
def test_nothing_is_certain_that_a_reader_s_last_word_denies(found: list[Reading]) -> None:
    labels, disputed = consensus.labels(found, CHEXPERT)
    assert set(labels.values()) <= {1, 0, -1}
    assert all(labels[finding] == -1 for finding in disputed)
    last = {reading.reader: reading for reading in found}
    words = {reader: reading.said for reader, reading in last.items()}
    for finding, value in labels.items():
        said = {word[finding] for word in words.values() if finding in word}
        if value != -1 and len(last) == len(found):  # nobody repeated or corrected anything
            repeats = any(reading.parent is not None for reading in found)
            assert repeats or said <= {value}
    assert consensus.labels(found, CHEXPERT) == (labels, disputed)

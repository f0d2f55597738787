"""Rows and studies in the reader's words."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetread.clinic.worklist import Counts, Finding, Image, Row, Study
from wetread.errors import Code
from wetread.findings import CHEXPERT, PNEUMONIA
from wetread.web import view

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ROW = Row(
    study="s1",
    status="analysed",
    priority="routine",
    overdue=False,
    reason="no finding flagged (phantom)",
    finding=None,
    model=None,
    code=None,
    patient_name="Doe, Jane",
    patient_id="17",
    sex="F",
    age_years=63.4,
    views="PA",
    images=1,
    cautions=(),
    analysis="analysed",
    reading="unread",
    received_at=NOW,
    overdue_at=NOW + timedelta(hours=4),
    claimed_by=None,
    rank=4,
)


@pytest.mark.parametrize(
    ("minutes", "words"), [(0, "0:00"), (7.9, "0:07"), (60, "1:00"), (24 * 60 - 1, "23:59"), (31 * 60 + 40, "1 d 7:40")]
)
def test_a_wait_is_hours_and_minutes(minutes, words):
    assert view.waiting(NOW, NOW + timedelta(minutes=minutes)) == words


def test_a_clock_that_runs_behind_gives_no_negative_wait():
    assert view.waiting(NOW + timedelta(minutes=5), NOW) == "0:00"


@pytest.mark.parametrize(
    ("age", "sex", "words"),
    [(63.4, "F", "F 63 y"), (0.5, "M", "M 6 mo"), (None, "O", "O"), (40.0, None, "40 y"), (None, None, "")],
)
def test_age_and_sex_say_only_what_is_known(age, sex, words):
    assert view.age_sex(replace(ROW, age_years=age, sex=sex)) == words


@pytest.mark.parametrize(
    ("changes", "marks"),
    [
        ({}, [("routine", "ROUTINE")]),
        ({"priority": "urgent"}, [("urgent", "URGENT")]),
        ({"overdue": True}, [("overdue", "OVERDUE")]),
        ({"priority": "critical", "overdue": True}, [("critical", "CRITICAL, OVERDUE")]),
        ({"analysis": "not_analysed"}, [("unanalysed", "NOT ANALYSED")]),
        (
            {"analysis": "not_analysed", "priority": "critical"},
            [("critical", "CRITICAL"), ("unanalysed", "NOT ANALYSED")],
        ),
        ({"analysis": "not_analysed", "overdue": True}, [("overdue", "OVERDUE"), ("unanalysed", "NOT ANALYSED")]),
    ],
)
def test_marks_tell_the_class_and_what_was_not_analysed(changes, marks):
    assert view.marks(replace(ROW, **changes)) == marks


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"analysis": "received"}, "analysing …"),
        ({}, "unread"),
        ({"analysis": "not_analysed"}, "unread"),
        ({"reading": "draft"}, "draft"),
        ({"claimed_by": "B"}, "being read"),
        ({"reading": "signed"}, "read"),
    ],
)
def test_status_in_a_word(changes, words):
    assert view.status(replace(ROW, **changes)) == words


def test_a_row_names_its_reader_and_who_is_looking():
    assert view.line(ROW, "A")["reader"] == ""
    assert view.line(replace(ROW, claimed_by="A"), "A")["reader"] == "you"
    assert view.line(replace(ROW, claimed_by="B"), "A")["reader"] == "B"


def test_a_row_without_a_name_shows_the_identifier_once():
    line = view.line(replace(ROW, patient_name=""), "A")
    assert (line["patient"], line["patient_id"]) == ("17", "")
    assert view.line(replace(ROW, patient_name="", patient_id=""), "A")["patient"] == f"study {ROW.study}"


def test_the_word_not_analysed_is_not_said_twice():
    row = replace(ROW, analysis="not_analysed", reason="not analysed: lateral only")
    assert view.line(row, "A")["why"] == "lateral only"


def counts(**changes):
    return Counts(**(dict.fromkeys(Counts.__dataclass_fields__, 0) | {"oldest": None} | changes))


def test_alarms_for_what_is_overdue_and_for_ai_that_is_off():
    assert view.alarms(counts(), None) == []
    assert view.alarms(counts(overdue=1), "AI is off.")[0] == "AI is off."
    assert view.alarms(counts(overdue=1), None)[0].startswith("1 study is past")
    assert view.alarms(counts(overdue=2), None)[0].startswith("2 studies are past")


def test_every_filter_counts_a_field_that_exists():
    assert {f.count for f in view.FILTERS if f.count} <= {*Counts.__dataclass_fields__, "mine"}


def finding(name, probability=0.1, call="unlikely", *, flagged=False):
    return Finding(name, "phantom", probability, 0.5, flagged, call, "i1")


@given(st.lists(st.floats(0, 1), min_size=14, max_size=14), st.sampled_from(CHEXPERT.findings))
def test_the_tree_keeps_every_finding_and_puts_each_child_below_its_parent(probabilities, first):
    found = [
        finding(name, p, "likely" if p > 0.7 else "unsure" if p > 0.3 else "unlikely", flagged=p > 0.5)
        for name, p in zip(CHEXPERT.findings, probabilities, strict=True)
    ]
    ordered = view.tree(found, first)
    assert sorted(f.finding for f, _ in ordered) == sorted(CHEXPERT.findings)
    path: list[str] = []
    for f, depth in ordered:
        path = [*path[:depth], f.finding]
        assert tuple(path) == CHEXPERT.path(f.finding)
    assert ordered[0][0].finding == CHEXPERT.path(first)[0]


def test_what_is_likely_comes_first_and_what_is_no_abnormality_last():
    found = [finding(name) for name in CHEXPERT.findings if name not in ("Fracture", "Pneumonia", "Support Devices")]
    found += [finding("Fracture", 0.4, "unsure"), finding("Pneumonia", 0.9, "likely", flagged=True)]
    found += [finding("Support Devices", 0.99, "likely", flagged=True)]
    names = [f.finding for f, _ in view.tree(found)]
    assert names[:3] == ["Lung Opacity", "Consolidation", "Pneumonia"]
    assert names[names.index("Fracture") - 1] in ("Lung Lesion", "Edema", "Atelectasis")
    assert set(names[-2:]) == {"No Finding", "Support Devices"}


def test_findings_of_an_unknown_task_are_listed_flat():
    assert [(f.finding, d) for f, d in view.tree([finding("X"), finding("Y", 0.9, "likely")])] == [("Y", 0), ("X", 0)]


def test_an_exclusive_task_keeps_normal_at_the_end():
    found = [finding("Normal", 0.9, "likely", flagged=True), finding("Pneumonia")]
    assert [f.finding for f, _ in view.tree(found)] == ["Pneumonia", PNEUMONIA.normal]


def test_every_code_has_plain_words():
    assert set(view.CODES) == set(Code)


def test_an_identity_says_what_is_unknown():
    study = Study(
        row=replace(ROW, patient_id="", views=""),
        birth_date=None,
        accession=None,
        description=None,
        acquired_at=None,
        cautions=(),
        abnormal={},
        findings=(),
        images=(),
        claim=None,
        reviews=(),
    )
    facts = view.reading(study, "A")["identity"]
    assert ("id", "unknown") in facts
    assert ("born", "unknown") in facts
    assert ("acquired", "unknown") in facts
    assert ("", "view unknown") in facts


def test_files_that_are_not_shown_are_listed_with_their_reason():
    said = [
        ("stored", None),
        ("rejected", "blurred"),
        ("document", "Structured Report"),
        ("quarantined", None),
        ("superseded", "a later header of the same image is in force"),
        ("copy", "the same data set with another file meta header"),
    ]
    files = tuple(
        Image(str(n), f"{n}.dcm", "dicom", "PA", "CR", 1, "0" * 64, state, reason, NOW, ())
        for n, (state, reason) in enumerate(said)
    )
    study = Study(ROW, None, None, None, None, (), {}, (), files, None, ())
    shown = view.reading(study, "dr")
    assert [(image["label"], image["shown"]) for image in shown["images"]] == [
        ("1 PA", True),
        ("2 rejected", False),
        ("3 document", False),
        ("4 quarantined", False),
    ]
    assert shown["refusals"] == [
        "image 2 rejected: blurred",
        "image 3 document: Structured Report",
        "image 4 quarantined: kept apart: other bytes came under the same identifier",
        "image 5 superseded: a later header of the same image is in force",
    ]

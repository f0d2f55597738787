"""The truth file: written by one, read by another while it grows."""

from datetime import UTC, datetime

import pytest

from wetread import findings
from wetread.errors import ConfigError
from wetread.simulate import truth
from wetread.simulate.department import Patient
from wetread.simulate.truth import Case, Clock, Writer, abnormal, case, read
from wetread.simulate.ways import Answer

CLOCK = Clock(datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 5, 1, 8, tzinfo=UTC), 4320.0)
PATIENT = Patient(
    "P1", (), "1.2.3", 1, {"Edema": 1, "Fracture": 0}, {"Edema": (0.1, 0.2, 0.3, 0.4)}, CLOCK.start, "after"
)


def test_what_is_written_is_read_as_far_as_whole_lines_go(tmp_path):
    file = tmp_path / "t.jsonl"
    with Writer(file, CLOCK, seed=1) as writer:
        writer.write(case(PATIENT, Answer("accepted", study="abc")))
    with file.open("a") as growing:
        growing.write('{"study_uid": "1.2')
    found = read(file)
    assert (found.clock, len(found.cases), found.ended) == (CLOCK, 1, False)
    one = found.cases[0]
    assert (one.study_uid, one.study, one.abnormal, one.phase) == ("1.2.3", "abc", 1, "after")
    assert (one.findings, one.boxes) == ({"Edema": 1, "Fracture": 0}, {"Edema": [0.1, 0.2, 0.3, 0.4]})
    assert datetime.fromisoformat(one.at) == CLOCK.start
    assert found.by_key() == {"1.2.3": one, "abc": one}


def test_it_says_when_all_was_sent_and_a_failed_study_is_no_case_to_be_found(tmp_path):
    with Writer(tmp_path / "t.jsonl", CLOCK) as writer:
        writer.write(case(PATIENT, Answer("HTTP 503")))
        writer.end(sent=1)
    found = read(tmp_path / "t.jsonl")
    assert found.ended
    assert [one.outcome for one in found.cases] == ["HTTP 503"]
    assert found.by_key() == {}


def test_a_file_is_locked_as_long_as_it_is_written(tmp_path):
    with Writer(tmp_path / "t.jsonl", CLOCK):
        assert truth.written(tmp_path / "t.jsonl")
    assert not truth.written(tmp_path / "t.jsonl")


def test_a_file_that_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "t.jsonl").write_text("precious")
    with pytest.raises(ConfigError, match="exists already"):
        Writer(tmp_path / "t.jsonl", CLOCK)
    assert (tmp_path / "t.jsonl").read_text() == "precious"


@pytest.mark.parametrize(
    "text", ["", "nonsense\n", "[]\n", '{"study_uid": 1}\n', '{"simulation": {}}\n', '{"simulation": {"start": 1}}\n']
)
def test_what_is_no_truth_file_is_refused_by_name(tmp_path, text):
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=r"t\.jsonl"):
        read(tmp_path / "t.jsonl")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "none")


def test_devices_and_normal_are_no_abnormality():
    assert abnormal({"Support Devices": 1, "No Finding": 1, "Edema": 0}) == 0
    assert abnormal({"Support Devices": 1, "Edema": 1}) == 1
    assert abnormal({"Normal": 1, "Pneumonia": 0}) == 0
    assert {"No Finding", "Normal", "Support Devices"} <= findings.HARMLESS


def test_a_case_has_the_fields_that_the_documentation_names():
    assert set(Case.__dataclass_fields__) == {
        "study_uid", "study", "patient", "at", "sent_at", "phase", "outcome", "abnormal", "findings", "boxes",
    }  # fmt: skip

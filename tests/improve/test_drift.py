"""A department that was drawn: alarms where something was changed in it, and nowhere else."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from department import HERE
from drifting import POLICY, START, Department

from wetread.clinic import accounts, audit, store
from wetread.clinic.store import Store
from wetread.errors import ConfigError
from wetread.improve import drift, policy
from wetread.improve.drift import ALL, DRIFT, QUIET, UNKNOWN, DriftPolicy


@pytest.fixture
def database(tmp_path: Path) -> Any:
    opened = Store(f"sqlite:///{tmp_path}/clinic.db")
    yield opened
    opened.close()


def kinds(report: drift.Report) -> set[str]:
    return {alarm.split(":")[0] for source in report.sources for alarm in source.alarms}


def test_nothing_changed(database: Store) -> None:
    found = Department().come(range(35)).report(database)
    assert (found.verdict, kinds(found), found.new_devices) == (QUIET, set(), ())
    assert found.reason == "nothing that matters and is more than chance"
    assert [source.name for source in found.sources] == [ALL, "reviews"]
    of_all = found.sources[0]
    assert (of_all.before, of_all.after) == (28 * 8, 7 * 8)
    assert {c.kind for c in of_all.changes} == {"pixels", "device", "refused", "features", "scores"}


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"dark": 0.1}, "pixels"),
        ({"axis": 0.8}, "features"),
        ({"score": 0.2}, "scores"),
        ({"refused": 0.4}, "refused"),
        ({"off": 0.5}, "calibration"),
    ],
)
def test_what_changed_is_named(database: Store, changed: dict[str, Any], kind: str) -> None:
    found = Department().come(range(28)).come(range(28, 35), **changed).report(database)
    assert found.verdict == DRIFT
    assert kind in kinds(found)
    assert kind in found.reason
    assert any(hint.startswith(kind) for hint in found.look)
    untouched = {"dark": "labels", "axis": "pixels", "score": "pixels", "refused": "pixels", "off": "pixels"}
    assert untouched[next(iter(changed))] not in kinds(found)


def test_more_ill_patients_change_labels_and_scores_and_not_the_images(database: Store) -> None:
    found = Department().come(range(28)).come(range(28, 35), ill=0.7).report(database)
    assert {"labels", "scores"} <= kinds(found)
    assert not {"pixels", "features", "device"} & kinds(found)


def test_a_new_scanner_is_named_and_one_device_that_changes_is_found_by_itself(database: Store) -> None:
    drawn = Department().come(range(28), device="OLD CR").come(range(28), 8, device="ACME DR")
    drawn.come(range(28, 35), device="OLD CR", dark=0.1).come(range(28, 35), device="ACME DR")
    found = drawn.come(range(28, 35), 10, device="NEW DX").report(database)
    assert found.new_devices == ("NEW DX",)
    by_name = {source.name: source for source in found.sources}
    of = {ALL, "ACME DR", "OLD CR", "NEW DX"}
    assert set(by_name) == of | {"reviews", "reviews of ACME DR", "reviews of OLD CR", "reviews of NEW DX"}
    assert "device: mix" in by_name[ALL].alarms
    assert "pixels: mean" in by_name["OLD CR"].alarms
    assert by_name["ACME DR"].changes
    assert by_name["ACME DR"].alarms == ()
    assert {c.kind for c in by_name["reviews of OLD CR"].changes} == {"labels", "calibration"}
    assert by_name["NEW DX"].changes == by_name["reviews of NEW DX"].changes == ()
    assert (by_name["NEW DX"].before, by_name["NEW DX"].after) == (0, 70)


def test_a_new_scanner_whose_images_nobody_can_read_is_found(database: Store) -> None:
    drawn = Department().come(range(35), 7).come(range(28, 35), 7, device="NEW DX", unread=1.0, signed=False)
    found = drawn.report(database)
    assert found.new_devices == ("NEW DX",)
    assert {"refused: share", "device: mix"} <= set(found.sources[0].alarms)
    assert "pixels" not in kinds(found)
    measured = {c.kind: c.after for c in found.sources[0].changes}
    assert (measured["refused"], measured["pixels"]) == (14 * 7, 7 * 7)


def test_a_window_of_which_nothing_can_be_read_is_checked(database: Store) -> None:
    found = Department().come(range(28)).come(range(28, 35), unread=1.0, signed=False).report(database)
    assert (found.verdict, kinds(found)) == (DRIFT, {"refused"})


def test_one_patient_with_many_images_counts_once(database: Store) -> None:
    drawn = Department().come(range(28)).come(range(28, 35), 6).come(range(28, 35), 30, patient="P", dark=0.2)
    found = drawn.report(database)
    assert found.sources[0].after == 7 * 6 + 1
    assert "pixels" not in kinds(found)


def test_patients_who_come_back_are_no_drift(database: Store) -> None:
    drawn = Department(2).come(range(35), 5).stay(range(35), 20, 14, device="PORTABLE", dark=0.15, axis=1.0, ill=0.7)
    found = drawn.report(database)
    assert (found.verdict, kinds(found)) == (QUIET, set())
    # Nobody is in both: of each patient one image, wherever it fell.
    assert sum((s.before + s.after) for s in found.sources if s.name == ALL) == len(
        {row["patient_id"] for row in drawn.tables["study"]}
    )


def test_too_little_to_say_is_said(database: Store) -> None:
    found = Department().come(range(35), 2, signed=False).report(database)
    assert (found.verdict, "40 of each wanted" in found.reason) == (UNKNOWN, True)


def test_quiet_names_what_was_not_looked_at(database: Store) -> None:
    drawn = Department().come(range(35), signed=False).come(range(35), 1, device="RARE CR")
    found = drawn.report(database)
    by_name = {source.name: source for source in found.sources}
    assert found.verdict == QUIET
    assert found.reason.endswith("too little to say of RARE CR, reviews")
    for name, counts in (("RARE CR", (28, 7)), ("reviews", (28, 7))):
        assert by_name[name].changes == ()
        assert (by_name[name].before, by_name[name].after) == counts


def test_a_finding_of_which_too_few_were_asked_is_named(database: Store) -> None:
    drawn = Department().come(range(35))
    answered = [row for row in drawn.tables["review_finding"] if row["finding"] == "Edema"]
    drawn.tables["review_finding"] = answered + [r for r in drawn.tables["review_finding"] if r not in answered][:30]
    found = drawn.report(database)
    assert "labels: Pneumothorax (reviews)" in found.reason
    assert found.sources[-1].few == ("labels: Pneumothorax", "calibration: Pneumothorax")
    assert drift.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_one_of_two_scanners_of_a_model_and_one_of_two_senders_is_found_by_itself(database: Store) -> None:
    drawn = Department()
    for room, sender in (("ROOM 1", "AE WEST"), ("ROOM 2", "AE WEST"), ("ROOM 3", "AE EAST")):
        drawn.come(range(28), 8, station=room, source=sender)
        drawn.come(range(28, 35), 8, station=room, source=sender, dark=0.1 if room == "ROOM 2" else 0.0)
    found = drawn.report(database)
    by_name = {source.name: source for source in found.sources}
    stations = {"station ROOM 1", "station ROOM 2", "sender AE WEST"}
    assert {name for name in by_name if "reviews" not in name} == {ALL, *stations, by_name_of(by_name, "3", "EAST")}
    assert {f"reviews of {name}" for name in stations} < set(by_name)
    assert "pixels: mean" in by_name["station ROOM 2"].alarms
    assert by_name["station ROOM 1"].alarms == ()
    assert "labels" not in kinds(found)


def by_name_of(names: dict[str, Any], *ends: str) -> str:
    """Return the one name that stands for several groups of the same images."""
    (found,) = (name for name in names if "reviews" not in name and name.endswith(ends))
    return found


def test_who_uploads_by_hand_has_no_name_in_a_report(database: Store) -> None:
    drawn = Department()
    for sender in ("Dr Quixote", "Nurse Panza", "AE WEST"):
        drawn.come(range(35), 4, source=sender)
    for name in ("Dr Quixote", "Nurse Panza"):
        accounts.create(database, name, "radiologist", HERE, actor="tester", password="correct horse battery staple")
    names = {source.name for source in drawn.report(database).sources}
    assert "sender by hand" in names
    assert not any("Quixote" in name or "Panza" in name for name in names)


def test_only_so_many_groups_are_compared_and_the_rest_is_said(database: Store) -> None:
    drawn = Department()
    for number in range(14):
        drawn.come(range(35), 1 if number else 7, device=f"D{number:02}", signed=False)
    found = drawn.report(database, DriftPolicy(**POLICY.model_dump() | {"most_groups": 1}))
    names = [source.name for source in found.sources]
    assert names == [ALL, "D00", *(f"D{number:02}" for number in range(1, 11)), "3 more groups", "reviews"]
    assert [bool(source.changes) for source in found.sources] == [True, True] + [False] * 12
    assert "and 6 more" in found.reason
    assert (found.sources[-2].before, found.sources[-2].after) == (3 * 28, 3 * 7)


def test_a_reference_that_is_not_whole_is_not_called_quiet(database: Store) -> None:
    found = Department().come(range(21)).report(database, day=21)
    assert (found.verdict, "not whole" in found.reason) == (UNKNOWN, True)


def test_the_same_window_is_checked_once_and_alarms_once(database: Store) -> None:
    first = Department().come(range(28)).come(range(28, 35), dark=0.2).report(database)
    again = drift.check(database, HERE, POLICY, until=START + timedelta(days=35, hours=3))
    assert again == [first]
    with database.read() as connection:
        actions = list(connection.execute(sa.select(store.audit.c.action)).scalars())
        events = list(connection.execute(sa.select(store.event.c.kind)).scalars())
        assert [one["id"] for one in drift.latest(connection, HERE)] == [first.id]
    assert (actions, events) == (["drift.found"], ["drift.found"])
    assert audit.verify(database) is None
    json.dumps(first.to_dict(), allow_nan=False)


def test_another_beginning_of_the_reference(database: Store) -> None:
    changed = DriftPolicy(**POLICY.model_dump() | {"reference_from": START + timedelta(days=28), "reference_days": 7})
    found = Department().come(range(28)).come(range(28, 42), dark=0.2).report(database, changed, day=42)
    assert found.verdict == QUIET


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("window = 7", "unknown setting 'window'; known: .*window_days"),
        ("alpha = 2", "alpha = 2: .*less than or equal to 0.2"),
        ("[limits]\nscores = 0", "limits.scores = 0"),
        ("alpha = ", "not a TOML file"),
        ("reference_from = 2026-01-01", "reference_from"),
    ],
)
def test_bad_policies_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "drift.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        policy.load(file, DriftPolicy)
    with pytest.raises(ConfigError, match="cannot be read"):
        policy.load(tmp_path / "none.toml", DriftPolicy)
    assert policy.load(None, DriftPolicy) == DriftPolicy()


@pytest.mark.system
def test_the_same_on_postgresql(postgresql: str, database: Store) -> None:
    drawn = Department().come(range(28)).come(range(28, 35), dark=0.2)
    here, there = drawn.report(database), Store(postgresql)
    assert drawn.report(there).to_dict() == here.to_dict()
    there.close()

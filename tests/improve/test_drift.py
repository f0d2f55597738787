"""A department that was drawn: alarms where something was changed in it, and nowhere else."""

from __future__ import annotations

import json
import random
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import department
import numpy as np
import pytest
import sqlalchemy as sa
from department import HERE, Tables

from wetread.clinic import audit, store
from wetread.clinic.store import Store
from wetread.errors import ConfigError
from wetread.improve import drift, policy
from wetread.improve.drift import ALL, DRIFT, QUIET, UNKNOWN, DriftPolicy

MODEL, FINDINGS = "a" * 64, ("Edema", "Pneumothorax")
START = datetime(2026, 3, 1, tzinfo=UTC)
POLICY = DriftPolicy(least_images=40, least_reviews=40, resamples=199, alpha=0.05)


class Department:
    """Draws studies, a few a day, each of one image of one patient unless said otherwise."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.tables: Tables = {name: [] for name in department.ORDER}
        self.count = 0

    def come(
        self, days: range, a_day: int = 8, *, device: str = "ACME DR", dark: float = 0.0, score: float = 0.0,
        ill: float = 0.2, off: float = 0.0, axis: float = 0.0, refused: float = 0.0, patient: str | None = None,
        signed: bool = True,
    ) -> Department:  # fmt: skip
        rng = self.rng
        for day in days:
            for _ in range(a_day):
                self.count += 1
                n, at = self.count, START + timedelta(days=day + rng.random())
                image = str(uuid.UUID(int=rng.getrandbits(128), version=4))
                sick = [rng.random() < ill for _ in FINDINGS]
                p = [min(0.999, max(0.001, (0.65 if s else 0.15) + rng.gauss(0, 0.1) + score)) for s in sick]
                said = [
                    {"finding": f, "probability": q, "threshold": 0.5, "flagged": q > 0.5, "call": "likely"}
                    for f, q in zip(FINDINGS, p, strict=True)
                ]
                self._add(n, at, image, patient or f"P{n}", said, device, rng.gauss(0.5 - dark, 0.05), axis, refused)
                if signed:
                    answers = [s if rng.random() > off else not s for s in sick]
                    self._sign(n, at, said, answers)
        return self

    def _add(
        self, n: int, at: datetime, image: str, patient: str, said: list[dict[str, Any]], device: str, mean: float,
        axis: float, refused: float,
    ) -> None:  # fmt: skip
        rng, suitable = self.rng, self.rng.random() >= refused
        features = np.array([rng.gauss(axis, 1) for _ in range(6)], np.float16)
        self.tables["study"].append({
            "id": f"study-{n}", "site": HERE, "study_uid": f"1.{n}", "patient_id": patient, "patient_name": "",
            "views": "PA", "images": 1, "cautions": [], "received_at": at, "analysis": "analysed", "overdue": False,
            "reading": "unread", "floor": "routine", "priority": "routine", "overdue_at": at, "rank": 0, "reason": "",
        })  # fmt: skip
        self.tables["series"].append({"id": f"series-{n}", "study": f"study-{n}", "series_uid": f"2.{n}"})
        self.tables["instance"].append({
            "id": image, "site": HERE, "study": f"study-{n}", "series": f"series-{n}", "sop_uid": f"3.{n}",
            "sha256": f"{n:064x}", "bytes": 1, "format": "dicom", "name": "", "state": "stored", "received_at": at,
        })  # fmt: skip
        common = {"model": MODEL, "model_name": "one", "at": at}
        self.tables["image_result"].append(common | {
            "id": f"result-{n}", "instance": image, "version": "1", "suitable": suitable, "reason": "", "cautions": [],
            "caution_codes": [], "point": "screen", "findings": said if suitable else [], "seconds": 0.1,
        })  # fmt: skip
        exposure = {"mean": mean, "spread": rng.gauss(0.2, 0.02), "black": 0, "white": 0, "rows": 1, "columns": 1}
        self.tables["image_trait"].append({
            "instance": image, "model": MODEL, "device": device, "exposure": exposure, "at": at,
            "features": features.tobytes() if suitable else None,
        })  # fmt: skip
        self.tables["study_result"].append(
            common | {"id": f"merged-{n}", "study": f"study-{n}", "images": "x", "findings": said}
        )

    def _sign(self, n: int, at: datetime, said: list[dict[str, Any]], answers: list[bool]) -> None:
        self.tables["study"][-1]["reading"] = "signed"
        self.tables["review"].append({
            "id": f"review-{n}", "study": f"study-{n}", "reader": "ann", "state": "signed", "normal": False,
            "note": "", "models": [MODEL], "created_at": at, "signed_at": at,
        })  # fmt: skip
        for finding, present in zip(said, answers, strict=True):
            self.tables["review_finding"].append({
                "review": f"review-{n}", "finding": finding["finding"], "answer": "agree" if present else "disagree",
                "call": "likely", "model": MODEL,
            })  # fmt: skip

    def report(self, database: Store, policy: DriftPolicy = POLICY, day: int = 35) -> drift.Report:
        department.put(database, self.tables)
        (found,) = drift.check(database, HERE, policy, until=START + timedelta(days=day))
        return found


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
    assert set(by_name) == {ALL, "ACME DR", "OLD CR", "reviews"}
    assert "device: mix" in by_name[ALL].alarms
    assert "pixels: mean" in by_name["OLD CR"].alarms
    assert by_name["ACME DR"].alarms == ()


def test_one_patient_with_many_images_counts_once(database: Store) -> None:
    drawn = Department().come(range(28)).come(range(28, 35), 6).come(range(28, 35), 30, patient="P", dark=0.2)
    found = drawn.report(database)
    assert found.sources[0].after == 7 * 6 + 1
    assert "pixels" not in kinds(found)


def test_too_little_to_say_is_said(database: Store) -> None:
    found = Department().come(range(35), 2, signed=False).report(database)
    assert (found.verdict, "40 of each wanted" in found.reason) == (UNKNOWN, True)


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

"""Experiments with a known effect: found within its interval, told when over, stopped by their guards."""

from __future__ import annotations

import importlib
import json
import math
import random
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, get_args
from zoneinfo import ZoneInfo

import department
import numpy as np
import pytest
import scipy.stats
import sqlalchemy as sa
import tiny_package
from department import HERE, Tables
from pydantic import ValidationError
from typer.testing import CliRunner

from wetread.cli import app
from wetread.clinic import audit, deploying, experiments, store, takeup
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import ConfigError, ConflictError
from wetread.findings import Task
from wetread.improve import experiment, experiment_report, policy
from wetread.improve.experiment import Design, blocks_needed, saved, t_quantile
from wetread.improve.experiment_studies import Study, studies
from wetread.improve.policy import Policy

DESIGN = Design(blocks=40, block_minutes=60, findings=("Pneumothorax",))
MODEL = "a" * 64


def open_clinic(folder: Path) -> Store:
    database = Store(f"sqlite:///{folder}/clinic.db")
    with database.write() as connection:
        store.ensure_site(connection, HERE)
    return database


def fill(
    database: Store, design: Design = DESIGN, *, effect: float = 30.0, a_block: int = 12, seed: int = 0,
    begun: float = 0.0, missed: float = 0.0, wait: float = 60.0, signed: bool = True,
) -> experiments.Experiment:  # fmt: skip
    """Draw an experiment that began long ago: critical studies wait `effect` minutes less in AI's order."""
    rng = random.Random(seed)
    there, _ = experiment.start(database, HERE, design, "dr")
    length = timedelta(minutes=design.block_minutes)
    start = store.now() - length * design.blocks - timedelta(minutes=begun)
    with database.write() as connection:
        connection.execute(store.experiment.update().values(started_at=start))
        there = experiment.find(connection, HERE)
    tables: Tables = {name: [] for name in (*department.ORDER, "assignment")}
    for n in range(design.blocks * a_block):
        at = start + length * (n / a_block)
        block = there.block(at)
        shift = random.Random(f"{seed} {block.number}").gauss(0, 8)  # all of a shift wait more, or less
        ill = rng.random() < 0.25
        mean = wait - (effect if ill and block.arm == experiments.AI else 0) + shift
        minutes = max(1.0, rng.gauss(mean, 6))
        tables_of(tables, n, at, minutes, ill, rng.random() < missed, block, there.id, signed)
    assigned = tables.pop("assignment")
    department.put(database, tables)
    with database.write() as connection:
        connection.execute(store.assignment.insert(), assigned)
    return there


def tables_of(
    tables: Tables, n: int, at: datetime, minutes: float, ill: bool, missed: bool, block: experiments.Block, unit: str,
    signed: bool,
) -> None:  # fmt: skip
    key, done = f"study-{n}", at + timedelta(minutes=minutes)
    p = 0.9 if ill and not missed else 0.1
    said = [{"finding": "Pneumothorax", "probability": p, "threshold": 0.5, "flagged": p > 0.5, "call": "likely"}]
    tables["study"].append({
        "id": key, "site": HERE, "study_uid": f"1.{n}", "patient_id": f"P{n}", "patient_name": "", "views": "PA",
        "images": 1, "cautions": [], "received_at": at, "analysis": "analysed", "overdue": False,
        "reading": "signed" if signed else "unread", "floor": "routine", "priority": "routine", "overdue_at": at,
        "rank": 0, "reason": "",
    })  # fmt: skip
    tables["study_result"].append({
        "id": str(uuid.UUID(int=n)), "study": key, "images": "x", "model": MODEL, "model_name": "one",
        "findings": said, "at": at + timedelta(seconds=5),
    })  # fmt: skip
    tables["assignment"].append({
        "study": key, "kind": "experiment", "unit": unit, "arm": block.arm, "block": f"{block.number:06d}", "at": at,
    })  # fmt: skip
    if not signed:
        return
    tables["event"].append({
        "at": done - timedelta(minutes=0.5), "site": HERE, "study": key, "payload": {}, "kind": "study.claimed",
    })  # fmt: skip
    tables["review"].append({
        "id": f"review-{n}", "study": key, "reader": f"dr{n % 2}", "state": "signed", "normal": not ill, "note": "",
        "models": [MODEL], "created_at": done, "signed_at": done,
    })  # fmt: skip
    answer = ("agree" if not missed else "added") if ill else None
    if answer:
        tables["review_finding"].append({
            "review": f"review-{n}", "finding": "Pneumothorax", "answer": answer, "call": "likely", "model": MODEL,
        })  # fmt: skip


def read(database: Store, there: experiments.Experiment) -> list[Study]:
    with database.read() as connection:
        return studies(connection, there)


def test_a_known_effect_is_recovered_within_its_interval(tmp_path: Path) -> None:
    database = open_clinic(tmp_path)
    there = fill(database)
    found = read(database, there)
    values = experiment_report.report(there, found, over=True)
    primary = values["primary"]["saved"]
    assert primary["low"] < 30 < primary["high"]
    assert 3 < primary["high"] - primary["low"] < 25
    all_of_them = values["waits"]["not critical"]["received to signed"]["saved"]
    assert all_of_them["low"] < 0 < all_of_them["high"]
    assert values["waits"]["critical, as signed"]["received to analysed"]["ai"]["mean"] == pytest.approx(1 / 12)
    assert values["waits"]["reader: dr0"]["opened to signed"]["arrival"]["median"] == pytest.approx(0.5)
    assert values["accuracy"]["ai"]["findings"]["Pneumothorax"]["sensitivity"]["value"] == 1
    a_day = 40 * 12 * 0.25 / (40 / 24)
    assert values["primary"]["critical_a_day"] == pytest.approx(a_day, rel=0.3)
    json.dumps(values, allow_nan=False)
    database.close()


def simulated(rng: np.random.Generator, effect: float, blocks: int = 24) -> list[Study]:
    arms = [experiments.AI, experiments.ARRIVAL] * (blocks // 2)
    now = store.now()
    return [
        Study(f"{b:06d}", arm, now, signed=now + timedelta(minutes=max(0.1, wait)))
        for b, arm in enumerate(arms)
        for shift in [rng.normal(0, 10)]
        for wait in rng.normal(100 + shift - (effect if arm == experiments.AI else 0), 15, rng.integers(3, 12))
    ]  # fmt: skip


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [saved(simulated(rng, 12.0)) for _ in range(300)]
    covered = sum(one.low <= 12.0 <= one.high for one in found)
    assert 270 <= covered <= 297  # 95 % of 300 is 285; clusters of unequal size cost a little
    assert np.mean([one.value for one in found]) == pytest.approx(12.0, abs=1.0)


@pytest.mark.parametrize("freedom", [1, 2, 5, 10, 30, 1000])
def test_quantiles_are_students(freedom: int) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=2e-3)


def test_the_size_has_the_power_that_it_promises() -> None:
    blocks = blocks_needed(sd=20, effect=15, power=0.8)
    rng, half = np.random.default_rng(1), blocks // 2
    drawn = rng.normal(0, 20, (2000, half)), rng.normal(15, 20, (2000, half))
    assert blocks % 2 == 0
    assert np.mean(scipy.stats.ttest_ind(*drawn, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.04)


def test_scanners_clocks_classes_and_the_models_own_seconds_are_told(tmp_path: Path) -> None:
    database, zone = open_clinic(tmp_path), ZoneInfo("Europe/Berlin")
    there = fill(database, Design(blocks=8, block_minutes=60, zone="Europe/Berlin"), a_block=1, seed=1)
    came = read(database, there)[0].received

    def shown(minutes: float, to: tzinfo = zone) -> str:  # as a header has it, so long before it was received
        return (came - timedelta(minutes=minutes)).astimezone(to).isoformat(timespec="seconds")

    says = [shown(10)[:19], shown(20, UTC), shown(-5)[:19], "2026-03-02T00:00:00", "2026-03-02", "nonsense", None]
    image: dict[str, Any] = {
        "study": "study-0", "series": "series-0", "site": HERE, "bytes": 1, "format": "dicom", "name": "",
        "state": "stored", "received_at": came,
    }  # fmt: skip
    result: dict[str, Any] = {
        "model_name": "one", "version": "1", "suitable": True, "reason": "", "cautions": [], "point": "screen",
        "findings": [], "at": came,
    }  # fmt: skip
    seen = [
        ("frontal", "both", MODEL, 1.5),
        ("lateral", "both", MODEL, 1.5),
        ("later", "alone", MODEL, 0.5),
        ("frontal", "both", "c" * 64, 9.0),
    ]  # the last only challenges: its word of the study does not count
    with database.write() as connection:
        for n, text in enumerate(says):
            values: dict[str, Any] = {"acquired_at": text, "floor": "urgent" if n == 3 else "routine"}
            values |= {"received_at": came} if n < 3 else {}
            connection.execute(store.study.update().where(store.study.c.id == f"study-{n}").values(values))
        connection.execute(store.series.insert().values(id="series-0", study="study-0", series_uid="2.0"))
        for key in dict.fromkeys(key for key, *_ in seen):
            connection.execute(store.instance.insert().values(image | {"id": key, "sop_uid": key, "sha256": key}))
        for n, (key, basis, model, seconds) in enumerate(seen):
            more = {"id": f"r{n}", "instance": key, "basis": basis, "model": model, "seconds": seconds}
            connection.execute(store.image_result.insert().values(result | more))
    found = read(database, there)
    taken = [study.minutes("acquired", "received") for study in found if study.acquired]
    assert sorted(one for one in taken if one == one) == [pytest.approx(10, abs=0.02), pytest.approx(20, abs=0.02)]
    told = experiment_report.report(there, found, over=True)
    assert told["clocks"] == {"studies": 8, "acquired": 3, "ahead": 1, "zone": "Europe/Berlin"}
    waits = told["waits"]
    assert sum(waits["all"]["acquired to received"][arm]["count"] for arm in ("ai", "arrival")) == 2
    assert "Of 8 studies 3 say at what time" in experiment_report.words(told)
    ill = sum("Pneumothorax" in study.flagged for study in found)
    assert 0 < ill < 8
    of_class = {
        name: sum(waits[f"class: {name}"]["received to signed"][arm]["count"] for arm in ("ai", "arrival"))
        for name in ("critical", "urgent", "routine")
    }
    asked = next(study for study in found if study.block == "000003")
    urgent = int("Pneumothorax" not in asked.flagged)  # else AI has made it critical
    assert of_class == {"critical": ill, "urgent": urgent, "routine": 8 - ill - urgent}
    (mine,) = [study for study in found if not math.isnan(study.seconds)]
    assert mine.seconds == 2.0
    assert mine.waited == pytest.approx(3.0, abs=1e-3)
    latency = told["latency"][mine.arm]
    assert (latency["model_s"]["median"], latency["waited_s"]["count"]) == (2.0, 1)
    database.close()


def test_agreement_is_of_what_ai_called_with_an_interval_over_blocks() -> None:
    now = store.now()
    more: dict[str, tuple[str, str | None]] = {
        "Mass": ("agree", "unsure"),
        "Cyst": ("added", None),
        "Nodule": ("unsure", "likely"),
    }
    agreed = {"Edema": ("agree", "likely"), "Fracture": ("agree", "unlikely"), **more}
    denied = {"Edema": ("disagree", "likely"), "Fracture": ("disagree", "unlikely")}
    every = [Study(f"{n}", "ai", now, signed=now, answers=agreed if n < 9 else denied) for n in range(12)]

    def agreement(chosen: list[Study]) -> Any:
        there = experiments.Experiment("e", HERE, DESIGN.model_dump(mode="json"), "s", "dr", now, now, "complete", "")
        return experiment_report.report(there, chosen, over=True)["agreement"]["ai"]

    found = agreement(every)
    assert {name: (one["part"], one["whole"]) for name, one in found["findings"].items()} == {
        "Edema": (9, 12), "Fracture": (9, 12),
    }  # fmt: skip
    assert (found["all"]["part"], found["all"]["whole"]) == (18, 24)
    assert found["all"]["low"] == pytest.approx(found["findings"]["Edema"]["low"], abs=0.02)
    again = agreement([one for one in every for _ in range(9)])["all"]
    assert again["low"] == pytest.approx(found["all"]["low"], abs=0.02)  # more of the same shifts tells nothing new
    assert agreement([])["all"] == {"part": 0, "whole": 0, "value": None, "low": None, "high": None}


def test_effects_are_told_when_it_is_over_and_not_before(tmp_path: Path) -> None:
    database = open_clinic(tmp_path)
    there = fill(database, a_block=3)
    found = read(database, there)
    assert "primary" not in experiment_report.report(there, found, over=False)
    early = experiment_report.report(there, found, over=False, interim=True)
    assert early["interim"]
    assert "do not conclude" in experiment_report.words(early)
    cut = Design(**DESIGN.model_dump() | {"washout_minutes": 20})
    there = experiments.Experiment(**vars(there) | {"plan": cut.model_dump(mode="json")})
    assert experiment_report.report(there, read(database, there), over=True)["left_out"] == 40
    database.close()


def test_guards_speak_when_findings_are_missed_or_wait(tmp_path: Path) -> None:
    for name, options, words in (
        ("missed", {"missed": 0.8}, "AI missed"),
        ("late", {"wait": 300.0, "effect": 0.0}, "waited more than 240 min"),
        ("unread", {"signed": False}, "waited more than 240 min"),
        ("well", {}, ""),
    ):
        (tmp_path / name).mkdir()
        database = open_clinic(tmp_path / name)
        there = fill(database, begun=-30, a_block=6, **options)  # type: ignore[arg-type]
        said = experiment.guard(there, read(database, there))
        assert bool(said) == bool(words), (name, said)
        assert all(words in one for one in said)
        ended, reasons = experiment.watch(database, HERE, "cron") or (None, [])
        assert ended is not None
        assert (ended.ended, reasons) == (("guard", said) if words else (None, []))
        with database.read() as connection:
            assert (experiments.running(connection, HERE) is None) == bool(words)
        assert audit.verify(database) is None
        database.close()


def test_it_ends_by_itself_and_by_a_person_and_only_one_runs_at_a_site(tmp_path: Path) -> None:
    database = open_clinic(tmp_path)
    with pytest.raises(ConflictError, match="no experiment"):
        experiment.stop(database, HERE, "too soon", "dr")
    first, new = experiment.start(database, HERE, DESIGN, "dr")
    assert new
    assert experiment.start(database, HERE, DESIGN, "dr") == (first, False)
    with pytest.raises(ConflictError, match="stop it first"):
        experiment.start(database, HERE, Design(blocks=8, block_minutes=60), "dr")
    stopped, now = experiment.stop(database, HERE, "new scanner", "dr")
    assert (stopped.id, stopped.ended, now) == (first.id, "person", True)
    assert experiment.stop(database, HERE, "again", "dr") == (stopped, False)
    assert experiment.watch(database, HERE, "cron") is None
    second, new = experiment.start(database, HERE, DESIGN, "dr")
    assert new
    assert (second.id != first.id, second.salt != first.salt) == (True, True)
    with database.write() as connection:
        for one, days in ((first, 10), (second, 9)):
            mine, long_ago = store.experiment.c.id == one.id, store.now() - timedelta(days=days)
            connection.execute(store.experiment.update().where(mine).values(started_at=long_ago))
    ended, reasons = experiment.watch(database, HERE, "cron") or (None, [])
    assert ended is not None
    assert (ended.ended, reasons) == ("complete", ["as many blocks as were planned"])
    with database.read() as connection:
        actions = connection.execute(sa.select(store.audit.c.action).order_by(store.audit.c.seq)).scalars().all()
    assert actions == ["experiment.started", "experiment.ended"] * 2
    assert experiment.stop(database, HERE, "late", "dr") == (ended, False)
    database.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blocks = 5\nblock_minutes = 60", "blocks = 5"),
        ("blocks = 8", "either shifts"),
        ("blocks = 8\nshifts = ['07:00']\nblock_minutes = 5", "either shifts"),
        ("blocks = 8\nshifts = ['7 am']", "write hours and minutes"),
        ("blocks = 8\nshifts = ['07:00']\nzone = 'Mars'", "not a time zone"),
        ("block_minutes = 60", "blocks"),
        ("blocks = 8\nblock_minutes = 60\nfindings = []", "findings"),
        ("blocks = 8\nblock_minutes = inf", "block_minutes = inf"),
        ("blocks = 8\nblock_minutes = nan", "block_minutes = nan"),
        ("blocks = 8\nblock_minutes = 1e-9", r"0\.01 to 100,000 minutes"),
        ("blocks = 8\nblock_minutes = -60", r"0\.01 to 100,000 minutes"),
        ("blocks = 8\nblock_minutes = 1e300", r"0\.01 to 100,000 minutes"),
        ("blocks = 8\nblock_minutes = 60\nwashout_minutes = inf", "washout_minutes = inf"),
    ],
)
def test_bad_plans_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        policy.load(file, Design)


@pytest.mark.parametrize("minutes", [0.01, 0.1, 1, 60, 100_000])
def test_a_study_arrives_in_a_block_of_any_length_that_is_allowed(minutes: float) -> None:
    values = Design(blocks=1000, block_minutes=minutes).model_dump(mode="json")
    there = experiments.Experiment("e", HERE, values, "s", "dr", store.now(), None, None, "")
    for passed in (0.5, 1.5, 999.5, 1000.5):
        at = there.started_at + timedelta(minutes=minutes * passed)
        assert (there.block(at).number, there.over(at)) == (int(passed), passed > 1000)


def test_a_finding_that_nobody_knows_is_none_that_is_critical(tmp_path: Path) -> None:
    database = open_clinic(tmp_path)
    for finding in ("pneumothorax", "No Finding", ""):
        design = Design(blocks=8, block_minutes=60, findings=("Edema", finding))
        with pytest.raises(ConfigError, match=rf"findings: '{finding}' is of no task .* Pneumothorax, .* by name$"):
            experiment.start(database, HERE, design, "dr", known=frozenset(["known by name"]))
    with database.read() as connection:
        assert experiments.running(connection, HERE) is None
    database.close()


def test_a_model_of_the_clinic_s_own_brings_its_findings(tmp_path: Path) -> None:
    named = tiny_package.write(tmp_path / "named", Task("zoo", ("Quagga", "Okapi")))
    deployed = tiny_package.write(tmp_path / "deployed", Task("savanna", ("Quagga", "Zebra sign")))
    (tmp_path / "models").mkdir()
    (tmp_path / "deployed").rename(tmp_path / "models" / deployed.id)
    database = open_clinic(tmp_path)
    settings = Settings(models=["nowhere", str(named.path)])
    assert experiment.known(database, tmp_path, settings, HERE) == {"Quagga", "Okapi"}
    settings = Settings(models=["nowhere"])
    assert experiment.known(database, tmp_path, settings, HERE) == set()
    with database.write() as connection:
        deploying.first(connection, HERE, [takeup.candidate(deployed)], [], whole=False)
    found = experiment.known(database, tmp_path, settings, HERE)
    assert found == {"Quagga", "Zebra sign"}
    experiment.start(database, HERE, Design(blocks=8, block_minutes=60, findings=("Zebra sign",)), "dr", known=found)
    database.close()


def every_policy(kind: type[Policy] = Policy) -> Iterator[type[Policy]]:
    for one in kind.__subclasses__():
        yield one
        yield from every_policy(one)


def test_no_number_of_any_policy_may_be_infinite_or_none() -> None:
    for module in ("browsing", "drift", "due", "margins", "retrain", "rollout", "staging"):
        importlib.import_module(f"wetread.improve.{module}")
    numbers = [(kind, name) for kind in every_policy() for name, field in kind.model_fields.items()
               if any(one is float for one in (field.annotation, *get_args(field.annotation)))]  # fmt: skip
    assert len(numbers) > 20
    for kind, name in numbers:
        for value in (math.inf, -math.inf, math.nan):
            with pytest.raises(ValidationError) as refused:
                kind.model_validate({name: value})
            assert (name,) in [error["loc"] for error in refused.value.errors()], (kind, name)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WETREAD_SITE", HERE)
    Store.open(tmp_path / "clinic").close()
    (tmp_path / "plan.toml").write_text("blocks = 8\nshifts = ['07:00', '19:00']\nzone = 'Europe/Paris'\n")

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["experiment", *words])

    assert run("size", "--sd", "20", "--effect", "10").output.strip() == str(blocks_needed(20, 10))
    first = run("start", "plan.toml", "--data", "clinic").output.strip()
    assert "8 blocks" in first
    assert run("start", "plan.toml", "--data", "clinic").output.strip() == f"{first}; unchanged"
    assert "goes on" in run("watch", "--data", "clinic").output
    assert "Effects are told when it is over" in run("report", "--data", "clinic").output
    assert "ended (enough" in run("stop", "--reason", "enough", "--data", "clinic").output
    again = run("stop", "--reason", "more than enough", "--data", "clinic")
    assert (again.exit_code, "ended already (enough" in again.output) == (0, True)
    values = json.loads(run("report", "--data", "clinic", "--json").output)
    assert (values["ended"], values["complete"], values["primary"]["saved"]["value"]) == ("person", False, None)
    (folder,) = (tmp_path / "clinic" / "improve" / "experiment").iterdir()
    assert {file.name for file in folder.iterdir()} == {"report.json", "report.md", "chart.svg"}
    assert not math.isnan(values["blocks"]["planned"])

"""AI that is off: by a person for a site or a model, and by itself when the model fails; nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import sqlalchemy as sa
import tiny_package
from onnx import numpy_helper
from peers import wait
from ward import SITE, NameReader, film, png

from wetread.clinic import statement, store, switches, worklist
from wetread.clinic.jobs import Job
from wetread.clinic.service import Clinic
from wetread.clinic.watchdog import Watchdog
from wetread.config import Settings
from wetread.errors import NotFoundError
from wetread.infer import runtime
from wetread.infer.predict import Analysis, FindingResult
from wetread.model import golden, package
from wetread.radiograph.pixels import Seen

LATER = timedelta(hours=1)


def until(true: Callable[[], bool]) -> None:
    wait(true, "it")


def settings(**values: object) -> Settings:
    return Settings.model_validate({"runtime": "onnxruntime", "threads": 1, "batch_delay_ms": 0} | values)


@contextmanager
def running(folder: Path, *models: object, **values: object) -> Iterator[Clinic]:
    given = [model for model in models if isinstance(model, NameReader)]
    paths = [str(model) for model in models if not isinstance(model, NameReader)]
    clinic = Clinic(folder, settings(models=paths, **values), models=given or None)
    clinic.start()
    try:
        yield clinic
    finally:
        clinic.stop()


def take(clinic: Clinic, name: str, content: bytes | None = None, seed: int = 1, **more: object) -> str:
    return clinic.intake.take(BytesIO(content or png(seed)), name, SITE, **more).study


def row(clinic: Clinic, study: str) -> worklist.Row:
    return worklist.row(clinic.database, SITE, study)


def analysed(clinic: Clinic, *studies: str) -> None:
    until(lambda: all(row(clinic, study).analysis != "received" for study in studies))


def off(clinic: Clinic) -> dict[str, switches.Off]:
    with clinic.database.read() as connection:
        return switches.off(connection, SITE)


def told(clinic: Clinic) -> list[tuple[str, bool, str]]:
    """Return who turned what, by the audit; each turn also has an event."""
    with clinic.database.read() as connection:
        table, events = store.audit.c, store.event.c
        rows = connection.execute(sa.select(table).where(table.action == "ai.switched").order_by(table.seq)).all()
        count = sa.select(sa.func.count()).where(events.kind == "ai.switched")
        assert connection.execute(count).scalar_one() == len(rows)
    return [(r.actor, r.detail["on"], r.detail["model"]) for r in rows]


def jobs(clinic: Clinic) -> list[str]:
    with clinic.database.read() as connection:
        return list(connection.execute(sa.select(store.job.c.state).order_by(store.job.c.id)).scalars())


# ---------------------------------------------------------------------- by a person


def test_one_model_goes_off_and_the_others_go_on(tmp_path: Path) -> None:
    class Other(NameReader):
        def analyse(self, path: Path, name: str) -> Analysis:
            said = super().analyse(path, name)
            return replace(said, findings=tuple(replace(f, flagged=f.finding == "Edema") for f in said.findings))

    with running(tmp_path, NameReader(), Other("other")) as clinic:
        study = take(clinic, "pneumothorax.png")
        analysed(clinic, study)
        until(lambda: set(jobs(clinic)) == {"done"})
        assert row(clinic, study).priority == "critical"
        clinic.switch_ai(SITE, False, "Dr N", model="names", reason="too many alerts")
        now = row(clinic, study)
        assert (now.priority, now.finding, now.reason) == ("urgent", "Edema", "Edema unlikely (other 1)")
        assert {f.model for f in worklist.study(clinic.database, SITE, study).findings} == {"other"}
        with clinic.database.read() as connection:
            assert {r["model_name"] for r in statement.current(connection, study)} == {"other"}
        state = clinic.ai(SITE)
        assert state.on
        assert [(m.name, m.state, m.by, m.reason) for m in state.models if m.state == "off"] == [
            ("names", "off", "Dr N", "too many alerts")
        ]
        assert state.banner is not None
        assert state.banner.startswith(
            f"Model names is switched off since {off(clinic)['names'].at:%Y-%m-%d %H:%M} UTC"
        )
        assert "by Dr N (too many alerts)" in state.banner

        clinic.switch_ai(SITE, False, "Dr N", model="other")
        assert (row(clinic, study).priority, clinic.ai(SITE).on) == ("routine", False)
        assert "off: first come, first served" in row(clinic, study).reason
        assert row(clinic, study).analysis == "analysed"  # what was done stays done
        later = take(clinic, "edema.png", seed=2)
        until(lambda: set(jobs(clinic)) == {"done"})  # a person turned it off: it goes on unseen
        assert row(clinic, later).priority == "routine"
        clinic.switch_ai(SITE, True, "Dr N", model="names")
        assert (row(clinic, study).priority, row(clinic, later).priority) == ("critical", "urgent")
        assert told(clinic) == [
            ("Dr N", False, "names"), ("Dr N", False, "other"), ("Dr N", True, "names")
        ]  # fmt: skip


def test_a_switch_outlives_a_restart_and_is_turned_once(tmp_path: Path) -> None:
    with running(tmp_path, NameReader()) as clinic:
        study = take(clinic, "pneumothorax.png")
        analysed(clinic, study)
        clinic.switch_ai(SITE, False, "Dr N", reason="update")
        clinic.switch_ai(SITE, False, "Dr M", reason="again")
        assert row(clinic, study).priority == "routine"
        assert worklist.study(clinic.database, SITE, study).findings == ()
    with running(tmp_path, NameReader()) as clinic:
        state = clinic.ai(SITE)
        assert (state.on, state.off.actor if state.off else "") == (False, "Dr N")
        assert state.banner is not None
        assert state.banner.endswith("by Dr N (update): studies are listed first come, first served.")
        clinic.switch_ai(SITE, True, "Dr M")
        assert (row(clinic, study).priority, clinic.ai(SITE).banner) == ("critical", None)
        assert told(clinic) == [("Dr N", False, ""), ("Dr M", True, "")]


def test_another_site_keeps_its_model(tmp_path: Path) -> None:
    with running(tmp_path, NameReader()) as clinic:
        here, there = take(clinic, "edema.png"), clinic.intake.take(BytesIO(png(2)), "edema.png", "north").study
        analysed(clinic, here)
        until(lambda: worklist.row(clinic.database, "north", there).analysis == "analysed")
        clinic.switch_ai("north", False, "Dr N", model="names")
        assert worklist.row(clinic.database, "north", there).priority == "routine"
        assert row(clinic, here).priority == "urgent"
        assert (clinic.ai(SITE).banner, clinic.ai("north").on) == (None, False)


def test_a_model_that_is_not_there_has_no_switch(tmp_path: Path) -> None:
    with running(tmp_path, NameReader()) as clinic, pytest.raises(NotFoundError, match="not one of names"):
        clinic.switch_ai(SITE, False, "Dr N", model="nobody")


# ---------------------------------------------------------------------- by itself, with a real package


def test_a_runtime_that_gives_no_numbers_turns_the_model_off_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny_package.write(tmp_path / "tiny", poison=True).path
    with running(tmp_path / "data", path) as clinic:
        first = take(clinic, "sound.png", film(1), requested="urgent")
        analysed(clinic, first)
        broken = [take(clinic, f"{seed}.png", film(seed, corner=True)) for seed in (2, 3, 4)]
        until(lambda: "tiny" in off(clinic))
        waiting = take(clinic, "sound.png", film(5))
        found = off(clinic)["tiny"]
        assert (found.actor, found.cause, found.by_itself) == ("system", "failures", True)
        assert "it failed on 3 images in a row (ModelError)" in found.reason
        until(lambda: row(clinic, waiting).analysis == "not_analysed")  # held, and said
        state = clinic.ai(SITE)
        assert not state.on
        assert state.banner is not None
        assert state.banner.startswith("Model tiny turned itself off since ")
        until(lambda: "tiny is off" in row(clinic, first).reason)
        page = worklist.page(clinic.database, SITE)
        assert page.rows[0].study == first  # what was requested is the floor; the rest by arrival
        assert {each.study for each in page.rows} == {first, waiting, *broken}
        assert told(clinic) == [("system", False, "tiny")]
        assert "turned itself off" in caplog.text
    with running(tmp_path / "data", path, ai_failures=1000) as clinic:  # the same images fail again, and are let be
        clinic.switch_ai(SITE, True, "Dr N", model="tiny")
        until(lambda: row(clinic, waiting).analysis == "analysed")
        assert "tiny is off" not in row(clinic, first).reason
        assert told(clinic)[1:] == [("Dr N", True, "tiny")]


def test_one_bad_image_alone_turns_nothing_off(tmp_path: Path) -> None:
    path = tiny_package.write(tmp_path / "tiny", poison=True).path
    with running(tmp_path / "data", path, ai_failures=2) as clinic:
        study = take(clinic, "bad.png", film(1, corner=True))
        until(lambda: row(clinic, study).code == "MODEL_FAILED")  # after three tries
        assert off(clinic) == {}


def constant(folder: Path) -> Path:
    """A package in order, but for its head: every picture gets the same probabilities."""
    sound = tiny_package.write(folder / "sound")
    graph = onnx.load_from_string(sound.onnx)
    for weights in graph.graph.initializer:
        if weights.name == "head":
            weights.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(weights)), "head"))
    content = graph.SerializeToString()
    engine = runtime.load(content, runtime="onnxruntime")
    made = golden.Golden(tiny_package.RAW, engine.run(golden.see(sound.transform, tiny_package.RAW)))
    return package.write(
        folder / "tiny", onnx=content, meta=sound.meta, transform=sound.transform, card="", golden=made
    ).path


def test_scores_that_collapse_turn_the_model_off(tmp_path: Path) -> None:
    with running(tmp_path / "data", constant(tmp_path), ai_collapse=4) as clinic:
        same = [take(clinic, f"copy {n}.png", film(1) + bytes(n)) for n in range(4)]  # other bytes, one picture
        analysed(clinic, *same)
        assert off(clinic) == {}
        for seed in (2, 3, 4):
            take(clinic, f"{seed}.png", film(seed))
        until(lambda: "tiny" in off(clinic))
        assert off(clinic)["tiny"].cause == "collapse"


def broken(folder: Path) -> Path:
    """A package that does not do here what it did when it was packaged."""
    sound = tiny_package.write(folder / "sound")
    outputs = sound.golden.outputs
    wrong = golden.Golden(sound.golden.raw, outputs._replace(probability=np.float32(1) - outputs.probability))
    path = folder / "tiny"
    return package.write(path, onnx=sound.onnx, meta=sound.meta, transform=sound.transform, card="", golden=wrong).path


def test_a_package_that_breaks_its_golden_outputs_is_off_and_comes_back_as_the_setting_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = broken(tmp_path)
    with running(tmp_path / "data", path, ai_recover=30) as clinic:
        assert off(clinic)["tiny"].cause == "golden"
        state = clinic.ai(SITE)
        assert (state.on, state.models[0].state, state.models[0].by) == (False, "off", "system")
        study = take(clinic, "a.png", film(1))
        assert row(clinic, study).study == study
        assert clinic.switches.recover(store.now() + LATER) == []  # it does not keep them yet
        (path / "golden.npz").write_bytes((tmp_path / "sound/golden.npz").read_bytes())
        assert clinic.switches.recover() == []  # not yet time
        assert clinic.switches.recover(store.now() + LATER) == ["tiny"]
        until(lambda: row(clinic, study).analysis == "analysed")
        assert (clinic.ai(SITE).on, clinic.ai(SITE).banner) == (True, None)
        assert told(clinic) == [("system", False, "tiny"), ("system", True, "tiny")]


def test_without_the_setting_only_a_person_brings_it_back(tmp_path: Path) -> None:
    path = tiny_package.write(tmp_path / "tiny").path
    with running(tmp_path / "data", path) as clinic:
        clinic.switches.fail(next(iter(clinic.models)), "failures", "it failed")
        assert clinic.switches.recover(store.now() + 1000 * LATER) == []
        assert "tiny" in off(clinic)
    with running(tmp_path / "data", path, ai_recover=30) as clinic:  # sound at load, off all the same
        assert clinic.ai(SITE).models[0].state == "off"
        clinic.switch_ai(SITE, False, "Dr N", model="tiny", reason="stay off")  # a person takes it over
        assert clinic.switches.recover(store.now() + LATER) == []
        clinic.switch_ai(SITE, True, "Dr N", model="tiny")
        assert clinic.ai(SITE).on


def test_a_failure_is_written_once_by_two_processes(tmp_path: Path) -> None:
    with running(tmp_path, NameReader()) as clinic:
        take(clinic, "edema.png")
        other = type(clinic.switches)(clinic.database, clinic.settings, clinic.rules, tmp_path)
        other.open([NameReader()])
        model = next(iter(clinic.models))
        for ai in (clinic.switches, other, clinic.switches):
            ai.fail(model, "failures", "it failed")
        assert told(clinic) == [("system", False, "names")]
        assert clinic.switches.held == other.held == {model}
        with clinic.database.write() as connection:
            switches.turn_on(connection, SITE, "names", "Dr N")
        other.look()
        assert other.held == frozenset()


# ---------------------------------------------------------------------- the watchdog


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def job(number: int, image: str = "") -> Job:
    return Job(number, image or f"image {number}", "study", SITE, "0" * 64, "name", "model", 1)


@pytest.fixture
def watched() -> tuple[Callable[..., Watchdog], list[str], Clock]:
    failed: list[str] = []
    clock = Clock()
    return (
        lambda **values: Watchdog(settings(**values), lambda model, cause, words: failed.append(cause), clock),
        failed,
        clock,
    )


def test_failures_in_a_row_are_of_different_images(watched: tuple[Callable[..., Watchdog], list[str], Clock]) -> None:
    make, failed, _ = watched
    dog = make(ai_failures=3)
    for number in range(9):
        dog.failed(job(number, "the same"), RuntimeError())
    dog.failed(job(10), RuntimeError())
    dog.done(job(11), None)  # the row ends
    dog.failed(job(12), RuntimeError())
    dog.failed(job(13), RuntimeError())
    assert failed == []
    dog.failed(job(14), RuntimeError())
    assert failed == ["failures"]


def test_a_share_of_the_last_images(watched: tuple[Callable[..., Watchdog], list[str], Clock]) -> None:
    make, failed, _ = watched
    dog = make(ai_failures=1000, ai_failure_share=0.5, ai_window=20)
    for number in range(40):
        dog.done(job(number), None) if number % 3 else dog.failed(job(number), RuntimeError())
    assert failed == []
    for number in range(40, 60):
        dog.done(job(number), None) if number % 2 else dog.failed(job(number), RuntimeError())
    assert set(failed) == {"share"}


def test_what_hangs_counts_while_it_hangs(watched: tuple[Callable[..., Watchdog], list[str], Clock]) -> None:
    make, failed, clock = watched
    dog = make(ai_failures=3, ai_timeout_s=10)
    for number in range(3):
        dog.began(job(number))
    dog.began(job(3))
    dog.left(job(3))  # a file that could not be read
    clock.now = 9.0
    dog.look({})
    assert failed == []
    clock.now = 11.0
    dog.look({})
    assert set(failed) == {"timeout"}


def test_a_slow_answer_is_a_failure_and_a_quick_one_ends_the_row(
    watched: tuple[Callable[..., Watchdog], list[str], Clock],
) -> None:
    make, failed, clock = watched
    dog = make(ai_failures=2, ai_timeout_s=10)
    for number, seconds in enumerate((11, 1, 11, 11)):
        dog.began(job(number))
        clock.now += seconds
        dog.done(job(number), None)
        assert failed == (["timeout"] if number == 3 else [])


def test_a_server_away_for_long(watched: tuple[Callable[..., Watchdog], list[str], Clock]) -> None:
    make, failed, clock = watched
    dog, never = make(ai_remote_minutes=10), make(ai_remote_minutes=0)
    remote = SimpleNamespace(breaker=SimpleNamespace(state="open"))
    for minute in (0, 5, 9):
        clock.now = minute * 60.0
        dog.look({"model": remote})
        never.look({"model": remote})
    remote.breaker.state = "closed"
    dog.look({"model": remote})
    remote.breaker.state = "half-open"
    clock.now = 11 * 60.0
    dog.look({"model": remote})
    assert failed == []
    clock.now = 22 * 60.0
    dog.look({"model": remote})
    assert failed == ["remote"]
    never.look({"model": remote})
    assert failed == ["remote"]


def said(picture: int, *probabilities: float) -> Analysis:
    findings = tuple(FindingResult(f"f{n}", p, 0.5, False, "unlikely") for n, p in enumerate(probabilities))
    seen = Seen(np.full((4, 4), picture, np.uint8), (0.0, 0.0, 1.0, 1.0), 0.0)
    return Analysis("model", "model", "screen", True, findings=findings, seen=seen)


@pytest.mark.parametrize(
    ("answers", "collapsed"),
    [
        ([(n, 0.3, 0.4) for n in range(4)], True),  # every picture alike
        ([(1, 0.3, 0.4)] * 9, False),  # one picture, often
        ([(n, 0.1 * n, 0.1 * n) for n in range(4)], True),  # every finding alike
        ([(n, 0.1 * n) for n in range(4)], False),  # a model of one finding
        ([(n, 0.3, 0.4) for n in range(3)] + [(3, 0.3, 0.41)], False),
    ],
)
def test_answers_that_say_nothing(
    watched: tuple[Callable[..., Watchdog], list[str], Clock],
    answers: list[tuple[float, ...]],
    collapsed: bool,
) -> None:
    make, failed, _ = watched
    dog = make(ai_collapse=4)
    for number, (picture, *probabilities) in enumerate(answers):
        dog.done(job(number), said(int(picture), *probabilities))
    assert failed == (["collapse"] if collapsed else [])


def test_a_model_that_comes_back_begins_anew(watched: tuple[Callable[..., Watchdog], list[str], Clock]) -> None:
    make, failed, _ = watched
    dog = make(ai_failures=2)
    dog.failed(job(1), RuntimeError())
    dog.reset("model")
    dog.failed(job(2), RuntimeError())
    assert failed == []

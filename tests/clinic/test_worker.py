"""At least once, one result, and nothing that a file or a model does ends the work."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from ward import FINDINGS, SITE, NameReader, Ward, dicom, png

from wetread.clinic import jobs, store, triage, worker, worklist
from wetread.clinic.archive import Archive
from wetread.clinic.jobs import Gate, Queue
from wetread.clinic.priority import Rules
from wetread.clinic.triage import Policy
from wetread.clinic.worker import TRIES, Worker
from wetread.clinic.worklist import Study
from wetread.errors import BusyError, Code, ConflictError, FullError, NotFoundError
from wetread.infer.predict import Analysis


def study(ward: Ward, key: str) -> Study:
    return worklist.study(ward.database, SITE, key)


def rows(ward: Ward, table: sa.Table) -> list[sa.Row]:
    with ward.database.read() as connection:
        return list(connection.execute(sa.select(table)))


def hurry(ward: Ward) -> None:
    """Let jobs that wait for another try be due now, and let leases run out."""
    with ward.database.write() as connection:
        past = store.now() - timedelta(days=1)
        connection.execute(store.job.update().values(due_at=past))
        connection.execute(store.job.update().where(store.job.c.state == "running").values(lease_until=past))


def test_a_finding_ranks_the_study_and_says_why(ward: Ward) -> None:
    key = ward.take(png(), "pneumothorax.png").study
    assert ward.work() == 1
    found = study(ward, key)
    assert (found.row.status, found.row.priority, found.row.finding) == ("analysed", "critical", "Pneumothorax")
    assert found.row.reason == "Pneumothorax likely (names 1)"
    assert found.row.views == "PA"
    assert [f.finding for f in found.findings] == list(FINDINGS)
    assert found.abnormal == {"names": 0.9}
    assert "age unknown" in found.cautions
    result = found.images[0].results[0]
    assert (result.point, result.box) == ("screen", (0.1, 0.2, 0.5, 0.6))


def test_maps_come_back(ward: Ward) -> None:
    ward.take(png(), "edema.png")
    ward.work()
    maps = worker.unpack(rows(ward, store.image_result)[0].maps)
    wanted = np.zeros((len(FINDINGS), 4, 4), np.float32)
    wanted[:, 1, 2] = np.arange(len(FINDINGS)) + 1
    np.testing.assert_allclose(maps, wanted, rtol=1e-3)


def test_each_image_goes_to_each_model_and_the_highest_counts(tmp_path: Path) -> None:
    class Calm(NameReader):
        def analyse(self, path: Path, name: str) -> Analysis:
            return super().analyse(path, "nothing")

    ward = Ward(tmp_path, [Calm("calm"), NameReader("names")])
    key = ward.take(png(), "edema.png").study
    assert ward.work() == 2
    found = study(ward, key)
    assert (found.row.priority, found.row.reason) == ("urgent", "Edema likely (names 1)")
    assert {f.model for f in found.findings} == {"calm", "names"}
    ward.database.close()


def test_a_second_image_only_refines(ward: Ward) -> None:
    key = ward.take(png(0), "pneumothorax.png").study
    ward.work()
    ward.take(png(1), "nothing.png", study=key)
    assert study(ward, key).row.priority == "critical"
    ward.work()
    found = study(ward, key)
    assert (found.row.priority, found.row.image_count) == ("critical", 2)
    results = rows(ward, store.study_result)
    assert len(results) == 2  # one for each set of images
    assert len({result.images for result in results}) == 2


def test_a_refused_image_stays_at_arrival_priority_with_its_reason(ward: Ward) -> None:
    key = ward.take(png(), "lateral.png", requested="urgent").study
    ward.work()
    row = study(ward, key).row
    assert (row.status, row.code, row.priority, row.views) == ("not_analysed", "LATERAL_ONLY", "urgent", "LAT")
    assert row.reason == "requested as urgent; not analysed: lateral only"


def test_a_refused_image_beside_a_good_one_does_not_refuse_the_study(ward: Ward) -> None:
    key = ward.take(png(0), "lateral.png").study
    ward.take(png(1), "edema.png", study=key)
    ward.work()
    assert study(ward, key).row.status == "analysed"
    assert study(ward, key).row.code is None


def test_a_poisoned_file_is_given_up_after_some_tries(ward: Ward) -> None:
    key = ward.take(png(0), "poison.png").study
    ward.take(png(1), "edema.png")
    for _ in range(TRIES + 2):
        ward.work()
        hurry(ward)
    row = study(ward, key).row
    assert (row.status, row.code) == ("not_analysed", "MODEL_FAILED")
    model = next(iter(ward.models.values()))
    assert model.calls.count("poison.png") == TRIES
    assert model.calls.count("edema.png") == 1


def test_a_file_that_kills_the_process_is_given_up_too(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ward.take(png(), "deadly.png").study
    for _ in range(TRIES):
        assert ward.lease() is not None  # and then the process is gone
        assert study(ward, key).row.status == "received"
        hurry(ward)
    ward.work()
    row = study(ward, key).row
    assert (row.status, row.code) == ("not_analysed", "MODEL_FAILED")
    assert "broke off" in row.reason


def test_a_lease_keeps_others_away_until_it_runs_out(ward: Ward) -> None:
    ward.take(png(), "edema.png")
    assert ward.lease() is not None
    assert ward.lease() is None
    hurry(ward)
    again = ward.lease()
    assert again is not None
    assert again.tries == 2


def test_a_job_done_twice_gives_one_result(ward: Ward) -> None:
    ward.take(png(), "edema.png")
    first = ward.lease()
    hurry(ward)
    second = ward.lease()
    assert first is not None
    assert second is not None
    for job in (first, second):
        ward.worker._finish(job, ward.worker._analyse(job), 0.0)
    assert len(rows(ward, store.image_result)) == 1
    assert [job.state for job in rows(ward, store.job)] == ["done"]


def test_a_restart_of_the_only_service_takes_its_jobs_back_at_once(ward: Ward) -> None:
    key = ward.take(png(), "edema.png").study
    assert ward.lease() is not None  # killed
    again = Worker(ward.database, ward.archive, ward.models, lambda connection, site: Policy())
    assert again.queue.take_back() == 1
    again.start()
    wait_for(lambda: study(ward, key).row.status == "analysed")
    again.stop()


def wait_for(condition: object) -> None:
    pause = threading.Event()
    for _ in range(1000):
        if condition():  # type: ignore[operator]
            return
        pause.wait(0.02)
    raise AssertionError("it did not happen")


def test_two_workers_share_the_jobs(ward: Ward) -> None:
    keys = [ward.take(png(i), "edema.png").study for i in range(12)]
    workers = [Worker(ward.database, ward.archive, ward.models, lambda c, s: Policy(), threads=2) for _ in range(2)]
    for each in workers:
        each.start()
    wait_for(lambda: all(study(ward, key).row.status == "analysed" for key in keys))
    for each in workers:
        each.stop()
    assert len(next(iter(ward.models.values())).calls) == 12


def test_no_room_is_not_a_failure(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ward.take(png(), "edema.png").study
    model = next(iter(ward.models.values()))

    def busy(path: Path, name: str) -> Analysis:
        raise BusyError("full")

    with monkeypatch.context() as patch:
        patch.setattr(model, "analyse", busy)
        for _ in range(TRIES + 2):
            ward.work()
            hurry(ward)
    ward.work()
    assert study(ward, key).row.status == "analysed"


def test_a_database_that_goes_away_does_not_end_the_worker(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ward.take(png(), "edema.png").study
    real, failures = ward.worker.step, [sa.exc.OperationalError("x", {}, Exception("gone"))] * 2

    def sometimes() -> bool:
        if failures:
            raise failures.pop()
        return real()

    monkeypatch.setattr(ward.worker, "step", sometimes)
    ward.worker.start()
    wait_for(lambda: study(ward, key).row.status == "analysed")
    ward.worker.stop()


def test_requested_priority_is_analysed_first(ward: Ward) -> None:
    ward.take(png(0), "first.png")
    ward.take(png(1), "second.png", requested="critical")
    ward.work()
    assert next(iter(ward.models.values())).calls == ["second.png", "first.png"]


def test_without_models_files_are_still_read(tmp_path: Path) -> None:
    ward = Ward(tmp_path, [])
    good, bad = ward.take(dicom()).study, ward.take(b"hello", "note.txt").study
    assert ward.work() == 2
    assert study(ward, good).row.status == "received"
    assert study(ward, good).row.reason == "AI is off: first come, first served"
    assert (study(ward, bad).row.status, study(ward, bad).row.code) == ("not_analysed", "UNREADABLE")
    ward.database.close()


def test_ai_off_is_first_come_first_served_and_on_again_orders(ward: Ward) -> None:
    names = ["nothing.png", "edema.png", "pneumothorax.png"]
    keys = [ward.take(png(i), name).study for i, name in enumerate(names)]
    ward.work()

    def order() -> list[str]:
        return [row.study for row in worklist.page(ward.database, SITE).rows]

    assert order() == keys[::-1]
    assert triage.rerank(ward.database, Policy(ai=False), SITE) == 3
    assert order() == keys
    assert all("AI is off" in row.reason for row in worklist.page(ward.database, SITE).rows)
    assert triage.rerank(ward.database, Policy(ai=False), SITE) == 0
    assert triage.rerank(ward.database, Policy(), SITE) == 3
    assert order() == keys[::-1]


def test_the_waiting_cap_promotes_and_alarms_once(ward: Ward) -> None:
    routine, critical, urgent = (
        ward.take(png(i), name).study for i, name in enumerate(["nothing.png", "pneumothorax.png", "edema.png"])
    )
    ward.work()
    rule = Policy().rule
    with ward.database.write() as connection:
        assert triage.sweep(connection, Rules(), store.now()) == []
        old = store.now() - timedelta(hours=5)
        connection.execute(
            store.study.update()
            .where(store.study.c.id == routine)
            .values(received_at=old, overdue_at=old + rule.routine.cap)
        )
    with ward.database.write() as connection:
        assert triage.sweep(connection, Rules(), store.now()) == [routine]
        assert triage.sweep(connection, Rules(), store.now()) == []
    page = worklist.page(ward.database, SITE)
    assert [row.study for row in page.rows] == [critical, routine, urgent]
    assert page.rows[1].overdue
    assert page.rows[1].reason.startswith("promoted: waiting cap 4 h; ")
    assert page.counts.overdue == 1
    with ward.database.write() as connection:
        triage.refresh(connection, routine, Policy(), store.now())
    assert worklist.row(ward.database, SITE, routine).reason == page.rows[1].reason
    assert [e["kind"] for e in study(ward, routine).events].count("study.overdue") == 1


def test_a_live_process_keeps_its_lease_and_a_dead_one_does_not(ward: Ward) -> None:
    ward.take(png(), "edema.png")
    mine, other = Queue(ward.database, "mine", timedelta(seconds=1)), Queue(ward.database, "other")
    models = list(ward.models)
    job = mine.take(models)
    assert job is not None
    for _ in range(3):  # as if two seconds went by each time
        hurry(ward)
        mine.renew()
        assert other.next(models) is None
    hurry(ward)
    mine.put_down(job)  # it was killed: nobody renews
    mine.renew()
    assert other.next(models) is True


def test_a_job_that_hangs_is_given_to_others(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    ward.take(png(), "edema.png")
    mine, models = Queue(ward.database, "mine"), list(ward.models)
    assert mine.take(models) is not None
    hurry(ward)
    assert mine.next(models) is None
    monkeypatch.setattr(jobs, "PATIENCE_S", 0.0)
    mine.renew()
    assert Queue(ward.database, "other").next(models) is True


def test_who_lost_its_lease_changes_nothing(ward: Ward) -> None:
    """A process that was stopped for a while wakes up after somebody else did its job."""
    key = ward.take(png(), "edema.png").study
    late, models = Queue(ward.database, "late"), list(ward.models)
    job = late.take(models)
    assert job is not None
    hurry(ward)
    assert ward.work() == 1
    late.renew()
    late.again(job, "it failed")
    ward.worker._finish(job, ward.worker._refusal(job, Code.MODEL_FAILED, "late"), 0.0, "late")
    assert [(row.state, row.error) for row in rows(ward, store.job)] == [("done", None)]
    assert study(ward, key).row.status == "analysed"
    assert len(rows(ward, store.image_result)) == 1


def test_a_clock_that_is_set_back_holds_nothing_up(ward: Ward) -> None:
    ward.take(png(0), "edema.png")
    ward.take(png(1), "nothing.png")
    assert ward.lease() is not None
    with ward.database.write() as connection:
        future = store.now() + timedelta(days=1)
        connection.execute(store.job.update().values(due_at=future))
        connection.execute(store.job.update().where(store.job.c.state == "running").values(lease_until=future))
    assert ward.work() == 2


def test_what_broke_off_is_tried_alone_so_that_its_neighbours_do_not_suffer(ward: Ward) -> None:
    """Three jobs run when one of them kills the process, again and again: the other two are not blamed."""
    keys = [ward.take(png(i), f"{name}.png").study for i, name in enumerate(["deadly", "edema", "pneumothorax"])]
    assert len([ward.lease() for _ in keys]) == 3
    ward.worker.queue.take_back()
    for _ in range(TRIES - 1):  # each restart tries the first suspect, alone, and is killed by it
        job = ward.lease()
        assert job is not None
        assert job.study == keys[0]
        ward.worker.queue.take_back()
    assert ward.work() == 3
    found = [study(ward, key).row for key in keys]
    assert [(row.status, row.code) for row in found] == [
        ("not_analysed", "MODEL_FAILED"), ("analysed", None), ("analysed", None)
    ]  # fmt: skip


def test_the_gate_lets_many_in_or_one_alone() -> None:
    gate, log = Gate(), []
    gate.enter(alone=False)
    alone = threading.Thread(target=lambda: (gate.enter(alone=True), log.append("alone"), gate.leave(alone=True)))
    alone.start()
    wait_for(lambda: gate._alone)
    late = threading.Thread(target=lambda: (gate.enter(alone=False), log.append("late"), gate.leave(alone=False)))
    late.start()
    assert log == []
    gate.leave(alone=False)
    for thread in (alone, late):
        thread.join(60)
    assert log == ["alone", "late"]


def test_a_result_waits_for_the_database(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ward.take(png(), "edema.png").study
    gone = [FullError("the disk is full"), sa.exc.OperationalError("x", {}, Exception("gone"))]
    real = ward.worker._write

    def write(*values: object) -> None:
        if gone:
            raise gone.pop()
        real(*values)  # type: ignore[arg-type]

    monkeypatch.setattr(ward.worker, "_write", write)
    monkeypatch.setattr(ward.worker._stop, "wait", lambda seconds: False)
    assert ward.work() == 1
    assert study(ward, key).row.status == "analysed"
    assert next(iter(ward.models.values())).calls == ["edema.png"]
    assert [row.tries for row in rows(ward, store.job)] == [1]


def test_set_aside_shows_why_and_can_be_tried_again(ward: Ward) -> None:
    good = ward.take(png(1), "edema.png")
    bad = ward.take(png(0), "poison.png", study=good.study)
    for _ in range(TRIES):
        ward.work()
        hurry(ward)
    with ward.database.read() as connection:
        [row] = jobs.aside(connection, SITE)
    assert (row.image, row.study, row.reason) == (bad.image, bad.study, "RuntimeError: the runtime broke")

    model = next(iter(ward.models.values()))
    model.heal = True
    assert list(jobs.retry(ward.database, SITE, bad.image, "dr", lambda c, s: Policy())) == [model.id]
    with pytest.raises(ConflictError, match="nothing to try again"):
        jobs.retry(ward.database, SITE, bad.image, "dr", lambda c, s: Policy())
    with pytest.raises(NotFoundError, match="no such image"):
        jobs.retry(ward.database, "elsewhere", bad.image, "dr", lambda c, s: Policy())
    assert ward.work() == 1
    results = rows(ward, store.image_result)
    assert sorted((row.instance, row.suitable) for row in results) == sorted([(good.image, True), (bad.image, True)])
    with ward.database.read() as connection:
        assert jobs.aside(connection, SITE) == []
        actions = connection.execute(sa.select(store.audit.c.actor, store.audit.c.action)).all()
    assert ("dr", "image.retried") in [tuple(row) for row in actions]
    assert len({(row.study, row.images, row.model) for row in rows(ward, store.study_result)}) == len(
        rows(ward, store.study_result)
    )


def test_a_file_whose_bytes_changed_is_refused_with_a_code(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ward.take(png(), "edema.png").study
    bucket = pytest.importorskip("wetread.clinic.bucket", reason="needs s3fs, of the extra s3")
    archive = bucket.Bucket.__new__(bucket.Bucket)  # without S3: only what comes from it is of concern
    Archive.__init__(archive, ward.archive.root.parent / "cache")
    archive.bucket, archive.prefix, archive._s3 = "b", "", archive
    archive.get_file = lambda key, target: Path(target).write_bytes(b"other")
    monkeypatch.setattr(ward.worker, "archive", archive)
    assert ward.work() == 1
    found = study(ward, key)
    assert (found.row.status, found.row.code) == ("not_analysed", "UNREADABLE")

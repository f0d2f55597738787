"""At least once, one result, and nothing that a file or a model does ends the work."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from ward import FINDINGS, SITE, NameReader, Ward, dicom, png

from wetread.clinic import store, triage, worker, worklist
from wetread.clinic.triage import Policy
from wetread.clinic.worker import TRIES, Worker
from wetread.clinic.worklist import Study
from wetread.errors import BusyError
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
        assert ward.worker._take() is not None  # and then the process is gone
        assert study(ward, key).row.status == "received"
        hurry(ward)
    ward.work()
    row = study(ward, key).row
    assert (row.status, row.code) == ("not_analysed", "MODEL_FAILED")
    assert "broke off" in row.reason


def test_a_lease_keeps_others_away_until_it_runs_out(ward: Ward) -> None:
    ward.take(png(), "edema.png")
    assert ward.worker._take() is not None
    assert ward.worker._take() is None
    hurry(ward)
    again = ward.worker._take()
    assert again is not None
    assert again.tries == 2


def test_a_job_done_twice_gives_one_result(ward: Ward) -> None:
    ward.take(png(), "edema.png")
    first = ward.worker._take()
    hurry(ward)
    second = ward.worker._take()
    assert first is not None
    assert second is not None
    for job in (first, second):
        ward.worker._finish(job, ward.worker._analyse(job), 0.0)
    assert len(rows(ward, store.image_result)) == 1
    assert [job.state for job in rows(ward, store.job)] == ["done"]


def test_a_restart_takes_its_own_jobs_back_at_once(ward: Ward) -> None:
    key = ward.take(png(), "edema.png").study
    assert ward.worker._take() is not None  # killed
    again = Worker(ward.database, ward.archive, ward.models, lambda connection, site: Policy())
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
    for number, each in enumerate(workers):
        each.name = (
            f"service {number}"  # on two machines; a second one of the same name takes the jobs of the first back
        )
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
    real, failures = ward.worker._take, [sa.exc.OperationalError("x", {}, Exception("gone"))] * 2

    def sometimes() -> worker.Job | None:
        if failures:
            raise failures.pop()
        return real()

    monkeypatch.setattr(ward.worker, "_take", sometimes)
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
        assert triage.sweep(connection, rule, store.now()) == []
        old = store.now() - timedelta(hours=5)
        connection.execute(
            store.study.update()
            .where(store.study.c.id == routine)
            .values(received_at=old, overdue_at=old + rule.routine.cap)
        )
    with ward.database.write() as connection:
        assert triage.sweep(connection, rule, store.now()) == [routine]
        assert triage.sweep(connection, rule, store.now()) == []
    page = worklist.page(ward.database, SITE)
    assert [row.study for row in page.rows] == [critical, routine, urgent]
    assert page.rows[1].overdue
    assert page.rows[1].reason.startswith("promoted: waiting cap 4 h; ")
    assert page.counts.overdue == 1
    with ward.database.write() as connection:
        triage.refresh(connection, routine, Policy(), store.now())
    assert worklist.row(ward.database, SITE, routine).reason == page.rows[1].reason
    assert [e["kind"] for e in study(ward, routine).events].count("study.overdue") == 1

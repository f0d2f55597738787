"""Analysing what came in: threads that take jobs from the queue and write results, whatever happens.

The result is unique per (image, model), so that doing a job twice is doing it once. An image on which a model fails
again and again, or that brings the process down, becomes *not analysed* with ``MODEL_FAILED`` after a few tries; see
`wetread.clinic.jobs` for what happens in between and after. When the database goes away, results wait for it.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection
from sqlalchemy.exc import InterfaceError, OperationalError

from wetread.clinic import completion, merging, store, tracing, traits, triage
from wetread.clinic.archive import Archive
from wetread.clinic.jobs import BROKEN, LEASE, READ_ONLY, Gate, Job, Queue
from wetread.clinic.merging import Merging
from wetread.clinic.store import Store
from wetread.clinic.triage import Policy
from wetread.clinic.watchdog import Watchdog
from wetread.config import Settings
from wetread.errors import BusyError, Code, FullError, ReadError
from wetread.infer.predict import Analysis
from wetread.radiograph.read import Limits, read

log = logging.getLogger(__name__)

TRIES = 3
BREAKS = 2  # after so many analyses that broke off, `Worker.broke` is told


class Model(Protocol):
    """A model in service."""

    @property
    def id(self) -> str:
        """SHA-256 of its package."""

    @property
    def name(self) -> str:
        """Short name."""

    @property
    def version(self) -> str:
        """Short version, for people."""

    def analyse(self, path: Path, name: str) -> Analysis:
        """Analyse a file; raises `ReadError` when it cannot be read, `BusyError` when there is no room now."""


class PairModel(Model, Protocol):
    """A model of studies in service: `merging` says so."""

    @property
    def merging(self) -> Merging:
        """How the images of a study are put together; for a model without it, the highest of each finding counts."""

    def analyse_pair(self, frontal: Path, lateral: Path) -> tuple[Analysis, ...]:
        """Analyse two views of a study together; gives one analysis for each."""


Analyses = dict[str, tuple[str, Analysis]]  # image → what its result rests on, and the result


class Worker:
    """Threads that take jobs and do them.

    Parameters
    ----------
    database, archive
        Where jobs and bytes are.
    models : mapping
        Model id → model.
    policy : callable
        Takes a connection and a site, gives the ranking policy in force.
    threads : int
        How many jobs are done at the same time.
    limits : Limits
        For reading when no model is in service.
    tries : int
        After so many an image is set aside.
    lease : timedelta
        How long other processes leave a job alone after this one's last sign of life.
    """

    def __init__(
        self,
        database: Store,
        archive: Archive,
        models: Mapping[str, Model],
        policy: Callable[[Connection, str], Policy],
        *,
        threads: int = 2,
        limits: Limits | None = None,
        tries: int = TRIES,
        lease: timedelta = LEASE,
    ) -> None:
        self.database, self.archive, self.models = database, archive, models
        self.name = store.new_id()
        self.queue = Queue(database, self.name, lease)
        self.failures = dict.fromkeys(models, 0)  # model id → failures in a row
        self.observe: Callable[[Job, Analysis | None, float], None] = lambda job, analysis, seconds: None
        self.watchdog = Watchdog(Settings(), lambda model, cause, reason: None)
        # Called when an analysis broke off again and again; returns whether the model and its jobs were taken back.
        self.broke: Callable[[Job], bool] = lambda job: False
        self.held: Callable[[], Collection[str]] = frozenset  # ids of models whose jobs wait
        self._policy, self._limits, self._tries = policy, limits or Limits(), tries
        self._stop = threading.Event()
        self._work = threading.Semaphore(0)
        self._gate = Gate()
        self._threads = [
            threading.Thread(target=self._loop, name=f"worker-{number}", daemon=True) for number in range(threads)
        ]
        self._threads.append(threading.Thread(target=self._keep_leases, name="leases", daemon=True))

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Say that there is new work."""
        self._work.release()

    def stop(self) -> None:
        """Finish the jobs at hand and end the threads."""
        self._stop.set()
        for _ in self._threads:
            self._work.release()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _loop(self) -> None:
        while not self._stop.is_set():
            try:
                # What was done needs no waking any more: else each image would have the list looked at twice.
                self._work.acquire(blocking=False) if self.step() else self._work.acquire(timeout=1.0)
            except Exception as error:  # the database is gone: nothing is lost, try again
                log.error("worker: %s: %s", type(error).__name__, str(error).splitlines()[0] if str(error) else "")
                self._stop.wait(1.0)

    def _keep_leases(self) -> None:
        while not self._stop.wait(self.queue.lease.total_seconds() / 3):
            try:
                self.queue.renew()
            except Exception as error:  # without a database there is nothing to keep
                log.error("worker: leases: %s", type(error).__name__)

    def step(self) -> bool:
        """Do one job; return whether there was one."""
        held = self.held()
        models = [model for model in (*self.models, READ_ONLY) if model not in held]
        suspect = self.queue.next(models)
        if suspect is None:
            return False
        self._gate.enter(alone=suspect)
        try:
            job = self.queue.take(models, suspect=suspect)
            if job is None:
                return False
            try:
                if not (suspect and job.tries > BREAKS and self.broke(job)):
                    self._do(job)
            finally:
                self.queue.put_down(job)
        finally:
            self._gate.leave(alone=suspect)
        return True

    def _do(self, job: Job) -> None:
        if job.tries > self._tries:
            reason = f"the analysis broke off {self._tries} times"
            self._finish(job, self._refusal(job, Code.MODEL_FAILED, reason), 0.0, BROKEN)
            return
        if job.model not in self.models and job.model != READ_ONLY:  # let go since
            self._lasting(lambda: self.queue.again(job, "the model is served no more", count=False))
            return
        start, watchdog = time.perf_counter(), self.watchdog
        watchdog.began(job)
        try:
            with tracing.span("analysis", study=job.study, image=job.image, model=job.model[:12]):
                analyses = self._analyse(job)
        except ReadError as error:
            watchdog.left(job)
            analyses = self._refusal(job, error.code, str(error))
        except (BusyError, FullError) as error:
            watchdog.left(job)
            reason = str(error)
            self._lasting(lambda: self.queue.again(job, reason, count=False))
            return
        except Exception as error:
            watchdog.failed(job, error)
            self._failed(job, error, time.perf_counter() - start)
            return
        else:
            watchdog.done(job, analyses[job.image][1] if job.image in analyses else None)
        self.failures[job.model] = 0
        self._finish(job, analyses, time.perf_counter() - start)

    def _analyse(self, job: Job) -> Analyses:
        """Analyse an image, with a model of studies together with the other view where there is one."""
        path = self.archive.path(job.sha256)
        if job.model == READ_ONLY:
            read(path, name=job.name, limits=self._limits)
            return {}
        model = self.models[job.model]
        if how_merged(model).kind == "image":
            return {job.image: (job.sha256, model.analyse(path, job.name))}
        results = store.image_result.c
        mine = sa.select(results.basis).where(results.instance == job.image, results.model == job.model)
        with self.database.read() as connection:
            views, there = triage.views(connection, job.study), connection.execute(mine).scalar()
        basis = merging.bases(views, "study").get(job.image, job.sha256)
        if there == basis:  # done together with the other view
            return {}
        frontal, lateral = merging.pair(views)
        if frontal and lateral and job.image in (frontal.image, lateral.image):
            try:
                files = [self.archive.path(view.sha256) for view in (frontal, lateral)]
                both = cast(PairModel, model).analyse_pair(*files)
                return {v.image: (basis, one) for v, one in zip((frontal, lateral), both, strict=True)}
            except ReadError as error:  # of either; this one alone then says so, or does without the other
                log.warning("image %s: not analysed together with the other view: %s", job.image, error.code)
        return {job.image: (basis, model.analyse(path, job.name))}

    def _refusal(self, job: Job, code: Code, reason: str) -> Analyses:
        model = self.models.get(job.model)
        name, kind = (model.name, how_merged(model).kind) if model else ("reader", "image")
        with self.database.read() as connection:
            basis = merging.bases(triage.views(connection, job.study), kind).get(job.image, job.sha256)
        return {job.image: (basis, Analysis(name, job.model, "screen", False, code, reason))}

    def _failed(self, job: Job, error: Exception, seconds: float) -> None:
        self.failures[job.model] = self.failures.get(job.model, 0) + 1
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        log.warning("image %s: model %s failed, try %d: %s", job.image, job.model[:12], job.tries, type(error).__name__)
        if job.tries >= self._tries:
            refusal = self._refusal(job, Code.MODEL_FAILED, f"the model failed {job.tries} times")
            self._finish(job, refusal, seconds, reason)
        else:
            self._lasting(lambda: self.queue.again(job, reason))

    def _lasting(self, write: Callable[[], None]) -> None:
        """Write, and as long as the database does not answer or has no room, wait and write again."""
        while True:
            try:
                return write()
            except (OperationalError, InterfaceError, FullError) as error:
                log.error("worker: a result waits for the database: %s", type(error).__name__)
                if self._stop.wait(1.0):
                    raise

    def _finish(self, job: Job, analyses: Analyses, seconds: float, error: str | None = None) -> None:
        """Write the results and go on; `error` sets the job aside."""
        self._lasting(lambda: self._write(job, analyses, seconds, error))
        self.observe(job, analyses[job.image][1] if analyses else None, seconds)

    def _write(self, job: Job, analyses: Analyses, seconds: float, error: str | None) -> None:
        """Write the results, the job's end and the study's new place, all or nothing."""
        now, jobs, images = store.now(), store.job, store.instance
        with self.database.write() as connection:
            # By now it may have been done by somebody else, moved to another study, or removed.
            state = connection.execute(sa.select(jobs.c.state).where(jobs.c.id == job.id)).scalar()
            study_id = connection.execute(sa.select(images.c.study).where(images.c.id == job.image)).scalar()
            if state == "done" or study_id is None:
                return
            for image, (basis, analysis) in analyses.items():
                self._keep(connection, job, image, basis, analysis, seconds, now)
            connection.execute(
                jobs.update().where(jobs.c.id == job.id).values(state="done", lease_until=None, error=error)
            )
            completion.renew(connection, study_id, self.models, now)
            triage.refresh(connection, study_id, self._policy(connection, job.site), now)
            study = connection.execute(
                sa.select(store.study.c.analysis, store.study.c.priority, store.study.c.code).where(
                    store.study.c.id == study_id
                )
            ).one()
            if study.analysis != "received":
                kind = "study.analysed" if study.analysis == "analysed" else "study.refused"
                store.emit(connection, kind, job.site, study_id, {"priority": study.priority, "code": study.code})

    def _keep(
        self,
        connection: Connection,
        job: Job,
        image: str,
        basis: str,
        analysis: Analysis,
        seconds: float,
        now: datetime,
    ) -> None:
        """Write an image's result; a later one takes the place of an earlier that rests on something else."""
        results, images = store.image_result, store.instance
        if connection.execute(sa.select(images.c.id).where(images.c.id == image)).first() is None:
            return  # removed meanwhile
        mine = sa.and_(results.c.instance == image, results.c.model == job.model)
        there = connection.execute(sa.select(results.c.basis).where(mine)).first()
        if there is not None and there.basis in (None, basis):
            return
        model = self.models.get(job.model)
        values = _row(job, analysis, model.version if model else "", seconds, now)
        values |= {"instance": image, "basis": basis, "merging": how_merged(model).to_json() if model else None}
        values["research_only"] = research_only(model)
        if there is None:
            connection.execute(results.insert().values(values))
            if trait := traits.row(image, job.model, analysis, now):
                connection.execute(store.image_trait.insert().values(trait))
        else:
            del values["id"]
            connection.execute(results.update().where(mine).values(values))
        if analysis.view is not None:
            connection.execute(images.update().where(images.c.id == image).values(view=analysis.view))


def how_merged(model: Model) -> Merging:
    """Return how the images of a study are put together for this model."""
    found: Merging = getattr(model, "merging", Merging())
    return found


def research_only(model: Model | None) -> bool:
    """Return whether a model is for research only; one whose package does not say otherwise is."""
    return bool(getattr(model, "research_only", True))


def _row(job: Job, analysis: Analysis, version: str, seconds: float, now: datetime) -> dict[str, Any]:
    return {
        "id": store.new_id(),
        "instance": job.image,
        "model": job.model,
        "model_name": analysis.model[:64],
        "version": version[:64],
        "suitable": analysis.suitable,
        "code": str(analysis.code) if analysis.code else None,
        "reason": analysis.reason,
        "cautions": list(analysis.cautions),
        "caution_codes": [str(code) for code in analysis.caution_codes],
        "view": analysis.view,
        "abnormal": analysis.abnormal,
        "point": analysis.point,
        "findings": [asdict(finding) for finding in analysis.findings],
        "box": list(analysis.seen.box) if analysis.seen else None,
        "maps": _pack(analysis.maps) if analysis.maps is not None else None,
        "seconds": seconds,
        "at": now,
    }


def _pack(maps: NDArray[np.float32]) -> bytes:
    """Pack maps as float16, relative to their peak: exact to one part in two thousand, and only shown."""
    peak = float(np.abs(maps).max(initial=0.0)) or 1.0
    buffer = io.BytesIO()
    np.savez_compressed(buffer, maps=(maps / peak).astype(np.float16), peak=np.float32(peak))
    return buffer.getvalue()


def unpack(blob: bytes) -> NDArray[np.float32]:
    """Return the maps that a result holds, float32 [F, h, w]."""
    with np.load(io.BytesIO(blob), allow_pickle=False) as file:
        maps: NDArray[np.float32] = file["maps"].astype(np.float32) * np.float32(file["peak"])
    return maps

"""Analysing what came in: one job for each image and model, at least once, whatever happens.

A job is leased, not removed, while it is worked on: when the process is killed its lease runs out (or the next
service start takes it back) and it is done again; the result is unique per (image, model), so that doing it twice is
doing it once. An image on which a model fails again and again, or that brings the process down, becomes *not
analysed* with ``MODEL_FAILED`` after a few tries.
"""

from __future__ import annotations

import io
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from wetread.clinic import store, triage
from wetread.clinic.archive import Archive
from wetread.clinic.intake import READ_ONLY
from wetread.clinic.store import Store
from wetread.clinic.triage import Policy
from wetread.errors import BusyError, Code, ReadError
from wetread.infer.predict import Analysis
from wetread.radiograph.read import Limits, read

log = logging.getLogger(__name__)

TRIES = 3
LEASE = timedelta(minutes=2)


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


@dataclass(frozen=True)
class Job:
    """One leased job."""

    id: int
    image: str
    study: str
    site: str
    sha256: str
    name: str
    model: str
    tries: int


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
    lease : timedelta
        How long a job may take before another worker does it again.
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
        lease: timedelta = LEASE,
    ) -> None:
        self.database, self.archive, self.models = database, archive, models
        self.name = f"{socket.gethostname()}:{archive.root.resolve()}"
        self.failures = dict.fromkeys(models, 0)  # model id → failures in a row
        self.observe: Callable[[Job, Analysis | None, float], None] = lambda job, analysis, seconds: None
        self._policy, self._limits, self._lease = policy, limits or Limits(), lease
        self._stop = threading.Event()
        self._work = threading.Semaphore(0)
        self._threads = [
            threading.Thread(target=self._loop, name=f"worker-{number}", daemon=True) for number in range(threads)
        ]

    def start(self) -> None:
        """Take back what this service left undone when it was stopped, and begin."""
        with self.database.write() as connection:
            connection.execute(
                store.job.update()
                .where(store.job.c.state == "running", store.job.c.worker == self.name)
                .values(state="queued", lease_until=None)
            )
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
                if not self.step():
                    self._work.acquire(timeout=1.0)
            except Exception as error:  # the database is gone: nothing is lost, try again
                log.error("worker: %s: %s", type(error).__name__, str(error).splitlines()[0] if str(error) else "")
                self._stop.wait(1.0)

    def step(self) -> bool:
        """Do one job; return whether there was one."""
        job = self._take()
        if job is None:
            return False
        if job.tries > TRIES:
            self._finish(job, self._refusal(job, Code.MODEL_FAILED, f"the analysis broke off {TRIES} times"), 0.0)
            return True
        start = time.perf_counter()
        analysis: Analysis | None
        try:
            analysis = self._analyse(job)
        except ReadError as error:
            analysis = self._refusal(job, error.code, str(error))
        except BusyError:
            self._again(job, "no room in the queue", count=False)
            return True
        except Exception as error:
            self._failed(job, error, time.perf_counter() - start)
            return True
        self.failures[job.model] = 0
        self._finish(job, analysis, time.perf_counter() - start)
        return True

    def _analyse(self, job: Job) -> Analysis | None:
        path = self.archive.path(job.sha256)
        if job.model == READ_ONLY:
            read(path, name=job.name, limits=self._limits)
            return None
        return self.models[job.model].analyse(path, job.name)

    def _refusal(self, job: Job, code: Code, reason: str) -> Analysis:
        name = self.models[job.model].name if job.model in self.models else "reader"
        return Analysis(name, job.model, "screen", False, code, reason)

    def _take(self) -> Job | None:
        """Lease the next job: by requested priority, then in order of arrival."""
        jobs, images, now = store.job, store.instance, store.now()
        free = sa.or_(
            sa.and_(sa.text("job.state = 'queued'"), jobs.c.due_at <= now),
            sa.and_(sa.text("job.state = 'running'"), jobs.c.lease_until <= now),
        )
        mine = jobs.c.model.in_([*self.models, READ_ONLY])
        next_one = (
            sa.select(jobs.c.id)
            .where(sa.text("job.state != 'done'"), free, mine)
            .order_by(jobs.c.floor, jobs.c.id)
            .limit(1)
        )
        with self.database.read() as connection:
            if connection.execute(next_one).first() is None:
                return None
        with self.database.write() as connection:
            key = connection.execute(next_one).scalar()
            if key is None:
                return None
            connection.execute(
                jobs.update()
                .where(jobs.c.id == key)
                .values(state="running", tries=jobs.c.tries + 1, lease_until=now + self._lease, worker=self.name)
            )
            row = connection.execute(
                sa.select(
                    jobs.c.id,
                    images.c.id.label("image"),
                    images.c.study,
                    images.c.site,
                    images.c.sha256,
                    images.c.name,
                    jobs.c.model,
                    jobs.c.tries,
                )
                .join(images, images.c.id == jobs.c.instance)
                .where(jobs.c.id == key)
            ).one()
        return Job(*row)

    def _failed(self, job: Job, error: Exception, seconds: float) -> None:
        self.failures[job.model] = self.failures.get(job.model, 0) + 1
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        log.warning("image %s: model %s failed, try %d: %s", job.image, job.model[:12], job.tries, type(error).__name__)
        if job.tries >= TRIES:
            self._finish(
                job, self._refusal(job, Code.MODEL_FAILED, f"the model failed {job.tries} times"), seconds, reason
            )
        else:
            self._again(job, reason)

    def _again(self, job: Job, reason: str, *, count: bool = True) -> None:
        tries = job.tries if count else job.tries - 1
        wait = timedelta(seconds=0.25 * 2**job.tries)
        with self.database.write() as connection:
            connection.execute(
                store.job.update()
                .where(store.job.c.id == job.id)
                .values(state="queued", tries=tries, due_at=store.now() + wait, lease_until=None, error=reason)
            )

    def _finish(self, job: Job, analysis: Analysis | None, seconds: float, error: str | None = None) -> None:
        """Write the result, the job's end and the study's new place, all or nothing."""
        now, results = store.now(), store.image_result
        with self.database.write() as connection:
            there = sa.select(results.c.id).where(results.c.instance == job.image, results.c.model == job.model)
            if analysis is not None and connection.execute(there).first() is None:
                version = self.models[job.model].version if job.model in self.models else ""
                connection.execute(results.insert().values(**_row(job, analysis, version, seconds, now)))
                if analysis.view is not None:
                    connection.execute(
                        store.instance.update().where(store.instance.c.id == job.image).values(view=analysis.view)
                    )
            connection.execute(
                store.job.update().where(store.job.c.id == job.id).values(state="done", lease_until=None, error=error)
            )
            triage.refresh(connection, job.study, self._policy(connection, job.site), now)
            study = connection.execute(
                sa.select(store.study.c.analysis, store.study.c.priority, store.study.c.code).where(
                    store.study.c.id == job.study
                )
            ).one()
            if study.analysis != "received":
                kind = "study.analysed" if study.analysis == "analysed" else "study.refused"
                store.emit(connection, kind, job.site, job.study, {"priority": study.priority, "code": study.code})
        self.observe(job, analysis, seconds)


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

"""The queue of analyses: one job for each image and model, at least once, whatever happens.

A job is leased, not removed, while it is worked on, and the lease is renewed as long as the process lives. When the
process is killed the lease runs out and the job is done again, by whoever takes it first; on PostgreSQL several
processes take jobs without waiting for each other (``SKIP LOCKED``). A job that broke off is *suspect*: its file
may be what brought the process down, and is tried alone so that no other job suffers. After `tries` the job is set
aside: done, with the reason in `error`, until somebody asks for another try.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import audit, deployments, store, triage
from wetread.clinic.deployments import Deployment
from wetread.clinic.priority import ORDER, Priority
from wetread.clinic.store import Store
from wetread.clinic.triage import Policy
from wetread.errors import Code, ConflictError, NotFoundError

LEASE = timedelta(seconds=30)
PATIENCE_S = 600.0  # a job that takes longer hangs: its lease is not renewed any more
BROKEN = "the analysis broke off"
READ_ONLY = ""  # the model of a job that only checks whether an image can be read, when no model is served
_LONGEST_WAIT = timedelta(hours=1)  # no wait for another try is longer; if it seems so, the clock was set back


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


class Queue:
    """The jobs as one process sees them.

    Parameters
    ----------
    database : Store
    worker : str
        A name that no other process has.
    lease : timedelta
        How long others leave a job alone after the last sign of life.
    """

    def __init__(self, database: Store, worker: str, lease: timedelta = LEASE) -> None:
        self.database, self.worker, self.lease = database, worker, lease
        self._held: dict[int, float] = {}  # job → when it was taken, on the clock that nobody sets

    def take_back(self, alive: Collection[str] = ()) -> int:
        """Queue what processes that are gone left running, without waiting for its lease; return how many jobs.

        Parameters
        ----------
        alive : collection of str
            The workers that still run.
        """
        with self.database.write(ordered=False) as connection:
            return connection.execute(
                store.job.update()
                .where(store.job.c.state == "running", store.job.c.worker.not_in([*alive]))
                .values(state="queued", lease_until=None, error=BROKEN)
            ).rowcount

    def next(self, models: Sequence[str]) -> bool | None:
        """Return whether the next free job is suspect, None when there is none."""
        with self.database.read() as connection:
            row = connection.execute(self._free(models)).first()
        return None if row is None else row.state == "running" or row.error == BROKEN

    def take(self, models: Sequence[str], *, suspect: bool = False) -> Job | None:
        """Lease the next job, a suspect one or one that is not: by requested priority, then in order of arrival."""
        jobs, images, now = store.job, store.instance, store.now()
        broken = sa.or_(jobs.c.state == "running", sa.func.coalesce(jobs.c.error, "") == BROKEN)
        wanted = self._free(models).where(broken if suspect else sa.not_(broken))
        with self.database.write(ordered=False) as connection:
            key = connection.execute(wanted.with_for_update(skip_locked=True, of=jobs)).scalar()
            if key is None:
                return None
            connection.execute(
                jobs.update()
                .where(jobs.c.id == key)
                .values(state="running", tries=jobs.c.tries + 1, lease_until=now + self.lease, worker=self.worker)
            )
            columns = images.c.id, images.c.study, images.c.site, images.c.sha256, images.c.name
            row = connection.execute(
                sa.select(jobs.c.id, *columns, jobs.c.model, jobs.c.tries)
                .join(images, images.c.id == jobs.c.instance)
                .where(jobs.c.id == key)
            ).one()
        self._held[key] = time.monotonic()
        return Job(*row)

    def renew(self) -> None:
        """Prolong the leases of what is at hand, unless it hangs."""
        if held := self._alive():
            with self.database.write(ordered=False) as connection:
                connection.execute(
                    store.job.update()
                    .where(store.job.c.id.in_(held), self._mine())
                    .values(lease_until=store.now() + self.lease)
                )

    def again(self, job: Job, reason: str, *, count: bool = True) -> None:
        """Queue a job for another try after a while, unless somebody else has it by now."""
        wait = timedelta(seconds=0.25 * 2 ** min(job.tries, 10))
        with self.database.write(ordered=False) as connection:
            connection.execute(
                store.job.update()
                .where(store.job.c.id == job.id, self._mine())
                .values(
                    state="queued",
                    tries=job.tries if count else job.tries - 1,
                    due_at=store.now() + wait,
                    lease_until=None,
                    error=reason,
                )
            )

    def put_down(self, job: Job) -> None:
        """Say that this process no longer works on a job, however it ended."""
        self._held.pop(job.id, None)

    def _mine(self) -> sa.ColumnElement[bool]:
        return sa.and_(store.job.c.state == "running", store.job.c.worker == self.worker)

    def _alive(self) -> list[int]:
        return [key for key, since in list(self._held.items()) if time.monotonic() - since < PATIENCE_S]

    def _free(self, models: Sequence[str]) -> sa.Select[Any]:
        """Select the first job that nobody works on; a clock that was set back must not hold one for ever."""
        jobs, now = store.job.c, store.now()
        queued = sa.and_(sa.text("job.state = 'queued'"), sa.or_(jobs.due_at <= now, jobs.due_at > now + _LONGEST_WAIT))
        left = sa.and_(
            sa.text("job.state = 'running'"),
            sa.or_(jobs.lease_until <= now, jobs.lease_until > now + 2 * self.lease),
            jobs.id.not_in(self._alive()),
        )
        return (
            sa.select(jobs.id, jobs.state, jobs.error)
            .where(sa.text("job.state != 'done'"), sa.or_(queued, left), jobs.model.in_(models))
            .order_by(jobs.floor, jobs.id)
            .limit(1)
        )


class Gate:
    """Many threads inside at a time, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside, self._alone = 0, False

    def enter(self, *, alone: bool) -> None:
        """Go in when it is possible; who wants to be alone keeps others out, but does not wait for one that hangs."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            if alone:
                self._alone = True
                self._changed.wait_for(lambda: self._inside == 0, timeout=PATIENCE_S / 10)
            else:
                self._inside += 1

    def leave(self, *, alone: bool) -> None:
        """Go out."""
        with self._changed:
            if alone:
                self._alone = False
            else:
                self._inside -= 1
            self._changed.notify_all()


def enqueue(
    connection: Connection,
    image: str,
    models: Sequence[str],
    floor: Priority,
    now: datetime,
    rows: Collection[Deployment],
) -> None:
    """Queue the analyses of an image, by all models of its site or by those that never saw it.

    Those that nobody waits for come after all others: so say the `rows` of what is deployed, see `deployments`.
    """
    jobs, images = store.job, store.instance.c
    there = set(connection.execute(sa.select(jobs.c.model).where(jobs.c.instance == image)).scalars())
    if missing := [model for model in models if model not in there]:
        of = connection.execute(
            sa.select(images.site, images.study, images.received_at).where(images.id == image)
        ).one()
        row = {"instance": image, "state": "queued", "tries": 0, "due_at": now}
        for model, awaited in deployments.analysing(connection, rows, missing, of.site, of.received_at, of.study):
            place = ORDER[floor] + (0 if awaited else deployments.LATER)
            connection.execute(jobs.insert(), row | {"model": model, "floor": place})


def aside(connection: Connection, site: str, limit: int = 100) -> Sequence[Any]:
    """Return the jobs of a site that were set aside, the newest first: image, study, model, tries, reason."""
    jobs, images = store.job.c, store.instance.c
    found = connection.execute(
        sa.select(images.id.label("image"), images.study, jobs.model, jobs.tries, jobs.error.label("reason"))
        .join(store.instance, images.id == jobs.instance)
        .where(sa.text("job.state = 'done' AND job.error IS NOT NULL"), images.site == site)
        .order_by(jobs.id.desc())
        .limit(limit)
    )
    return found.all()


def retry(
    database: Store, site: str, image: str, actor: str, policy: Callable[[Connection, str], Policy]
) -> Collection[str]:
    """Give an image that was set aside its tries again; return the models concerned.

    Raises
    ------
    NotFoundError
        When the site has no such image.
    ConflictError
        When no analysis of it was set aside.
    """
    jobs, results, now = store.job, store.image_result, store.now()
    with database.write() as connection:
        study = connection.execute(
            sa.select(store.instance.c.study).where(store.instance.c.id == image, store.instance.c.site == site)
        ).scalar()
        if study is None:
            raise NotFoundError(f"image {image[:64]}: no such image at this site")
        mine = sa.and_(jobs.c.instance == image, sa.text("job.state = 'done' AND job.error IS NOT NULL"))
        models = list(connection.execute(sa.select(jobs.c.model).where(mine)).scalars())
        if not models:
            raise ConflictError(f"image {image}: none of its analyses was set aside; there is nothing to try again")
        connection.execute(jobs.update().where(mine).values(state="queued", tries=0, due_at=now, error=None))
        # One result for each (image, model) and (image set, model): what failed makes room for what comes.
        connection.execute(
            results.delete().where(
                results.c.instance == image, results.c.model.in_(models), results.c.code == str(Code.MODEL_FAILED)
            )
        )
        images = triage.image_set(connection, study, [row.id for row in triage.shown(connection, study)])
        whole = store.study_result
        connection.execute(
            whole.delete().where(whole.c.study == study, whole.c.images == images, whole.c.model.in_(models))
        )
        triage.refresh(connection, study, policy(connection, site), now)
        store.emit(connection, "image.retried", site, study, {"image": image})
        audit.record(connection, site, actor, "image.retried", study, {"image": image, "models": models})
    return models

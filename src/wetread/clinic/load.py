"""What the clinic is busy with, and how fast it is: queues by age, what came in each hour, how long an image waits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import deployments, store
from wetread.clinic.figures import MOST, Period, Spread, at_site, by_step, step_of, walk

HOUR = timedelta(hours=1)
AGES = (("under 1 min", timedelta(minutes=1)), ("under 10 min", timedelta(minutes=10)), ("under 1 h", HOUR))
OLDER = "1 h and more"


@dataclass(frozen=True)
class Queue:
    """Analyses in one state, by how long ago their image came; `oldest` is when that of the oldest did."""

    state: str
    count: int
    by_age: dict[str, int]
    oldest: datetime | None


@dataclass(frozen=True)
class Owed:
    """Outputs of one kind in one state, and since when the oldest is owed."""

    kind: str
    state: str
    count: int
    oldest: datetime


@dataclass(frozen=True)
class Flow:
    """What came in a period, by step: when each began, studies, images; and how long images waited for their results.

    `waits` are in s, from the arrival of an image to the last of its results; `wait_by_step` the same for the images
    that came in each step; `each` one by one, with when it came. Images that wait still are in none of them.
    """

    period: Period
    steps: tuple[datetime, ...]
    studies: tuple[int, ...]
    images: tuple[int, ...]
    waits: Spread
    wait_by_step: tuple[Spread, ...]
    each: tuple[tuple[datetime, float], ...]


def queues(connection: Connection, site: str, now: datetime) -> list[Queue]:
    """Return the analyses of a site that are not done: one queue for each state."""
    walk(connection)
    jobs, images = store.job.c, store.instance.c
    ages = [(images.received_at > now - limit, name) for name, limit in AGES]
    age = sa.case(*ages, else_=OLDER).label("age")
    rows = connection.execute(
        sa.select(jobs.state, age, sa.func.count().label("times"), sa.func.min(images.received_at).label("oldest"))
        .join(store.instance, images.id == jobs.instance)
        .where(sa.text("job.state != 'done'"), at_site(site, store.instance))
        .group_by(jobs.state, age)
    ).all()
    found = []
    for state in ("running", "queued"):
        mine = [row for row in rows if row.state == state]
        by_age = {name: sum(row.times for row in mine if row.age == name) for name in (*(n for n, _ in AGES), OLDER)}
        found.append(Queue(state, sum(by_age.values()), by_age, min((row.oldest for row in mine), default=None)))
    return found


def owed(connection: Connection, site: str) -> list[Owed]:
    """Return what is owed to other systems, by kind and state."""
    walk(connection)
    table = store.delivery.c
    # Each as one of the indexes has it: what is to be sent, and what was given up.
    unsent = sa.text("delivery.state IN ('queued', 'failed')")
    missing = sa.and_(sa.text("delivery.state IN ('failed', 'given_up')"), table.state == "given_up")
    count, oldest = sa.func.count().label("times"), sa.func.min(table.created_at).label("oldest")
    found = [
        Owed(row.kind, row.state, row.times, row.oldest)
        for which in (unsent, missing)
        for row in connection.execute(
            sa.select(table.kind, table.state, count, oldest)
            .join(store.study, store.study.c.id == table.study)
            .where(which, at_site(site, store.study))
            .group_by(table.kind, table.state)
        )
    ]
    return sorted(found, key=lambda one: (one.kind, one.state))


def flow(connection: Connection, site: str, period: Period, step: timedelta) -> Flow:
    """Return what came to a site, and how long it waited."""
    walk(connection)
    studies, images = store.study.c, store.instance.c
    at = step_of(studies.received_at, step)
    came = connection.execute(
        sa.select(at, sa.func.count()).where(studies.site == site, period.holds(studies.received_at)).group_by(at)
    ).all()
    at = step_of(images.received_at, step)
    here = images.site == site, period.holds(images.received_at), images.state == "stored"
    stored = connection.execute(sa.select(at, sa.func.count()).where(*here).group_by(at)).all()
    waits = _waits(connection, site, period)
    groups: dict[int, list[float]] = {}
    seconds = int(step.total_seconds())
    for received, wait in waits:
        groups.setdefault(math.floor(received.timestamp()) // seconds * seconds, []).append(wait)
    steps = period.steps(step)
    return Flow(
        period=period,
        steps=tuple(steps),
        studies=tuple(by_step([(when, count) for when, count in came], period, step)),
        images=tuple(by_step([(when, count) for when, count in stored], period, step)),
        waits=Spread.of(wait for _, wait in waits),
        wait_by_step=tuple(Spread.of(groups.get(int(when.timestamp()), ())) for when in steps),
        each=tuple(waits),
    )


def taken_in(connection: Connection, site: str, period: Period) -> int:
    """Return how many bytes of files came to a site."""
    images = store.instance.c
    total = sa.select(sa.func.sum(images.bytes)).where(images.site == site, period.holds(images.received_at))
    return int(connection.execute(total).scalar() or 0)


def _waits(connection: Connection, site: str, period: Period) -> Sequence[tuple[datetime, float]]:
    """Return when an image came and how long it waited for the last of its results, in s; the newest `MOST`."""
    images, results = store.instance.c, store.image_result.c
    newest = (
        sa.select(images.id, images.received_at)
        .where(images.site == site, period.holds(images.received_at))
        .order_by(images.received_at.desc())
        .limit(MOST)
        .subquery()
    )
    last: sa.ColumnElement[Any] = sa.type_coerce(sa.func.max(results.at), store.Moment())
    rows = connection.execute(
        sa.select(newest.c.received_at, last.label("done"))
        .join(store.image_result, results.instance == newest.c.id)
        .where(results.model.not_in(deployments.shadows()))  # nobody waits for them
        .group_by(newest.c.id, newest.c.received_at)
    ).all()
    return [(row.received_at, (row.done - row.received_at).total_seconds()) for row in rows]

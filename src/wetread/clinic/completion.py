"""When a study is complete: no image came for a while, and everything that came is analysed or refused.

Nothing waits for it: each image was analysed and ranked when it came. Completing renews what rests on something that
changed since (the other view of a pair, a corrected header), keeps the study's result and says ``study.completed``,
once for each set of images. A later image makes another set.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import deployments, merging, store, switches, triage
from wetread.clinic.store import Store
from wetread.clinic.triage import Policy

_AT_ONCE = 100  # studies of one sweep
_APART = timedelta(minutes=1)  # between the clocks of two processes, at most


def renew(connection: Connection, study: str, models: Collection[str], now: datetime) -> int:
    """Queue again the jobs whose result rests on other files than it should now; return how many.

    Parameters
    ----------
    connection : Connection
        That may write.
    study : str
    models : collection of str
        Ids of the models in service; what others said stays.
    """
    views = triage.views(connection, study)
    table, jobs, count = store.image_result.c, store.job, 0
    said = connection.execute(
        sa.select(table.instance, table.model, table.basis, table.merging).where(
            table.instance.in_([view.image for view in views]), table.model.in_(models), table.basis.is_not(None)
        )
    ).all()
    wanted = {kind: merging.bases(views, kind) for kind in ("image", "study")}
    for row in said:
        if row.basis != wanted[(row.merging or {}).get("kind", "image")][row.instance]:
            count += connection.execute(
                jobs.update()
                .where(jobs.c.instance == row.instance, jobs.c.model == row.model, jobs.c.state == "done")
                .values(state="queued", tries=0, due_at=now, lease_until=None, error=None)
            ).rowcount
    return count


def sweep(
    database: Store,
    models: Collection[str],
    policy: Callable[[Connection, str], Policy],
    now: datetime,
    complete_after: timedelta,
) -> list[str]:
    """Complete the studies for which it is time; return those of which it was said.

    Parameters
    ----------
    database : Store
    models : collection of str
        Ids of the models in service.
    policy : callable
        Takes a connection and a site, gives the ranking policy in force.
    now : datetime
    complete_after : timedelta
        How long a study waits after its last image; one that seems to wait much longer is due: the clock was set back.
    """
    latest = now + complete_after + _APART
    with database.read() as connection:
        due = list(connection.execute(_due(now, latest).limit(_AT_ONCE)).scalars())
    said = []
    for study in due:
        with database.write() as connection:
            # Another process may have been first, and a new image may have come in between.
            if connection.execute(_due(now, latest).where(store.study.c.id == study)).first() is None:
                continue
            if renew(connection, study, models, now):
                continue
            if _complete(connection, study, policy, now):
                said.append(study)
    return said


def _due(now: datetime, latest: datetime) -> sa.Select[Any]:
    """Return the query for studies that are quiet for long enough and have nothing waiting."""
    table, images, jobs = store.study.c, store.instance.c, store.job.c
    waiting = (
        sa.select(jobs.id)
        .join(store.instance, images.id == jobs.instance)
        .where(images.study == table.id, images.state == "stored", jobs.state != "done")
        .where(jobs.model.not_in(switches.held(images.site)))
        .where(~deployments.unawaited(jobs.model, images.study, images.site))
    )
    quiet = sa.and_(table.complete_at.is_not(None), sa.or_(table.complete_at <= now, table.complete_at > latest))
    return sa.select(table.id).where(quiet, ~waiting.exists()).order_by(table.complete_at)


def _complete(connection: Connection, study: str, policy: Callable[[Connection, str], Policy], now: datetime) -> bool:
    table, events = store.study, store.event.c
    row = connection.execute(
        table.update().where(table.c.id == study).values(complete_at=None).returning(table.c.site, table.c.merged_into)
    ).one()
    triage.refresh(connection, study, policy(connection, row.site), now)
    images = [image.id for image in triage.shown(connection, study)]
    key = triage.image_set(connection, study, images)
    before = connection.execute(
        sa.select(events.payload).where(events.study == study, events.kind == "study.completed")
    ).scalars()
    if not images or row.merged_into or any(payload.get("set") == key for payload in before):
        return False
    store.emit(connection, "study.completed", row.site, study, {"set": key, "images": len(images)})
    return True

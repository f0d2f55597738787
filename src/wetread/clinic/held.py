"""Corrections that were kept apart because their sender may not correct, until somebody who may lets them take effect.

To release one is to take the same file in again, from somebody who may: then it does what it would have done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import store
from wetread.clinic.intake import HELD, Intake, Received
from wetread.errors import ConflictError, NotFoundError

_MOST = 100


@dataclass(frozen=True)
class Held:
    """A rejection note or a corrected header that waits: `image` names its file, `study` where it was put."""

    image: str
    study: str
    reason: str
    received_at: datetime


def listing(connection: Connection, site: str) -> Sequence[Held]:
    """Return what waits at a site, the newest first."""
    table = store.instance.c
    wanted = (
        sa.select(table.id, table.study, table.reason, table.received_at)
        .where(table.site == site, sa.text("instance.state = 'quarantined'"), table.reason.in_(list(HELD)))
        .order_by(table.received_at.desc(), table.id)
        .limit(_MOST)
    )
    return [Held(*row) for row in connection.execute(wanted)]


def release(intake: Intake, site: str, image: str, actor: str) -> Received:
    """Let what waits take effect, as if the actor had sent it.

    Raises
    ------
    NotFoundError
        When the site has no such file.
    ConflictError
        When it is nothing that waits.
    """
    table = store.instance.c
    with intake.database.read() as connection:
        row = connection.execute(sa.select(store.instance).where(table.id == image, table.site == site)).first()
    if row is None:
        raise NotFoundError(f"image {image[:64]}: no such image at this site")
    if row.state != "quarantined" or row.reason not in HELD:
        raise ConflictError(f"image {image}: is {row.state}; only a correction that was kept apart can be released")
    with intake.archive.path(row.sha256).open("rb") as file:
        return intake.take(file, row.name, site, actor=actor, corrects=True)

"""An outbox over a ward, without threads: what is owed, and sending what is due."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from ward import SITE, Ward

from wetread.clinic import delivery, store
from wetread.clinic.delivery import Delivery, Outbox
from wetread.config import Settings

OK = (200, b"{}")


def outbox(ward: Ward, **settings: Any) -> Outbox:
    # A signature is final at once; how long it can be taken back is tested where that matters.
    return Outbox(ward.database, ward.archive, Settings(**{"outputs_retry_s": 0.000001, "undo_seconds": 0} | settings))


def rows(ward: Ward) -> list[Delivery]:
    return delivery.listing(ward.database, SITE, states=("queued", "failed", "sent", "given_up", "nothing"))


def drain(box: Outbox) -> int:
    """Send what is due, as the threads do; return how many tries that took."""
    return sum(1 for to in box.destinations for _ in iter(lambda to=to: box.step(to), False))


def complete(ward: Ward) -> None:
    """Let every study count as complete, as the sweep does after the quiet time."""
    with ward.database.write() as connection:
        for row in connection.execute(sa.select(store.study)).all():
            connection.execute(store.study.update().where(store.study.c.id == row.id).values(complete_at=None))
            store.emit(connection, "study.completed", row.site, row.id)

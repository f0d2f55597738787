"""What went out under an identity that was corrected since: a wrong patient, or a study that is part of another now.

Each correction counts up `study.revision`, and each delivery says of which revision it tells and, before anything is
sent, what will be. What a revision owes is owed once, in the transaction of the correction: what was told before is
told again of the right patient, and what went out of the wrong one is taken back in the way of its receiver. A sender
that is late with the old identity finds that it is too late; one that is in the middle of it is waited for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from wetread.clinic import store

CLOSED = "the patient was corrected before it was sent; it is sent anew"
_LEASED = timedelta(minutes=10)  # longer than any lease: the clock was set back
_KEYS = ("patient_id", "patient_name", "birth_date", "sex", "accession")


@dataclass(frozen=True)
class Before:
    """What went out of a study, or may have, under an identity that holds no more.

    Attributes
    ----------
    delivery : str
        Its id.
    study : str
    patient : mapping
        As whose: `patient_id` and so on, as of the study.
    sent : list
        As `telling` writes it down for its kind, see there.
    done : bool
        Whether it was taken back already.
    """

    delivery: str
    study: str
    patient: Mapping[str, Any]
    sent: list[Any]
    done: bool


def family(study: str) -> sa.Select[Any]:
    """Return the query for the ids of a study and of those that were merged into it."""
    table = store.study.c
    return sa.select(table.id).where(sa.or_(table.id == study, table.merged_into == study))


def rows(connection: Connection, study: str, revision: int) -> Sequence[Row[Any]]:
    """Return the deliveries of a study, and of those merged into it, that tell of an earlier revision."""
    table = store.delivery.c
    wanted = sa.select(store.delivery).where(table.study.in_(family(study)), table.revision < revision)
    return connection.execute(wanted.order_by(table.created_at, table.id)).all()


def close(connection: Connection, owed: Sequence[Row[Any]]) -> None:
    """Let be what still waits to be sent under an identity of before; what is being sent at this moment ends itself."""
    table, now = store.delivery, store.now()
    connection.execute(
        table.update()
        .where(
            table.c.id.in_([row.id for row in owed]),
            table.c.state.in_(("queued", "failed", "given_up")),
            sa.or_(table.c.lease_until.is_(None), table.c.lease_until <= now, table.c.lease_until > now + _LEASED),
        )
        .values(state="nothing", error=CLOSED, lease_until=None)
    )


def earlier(connection: Connection, row: Mapping[str, Any]) -> tuple[list[Before], bool]:
    """Return what one destination was sent of a study under identities of before, of what a delivery tells anew.

    Parameters
    ----------
    row : mapping
        The delivery that tells of the new identity.

    Returns
    -------
    list of Before
    bool
        Whether something of it is being sent at this moment.
    """
    now = store.now()
    found = [
        other
        for other in rows(connection, row["study"], row["revision"])
        if (other.kind, other.destination) == (row["kind"], row["destination"])
        and (other.detail["for"], about(other._mapping)) == (row["detail"]["for"], about(row))
    ]
    busy = any(
        other.state in ("queued", "failed")
        and other.lease_until is not None
        and now < other.lease_until < now + _LEASED
        for other in found
    )
    return [
        Before(other.id, other.study, other.detail["as"], other.detail["sent"], bool(other.detail.get("taken_back")))
        for other in found
        if other.detail.get("sent")
    ], busy


def about(row: Mapping[Any, Any]) -> str:
    """Return what a delivery is about, whichever correction it tells: a review, a critical finding, or the results."""
    detail = row["detail"]
    return "" if detail["for"] == "result" else str(detail.get("about", row["cause"]))


def reports(connection: Connection, study: str, revision: int) -> tuple[tuple[str, str, str, str], ...]:
    """Return the UIDs of the reports (SR) that went out under identities of before, each once."""
    found = [row for row in rows(connection, study, revision) if row.kind == "sr"] if revision else []
    return tuple(sorted({tuple(uids) for row in found for uids in row.detail.get("sent", ())}))


def begin(connection: Connection, row: Mapping[str, Any], sent: list[Any]) -> bool:
    """Write down what is about to be sent, and as whose; return false when the identity is another by now."""
    table = store.study
    study = connection.execute(sa.select(table).where(table.c.id == row["study"])).first()
    if study is None or study.merged_into or study.revision != row["revision"]:
        return False
    said = {name: getattr(study, name) for name in _KEYS}
    _note(connection, row["id"], {"as": said, "sent": sent})
    return True


def add(connection: Connection, delivery: str, sent: list[Any]) -> None:
    """Write down what else turned out to have been sent."""
    detail = connection.execute(sa.select(store.delivery.c.detail).where(store.delivery.c.id == delivery)).scalar_one()
    new = [each for each in sent if each not in detail.get("sent", [])]
    _note(connection, delivery, {"sent": [*detail.get("sent", []), *new]})


def taken_back(connection: Connection, before: Sequence[Before]) -> None:
    """Write down that these are done with."""
    for each in before:
        _note(connection, each.delivery, {"taken_back": True})


def _note(connection: Connection, delivery: str, more: Mapping[str, Any]) -> None:
    table = store.delivery
    detail = connection.execute(sa.select(table.c.detail).where(table.c.id == delivery)).scalar_one()
    connection.execute(table.update().where(table.c.id == delivery).values(detail={**detail, **more}))

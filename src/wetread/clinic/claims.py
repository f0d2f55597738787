"""Who is reading which study: claimed, renewed while it is worked on, given back, handed over to somebody else.

A claim says who is reading, so that two do not read the same study. It runs out by itself, and then anybody may take
it: nothing stays behind with a reader who went home.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from wetread.clinic import audit, store
from wetread.clinic.access import RIGHTS, Right, Role
from wetread.clinic.store import Store
from wetread.errors import ClinicError, ConflictError, NotFoundError

LIFE = timedelta(minutes=15)
PATIENCE = 4  # a study that was handed over waits for its reader so many times as long


@dataclass(frozen=True)
class Held:
    """What a reader holds: how many studies, and those of them that others handed over and that are not opened yet."""

    count: int
    handed: tuple[tuple[str, str], ...]  # study, and who gave it


def claim(
    database: Store, site: str, study: str, reader: str, *, life: timedelta = LIFE, now: datetime | None = None
) -> datetime:
    """Claim a study, or prolong one's own claim; return until when it holds.

    Raises
    ------
    NotFoundError
        When the site has no such study.
    ConflictError
        When it is signed, or another reader holds it.
    """
    now = now or store.now()
    with database.write() as connection:
        open_study(connection, site, study)
        return hold(connection, site, study, reader, now, life)


def release(database: Store, site: str, study: str, reader: str) -> None:
    """Give one's claim back; nothing happens when there is none.

    Raises
    ------
    NotFoundError
        When the site has no such study.
    """
    with database.write() as connection:
        find(connection, site, study)
        gone = connection.execute(
            store.claim.delete().where(store.claim.c.study == study, store.claim.c.reader == reader)
        )
        if gone.rowcount:
            store.emit(connection, "study.released", site, study)
            audit.record(connection, site, reader, "study.released", study)


def hand_over(
    database: Store,
    site: str,
    study: str,
    reader: str,
    to: str,
    *,
    life: timedelta = LIFE,
    now: datetime | None = None,
) -> datetime:
    """Give a study that one holds, or that nobody holds, to another reader; return until when it waits for them.

    Raises
    ------
    NotFoundError
        When the site has no such study.
    ConflictError
        When it is signed, or somebody else holds it.
    ClinicError
        When `to` is nobody who reads at this site, or oneself.
    """
    now, table = now or store.now(), store.claim
    with database.write() as connection:
        open_study(connection, site, study)
        if to == reader:
            raise ClinicError(f"to {to[:64]!r}: that is you; name another reader")
        if to not in readers(connection, site, now):
            raise ClinicError(f"to {to[:64]!r}: nobody of this name reads here; see GET /api/v1/readers")
        hold(connection, site, study, reader, now, life)
        until = now + PATIENCE * life
        given = {"reader": to, "at": now, "expires_at": until, "handed_by": reader}
        connection.execute(table.update().where(table.c.study == study).values(given))
        store.emit(connection, "study.handed_over", site, study, {"from": reader, "to": to})
        audit.record(connection, site, reader, "study.handed_over", study, {"to": to})
    return until


def readers(connection: Connection, site: str, now: datetime) -> list[str]:
    """Return the names of those who may read at a site: accounts in force, and who is signed in by a link."""
    roles = [str(role) for role in Role if Right.REVIEW in RIGHTS[role]]
    people, tokens = store.account.c, store.token.c
    named = sa.select(people.name).where(people.site == site, people.role.in_(roles), people.disabled_at.is_(None))
    here = sa.select(tokens.name).where(
        tokens.site == site, tokens.role.in_(roles), tokens.kind == "session", tokens.account.is_(None),
        tokens.revoked_at.is_(None), tokens.expires_at > now,
    )  # fmt: skip
    return sorted(connection.execute(sa.union(named, here)).scalars())


def held(connection: Connection, site: str, reader: str, now: datetime) -> Held:
    """Return what a reader holds at a site."""
    claims, studies = store.claim.c, store.study.c
    rows = connection.execute(
        sa.select(claims.study, claims.handed_by)
        .join(store.study, studies.id == claims.study)
        .where(claims.reader == reader, claims.expires_at > now, studies.site == site, studies.listed)
        .order_by(claims.at)
    ).all()
    return Held(len(rows), tuple((row.study, row.handed_by) for row in rows if row.handed_by is not None))


def find(connection: Connection, site: str, study: str) -> Row[Any]:
    """Return the row of a study; raise `NotFoundError` when the site has none such."""
    row = connection.execute(
        sa.select(store.study).where(store.study.c.id == study, store.study.c.site == site)
    ).first()
    if row is None:
        raise NotFoundError(f"study {study[:64]}: no such study at this site")
    return row


def open_study(connection: Connection, site: str, study: str) -> Row[Any]:
    """Return the row of a study that can be read; raise `ConflictError` when it is signed or merged away."""
    row = find(connection, site, study)
    if row.reading == "signed":
        raise ConflictError(f"study {study}: signed already; it cannot be changed")
    if row.merged_into:
        raise ConflictError(f"study {study}: was merged into study {row.merged_into}; read that one")
    return row


def hold(connection: Connection, site: str, study: str, reader: str, now: datetime, life: timedelta) -> datetime:
    """Take or prolong the claim on a study, within a transaction; return until when it holds.

    Raises
    ------
    ConflictError
        When another reader holds it.
    """
    table = store.claim
    there = connection.execute(sa.select(table).where(table.c.study == study)).first()
    if there is not None and there.reader != reader and there.expires_at > now:
        raise ConflictError(f"study {study}: claimed by {there.reader} until {there.expires_at:%H:%M} UTC")
    until = now + life
    mine = there is not None and there.reader == reader and there.expires_at > now
    if there is not None:
        values = {"reader": reader, "at": there.at if mine else now, "expires_at": until, "handed_by": None}
        connection.execute(table.update().where(table.c.study == study).values(values))
    else:
        connection.execute(table.insert().values(study=study, reader=reader, at=now, expires_at=until))
    if not mine:
        store.emit(connection, "study.claimed", site, study, {"reader": reader})
        audit.record(connection, site, reader, "study.claimed", study)
    elif there is not None and there.handed_by is not None:
        store.emit(connection, "study.claimed", site, study, {"reader": reader, "handed_by": there.handed_by})
    return until

"""The filters of the worklist that a reader keeps: a name and what the page's address says, never what was searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import store
from wetread.clinic.store import Store
from wetread.errors import ClinicError, ConflictError, NotFoundError

MOST = 30  # of one reader


@dataclass(frozen=True)
class Filter:
    """A filter that is kept; `query` is parameter → value."""

    name: str
    query: dict[str, str]


def of(connection: Connection, site: str, reader: str) -> list[Filter]:
    """Return a reader's filters by name."""
    table = store.saved_filter.c
    rows = connection.execute(
        sa.select(table.name, table.query).where(table.site == site, table.reader == reader).order_by(table.name)
    )
    return [Filter(row.name, row.query) for row in rows]


def save(database: Store, site: str, reader: str, name: str, query: Mapping[str, str]) -> Filter:
    """Keep a filter; one of the same name is replaced.

    Raises
    ------
    ClinicError
        For a name that cannot be.
    ConflictError
        When there are too many.
    """
    name = _name(name)
    table = store.saved_filter
    mine = table.c.site == site, table.c.reader == reader
    with database.write() as connection:
        connection.execute(table.delete().where(*mine, table.c.name == name))
        kept = connection.execute(sa.select(sa.func.count()).select_from(table).where(*mine)).scalar_one()
        if kept >= MOST:
            raise ConflictError(f"filter {name!r}: you keep {MOST} already; forget one first")
        connection.execute(
            table.insert().values(
                id=store.new_id(), site=site, reader=reader, name=name, query=dict(query), at=store.now()
            )
        )
    return Filter(name, dict(query))


def delete(database: Store, site: str, reader: str, name: str) -> None:
    """Forget a filter.

    Raises
    ------
    ClinicError
        For a name that cannot be.
    NotFoundError
        When the reader keeps none of this name.
    """
    name, table = _name(name), store.saved_filter.c
    with database.write() as connection:
        gone = connection.execute(
            store.saved_filter.delete().where(table.site == site, table.reader == reader, table.name == name)
        )
    if not gone.rowcount:
        raise NotFoundError(f"filter {name[:64]!r}: you keep none of this name")


def _name(name: str) -> str:
    name = name.strip()
    if not 0 < len(name) <= 64 or not name.isprintable() or "/" in name:
        raise ClinicError(f"name {name[:80]!r}: must be 1 to 64 printable characters, without a slash")
    return name

"""The processes that work on one database: who is alive, and who does what only one may do.

On SQLite there is one. On PostgreSQL each gives a sign of life every few seconds, by the database's clock, so that the
machines' own may differ; the leader is who holds an advisory lock, which goes with its connection.
"""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from wetread.clinic import store
from wetread.clinic.store import Store

BEAT_S = 10.0
ALIVE = timedelta(seconds=4 * BEAT_S)
_FORGOTTEN = timedelta(hours=1)


class Presence:
    """What the others see of this process.

    Parameters
    ----------
    database : Store
    key : str
        An id that no other process has.
    kind : str
        ``serve`` or ``work``.
    models : callable
        Gives the ids of the models that it serves.
    """

    def __init__(self, database: Store, key: str, kind: str, models: Callable[[], Sequence[str]]) -> None:
        self.database, self.key, self.kind, self._models = database, key, kind, models

    def enter(self) -> None:
        """Give the first sign of life, and forget those that are gone."""
        self.beat()
        table, host = store.process, socket.gethostname()
        with self.database.write(ordered=False) as connection:
            for row in connection.execute(sa.select(table).where(table.c.id != self.key)).all():
                if not self.database.shared or (row.host == host and not _runs(row.pid)):
                    connection.execute(table.delete().where(table.c.id == row.id))

    def beat(self) -> None:
        """Give a sign of life, and forget those that have given none for long."""
        table = store.process
        said = {"kind": self.kind, "host": socket.gethostname(), "pid": os.getpid(), "models": list(self._models())}
        with self.database.write(ordered=False) as connection:
            now = _now(connection)
            mine = table.update().where(table.c.id == self.key).values(seen_at=now, **said)
            if connection.execute(mine).rowcount == 0:
                connection.execute(table.insert().values(id=self.key, started_at=now, seen_at=now, **said))
            connection.execute(table.delete().where(table.c.seen_at < now - _FORGOTTEN))

    def leave(self) -> None:
        """Say goodbye."""
        with self.database.write(ordered=False) as connection:
            connection.execute(store.process.delete().where(store.process.c.id == self.key))

    def others(self) -> list[dict[str, Any]]:
        """Return the other processes that are alive."""
        return [row for row in alive(self.database) if row["id"] != self.key]


def alive(database: Store) -> list[dict[str, Any]]:
    """Return the processes that are alive, those that started first at the front."""
    table = store.process
    with database.read() as connection:
        since = _now(connection) - ALIVE
        rows = connection.execute(sa.select(table).where(table.c.seen_at > since).order_by(table.c.started_at))
        return [dict(row) for row in rows.mappings()]


def counted(connection: Connection) -> list[tuple[str, int]]:
    """Return how many processes of each kind are alive."""
    table = store.process.c
    since = _now(connection) - ALIVE
    found = sa.select(table.kind, sa.func.count()).where(table.seen_at > since).group_by(table.kind)
    return [(kind, count) for kind, count in connection.execute(found)]


class Leader:
    """The one process among several that does what must not be done twice at a time.

    Parameters
    ----------
    database : Store
    what : str
        What it does; there is a leader for each. To be asked by one thread only.
    """

    def __init__(self, database: Store, what: str) -> None:
        self.database, self._key = database, zlib.crc32(f"wetread {what}".encode())
        self._connection: Connection | None = None

    def leads(self) -> bool:
        """Return whether this process leads, and lead when nobody does."""
        if not self.database.shared:
            return True
        try:
            if self._connection is None:
                return self._try()
            self._connection.execute(sa.select(sa.literal(1)))  # the lock goes with the connection
        except SQLAlchemyError:
            self.resign()
            return False
        return True

    def resign(self) -> None:
        """Let somebody else lead."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _try(self) -> bool:
        connection = self.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            if connection.execute(sa.select(sa.func.pg_try_advisory_lock(self._key))).scalar():
                self._connection = connection
                return True
        except SQLAlchemyError:
            connection.invalidate()
            raise
        finally:
            if self._connection is None:
                connection.close()
        return False


def _runs(pid: int) -> bool:
    """Tell whether another process of this machine has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def _now(connection: Connection) -> datetime:
    if connection.dialect.name != "postgresql":
        return store.now()
    found: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return found

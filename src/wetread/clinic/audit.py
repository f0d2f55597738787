"""Who did what, when: an append-only table whose rows are chained by hash.

A row's hash covers its contents and the hash of the row before, so that a row that was changed, moved or taken out
breaks the chain, and triggers refuse to change or remove one (migration 0002). What no chain shows by itself is that
its end was cut off: keep the hash of its head somewhere else now and then, and give it to `examine`.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from wetread.clinic import store
from wetread.clinic.store import Store

FIRST = "0" * 64
_LAST = sa.select(store.audit.c.hash).order_by(store.audit.c.seq.desc()).limit(1)
LOOK_S = 300.0  # looks of one session at the same thing within this time are one


@dataclass(frozen=True)
class Verdict:
    """What `examine` found.

    `rows` that were looked at, the hash of the last one (`head`), the `seq` of the first row that breaks the chain, and
    whether the expected hash is missing from it. The chain is `whole` when nothing is wrong.
    """

    rows: int
    head: str
    broken: int | None
    missing: bool

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return self.broken is None and not self.missing


def record(
    connection: Connection, site: str, actor: str, action: str, what: str, detail: Mapping[str, Any] | None = None
) -> None:
    """Add a row, inside the transaction of the deed itself.

    Parameters
    ----------
    connection : Connection
        Of `Store.write`: writers take turns, so that no two rows follow the same one.
    site, actor, action : str
        Where, who, and a dotted verb such as ``review.signed``.
    what : str
        The identifier of what it was done to.
    detail : mapping, optional
        JSON values; no names of patients.
    """
    last = connection.execute(_LAST).scalar()
    row: dict[str, Any] = {
        "at": store.now(),
        "site": site,
        "actor": actor,
        "action": action,
        "object": what,
        "detail": dict(detail or {}),
        "prev_hash": last or FIRST,
    }
    connection.execute(store.audit.insert(), row | {"hash": _hash(row)})


def verify(database: Store) -> int | None:
    """Return the `seq` of the first row that breaks the chain, or None for a whole one."""
    return examine(database).broken


def examine(database: Store, expect: str = "") -> Verdict:
    """Follow the chain from its first row to its last.

    Parameters
    ----------
    database : Store
    expect : str
        The hash that was the head at some time; when no row has it any more, the end was cut off and grown again.
    """
    before, rows, found = FIRST, 0, not expect
    with database.read() as connection:
        for row in connection.execute(sa.select(store.audit).order_by(store.audit.c.seq)).yield_per(1000).mappings():
            if row["prev_hash"] != before or _hash(row) != row["hash"]:
                return Verdict(rows, before, int(row["seq"]), not found)
            before, rows = row["hash"], rows + 1
            found = found or before == expect.lower()
    return Verdict(rows, before, None, not found)


def head(database: Store) -> str:
    """Return the hash of the last row, to be kept where whoever owns the database cannot write."""
    with database.read() as connection:
        last = connection.execute(_LAST).scalar()
    return last or FIRST


def rows(
    database: Store,
    *,
    actor: str | None = None,
    action: str | None = None,
    what: str | None = None,
    since: datetime | None = None,
    last: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Give the rows in their order, times as ISO 8601: of one actor, action or object, since a time, the last so many.

    An `action` that ends in a dot stands for all that begin with it.
    """
    table = store.audit.c
    wanted = sa.select(store.audit)
    if actor is not None:
        wanted = wanted.where(table.actor == actor)
    if action is not None:
        wanted = wanted.where(
            table.action.startswith(action, autoescape=True) if action.endswith(".") else table.action == action
        )
    if what is not None:
        wanted = wanted.where(table.object == what)
    if since is not None:
        wanted = wanted.where(table.at >= since)
    if last is not None:
        newest = wanted.order_by(table.seq.desc()).limit(last).subquery()
        wanted = sa.select(newest).order_by(newest.c.seq)
    else:
        wanted = wanted.order_by(table.seq)
    with database.read() as connection:
        for row in connection.execute(wanted).yield_per(1000).mappings():
            yield dict(row) | {"at": row["at"].isoformat()}


class Looks:
    """Who looked at what: one row for the looks of one session at the same thing within `LOOK_S`.

    A page loads a study, then its frames, then asks again; that is one look. The memory is this process's own, so
    that another process may note the same look again, and none goes unnoted.
    """

    def __init__(self, size: int = 10_000) -> None:
        self._size, self._lock = size, threading.Lock()
        self._noted: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def note(self, database: Store, site: str, actor: str, token: str, action: str, what: str) -> None:
        """Record a look, before what was looked at is handed out."""
        key, now = (token, action, what), time.monotonic()
        with self._lock:
            if now - self._noted.get(key, -LOOK_S) < LOOK_S:
                return
        with database.write() as connection:
            record(connection, site, actor, action, what)
        with self._lock:
            self._noted[key] = now
            self._noted.move_to_end(key)
            while len(self._noted) > self._size:
                self._noted.popitem(last=False)


def _hash(row: Mapping[str, Any] | RowMapping) -> str:
    names = ("site", "actor", "action", "object", "detail", "prev_hash")
    content = {name: row[name] for name in names} | {"at": row["at"].isoformat()}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

"""Who did what, when: an append-only table whose rows are chained by hash.

A row's hash covers its contents and the hash of the row before, so that a row changed or taken out later
breaks the chain. The chain shows tampering; it cannot prevent it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import store
from wetread.clinic.store import Store

FIRST = "0" * 64


def record(
    connection: Connection, site: str, actor: str, action: str, what: str, detail: Mapping[str, Any] | None = None
) -> None:
    """Add a row, inside the transaction of the deed itself.

    Parameters
    ----------
    site, actor, action : str
        Where, who, and a dotted verb such as ``review.signed``.
    what : str
        The identifier of what it was done to.
    detail : mapping, optional
        JSON values; no names of patients.
    """
    last = connection.execute(sa.select(store.audit.c.hash).order_by(store.audit.c.seq.desc()).limit(1)).scalar()
    row: dict[str, Any] = {
        "at": store.now(),
        "site": site,
        "actor": actor,
        "action": action,
        "object": what,
        "detail": dict(detail or {}),
        "prev_hash": last or FIRST,
    }
    connection.execute(store.audit.insert().values(**row, hash=_hash(row)))


def verify(database: Store) -> int | None:
    """Return the `seq` of the first row that breaks the chain, or None for a whole one."""
    before = FIRST
    with database.read() as connection:
        for row in connection.execute(sa.select(store.audit).order_by(store.audit.c.seq)).yield_per(1000).mappings():
            if row["prev_hash"] != before or _hash(dict(row)) != row["hash"]:
                return int(row["seq"])
            before = row["hash"]
    return None


def _hash(row: Mapping[str, Any]) -> str:
    names = ("site", "actor", "action", "object", "detail", "prev_hash")
    content = {name: row[name] for name in names} | {"at": row["at"].isoformat()}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

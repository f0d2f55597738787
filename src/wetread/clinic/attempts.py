"""How often somebody may try to log in: leaking buckets in the database, so that all processes count together.

Each attempt adds one drop to the bucket of the account and to that of the address, each drop leaks away after a
while, and a full bucket refuses. An attempt is counted before the password is looked at, so that many at once
count as many; a good one takes its drops back. Keys are kept as digests: people type passwords into the wrong field.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from wetread.clinic import store
from wetread.clinic.store import Store
from wetread.errors import DeniedError


@dataclass(frozen=True)
class Limit:
    """`burst` attempts at once, then one every `every_s` seconds."""

    burst: int
    every_s: float


ACCOUNT = Limit(10, 60.0)
ADDRESS = Limit(50, 10.0)  # a whole department may share one
_FORGOTTEN = timedelta(seconds=max(limit.burst * limit.every_s for limit in (ACCOUNT, ADDRESS)))


class ThrottledError(DeniedError):
    """Too many attempts.

    Parameters
    ----------
    message : str
        One line.
    seconds : int
        After which the next attempt is let through.
    """

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


def limits(login: str, address: str) -> dict[str, Limit]:
    """Return the buckets of one attempt.

    Parameters
    ----------
    login : str
        The account's name, as names are compared; it need not exist.
    address : str
        Where it comes from.
    """
    return {_digest(f"account {login}"): ACCOUNT, **from_address(address)}


def from_address(address: str, way: str = "address") -> dict[str, Limit]:
    """Return the bucket of an address alone, for attempts that name no account.

    Addresses of one IPv6 network (/64) count as one: a single machine has them all. What any page of another site can
    make a browser do is a `way` with a bucket of its own: it must not fill that of the reading room's log-ins.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        pass
    else:
        if isinstance(ip, ipaddress.IPv6Address):
            ip = ip.ipv4_mapped or ip
        address = str(ipaddress.ip_network(f"{ip}/64", strict=False)) if ip.version == 6 else str(ip)
    return {_digest(f"{way} {address}"): ADDRESS}


def take(database: Store, keys: Mapping[str, Limit]) -> None:
    """Count an attempt.

    Raises
    ------
    ThrottledError
        When one of the buckets is full; then nothing is counted.
    """
    table = store.attempt
    with database.write() as connection:
        now = store.now()
        connection.execute(table.delete().where(table.c.at < now - _FORGOTTEN))
        rows = {row.key: row for row in connection.execute(sa.select(table).where(table.c.key.in_(keys)))}
        levels = {
            key: _leaked(rows[key].level, rows[key].at, now, limit) + 1 if key in rows else 1.0
            for key, limit in keys.items()
        }
        wait = max((level - keys[key].burst) * keys[key].every_s for key, level in levels.items())
        if wait > 0:
            seconds = math.ceil(wait)
            raise ThrottledError(f"too many attempts to log in; try again in {seconds} s", seconds)
        for key, level in levels.items():
            if key in rows:
                connection.execute(table.update().where(table.c.key == key).values(level=level, at=now))
            else:
                connection.execute(table.insert().values(key=key, level=level, at=now))


def forgive(connection: sa.Connection, keys: Mapping[str, Limit]) -> None:
    """Take back an attempt that was good: empty the account's bucket, and take one drop out of the address's."""
    table = store.attempt
    for key, limit in keys.items():
        if limit is ACCOUNT:
            connection.execute(table.delete().where(table.c.key == key))
        else:
            connection.execute(
                table.update().where(table.c.key == key, table.c.level >= 1).values(level=table.c.level - 1)
            )


def _leaked(level: float, at: datetime, now: datetime, limit: Limit) -> float:
    """Return what is left in a bucket; a clock that was set back lets nothing flow in again."""
    return max(0.0, level - max(0.0, (now - at).total_seconds()) / limit.every_s)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()

"""Which of two orders a list has now: by AI, or by arrival, turn about by blocks of site and shift.

Readers share one list, so studies of two orders cannot wait in it side by side: the whole list of a site is in one
order for a whole shift. Blocks come in pairs, of which a coin gives one to either order; so both have the same number
of shifts, the first of a pair cannot be foreseen, and the second is the other one. A study belongs to the block in
which it arrived. `improve.experiment` begins and ends experiments; nothing here writes but `assign`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import store

AI, ARRIVAL = "ai", "arrival"
KIND = "experiment"


@dataclass(frozen=True)
class Rota:
    """Where the blocks begin.

    Attributes
    ----------
    shifts : tuple of str
        When each shift begins, ``"07:00"``, in `zone`; empty for blocks of `minutes`.
    zone : str
    minutes : float
        Length of a block, for departments without shifts and for simulations.
    """

    shifts: tuple[str, ...]
    zone: str
    minutes: float


@dataclass(frozen=True)
class Experiment:
    """One experiment, as its row has it."""

    id: str
    site: str
    plan: dict[str, Any]
    salt: str
    actor: str
    started_at: datetime
    ended_at: datetime | None
    ended: str | None
    reason: str

    @property
    def rota(self) -> Rota:
        """Where its blocks begin."""
        return Rota(tuple(self.plan["shifts"]), self.plan["zone"], float(self.plan["block_minutes"]))

    def over(self, at: datetime) -> bool:
        """Return whether as many blocks as were planned have passed; then the list is AI's again, by itself."""
        return self.block(at).number >= int(self.plan["blocks"])

    def block(self, at: datetime) -> Block:
        """Return the block that a moment is in."""
        number, since = self._block(at)
        first = _coin(self.salt, number // 2)
        return Block(number, since, ARRIVAL if (number % 2 == 0) == first else AI)

    def _block(self, at: datetime) -> tuple[int, datetime]:
        rota = self.rota
        if rota.shifts:
            number, since = _shift(rota, at)
            return number - _shift(rota, self.started_at)[0], since
        length = timedelta(minutes=rota.minutes)
        number = (at - self.started_at) // length
        return number, self.started_at + number * length


@dataclass(frozen=True)
class Block:
    """One shift at one site: the how manieth since the start, when it began, and in which order its list is."""

    number: int
    since: datetime
    arm: str


def running(connection: Connection, site: str) -> Experiment | None:
    """Return the experiment that is under way at a site."""
    table = store.experiment
    row = connection.execute(sa.select(table).where(table.c.site == site, table.c.ended_at.is_(None))).first()
    return Experiment(*row) if row else None


def by_arrival(connection: Connection, site: str, now: datetime) -> bool:
    """Return whether an experiment has the list of a site in the order of arrival now."""
    found = running(connection, site)
    return found is not None and found.block(now).arm == ARRIVAL and not found.over(now)


def latest(connection: Connection, now: datetime) -> tuple[str, ...]:
    """Return which block each experiment that is under way is in: it changes when a list is to be ordered anew."""
    table = store.experiment
    rows = connection.execute(sa.select(table).where(table.c.ended_at.is_(None)).order_by(table.c.id))
    found = [Experiment(*row) for row in rows]
    return tuple(f"{one.id} {'over' if one.over(now) else one.block(now).number}" for one in found)


def assign(connection: Connection, site: str, study: str, now: datetime) -> None:
    """Write down to which block a study belongs that just arrived."""
    found = running(connection, site)
    if found is None or found.over(now):
        return
    block = found.block(now)
    values = {"study": study, "kind": KIND, "unit": found.id, "arm": block.arm, "block": f"{block.number:06d}"}
    connection.execute(store.assignment.insert().values(**values, at=now))


def _coin(salt: str, pair: int) -> bool:
    return bool(hashlib.sha256(f"{salt} {pair}".encode()).digest()[0] & 1)


def _shift(rota: Rota, at: datetime) -> tuple[int, datetime]:
    """Return the how manieth shift a moment is in, counted from the year 1, and when it began on the site's clocks.

    A shift that would begin in an hour which the clocks skip begins when a clock that nobody moved shows it; of an
    hour that comes twice the first counts. Two days back, as clocks have skipped whole days, too.
    """
    zone, shifts = ZoneInfo(rota.zone), sorted(rota.shifts)
    today = at.astimezone(zone).date()
    days = [today + timedelta(days=n) for n in (-2, -1, 0, 1)]
    starts = (
        (day.toordinal() * len(shifts) + n, datetime.combine(day, time.fromisoformat(shift), zone).astimezone(UTC))
        for day in days
        for n, shift in enumerate(shifts)
    )
    return max(one for one in starts if one[1] <= at)

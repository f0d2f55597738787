"""Numbers as they may be shown: never without how many they rest on, and undefined where there is nothing to divide by.

Intervals are of 95 %. What they are of counts as independent; several studies of one patient make them a little too
narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.evaluate.intervals import Z, wilson

FEW = 10  # below it a share is shown as its counts, without a percentage
MOST = 50_000  # rows that are looked at for times, the newest


@dataclass(frozen=True)
class Share:
    """So many of so many; `low` to `high` by Wilson. All but the counts is None when there are none."""

    part: int
    whole: int

    @property
    def value(self) -> float | None:
        """The share itself."""
        return self.part / self.whole if self.whole else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """From where to where it may be."""
        if not self.whole:
            return None
        low, high = wilson(self.part, self.whole)
        return float(low), float(high)


@dataclass(frozen=True)
class Rate:
    """So many in so many days; the interval by Byar's approximation to Poisson's exact one."""

    count: int
    days: float

    @property
    def value(self) -> float:
        """How many a day."""
        return self.count / self.days

    @property
    def interval(self) -> tuple[float, float]:
        """From where to where it may be, a day."""
        return _byar(self.count, -Z) / self.days, _byar(self.count + 1, Z) / self.days


def _byar(count: int, z: float) -> float:
    return float(count * (1 - 1 / (9 * count) + z / (3 * math.sqrt(count))) ** 3) if count else 0.0


@dataclass(frozen=True)
class Spread:
    """How values lie, in the unit that they came in.

    Attributes
    ----------
    count : int
    median : float or None
        None when there is nothing.
    p95 : float or None
        None below 20 values, of which none would lie above it.
    interval : tuple of float or None
        Of the median, by order statistics, which assumes no shape; None below 6 values, too few for 95 %.
    """

    count: int
    median: float | None
    p95: float | None
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Make it of values in any order."""
        found = np.sort(np.fromiter(values, dtype=np.float64))
        n = len(found)
        low = _below(n)
        return cls(
            n,
            float(np.median(found)) if n else None,
            float(np.percentile(found, 95)) if n >= 20 else None,
            (float(found[low]), float(found[n - 1 - low])) if low is not None else None,
        )


@lru_cache(1024)
def _below(count: int) -> int | None:
    """Return how many values lie below the interval of a median: at most 2.5 % of the binomial of 1/2 do so."""
    total, term, k = 0.0, -count * math.log(2), 0
    while count and (total := total + math.exp(term)) <= 0.025:
        k += 1
        term += math.log((count - k + 1) / k)
    return k - 1 if k else None


@dataclass(frozen=True)
class Period:
    """From `since` to before `until`."""

    since: datetime
    until: datetime

    @classmethod
    def last(cls, days: float, now: datetime) -> Period:
        """Return the last so many days."""
        return cls(now - timedelta(days=days), now)

    @property
    def days(self) -> float:
        """How long it is."""
        return (self.until - self.since) / timedelta(days=1)

    def holds(self, column: sa.ColumnElement[datetime]) -> sa.ColumnElement[bool]:
        """Return the condition that a moment is in it."""
        return sa.and_(column >= self.since, column < self.until)

    def steps(self, step: timedelta) -> list[datetime]:
        """Return the beginnings of the steps that it has, counted from 1970 in UTC, the first perhaps before it."""
        seconds = int(step.total_seconds())
        first, last = int(self.since.timestamp()) // seconds, math.ceil(self.until.timestamp() / seconds)
        return [datetime.fromtimestamp(at * seconds, UTC) for at in range(first, last)]


def walk(connection: Connection) -> None:
    """Have PostgreSQL walk from the rows of the period to what belongs to each, for the rest of this transaction.

    It would rather read whole tables, since it takes each step for a wait on a disk; with a long history the tables
    are large and the period is small. SQLite knows no other way.
    """
    if connection.dialect.name == "postgresql":
        for way in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"):
            connection.execute(sa.select(sa.func.set_config(way, "off", True)))


def at_site(site: str, table: sa.Table) -> sa.ColumnElement[bool]:
    """Return the condition that a row is of a site, written so that no planner begins with all that the site has."""
    return table.c.site.concat("") == site


def step_of(column: sa.ColumnElement[datetime], step: timedelta) -> sa.ColumnElement[int]:
    """Return the expression for when the step of `Period.steps` begins that a moment is in, in s since 1970."""
    seconds = sa.extract("epoch", column)
    return sa.cast(seconds - seconds % sa.literal_column(str(int(step.total_seconds()))), sa.BigInteger)


def by_step(found: Sequence[tuple[int, int]], period: Period, step: timedelta) -> list[int]:
    """Return how many there were in each step of a period, in their order, from pairs of `step_of` and a count."""
    counts = {int(at): int(count) for at, count in found}
    return [counts.get(int(at.timestamp()), 0) for at in period.steps(step)]

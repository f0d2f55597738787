"""A stretch of a department's life: which arrival comes when, in simulated time, and how long that is in real time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate, count, islice

from wetread.errors import ConfigError
from wetread.simulate import department, pattern
from wetread.simulate.patients import Arrival
from wetread.simulate.pattern import Burst, Pattern
from wetread.simulate.truth import Clock

MOST = 10_000_000
"""Patients of a schedule."""


def patients(per_day: float, days: float) -> int:
    """Return how many patients come within some days; raises `ConfigError` for numbers that cannot be."""
    pattern.check(days)
    if not 0 < per_day * days <= MOST:
        raise ConfigError(f"per-day = {per_day}: must be above 0, and at most {MOST} patients in all")
    return round(per_day * days)


@dataclass(frozen=True)
class Schedule:
    """Who comes when.

    Attributes
    ----------
    clock : Clock
    seed : int
    curve : Pattern
    number : int or None
        How many patients; None goes on for ever.
    days : float or None
        Within how many simulated days; None takes them as they come at `rate`.
    rate : float
        Mean arrivals a simulated minute, where `days` is None.
    bursts : sequence of Burst
        Besides.
    drift_at : float or None
        From which part on a drift is in force: of `days`, else of `number`.

    Raises
    ------
    ConfigError
        For one that cannot be.
    """

    clock: Clock
    seed: int
    curve: Pattern = pattern.FLAT
    number: int | None = None
    days: float | None = None
    rate: float = 6.0
    bursts: Sequence[Burst] = ()
    drift_at: float | None = None

    def __post_init__(self) -> None:
        if not 0.01 <= self.clock.speed <= 1e6:
            raise ConfigError(f"speed = {self.clock.speed}: must be at least 0.01, and at most a million")
        if not 1900 <= self.clock.start.year <= 2200:
            raise ConfigError(f"start = {self.clock.start:%Y-%m-%d}: must be in the years 1900 to 2200")
        if self.days is not None:
            pattern.check(self.days)
        if not 1e-4 <= self.rate <= 1e5:
            raise ConfigError(f"rate = {self.rate}: must be at least 0.0001 a minute, and at most 100000")
        if self.number is not None and not 0 <= self.number <= MOST:
            raise ConfigError(f"count = {self.number}: must be at most {MOST}")
        if self.days is None and self.bursts:
            raise ConfigError("burst: comes at a fraction of the whole time; give --days")
        if self.days is not None and self.number is None:
            raise ConfigError("days: how many patients come in them? give --count or --per-day")
        if self.number is None and self.drift_at is not None:
            raise ConfigError("drift-at: is a fraction of the whole; give --count, or --days with --per-day")

    def arrivals(self) -> Iterator[tuple[Arrival, float]]:
        """Yield each arrival and the real time since the one before, in s."""
        before = 0.0
        for number, (at_s, part) in enumerate(self._moments(), 1):
            phase = "" if self.drift_at is None else "after" if part >= self.drift_at else "before"
            at = self.clock.start + timedelta(seconds=at_s)
            yield Arrival(number, at, phase), (at_s - before) / self.clock.speed
            before = at_s

    def _moments(self) -> Iterator[tuple[float, float]]:
        """Yield when each patient comes, in simulated s from the start, and which part of the whole is over."""
        start = self.clock.start
        if self.days is not None:
            times = pattern.times(
                self.curve, self.number or 0, self.days, start=start, seed=self.seed, bursts=self.bursts
            )
            yield from ((float(at), float(at) / (self.days * pattern.DAY_S)) for at in times)
            return
        hour = start.hour + start.minute / 60 + start.second / 3600
        gaps = department.gaps(self.rate, seed=self.seed, hourly=self.curve.hours, start_hour=hour)
        for index, at in zip(count(), islice(accumulate(gaps), self.number)):
            yield at, index / (self.number or 1)

"""When patients come: weights of the hours and of the days of the week, and bursts on top.

A number of arrivals over a number of days is drawn as a Poisson process of which the count is known: each arrival is
an independent draw from the pattern (Kingman, *Poisson Processes*, 1993, section 2.4). Without a number of days the
process goes on for ever, see `department.gaps`.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wetread.errors import ConfigError
from wetread.simulate.department import weights

DAY_S = 86_400.0


@dataclass(frozen=True)
class Pattern:
    """Relative rates: of the 24 hours from midnight, and of the days from Monday to Sunday; >= 0, not all 0."""

    hours: tuple[float, ...] = (1.0,) * 24
    days: tuple[float, ...] = (1.0,) * 7

    def __post_init__(self) -> None:
        for name, count in (("hours", 24), ("days", 7)):
            given = getattr(self, name)
            if len(given) != count or not np.all(np.isfinite(given)) or min(given) < 0 or max(given) == 0:
                raise ConfigError(f"pattern: {name}: {count} weights >= 0 that are not all 0 are needed, got {given}")


FLAT = Pattern()
# An acute hospital: wards before the morning round, out-patients until the afternoon, ambulances by night.
DAY = Pattern(
    hours=(
        0.3, 0.25, 0.2, 0.2, 0.25, 0.4, 0.8, 1.3, 1.8, 2.2, 2.3, 2.1,
        1.7, 1.7, 1.8, 1.7, 1.4, 1.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4,
    ),
    days=(1.15, 1.1, 1.1, 1.1, 1.1, 0.75, 0.7),
)  # fmt: skip
NAMED = {"flat": FLAT, "day": DAY}


def read(text: str) -> Pattern:
    """Read a pattern: `flat`, `day`, 24 numbers between commas, or a file.

    A TOML file has `hours` (24 numbers) and may have `days` (7, from Monday); a CSV file has the columns `hour` (0 to
    23) and `weight`.

    Raises
    ------
    ConfigError
        For what is none, naming it.
    """
    if text in NAMED:
        return NAMED[text]
    if re.fullmatch(r"[\d.,\seE+-]+", text):
        return Pattern(tuple(weights(text)))
    path = Path(text)
    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            rows = {int(row["hour"]): float(row["weight"]) for row in csv.DictReader(content.splitlines())}
            return Pattern(tuple(rows.get(hour, 0.0) for hour in range(24)) if set(rows) <= set(range(24)) else ())
        found = tomllib.loads(content)
        if unknown := sorted(set(found) - {"hours", "days"}):
            raise ConfigError(f"{path}: unknown key {unknown[0]!r}; known are hours and days")
        return Pattern(**{name: tuple(float(weight) for weight in values) for name, values in found.items()})
    except OSError:
        raise ConfigError(
            f"pattern {text[:80]!r}: neither {' nor '.join(NAMED)}, 24 numbers, nor a TOML or CSV file"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not a pattern ({error}); hours = [24 numbers] as TOML, or CSV with hour,weight"
        ) from None


@dataclass(frozen=True)
class Burst:
    """So many arrivals on top of the pattern, from `at` (a fraction of the whole time) on, within so many minutes."""

    count: int
    at: float
    minutes: float = 1.0


def burst(text: str) -> Burst:
    """Read a burst, `COUNT@FRACTION` or `COUNT@FRACTION/MINUTES`.

    Raises
    ------
    ConfigError
        For what is none.
    """
    found = re.fullmatch(r"(\d{1,6})@(0?\.\d+|0|1)(?:/(\d+(?:\.\d+)?))?", text.strip())
    if found is None:
        raise ConfigError(f"burst {text[:40]!r}: write COUNT@FRACTION/MINUTES, e.g. 20@0.5/10")
    return Burst(int(found[1]), float(found[2]), float(found[3] or 1))


def check(days: float) -> None:
    """Refuse a stretch of time that is none."""
    if not 0 < days <= 3660:
        raise ConfigError(f"days = {days}: must be more than 0, and at most 3660")


def times(
    pattern: Pattern, count: int, days: float, *, start: datetime, seed: int, bursts: Sequence[Burst] = ()
) -> NDArray[np.float64]:
    """Draw when `count` patients come within `days`, those of the bursts besides.

    Parameters
    ----------
    pattern : Pattern
    count : int
        >= 0.
    days : float
        > 0.
    start : datetime
        When the first day begins, in the time of the hospital; it may be in the middle of a day.
    seed : int
    bursts : sequence of Burst

    Returns
    -------
    float64 array
        Seconds since `start`, sorted, 0 to 86400 `days`.

    Raises
    ------
    ConfigError
        For a time that is none, or in which the pattern lets nobody come.
    """
    check(days)
    rng, end = np.random.default_rng([seed, 7]), days * DAY_S
    into = start.minute * 60 + start.second + start.microsecond / 1e6
    edges = np.unique(np.clip(np.arange(0.0, end + 2 * 3600, 3600) - into, 0, end))
    hour = start.hour + np.arange(len(edges) - 1)
    weekday = (start.weekday() + hour // 24) % 7
    rate = np.asarray(pattern.hours)[hour % 24] * np.asarray(pattern.days)[weekday]
    mass = np.concatenate([[0.0], np.cumsum(rate * np.diff(edges))])
    if not mass[-1]:
        raise ConfigError(f"pattern: nobody comes within {days} days from {start:%A %H:%M}; choose another start")
    drawn = [np.interp(rng.random(count) * mass[-1], mass, edges)]
    drawn += [np.minimum(each.at * end + rng.random(each.count) * each.minutes * 60, end) for each in bursts]
    return np.sort(np.concatenate(drawn))

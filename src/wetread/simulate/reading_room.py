"""A reading room as a queue: whether reordering the worklist helps, and whom it costs what.

Patients arrive at random, readers read them one after another, and the AI gives each a rank; within a rank it is first
come, first served. A wait is the time in the room less the time of the reading itself, so that an interrupted reading
counts as waiting. The same patients are also read in the order in which they came, as the comparison.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wetread.errors import ConfigError
from wetread.evaluate.intervals import Interval, Z
from wetread.evaluate.metrics import FloatArray
from wetread.simulate.pattern import FLAT, Pattern

IntArray = NDArray[np.int64]

EDGE = 0.1
"""Share of a replication at either end that is not counted: the room fills there, and empties."""


MOST = 20_000_000
"""Patients of a simulation; they stand in memory."""


@dataclass(frozen=True)
class Kind:
    """Patients that are alike: what they are called in the results, their share, reading time and rank.

    Attributes
    ----------
    labels : tuple of str
        The lines of the results in which they count.
    share : float
        Of all patients, 0 to 1.
    minutes : float
        Mean of their reading times, which are exponential.
    rank : int
        0 is read first.
    """

    labels: tuple[str, ...]
    share: float
    minutes: float
    rank: int


@dataclass(frozen=True)
class Room:
    """A reading room.

    Attributes
    ----------
    kinds : tuple of Kind
        Their shares add up to 1.
    readers : int
    load : float
        Work that arrives in what the readers can do, 0 to 1, both exclusive.
    preemptive : bool
        Whether a reading is interrupted for a patient of a better rank, and resumed later.
    caps : tuple of float
        For each rank, the minutes after which a waiting patient is promoted; infinite for never.
    above : int
        The best rank above which promoted patients of worse ones go; 0 is above all.
    pattern : Pattern
        Relative rates of arrivals in the hours of the days of a week; the load is its mean over the week.

    Raises
    ------
    ConfigError
        For a value that is out of range, naming it.
    """

    kinds: tuple[Kind, ...]
    readers: int = 1
    load: float = 0.8
    preemptive: bool = True
    caps: tuple[float, ...] = (math.inf, math.inf)
    above: int = 0
    pattern: Pattern = FLAT

    def __post_init__(self) -> None:
        if not 1 <= self.readers <= 1000:
            raise ConfigError(f"readers = {self.readers}: give 1 to 1000")
        if not 0 < self.load < 1:
            raise ConfigError(f"load = {self.load:g}: must be above 0 and below 1, else the queue grows without end")
        if not 1e-9 <= self.load <= 0.9999:
            raise ConfigError(f"load = {self.load}: so near 0 or 1 nothing can be told; give at most 0.9999")
        for kind in self.kinds:
            if not 1e-3 <= kind.minutes <= 1e5:
                raise ConfigError(f"reading time of {kind.labels[-1]} = {kind.minutes:g}: give 0.001 to 100000 minutes")
        if wrong := [cap for cap in self.caps if not cap >= 0]:
            raise ConfigError(f"cap = {wrong[0]:g}: give minutes, 0 or more")

    @property
    def minutes(self) -> float:
        """Mean reading time over all patients."""
        return sum(kind.share * kind.minutes for kind in self.kinds)

    @property
    def rate(self) -> float:
        """Mean arrivals per minute."""
        return self.load * self.readers / self.minutes

    @property
    def labels(self) -> list[str]:
        """The lines of the results, in order: the first label of every kind, then the second."""
        return list(
            dict.fromkeys(label for column in zip(*(k.labels for k in self.kinds), strict=True) for label in column)
        )


def two_classes(
    prevalence: float = 0.1,
    sensitivity: float = 0.9,
    fpf: float = 0.1,
    minutes: float = 10.0,
    *,
    diseased: float | None = None,
    false_alarm: float | None = None,
) -> tuple[Kind, ...]:
    """Return the kinds of a room in which the AI flags or does not, and is right or not.

    Parameters
    ----------
    prevalence, sensitivity, fpf : float
        Share of patients with the disease; shares that the AI flags among them, and among the others.
    minutes : float
        Mean reading time.
    diseased, false_alarm : float, optional
        That of patients with the disease, and of patients without it whom the AI flags, where it is another.

    Raises
    ------
    ConfigError
        For a share outside 0 to 1.
    """
    for name, value in {"prevalence": prevalence, "sensitivity": sensitivity, "fpf": fpf}.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} = {value:g}: give a share, 0 to 1")
    sick = minutes if diseased is None else diseased
    return (
        Kind(("ai_positive", "diseased"), prevalence * sensitivity, sick, 0),
        Kind(("ai_negative", "diseased"), prevalence * (1 - sensitivity), sick, 1),
        Kind(("ai_positive", "healthy"), (1 - prevalence) * fpf, minutes if false_alarm is None else false_alarm, 0),
        Kind(("ai_negative", "healthy"), (1 - prevalence) * (1 - fpf), minutes, 1),
    )


# --- one run ----------------------------------------------------------------------------------------------------------


def arrivals(room: Room, count: int, rng: np.random.Generator) -> FloatArray:
    """Draw the times of a Poisson process whose rate may follow the hours, in minutes.

    Arrivals of unit rate are brought to the times at which so many are expected.
    """
    expected = np.cumsum(rng.exponential(size=count))
    weights = np.outer(room.pattern.days, room.pattern.hours).ravel()
    hours = np.arange(len(weights) + 1) * 60.0
    by_hour = np.concatenate([[0.0], np.cumsum(weights / weights.mean() * room.rate * 60)])
    period, rest = np.divmod(expected, by_hour[-1])
    return np.asarray(period * hours[-1] + np.interp(rest, by_hour, hours))


def waits(
    arrival: FloatArray,
    service: FloatArray,
    rank: IntArray,
    *,
    readers: int = 1,
    preemptive: bool = False,
    caps: Sequence[float] = (math.inf, math.inf),
    above: int = 0,
) -> FloatArray:
    """Let readers read patients, and return how long each waited.

    Parameters
    ----------
    arrival, service : ndarray [N]
        When each comes, ascending, and how long each is read, in minutes.
    rank : ndarray of int [N]
        0 to len(caps) - 1.
    readers, preemptive, caps, above
        As in `Room`.

    Returns
    -------
    ndarray of float64 [N]
        Time in the room less the time of reading.

    Notes
    -----
    Within a rank patients start, and are promoted, in the order in which they came; hence a queue for each rank will
    do, and one whose reading was interrupted stands first in it again. Nobody is interrupted for a promotion.
    """
    came, left, ranks = arrival.tolist(), service.tolist(), rank.tolist()
    done = [0.0] * len(came)
    queues: list[deque[int]] = [deque() for _ in caps]
    busy: list[tuple[float, int]] = []  # a heap of ends and patients

    def place(patient: int, now: float) -> int:
        group: int = ranks[patient]
        return 2 * min(group, above) if now - came[patient] >= caps[group] else 2 * group + 1

    following = 0
    while following < len(came) or busy:
        if busy and (following == len(came) or busy[0][0] <= came[following]):
            now, patient = heapq.heappop(busy)
            done[patient] = now
        else:
            now = came[following]
            queues[ranks[following]].append(following)
            if preemptive and len(busy) == readers:
                last = max(busy, key=lambda entry: (place(entry[1], now), entry[1]))
                if place(last[1], now) > place(following, now):
                    busy.remove(last)
                    heapq.heapify(busy)
                    left[last[1]] = last[0] - now
                    queues[ranks[last[1]]].appendleft(last[1])
            following += 1
        while len(busy) < readers:
            first = min(((place(queue[0], now), queue[0]) for queue in queues if queue), default=None)
            if first is None:
                break
            queues[ranks[first[1]]].popleft()
            heapq.heappush(busy, (now + left[first[1]], first[1]))
    return np.asarray(done) - arrival - service


# --- many runs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """Waits of some patients in minutes.

    Attributes
    ----------
    mean : Interval
        Over the replications.
    saved : Interval
        How much less the same patients wait than in the order of arrival.
    p99, longest : float
        99th percentile, and the longest wait of all replications.
    over : float
        Share that waited beyond the cap of its rank.
    """

    mean: Interval
    saved: Interval
    p99: float
    longest: float
    over: float


@dataclass(frozen=True)
class Outcome:
    """What a simulation gave: by arrival, of all patients, of each label; `waits` keeps the waits behind the means."""

    fifo: Line
    everyone: Line
    lines: dict[str, Line]
    waits: dict[str, FloatArray]

    def means(self) -> dict[str, float]:
        """Return the mean wait by arrival, and of each label in the order of the ranks."""
        return {"fifo": self.fifo.mean.value} | {label: line.mean.value for label, line in self.lines.items()}


def simulate(room: Room, patients: int = 400_000, replications: int = 20, seed: int = 0) -> Outcome:
    """Let patients through a room, in independent replications.

    Parameters
    ----------
    room : Room
    patients : int
        In all replications together, at most `MOST`.
    replications : int
        At least 5; intervals come from the spread between them.
    seed : int
        Not negative. The same seed gives the same patients.

    Raises
    ------
    ConfigError
        For fewer than 100 patients in a replication, fewer than 5 replications, or more patients than fit.
    """
    if replications < 5 or not 100 * replications <= patients <= MOST:
        raise ConfigError(
            f"patients = {patients} in {replications} replications: give at least 5 replications of 100 patients, "
            f"and at most {MOST} patients in all"
        )
    count = patients // replications
    kept = slice(int(EDGE * count), count - int(EDGE * count))
    shares = np.array([kind.share for kind in room.kinds])
    ranks = np.array([kind.rank for kind in room.kinds])
    found = []
    for source in np.random.SeedSequence(seed).spawn(replications):
        rng = np.random.default_rng(source)
        arrival = arrivals(room, count, rng)
        kind = rng.choice(len(shares), size=count, p=shares / shares.sum())
        service = rng.exponential(np.array([k.minutes for k in room.kinds])[kind])
        by_rank = waits(
            arrival,
            service,
            ranks[kind],
            readers=room.readers,
            preemptive=room.preemptive,
            caps=room.caps,
            above=room.above,
        )
        by_arrival = waits(arrival, service, np.zeros_like(kind), readers=room.readers, caps=(math.inf,))
        found.append((kind[kept], by_rank[kept], by_arrival[kept]))
    kind, by_rank, by_arrival = (np.stack(column) for column in zip(*found, strict=True))
    caps, every = np.asarray(room.caps)[ranks][kind], np.ones(kind.shape, bool)
    members = {
        label: np.isin(kind, [n for n, k in enumerate(room.kinds) if label in k.labels]) for label in room.labels
    }
    return Outcome(
        _line(every, by_arrival, by_arrival, caps),
        _line(every, by_rank, by_arrival, caps),
        {label: _line(member, by_rank, by_arrival, caps) for label, member in members.items()},
        {"fifo": by_arrival.ravel()} | {label: by_rank[member] for label, member in members.items()},
    )


def enough(room: Room, replications: int = 20) -> int:
    """Return how many patients it takes for a room to forget, before they are counted, that it was empty at first.

    It forgets by a factor e while ρ/(1 − √ρ)² patients arrive (the relaxation time of M/M/1), slowly near a load of 1.
    """
    forgets = room.load / (1 - math.sqrt(room.load)) ** 2
    return math.ceil(3 * forgets / EDGE) * replications


def _line(member: NDArray[np.bool_], waited: FloatArray, by_arrival: FloatArray, caps: FloatArray) -> Line:
    if not member.any():
        nothing = Interval(math.nan, math.nan, math.nan)
        return Line(nothing, nothing, math.nan, math.nan, math.nan)
    some = member.any(axis=1)  # a replication may have none of a rare kind
    mean, fifo = (each[some].mean(axis=1, where=member[some]) for each in (waited, by_arrival))
    found, limits = waited[member], caps[member]
    p99, longest, over = np.quantile(found, 0.99), found.max(), np.mean(found > limits)
    return Line(_interval(mean), _interval(fifo - mean), float(p99), float(longest), float(over))


def _interval(means: FloatArray) -> Interval:
    """Return the mean of replications with its 95 % interval by Student's t; without one when there are too few."""
    value = float(means.mean())
    if len(means) < 5:
        return Interval(value, math.nan, math.nan)
    half = student(len(means) - 1) * float(means.std(ddof=1)) / math.sqrt(len(means))
    return Interval(value, value - half, value + half)


def student(freedom: int) -> float:
    """Return the two-sided 95 % quantile of Student's t, by its expansion about the normal distribution's.

    Within .5 % from 4 degrees of freedom on (Abramowitz and Stegun 26.7.5).
    """
    terms = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
    )
    return Z + sum(term / float(freedom) ** power for power, term in enumerate(terms, 1))

"""What another priority rule would have done: the list of some days, read again at the times at which it was read.

Arrivals, results and the times at which somebody signed are those of the clinic; only the order is another. At each of
these times the study at the top of the list is taken, so that two rules can be compared with the same readers at the
same pace. Nothing is changed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import keys, priority, store, triage, turns
from wetread.clinic.priority import Decision, Priority, Rule, Scored

MOST = 20_000  # studies that are looked at, the newest


@dataclass(frozen=True)
class Arrival:
    """A study as it came: what was requested, what the models said, why they said nothing; and when it was signed."""

    study: str
    title: str
    received_at: datetime
    floor: Priority
    scored: tuple[Scored, ...]
    refusal: str | None
    signed_at: datetime | None


@dataclass(frozen=True)
class Place:
    """What becomes of a study under a rule: its class and why, when it is read, as the how manieth; None: not yet."""

    decision: Decision
    read_at: datetime | None
    position: int
    wait: timedelta
    over_cap: bool


@dataclass(frozen=True)
class Waits:
    """The waits of one class under one rule."""

    count: int
    median: timedelta
    p95: timedelta
    longest: timedelta
    over_cap: int


@dataclass(frozen=True)
class Move:
    """A study under both rules; `by` is how many places it moves up."""

    arrival: Arrival
    before: Place
    after: Place

    @property
    def by(self) -> int:
        """How many places it moves up; negative is down."""
        return self.before.position - self.after.position


@dataclass(frozen=True)
class Comparison:
    """Both rules over the same days: the waits by class (None over all), and who moves, the farthest first."""

    since: datetime
    studies: int
    signed: int
    before: dict[Priority | None, Waits]
    after: dict[Priority | None, Waits]
    up: tuple[Move, ...]
    down: tuple[Move, ...]
    other_class: int


def compare(found: Sequence[Arrival], before: Rule, after: Rule, since: datetime, now: datetime) -> Comparison:
    """Read the same studies under two rules.

    Parameters
    ----------
    found : sequence of Arrival
    before, after : Rule
        The one in force, and the other.
    since, now : datetime
        The days that are looked at.
    """
    old, new = replay(found, before, now), replay(found, after, now)
    moves = [Move(arrival, old[arrival.study], new[arrival.study]) for arrival in found]
    up = sorted((move for move in moves if move.by > 0), key=lambda move: -move.by)
    down = sorted((move for move in moves if move.by < 0), key=lambda move: move.by)
    return Comparison(
        since=since,
        studies=len(found),
        signed=sum(arrival.signed_at is not None for arrival in found),
        before=_waits(old.values()),
        after=_waits(new.values()),
        up=tuple(up),
        down=tuple(down),
        other_class=sum(move.before.decision.priority is not move.after.decision.priority for move in moves),
    )


def replay(found: Sequence[Arrival], rule: Rule, now: datetime) -> dict[str, Place]:
    """Read studies in the order of a rule, one at each time at which one was signed; return study → its place."""
    arrivals = sorted(found, key=lambda a: (a.received_at, a.study))
    times = sorted(a.signed_at for a in found if a.signed_at is not None)
    line, read_at, nth = _Line(rule), dict[str, datetime](), dict[str, int]()
    coming = iter(arrivals)
    following = next(coming, None)
    for moment in times:
        while following is not None and following.received_at <= moment:
            line.add(following)
            following = next(coming, None)
        taken = line.take(moment)
        if taken is not None:
            read_at[taken], nth[taken] = moment, len(nth) + 1
    while following is not None:
        line.add(following)
        following = next(coming, None)
    while (taken := line.take(now)) is not None:  # what still waits, in its order
        nth[taken] = len(nth) + 1
    places = {}
    for arrival in arrivals:
        end, decision = read_at.get(arrival.study), line.decisions[arrival.study]
        wait = (end or now) - arrival.received_at
        over = wait > rule.cap(decision.priority)
        places[arrival.study] = Place(decision, end, nth[arrival.study], wait, over)
    return places


class _Line:
    """The list of a rule as time goes by: who is in it, in which order."""

    def __init__(self, rule: Rule) -> None:
        self.rule, self.decisions, self.had = rule, dict[str, Decision](), dict[Priority, float]()
        self.waiting: dict[str, tuple[int, float, str]] = {}
        self.heap: list[tuple[int, float, str]] = []
        self.due: list[tuple[datetime, str, float]] = []
        self.heads: dict[Priority, list[tuple[float, str]]] = {cls: [] for cls in turns.CLASSES}

    def add(self, arrival: Arrival) -> None:
        """Take in a study that comes now."""
        decision = priority.decide(self.rule, arrival.floor, arrival.scored, refusal=arrival.refusal)
        self.decisions[arrival.study], cls = decision, decision.priority
        alone = place = keys.place(arrival.received_at - decision.ahead)
        if self.rule.turns(cls, False):
            place, self.had = turns.take(self.rule.ratio or 1.0, cls, self._first(), self.had)
            heapq.heappush(self.heads[cls], (place, arrival.study))
        self._put(arrival.study, self.rule.rank(cls, False), place)
        heapq.heappush(self.due, (priority.overdue_at(self.rule, cls, arrival.received_at), arrival.study, alone))

    def take(self, moment: datetime) -> str | None:
        """Promote what has reached its cap by a moment, then take the first study; None when none waits."""
        while self.due and self.due[0][0] <= moment:
            _, study, place = heapq.heappop(self.due)
            if study in self.waiting:
                self._put(study, self.rule.rank(self.decisions[study].priority, True), place)
        while self.heap:
            entry = heapq.heappop(self.heap)
            if self.waiting.get(entry[2]) == entry:
                del self.waiting[entry[2]]
                return entry[2]
        return None

    def _put(self, study: str, rank: int, place: float) -> None:
        self.waiting[study] = (rank, place, study)
        heapq.heappush(self.heap, self.waiting[study])

    def _first(self) -> dict[Priority, float]:
        """Return the places of the first of each class that takes turns."""
        found = {}
        for cls, heap in self.heads.items():
            while heap and self.waiting.get(heap[0][1], (0, None))[1] != heap[0][0]:
                heapq.heappop(heap)
            if heap:
                found[cls] = heap[0][0]
        return found


def _waits(places: Iterable[Place]) -> dict[Priority | None, Waits]:
    """Return the waits of each class that has a study, and of all together under None."""
    every = list(places)
    groups: dict[Priority | None, list[Place]] = {
        cls: [p for p in every if p.decision.priority is cls] for cls in Priority
    }
    groups[None] = every
    found = {}
    for cls, group in groups.items():
        if group:
            waits = sorted(place.wait for place in group)
            at = waits[min(len(waits) - 1, int(0.95 * len(waits)))]
            found[cls] = Waits(len(group), waits[len(waits) // 2], at, waits[-1], sum(p.over_cap for p in group))
    return found


def arrivals(connection: Connection, site: str, since: datetime) -> list[Arrival]:
    """Return the studies of a site that came since a moment, with what the models said of them; at most `MOST`."""
    table, reviews, results = store.study.c, store.review.c, store.study_result.c
    columns: list[Any] = [table.id, table.title, table.received_at, table.floor, table.analysis, table.reason]
    signed = (
        sa.select(sa.func.min(reviews.signed_at))
        .where(reviews.study == table.id, reviews.state == "signed", reviews.signed_at >= table.received_at)
        .scalar_subquery()
    )
    rows = connection.execute(
        sa.select(*columns, sa.type_coerce(signed, store.Moment()).label("signed_at"))
        .where(table.site == site, table.received_at >= since, sa.text("study.listed"))
        .order_by(table.received_at.desc())
        .limit(MOST)
    ).all()
    said: dict[str, dict[str, Any]] = {}
    wanted = [row.id for row in rows]
    for start in range(0, len(wanted), 500):
        some = sa.select(results.study, results.model_name, results.findings).where(
            results.study.in_(wanted[start : start + 500])
        )
        for result in connection.execute(some.order_by(results.at)):
            said.setdefault(result.study, {})[result.model_name] = result.findings
    return [
        Arrival(
            row.id,
            row.title,
            row.received_at,
            Priority(row.floor),
            tuple(
                triage.scores(
                    [{"model_name": m, "version": "", "findings": f} for m, f in said.get(row.id, {}).items()]
                )
            ),
            row.reason.rpartition("not analysed: ")[2] if row.analysis == "not_analysed" else None,
            row.signed_at,
        )
        for row in rows
    ]

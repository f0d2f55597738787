"""How good the first look is, by what readers answered: agreement, what was missed, false alerts, time to read.

Only what a reader touched counts: an answer nobody gave says nothing about the model. What is counted is the first
signature of each reading; addenda do not count again. All of it is counted in the database, over a period that an
index bounds; only times come out one by one, the newest `figures.MOST`.

A period is counted day by day. A day that is long over does not change, so it is counted once and `Kept` for as long
as the process lives; what is merged or removed afterwards counts there until then.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from wetread.clinic import store, triage
from wetread.clinic.figures import MOST, Period, Rate, Share, Spread, at_site, by_step, step_of, walk
from wetread.clinic.priority import Priority
from wetread.clinic.store import Store
from wetread.findings import NORMAL

ARMS = ("anchored", "blind")  # whether the reader had the model's word before they made up their own mind
PERIODS = (7, 28, 90)  # days that may be looked at
_DAY = timedelta(days=1)
_SETTLED = timedelta(hours=1)  # after it no signature is taken back any more, nor still being written
_LONGEST = timedelta(days=PERIODS[-1] + 10)  # that a day is kept


@dataclass(frozen=True)
class Agreement:
    """What readers answered to one finding of one model.

    Attributes
    ----------
    model : str or None
        SHA-256 of the package; None when it was not kept, or when no model names the finding.
    finding : str
    agreed : Share
        Answers *agree* among *agree* and *disagree*, to calls that are not *unsure*.
    unsure : int
        Answers *unsure*, which are in no share.
    missed : Share
        Among the findings that readers saw: those that the model called unlikely. Of nothing for the finding that
        means normal, which nobody misses.
    false : Share
        Among its *likely* that readers answered: those that they denied.
    """

    model: str | None
    finding: str
    agreed: Share
    unsure: int
    missed: Share
    false: Share


@dataclass(frozen=True)
class Alerts:
    """Studies that AI raised above the class that was asked for, and that were signed.

    `confirmed` of those whose finding the reader answered, or whose study they called normal; `false_a_day` are those
    that were denied, `by_day` how many on each day in UTC.
    """

    raised: int
    confirmed: Share
    false_a_day: Rate
    days: tuple[datetime, ...]
    by_day: tuple[int, ...]


@dataclass(frozen=True)
class Waits:
    """How long the studies of one class took in one arm, in minutes: None in either stands for all.

    Arms are ``AI on`` and ``AI off``, by whether AI ordered the list when the study was ranked last, and `ARMS`.
    """

    priority: Priority | None
    arm: str | None
    received_to_signed: Spread
    opened_to_signed: Spread


@dataclass(frozen=True)
class Quality:
    """Everything of the page, of one site and period."""

    period: Period
    signed: int
    agreement: tuple[Agreement, ...]
    by_arm: dict[str, Share]  # agreement over all findings
    unnamed: tuple[tuple[str, int], ...]  # findings that readers added and no model names
    alerts: Alerts
    waits: tuple[Waits, ...]
    timed: int  # studies whose times were looked at


@dataclass(frozen=True, eq=False)
class _Times:
    """Of each reading, the newest first: minutes until it was signed (NaN: unknown), class, and arms."""

    received: NDArray[np.float64]
    opened: NDArray[np.float64]
    classes: NDArray[np.str_]
    off: NDArray[np.bool_]
    anchored: NDArray[np.bool_]

    @classmethod
    def from_rows(cls, rows: Sequence[Any]) -> _Times:
        """Make it of rows of the database."""
        return cls(
            np.array([_minutes(row.received_at, row.signed_at) for row in rows], np.float64),
            np.array([_minutes(row.opened_at, row.signed_at) if row.opened_at else np.nan for row in rows], np.float64),
            np.array([row.priority for row in rows], dtype=np.str_),
            np.array([row.off for row in rows], dtype=np.bool_),
            np.array([row.anchored for row in rows], dtype=np.bool_),
        )

    @classmethod
    def of(cls, parts: Sequence[_Times]) -> _Times:
        """Put parts together, the newest first, and keep the newest `MOST`."""
        names = cls.__dataclass_fields__
        return cls(*(np.concatenate([getattr(part, name) for part in parts])[:MOST] for name in names))


@dataclass(frozen=True)
class _Part:
    """What the database says of a part of a period: counted rows, and the times of each reading, the newest first."""

    signed: int
    answers: Sequence[Any]
    alerts: Sequence[Any]
    times: _Times


Kept = dict[tuple[str, datetime], _Part]  # site and day in UTC → what was counted of it


def quality(connection: Connection, site: str, period: Period, kept: Kept | None = None) -> Quality:
    """Count everything of a site and period; days that are in `kept` not again, others that are over go there."""
    walk(connection)
    parts = [_part(connection, site, part, None if open_ else kept) for part, open_ in _days(period)]
    if kept is not None:
        for key in [key for key in list(kept) if key[1] < period.until - _LONGEST]:
            kept.pop(key, None)
    answers = [row for part in parts for row in part.answers]
    times = _Times.of([part.times for part in parts])
    return Quality(
        period=period,
        signed=sum(part.signed for part in parts),
        agreement=tuple(_agreement(answers)),
        by_arm={arm: _agreed(row for row in answers if row.anchored is (arm == "anchored")) for arm in ARMS},
        unnamed=tuple(_unnamed(answers)),
        alerts=_alerts([row for part in parts for row in part.alerts], period),
        waits=tuple(_waits(times)),
        timed=len(times.received),
    )


def ahead(database: Store, kept: Kept, now: datetime) -> None:
    """Count the days of the longest period that anybody asks for, at every site."""
    with database.read() as connection:
        sites = list(connection.execute(sa.select(store.site.c.name)).scalars())
    for site in sites:
        with database.read() as connection:
            quality(connection, site, Period.last(PERIODS[-1], now), kept)


def _days(period: Period) -> list[tuple[Period, bool]]:
    """Return the days of a period, the newest first, and whether each is cut off or not over for long."""
    starts = [max(step, period.since) for step in period.steps(_DAY)]
    ends = [*starts[1:], period.until]
    found = [
        (Period(since, until), until - since < _DAY or until > period.until - _SETTLED)
        for since, until in zip(starts, ends, strict=True)
        if since < until
    ]
    return found[::-1]


def _part(connection: Connection, site: str, period: Period, kept: Kept | None) -> _Part:
    key = site, period.since
    if kept is not None and (known := kept.get(key)) is not None:
        return known
    found = _Part(
        _signed(connection, site, period),
        _answers(connection, site, period),
        _raised(connection, site, period),
        _Times.from_rows(_times(connection, site, period)),
    )
    if kept is not None:
        kept[key] = found
    return found


def agreement(connection: Connection, site: str, period: Period, model: str) -> list[Agreement]:
    """Return the agreement with one model, by finding."""
    walk(connection)
    return _agreement(_answers(connection, site, period, model))


def _of(site: str, period: Period) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the conditions for the readings of a site that were signed in a period; `state` as the index has it."""
    table = store.review.c
    return (
        sa.text("review.state = 'signed'"),
        table.parent.is_(None),
        period.holds(table.signed_at),
        at_site(site, store.study),
    )  # type: ignore[return-value]


def _signed(connection: Connection, site: str, period: Period) -> int:
    joined = store.review.join(store.study, store.study.c.id == store.review.c.study)
    counted = sa.select(sa.func.count()).select_from(joined).where(*_of(site, period))
    return int(connection.execute(counted).scalar_one())


def _answers(connection: Connection, site: str, period: Period, model: str | None = None) -> Sequence[Any]:
    """Return how often each answer was given to each call: rows of model, finding, call, answer, anchored, count."""
    reviews, found = store.review, store.review_finding.c
    keys = found.model, found.finding, found.call, found.answer, reviews.c.anchored
    joined = reviews.join(store.study, store.study.c.id == reviews.c.study)
    wanted = sa.select(*keys, sa.func.count().label("times")).select_from(
        joined.join(store.review_finding, found.review == reviews.c.id)
    )
    if model is not None:
        wanted = wanted.where(found.model == model)
    return connection.execute(wanted.where(*_of(site, period)).group_by(*keys)).all()


def _agreement(rows: Iterable[Any]) -> list[Agreement]:
    groups: dict[tuple[str | None, str], list[Any]] = defaultdict(list)
    for row in rows:
        if row.call is not None:
            groups[row.model, row.finding].append(row)
    found = []
    for (model, finding), group in groups.items():
        counts: Counter[tuple[str, str]] = Counter()
        for row in group:
            counts[row.call, row.answer] += row.times
        # A reader who adds a finding that the model does not call likely sees it, as one who disagrees with "unlikely".
        missed = counts["unlikely", "disagree"] + counts["unlikely", "added"]
        seen = missed + sum(counts[call, answer] for call in ("likely", "unsure") for answer in ("agree", "added"))
        false = counts["likely", "disagree"]
        found.append(
            Agreement(
                model,
                finding,
                _agreed(group),
                sum(row.times for row in group if row.answer == "unsure"),
                Share(0, 0) if finding in NORMAL else Share(missed, seen),
                Share(false, false + counts["likely", "agree"]),
            )
        )
    return sorted(found, key=lambda a: (a.model or "", -a.agreed.whole, a.finding))


def _agreed(rows: Iterable[Any]) -> Share:
    counts: Counter[str] = Counter()
    for row in rows:
        if row.call in ("likely", "unlikely"):  # with unsure nobody can agree
            counts[row.answer] += row.times
    return Share(counts["agree"], counts["agree"] + counts["disagree"])


def _unnamed(rows: Iterable[Any]) -> list[tuple[str, int]]:
    counts: Counter[str] = Counter()
    for row in rows:
        if row.call is None and row.answer == "added":
            counts[row.finding] += row.times
    return counts.most_common(20)


def _raised(connection: Connection, site: str, period: Period) -> Sequence[Any]:
    """Return how often what AI raised was confirmed, on which day: rows of verdict, day, count."""
    reviews, studies, found = store.review.c, store.study.c, store.review_finding.c
    denied = sa.or_(
        sa.and_(found.answer == "disagree", sa.func.coalesce(found.call, "") != "unlikely"),
        sa.and_(found.answer == "agree", found.call == "unlikely"),
    )
    verdict = sa.case(
        (sa.or_(reviews.normal, denied), "false"), (found.answer.in_(("agree", "disagree")), "true"), else_="open"
    ).label("verdict")
    day = step_of(reviews.signed_at, _DAY).label("day")
    joined = store.review.join(store.study, studies.id == reviews.study).outerjoin(
        store.review_finding, sa.and_(found.review == reviews.id, found.finding == studies.finding)
    )
    raised = studies.finding.is_not(None), studies.priority != studies.floor
    return connection.execute(
        sa.select(verdict, day, sa.func.count().label("times"))
        .select_from(joined)
        .where(*_of(site, period), *raised)
        .group_by(verdict, day)
    ).all()


def _alerts(rows: Sequence[Any], period: Period) -> Alerts:
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row.verdict] += row.times
    return Alerts(
        sum(counts.values()),
        Share(counts["true"], counts["true"] + counts["false"]),
        Rate(counts["false"], period.days),
        tuple(period.steps(_DAY)),
        tuple(by_step([(row.day, row.times) for row in rows if row.verdict == "false"], period, _DAY)),
    )


def _times(connection: Connection, site: str, period: Period) -> Sequence[Any]:
    """Return when the newest readings were received, first opened by who signed them, and signed; class and arms."""
    reviews, studies, events = store.review.c, store.study.c, store.event.c
    opened = (
        sa.select(sa.func.min(events.at))
        .where(
            events.study == reviews.study,
            events.kind == "study.claimed",
            events.payload["reader"].as_string() == reviews.reader,
            events.at <= reviews.signed_at,
        )
        .scalar_subquery()
    )
    return connection.execute(
        sa.select(
            studies.priority,
            studies.received_at,
            sa.type_coerce(opened, store.Moment()).label("opened_at"),
            reviews.signed_at,
            reviews.anchored,
            sa.or_(
                studies.reason.contains(triage.FIRST_COME, autoescape=True),
                studies.reason.contains(triage.BY_ARRIVAL, autoescape=True),
            ).label("off"),
        )
        .select_from(store.review.join(store.study, studies.id == reviews.study))
        .where(*_of(site, period))
        .order_by(reviews.signed_at.desc())
        .limit(MOST)
    ).all()


def _waits(times: _Times) -> list[Waits]:
    """Return the times by class, over all arms and in each arm that there is."""
    received, opened, classes, off, anchored = (getattr(times, name) for name in _Times.__dataclass_fields__)
    every = np.ones(len(received), dtype=bool)
    arms = {None: every, "AI on": ~off, "AI off": off, "anchored": anchored, "blind": ~anchored}
    found = []
    for arm, members in arms.items():
        for priority in (None, *Priority):
            group = members if priority is None else members & (classes == str(priority))
            if arm is None or group.any():
                known = group & ~np.isnan(opened)
                found.append(Waits(priority, arm, Spread.of(received[group]), Spread.of(opened[known])))
    return found


def _minutes(since: datetime, until: datetime) -> float:
    return (until - since).total_seconds() / 60

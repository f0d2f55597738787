"""What the models of a site did in a period: how many images, refusals by code, how long, how often each finding."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import store
from wetread.clinic.figures import MOST, Period, Share, Spread, walk

SAMPLE = 5_000  # images whose findings are looked at: each costs a list to take apart
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Seen:
    """A model that gave results in a period: so many, of which `refused`."""

    model: str
    name: str
    version: str
    images: int
    refused: int

    @property
    def refused_share(self) -> Share:
        """The refusals, of all images."""
        return Share(self.refused, self.images)


@dataclass(frozen=True)
class Calls:
    """How often a finding was flagged, week by week; the weeks are those of `Numbers.weeks`."""

    finding: str
    whole: Share
    weeks: tuple[Share, ...]


@dataclass(frozen=True)
class Numbers:
    """What one model did.

    Attributes
    ----------
    period : Period
    images : int
        Results, refusals among them.
    refusals : tuple of (str, Share)
        By code, the commonest first, of all images.
    seconds : Spread
        How long an analysis took.
    weeks : tuple of datetime
        When each begins; the last ends with the period.
    calls : tuple of Calls
        Of the images that were not refused, the finding that is flagged most often first; of more than `SAMPLE`
        images about so many, drawn by their ids, which are random.
    """

    period: Period
    images: int
    refusals: tuple[tuple[str, Share], ...]
    seconds: Spread
    weeks: tuple[datetime, ...]
    calls: tuple[Calls, ...]


def seen(connection: Connection, site: str, period: Period) -> list[Seen]:
    """Return the models that gave results for images that came in a period, the busiest first."""
    walk(connection)
    results = store.image_result.c
    keys = results.model, results.model_name, results.version
    images, refused = sa.func.count().label("images"), sa.func.sum(sa.case((results.suitable, 0), else_=1))
    rows = connection.execute(
        sa.select(*keys, images, refused.label("refused"))
        .select_from(_joined())
        .where(*_of(site, period))
        .group_by(*keys)
        .order_by(images.desc(), results.model)
        .limit(100)
    )
    return [Seen(row.model, row.model_name, row.version, row.images, int(row.refused)) for row in rows]


def numbers(connection: Connection, site: str, model: str, period: Period) -> Numbers:
    """Count what a model did with the images that came in a period of whole weeks."""
    walk(connection)
    results = store.image_result.c
    mine = (*_of(site, period), results.model == model)
    codes = connection.execute(
        sa.select(results.suitable, results.code, sa.func.count().label("times"))
        .select_from(_joined())
        .where(*mine)
        .group_by(results.suitable, results.code)
    ).all()
    images = sum(row.times for row in codes)
    refusals: Counter[str] = Counter()
    for row in codes:
        if not row.suitable:
            refusals[row.code or "without a code"] += row.times
    times = connection.execute(
        sa.select(results.seconds)
        .select_from(_joined())
        .where(*mine, results.suitable)
        .order_by(store.instance.c.received_at.desc())
        .limit(MOST)
    ).scalars()
    weeks = [period.since + 7 * _DAY * week for week in range(round(period.days / 7))]
    return Numbers(
        period,
        images,
        tuple((code, Share(count, images)) for code, count in refusals.most_common()),
        Spread.of(times),
        tuple(weeks),
        tuple(_calls(connection, (*mine, *_some(images)), weeks)),
    )


def _calls(connection: Connection, mine: tuple[sa.ColumnElement[bool], ...], weeks: list[datetime]) -> list[Calls]:
    """Count the flags of each finding by week, in the database, which can take a list of findings apart."""
    results, images = store.image_result.c, store.instance.c
    apart = sa.func.json_each if connection.dialect.name == "sqlite" else sa.func.json_array_elements
    each = apart(results.findings).table_valued("value", joins_implicitly=True)
    one = sa.type_coerce(each.c.value, sa.JSON)
    week = sa.case(*((images.received_at >= start, n) for n, start in reversed(list(enumerate(weeks)))), else_=0)
    keys: list[sa.ColumnElement[Any]] = [
        one["finding"].as_string().label("finding"), one["flagged"].as_boolean().label("flagged"), week.label("week")
    ]  # fmt: skip
    inner = sa.select(*keys).select_from(_joined()).join(each, sa.true()).where(*mine, results.suitable).subquery()
    rows = connection.execute(
        sa.select(inner, sa.func.count().label("times")).group_by(inner.c.finding, inner.c.flagged, inner.c.week)
    ).all()
    flagged: Counter[tuple[str, int]] = Counter()
    whole: Counter[tuple[str, int]] = Counter()
    for row in rows:
        whole[row.finding, row.week] += row.times
        flagged[row.finding, row.week] += row.times if row.flagged else 0
    found = []
    for finding in dict.fromkeys(row.finding for row in rows):
        by_week = tuple(Share(flagged[finding, n], whole[finding, n]) for n in range(len(weeks)))
        all_of_it = Share(sum(share.part for share in by_week), sum(share.whole for share in by_week))
        found.append(Calls(finding, all_of_it, by_week))
    return sorted(found, key=lambda calls: (-calls.whole.part, calls.finding))


def _some(images: int) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the condition by which about `SAMPLE` of so many images are drawn; none when there are no more."""
    return (store.instance.c.id < f"{2**32 * SAMPLE // images:08x}",) if images > SAMPLE else ()


def _joined() -> sa.Join:
    return store.instance.join(store.image_result, store.image_result.c.instance == store.instance.c.id)


def _of(site: str, period: Period) -> tuple[sa.ColumnElement[bool], ...]:
    images = store.instance.c
    return images.site == site, period.holds(images.received_at)

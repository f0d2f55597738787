"""The worklist: which studies, in which order, page after page, and how many there are.

Every order is stored (`store.ORDERS`), so that a page is one walk along one index, with no clock in it and however
long the list is. The index also holds what the list is filtered by; only the rows of the page are looked up. By
status, by reader and by what ranked it a list is a few such walks, one after the other; see `stretches`.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.sql.operators import custom_op

from wetread.clinic import keys, store
from wetread.clinic.priority import Priority
from wetread.clinic.store import Store
from wetread.errors import ClinicError, NotFoundError

Status = Literal["received", "analysed", "not_analysed", "claimed", "reviewed"]
STATUSES: tuple[Status, ...] = ("received", "analysed", "not_analysed", "claimed", "reviewed")
VIEWS = ("PA", "AP", "LAT", "PA+LAT", "AP+LAT", "PA+AP", "PA+AP+LAT", "unknown")
SORTS = (*store.ORDERS, "status", "reader")
PAGE = 50
_LONGEST = 128  # of what is searched for


@dataclass(frozen=True)
class Row:
    """One line of the worklist. Times are in UTC; ages in years."""

    study: str
    status: Status
    priority: str
    overdue: bool
    reason: str
    finding: str | None
    model: str | None
    code: str | None
    patient_name: str
    patient_id: str
    sex: str | None
    age_years: float | None
    views: str
    images: int
    cautions: tuple[str, ...]
    analysis: str
    reading: str
    received_at: datetime
    overdue_at: datetime
    claimed_by: str | None
    rank: int
    place: float = 0.0
    title: str = ""
    handed_by: str | None = None

    @property
    def image_count(self) -> int:
        """The number of images, quarantined ones not counted."""
        return self.images


@dataclass(frozen=True)
class Counts:
    """How many unread studies there are, by class and state; and since when the longest has waited."""

    unread: int
    critical: int
    urgent: int
    routine: int
    overdue: int
    received: int
    not_analysed: int
    oldest: datetime | None


@dataclass(frozen=True)
class Page:
    """A page of the worklist; `next` goes into the next query, None at the end."""

    rows: tuple[Row, ...]
    counts: Counts
    next: str | None


@dataclass(frozen=True)
class Query:
    """Which studies, in which order.

    Parameters
    ----------
    status : str, optional
        Only studies of this status; ``reviewed`` lists the signed ones. By default all unread.
    priority : str, optional
        Only this class.
    overdue : bool
        Only those past their waiting cap.
    finding : str, optional
        Only those that this finding ranked.
    view : str, optional
        Only those of these views, one of `VIEWS`.
    reader : str, optional
        Only those that this reader has claimed.
    age_from, age_to : float, optional
        Only patients who are known to be of this age in years, both ends included.
    since, until : datetime, optional
        Only what arrived from `since` on and before `until`.
    search : str
        Beginning of the patient's name, the patient ID or the accession number; accents, case and marks between do
        not count. Without a digit it is a name.
    sort : str, optional
        One of `SORTS`; by default the order in which to read, and of read studies the newest first. Those of one
        status, reader or finding stand in the order in which to read.
    descending : bool, optional
        The other way round. By default only read studies are. What has no reader or no finding comes last either way.

    Raises
    ------
    ClinicError
        For a value that cannot be, naming it.
    """

    status: str | None = None
    priority: str | None = None
    overdue: bool = False
    finding: str | None = None
    view: str | None = None
    reader: str | None = None
    age_from: float | None = None
    age_to: float | None = None
    since: datetime | None = None
    until: datetime | None = None
    search: str = ""
    sort: str | None = None
    descending: bool | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("status", STATUSES), ("priority", tuple(Priority)), ("view", VIEWS), ("sort", SORTS)):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ClinicError(f"{name} {value[:40]!r}: not one of {', '.join(allowed)}")
        if self.read and self.sort not in (None, *store.READ_ORDERS):
            raise ClinicError(f"sort {self.sort!r}: read studies wait for nothing; {', '.join(store.READ_ORDERS)}")
        for name in ("age_from", "age_to"):
            age = getattr(self, name)
            if age is not None and not 0 <= age <= 200:
                raise ClinicError(f"{name} {age}: not an age in years, 0 to 200")
        for name in ("search", "finding", "reader"):
            text = getattr(self, name)
            if text is not None and (len(text) > _LONGEST or not text.isprintable()):
                raise ClinicError(f"{name}: at most {_LONGEST} printable characters")

    @property
    def read(self) -> bool:
        """Whether it is the list of read studies."""
        return self.status == "reviewed"

    @property
    def order(self) -> str:
        """The name of the order, one of `SORTS`."""
        return self.sort or ("arrived" if self.read else "priority")

    @property
    def backwards(self) -> bool:
        """Whether it goes the other way round."""
        return self.read and self.sort is None if self.descending is None else self.descending


_SHOWN = (
    "id",
    "priority",
    "overdue",
    "reason",
    "finding",
    "model",
    "code",
    "patient_name",
    "patient_id",
    "sex",
    "age_years",
    "views",
    "images",
    "cautions",
    "analysis",
    "reading",
    "received_at",
    "overdue_at",
    "rank",
    "place",
    "title",
)


def page(
    database: Store,
    site: str,
    query: Query | None = None,
    *,
    after: str | None = None,
    limit: int = PAGE,
    now: datetime | None = None,
    covered: sa.Select[Any] | None = None,
    **chosen: Any,
) -> Page:
    """Return a page of the worklist.

    Parameters
    ----------
    site : str
        Whose list.
    query : Query, optional
        By default made of the other keywords.
    after : str, optional
        `Page.next` of the page before.
    limit : int
        Most rows, 1 to 500.
    now : datetime, optional
        Decides which claims are still in force.
    covered : select of studies, optional
        Those of which is not told what ranked them: in the order of findings they stand among those without one.

    Raises
    ------
    ClinicError
        For a query that cannot be, or a broken `after`.
    """
    query, now, limit = query or Query(**chosen), now or store.now(), max(1, min(limit, 500))
    ways = stretches(query)
    found: list[tuple[int, dict[str, Any]]] = []  # in which stretch, and what
    with database.read() as connection:
        first, start = (0, None) if after is None else _cursor(connection, site, query, after, covered)
        for number in range(first, len(ways)):
            some = limit + 1 - len(found)
            wanted = statement(ways[number], site, start, some, now, shared=database.shared, covered=covered)
            found += [(number, dict(row)) for row in connection.execute(wanted).mappings()]
            start = None
            if len(found) > limit:
                break
        totals = _remembered(database, connection, site)
    rows = tuple(line(row) for _, row in found[:limit])
    return Page(rows, totals, _next(query, *found[limit - 1]) if len(found) > limit else None)


@dataclass(frozen=True)
class Stretch:
    """A part of a list that is one walk.

    Parameters
    ----------
    query : Query
        What the list is narrowed to.
    along : tuple of str
        Columns that the walk goes along, the last one unique; ``reader`` is that of the claim.
    backwards : bool
    ranked : bool, optional
        Only what a finding ranked, or only the others.
    held : bool, optional
        Only what somebody holds, or only the others.
    """

    query: Query
    along: tuple[str, ...]
    backwards: bool = False
    ranked: bool | None = None
    held: bool | None = None


def stretches(query: Query) -> tuple[Stretch, ...]:
    """Return the walks of which a list consists, one after the other.

    A claim runs out by itself and few are in force, so whoever holds a study is in no index of studies: the list by
    reader is what is held, sorted, and then what is free; the list by status is one list for each.
    """
    first, plain = store.ORDERS["priority"], replace(query, sort=None, descending=None)
    if query.order == "status":
        every = [status for status in STATUSES if status != "reviewed" and query.status in (None, status)]
        return tuple(Stretch(replace(plain, status=s), first) for s in (every[::-1] if query.backwards else every))
    if query.order == "reader":
        held = Stretch(plain, ("reader", *first), query.backwards, held=True)
        free = Stretch(plain, first, held=False)
        return (held,) if query.reader is not None or query.status == "claimed" else (held, free)
    along = store.ORDERS[query.order]
    if query.order == "why":
        ranked, rest = Stretch(query, along, query.backwards, ranked=True), Stretch(query, along[1:], ranked=False)
        return (ranked,) if query.finding is not None else (ranked, rest)
    return (Stretch(query, along, query.backwards),)


def statement(
    way: Stretch,
    site: str,
    start: tuple[Any, ...] | None,
    limit: int,
    now: datetime,
    *,
    shared: bool,
    covered: sa.Select[Any] | None = None,
) -> sa.Select[Any]:
    """Return the SELECT of a page: the walk that finds its rows, and around it what they show."""
    table, claims, backwards = store.study.c, store.claim.c, way.backwards
    columns = [claims.reader if name == "reader" else table[name] for name in way.along]
    # PostgreSQL does not see by itself that what has no finding lies together.
    sorted_by = [table.finding, *columns] if way.ranked is False and covered is None else columns
    order = [column.desc() if backwards else column for column in sorted_by]
    held = sa.and_(claims.study == table.id, claims.expires_at > now)
    walk = sa.select(table.id).where(*_conditions(way, site, now, shared, covered)).order_by(*order).limit(limit)
    if way.held:
        taken = sa.and_(_passing(claims.study, shared) == table.id, claims.expires_at > now)
        walk = walk.select_from(store.claim.join(store.study, taken))
    if start is not None:
        here, there = sa.tuple_(*columns), sa.tuple_(*map(sa.literal, start, [c.type for c in columns]))
        walk = walk.where(here < there if backwards else here > there)
    found = walk.subquery("page")
    shown = dict.fromkeys((*_SHOWN, *(name for name in way.along if name != "reader")))
    return (
        sa.select(*(table[name] for name in shown), *_CLAIM)
        .select_from(store.study.join(found, found.c.id == table.id).join(store.claim, held, isouter=True))
        .order_by(*order)
    )


_CLAIM = (store.claim.c.reader.label("claimed_by"), store.claim.c.handed_by)


def _passing(column: Any, shared: bool) -> Any:
    """Return a column that is looked at in passing; SQLite, which counts nothing, would search for it instead."""
    return column if shared else sa.UnaryExpression(column, operator=custom_op("+"), type_=column.type)


def _conditions(
    way: Stretch, site: str, now: datetime, shared: bool, covered: sa.Select[Any] | None
) -> list[sa.ColumnElement[bool]]:
    query, table, claims = way.query, store.study.c, store.claim.alias("taken").c

    def kept(name: str) -> Any:
        return _passing(table[name], shared)

    searched = bool(query.search.strip())
    found: list[Any] = [(kept("site") if searched or way.held else table.site) == site]
    found += _state("+study" if way.held and not shared else "study", query)
    held = sa.select(claims.study).where(claims.expires_at > now)
    if query.reader is not None:
        found.append(table.id.in_(held.where(claims.reader == query.reader)))
    elif query.status == "claimed":
        found.append(table.id.in_(held))
    if way.held is False or (query.status not in (None, "claimed") and not query.read):  # who holds it has claimed it
        found.append(~held.where(claims.study == table.id).correlate(store.study).exists())
    if query.status in ("received", "analysed", "not_analysed"):
        found.append((table.analysis if _default(query) else kept("analysis")) == query.status)
    if query.priority is not None:
        found.append((table.priority if _default(query) else kept("priority")) == query.priority)
    if way.ranked is not None:
        told = sa.true() if covered is None else table.id.not_in(covered)
        ranked = sa.and_(table.finding.is_not(None), told)
        found.append(ranked if way.ranked else table.finding.is_(None) if covered is None else ~ranked)
    if query.finding is not None:
        found.append((table.finding if _default(query) or way.ranked else kept("finding")) == query.finding)
    if query.overdue:
        found.append(kept("overdue").is_(True))
    if query.view is not None:
        found.append(kept("views") == ("" if query.view == "unknown" else query.view))
    for name, column, at_least in (("age_from", "age_key", True), ("age_to", "age_key", False),
                                   ("since", "received_at", True)):  # fmt: skip
        if (value := getattr(query, name)) is not None:
            own = table[column] if store.ORDERS[query.order][0] == column else kept(column)
            if name == "age_from":
                found.append(own < keys.AGELESS)
            bound = sa.literal(value, table[column].type)
            # 63.4 years are 63.
            found.append(own >= bound if at_least else own < sa.literal(math.floor(value) + 1.0, sa.Float()))
    if query.until is not None:
        own = table.received_at if store.ORDERS[query.order][0] == "received_at" else kept("received_at")
        found.append(own < query.until)
    if searched:
        found.append(_matches(query, site, shared))
    return found


def _default(query: Query) -> bool:
    """Tell whether an index of its own holds the studies with one value of a column in this order."""
    return query.sort in (None, "priority") and not query.read


def _state(table: str, query: Query) -> tuple[sa.TextClause, ...]:
    """Return what makes a study one of the list, in the words of the partial indexes."""
    return sa.text(f"{table}.reading {'=' if query.read else '!='} 'signed'"), sa.text(f"{table}.listed")


def _matches(query: Query, site: str, shared: bool) -> sa.ColumnElement[bool]:
    """Return what a study fulfils whose name begins with a text, or whose patient ID or accession number does.

    A text without a digit is a name: what has none is no number, and one range of one index is quickest.
    """
    words, number = keys.words(query.search), keys.number(query.search)
    first, _, rest = words.partition(" ")
    wanted = [("name_key", name) for name in dict.fromkeys((words, f"{rest} {first}" if rest else words)) if name]
    if any(c.isdigit() for c in number):
        wanted += [("id_key", number), ("accession_key", number)]

    def ranges(table: Any) -> list[sa.ColumnElement[bool]]:
        return [sa.and_(table.c[key] >= text, table.c[key] < keys.beyond(text)) for key, text in wanted]

    if shared:
        return sa.or_(sa.false(), *ranges(store.study))
    # SQLite would walk the whole list: it is told to look for the few, each by its own index.
    few = store.study.alias("few")
    parts = [sa.select(few.c.id).where(few.c.site == site, *_state("few", query), part) for part in ranges(few)]
    return store.study.c.id.in_(sa.union_all(*parts)) if parts else sa.false()


def _remembered(database: Store, connection: Connection, site: str) -> Counts:
    """Return the numbers, counted anew only when something happened: every change comes with an event."""
    newest = connection.execute(sa.select(sa.func.max(store.event.c.seq))).scalar() or 0
    seq, totals = database.memo.get(site, (-1, None))
    if totals is None or seq != newest:
        totals = counts(connection, site)
        database.memo[site] = (newest, totals)
    found: Counts = totals
    return found


def counts(connection: Connection, site: str) -> Counts:
    """Return the numbers over all unread studies of a site."""
    table = store.study.c
    unread = table.site == site, sa.text("study.reading != 'signed'"), sa.text("study.listed")
    groups = connection.execute(
        sa.select(table.priority, table.analysis, table.overdue, sa.func.count().label("n"))
        .where(*unread)
        .group_by(table.priority, table.analysis, table.overdue)
    ).all()
    oldest = sa.select(table.received_at).where(*unread).order_by(table.received_at).limit(1)

    def total(**wanted: Any) -> int:
        return sum(g.n for g in groups if all(getattr(g, name) == value for name, value in wanted.items()))

    return Counts(
        unread=total(),
        critical=total(priority="critical"),
        urgent=total(priority="urgent"),
        routine=total(priority="routine"),
        overdue=total(overdue=True),
        received=total(analysis="received"),
        not_analysed=total(analysis="not_analysed"),
        oldest=connection.execute(oldest).scalar(),
    )


def row(database: Store, site: str, study: str, *, now: datetime | None = None) -> Row:
    """Return one line of the list, read or unread.

    Raises
    ------
    NotFoundError
        When the site has no such study.
    """
    with database.read() as connection:
        return line(of(connection, site, study, now or store.now()))


def of(connection: Connection, site: str, study: str, now: datetime, *, everything: bool = False) -> Mapping[str, Any]:
    """Return what the database has of one study: what a line shows, or everything.

    Raises
    ------
    NotFoundError
        When the site has no such study.
    """
    table, claims = store.study, store.claim
    columns = list(table.c) if everything else [table.c[name] for name in _SHOWN]
    found = connection.execute(
        sa.select(*columns, *_CLAIM)
        .select_from(table.outerjoin(claims, sa.and_(claims.c.study == table.c.id, claims.c.expires_at > now)))
        .where(table.c.id == study, table.c.site == site)
    )
    first = found.mappings().first()
    if first is None:
        raise NotFoundError(f"study {study[:64]}: no such study at this site")
    return dict(first)


def line(row: Mapping[str, Any]) -> Row:
    """Return a row of the database as a line of the list."""
    status: Status = row["analysis"]
    if row["reading"] == "signed":
        status = "reviewed"
    elif row["claimed_by"] is not None:
        status = "claimed"
    values = {name: row[name] for name in (*_SHOWN, "claimed_by", "handed_by") if name not in ("id", "cautions")}
    return Row(study=row["id"], status=status, cautions=tuple(row["cautions"]), **values)


# ------------------------------------------------------------------ places in the list

_UNSAID = ("name_key", "finding")  # are in no address, for who may see it: they are looked up again


def _next(query: Query, number: int, last: Mapping[str, Any]) -> str:
    along = stretches(query)[number].along
    values = [None if name in _UNSAID else last["claimed_by" if name == "reader" else name] for name in along]
    text = json.dumps([query.order, number, *(v.isoformat() if isinstance(v, datetime) else v for v in values)])
    return base64.urlsafe_b64encode(text.encode()).decode()


def _cursor(
    connection: Connection, site: str, query: Query, after: str, covered: sa.Select[Any] | None
) -> tuple[int, tuple[Any, ...]]:
    """Return in which stretch a page begins, and after what."""
    broken = ClinicError("after: not a place in this list; take it from `next` of the page before")
    ways = stretches(query)
    try:
        order, number, *values = json.loads(base64.urlsafe_b64decode(after.encode()))
        if order != query.order or type(number) is not int or not 0 <= number < len(ways):
            raise ValueError(order)
        names = ways[number].along
        found = [_value(name, value) for name, value in zip(names, values, strict=True)]
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise broken from None
    for unsaid in set(names) & set(_UNSAID):
        table = store.study.c
        wanted = sa.select(table[unsaid]).where(table.id == found[-1], table.site == site)
        if covered is not None:  # a forged place would tell where the finding of such a study stands
            wanted = wanted.where(table.id.not_in(covered))
        key = connection.execute(wanted).scalar()
        if key is None:
            raise broken
        found[names.index(unsaid)] = key
    return number, tuple(found)


def _value(name: str, value: Any) -> Any:
    """Return one value of a place in the list as the database takes it; raise ValueError for what it does not."""
    if name in _UNSAID:
        return None
    if name in ("received_at", "overdue_at"):
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError(name)
        return moment.astimezone(UTC)
    if name == "rank":
        fits = isinstance(value, int) and 0 <= value < 100
    elif name in ("place", "age_key"):
        fits = isinstance(value, int | float) and math.isfinite(value)
    else:
        fits = isinstance(value, str) and value.isprintable()
    if not fits:
        raise ValueError(name)
    return value

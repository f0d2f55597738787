"""What the reader sees: the list in its order, and one study with everything known about it.

The order is stored (`rank`, then `received_at`), so that a page of it is one walk along an index, with no clock
in it and however long the list is.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import store, triage
from wetread.clinic.store import Store
from wetread.errors import ClinicError, NotFoundError

Status = Literal["received", "analysed", "not_analysed", "claimed", "reviewed"]
STATUSES: tuple[Status, ...] = ("received", "analysed", "not_analysed", "claimed", "reviewed")
PAGE = 50


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
class Finding:
    """One finding of one model over the images of a study; `image` is the one with this probability."""

    finding: str
    model: str
    probability: float
    threshold: float
    flagged: bool
    call: str
    image: str


@dataclass(frozen=True)
class ImageResult:
    """What one model said about one image; without findings when it was refused, then `code` and `reason` say why."""

    model: str
    model_id: str
    suitable: bool
    code: str | None
    reason: str
    cautions: tuple[str, ...]
    caution_codes: tuple[str, ...]
    abnormal: float | None
    point: str
    findings: tuple[dict[str, Any], ...]
    box: tuple[float, float, float, float] | None
    at: datetime


@dataclass(frozen=True)
class Image:
    """One file of a study, with the results of the models; what is not `stored` is listed, with its reason, not shown.

    `state` is stored, quarantined (other bytes under a known UID), superseded (a later header is in force), copy (the
    same data set came by another way), document (no picture, or our own), or rejected.
    """

    image: str
    name: str
    format: str
    view: str | None
    modality: str | None
    bytes: int
    sha256: str
    state: str
    reason: str | None
    received_at: datetime
    results: tuple[ImageResult, ...]


@dataclass(frozen=True)
class Claim:
    """Who is reading the study, until when."""

    reader: str
    at: datetime
    expires_at: datetime


@dataclass(frozen=True)
class Review:
    """What a reader decided.

    `answers` is finding → agree, disagree, unsure or added; `verdict` is right, wrong or None.
    """

    review: str
    reader: str
    state: Literal["draft", "signed"]
    answers: dict[str, str]
    verdict: str | None
    normal: bool
    note: str
    created_at: datetime
    signed_at: datetime | None


@dataclass(frozen=True)
class Study:
    """One study with all that is known about it. `abnormal` is per model name.

    `merged_into` is the study that took its images, if one did.
    """

    row: Row
    birth_date: str | None
    accession: str | None
    description: str | None
    acquired_at: str | None
    cautions: tuple[str, ...]
    abnormal: dict[str, float]
    findings: tuple[Finding, ...]
    images: tuple[Image, ...]
    claim: Claim | None
    reviews: tuple[Review, ...]
    events: tuple[dict[str, Any], ...] = field(default=())
    merged_into: str | None = None


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
)


def page(
    database: Store,
    site: str,
    *,
    status: str | None = None,
    priority: str | None = None,
    after: str | None = None,
    limit: int = PAGE,
    now: datetime | None = None,
) -> Page:
    """Return a page of the worklist.

    Parameters
    ----------
    site : str
        Whose list.
    status : str, optional
        Only studies of this status; ``reviewed`` lists the signed ones, newest first. By default all unread.
    priority : str, optional
        Only studies of this class.
    after : str, optional
        `Page.next` of the page before.
    limit : int
        Most rows, 1 to 500.
    now : datetime, optional
        Decides which claims are still in force.

    Raises
    ------
    ClinicError
        For an unknown status or class, or a broken `after`.
    """
    if status is not None and status not in STATUSES:
        raise ClinicError(f"status {status!r}: not one of {', '.join(STATUSES)}")
    if priority is not None and priority not in ("critical", "urgent", "routine"):
        raise ClinicError(f"priority {priority!r}: not one of critical, urgent, routine")
    now, limit, table = now or store.now(), max(1, min(limit, 500)), store.study.c
    claims = store.claim
    held = sa.and_(claims.c.study == table.id, claims.c.expires_at > now)
    query = sa.select(*(table[name] for name in _SHOWN), claims.c.reader.label("claimed_by")).select_from(
        store.study.join(claims, held, isouter=status != "claimed")
    )
    query = query.where(table.site == site, table.listed.is_(True))
    if status == "reviewed":
        query = query.where(sa.text("study.reading = 'signed'")).order_by(table.received_at.desc(), table.id.desc())
    else:
        query = query.where(sa.text("study.reading != 'signed'")).order_by(table.rank, table.received_at, table.id)
        if status is not None and status != "claimed":
            query = query.where(claims.c.reader.is_(None), table.analysis == status)
    if priority is not None:
        query = query.where(table.priority == priority)
    if after is not None:
        rank, at, key = _cursor(after)
        if status == "reviewed":
            query = query.where(sa.tuple_(table.received_at, table.id) < sa.tuple_(*_bound(at, key)))
        else:
            query = query.where(
                sa.tuple_(table.rank, table.received_at, table.id) > sa.tuple_(sa.literal(rank), *_bound(at, key))
            )
    with database.read() as connection:
        found = connection.execute(query.limit(limit + 1)).mappings().all()
        totals = _remembered(database, connection, site)
    rows = tuple(_row(dict(row)) for row in found[:limit])
    more = len(found) > limit
    return Page(rows, totals, _next(rows[-1]) if more else None)


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
    unread = sa.and_(table.site == site, sa.text("study.reading != 'signed'"), table.listed.is_(True))
    groups = connection.execute(
        sa.select(table.priority, table.analysis, table.overdue, sa.func.count().label("n"))
        .where(unread)
        .group_by(table.priority, table.analysis, table.overdue)
    ).all()
    oldest = [
        connection.execute(
            sa.select(table.received_at).where(unread, table.rank == rank).order_by(table.received_at).limit(1)
        ).scalar()
        for rank in range(5)
    ]

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
        oldest=min((at for at in oldest if at is not None), default=None),
    )


def row(database: Store, site: str, study: str, *, now: datetime | None = None) -> Row:
    """Return one line of the list, read or unread.

    Raises
    ------
    NotFoundError
        When the site has no such study.
    """
    with database.read() as connection:
        return _row(_study_row(connection, site, study, now or store.now()))


def study(database: Store, site: str, key: str, *, now: datetime | None = None) -> Study:
    """Return one study with its images, results, claim, reviews and history.

    Raises
    ------
    NotFoundError
        When the site has no such study.
    """
    now = now or store.now()
    with database.read() as connection:
        found = _study_row(connection, site, key, now, everything=True)
        images = connection.execute(
            sa.select(store.instance, store.series.c.modality)
            .join(store.series, store.series.c.id == store.instance.c.series)
            .where(store.instance.c.study == key)
            .order_by(store.instance.c.received_at, store.instance.c.id)
        ).all()
        results = triage.latest(connection, [image.id for image in images])
        claimed = connection.execute(
            sa.select(store.claim).where(store.claim.c.study == key, store.claim.c.expires_at > now)
        ).first()
        reviews = _reviews(connection, key)
        events = connection.execute(
            sa.select(store.event.c.at, store.event.c.kind, store.event.c.payload)
            .where(store.event.c.study == key)
            .order_by(store.event.c.seq)
        ).all()
    shown = {image.id for image in images if image.state == "stored"}
    said = [result for result in results if result["suitable"] and result["instance"] in shown]
    merged = triage.merge(said)
    cautions = [*found["cautions"], *(caution for result in said for caution in result["cautions"])]
    return Study(
        row=_row(found),
        birth_date=found["birth_date"],
        accession=found["accession"],
        description=found["description"],
        acquired_at=found["acquired_at"],
        cautions=tuple(dict.fromkeys(cautions)),
        abnormal={model["model_name"]: model["abnormal"] for model in merged if model["abnormal"] is not None},
        findings=tuple(
            Finding(model=model["model_name"], **{name: f[name] for name in _FINDING})
            for model in merged
            for f in model["findings"]
        ),
        images=tuple(_image(image, [r for r in results if r["instance"] == image.id]) for image in images),
        claim=Claim(claimed.reader, claimed.at, claimed.expires_at) if claimed else None,
        reviews=reviews,
        events=tuple({"at": e.at, "kind": e.kind, "payload": e.payload} for e in events),
        merged_into=found["merged_into"],
    )


_FINDING = ("finding", "probability", "threshold", "flagged", "call", "image")


def _study_row(
    connection: Connection, site: str, study: str, now: datetime, *, everything: bool = False
) -> Mapping[str, Any]:
    table, claims = store.study, store.claim
    columns = list(table.c) if everything else [table.c[name] for name in _SHOWN]
    found = connection.execute(
        sa.select(*columns, claims.c.reader.label("claimed_by"))
        .select_from(table.outerjoin(claims, sa.and_(claims.c.study == table.c.id, claims.c.expires_at > now)))
        .where(table.c.id == study, table.c.site == site)
    )
    first = found.mappings().first()
    if first is None:
        raise NotFoundError(f"study {study[:64]}: no such study at this site")
    return dict(first)


def _row(row: Mapping[str, Any]) -> Row:
    status: Status = row["analysis"]
    if row["reading"] == "signed":
        status = "reviewed"
    elif row["claimed_by"] is not None:
        status = "claimed"
    values = {name: row[name] for name in _SHOWN if name not in ("id", "cautions")}
    return Row(study=row["id"], status=status, claimed_by=row["claimed_by"], cautions=tuple(row["cautions"]), **values)


def _image(image: Any, results: list[dict[str, Any]]) -> Image:
    return Image(
        image=image.id,
        name=image.name,
        format=image.format,
        view=image.view,
        modality=image.modality,
        bytes=image.bytes,
        sha256=image.sha256,
        state=image.state,
        reason=image.reason,
        received_at=image.received_at,
        results=tuple(
            ImageResult(
                model=r["model_name"],
                model_id=r["model"],
                suitable=r["suitable"],
                code=r["code"],
                reason=r["reason"],
                cautions=tuple(r["cautions"]),
                caution_codes=tuple(r["caution_codes"]),
                abnormal=r["abnormal"],
                point=r["point"],
                findings=tuple(r["findings"]),
                box=tuple(r["box"]) if r["box"] else None,
                at=r["at"],
            )
            for r in results
        ),
    )


def _reviews(connection: Connection, study: str) -> tuple[Review, ...]:
    table = store.review
    rows = connection.execute(sa.select(table).where(table.c.study == study).order_by(table.c.created_at)).all()
    answers: dict[str, dict[str, str]] = {row.id: {} for row in rows}
    for answer in connection.execute(
        sa.select(store.review_finding).where(store.review_finding.c.review.in_(list(answers)))
    ):
        answers[answer.review][answer.finding] = answer.answer
    return tuple(
        Review(
            review=r.id,
            reader=r.reader,
            state=r.state,
            answers=answers[r.id],
            verdict=r.model_verdict,
            normal=r.normal,
            note=r.note,
            created_at=r.created_at,
            signed_at=r.signed_at,
        )
        for r in rows
    )


def _next(last: Row) -> str:
    text = json.dumps([last.rank, last.received_at.isoformat(), last.study])
    return base64.urlsafe_b64encode(text.encode()).decode()


def _cursor(after: str) -> tuple[int, datetime, str]:
    try:
        rank, at, key = json.loads(base64.urlsafe_b64decode(after.encode()))
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is None or not isinstance(rank, int) or not isinstance(key, str):
            raise ValueError
    except (ValueError, TypeError):
        raise ClinicError("after: not a place in the list; take it from `next` of the page before") from None
    return rank, moment, key


def _bound(at: datetime, key: str) -> tuple[Any, Any]:
    return sa.literal(at, store.Moment()), sa.literal(key)

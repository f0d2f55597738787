"""What the reader sees: the list in its order (`listing`), and one study with everything known about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import listing, store, switches, triage
from wetread.clinic.listing import PAGE, SORTS, STATUSES, VIEWS, Counts, Page, Query, Row, counts, page, row
from wetread.clinic.store import Store

__all__ = [
    "PAGE",
    "SORTS",
    "STATUSES",
    "VIEWS",
    "Counts",
    "Page",
    "Query",
    "Row",
    "Study",
    "counts",
    "page",
    "row",
    "study",
    "upcoming",
]


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

    `state` is stored, quarantined (other bytes under a known UID, or a correction whose sender may not correct),
    superseded (a later header is in force), copy (the same data set came by another way), document (no picture, or our
    own), or rejected.
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

    `answers` is finding → agree, disagree, unsure or added; `verdict` is right, wrong or None. `parent` is the review
    that this is an addendum to. `own_call` is what a reader who read blind said before the model did.
    """

    review: str
    reader: str
    state: Literal["draft", "signed", "withdrawn"]
    answers: dict[str, str]
    verdict: str | None
    normal: bool
    note: str
    created_at: datetime
    signed_at: datetime | None
    parent: str | None = None
    revision: int = 0
    writer: str | None = None
    withdrawn_at: datetime | None = None
    own_call: dict[str, Any] | None = None
    own_call_at: datetime | None = None
    anchored: bool = True


@dataclass(frozen=True)
class Study:
    """One study with all that is known about it. `abnormal` is per model name.

    `merged_into` is the study that took its images, if one did. `research_only` tells whether a package behind its
    results allows research only; None without a result.
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
    research_only: bool | None = None
    blind: bool = False  # whether what the models said was taken out, see `blind`
    unnamed: bool = False  # whether the patient was, see `unnamed`
    study_uid: str = ""


def study(database: Store, site: str, key: str, *, now: datetime | None = None) -> Study:
    """Return one study with its images, results, claim, reviews and history.

    Raises
    ------
    NotFoundError
        When the site has no such study.
    """
    now = now or store.now()
    with database.read() as connection:
        found = listing.of(connection, site, key, now, everything=True)
        images = connection.execute(
            sa.select(store.instance, store.series.c.modality)
            .join(store.series, store.series.c.id == store.instance.c.series)
            .where(store.instance.c.study == key)
            .order_by(store.instance.c.received_at, store.instance.c.id)
        ).all()
        results = triage.latest(connection, key, [image.id for image in images])
        current = {result["id"] for result in switches.current(connection, key, results)}
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
    said = [r for r in results if r["suitable"] and r["instance"] in shown and r["id"] in current]
    merged = triage.merge(said)
    cautions = [*found["cautions"], *(caution for result in said for caution in result["cautions"])]
    return Study(
        row=listing.line(found),
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
        research_only=any(result["research_only"] for result in said) if said else None,
        study_uid=found["study_uid"],
    )


def upcoming(database: Store, site: str, reader: str) -> list[str]:
    """Return the unread studies that nobody else is reading, in the order in which to read, of the list's beginning."""
    rows = page(database, site, limit=500).rows
    return [row.study for row in rows if row.claimed_by in (None, reader)]


def first_image(database: Store, site: str, key: str) -> str | None:
    """Return the image that the page of a study shows first; None when it has none that can be shown."""
    table = store.instance.c
    wanted = sa.select(table.id).where(table.study == key, table.site == site, table.state == "stored")
    with database.read() as connection:
        return connection.execute(wanted.order_by(table.received_at, table.id).limit(1)).scalar()


_FINDING = ("finding", "probability", "threshold", "flagged", "call", "image")


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


_LATER = ("parent", "revision", "writer", "withdrawn_at", "own_call", "own_call_at", "anchored")


def _reviews(connection: Connection, study: str) -> tuple[Review, ...]:
    """Return the reviews in the order in which they were signed, drafts after them."""
    table = store.review
    order = table.c.signed_at.is_(None), table.c.signed_at, table.c.created_at
    rows = connection.execute(sa.select(table).where(table.c.study == study).order_by(*order)).all()
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
            **{name: getattr(r, name) for name in _LATER},
        )
        for r in rows
    )

"""What Wetread has to say about a study: which images, which results, and what a reader signed.

A statement is about fixed results, named by their fingerprint. Whatever is built from it (SR, SC, FHIR, HL7) comes out
the same when it is sent again; its UIDs derive from `Statement.cause`. When other results have taken their place in the
meantime there is nothing left to say: a statement of the newer ones is on its way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import store, superseding, switches, triage
from wetread.clinic.archive import Archive
from wetread.clinic.store import Store
from wetread.errors import ClinicError, NotFoundError

NOTICE = "AI triage result, research use only: not a report and not for diagnosis."
UNRESTRICTED = "AI triage result: not a report and not for diagnosis."  # of packages that allow more than research


@dataclass(frozen=True)
class Picture:
    """An image that was analysed. `path` is where its bytes lie."""

    id: str
    sop_uid: str
    series_uid: str
    sop_class: str | None
    modality: str | None
    format: str
    path: Path


@dataclass(frozen=True)
class Said:
    """What a model said about one finding; `image` is the id of the image with this probability."""

    model: str
    model_id: str
    version: str
    point: str
    finding: str
    probability: float
    threshold: float
    flagged: bool
    call: str
    image: str


@dataclass(frozen=True)
class Signed:
    """What a reader signed; `answers` is finding → agree, disagree, unsure or added; `parent` is what it adds to."""

    review: str
    reader: str
    normal: bool
    verdict: str | None
    note: str
    answers: dict[str, str]
    at: datetime
    parent: str | None = None


@dataclass(frozen=True)
class Statement:
    """All that an output can tell.

    Attributes
    ----------
    cause : str
        Fingerprint of the results and, once the patient was corrected, of how often: UIDs derive from it.
    base : str
        Fingerprint of the results alone, for what stays the same thing under a corrected patient.
    patient_name : str
        ``Family, Given``.
    at, told_at : datetime
        When the last result was there; when it was first told of this patient: then, or at the correction.
    revision : int
        How often the patient was corrected.
    replaces : tuple
        SOP class, study, series and SOP Instance UID of each report that went out under an identity of before.
    research_only : bool
        Whether any of the packages behind the results allows research only; so it is without a result.
    """

    cause: str
    study: str
    site: str
    study_uid: str
    patient_id: str
    patient_name: str
    birth_date: str | None
    sex: str | None
    accession: str | None
    description: str | None
    acquired_at: str | None
    priority: str
    reason: str
    finding: str | None
    at: datetime
    results: tuple[str, ...]
    pictures: tuple[Picture, ...]
    said: tuple[Said, ...]
    signed: Signed | None
    revision: int
    base: str
    told_at: datetime
    replaces: tuple[tuple[str, str, str, str], ...]
    research_only: bool = True

    @property
    def notice(self) -> str:
        """What stands on everything that tells of it, as the packages of its results ask."""
        return NOTICE if self.research_only else UNRESTRICTED

    @property
    def dicom(self) -> tuple[Picture, ...]:
        """The images that came as DICOM."""
        return tuple(picture for picture in self.pictures if picture.format == "dicom")

    @property
    def flagged(self) -> tuple[Said, ...]:
        """The findings at or above their operating point, the most probable first."""
        found = [said for said in self.said if said.flagged]
        return tuple(sorted(found, key=lambda said: (-said.probability, said.finding)))


class OutdatedError(ClinicError):
    """The results that a statement is about have given way to newer ones."""


def current(connection: Connection, study: str) -> list[dict[str, Any]]:
    """Return the results that now hold for a study; empty when no model analysed it, or those that did are off."""
    images = [image.id for image in triage.shown(connection, study)]
    found = [result for result in triage.latest(connection, study, images) if result["suitable"]]
    return switches.current(connection, study, found)


def cause(results: Sequence[Mapping[str, Any]], revision: int = 0) -> str:
    """Return the fingerprint of results, which and when each was made, told of a patient corrected so often."""
    words = sorted(f"{result['id']} {result['at'].isoformat()}" for result in results)
    if revision:
        words.append(f"revision {revision}")
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def load(
    database: Store,
    archive: Archive,
    study: str,
    *,
    site: str | None = None,
    about: str | None = None,
    review: str | None = None,
    revision: int | None = None,
) -> Statement:
    """Read what there is to say about a study.

    Parameters
    ----------
    database, archive
    study : str
        Its id.
    site : str, optional
        Refuse a study of another site.
    about : str, optional
        The `cause` of the results that it is to be about; by default those that hold now.
    review : str, optional
        Id of a signed review; by default the newest when `about` is not given either, else none.
    revision : int, optional
        How often the patient was corrected, as far as is known to who asks.

    Raises
    ------
    NotFoundError
        When there is no such study (of the site), or no model analysed it and no reader signed it.
    OutdatedError
        When the results are no longer those of `about`, or the patient was corrected again.
    """
    with database.read() as connection:
        row = connection.execute(sa.select(store.study).where(store.study.c.id == study)).first()
        if row is None or site not in (None, row.site):
            raise NotFoundError(f"study {study[:64]}: no such study at this site")
        found = current(connection, study)
        if revision not in (None, row.revision):
            raise OutdatedError(f"study {study}: its patient was corrected since; it is sent anew")
        if about is not None and about != cause(found, row.revision):
            raise OutdatedError(f"study {study}: newer results took the place of these")
        if about is None:
            review = review or _newest(connection, study)
        if not found and review is None:
            raise NotFoundError(f"study {study}: no model analysed it, so that there is nothing to send")
        # A study that no model analysed is told by its reader alone, of all that is displayed.
        told = [result["instance"] for result in found] or [image.id for image in triage.shown(connection, study)]
        images = connection.execute(
            sa.select(store.instance, store.series.c.series_uid, store.series.c.modality)
            .join(store.series, store.series.c.id == store.instance.c.series)
            .where(store.instance.c.id.in_(told))
            .order_by(store.instance.c.received_at, store.instance.c.id)
        ).all()
        signed = _signed(connection, review) if review else None
        replaces = superseding.reports(connection, study, row.revision)
    points = {result["model"]: result["point"] for result in found}
    at = max([result["at"] for result in found] or ([signed.at] if signed else []))
    return Statement(
        cause=cause(found, row.revision),
        base=cause(found),
        revision=row.revision,
        told_at=max(at, row.revised_at) if row.revised_at else at,
        replaces=replaces,
        study=row.id,
        site=row.site,
        study_uid=row.study_uid,
        patient_id=row.patient_id,
        patient_name=row.patient_name,
        birth_date=row.birth_date,
        sex=row.sex,
        accession=row.accession,
        description=row.description,
        acquired_at=row.acquired_at,
        priority=row.priority,
        reason=row.reason,
        finding=row.finding,
        at=at,
        results=tuple(sorted(result["id"] for result in found)),
        pictures=tuple(
            Picture(i.id, i.sop_uid, i.series_uid, i.sop_class, i.modality, i.format, archive.path(i.sha256))
            for i in images
        ),
        said=tuple(_said(model, finding, points) for model in triage.merge(found) for finding in model["findings"]),
        signed=signed,
        research_only=not found or any(result["research_only"] for result in found),
    )


def _said(model: dict[str, Any], finding: dict[str, Any], points: dict[str, str]) -> Said:
    return Said(
        model=model["model_name"],
        model_id=model["model"],
        version=model["version"],
        point=points[model["model"]],
        **{name: finding[name] for name in ("finding", "probability", "threshold", "flagged", "call", "image")},
    )


def _newest(connection: Connection, study: str) -> str | None:
    table = store.review.c
    wanted = sa.select(table.id).where(table.study == study, table.state == "signed").order_by(table.signed_at.desc())
    found: str | None = connection.execute(wanted.limit(1)).scalar()
    return found


def _signed(connection: Connection, review: str) -> Signed:
    row = connection.execute(sa.select(store.review).where(store.review.c.id == review)).first()
    if row is None or row.state != "signed":
        raise NotFoundError(f"review {review[:64]}: no such signed review")
    answers = connection.execute(
        sa.select(store.review_finding.c.finding, store.review_finding.c.answer)
        .where(store.review_finding.c.review == review)
        .order_by(store.review_finding.c.finding)
    ).all()
    return Signed(
        review=row.id,
        reader=row.reader,
        normal=row.normal,
        verdict=row.model_verdict,
        note=row.note,
        answers={answer.finding: answer.answer for answer in answers},
        at=row.signed_at,
        parent=row.parent,
    )

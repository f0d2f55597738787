"""A study on paper: what is known about it, what the models called, what a reader signed. As a page and as PDF.

A report shows the original; an overlay stands beside it, on request, and never instead of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
import sqlalchemy as sa
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray

from wetread import __version__
from wetread.clinic import audit, store, triage, unnamed
from wetread.clinic.access import Caller
from wetread.clinic.service import Clinic
from wetread.clinic.worklist import Study
from wetread.errors import NotFoundError
from wetread.findings import HARMLESS
from wetread.infer import heatmap
from wetread.radiograph.read import Limits, read
from wetread.web import covering, images, language, look, report_pdf, security, view
from wetread.web.api import clinic_of
from wetread.web.language import N_, word
from wetread.web.language import gettext as _
from wetread.web.pages import Reader, render
from wetread.web.security import Viewer

router = APIRouter(prefix="/api/v1")
pages = APIRouter(include_in_schema=False)

SIDE = 1024  # longer side of a picture in a report, in pixels
BANNER = N_("Research use only: an AI triage result is not a report and not for diagnosis.")
UNSIGNED = N_("No reader has signed this study. What stands here is an AI triage result and no report.")
_PDF: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/pdf": {"schema": {"type": "string", "format": "binary"}}}}
}
_ANSWERED = {
    ("agree", "likely"): N_("present"),
    ("agree", "unsure"): N_("present"),
    ("agree", "unlikely"): N_("absent"),
    ("disagree", "unsure"): N_("absent"),
    ("disagree", "likely"): N_("absent"),
    ("disagree", "unlikely"): N_("present"),
}


@dataclass(frozen=True)
class Picture:
    """An image of the study; `overlays` are finding, call and model of those drawn beside it."""

    image: str
    label: str
    name: str
    overlays: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Said:
    """What a model called, in words: finding, call, whether it is flagged, depth in the tree."""

    name: str
    version: str
    id: str
    point: str
    calls: tuple[tuple[str, str, bool, int], ...]

    @property
    def words(self) -> str:
        """Which model it was."""
        name = " ".join(filter(None, (self.name, self.version)))
        return _(
            "Model %(name)s, package %(package)s, operating point %(point)s",
            name=name,
            package=self.id[:12],
            point=self.point,
        )


@dataclass(frozen=True)
class Signed:
    """A signed review, or an addendum to one, as lines."""

    title: str
    lines: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Report:
    """All that a report says; every time is in the site's zone."""

    study: str
    patient: str
    identity: tuple[tuple[str, str], ...]
    acquisition: tuple[tuple[str, str], ...]
    pictures: tuple[Picture, ...]
    triage: tuple[str, ...]
    models: tuple[Said, ...]
    cautions: tuple[str, ...]
    signed: tuple[Signed, ...]
    banner: str
    demo: bool
    made: str

    @property
    def unsigned(self) -> str:
        """What must be said of what no reader has signed."""
        return "" if self.signed else word(UNSIGNED)

    @property
    def title(self) -> str:
        """What this is: only what a reader has signed is a report."""
        return _("Radiograph report") if self.signed else _("AI triage result")


def told(at: datetime, clinic: Clinic) -> str:
    """Return a time as the site's clock shows it (setting `zone`, else UTC), with its zone."""
    zone = ZoneInfo(clinic.settings.zone) if clinic.settings.zone else UTC
    there = at.astimezone(zone)
    return f"{language.moment(there, _('YYYY-MM-DD hh:mm'))} {there:%Z}"


def build(clinic: Clinic, found: Study, reader: str, *, overlay: bool = False) -> Report:
    """Put together what a report of a study says.

    Parameters
    ----------
    found : Study
        As this reader may see it.
    overlay : bool
        Name the overlays that are to stand beside the images: of each model the most probable flagged finding.
    """
    row, words = found.row, view.reading(found, reader)
    versions, restricted = _models(clinic, found)
    stored = [image for image in found.images if image.state == "stored"]
    unknown = language.told(unnamed.KEPT_BACK) if found.unnamed else _("unknown")
    labels = {image["image"]: image["label"] for image in words["images"]}
    return Report(
        study=row.study,
        patient=words["patient"],
        identity=(
            (_("Name"), row.patient_name or unknown),
            (_("Patient ID"), row.patient_id or unknown),
            (_("Birth date"), view.day(found.birth_date) or unknown),
            (_("Sex, age"), view.age_sex(row) or unknown),
            (_("Accession"), found.accession or (unknown if found.unnamed else _("none"))),
        ),
        acquisition=(
            (_("Study"), found.description or row.title or _("no description")),
            (_("Acquired"), _acquired(found.acquired_at) or unknown),
            (_("Received"), told(row.received_at, clinic)),
            (_("Views"), row.views or unknown),
            (_("Images"), str(len(stored))),
        ),
        pictures=tuple(
            Picture(image.image, labels[image.image], image.name, _overlays(image.results) if overlay else ())
            for image in stored
        ),
        triage=(
            _("Priority: %(class)s", **{"class": word(row.priority, "class")}),
            *([_("Why: %(reason)s", reason=language.told(row.reason))] if row.reason else []),
        ),
        models=tuple(
            Said(
                model["name"],
                versions.get(model["name"], ""),
                model["id"],
                next((finding["point"] for finding in model["findings"]), ""),
                tuple((f["finding"], f["call"], f["flagged"], f["level"]) for f in model["findings"]),
            )
            for model in words["findings"]
        ),
        cautions=(*words["refusals"], *map(language.told, found.cautions)),
        signed=_signed(clinic, found),
        banner=word(BANNER) if restricted else "",
        demo=clinic.settings.demo,
        made=_("Made %(when)s by Wetread %(version)s", when=told(store.now(), clinic), version=__version__),
    )


def _acquired(at: str | None) -> str:
    return _("%(when)s (the device's clock)", when=view.moment(at)) if at else ""


def _models(clinic: Clinic, found: Study) -> tuple[dict[str, str], bool]:
    """Return the version of each model, and whether any of them is for research only."""
    with clinic.database.read() as connection:
        rows = triage.latest(connection, found.row.study, [image.image for image in found.images])
    restricted = any(row["research_only"] for row in rows) if rows else clinic.research_only
    return {row["model_name"]: row["version"] for row in rows}, restricted


def _overlays(results: Iterable[Any]) -> tuple[tuple[str, str, str], ...]:
    found = []
    for result in results:
        flagged = [f for f in result.findings if f["flagged"] and f["finding"] not in HARMLESS]
        if result.suitable and result.box and flagged:
            top = max(flagged, key=lambda f: (f["probability"], f["finding"]))
            found.append((top["finding"], top["call"], result.model))
    return tuple(found)


def _signed(clinic: Clinic, found: Study) -> tuple[Signed, ...]:
    """Return the reviews in force, oldest first, with their addenda; drafts are their reader's own."""
    reviews = sorted(
        (review for review in found.reviews if review.state == "signed" and review.signed_at),
        key=lambda review: (review.signed_at, review.review),
    )
    table = store.review_finding.c
    wanted = sa.select(table.review, table.finding, table.answer, table.call)
    with clinic.database.read() as connection:
        rows = connection.execute(
            wanted.where(table.review.in_([review.review for review in reviews])).order_by(table.finding)
        ).all()
    made = []
    for review in reviews:
        lines = [_("Normal.")] if review.normal else []
        lines += [_line(row.finding, row.answer, row.call) for row in rows if row.review == review.review]
        lines += (
            [_("The model, over all: %(verdict)s.", verdict=word(review.verdict, "verdict"))] if review.verdict else []
        )
        assert review.signed_at is not None
        by = {"reader": review.reader, "when": told(review.signed_at, clinic)}
        title = (
            _("Addendum signed by %(reader)s, %(when)s", **by)
            if review.parent
            else _("Signed by %(reader)s, %(when)s", **by)
        )
        lines = lines or [_("No finding answered.")]
        if review.signed_at + clinic.undo > store.now():
            lines.append(_("Not final yet: the signature can still be taken back."))
        made.append(Signed(title, tuple(lines), review.note))
    return tuple(made)


def _line(finding: str, answer: str, call: str | None) -> str:
    named = word(finding, "finding")
    if answer == "added":
        return _("%(finding)s: present, named by no model.", finding=named)
    said = word(_ANSWERED.get((answer, call or ""), N_("uncertain")))
    return _(
        "%(finding)s: %(answer)s (model: %(call)s).",
        finding=named,
        answer=said,
        call=word(call, "call") or _("nothing"),
    )


def _load(request: Request, caller: Caller, study: str, *, overlay: bool) -> Report:
    clinic = clinic_of(request)
    found = covering.study(clinic, caller, study)
    security.saw(request, caller, study)
    return build(clinic, found, caller.name, overlay=overlay)


Overlay = Annotated[bool, Query(description="Show beside each image where the model saw its most probable finding.")]


@router.get("/studies/{study}/report.pdf", tags=["studies"], response_class=Response, responses=_PDF)
def get_report(
    request: Request, study: str, caller: Viewer, overlay: Overlay = False, paper: Literal["A4", "Letter"] | None = None
) -> Response:
    """Return a study as PDF: identity, the original image, what the models called, what a reader signed."""
    with look.shown(look.of(request, caller)):
        return _printed(request, caller, study, overlay, paper)


def _printed(request: Request, caller: Caller, study: str, overlay: bool, paper: str | None) -> Response:
    """Return the PDF in the reader's language."""
    clinic = clinic_of(request)
    report = _load(request, caller, study, overlay=overlay)
    drawn = {picture.image: _pictures(request, caller, picture) for picture in report.pictures}
    made = report_pdf.draw(report, drawn, paper=paper or clinic.settings.report_paper, font=clinic.settings.report_font)
    with clinic.database.write() as connection:
        audit.record(connection, caller.site, caller.name, "report.printed", study, {"overlay": overlay})
    headers = {"Content-Disposition": 'inline; filename="report.pdf"'}
    return Response(made, media_type="application/pdf", headers=headers)


def _pictures(request: Request, caller: Caller, picture: Picture) -> list[NDArray[np.uint8]]:
    """Return the original, reduced, and then each overlay over it."""
    clinic = clinic_of(request)
    table = store.instance.c
    wanted = sa.select(table.sha256).where(table.id == picture.image, table.site == caller.site)
    with clinic.database.read() as connection:
        sha256 = connection.execute(wanted).scalar_one()
    small = images.small(read(clinic.archive.path(sha256), name="image", limits=Limits.of(clinic.settings)), SIDE)
    drawn = [small]
    for finding, _call, model in picture.overlays:
        found = images.get_heatmap(request, picture.image, caller, finding, model)
        values = np.asarray(found.values, np.float32).reshape(found.rows, found.columns)
        left, top, right, bottom = found.box
        drawn.append(heatmap.overlay(small, heatmap.to_image(values, (left, top, right, bottom), small.shape), 0.6))
    return drawn


@pages.get("/studies/{study}/report")
def report_page(request: Request, caller: Reader, study: str, overlay: Overlay = False) -> Response:
    """Show a study as it is printed."""
    try:
        report = _load(request, caller, study, overlay=overlay)
    except NotFoundError as error:
        return render(request, "problem.html", 404, title=N_("No such study"), detail=str(error))
    return render(request, "report.html", report=report, overlay=overlay, side=SIDE)

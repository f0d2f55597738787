"""Critical findings over HTTP: which are open, and what readers do about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from wetread.clinic.access import Caller
from wetread.clinic.critical import Alert, Criticals
from wetread.errors import ClinicError
from wetread.web import covering, security
from wetread.web.api import clinic_of
from wetread.web.language import N_, word
from wetread.web.language import gettext as _
from wetread.web.security import Reviewer, Viewer

router = APIRouter(prefix="/api/v1", tags=["critical"])


class AlertOut(BaseModel):
    """An open alert: a critical finding of which nobody was told."""

    model_config = ConfigDict(from_attributes=True)

    alert: str
    study: str
    source: Literal["ai", "reader"]
    finding: str
    opened_at: datetime
    acknowledged_at: datetime | None
    confirmed_at: datetime | None
    stage: Literal["acknowledge", "sign", "tell"] | None = Field(description="What is owed.")
    due_at: datetime | None = Field(description="Until when.")
    escalated: int = Field(description="How often it was escalated for that.")


class CommunicationOut(BaseModel):
    """What was done about a critical finding."""

    model_config = ConfigDict(from_attributes=True)

    kind: Literal["acknowledged", "communicated", "escalated", "closed"]
    finding: str
    actor: str
    recipient: str
    how: str
    read_back: bool | None
    note: str
    at: datetime
    recorded_at: datetime


class CriticalOut(BaseModel):
    """A study's open alert, and all that was done about its critical findings."""

    alert: AlertOut | None
    communications: list[CommunicationOut]


class CommunicationIn(BaseModel):
    """What a reader did: `acknowledged` needs nothing else, `closed` a note, `communicated` who was told and how."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["acknowledged", "communicated", "closed"]
    recipient: str = Field("", max_length=400, description="Who was told.")
    how: Literal["phone", "in person", "message"] | None = None
    read_back: bool | None = Field(None, description="Whether they repeated it.")
    at: datetime | None = Field(None, description="When, with a zone; by default now.")
    note: str = Field("", max_length=4000)


def criticals(request: Request) -> Criticals:
    """Return the critical findings of the clinic."""
    return clinic_of(request).critical


_WORDS = {
    "acknowledge": N_("acknowledge within"),
    "tell": N_("signed; tell and record within"),
    "sign": N_("acknowledged; sign within"),
    None: N_("acknowledged, not signed"),
}
_SHOWN = 5  # of the other studies, on a study page


def lines(request: Request, caller: Caller, study: str | None = None) -> list[dict[str, Any]]:
    """Return what the strip shows: on the page of a study that one first, in place of its link."""
    alerts = seen(request, caller, criticals(request).listing(caller.site))
    found = [
        {
            "study": alert.study,
            "here": alert.study == study,
            "finding": alert.finding,
            "patient": (caller.sees_patients and (alert.patient_name or alert.patient_id))
            or _("study %(id)s", id=alert.study[:8]),
            "stage": alert.stage or "",
            "words": word(_WORDS[alert.stage]),
            "due": alert.due_at,
            "escalated": alert.escalated,
        }
        for alert in alerts
    ]
    found.sort(key=lambda line: not line["here"])
    return found if study is None else found[: _SHOWN + 1]


def seen(request: Request, caller: Caller, alerts: Sequence[Alert]) -> list[Alert]:
    """Return alerts without the findings of AI that are kept from this caller; see `covering`."""
    hidden = covering.hidden(clinic_of(request), caller, [alert.study for alert in alerts])
    return [replace(a, finding="") if a.study in hidden and a.source == "ai" else a for a in alerts]


@router.get("/critical")
def get_critical(request: Request, caller: Viewer) -> list[AlertOut]:
    """Return the site's critical findings of which nobody was told, the oldest first."""
    security.saw(request, caller)
    alerts = seen(request, caller, criticals(request).listing(caller.site))
    return [AlertOut.model_validate(alert) for alert in alerts]


@router.get("/studies/{study}/communications")
def get_communications(request: Request, study: str, caller: Viewer) -> CriticalOut:
    """Return what is owed and what was done about a study's critical findings."""
    alert, done = criticals(request).of(caller.site, study)
    security.saw(request, caller, study)
    if covering.hides(clinic_of(request), caller, study):
        alert = seen(request, caller, [alert])[0] if alert else None
        done = [replace(each, finding="") for each in done]
    return CriticalOut(
        alert=AlertOut.model_validate(alert) if alert else None,
        communications=[CommunicationOut.model_validate(each) for each in done],
    )


@router.post("/studies/{study}/communications", status_code=201)
def add_communication(request: Request, study: str, body: CommunicationIn, caller: Reviewer) -> CriticalOut:
    """Acknowledge a critical finding, record who was told of it, or close it with the reason."""
    found = criticals(request)
    if body.kind == "acknowledged":
        found.acknowledge(caller.site, study, caller.name)
    elif body.kind == "closed":
        found.close(caller.site, study, caller.name, note=body.note)
    else:
        if body.how is None or body.read_back is None:
            missing = "how" if body.how is None else "read_back"
            raise ClinicError(f"{missing}: is missing; say how they were told, and whether they read it back")
        found.tell(
            caller.site, study, caller.name, recipient=body.recipient, how=body.how, read_back=body.read_back,
            at=_utc(body.at), note=body.note,
        )  # fmt: skip
    return get_communications(request, study, caller)


def _utc(at: datetime | None) -> datetime | None:
    if at is None:
        return None
    if at.tzinfo is None:
        raise ClinicError("at: without a zone it could mean anything; write 2026-01-31T08:00:00Z")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ClinicError("at: too far away") from None

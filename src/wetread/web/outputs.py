"""What goes out: a study's report, capture and FHIR bundle for whoever fetches them, and what could not be sent."""

from __future__ import annotations

from datetime import datetime
from io import BytesIO
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field
from pydicom.dataset import Dataset

from wetread.clinic import capture, delivery, fhir, statement, store, structured_report
from wetread.clinic.access import Caller, Right
from wetread.clinic.statement import Statement
from wetread.errors import NotFoundError
from wetread.radiograph.read import Limits
from wetread.web import covering, security
from wetread.web.api import clinic_of
from wetread.web.pages import by_form, render, with_right
from wetread.web.security import Operator, Viewer

router = APIRouter(prefix="/api/v1")
pages = APIRouter(include_in_schema=False)

State = Literal["queued", "failed", "sent", "given_up", "nothing"]
_DICOM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/dicom": {"schema": {"type": "string", "format": "binary"}}}}
}
_FHIR: dict[int | str, dict[str, Any]] = {200: {"content": {"application/fhir+json": {"schema": {"type": "object"}}}}}


class DeliveryOut(BaseModel):
    """Something that is owed to another system, or was."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    study: str
    kind: Literal["sr", "sc", "fhir", "hl7", "webhook"]
    destination: str
    state: State = Field(description="`failed` is tried again at `due_at`; `nothing`: there was nothing to send.")
    tries: int
    due_at: datetime
    error: str | None
    created_at: datetime
    sent_at: datetime | None
    revision: int = Field(description="How often the patient of the study had been corrected.")


def _statement(request: Request, caller: Caller, study: str) -> Statement:
    clinic = clinic_of(request)
    covering.named(caller, "what goes out")
    found = statement.load(clinic.database, clinic.archive, study, site=caller.site)
    covering.refuse(clinic, caller, study)
    security.saw(request, caller, study)
    return found


def _file(made: Dataset, name: str, more: dict[str, str] | None = None) -> Response:
    made.save_as(buffer := BytesIO(), enforce_file_format=True)
    headers = {"Content-Disposition": f'attachment; filename="{name}"'} | (more or {})
    return Response(buffer.getvalue(), media_type="application/dicom", headers=headers)


@router.get("/studies/{study}/sr", tags=["studies"], response_class=Response, responses=_DICOM)
def get_sr(request: Request, study: str, caller: Viewer) -> Response:
    """Return the AI triage result as DICOM SR (TID 1500); 422 for a study without DICOM images."""
    return _file(structured_report.build(_statement(request, caller, study)), "ai-triage-sr.dcm")


@router.get("/studies/{study}/sc", tags=["studies"], response_class=Response, responses=_DICOM)
def get_sc(
    request: Request,
    study: str,
    caller: Viewer,
    number: Annotated[int, Query(ge=1, le=1000, description="Which one; `Wetread-Count` says how many.")] = 1,
) -> Response:
    """Return original beside overlay as DICOM Secondary Capture; 422 for a study without DICOM images."""
    clinic, settings = clinic_of(request), clinic_of(request).settings
    limits = Limits.of(settings)
    made = capture.build(_statement(request, caller, study), clinic.database, limits)
    if number > len(made):
        raise NotFoundError(f"number {number}: this study has {len(made)}")
    return _file(made[number - 1], f"ai-triage-sc-{number}.dcm", {"Wetread-Count": str(len(made))})


@router.get("/studies/{study}/fhir", tags=["studies"], response_class=JSONResponse, responses=_FHIR)
def get_fhir(request: Request, study: str, caller: Viewer) -> JSONResponse:
    """Return the AI triage result, and what a reader signed, as a transaction of FHIR R4."""
    clinic, said = clinic_of(request), _statement(request, caller, study)
    final = said.signed is None or said.signed.at + clinic.undo <= store.now()
    bundle = fhir.build(said, patients=clinic.settings.outputs_patients, final=final)
    return JSONResponse(bundle, media_type="application/fhir+json")


@router.get("/deliveries", tags=["operations"])
def get_deliveries(
    request: Request,
    caller: Operator,
    state: Annotated[
        list[State] | None, Query(description="By default what has not arrived, or with a study everything.")
    ] = None,
    study: Annotated[str | None, Query(max_length=64, description="Only of this study.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> list[DeliveryOut]:
    """Return what is owed to other systems, the newest first."""
    states = state or (delivery.STATES if study else delivery.UNSENT)
    found = delivery.listing(clinic_of(request).database, caller.site, states=states, study=study, limit=limit)
    return [DeliveryOut.model_validate(row) for row in found]


@router.post("/deliveries/{delivery_id}/retry", tags=["operations"], status_code=204)
def retry_delivery(request: Request, delivery_id: str, caller: Operator) -> Response:
    """Try a delivery again at once, as often as a new one."""
    delivery.retry(clinic_of(request).database, caller.site, delivery_id, caller.name)
    return Response(status_code=204)


@router.delete("/deliveries/{delivery_id}", tags=["operations"], status_code=204)
def dismiss_delivery(request: Request, delivery_id: str, caller: Operator) -> Response:
    """Let a delivery be: it is not tried again, and no longer shown as undelivered."""
    delivery.dismiss(clinic_of(request).database, caller.site, delivery_id, caller.name)
    return Response(status_code=204)


@pages.get("/deliveries")
def deliveries_page(request: Request, caller: Annotated[Caller, with_right(Right.OPERATE)]) -> Response:
    """Show what has not arrived."""
    clinic = clinic_of(request)
    return render(
        request,
        "deliveries.html",
        caller=caller,
        rows=delivery.listing(clinic.database, caller.site),
        destinations=clinic.outbox.destinations,
    )


@pages.post("/deliveries/{delivery_id}/retry")
def retry_from_page(request: Request, delivery_id: str, caller: Annotated[Caller, by_form(Right.OPERATE)]) -> Response:
    """Try a delivery again."""
    delivery.retry(clinic_of(request).database, caller.site, delivery_id, caller.name)
    return RedirectResponse("/deliveries", 303)


@pages.post("/deliveries/{delivery_id}/dismiss")
def dismiss_from_page(
    request: Request, delivery_id: str, caller: Annotated[Caller, by_form(Right.OPERATE)]
) -> Response:
    """Let a delivery be."""
    delivery.dismiss(clinic_of(request).database, caller.site, delivery_id, caller.name)
    return RedirectResponse("/deliveries", 303)

"""The HTTP API: studies in, worklist out, reviews back. Thin: each route calls one function of the clinic."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from wetread.clinic import blind, claims, fetch, own_call, reviews, upload, worklist
from wetread.clinic.access import Caller, Right
from wetread.clinic.service import Clinic
from wetread.clinic.upload import Receipt
from wetread.errors import ClinicError
from wetread.web import covering, schemas, security
from wetread.web.security import Administrator, Reviewer, Uploader, Viewer

router = APIRouter(prefix="/api/v1")

_FORM = {
    "type": "object",
    "properties": {
        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "url": {"type": "string", "format": "uri"},
        "study": {"type": "string", "maxLength": 64},
        "priority": {"type": "string", "enum": ["critical", "urgent", "routine"]},
    },
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            "application/json": {"schema": schemas.UrlIn.model_json_schema()},
        },
    }
}


def clinic_of(request: Request) -> Clinic:
    """Return the clinic that this application serves."""
    clinic: Clinic = request.app.state.clinic
    return clinic


@router.post("/studies", status_code=201, tags=["studies"], openapi_extra=_BODY)
async def add_studies(
    request: Request,
    caller: Uploader,
    wait: Annotated[float, Query(ge=0, le=30, description="Seconds to wait for the analysis.")] = 0.0,
) -> schemas.ReceiptOut:
    """Send radiographs: DICOM, JPEG, PNG, WebP, TIFF, or zip archives of them, or the URL of one.

    The answer comes when everything that it lists under `images` is safe on disk. A file without a Study Instance UID
    becomes a study of its own, unless `study` names a study (by its id, or by a label of your own for several files
    that belong together). `priority` is a floor that AI may raise and never lower.
    """
    clinic = clinic_of(request)
    clinic.require_room()  # before anything of the body is kept anywhere
    if request.headers.get("content-type", "").split(";")[0].strip().lower() == "application/json":
        try:
            body = schemas.UrlIn.model_validate_json(await request.body())
        except ValidationError as error:
            first = error.errors()[0]
            raise ClinicError(f"body: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        return await run_in_threadpool(_add, clinic, caller, [], [body.url], body.study, body.priority, wait)
    async with request.form(max_files=clinic.settings.max_files, max_fields=100) as form:
        files = [(v.filename or "file", v.file) for _, v in form.multi_items() if isinstance(v, UploadFile)]
        urls = [value for value in form.getlist("url") if isinstance(value, str) and value]
        study, priority = (_field(form.get(name)) for name in ("study", "priority"))
        return await run_in_threadpool(_add, clinic, caller, files, urls, study, priority, wait)


def _field(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _add(
    clinic: Clinic,
    caller: Caller,
    files: Sequence[tuple[str, BinaryIO]],
    urls: Sequence[str],
    study: str | None,
    priority: str | None,
    wait: float,
) -> schemas.ReceiptOut:
    if not files and not urls:
        raise ClinicError("nothing was sent: put radiographs into the form field `files`, or an address into `url`")
    if len(urls) > fetch.AT_ONCE:
        raise ClinicError(f"url: {len(urls)} addresses; give at most {fetch.AT_ONCE} at a time")
    settings = clinic.settings
    with ExitStack() as stack:
        fetched = [
            stack.enter_context(fetch.get(url, max_bytes=settings.max_bytes, timeout_s=settings.url_timeout_s))
            for url in urls
        ]
        receipt = upload.take(
            clinic.intake,
            [*files, *fetched],
            caller.site,
            actor=caller.name,
            corrects=caller.may(Right.CORRECT),
            study=study,
            requested=priority,
            max_files=settings.max_files,
            max_total=settings.max_upload_bytes,
        )
    if receipt.error is not None and not receipt.received:
        raise receipt.error
    return _receipt(clinic, caller, receipt, wait)


def _receipt(clinic: Clinic, caller: Caller, receipt: Receipt, wait: float) -> schemas.ReceiptOut:
    site = caller.site
    keys = list(dict.fromkeys(image.study for image in receipt.received))
    rows = [worklist.row(clinic.database, site, key) for key in keys]
    until = time.monotonic() + (wait if clinic.models else 0.0)
    while any(row.analysis == "received" for row in rows) and time.monotonic() < until:
        time.sleep(0.01)
        rows = [worklist.row(clinic.database, site, key) for key in keys]
    rows = covering.rows(clinic, caller, rows)
    new = {image.study for image in receipt.received if image.new}
    return schemas.ReceiptOut(
        studies=[
            schemas.ReceivedStudy(
                study=row.study,
                status=row.status,
                priority=row.priority,
                reason=row.reason,
                code=row.code,
                new=row.study in new,
            )
            for row in rows
        ],
        images=[
            schemas.ReceivedImage(
                file=i.name, image=i.image, study=i.study, new=i.new, quarantined=i.quarantined, corrected=i.corrected
            )
            for i in receipt.received
        ],
        refused=[schemas.RefusedFile.model_validate(refused) for refused in receipt.refused],
        skipped=receipt.skipped,
    )


@router.get("/studies/{study}", tags=["studies"])
def get_study(request: Request, study: str, caller: Viewer) -> schemas.StudyOut:
    """Return a study: its state, its place in the list and why, findings, images, cautions, claim, reviews."""
    clinic = clinic_of(request)
    found = covering.study(clinic, caller, study)
    security.saw(request, caller, study)
    return schemas.study_out(found, clinic.undo)


@router.post("/studies/{study}/claim", tags=["reviews"])
def claim_study(request: Request, study: str, caller: Reviewer) -> schemas.RowOut:
    """Say that you are reading this study; the claim runs out by itself and can be prolonged by claiming again."""
    clinic = clinic_of(request)
    claims.claim(clinic.database, caller.site, study, caller.name, life=clinic.claim_life)
    security.saw(request, caller, study)
    return covering.row_out(clinic, caller, study)


@router.delete("/studies/{study}/claim", tags=["reviews"])
def release_study(request: Request, study: str, caller: Reviewer) -> schemas.RowOut:
    """Give your claim back."""
    clinic = clinic_of(request)
    claims.release(clinic.database, caller.site, study, caller.name)
    security.saw(request, caller, study)
    return covering.row_out(clinic, caller, study)


@router.post("/studies/{study}/reviews", status_code=201, tags=["reviews"])
def add_review(request: Request, study: str, body: schemas.ReviewIn, caller: Reviewer) -> schemas.ReviewOut:
    """Keep a draft, or sign. What is signed is never changed; a new image opens the study again.

    With `parent` it is an addendum to a signed study. With `seen`, what arrived unseen is not signed over: the answer
    is 409, with the new images' ids under `images`.
    """
    clinic = clinic_of(request)
    database, said = clinic.database, "findings" in body.model_fields_set or body.parent is None
    key = reviews.save(
        database,
        caller.site,
        study,
        caller.name,
        answers={a.finding: a.answer for a in body.findings if a.answer != "added"} if said else None,
        added=[a.finding for a in body.findings if a.answer == "added"] if said else None,
        verdict=body.model_verdict,
        normal=body.normal,
        note=body.note,
        sign=body.state == "signed",
        seen=body.seen,
        parent=body.parent,
        version=None if body.revision is None else reviews.Version(body.revision, body.writer),
        is_blind=blind.applies(clinic.settings, caller.site, study),
        life=clinic.claim_life,
    )
    return _review(clinic, caller, study, key)


@router.delete("/studies/{study}/signature", tags=["reviews"])
def withdraw_signature(request: Request, study: str, caller: Reviewer) -> schemas.ReviewOut:
    """Take your newest signature back, as long as the setting `undo_seconds` allows; the answer is your draft again."""
    clinic = clinic_of(request)
    key = reviews.withdraw(clinic.database, caller.site, study, caller.name, within=clinic.undo, life=clinic.claim_life)
    return _review(clinic, caller, study, key)


@router.post("/studies/{study}/own-call", status_code=201, tags=["reviews"])
def add_own_call(request: Request, study: str, body: schemas.OwnCallIn, caller: Reviewer) -> schemas.ReviewOut:
    """Say what you see in a study that is read blind; afterwards you are shown what the models say."""
    clinic = clinic_of(request)
    key = own_call.record(
        clinic.database,
        caller.site,
        study,
        caller.name,
        is_blind=blind.applies(clinic.settings, caller.site, study),
        normal=body.normal,
        findings=body.findings,
        life=clinic.claim_life,
    )
    return _review(clinic, caller, study, key)


def _review(clinic: Clinic, caller: Caller, study: str, key: str) -> schemas.ReviewOut:
    found = worklist.study(clinic.database, caller.site, study)
    return schemas.review_out(next(review for review in found.reviews if review.review == key), clinic.undo)


@router.get("/ai", tags=["operations"])
def get_ai(request: Request, caller: Viewer) -> schemas.AiOut:
    """Return whether AI orders the list, and which models serve."""
    return schemas.AiOut.model_validate(clinic_of(request).ai(caller.site))


@router.put("/ai", tags=["operations"])
def put_ai(request: Request, body: schemas.SwitchIn, caller: Administrator) -> schemas.AiOut:
    """Turn all of the site's AI, or one model, on or off; off means first come, first served."""
    clinic = clinic_of(request)
    clinic.switch_ai(caller.site, body.on, caller.name, model=body.model, reason=body.reason)
    return schemas.AiOut.model_validate(clinic.ai(caller.site))

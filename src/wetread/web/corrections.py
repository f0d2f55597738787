"""Corrections by hand over HTTP: the patient of a study, two studies that are one, an image that should not count."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from wetread.clinic import held
from wetread.web import covering, schemas
from wetread.web.api import clinic_of
from wetread.web.security import Administrator, Reviewer

router = APIRouter(prefix="/api/v1", tags=["corrections"])


@router.post("/studies/{study}/patient")
def correct_patient(request: Request, study: str, body: schemas.PatientIn, caller: Administrator) -> schemas.StudyOut:
    """Correct whom a study is of; fields that are left out stay.

    The answer is the study, or the one of the corrected patient into which it was merged. Images that still come with
    the identifier before find it.
    """
    clinic = clinic_of(request)
    values = body.model_dump(exclude={"reason"}, exclude_unset=True)
    key = clinic.corrections.patient(caller.site, study, values, body.reason, caller.name)
    return schemas.study_out(covering.study(clinic, caller, key), clinic.undo)


@router.post("/studies/{study}/merge")
def merge_studies(request: Request, study: str, body: schemas.MergeIn, caller: Administrator) -> schemas.StudyOut:
    """Let another study of the same patient take over this one's images and reviews; the answer is the other."""
    clinic = clinic_of(request)
    clinic.corrections.merge(caller.site, study, body.into, body.reason, caller.name)
    return schemas.study_out(covering.study(clinic, caller, body.into), clinic.undo)


@router.post("/images/{image}/rejection", status_code=201)
def reject_image(request: Request, image: str, body: schemas.RejectionIn, caller: Reviewer) -> schemas.StudyOut:
    """Take an image out of display and ranking; it stays listed with the reason. The answer is its study."""
    clinic = clinic_of(request)
    key = clinic.corrections.reject(caller.site, image, body.reason, caller.name, body.code)
    return schemas.study_out(covering.study(clinic, caller, key), clinic.undo)


@router.post("/images/{image}/release")
def release_image(request: Request, image: str, caller: Administrator) -> schemas.StudyOut:
    """Let a correction take effect that was kept apart because its sender may not correct. The answer is its study."""
    clinic = clinic_of(request)
    key = held.release(clinic.intake, caller.site, image, caller.name).study
    return schemas.study_out(covering.study(clinic, caller, key), clinic.undo)


@router.delete("/images/{image}/rejection")
def restore_image(
    request: Request,
    image: str,
    caller: Reviewer,
    reason: Annotated[str, Query(max_length=500, description="For the audit.")] = "",
) -> schemas.StudyOut:
    """Take the rejection of an image back. The answer is its study."""
    clinic = clinic_of(request)
    key = clinic.corrections.restore(caller.site, image, caller.name, reason)
    return schemas.study_out(covering.study(clinic, caller, key), clinic.undo)

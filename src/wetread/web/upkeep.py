"""For those who keep it running: queues, throughput, latency, room on the disk, processes, what was set aside."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict, Field

from wetread.clinic import held, jobs, load, processes, store
from wetread.clinic.access import Caller, Right
from wetread.clinic.figures import MOST, Period, Spread
from wetread.clinic.service import Clinic
from wetread.web import drift, figures, security  # noqa: F401  the filters of figures
from wetread.web.api import clinic_of
from wetread.web.pages import by_form, render, with_right
from wetread.web.pulls import PullOut
from wetread.web.security import Operator

router = APIRouter(prefix="/api/v1")
pages = APIRouter(include_in_schema=False)

WEEK = 7  # days that throughput is shown of


class ProcessOut(BaseModel):
    """One process that works on this database."""

    model_config = ConfigDict(from_attributes=True)

    kind: str = Field(description="`serve`, or `work` for one that only analyses.")
    host: str
    pid: int
    models: list[str]
    started_at: datetime
    seen_at: datetime


class AsideOut(BaseModel):
    """An analysis that was given up, and why."""

    model_config = ConfigDict(from_attributes=True)

    image: str
    study: str
    model: str
    tries: int
    reason: str


class OperationsOut(BaseModel):
    """How the clinic is doing."""

    has_room: bool = Field(description="When false, nothing is taken in: 507 over HTTP, A700 over DICOM.")
    free_bytes: int = Field(description="What may still be taken in before the reserve of the disk is reached.")
    queued: int
    running: int
    processes: list[ProcessOut]
    aside: list[AsideOut] = Field(description="The newest hundred.")


class RetriedOut(BaseModel):
    """The models that try an image again."""

    models: list[str]


def _state(clinic: Clinic, site: str) -> OperationsOut:
    with clinic.database.read() as connection:
        aside = jobs.aside(connection, site)
        counts: dict[str, int] = {
            row[0]: row[1]
            for row in connection.execute(
                sa.select(store.job.c.state, sa.func.count())
                .where(sa.text("job.state != 'done'"))
                .group_by(store.job.c.state)
            )
        }
    return OperationsOut(
        has_room=clinic.has_room(),
        free_bytes=max(0, int(clinic.free())),
        queued=counts.get("queued", 0),
        running=counts.get("running", 0),
        processes=[ProcessOut.model_validate(row) for row in processes.alive(clinic.database)],
        aside=[AsideOut.model_validate(row) for row in aside],
    )


def _retry(clinic: Clinic, caller: Caller, image: str) -> list[str]:
    models = list(jobs.retry(clinic.database, caller.site, image, caller.name, clinic.policy))
    if clinic.worker is not None:
        clinic.worker.wake()
    return models


@router.get("/operations", tags=["operations"])
def get_operations(request: Request, caller: Operator) -> OperationsOut:
    """Return how the clinic is doing: room, processes, analyses under way and set aside."""
    return _state(clinic_of(request), caller.site)


@router.post("/images/{image}/retry", tags=["images"])
def retry_image(request: Request, image: str, caller: Operator) -> RetriedOut:
    """Try an image again whose analysis was set aside; 409 when none was."""
    return RetriedOut(models=_retry(clinic_of(request), caller, image))


@pages.get("/operations")
def operations_page(request: Request, caller: Annotated[Caller, with_right(Right.OPERATE)]) -> Response:
    """Show how the clinic is doing; the parts that a page asks for by their name alone, too."""
    clinic, part = clinic_of(request), request.headers.get("HX-Target")
    shown: dict[str, Any] = {}
    if part != "flow":
        shown |= _now(clinic, caller.site)
    if part != "now":
        shown |= _flow(clinic, caller.site)
    name = f"operations_{part}.html" if part in ("now", "flow") else "operations.html"
    return render(request, name, caller=caller, may_release=caller.may(Right.ADMINISTER), **shown)


def _now(clinic: Clinic, site: str) -> dict[str, Any]:
    """Return what changes by the second."""
    state, now = _state(clinic, site), store.now()
    with clinic.database.read() as connection:
        waiting = held.listing(connection, site)
        queues, owed = load.queues(connection, site, now), load.owed(connection, site)
        came = load.taken_in(connection, site, Period.last(WEEK, now))
        drifting = drift.alarms(connection, site)
    return {
        "state": state,
        "queues": queues,
        "held": waiting,
        "drifting": drifting,
        "owed": owed,
        "came": came,
        "days_left": state.free_bytes / (came / WEEK) if came else None,
        "names": {model.id: model.name for model in clinic.ai(site).models},
        "pulls": [PullOut.of(row) for row in clinic.pulls.recent(site)],
        "sources": clinic.pulls.sources,
        "shared": clinic.database.shared,
    }


def _flow(clinic: Clinic, site: str) -> dict[str, Any]:
    """Return what changes by the hour: a week of whole hours."""
    until = store.now().replace(minute=0, second=0, microsecond=0)
    with clinic.database.read() as connection:
        flow = load.flow(connection, site, Period(until - timedelta(days=WEEK), until), load.HOUR)
    day = Spread.of(wait for at, wait in flow.each if at >= flow.steps[-24])
    return {"flow": flow, "day": day, "most": MOST}


@pages.post("/images/{image}/release")
def release_from_page(request: Request, image: str, caller: Annotated[Caller, by_form(Right.ADMINISTER)]) -> Response:
    """Let a correction take effect that was kept apart."""
    held.release(clinic_of(request).intake, caller.site, image, caller.name)
    return RedirectResponse("/operations", 303)


@pages.post("/images/{image}/retry")
def retry_from_page(
    request: Request,
    image: str,
    caller: Annotated[Caller, by_form(Right.OPERATE)],
    study: Annotated[uuid.UUID | None, Query(description="Whose page to go back to.")] = None,
) -> Response:
    """Try an image again."""
    _retry(clinic_of(request), caller, image)
    return RedirectResponse("/operations" if study is None else f"/studies/{study}", 303)

"""*Try it*: what the models say about one image that nobody keeps.

Nothing of the image goes into the archive, the database or a log; its bytes are in memory, or in a file without a name
while they come in, and gone with the answer. The audit says that somebody tried, and nothing of what.
"""

from __future__ import annotations

import base64
import threading
from contextlib import AsyncExitStack
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from wetread.clinic import audit, fetch, identity
from wetread.clinic.access import Caller, Right
from wetread.clinic.ai import Served
from wetread.clinic.archive import TooLargeError
from wetread.clinic.service import Clinic
from wetread.clinic.worklist import Finding
from wetread.errors import BusyError, ClinicError, NotFoundError, ReadError
from wetread.infer import heatmap
from wetread.infer.predict import Analysis
from wetread.radiograph.read import Limits, read
from wetread.web import images, view
from wetread.web.api import clinic_of
from wetread.web.pages import render, with_right
from wetread.web.security import Uploader

router = APIRouter(prefix="/api/v1")
pages = APIRouter(include_in_schema=False)

PATH = "/api/v1/try"
SIDE = 1024  # longer side of the picture that comes back, in pixels
SLACK = 2**20  # what a form has besides its file, in bytes
AT_ONCE = 4
_slots = threading.BoundedSemaphore(AT_ONCE)
_WORKING = ("serving", "local")
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "url": {"type": "string", "format": "uri"},
                        "model": {"type": "string", "maxLength": 64},
                    },
                }
            }
        },
    }
}


class TriedFinding(BaseModel):
    """One finding, and where the model saw it: `map` row by row, relative; only positive values speak for it."""

    finding: str
    probability: float
    threshold: float
    flagged: bool
    call: Literal["likely", "unsure", "unlikely"]
    level: int = Field(description="Depth in the tree of findings.")
    rows: int
    columns: int
    values: list[float]


class TriedModel(BaseModel):
    """What one model says, or with `code` and `reason` why it says nothing."""

    model: str
    model_id: str
    version: str
    research_only: bool
    point: str
    suitable: bool
    code: str | None
    reason: str
    cautions: list[str]
    abnormal: float | None
    box: tuple[float, float, float, float] | None
    findings: list[TriedFinding]


class TriedOut(BaseModel):
    """The picture, reduced, as a PNG in base64, and what each model says of it. Nothing of it was kept."""

    picture: str
    rows: int = Field(description="Of the original, in pixels.")
    columns: int
    view: str | None
    models: list[TriedModel]


@router.post("/try", tags=["inference"], openapi_extra=_BODY)
async def try_image(request: Request, caller: Uploader) -> TriedOut:
    """Analyse one image, a `file` or the public address of one in `url`, and forget it.

    `model` names one of the models in service; by default each says what it has to say. An image that cannot be read is
    refused with its code; one that does not suit a model is told with that model's code and reason.
    """
    clinic = clinic_of(request)
    if not _slots.acquire(blocking=False):
        raise BusyError(f"{AT_ONCE} images are being tried already; try again later")
    try:
        async with AsyncExitStack() as stack:
            form = await stack.enter_async_context(request.form(max_files=1, max_fields=10))
            file, url, model = form.get("file"), form.get("url"), form.get("model")
            sent = file.file if isinstance(file, UploadFile) else None
            address = url if isinstance(url, str) and url else None
            chosen = model if isinstance(model, str) and model else None
            return await run_in_threadpool(_try, clinic, caller, sent, address, chosen)
    finally:
        _slots.release()


def _try(clinic: Clinic, caller: Caller, sent: BinaryIO | None, url: str | None, chosen: str | None) -> TriedOut:
    if (sent is None) == (url is None):
        raise ClinicError("send one image as `file`, or the address of one as `url`")
    models = [model for model in _served(clinic, caller.site) if chosen in (None, model.id, model.name)]
    if chosen is not None and not models:
        raise NotFoundError(f"model {chosen[:64]!r}: none of that name is in service")
    settings, code = clinic.settings, ""
    try:
        if url is not None:
            with fetch.get(url, max_bytes=settings.max_bytes, timeout_s=settings.url_timeout_s) as (_, fetched):
                data = _bytes(fetched, settings.max_bytes)
        else:
            assert sent is not None
            data = _bytes(sent, settings.max_bytes)
        return _look(clinic, data, models)
    except ReadError as error:
        code = str(error.code)
        raise
    finally:
        detail = {"by": "file" if url is None else "url", "models": [model.name for model in models], "code": code}
        with clinic.database.write() as connection:
            audit.record(connection, caller.site, caller.name, "image.tried", caller.site, detail)


def _served(clinic: Clinic, site: str) -> list[Served]:
    """Return the models that work, at this site."""
    working = {state.id for state in clinic.ai(site).models if state.state in _WORKING}
    return [model for model in clinic.models.values() if isinstance(model, Served) and model.id in working]


def _bytes(file: BinaryIO, most: int) -> bytes:
    data = file.read(most + 1)
    if len(data) > most:
        raise TooLargeError(f"file: more than {most} bytes; at most so many are read (setting max_bytes)")
    if identity.sniff(data[:4096]) == "zip":
        raise ReadError("file: an archive of files; send one image")
    return data


def _look(clinic: Clinic, data: bytes, models: list[Served]) -> TriedOut:
    radiograph = read(data, name="file", limits=Limits.of(clinic.settings))
    said = [_said(model, model.predictor.analyse(model.predictor.read(data, "file"))) for model in models]
    return TriedOut(
        picture=base64.b64encode(heatmap.png(images.small(radiograph, SIDE))).decode(),
        rows=radiograph.pixels.shape[0],
        columns=radiograph.pixels.shape[1],
        view=radiograph.view,
        models=said,
    )


def _said(model: Served, analysis: Analysis) -> TriedModel:
    order = [result.finding for result in analysis.findings]
    found = [
        Finding(r.finding, model.name, r.probability, r.threshold, r.flagged, r.call, "") for r in analysis.findings
    ]
    ordered = view.tree(found) if found else []
    maps = analysis.maps if analysis.maps is not None else np.zeros((len(order), 0, 0), np.float32)
    return TriedModel(
        model=model.name,
        model_id=model.id,
        version=model.version,
        research_only=model.research_only,
        point=analysis.point,
        suitable=analysis.suitable,
        code=str(analysis.code) if analysis.code else None,
        reason=analysis.reason,
        cautions=list(analysis.cautions),
        abnormal=analysis.abnormal,
        box=analysis.seen.box if analysis.seen is not None else None,
        findings=[_finding(one, level, maps[order.index(one.finding)]) for one, level in ordered],
    )


def _finding(finding: Finding, level: int, values: Any) -> TriedFinding:
    return TriedFinding(
        finding=finding.finding,
        probability=finding.probability,
        threshold=finding.threshold,
        flagged=finding.flagged,
        call=finding.call,
        level=level,
        rows=values.shape[0],
        columns=values.shape[1],
        values=[float(f"{value:.4g}") for value in values.ravel()],
    )


@pages.get("/try")
def try_page(request: Request, caller: Annotated[Caller, with_right(Right.UPLOAD)]) -> Response:
    """Show the page on which an image can be tried."""
    clinic = clinic_of(request)
    models = [(model.id, model.name, model.predictor.package.meta) for model in _served(clinic, caller.site)]
    most = clinic.settings.max_bytes
    return render(request, "try.html", caller=caller, models=models, most=most, size=f"{most / 2**20:.0f} MiB")

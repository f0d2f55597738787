"""DICOMweb (PS3.18): STOW-RS takes instances in, QIDO-RS finds them, WADO-RS gives them out.

Each route decides only what the caller accepts; what is stored and what is said about it is the clinic's.
"""

from __future__ import annotations

import json
from contextlib import aclosing
from functools import partial
from pathlib import Path as File
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from wetread.clinic import query, stow
from wetread.clinic.access import Caller, Right
from wetread.errors import ClinicError
from wetread.web import covering, multipart, negotiate, problems, wado
from wetread.web.api import clinic_of
from wetread.web.negotiate import DICOM, JSON, MULTIPART, OCTETS
from wetread.web.security import Uploader, Viewer, saw


def _said(*codes: int) -> dict[int | str, dict[str, Any]]:
    words = {
        400: "not understood",
        406: "not to be had in what the caller accepts",
        409: "nothing was stored",
        413: "too large",
        415: "not sent as multipart/related of application/dicom",
        507: "no room",
    }
    body = {problems.MEDIA_TYPE: {"schema": problems.SCHEMA}}
    return {code: {"description": words[code], "content": body} for code in codes}


router = APIRouter(prefix="/dicomweb", tags=["dicomweb"], responses=_said(400, 406))

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_DATA_SET = {"type": "object", "additionalProperties": {"type": "object"}}
_LIST = {JSON: {"schema": {"type": "array", "items": _DATA_SET}}}
_FOUND: dict[int | str, dict[str, Any]] = {200: {"content": _LIST}}
_PARTS: dict[int | str, dict[str, Any]] = {200: {"content": {MULTIPART: _BINARY, DICOM: _BINARY, OCTETS: _BINARY}}}
_IMAGE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": _BINARY, "image/png": _BINARY}}}
_DRAWN = {MULTIPART: _BINARY, "image/jpeg": _BINARY, "image/png": _BINARY}
_IMAGES: dict[int | str, dict[str, Any]] = {
    200: {"content": _DRAWN},
    206: {"description": "Some images cannot be drawn.", "content": _DRAWN},
    **_said(413),
}
_STORED = {JSON: {"schema": _DATA_SET}}
_STOW: dict[int | str, dict[str, Any]] = {
    200: {"description": "All instances are stored.", "content": _STORED},
    202: {"description": "Some are not, or with a warning.", "content": _STORED},
    409: {"description": "None is stored.", "content": _STORED | _said(409)[409]["content"]},
    507: {"description": "None is stored: no room.", "content": _STORED | _said(507)[507]["content"]},
    413: {"description": "Too large, the body or each instance.", "content": _STORED | _said(413)[413]["content"]},
    **_said(415),
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {MULTIPART: {"schema": {"type": "string", "format": "binary"}}},
    }
}
Uid = Annotated[str, Path(pattern=r"^[0-9.]{1,64}$")]
Numbers = Annotated[str, Path(pattern=r"^[0-9]{1,9}(,[0-9]{1,9}){0,99}$", description="Numbers of frames, from 1.")]
Tag = Annotated[str, Path(pattern=r"^[0-9a-fA-F]{8}$")]
Limit = Annotated[str | None, Query(description=f"Most results, at most {query.MAX_RESULTS}.")]
Offset = Annotated[str | None, Query(description="How many to leave out at the beginning.")]
Fields = Annotated[str | None, Query(description="Further attributes to return, by keyword or tag, or `all`.")]
Fuzzy = Annotated[str | None, Query(description="Is answered with a warning; matching is literal.")]
Viewport = Annotated[
    str | None, Query(pattern=r"^[0-9]{1,4},[0-9]{1,4}$", description="Width and height to fit into, in pixels.")
]
Quality = Annotated[int, Query(ge=1, le=100)]
Windowing = Annotated[
    str | None,
    Query(
        pattern=r"^-?[0-9]{1,7}(\.[0-9]{1,6})?,[0-9]{1,7}(\.[0-9]{1,6})?(,(linear|linear-exact|sigmoid))?$",
        description="Centre, width and, if not linear, function.",
    ),
]


# ---------------------------------------------------------------------------------------------------- store


@router.post("/studies", responses=_STOW, openapi_extra=_BODY)
async def store_instances(request: Request, caller: Uploader) -> Response:
    """Store instances: `multipart/related; type="application/dicom"`, each part one instance.

    Each part is safe on disk, or refused with a reason, before the next one is read. The same bytes again are a
    success. What was stored before a request breaks off stays stored.
    """
    return await _store(request, caller, None)


@router.post("/studies/{study}", responses=_STOW, openapi_extra=_BODY)
async def store_study(request: Request, study: Uid, caller: Uploader) -> Response:
    """Store instances of one study; those of another are refused."""
    return await _store(request, caller, study)


async def _store(request: Request, caller: Caller, study: str | None) -> Response:
    clinic, media = clinic_of(request), negotiate.single(request, (JSON, "application/json"))
    clinic.require_room()
    kind, options = parse_options_header(request.headers.get("content-type", "").encode("latin-1"))
    boundary = options.get(b"boundary", b"")
    if kind.lower() != MULTIPART.encode() or options.get(b"type", DICOM.encode()).lower() != DICOM.encode():
        raise HTTPException(415, f'Content-Type: must be {MULTIPART}; type="{DICOM}"; boundary=…')
    if not 0 < len(boundary) <= 200:
        raise HTTPException(400, "Content-Type: has no boundary")
    result = stow.Result()
    async with aclosing(multipart.parts(request, boundary, max_parts=clinic.settings.max_files)) as parts:
        async for part in parts:
            if part.media not in ("", DICOM):
                raise HTTPException(415, f"a part of another type than {DICOM}; what came before it was stored")
            path = File(part.file.name)
            corrects = caller.may(Right.CORRECT)
            args = (clinic.intake, path, caller.site, caller.name, study, result)
            await run_in_threadpool(partial(stow.take, *args, corrects=corrects))
    if not result.stored and not result.failed:
        raise HTTPException(400, "nothing was sent: the body has no part")
    answer = result.as_json(wado.root_of(request))
    return Response(json.dumps(answer), result.status, media_type=media)


# ---------------------------------------------------------------------------------------------------- search


@router.get("/studies", responses=_FOUND, response_class=Response)
def search_studies(
    request: Request,
    caller: Viewer,
    limit: Limit = None,
    offset: Offset = None,
    includefield: Fields = None,
    fuzzymatching: Fuzzy = None,
) -> Response:
    """Find studies by attributes: `PatientName=DOE*`, `StudyDate=20260101-20260131`, `ModalitiesInStudy=DX`."""
    return _search(request, caller, "studies", {})


@router.get("/series", responses=_FOUND, response_class=Response)
def search_series(
    request: Request, caller: Viewer, limit: Limit = None, offset: Offset = None, includefield: Fields = None
) -> Response:
    """Find series of all studies."""
    return _search(request, caller, "series", {})


@router.get("/instances", responses=_FOUND, response_class=Response)
def search_instances(
    request: Request, caller: Viewer, limit: Limit = None, offset: Offset = None, includefield: Fields = None
) -> Response:
    """Find instances of all studies."""
    return _search(request, caller, "instances", {})


@router.get("/studies/{study}/series", responses=_FOUND, response_class=Response)
def search_series_of(
    request: Request,
    study: Uid,
    caller: Viewer,
    limit: Limit = None,
    offset: Offset = None,
    includefield: Fields = None,
) -> Response:
    """Find series of a study."""
    return _search(request, caller, "series", {"StudyInstanceUID": study})


@router.get("/studies/{study}/instances", responses=_FOUND, response_class=Response)
def search_instances_of(
    request: Request,
    study: Uid,
    caller: Viewer,
    limit: Limit = None,
    offset: Offset = None,
    includefield: Fields = None,
) -> Response:
    """Find instances of a study."""
    return _search(request, caller, "instances", {"StudyInstanceUID": study})


@router.get("/studies/{study}/series/{series}/instances", responses=_FOUND, response_class=Response)
def search_instances_of_series(
    request: Request,
    study: Uid,
    series: Uid,
    caller: Viewer,
    limit: Limit = None,
    offset: Offset = None,
    includefield: Fields = None,
) -> Response:
    """Find instances of a series."""
    return _search(request, caller, "instances", {"StudyInstanceUID": study, "SeriesInstanceUID": series})


def _search(request: Request, caller: Caller, level: str, place: dict[str, str]) -> Response:
    media = negotiate.single(request, (JSON, "application/json"))
    given = [(name, value) for name, value in request.query_params.multi_items() if name not in ("accept", *place)]
    try:
        wanted = query.parse(level, [*given, *place.items()])
    except ClinicError as error:
        raise HTTPException(400, str(error)) from None
    covering.named(caller, "a list of DICOM studies")
    saw(request, caller)
    clinic = clinic_of(request)
    covered = covering.select(clinic, caller)
    answer = query.search(clinic.database, wado.headers_of(request), caller.site, wanted, covered)
    root = wado.root_of(request)
    for found in answer.found:
        found["00081190"] = {"vr": "UR", "Value": [root + found["00081190"]["Value"][0]]}
    response = wado.as_json(answer.found, media)
    warnings = list(answer.warnings)
    if answer.more and not any(name == "limit" for name, _ in given):
        warnings.append(
            "The number of results exceeded the maximum supported by the server. Additional results can be requested."
        )
    for warning in warnings:
        response.headers.append("Warning", f'299 wetread "{warning}"')
    return response


# ---------------------------------------------------------------------------------------------------- retrieve


@router.get("/studies/{study}", responses=_PARTS, response_class=StreamingResponse)
def retrieve_study(request: Request, study: Uid, caller: Viewer) -> Response:
    """Return the instances of a study; with `transfer-syntax=*` the bytes as they came."""
    return wado.retrieve(request, caller, wado.find(request, caller, study))


@router.get("/studies/{study}/series/{series}", responses=_PARTS, response_class=StreamingResponse)
def retrieve_series(request: Request, study: Uid, series: Uid, caller: Viewer) -> Response:
    """Return the instances of a series."""
    return wado.retrieve(request, caller, wado.find(request, caller, study, series))


@router.get("/studies/{study}/series/{series}/instances/{instance}", responses=_PARTS, response_class=StreamingResponse)
def retrieve_instance(request: Request, study: Uid, series: Uid, instance: Uid, caller: Viewer) -> Response:
    """Return one instance."""
    return wado.retrieve(request, caller, wado.find(request, caller, study, series, instance))


@router.get("/studies/{study}/metadata", responses=_FOUND, response_class=Response)
def study_metadata(request: Request, study: Uid, caller: Viewer) -> Response:
    """Return the headers of a study's instances; large values as `BulkDataURI`."""
    return wado.metadata(request, wado.find(request, caller, study))


@router.get("/studies/{study}/series/{series}/metadata", responses=_FOUND, response_class=Response)
def series_metadata(request: Request, study: Uid, series: Uid, caller: Viewer) -> Response:
    """Return the headers of a series' instances."""
    return wado.metadata(request, wado.find(request, caller, study, series))


@router.get("/studies/{study}/series/{series}/instances/{instance}/metadata", responses=_FOUND, response_class=Response)
def instance_metadata(request: Request, study: Uid, series: Uid, instance: Uid, caller: Viewer) -> Response:
    """Return the header of an instance."""
    return wado.metadata(request, wado.find(request, caller, study, series, instance))


@router.get(
    "/studies/{study}/series/{series}/instances/{instance}/frames/{numbers}",
    responses=_PARTS,
    response_class=Response,
)
def retrieve_frames(
    request: Request, study: Uid, series: Uid, instance: Uid, numbers: Numbers, caller: Viewer
) -> Response:
    """Return frames, decompressed, or as they came when the caller accepts their transfer syntax."""
    wanted = [int(number) for number in numbers.split(",")]
    return wado.frames(request, wado.find(request, caller, study, series, instance)[0], wanted)


@router.get(
    "/studies/{study}/series/{series}/instances/{instance}/bulkdata/{tag}", responses=_PARTS, response_class=Response
)
def retrieve_bulk_data(request: Request, study: Uid, series: Uid, instance: Uid, tag: Tag, caller: Viewer) -> Response:
    """Return one large value, as the metadata's `BulkDataURI` names it."""
    return wado.bulk_data(request, wado.find(request, caller, study, series, instance)[0], tag)


@router.get("/studies/{study}/series/{series}/instances/{instance}/rendered", responses=_IMAGE, response_class=Response)
def render_instance(
    request: Request,
    study: Uid,
    series: Uid,
    instance: Uid,
    caller: Viewer,
    window: Windowing = None,
    viewport: Viewport = None,
    quality: Quality = 90,
) -> Response:
    """Return the first frame as a picture for a screen."""
    return wado.render(request, wado.find(request, caller, study, series, instance)[0], 1, window, viewport, quality)


@router.get(
    "/studies/{study}/series/{series}/instances/{instance}/frames/{number}/rendered",
    responses=_IMAGE,
    response_class=Response,
)
def render_frame(
    request: Request,
    study: Uid,
    series: Uid,
    instance: Uid,
    number: Annotated[int, Path(ge=1, le=10**9)],
    caller: Viewer,
    window: Windowing = None,
    viewport: Viewport = None,
    quality: Quality = 90,
) -> Response:
    """Return a frame as a picture for a screen."""
    return wado.render(
        request, wado.find(request, caller, study, series, instance)[0], number, window, viewport, quality
    )


@router.get("/studies/{study}/rendered", responses=_IMAGES, response_class=StreamingResponse)
def render_study(
    request: Request,
    study: Uid,
    caller: Viewer,
    window: Windowing = None,
    viewport: Viewport = None,
    quality: Quality = 90,
) -> Response:
    """Return the first frame of each image of a study as pictures for a screen."""
    return wado.render_all(request, wado.find(request, caller, study), window, viewport, quality)


@router.get("/studies/{study}/series/{series}/rendered", responses=_IMAGES, response_class=StreamingResponse)
def render_series(
    request: Request,
    study: Uid,
    series: Uid,
    caller: Viewer,
    window: Windowing = None,
    viewport: Viewport = None,
    quality: Quality = 90,
) -> Response:
    """Return the first frame of each image of a series as pictures for a screen."""
    return wado.render_all(request, wado.find(request, caller, study, series), window, viewport, quality)


@router.get("/studies/{study}/thumbnail", responses=_IMAGE, response_class=Response)
def study_thumbnail(request: Request, study: Uid, caller: Viewer, viewport: Viewport = None) -> Response:
    """Return a small picture of a study."""
    return wado.thumbnail(request, wado.find(request, caller, study), viewport)


@router.get("/studies/{study}/series/{series}/thumbnail", responses=_IMAGE, response_class=Response)
def series_thumbnail(request: Request, study: Uid, series: Uid, caller: Viewer, viewport: Viewport = None) -> Response:
    """Return a small picture of a series."""
    return wado.thumbnail(request, wado.find(request, caller, study, series), viewport)


@router.get(
    "/studies/{study}/series/{series}/instances/{instance}/thumbnail", responses=_IMAGE, response_class=Response
)
def instance_thumbnail(
    request: Request, study: Uid, series: Uid, instance: Uid, caller: Viewer, viewport: Viewport = None
) -> Response:
    """Return a small picture of an instance."""
    return wado.thumbnail(request, wado.find(request, caller, study, series, instance), viewport)


@router.get(
    "/studies/{study}/series/{series}/instances/{instance}/frames/{number}/thumbnail",
    responses=_IMAGE,
    response_class=Response,
)
def frame_thumbnail(
    request: Request,
    study: Uid,
    series: Uid,
    instance: Uid,
    number: Annotated[int, Path(ge=1, le=10**9)],
    caller: Viewer,
    viewport: Viewport = None,
) -> Response:
    """Return a small picture of a frame."""
    return wado.thumbnail(request, wado.find(request, caller, study, series, instance), viewport, number)

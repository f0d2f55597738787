"""DICOMweb (PS3.18): STOW-RS takes instances in, QIDO-RS finds them, WADO-RS gives them out.

Each route decides only what the caller accepts; what is stored and what is said about it is the clinic's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path as File
from typing import Annotated, Any

import pydicom.uid
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from wetread.clinic import dicomweb, frames, query, stow
from wetread.clinic.access import Caller
from wetread.clinic.archive import CHUNK
from wetread.clinic.dicomweb import Headers, Held, Json
from wetread.clinic.frames import Frames, Window
from wetread.errors import ClinicError, NotFoundError, ReadError
from wetread.radiograph.read import Limits
from wetread.web import multipart, negotiate, problems
from wetread.web.api import clinic_of
from wetread.web.negotiate import DICOM, FRAMES, JSON, MULTIPART, NATIVE, OCTETS
from wetread.web.security import Uploader, Viewer, saw


def _said(*codes: int) -> dict[int | str, dict[str, Any]]:
    words = {
        400: "not understood",
        406: "not to be had in what the caller accepts",
        408: "the sender fell silent",
        409: "nothing was stored",
        413: "too large",
        415: "not sent as multipart/related of application/dicom",
        507: "no room",
    }
    body = {problems.MEDIA_TYPE: {"schema": problems.SCHEMA}}
    return {code: {"description": words[code], "content": body} for code in codes}


router = APIRouter(prefix="/dicomweb", tags=["dicomweb"], responses=_said(400, 406))

ROOT = "/dicomweb"
THUMBNAIL = 128
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_DATA_SET = {"type": "object", "additionalProperties": {"type": "object"}}
_LIST = {JSON: {"schema": {"type": "array", "items": _DATA_SET}}}
_FOUND: dict[int | str, dict[str, Any]] = {200: {"content": _LIST}}
_PARTS: dict[int | str, dict[str, Any]] = {200: {"content": {MULTIPART: _BINARY, DICOM: _BINARY, OCTETS: _BINARY}}}
_IMAGE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": _BINARY, "image/png": _BINARY}}}
_STORED = {JSON: {"schema": _DATA_SET}}
_STOW: dict[int | str, dict[str, Any]] = {
    200: {"description": "All instances are stored.", "content": _STORED},
    202: {"description": "Some are not, or with a warning.", "content": _STORED},
    409: {"description": "None is stored.", "content": _STORED | _said(409)[409]["content"]},
    507: {"description": "None is stored: no room.", "content": _STORED | _said(507)[507]["content"]},
    **_said(408, 413, 415),
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
            await run_in_threadpool(stow.take, clinic.intake, path, caller.site, caller.name, study, result)
    if not result.stored and not result.failed:
        raise HTTPException(400, "nothing was sent: the body has no part")
    answer = result.as_json(_root(request))
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
    """Find studies by attributes: `PatientName=DOE*`, `StudyDate=20260101-20260131`, `ModalitiesInStudy=DX`, and so on."""
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
    saw(request, caller)
    answer = query.search(clinic_of(request).database, _headers(request), caller.site, wanted)
    root = _root(request)
    for found in answer.found:
        found["00081190"] = {"vr": "UR", "Value": [root + found["00081190"]["Value"][0]]}
    response = _json(answer.found, media)
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
    return _retrieve(request, caller, _find(request, caller, study))


@router.get("/studies/{study}/series/{series}", responses=_PARTS, response_class=StreamingResponse)
def retrieve_series(request: Request, study: Uid, series: Uid, caller: Viewer) -> Response:
    """Return the instances of a series."""
    return _retrieve(request, caller, _find(request, caller, study, series))


@router.get("/studies/{study}/series/{series}/instances/{instance}", responses=_PARTS, response_class=StreamingResponse)
def retrieve_instance(request: Request, study: Uid, series: Uid, instance: Uid, caller: Viewer) -> Response:
    """Return one instance."""
    return _retrieve(request, caller, _find(request, caller, study, series, instance))


@router.get("/studies/{study}/metadata", responses=_FOUND, response_class=Response)
def study_metadata(request: Request, study: Uid, caller: Viewer) -> Response:
    """Return the headers of a study's instances; large values as `BulkDataURI`."""
    return _metadata(request, _find(request, caller, study))


@router.get("/studies/{study}/series/{series}/metadata", responses=_FOUND, response_class=Response)
def series_metadata(request: Request, study: Uid, series: Uid, caller: Viewer) -> Response:
    """Return the headers of a series' instances."""
    return _metadata(request, _find(request, caller, study, series))


@router.get("/studies/{study}/series/{series}/instances/{instance}/metadata", responses=_FOUND, response_class=Response)
def instance_metadata(request: Request, study: Uid, series: Uid, instance: Uid, caller: Viewer) -> Response:
    """Return the header of an instance."""
    return _metadata(request, _find(request, caller, study, series, instance))


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
    found = _frames(request, _find(request, caller, study, series, instance)[0])
    with _Decoding():
        form, media, syntax = _form(request, found, wanted)
        give = found.native if syntax == NATIVE else found.original
        return _deliver(form, media, [(f"{media}; transfer-syntax={syntax}", [give(number)]) for number in wanted])


@router.get(
    "/studies/{study}/series/{series}/instances/{instance}/bulkdata/{tag}", responses=_PARTS, response_class=Response
)
def retrieve_bulk_data(request: Request, study: Uid, series: Uid, instance: Uid, tag: Tag, caller: Viewer) -> Response:
    """Return one large value, as the metadata's `BulkDataURI` names it."""
    held, limits = _find(request, caller, study, series, instance)[0], _limits(request)
    dataset = dicomweb.read(clinic_of(request).archive, held, limits)
    with _Decoding():
        if tag.upper() == dicomweb.PIXELS:
            found = Frames(dataset, limits)
            limits.check("image", found.rows, found.columns, found.samples, found.count)
            value = b"".join(found.native(number) for number in range(1, found.count + 1))
        else:
            try:
                value = dataset[int(tag, 16)].value
            except Exception:  # absent, or nothing that can be expressed
                value = None
    if not isinstance(value, bytes):
        raise NotFoundError(f"{tag}: the instance has no such bulk data")
    for one in negotiate.accepted(request):
        if one.takes(NATIVE, OCTETS):
            form = MULTIPART if negotiate.matches(one.media, MULTIPART) else OCTETS
            return _deliver(form, OCTETS, [(f"{OCTETS}; transfer-syntax={NATIVE}", [value])])
    raise negotiate.unacceptable([f'{MULTIPART}; type="{OCTETS}"', OCTETS])


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
    return _render(request, _find(request, caller, study, series, instance)[0], 1, window, viewport, quality)


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
    return _render(request, _find(request, caller, study, series, instance)[0], number, window, viewport, quality)


@router.get("/studies/{study}/thumbnail", responses=_IMAGE, response_class=Response)
def study_thumbnail(request: Request, study: Uid, caller: Viewer, viewport: Viewport = None) -> Response:
    """Return a small picture of a study."""
    return _thumbnail(request, _find(request, caller, study), viewport)


@router.get("/studies/{study}/series/{series}/thumbnail", responses=_IMAGE, response_class=Response)
def series_thumbnail(request: Request, study: Uid, series: Uid, caller: Viewer, viewport: Viewport = None) -> Response:
    """Return a small picture of a series."""
    return _thumbnail(request, _find(request, caller, study, series), viewport)


@router.get(
    "/studies/{study}/series/{series}/instances/{instance}/thumbnail", responses=_IMAGE, response_class=Response
)
def instance_thumbnail(
    request: Request, study: Uid, series: Uid, instance: Uid, caller: Viewer, viewport: Viewport = None
) -> Response:
    """Return a small picture of an instance."""
    return _thumbnail(request, _find(request, caller, study, series, instance), viewport)


# ---------------------------------------------------------------------------------------------------- how


class _Decoding:
    """Turns what cannot be decoded into 406: the bytes as they came can still be had."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Translate a `ReadError`."""
        if isinstance(error, ReadError):
            raise HTTPException(406, f"{error}; it can be retrieved as it came, with transfer-syntax=*") from None


def _root(request: Request) -> str:
    return f"{request.url.scheme}://{request.url.netloc}{ROOT}"


def _headers(request: Request) -> Headers:
    found: Headers = request.app.state.headers
    return found


def _limits(request: Request) -> Limits:
    settings = clinic_of(request).settings
    return Limits(max_bytes=settings.max_bytes, max_pixels=settings.max_pixels)


def _find(
    request: Request, caller: Caller, study: str, series: str | None = None, instance: str | None = None
) -> Sequence[Held]:
    """Return instances of the caller's site, and audit that they were looked at."""
    found = dicomweb.find(clinic_of(request).database, caller.site, study, series, instance)
    for key in dict.fromkeys(one.study for one in found):
        saw(request, caller, key)
    return found


def _frames(request: Request, held: Held) -> Frames:
    limits = _limits(request)
    with _Decoding():
        return Frames(dicomweb.read(clinic_of(request).archive, held, limits), limits)


def _json(content: list[Json], media: str) -> Response:
    return Response(json.dumps(content, ensure_ascii=False).encode(), media_type=media)


def _metadata(request: Request, found: Sequence[Held]) -> Response:
    media, root, headers = negotiate.single(request, (JSON, "application/json")), _root(request), _headers(request)
    return _json([dicomweb.resolve(headers.get(one), root + one.path) for one in found], media)


def _retrieve(request: Request, caller: Caller, found: Sequence[Held]) -> Response:
    """Return instances in the best form that is accepted: as they came, else in Explicit VR Little Endian."""
    accepted = [one for one in negotiate.accepted(request) if negotiate.matches(one.part or one.media, DICOM)]
    accepted = [one for one in accepted if one.part or len(found) == 1 or negotiate.matches(one.media, MULTIPART)]
    syntaxes = {one.syntax or NATIVE for one in accepted}
    if not accepted or not all(_available(syntaxes, _syntax(request, one)) for one in found):
        raise negotiate.unacceptable([f'{MULTIPART}; type="{DICOM}"; transfer-syntax=*'])
    form = MULTIPART if negotiate.matches(accepted[0].media, MULTIPART) else DICOM
    if len(found) == 1:
        with _Decoding():
            return _deliver(form, DICOM, [_instance(request, found[0], syntaxes)])
    return _deliver(form, DICOM, (_instance(request, one, syntaxes, strict=False) for one in found))


def _syntax(request: Request, held: Held) -> str:
    return dicomweb.first(_headers(request).get(held), "00083002")


def _available(wanted: set[str], own: str) -> bool:
    return bool(wanted & {"*", NATIVE, own})


def _instance(request: Request, held: Held, wanted: set[str], strict: bool = True) -> tuple[str, Iterable[bytes]]:
    """Return type and bytes of an instance; one that cannot be decompressed is given as it came unless `strict`."""
    own, archive, limits = _syntax(request, held), clinic_of(request).archive, _limits(request)
    path = archive.path(held.sha256)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise NotFoundError(f"image {held.id}: its file is missing; restore it from a backup") from None
    with file:
        whole = file.read(132)[128:] == b"DICM"
    original = whole and bool(wanted & {"*", own})
    if not original:
        try:
            data = frames.decompressed(dicomweb.read(archive, held, limits), limits)
            return f"{DICOM}; transfer-syntax={NATIVE}", [data]
        except ReadError:
            if strict:
                raise
    return f"{DICOM}; transfer-syntax={own}" if pydicom.uid.UID(own).is_valid else DICOM, _pieces(path)


def _pieces(path: File) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece


def _form(request: Request, found: Frames, wanted: Sequence[int]) -> tuple[str, str, str]:
    """Return (form, media type, transfer syntax) of frames: multipart, or single when one frame is asked for so."""
    own = found.syntax if found.encapsulated else NATIVE
    image = FRAMES.get(own, OCTETS)
    for one in negotiate.accepted(request):
        if negotiate.matches(one.media, MULTIPART):
            form = MULTIPART
        elif len(wanted) == 1 and not one.part:
            form = ""
        else:
            continue
        offers = [(image, own), (OCTETS, own), (OCTETS, NATIVE)]
        if not one.syntax:  # decompressed unless something else is named
            offers.reverse()
        for media, syntax in offers:
            if one.takes(syntax, media):
                return form or media, media, syntax
    raise negotiate.unacceptable(
        [f'{MULTIPART}; type="{OCTETS}"', f'{MULTIPART}; type="{image}"; transfer-syntax={own}']
    )


def _deliver(form: str, media: str, pieces: Iterable[tuple[str, Iterable[bytes]]]) -> Response:
    """Return parts as multipart, or the only one plain."""
    if form == MULTIPART:
        boundary = multipart.new_boundary()
        kind = f'{MULTIPART}; type="{media}"; boundary={boundary}'
        return StreamingResponse(multipart.write(pieces, boundary), media_type=kind)
    kind, content = next(iter(pieces))
    return StreamingResponse(iter(content), media_type=kind)


def _render(
    request: Request, held: Held, number: int, window: str | None, viewport: str | None, quality: int
) -> Response:
    media, found = negotiate.single(request, ("image/jpeg", "image/png")), _frames(request, held)
    with _Decoding():
        picture = found.picture(number, _window(window))
    return Response(frames.encode(picture, media, quality=quality, size=_size(viewport)), media_type=media)


def _thumbnail(request: Request, found: Sequence[Held], viewport: str | None) -> Response:
    """Return the first instance that has a picture, small."""
    headers = _headers(request)
    shown = next((one for one in found if dicomweb.PIXELS in headers.get(one)), found[0])
    return _render(request, shown, 1, None, viewport or f"{THUMBNAIL},{THUMBNAIL}", 80)


def _window(text: str | None) -> Window | None:
    if text is None:
        return None
    center, width, *function = text.split(",")
    return Window(float(center), float(width), (function or ["linear"])[0].upper().replace("-", "_"))


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, height = (min(max(1, int(part)), 4096) for part in text.split(","))
    return width, height

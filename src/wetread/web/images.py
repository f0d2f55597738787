"""Pictures: the frame as the reader's viewer takes it, a small preview, and the heatmaps.

Frames are sent decompressed, so that a page needs neither a decoder nor WebAssembly, which its content policy forbids.
An image never changes, but who may see it does: a browser asks again each time, and is mostly told 304.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import sqlalchemy as sa
from fastapi import APIRouter, Header, Query, Request, Response
from numpy.typing import NDArray

from wetread.clinic import store, triage, worklist
from wetread.clinic.access import Caller
from wetread.clinic.worker import unpack
from wetread.errors import NotFoundError
from wetread.infer import heatmap
from wetread.radiograph import presentation
from wetread.radiograph.read import Limits, Radiograph, read
from wetread.web import covering, schemas, security
from wetread.web.api import clinic_of
from wetread.web.security import Viewer

router = APIRouter(prefix="/api/v1/images", tags=["images"])

AHEAD = "Wetread-Ahead"

_HEADERS = (
    ("Wetread-Rows", "integer", "height in pixels"),
    ("Wetread-Columns", "integer", "width in pixels"),
    ("Wetread-Bits", "integer", "8 or 16, little endian"),
    ("Wetread-Spacing", "string", "distance of rows and of columns in mm; absent when unknown"),
)
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FRAME: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"application/octet-stream": _BINARY},
        "headers": {name: {"schema": {"type": kind}, "description": text} for name, kind, text in _HEADERS},
    },
    304: {"description": "The caller has it."},
}
_VALUES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": _BINARY}},
    304: {"description": "The caller has it."},
}
_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": _BINARY}}}
Side = Annotated[int, Query(ge=16, le=1024, description="Longer side of the picture, in pixels, at most.")]
Word = Annotated[str, Query(max_length=64)]


@dataclass(frozen=True)
class _Stored:
    path: Path
    limits: Limits
    headers: dict[str, str]

    def read(self) -> Radiograph:
        return read(self.path, name="image", limits=self.limits)


def _find(request: Request, caller: Caller, image: str, *, ahead: bool = False) -> _Stored:
    """Return where an image of the caller's site lies; a quarantined one is never shown.

    Only the next study can be fetched `ahead`: the first that waits, or the second while the first is open. Whatever
    else is asked for so is looked at.
    """
    clinic, table = clinic_of(request), store.instance.c
    wanted = sa.select(table.sha256, table.study).where(
        table.id == image, table.site == caller.site, table.state == "stored"
    )
    with clinic.database.read() as connection:
        row = connection.execute(wanted).first()
    if row is None:
        raise NotFoundError(f"image {image[:64]}: no such image at this site")
    ahead = ahead and row.study in worklist.upcoming(clinic.database, caller.site, caller.name)[:2]
    security.saw(request, caller, row.study, ahead=ahead)
    sha256 = row.sha256
    limits = Limits.of(clinic.settings)
    return _Stored(clinic.archive.path(sha256), limits, {"ETag": f'"{sha256}"', "Cache-Control": "private, no-cache"})


def small(radiograph: Radiograph, side: int) -> NDArray[np.uint8]:
    """Return the picture in 8 bits, its longer side at most `side` pixels."""
    pixels = radiograph.pixels if radiograph.bits == 8 else radiograph.pixels >> 8
    scale = min(1.0, side / max(pixels.shape))
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return np.asarray(cv2.resize(pixels.astype(np.uint8), size, interpolation=cv2.INTER_AREA), np.uint8)


@router.get("/{image}")
def get_image(request: Request, image: str, caller: Viewer) -> schemas.ImageInfo:
    """Return the size and depth of an image's frame."""
    radiograph = _find(request, caller, image).read()
    rows, columns = radiograph.pixels.shape
    return schemas.ImageInfo(
        image=image,
        rows=rows,
        columns=columns,
        bits=16 if radiograph.bits == 16 else 8,
        view=radiograph.view,
        spacing_mm=radiograph.spacing_mm,
    )


@router.get("/{image}/frame", response_class=Response, responses=_FRAME)
def get_frame(
    request: Request, image: str, caller: Viewer, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """Return the picture as bare pixels, row by row from the top, dense tissue bright."""
    stored = _find(request, caller, image)
    if if_none_match == stored.headers["ETag"]:
        return Response(status_code=304, headers=stored.headers)
    radiograph = stored.read()
    pixels = np.ascontiguousarray(radiograph.pixels, dtype="<u2" if radiograph.bits == 16 else "u1")
    headers = stored.headers | {
        "Wetread-Rows": str(pixels.shape[0]),
        "Wetread-Columns": str(pixels.shape[1]),
        "Wetread-Bits": str(8 * pixels.itemsize),
    }
    if radiograph.spacing_mm is not None:
        headers["Wetread-Spacing"] = ",".join(f"{spacing:.6g}" for spacing in radiograph.spacing_mm)
    return Response(pixels.tobytes(), media_type="application/octet-stream", headers=headers)


@router.get("/{image}/values", response_class=Response, responses=_VALUES)
def get_values(
    request: Request,
    image: str,
    caller: Viewer,
    if_none_match: Annotated[str | None, Header()] = None,
    ahead: Annotated[
        str,
        Header(alias=AHEAD, max_length=8, description="1: the next study, before anybody looks; audited so."),
    ] = "",
) -> Response:
    """Return every value of the file, larger is brighter, and the windows by which its sender meant it to be seen.

    Little endian: the length of a JSON object (4 bytes), the object, then for each of its `tones` with a `table` that
    table (`entries` × 16 bits: the grey of each value), and the values, row by row from the top, of `bits` each.
    """
    stored = _find(request, caller, image, ahead=ahead == "1")
    if ahead == "1":  # of a study that is not open: in no cache, and gone with the tab
        stored.headers["Cache-Control"] = "no-store"
    if if_none_match == stored.headers["ETag"]:
        return Response(status_code=304, headers=stored.headers)
    about, body = presentation.present(stored.path, name="image", limits=stored.limits)
    if not caller.sees_patients:  # what the sender calls a window is free text
        about["tones"] = [{**tone, "name": ""} for tone in about["tones"]]
    told = json.dumps(about).encode()
    told += b" " * (-len(told) % 4)  # so that what follows is aligned
    content = b"".join((len(told).to_bytes(4, "little"), told, memoryview(body)))
    return Response(content, media_type="application/octet-stream", headers=stored.headers)


@router.get("/{image}/preview.png", response_class=Response, responses=_PNG)
def get_preview(request: Request, image: str, caller: Viewer, side: Side = 256) -> Response:
    """Return the picture as an 8-bit PNG."""
    stored = _find(request, caller, image)
    return Response(heatmap.png(small(stored.read(), side)), media_type="image/png", headers=stored.headers)


@router.get("/{image}/heatmap")
def get_heatmap(
    request: Request, image: str, caller: Viewer, finding: Word, model: Word | None = None
) -> schemas.HeatmapOut:
    """Return where a model (by name or id; by default the newest that names the finding) saw a finding."""
    table, images = store.image_result.c, store.instance.c
    wanted = (
        sa.select(table.id, table.model_name, table.findings, table.maps, table.box, images.study)
        .join(store.instance, images.id == table.instance)
        .where(images.id == image, images.site == caller.site, images.state == "stored", table.maps.is_not(None))
        .order_by(table.at.desc())
    )
    if model is not None:
        wanted = wanted.where(sa.or_(table.model == model, table.model_name == model))
    with clinic_of(request).database.read() as connection:
        for row in connection.execute(wanted):
            if not any(row.id == result["id"] for result in triage.latest(connection, row.study, [image])):
                continue  # of a model whose word does not count here
            names = [entry["finding"] for entry in row.findings]
            if finding in names:
                covering.refuse(clinic_of(request), caller, row.study)
                security.saw(request, caller, row.study)
                values = unpack(row.maps)[names.index(finding)]
                return schemas.HeatmapOut(
                    image=image,
                    model=row.model_name,
                    finding=finding,
                    rows=values.shape[0],
                    columns=values.shape[1],
                    values=[float(f"{value:.4g}") for value in values.ravel()],
                    box=list(row.box),
                )
    raise NotFoundError(f"image {image[:64]}: no heatmap of {finding[:64]!r}")


@router.get("/{image}/heatmap.png", response_class=Response, responses=_PNG)
def get_heatmap_png(
    request: Request, image: str, caller: Viewer, finding: Word, model: Word | None = None, side: Side = 512
) -> Response:
    """Return the picture with a finding's map drawn over it."""
    found = get_heatmap(request, image, caller, finding, model)
    stored = _find(request, caller, image)
    reduced = small(stored.read(), side)
    values = np.asarray(found.values, np.float32).reshape(found.rows, found.columns)
    left, top, right, bottom = found.box
    drawn = heatmap.overlay(reduced, heatmap.to_image(values, (left, top, right, bottom), reduced.shape))
    headers = {"Cache-Control": stored.headers["Cache-Control"]}
    return Response(heatmap.png(drawn), media_type="image/png", headers=headers)

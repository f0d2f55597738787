"""The models in service over the Open Inference Protocol v2 (KServe, Triton): pixels in, outputs out, nothing kept.

A request holds pixels as the model sees them, and nothing about whose they are. It runs in common batches with the
clinic's own images, behind the same bounded queue.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from wetread import __version__
from wetread.clinic.service import Clinic, Served
from wetread.errors import BusyError, ModelError, NotFoundError
from wetread.infer import tensors
from wetread.infer.predict import Predictor
from wetread.infer.tensors import ProtocolError
from wetread.model.golden import Outputs
from wetread.web.api import clinic_of
from wetread.web.security import Inferrer

router = APIRouter(prefix="/v2", tags=["inference"])

_Name = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
_RANKS = {"probability": "F", "abnormal": "", "maps": "Fhw", "features": "D", "familiarity": ""}
_BUSY_S = 2.0
_TENSOR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string", "enum": [*tensors.DATATYPES]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {"type": "array", "items": {}},
        "parameters": {"type": "object"},
    },
    "required": ["name", "datatype", "shape"],
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "id": {"type": "string", "maxLength": 64},
                        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1},
                        "outputs": {
                            "type": "array",
                            "items": {"type": "object", "properties": {"name": {"type": "string"}}},
                        },
                        "parameters": {"type": "object"},
                    },
                    "required": ["inputs"],
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_REFUSED = {
    "application/json": {
        "schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    }
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    400: {"description": "not understood", "content": _REFUSED},
    415: {"description": "not in a form that is known", "content": _REFUSED},
    500: {"description": "the model failed", "content": _REFUSED},
    503: {"description": "try again later", "content": _REFUSED},
}


def refused(status: int, message: str) -> JSONResponse:
    """Return an error as the protocol has it."""
    headers = {"Retry-After": "2"} if status == 503 else None
    return JSONResponse({"error": message}, status, headers=headers)


@router.get("")
def server(caller: Inferrer) -> dict[str, Any]:
    """Tell what this server is and which extensions it knows."""
    return {"name": "wetread", "version": __version__, "extensions": [tensors.BINARY]}


@router.get("/health/live")
async def live() -> dict[str, bool]:
    """Answer as long as the process lives."""
    return {"live": True}


@router.get("/health/ready", responses={400: {"description": "not ready"}})
def ready(request: Request) -> JSONResponse:
    """Answer 200 when every model of the settings serves."""
    clinic = clinic_of(request)
    states = clinic.ai(clinic.settings.site).models
    fine = clinic.worker is not None and not clinic.stopping.is_set() and all(s.state != "missing" for s in states)
    return JSONResponse({"ready": fine}, 200 if fine else 400)


@router.get("/models/{name}")
@router.get("/models/{name}/versions/{version}")
def model(request: Request, caller: Inferrer, name: _Name, version: str = "") -> dict[str, Any]:
    """Tell a model's inputs and outputs, and its id (SHA-256 of the package) as its version."""
    package = _find(clinic_of(request), name, version).package
    side, views, findings = package.transform.size, _views(package.meta.kind), len(package.task.findings)
    inputs = [{"name": "pixels", "datatype": "UINT8", "shape": [-1, views, side, side]}]
    if views > 1:
        inputs.append({"name": "present", "datatype": "BOOL", "shape": [-1, views]})
    axes = {"F": [findings], "": [], "Fhw": [views] * (views > 1) + [findings, -1, -1], "D": [-1]}
    outputs = [{"name": key, "datatype": "FP32", "shape": [-1, *axes[rank]]} for key, rank in _RANKS.items()]
    about = {"findings": list(package.task.findings), "task": package.task.name, "precision": package.meta.precision}
    return {
        "name": package.name,
        "versions": [package.id],
        "platform": "wetread",
        "inputs": inputs,
        "outputs": outputs,
        "parameters": about,
    }


@router.get("/models/{name}/ready", responses={400: {"description": "not ready"}})
@router.get("/models/{name}/versions/{version}/ready", responses={400: {"description": "not ready"}})
def model_ready(request: Request, caller: Inferrer, name: _Name, version: str = "") -> JSONResponse:
    """Answer 200 when the model serves."""
    clinic = clinic_of(request)
    package = _find(clinic, name, version).package
    failing = any(s.id == package.id and s.state in ("failing", "off") for s in clinic.ai(clinic.settings.site).models)
    return JSONResponse({"name": package.name, "ready": not failing}, 400 if failing else 200)


@router.post("/models/{name}/infer", responses=_ANSWERS, openapi_extra=_BODY)
@router.post("/models/{name}/versions/{version}/infer", responses=_ANSWERS, openapi_extra=_BODY)
async def infer(request: Request, caller: Inferrer, name: _Name, version: str = "") -> Response:
    """Run a model on pixels: JSON, or the binary tensor data extension.

    Inputs are those of the model package: `pixels` uint8 [B, 1, H, W], or of a model of studies [B, 2, H, W] and, if
    wanted, `present` bool [B, 2]. Outputs, all float32: `probability`, `abnormal`, `maps`, `features`, `familiarity`.
    """
    predictor = _find(clinic_of(request), name, version)
    if request.headers.get("content-encoding", "identity") != "identity":
        return refused(415, "Content-Encoding: send the body as it is")
    body, header = await request.body(), request.headers.get(tensors.HEADER)
    try:
        content, length = await run_in_threadpool(_infer, predictor, body, header)
    except (ProtocolError, BusyError, ModelError) as error:
        status = {ProtocolError: 400, BusyError: 503}.get(type(error), 500)
        return refused(status, str(error))
    if length is None:
        return Response(content, media_type="application/json")
    return Response(content, media_type="application/octet-stream", headers={tensors.HEADER: str(length)})


def _infer(predictor: Predictor, body: bytes, header: str | None) -> tuple[bytes, int | None]:
    message, given = tensors.unpack(body, header, "inputs")
    pixels = _pixels(predictor, given)
    wanted, binary = _wanted(message)
    outputs = predictor.infer(pixels, wait_s=_BUSY_S)._asdict()
    answer: dict[str, Any] = {"model_name": predictor.package.name, "model_version": predictor.package.id}
    if "id" in message:
        answer["id"] = str(message["id"])[:64]
    return tensors.pack(answer, "outputs", {key: outputs[key] for key in wanted}, binary)


def _pixels(predictor: Predictor, given: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
    views, side = _views(predictor.package.meta.kind), predictor.package.transform.size
    pixels, present = given.pop("pixels", None), given.pop("present", None) if views > 1 else None
    if given:
        raise ProtocolError(f"inputs: {next(iter(given))!r} is no input of {predictor.package.name}")
    most = predictor.settings.queue_limit
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape[1:] != (views, side, side):
        raise ProtocolError(f"inputs: pixels must be UINT8 [B, {views}, {side}, {side}]")
    if not 0 < len(pixels) <= most:
        raise ProtocolError(f"inputs: pixels holds {len(pixels)} images; send 1 to {most}")
    if present is None:
        return pixels
    if present.dtype != np.bool_ or present.shape != (len(pixels), views):
        raise ProtocolError(f"inputs: present must be BOOL [{len(pixels)}, {views}]")
    return pixels * present[:, :, None, None].astype(np.uint8)


def _wanted(message: dict[str, Any]) -> tuple[list[str], set[str]]:
    """Return which outputs are asked for, and which of them as bytes."""
    asked, parameters = message.get("outputs"), message.get("parameters", {})
    default = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    if asked is None:
        names = list(Outputs._fields)
        return names, set(names) if default else set()
    names, binary = [], set()
    for entry in asked if isinstance(asked, list) else [None]:
        name = entry.get("name") if isinstance(entry, dict) else None
        if name not in Outputs._fields or name in names:
            raise ProtocolError(f"outputs: must name each of {', '.join(Outputs._fields)} at most once")
        options = entry.get("parameters", {}) if isinstance(entry, dict) else {}
        options = options if isinstance(options, dict) else {}
        if "classification" in options:
            raise ProtocolError(f"outputs: {name}: classification is not supported; take the values")
        names.append(name)
        if options.get("binary_data", default) is True:
            binary.add(name)
    return (names, binary) if names else _wanted({**message, "outputs": None})


def _views(kind: str) -> int:
    return 2 if kind == "study" else 1


def _find(clinic: Clinic, name: str, version: str) -> Predictor:
    for served in clinic.models.values():
        if isinstance(served, Served) and served.name == name and version in ("", served.id):
            return served.predictor
    raise NotFoundError(f"model {name}: no such model in service" + (f" of version {version[:64]}" if version else ""))

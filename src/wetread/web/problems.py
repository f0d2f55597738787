"""Errors over HTTP: problem+json (RFC 9457), one for each kind of error on purpose; no traceback leaves the house."""

from __future__ import annotations

import errno
import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, SQLAlchemyError
from starlette.exceptions import HTTPException

from wetread.clinic.archive import TooLargeError
from wetread.clinic.attempts import ThrottledError
from wetread.clinic.reviews import NewerError, UnseenError
from wetread.errors import (
    BusyError,
    ClinicError,
    ConflictError,
    DeniedError,
    FullError,
    ModelError,
    NotFoundError,
    ReadError,
    WetreadError,
)

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
STATUS: dict[type[WetreadError], int] = {
    NotFoundError: 404,
    ConflictError: 409,
    DeniedError: 403,
    TooLargeError: 413,
    FullError: 507,
    ReadError: 422,
    ClinicError: 422,
    ModelError: 503,
    BusyError: 503,
    WetreadError: 400,
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
    "required": ["type", "title", "status"],
}


class UnauthenticatedError(DeniedError):
    """The caller did not say who they are."""


def problem(status: int, detail: str = "", headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """Return an error as problem+json."""
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    return JSONResponse(content, status, headers=headers, media_type=MEDIA_TYPE)


def also(path: str, detail: str) -> dict[str, Any]:
    """Return what a problem says besides: the Open Inference Protocol wants its message under `error`."""
    return {"error": detail} if path.startswith("/v2") else {}


def install(app: FastAPI) -> None:
    """Make the application answer every error with a problem."""

    @app.exception_handler(WetreadError)
    async def _ours(request: Request, error: WetreadError) -> JSONResponse:
        if isinstance(error, UnauthenticatedError):
            return problem(401, str(error), {"WWW-Authenticate": "Bearer"}, **also(request.url.path, str(error)))
        if isinstance(error, ThrottledError):
            return problem(429, str(error), {"Retry-After": str(error.seconds)})
        status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
        more: dict[str, Any] = also(request.url.path, str(error))
        if isinstance(error, ReadError):
            more["code"] = str(error.code)
        if isinstance(error, UnseenError):
            more["images"] = error.images
        if isinstance(error, NewerError):
            more["revision"] = error.revision
        return problem(status, str(error), {"Retry-After": "2"} if status == 503 else None, **more)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        detail = f"{where}: {first['msg']}"
        return problem(422, detail, **also(request.url.path, detail))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        detail = str(error.detail)
        return problem(error.status_code, detail, dict(error.headers or {}), **also(request.url.path, detail))

    @app.exception_handler(OSError)
    async def _disk(request: Request, error: OSError) -> JSONResponse:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise error
        return problem(507, "the disk is full; nothing of this was kept, make room and send it again")

    @app.exception_handler(DataError)
    async def _value(request: Request, error: DataError) -> JSONResponse:
        # PostgreSQL refuses what SQLite takes: a NUL in a text, above all.
        return problem(422, "a value that the database cannot hold; leave out control characters")

    @app.exception_handler(SQLAlchemyError)
    async def _database(request: Request, error: SQLAlchemyError) -> JSONResponse:
        log.error("database: %s", type(error).__name__)
        return problem(503, "the database does not answer; try again later", {"Retry-After": "5"})

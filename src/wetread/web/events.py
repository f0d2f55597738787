"""What happens in the clinic, as it happens: server-sent events out of the outbox."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.engine import Row
from starlette.concurrency import run_in_threadpool

from wetread.clinic import store
from wetread.clinic.access import Caller
from wetread.clinic.service import Clinic
from wetread.web import covering, security
from wetread.web.api import clinic_of
from wetread.web.security import Viewer

router = APIRouter(tags=["events"])

POLL_S = 0.4
SILENCE_S = 15.0
LOOK_S = 5.0  # how soon one whose session or token has ended hears no more
_BATCH = 500


def latest(clinic: Clinic) -> int:
    """Return the number of the newest event, 0 when there is none; a page follows on from here."""
    with clinic.database.read() as connection:
        return int(connection.execute(sa.select(sa.func.max(store.event.c.seq))).scalar() or 0)


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def follow(
    request: Request,
    caller: Viewer,
    after: Annotated[int | None, Query(ge=0, le=2**53, description="Number of the last event already seen")] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Follow the site's events: `event` is the kind, `id` its number, `data` JSON with `study`, `at`, `payload`.

    Without `after`, begins with what happens from now on. A browser that reconnects goes on where it was.
    """
    clinic = clinic_of(request)
    if last_event_id is not None and last_event_id.isdecimal() and len(last_event_id) < 17:
        start = int(last_event_id)
    else:
        start = after if after is not None else await run_in_threadpool(latest, clinic)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(request, clinic, caller, start), media_type="text/event-stream", headers=headers)


async def _stream(request: Request, clinic: Clinic, caller: Caller, after: int) -> AsyncIterator[str]:
    yield "retry: 2000\n\n"
    silent = 0.0
    looked = time.monotonic()
    while not clinic.stopping.is_set() and not await request.is_disconnected():
        if time.monotonic() - looked > LOOK_S:
            looked = time.monotonic()
            if not await run_in_threadpool(security.still, request, caller):
                return
        found = await run_in_threadpool(_since, clinic, caller.site, after)
        covered = await run_in_threadpool(_covered, clinic, caller, found)
        for row in found:
            after = row.seq
            payload = {**row.payload}
            if row.study in covered:
                payload.pop("finding", None)
            data = {"study": row.study, "at": row.at.isoformat(), "payload": payload}
            yield f"id: {row.seq}\nevent: {row.kind}\ndata: {json.dumps(data)}\n\n"
        if found:
            silent = 0.0
        if len(found) < _BATCH:
            await asyncio.sleep(POLL_S)
            silent += POLL_S
            if silent >= SILENCE_S:
                silent = 0.0
                yield ": still here\n\n"


def _covered(clinic: Clinic, caller: Caller, found: Sequence[Row[Any]]) -> set[str]:
    """Return the studies whose finding is kept from the caller."""
    asked = {row.study for row in found if "finding" in row.payload}
    return covering.hidden(clinic, caller, sorted(asked)) if asked else set()


def _since(clinic: Clinic, site: str, after: int) -> Sequence[Row[Any]]:
    table = store.event
    query = sa.select(table).where(table.c.seq > after, table.c.site == site).order_by(table.c.seq).limit(_BATCH)
    with clinic.database.read() as connection:
        return connection.execute(query).all()

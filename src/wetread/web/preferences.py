"""The HTTP API of what a reader prefers: their own keys."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from wetread.clinic import preferences
from wetread.web.api import clinic_of
from wetread.web.security import Viewer

router = APIRouter(prefix="/api/v1/keys", tags=["accounts"])


class KeysIn(BaseModel):
    """A reader's keys, of all actions, so that no key can mean two things."""

    model_config = ConfigDict(extra="forbid")

    keys: dict[Annotated[str, Field(max_length=64)], Annotated[list[str], Field(max_length=4)]] = Field(max_length=200)


@router.get("")
def get_keys(request: Request, caller: Viewer) -> dict[str, list[str]]:
    """Return your own keys, action → keys; empty when you use those that come with Wetread."""
    found = preferences.get(clinic_of(request).database, caller.site, caller.name, preferences.KEYS)
    return found or {}


@router.put("")
def put_keys(request: Request, body: KeysIn, caller: Viewer) -> dict[str, list[str]]:
    """Keep your own keys; refused when a key would mean two things on one page."""
    keys = preferences.check_keys(body.keys)
    preferences.put(clinic_of(request).database, caller.site, caller.name, preferences.KEYS, keys)
    return keys


@router.delete("", status_code=204)
def reset_keys(request: Request, caller: Viewer) -> Response:
    """Go back to the keys that come with Wetread."""
    preferences.put(clinic_of(request).database, caller.site, caller.name, preferences.KEYS, None)
    return Response(status_code=204)

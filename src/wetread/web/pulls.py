"""Pulling studies from the archives that the settings name: asked for here, done in the background, followed here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from wetread.clinic.pull import State
from wetread.clinic.pull_service import MOST
from wetread.web.api import clinic_of
from wetread.web.security import Puller

router = APIRouter(prefix="/api/v1", tags=["pull"])


class PullIn(BaseModel):
    """What to fetch, and from which archive."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field(max_length=32, description="Its name in the setting `pull_sources`; an address is none.")
    studies: list[Annotated[str, Field(max_length=64)]] = Field([], max_length=MOST, description="Study Instance UIDs.")
    accessions: list[Annotated[str, Field(max_length=64)]] = Field(
        [], max_length=MOST, description="Accession numbers."
    )


class PullOut(BaseModel):
    """How far a pull is."""

    pull: str
    source: str
    actor: str
    state: Literal["queued", "running", "done"]
    asked: int = Field(description="Studies and accession numbers that were named.")
    tried: int = Field(description="Those that were tried so far.")
    came: int = Field(description="Instances that are new.")
    failed: int = Field(description="Studies of which not all is here.")
    error: str | None = Field(description="Why the pull as a whole could not be done.")
    created_at: datetime
    done_at: datetime | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> PullOut:
        """Make it of a row of the table `pull`."""
        return cls(**_said(row))


class OutcomeOut(BaseModel):
    """What became of one study; by `line`, the first one of what was named is 1, studies before accession numbers."""

    line: int
    study_uid: str
    state: State
    expected: int = Field(description="Instances that the archive has.")
    came: int
    here: int
    reason: str


class PullDetailOut(PullOut):
    """How far a pull is, study by study."""

    outcomes: list[OutcomeOut]


def _said(row: Mapping[str, Any]) -> dict[str, Any]:
    outcomes = row["outcomes"]
    whole = (State.COMPLETE, State.HERE)
    return {name: row[name] for name in ("source", "actor", "state", "error", "created_at", "done_at")} | {
        "pull": row["id"],
        "asked": len(row["wanted"]),
        "tried": len({one["line"] for one in outcomes}),
        "came": sum(one["came"] for one in outcomes),
        "failed": sum(one["state"] not in whole for one in outcomes),
    }


@router.post("/pull", status_code=202)
def add_pull(request: Request, body: PullIn, caller: Puller) -> PullOut:
    """Have studies fetched in the background from an archive of the setting `pull_sources`.

    What is here already is not fetched again. The answer names the pull, which `GET /api/v1/pull/{pull}` follows.
    """
    pulls = clinic_of(request).pulls
    key = pulls.ask(caller.site, caller.name, body.source, studies=body.studies, accessions=body.accessions)
    return PullOut.of(pulls.get(caller.site, key))


@router.get("/pull")
def get_pulls(request: Request, caller: Puller) -> list[PullOut]:
    """Return the newest fifty pulls of the site."""
    return [PullOut.of(row) for row in clinic_of(request).pulls.recent(caller.site)]


@router.get("/pull/{pull}")
def get_pull(request: Request, pull: str, caller: Puller) -> PullDetailOut:
    """Return how far a pull is, study by study."""
    row = clinic_of(request).pulls.get(caller.site, pull)
    return PullDetailOut(**_said(row), outcomes=row["outcomes"])

"""The HTTP API of the worklist: the list in any order, filters that readers keep, studies handed over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Annotated, Any
from urllib.parse import unquote, urlencode
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fastapi import APIRouter, Header, Query, Request, Response

from wetread.clinic import claims, filters, store, worklist
from wetread.errors import ClinicError, DeniedError
from wetread.web import covering, schemas, security
from wetread.web.api import clinic_of
from wetread.web.security import Reviewer, Viewer

router = APIRouter(prefix="/api/v1")

# What is searched for is a name or a number of a patient: in a header, since addresses are logged and remembered.
SEARCH_HEADER = "Wetread-Search"
Search = Annotated[
    str,
    Header(
        alias=SEARCH_HEADER,
        max_length=1200,
        description="Beginning of a patient's name, patient ID or accession number, percent-encoded UTF-8.",
    ),
]
Day = Annotated[str, Query(max_length=10, description="YYYY-MM-DD.")]


@router.get("/worklist", tags=["worklist"])
def get_worklist(
    request: Request,
    caller: Viewer,
    status: Annotated[str | None, Query(description="received, analysed, not_analysed, claimed or reviewed")] = None,
    priority: Annotated[str | None, Query(description="critical, urgent or routine")] = None,
    overdue: Annotated[bool, Query(description="Only those past their waiting cap.")] = False,
    finding: Annotated[str | None, Query(max_length=64, description="That ranked the study.")] = None,
    view: Annotated[str | None, Query(max_length=16, description=", ".join(worklist.VIEWS))] = None,
    mine: Annotated[bool, Query(description="Only those that you have claimed.")] = False,
    age_from: Annotated[float | None, Query(ge=0, le=200, description="In years.")] = None,
    age_to: Annotated[float | None, Query(ge=0, le=200)] = None,
    since: Annotated[datetime | None, Query(description="Arrived from then on; with a zone.")] = None,
    until: Annotated[datetime | None, Query(description="Arrived before.")] = None,
    sort: Annotated[str | None, Query(description=", ".join(worklist.SORTS))] = None,
    descending: Annotated[bool | None, Query(description="The other way round.")] = None,
    search: Search = "",
    after: Annotated[str | None, Query(max_length=600, description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = worklist.PAGE,
) -> schemas.WorklistOut:
    """Return a page of the worklist, most urgent first; by default all that is unread."""
    clinic = clinic_of(request)
    if said(search) and not caller.sees_patients:
        raise DeniedError(f"{caller.name}: role {caller.role} may not search for patients; ask an administrator")
    security.saw(request, caller)
    query = worklist.Query(
        status=status, priority=priority, overdue=overdue, finding=finding, view=view,
        reader=caller.name if mine else None, age_from=age_from, age_to=age_to, since=_zoned("since", since),
        until=_zoned("until", until), search=said(search), sort=sort, descending=descending,
    )  # fmt: skip
    page = covering.page(clinic, caller, query, after=after, limit=limit)
    return schemas.WorklistOut(
        studies=[schemas.RowOut.model_validate(row) for row in page.rows],
        counts=schemas.CountsOut.model_validate(page.counts),
        next=page.next,
        ai=schemas.AiOut.model_validate(clinic.ai(caller.site)),
    )


def said(search: str) -> str:
    """Return what a search header says."""
    text = unquote(search, errors="replace")
    return "".join(c if c.isprintable() else " " for c in text).strip()[:128]


def _zoned(name: str, moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise ClinicError(f"{name}: without a zone it could mean anything; write 2026-01-31T08:00:00Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ClinicError(f"{name}: too far away") from None


PARAMETERS = ("class", "finding", "view", "status", "age_from", "age_to", "since", "until", "zone", "sort", "down")


def known(parameters: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return those parameters of the page's address that say what the list shows, without the empty ones."""
    found = dict(parameters)
    return {name: found[name][:64] for name in PARAMETERS if found.get(name)}


def query_of(values: Mapping[str, str], fixed: Mapping[str, Any], search: str) -> worklist.Query:
    """Return what the page asks for.

    Parameters
    ----------
    values : mapping
        Of `known`.
    fixed : mapping
        What the chosen list (Critical, Mine …) fixes.
    search : str
        What the search header says.

    Raises
    ------
    ClinicError
        For a value that cannot be, naming it.
    """
    zone = _zone(values.get("zone", "UTC"))
    asked: dict[str, Any] = {name: values[name] for name in ("finding", "view", "status", "sort") if name in values}
    for name in ("age_from", "age_to"):
        if name in values:
            try:
                asked[name] = float(values[name])
            except ValueError:
                raise ClinicError(f"{name} {values[name][:20]!r}: not an age in years") from None
    for name, later in (("since", 0), ("until", 1)):
        if name in values:
            try:
                day = date.fromisoformat(values[name]) + timedelta(days=later)
                asked[name] = datetime.combine(day, time(), zone).astimezone(UTC)
            except (ValueError, OverflowError):
                raise ClinicError(f"{name} {values[name][:20]!r}: not a day; write YYYY-MM-DD") from None
    if "sort" in values:
        asked["descending"] = "down" in values
    return worklist.Query(**{**asked, **fixed}, search=said(search))


def address(values: Mapping[str, str], **changes: str | None) -> str:
    """Return the page's address with other parameters; None takes one away."""
    found = {name: value for name, value in {**values, **changes}.items() if value}
    return f"/?{urlencode(found)}"


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC


@router.get("/readers", tags=["reviews"])
def get_readers(request: Request, caller: Reviewer) -> list[str]:
    """Return the names of those to whom a study can be handed over."""
    with clinic_of(request).database.read() as connection:
        return [name for name in claims.readers(connection, caller.site, store.now()) if name != caller.name]


@router.post("/studies/{study}/hand-over", tags=["reviews"])
def hand_over(request: Request, study: str, body: schemas.HandOverIn, caller: Reviewer) -> schemas.RowOut:
    """Give a study that you hold, or that nobody holds, to another reader, who is told."""
    clinic = clinic_of(request)
    claims.hand_over(clinic.database, caller.site, study, caller.name, body.to, life=clinic.claim_life)
    security.saw(request, caller, study)
    return covering.row_out(clinic, caller, study)


@router.get("/filters", tags=["worklist"])
def get_filters(request: Request, caller: Viewer) -> list[schemas.FilterOut]:
    """Return your saved filters of the worklist, by name."""
    with clinic_of(request).database.read() as connection:
        return [schemas.FilterOut.model_validate(f) for f in filters.of(connection, caller.site, caller.name)]


@router.put("/filters/{name}", tags=["worklist"])
def put_filter(request: Request, name: str, body: schemas.FilterIn, caller: Viewer) -> schemas.FilterOut:
    """Keep a filter under a name; one that has the name is replaced. What is searched for is never kept."""
    query = known(body.query.items())
    if unknown := sorted(set(body.query) - set(PARAMETERS)):
        raise ClinicError(f"query: {unknown[0][:40]!r} is not known; {', '.join(PARAMETERS)}")
    query_of(query, {}, "")
    return schemas.FilterOut.model_validate(
        filters.save(clinic_of(request).database, caller.site, caller.name, name, query)
    )


@router.delete("/filters/{name}", tags=["worklist"], status_code=204)
def delete_filter(request: Request, name: str, caller: Viewer) -> Response:
    """Forget a saved filter."""
    filters.delete(clinic_of(request).database, caller.site, caller.name, name)
    return Response(status_code=204)

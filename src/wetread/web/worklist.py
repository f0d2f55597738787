"""The page of the worklist, and the way from one study to the next. Whatever it changes goes through the API."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import RedirectResponse

from wetread.clinic import claims, delivery, filters, preferences, store, worklist
from wetread.clinic.access import Caller, Right
from wetread.errors import ClinicError
from wetread.web import covering, critical, events, lists, security, view
from wetread.web.language import N_, word
from wetread.web.language import gettext as _
from wetread.web.pages import Reader, render

router = APIRouter(include_in_schema=False)

PAGE = 50
_NOTHING = {
    "unread": N_("Nothing waits to be read."),
    "read": N_("No study was read yet."),
    "mine": N_("You hold no study."),
    "overdue": N_("Nothing is past its waiting cap."),
}


@router.get("/")
def worklist_page(
    request: Request,
    caller: Reader,
    chosen: Annotated[str, Query(alias="class")] = "unread",
    after: Annotated[str | None, Query(alias="from")] = None,
    search: Annotated[str, Header(alias=lists.SEARCH_HEADER)] = "",
) -> Response:
    """Show the worklist; to htmx, only what changes."""
    clinic, now = request.app.state.clinic, store.now()
    only = next((f for f in view.FILTERS if f.key == chosen), None)
    if only is None:
        return RedirectResponse("/", 303)
    values = {"class": chosen} | lists.known(request.query_params.items())
    fixed: dict[str, Any] = {"priority": only.priority, "overdue": only.overdue}
    fixed |= {"status": only.status} if only.status else {}
    fixed |= {"reader": caller.name} if only.mine else {}
    seq = events.latest(clinic)  # before the list is read, so that no change falls between the two
    try:
        query = lists.query_of(values, fixed, search if caller.sees_patients else "")
        page = covering.page(clinic, caller, query, after=after, limit=PAGE, now=now)
    except ClinicError:  # an address that somebody changed, or that was right once
        plain = lists.address({"class": chosen})
        return RedirectResponse("/" if request.url.query == plain[2:] else plain, 303)
    with clinic.database.read() as connection:
        held = claims.held(connection, caller.site, caller.name, now)
        saved = filters.of(connection, caller.site, caller.name)
    security.saw(request, caller)
    live = request.headers.get("HX-Request") == "true"
    return render(
        request,
        "live.html" if live else "worklist.html",
        caller=caller,
        keys=preferences.get(clinic.database, caller.site, caller.name, preferences.KEYS) or {},
        rows=[view.line(row, caller.name) for row in page.rows],
        counts=asdict(page.counts) | {"mine": held.count},
        filters=view.FILTERS,
        handed=held.handed,
        criticals=critical.lines(request, caller),
        alarms=[
            *view.alarms(page.counts, clinic.ai(caller.site).banner),
            *view.room(clinic.has_room()),
            *view.undelivered(delivery.undelivered(clinic.database, caller.site)),
        ],
        chosen=chosen,
        columns=view.columns(query, values, lists.address),
        values=values,
        narrowed=sum(name in values for name in lists.PARAMETERS[1:8]),
        choices=view.choices(clinic.rules.of(caller.site)),
        saved=[(f.name, lists.address(f.query), f.query == values) for f in saved],
        seq=seq,
        first_page=lists.address(values) if after else None,
        next_page=lists.address(values, **{"from": page.next}) if page.next else None,
        page_size=PAGE,
        here=lists.address(values, **{"from": after}),
        nothing=_nothing(chosen, values, search),
        may_upload=caller.may(Right.UPLOAD),
        may_review=caller.may(Right.REVIEW),
    )


def _nothing(chosen: str, values: dict[str, str], search: str) -> str:
    if search.strip():
        read = "" if chosen == "read" else " " + _("Look among the read ones, too.")
        return _("No study of this list begins so.") + read
    return (
        _("No study of this kind.")
        if len(values) > 1
        else word(_NOTHING.get(chosen, N_("No unread study of this kind.")))
    )


@router.get("/studies/next")
def next_study(request: Request, caller: Reader, after: str = "") -> Response:
    """Go to the first unread study that nobody else is reading, other than `after`; when none is left, to the list."""
    found = _next(request, caller, after)
    return RedirectResponse("/" if found is None else f"/studies/{found}", 303)


@router.get("/studies/ahead")
def picture_ahead(request: Request, caller: Reader, after: str = "") -> dict[str, str | None]:
    """Return the first picture of the study that would be next now: its identifier, and nothing of the patient."""
    found = _next(request, caller, after)
    image = None if found is None else worklist.first_image(request.app.state.clinic.database, caller.site, found)
    return {"image": image}


def _next(request: Request, caller: Caller, after: str) -> str | None:
    waiting = worklist.upcoming(request.app.state.clinic.database, caller.site, caller.name)
    return next((study for study in waiting if study != after), None)

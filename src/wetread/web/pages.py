"""The pages: worklist, one study. Whatever they change goes through the API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates

from wetread import __version__
from wetread.clinic import delivery, dicomweb, worklist
from wetread.clinic.access import Caller, Right
from wetread.errors import ClinicError, NotFoundError
from wetread.web import events, security, view
from wetread.web.problems import UnauthenticatedError

router = APIRouter(include_in_schema=False)


class Static(StaticFiles):
    """The style sheet and the built front end. A browser keeps them and asks each time whether they changed."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Answer with the file, or that it has not changed."""
        answer = super().file_response(*args, **kwargs)
        answer.headers["Cache-Control"] = "no-cache"
        return answer


templates = Jinja2Templates(Path(__file__).parent / "templates")
templates.env.trim_blocks = templates.env.lstrip_blocks = True
templates.env.filters["waiting"] = view.waiting

PAGE = 50
_NOTHING = {"unread": "Nothing waits to be read.", "read": "No study was read yet."}


def _signed_in(request: Request) -> Caller:
    """Return who looks at a page; who did not sign in is sent to the login page."""
    try:
        return security.identify(request)
    except UnauthenticatedError as error:
        if request.headers.get("HX-Request"):
            raise
        raise HTTPException(303, str(error), {"Location": "/login"}) from None


SignedIn = Annotated[Caller, Depends(_signed_in)]


def _reader(caller: SignedIn) -> Caller:
    caller.require(Right.VIEW)
    return caller


Reader = Annotated[Caller, Depends(_reader)]


def render(request: Request, name: str, status: int = 200, **context: Any) -> Response:
    """Render a template with what every page needs."""
    session = security.session_of(request)
    context |= {
        "version": __version__,
        "csrf": security.csrf_token(session) if session else "",
        "demo": request.app.state.clinic.settings.demo,
    }
    headers = {"Cache-Control": "no-store", "Vary": "HX-Request"}
    return templates.TemplateResponse(request, name, context, status_code=status, headers=headers)


@router.get("/")
def worklist_page(
    request: Request,
    caller: Reader,
    chosen: Annotated[str, Query(alias="class")] = "unread",
    after: Annotated[str | None, Query(alias="from")] = None,
) -> Response:
    """Show the worklist; to htmx, only what changes."""
    clinic = request.app.state.clinic
    only = next((f for f in view.FILTERS if f.key == chosen), None)
    if only is None:
        return RedirectResponse("/", 303)
    seq = events.latest(clinic)  # before the list is read, so that no change falls between the two
    try:
        page = worklist.page(
            clinic.database, caller.site, after=after, limit=PAGE, priority=only.priority, status=only.status
        )
    except ClinicError:
        return RedirectResponse(f"/?{urlencode({'class': chosen})}", 303)
    security.saw(request, caller)
    live = request.headers.get("HX-Request") == "true"
    return render(
        request,
        "live.html" if live else "worklist.html",
        caller=caller,
        rows=[view.line(row, caller.name) for row in page.rows],
        counts=page.counts,
        filters=view.FILTERS,
        alarms=[
            *view.alarms(page.counts, clinic.ai(caller.site).banner),
            *view.room(clinic.has_room()),
            *view.undelivered(delivery.undelivered(clinic.database, caller.site)),
        ],
        chosen=chosen,
        seq=seq,
        after_page=after,
        next_page=page.next,
        page_size=PAGE,
        here=f"/?{urlencode({'class': chosen} | ({'from': after} if after else {}))}",
        nothing=_NOTHING.get(chosen, "No unread study of this kind."),
        may_upload=caller.may(Right.UPLOAD),
    )


@router.get("/studies/next")
def next_study(request: Request, caller: Reader, after: str = "") -> Response:
    """Go to the first unread study that nobody else is reading, other than `after`; when none is left, to the list."""
    page = worklist.page(request.app.state.clinic.database, caller.site, limit=500)
    free = (row.study for row in page.rows if row.study != after and row.claimed_by in (None, caller.name))
    found = next(free, None)
    return RedirectResponse("/" if found is None else f"/studies/{found}", 303)


@router.get("/studies/{study}")
def study_page(request: Request, caller: Reader, study: str) -> Response:
    """Show one study."""
    clinic = request.app.state.clinic
    seq = events.latest(clinic)
    try:
        found = worklist.study(clinic.database, caller.site, study)
    except NotFoundError as error:
        return render(request, "problem.html", 404, title="No such study", detail=str(error))
    security.saw(request, caller, study)
    return render(
        request,
        "study.html",
        caller=caller,
        seq=seq,
        may_review=caller.may(Right.REVIEW),
        set_aside=view.set_aside(found) if caller.may(Right.OPERATE) else {},
        ohif=_ohif(request, caller.site, study),
        **view.reading(found, caller.name),
    )


def _ohif(request: Request, site: str, study: str) -> str:
    """Return the address of a study in the OHIF of the setting `ohif`; empty without one, or when it is no DICOM."""
    clinic = request.app.state.clinic
    uid = dicomweb.uid(clinic.database, site, study) if clinic.settings.ohif else None
    return f"{clinic.settings.ohif}?{urlencode({'StudyInstanceUIDs': uid})}" if uid else ""

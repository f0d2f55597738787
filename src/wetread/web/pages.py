"""What every page has, and the page of one study. Whatever it changes goes through the API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.concurrency import run_in_threadpool

from wetread import __version__
from wetread.clinic import dicomweb, preferences, priors
from wetread.clinic.access import Caller, Right
from wetread.clinic.service import Served
from wetread.errors import NotFoundError
from wetread.web import covering, critical, events, language, look, menu, security, view
from wetread.web.language import N_
from wetread.web.problems import UnauthenticatedError

router = APIRouter(include_in_schema=False)


class Static(StaticFiles):
    """The style sheet and the built front end. A browser keeps them and asks each time whether they changed.

    What is named by its content cannot change: a browser asks for it once.
    """

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Answer with the file, or that it has not changed."""
        answer = super().file_response(*args, **kwargs)
        lasting = Path(args[0] if args else kwargs["full_path"]).parent.name == "chunks"
        answer.headers["Cache-Control"] = "public, max-age=31536000, immutable" if lasting else "no-cache"
        return answer


templates = Jinja2Templates(Path(__file__).parent / "templates")
templates.env.trim_blocks = templates.env.lstrip_blocks = True
language.install(templates.env)
templates.env.filters["waiting"] = view.waiting
templates.env.filters["left"] = view.left
templates.env.filters["local"] = look.local
templates.env.filters["exact"] = look.exact
templates.env.filters["clock"] = look.clock
templates.env.filters["day"] = look.day
templates.env.filters["hour"] = look.hour
templates.env.filters["month"] = look.month


async def _signed_in(request: Request) -> Caller:
    """Return who looks at a page, which speaks their language from here on."""
    caller = await run_in_threadpool(_identify, request)
    language.use(request.state.look.language)
    return caller


def _identify(request: Request) -> Caller:
    """Return who looks at a page; who did not sign in is sent to the login page."""
    try:
        caller = security.identify(request)
        request.state.look = look.of(request, caller)
        return caller
    except UnauthenticatedError as error:
        if request.headers.get("HX-Request"):
            raise
        headers = {"Location": "/login"}
        if security.STUDY.fullmatch(request.url.path):  # who was logged out while reading comes back to the study
            headers["Set-Cookie"] = security.remember(request, request.url.path)
        raise HTTPException(303, str(error), headers) from None


SignedIn = Annotated[Caller, Depends(_signed_in)]


def with_right(right: Right) -> Any:
    """Depend on who looks at a page, and may do so."""

    def check(caller: SignedIn) -> Caller:
        caller.require(right)
        return caller

    return Depends(check)


def by_form(right: Right) -> Any:
    """Depend on who sent a page's form, and may do so."""

    def check(caller: Annotated[Caller, Depends(security.by_form)]) -> Caller:
        caller.require(right)
        return caller

    return Depends(check)


Reader = Annotated[Caller, with_right(Right.VIEW)]


def render(request: Request, name: str, status: int = 200, **context: Any) -> Response:
    """Render a template with what every page needs."""
    session, caller = security.session_of(request), context.get("caller")
    shown = getattr(request.state, "look", None) or look.of(request, caller)
    context |= {
        "version": __version__,
        "look": shown,
        "words": language.address(shown.language),
        "menu": menu.of(caller),
        "csrf": security.csrf_token(session) if session else "",
        "demo": request.app.state.clinic.settings.demo,
        "research_only": request.app.state.clinic.research_only,
    }
    headers = {"Cache-Control": "no-store", "Vary": "HX-Request, Accept-Language"}
    with look.shown(shown):
        return templates.TemplateResponse(request, name, context, status_code=status, headers=headers)


@router.get("/studies/{study}/critical")
def critical_strip(request: Request, caller: Reader, study: str) -> Response:
    """Return what the study's page says of critical findings of which nobody was told."""
    critical.criticals(request).of(caller.site, study)  # or it is not there
    lines = critical.lines(request, caller, study)
    security.saw(request, caller)
    return render(request, "critical.html", caller=caller, criticals=lines, may_review=caller.may(Right.REVIEW))


@router.get("/studies/{study}")
def study_page(request: Request, caller: Reader, study: str) -> Response:
    """Show one study."""
    clinic = request.app.state.clinic
    seq = events.latest(clinic)
    try:
        found = covering.study(clinic, caller, study)
    except NotFoundError as error:
        return render(request, "problem.html", 404, title=N_("No such study"), detail=str(error))
    compared = priors.priors(clinic.database, caller.site, study)
    for one in (study, *(prior.study for prior in compared)):
        security.saw(request, caller, one)
    return render(
        request,
        "study.html",
        caller=caller,
        priors=view.beside(compared, named=caller.sees_patients),
        criticals=critical.lines(request, caller, study),
        seq=seq,
        claim_minutes=clinic.settings.claim_minutes,
        may_review=caller.may(Right.REVIEW),
        set_aside=view.set_aside(found) if caller.may(Right.OPERATE) else {},
        ohif=_ohif(request, caller.site, study) if caller.sees_patients else "",
        blind=found.blind,
        restricted=found.research_only,
        keys=preferences.get(clinic.database, caller.site, caller.name, preferences.KEYS) or {},
        undo_seconds=clinic.settings.undo_seconds,
        **view.reading(
            found,
            caller.name,
            undo=clinic.undo,
            metas={
                key: model.predictor.package.meta for key, model in clinic.models.items() if isinstance(model, Served)
            },
        ),
    )


def _ohif(request: Request, site: str, study: str) -> str:
    """Return the address of a study in the OHIF of the setting `ohif`; empty without one, or when it is no DICOM."""
    clinic = request.app.state.clinic
    uid = dicomweb.uid(clinic.database, site, study) if clinic.settings.ohif else None
    return f"{clinic.settings.ohif}?{urlencode({'StudyInstanceUIDs': uid})}" if uid else ""

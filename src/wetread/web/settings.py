"""The page of what a reader sets for themselves, and the way to what their role may set for the site."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse

from wetread.clinic import store
from wetread.clinic.access import Caller
from wetread.errors import ClinicError
from wetread.web import language, look, menu, security
from wetread.web.pages import SignedIn, render

router = APIRouter(include_in_schema=False)


@router.get("/settings")
def settings_page(request: Request, caller: SignedIn) -> Response:
    """Show what the caller has set."""
    return _page(request, caller)


@router.post("/settings")
def keep_settings(
    request: Request,
    caller: Annotated[Caller, Depends(security.by_form)],
    theme: Annotated[str, Form(max_length=64)] = "dark",
    zone: Annotated[str, Form(max_length=64)] = "",
    tongue: Annotated[str, Form(alias="language", max_length=20)] = "",
) -> Response:
    """Keep theme, time zone and language."""
    try:
        look.keep(request.app.state.clinic, caller, theme, zone, tongue)
    except ClinicError as error:
        return _page(request, caller, 422, str(error))
    return RedirectResponse("/settings", 303)


def _page(request: Request, caller: Caller, status: int = 200, error: str = "") -> Response:
    return render(
        request,
        "settings.html",
        status,
        caller=caller,
        error=error,
        themes=look.THEMES,
        zones=look.zones(),
        languages=language.languages(),
        site_zone=request.app.state.clinic.settings.zone,
        now=store.now().astimezone(UTC),
        links=menu.of(caller, menu.SETTINGS),
    )

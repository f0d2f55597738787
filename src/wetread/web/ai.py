"""The page on which an administrator turns AI off and on: all of it, or one model."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from wetread.clinic.access import Caller, Right
from wetread.errors import NotFoundError
from wetread.web.pages import by_form, render, with_right

router = APIRouter(include_in_schema=False)


@router.get("/settings/ai")
def ai_page(request: Request, caller: Annotated[Caller, with_right(Right.ADMINISTER)]) -> Response:
    """Show what is on and what is off."""
    return _page(request, caller)


@router.post("/settings/ai")
def switch(
    request: Request,
    caller: Annotated[Caller, by_form(Right.ADMINISTER)],
    on: Annotated[bool, Form()],
    model: Annotated[str, Form(max_length=64)] = "",
    reason: Annotated[str, Form(max_length=500)] = "",
    sure: Annotated[str, Form(max_length=8)] = "",
) -> Response:
    """Turn it; only with a reason, and confirmed."""
    reason = " ".join(reason.split())
    if not reason:
        return _page(request, caller, 422, "reason: is empty; say why, the readers see it", model)
    if not sure:
        return _page(request, caller, 422, "not confirmed: tick the box beside the button", model, reason)
    try:
        request.app.state.clinic.switch_ai(caller.site, on, caller.name, model=model, reason=reason)
    except NotFoundError as error:
        return _page(request, caller, 404, str(error))
    return RedirectResponse("/settings/ai", 303)


def _page(
    request: Request, caller: Caller, status: int = 200, error: str = "", model: str = "", reason: str = ""
) -> Response:
    state = request.app.state.clinic.ai(caller.site)
    return render(
        request, "ai.html", status, caller=caller, ai=state, error=error, typed={model: reason},
        setting=request.app.state.clinic.settings.ai,
    )  # fmt: skip

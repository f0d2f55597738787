"""The page on which an administrator tries another priority rule on last week's list. It changes nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, File, Form, Request, Response, UploadFile

from wetread.clinic import dry_run, priority, store
from wetread.clinic.access import Caller, Right
from wetread.clinic.priority import Priority
from wetread.errors import ConfigError
from wetread.web import security
from wetread.web.pages import by_form, render, with_right

router = APIRouter(include_in_schema=False)

DAYS = 7
SHOWN = 50  # of the studies that move


@router.get("/settings/rule")
def rule_page(request: Request, caller: Annotated[Caller, with_right(Right.ADMINISTER)]) -> Response:
    """Show the rule in force, ready to be changed for a trial."""
    rule = request.app.state.clinic.rules.of(caller.site)
    return render(request, "rule.html", caller=caller, toml=priority.written(rule), found=None, error="", days=DAYS)


@router.post("/settings/rule")
def try_rule(
    request: Request,
    caller: Annotated[Caller, by_form(Right.ADMINISTER)],
    toml: Annotated[str, Form(max_length=100_000)] = "",
    file: Annotated[UploadFile | None, File()] = None,
) -> Response:
    """Show what another rule would have done; a file counts before the text."""
    clinic, now = request.app.state.clinic, store.now()
    since = now - timedelta(days=DAYS)
    if file is not None and file.filename:
        toml = file.file.read(100_000).decode("utf-8", "replace")
    try:
        other = priority.read(toml, "rule")
    except ConfigError as error:
        return render(request, "rule.html", 422, caller=caller, toml=toml, found=None, error=str(error), days=DAYS)
    with clinic.database.read() as connection:
        arrivals = dry_run.arrivals(connection, caller.site, since)
    security.saw(request, caller)
    found = dry_run.compare(arrivals, clinic.rules.of(caller.site), other, since, now)
    return render(
        request, "rule.html", caller=caller, toml=toml, found=found, error="", days=DAYS, shown=SHOWN,
        classes=[*Priority, None], most=dry_run.MOST,
    )  # fmt: skip

"""The page that tells what happened to a study."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from wetread.clinic import history
from wetread.errors import NotFoundError
from wetread.web import covering, security, view
from wetread.web.api import clinic_of
from wetread.web.language import N_
from wetread.web.pages import Reader, render

router = APIRouter(include_in_schema=False)


@router.get("/studies/{study}/history")
def history_page(
    request: Request,
    caller: Reader,
    study: str,
    kind: Annotated[str, Query(max_length=20)] = "",
) -> Response:
    """Show what happened to a study, with who and when."""
    clinic = clinic_of(request)
    try:
        row = covering.study(clinic, caller, study).row
        hide = covering.hides(clinic, caller, study)
        entries = history.history(clinic.database, caller.site, study, hide=hide, named=caller.sees_patients)
    except NotFoundError as error:
        return render(request, "problem.html", 404, title=N_("No such study"), detail=str(error))
    security.saw(request, caller, study)
    kinds = [(key, word, sum(entry.kind == key for entry in entries)) for key, word in history.KINDS.items()]
    shown = [entry for entry in entries if kind in ("", entry.kind)]
    return render(
        request,
        "history.html",
        caller=caller,
        row=row,
        patient=view.patient(row),
        kinds=[chosen for chosen in kinds if chosen[2]],
        kind=kind if kind in history.KINDS else "",
        entries=shown,
        total=len(entries),
    )

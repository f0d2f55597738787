"""The page that says how good the first look is: agreement, missed findings, false alerts, time to read."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from wetread.clinic import accuracy, quality, store
from wetread.clinic.figures import FEW, MOST, Period
from wetread.clinic.priority import Priority
from wetread.web import figures  # noqa: F401  its filters
from wetread.web.models import names
from wetread.web.pages import Reader, render

router = APIRouter(include_in_schema=False)


@router.get("/quality")
def quality_page(
    request: Request, caller: Reader, days: Annotated[int, Query(description="7, 28 or 90.")] = 28
) -> Response:
    """Show the figures of the caller's site. They are of no patient and no single reader."""
    clinic, chosen = request.app.state.clinic, min(quality.PERIODS, key=lambda period: abs(period - days))
    period = Period.last(chosen, store.now())
    with clinic.database.read() as connection:
        found = quality.quality(connection, caller.site, period, clinic.days)
        right = accuracy.accuracy(connection, caller.site, period, finding=accuracy.ANY)
    by_model: dict[str | None, list[quality.Agreement]] = {}
    for one in found.agreement:
        by_model.setdefault(one.model, []).append(one)
    return render(
        request, "quality.html", caller=caller, found=found, by_model=by_model, names=names(clinic), days=chosen,
        waits={(one.priority, one.arm): one for one in found.waits}, classes=[None, *Priority],
        periods=quality.PERIODS, few=FEW, most=MOST, accuracy=right, newest=accuracy.MOST, by="model",
    )  # fmt: skip

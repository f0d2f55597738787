"""The pages of the models: which there are, where they serve, their card, and what they do here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from markdown_it import MarkdownIt
from markupsafe import Markup

from wetread.clinic import accuracy, model_figures, processes, quality, store
from wetread.clinic.deployments import Deployment
from wetread.clinic.figures import FEW, Period
from wetread.clinic.model_figures import Seen
from wetread.clinic.service import Clinic, ModelState, Served
from wetread.errors import NotFoundError
from wetread.model.package import Package
from wetread.web import (
    deployments,
    figures,  # noqa: F401  its filters
)
from wetread.web.language import N_
from wetread.web.pages import Reader, render

router = APIRouter(include_in_schema=False)

WEEKS = 4  # that the numbers are of
# A card comes with a package from anywhere: what is HTML in it stays text, links and pictures are not followed.
_MARKDOWN = (
    MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image", "autolink", "html_inline"])
)


@dataclass(frozen=True)
class Listed:
    """A model that is in service, or that gave results lately; or both."""

    id: str
    name: str
    version: str
    state: ModelState | None
    package: Package | None
    seen: Seen | None


def card(markdown: str) -> Markup:
    """Return a model card as HTML, in which nothing of the card is markup, a link or a picture."""
    return Markup(str(_MARKDOWN.render(markdown)))  # noqa: S704  what it makes is only its own tags


def _golden(package: Package | None) -> int:
    """Return how many golden radiographs a package was proven on."""
    return len(package.golden.outputs.probability) if package else 0


def names(clinic: Clinic) -> dict[str, str]:
    """Return the names of the models in service, by id."""
    return {model.id: model.name for model in clinic.models.values()}


def _listed(clinic: Clinic, site: str, period: Period) -> list[Listed]:
    """Return the models, those in service first; one that is missing has no id."""
    with clinic.database.read() as connection:
        seen: dict[str, Seen] = {}
        for one in model_figures.seen(connection, site, period):
            seen.setdefault(one.model, one)
        rows = deployments.told(connection, site)
    found = []
    for state in clinic.ai(site).models:
        model = clinic.models.get(state.id)
        package = model.predictor.package if isinstance(model, Served) else None
        found.append(Listed(state.id, state.name, state.version, state, package, seen.pop(state.id, None)))
    listed = {one.id for one in found}
    for row in rows:  # a challenger is no part of what readers are told of the AI
        if row.model not in listed:
            model = clinic.models.get(row.model)
            package = model.predictor.package if isinstance(model, Served) else None
            found.append(Listed(row.model, row.model_name, row.version, None, package, seen.pop(row.model, None)))
            listed.add(row.model)
    return found + [Listed(one.model, one.name, one.version, None, None, one) for one in seen.values()]


def _deployed(clinic: Clinic, site: str, model: str = "") -> Sequence[Deployment]:
    """Return what is deployed at a site, or all that ever was done with a model."""
    with clinic.database.read() as connection:
        return deployments.told(connection, site, model=model)


def _serving(clinic: Clinic, model: str) -> list[dict[str, Any]]:
    """Return the processes that serve a model."""
    return [process for process in processes.alive(clinic.database) if model in process["models"]]


@router.get("/models")
def models_page(request: Request, caller: Reader) -> Response:
    """Show which models there are."""
    clinic = request.app.state.clinic
    period = Period.last(7 * WEEKS, store.now())
    return render(
        request, "models.html", caller=caller, ai=clinic.ai(caller.site), weeks=WEEKS,
        models=_listed(clinic, caller.site, period), deployed=_deployed(clinic, caller.site),
    )  # fmt: skip


@router.get("/models/{model}")
def model_page(request: Request, caller: Reader, model: str) -> Response:
    """Show one model: its card, where it serves, what it does here."""
    clinic = request.app.state.clinic
    period = Period.last(7 * WEEKS, store.now())
    try:
        one = _find(_listed(clinic, caller.site, period), model)
    except NotFoundError as error:
        return render(request, "problem.html", 404, title=N_("No such model"), detail=str(error))
    with clinic.database.read() as connection:
        numbers = model_figures.numbers(connection, caller.site, model, period)
        agreement = quality.agreement(connection, caller.site, period, model)
        right = accuracy.accuracy(connection, caller.site, period, model=model)
    return render(
        request, "model.html", caller=caller, model=one, numbers=numbers, agreement=agreement, weeks=WEEKS, few=FEW,
        card=card(one.package.card) if one.package else "", golden=_golden(one.package), ai=clinic.ai(caller.site),
        point=clinic.settings.point, serving=_serving(clinic, model),
        accuracy=right, newest=accuracy.MOST, by="finding",
        sample=model_figures.SAMPLE, deployed=_deployed(clinic, caller.site, model),
    )  # fmt: skip


def _find(listed: list[Listed], model: str) -> Listed:
    for one in listed:
        if one.id and one.id == model:
            return one
    raise NotFoundError(f"model {model[:64]}: none in service and none that gave results here lately")

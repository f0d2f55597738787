"""For those who keep it running: whether what comes in still looks as it did, and the experiment under way.

An experiment's effects are told at its end, by the command; here stands how far it is, nothing that could make anybody
stop it because it looks well.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse
from sqlalchemy.engine import Connection

from wetread.clinic import store
from wetread.clinic.access import Caller, Right
from wetread.clinic.experiments import Experiment
from wetread.errors import NotFoundError
from wetread.improve import drift, drift_report
from wetread.improve.drift import Report, Source
from wetread.improve.experiment import Design
from wetread.web import figures  # noqa: F401  its filters
from wetread.web.api import clinic_of
from wetread.web.language import N_
from wetread.web.pages import render, with_right

router = APIRouter(include_in_schema=False)

CHECKS = 60  # that are shown of a site: with a check a day and two models, a month
NAMES = {
    "pixels": N_("pixels"), "device": N_("devices"), "refused": N_("refusals"), "features": N_("features"),
    "scores": N_("scores"), "labels": N_("what readers say"), "calibration": N_("calibration"),
}  # fmt: skip
CHANNELS = {
    "mean": N_("mean"), "spread": N_("spread"), "black": N_("share of black"), "white": N_("share of white"),
    "rows": N_("rows"), "columns": N_("columns"), "mix": N_("mix"), "share": N_("share"),
    "discrepancy": N_("discrepancy"),
}  # fmt: skip
SOURCES = {drift.ALL: N_("all devices"), drift.REVIEWS: N_("signed studies"), drift.UNSAID: N_("device unknown")}
# The beginnings of the others' names, in the order in which they stand.
PARTS = {drift.OF: N_("signed studies of"), "station ": N_("station"), "sender ": N_("sender")}
VERDICTS = {drift.DRIFT: N_("drift"), drift.QUIET: N_("nothing"), drift.UNKNOWN: N_("too little to say")}


@dataclass(frozen=True)
class Checked:
    """The checks of one model, the newest first, and of each the largest effect as a multiple of what matters."""

    name: str
    reports: tuple[Report, ...]

    @property
    def newest(self) -> Report:
        """The last one."""
        return self.reports[0]

    def largest(self, report: Report) -> float | None:
        """Return the largest effect of a check; None when nothing could be compared."""
        return max((c.effect / c.limit for source in report.sources for c in source.changes), default=None)


@dataclass(frozen=True)
class Progress:
    """How far an experiment is."""

    experiment: Experiment
    plan: Design
    done: int
    studies: int
    signed: int


@router.get("/drift")
def drift_page(request: Request, caller: Annotated[Caller, with_right(Right.OPERATE)]) -> Response:
    """Show the newest checks of the caller's site, and its newest experiment."""
    with clinic_of(request).database.read() as connection:
        by_model: dict[str, list[Report]] = defaultdict(list)
        for found in drift.latest(connection, caller.site, CHECKS):
            report = drift.from_dict(found)
            by_model[report.model].append(report)
        progress = _progress(connection, caller.site, store.now())
    models = [Checked(reports[0].model_name, tuple(reports)) for reports in by_model.values()]
    return render(
        request, "drift.html", caller=caller, models=models, progress=progress, kinds=NAMES, channels=CHANNELS,
        sources=SOURCES, parts=_parts, verdicts=VERDICTS, of_source=_changes,
    )  # fmt: skip


@router.get("/drift/report")
def drift_words(
    request: Request,
    caller: Annotated[Caller, with_right(Right.OPERATE)],
    check: Annotated[str, Query(max_length=36)] = "",
) -> Response:
    """Return the report of one check as it is kept, in Markdown."""
    table = store.drift_check.c
    wanted = sa.select(table.report).where(table.id == check, table.site == caller.site)
    with clinic_of(request).database.read() as connection:
        found = connection.execute(wanted).scalar()
    if found is None:
        raise NotFoundError(f"check {check}: there is none")
    return PlainTextResponse(drift_report.words(drift.from_dict(found)))


def alarms(connection: Connection, site: str) -> list[str]:
    """Return the names of the models whose newest check found drift."""
    table = store.drift_check.c
    newest = (
        sa.select(table.model, sa.func.max(table.at).label("at"))
        .where(table.site == site)
        .group_by(table.model)
        .subquery()
    )
    rows = connection.execute(
        sa.select(table.report)
        .join(newest, sa.and_(newest.c.model == table.model, newest.c.at == table.at))
        .where(table.site == site, table.verdict == drift.DRIFT)
    )
    return sorted(report["model_name"] for report in rows.scalars())


def _parts(name: str) -> tuple[list[str], str]:
    """Return the words that the name of a source begins with, and the rest: what a device says of itself."""
    words = []
    for beginning, word in PARTS.items():
        if name.startswith(beginning):
            words.append(word)
            name = name.removeprefix(beginning)
    return words, name


def _changes(source: Source) -> list[tuple[Any, bool]]:
    """Return what was compared, the largest first, each with whether it is an alarm."""
    ordered = sorted(source.changes, key=lambda change: -change.effect / change.limit)
    return [(change, f"{change.kind}: {change.name}" in source.alarms) for change in ordered]


def _progress(connection: Connection, site: str, now: datetime) -> Progress | None:
    table, assigned, studies = store.experiment, store.assignment.c, store.study.c
    row = connection.execute(
        sa.select(table).where(table.c.site == site).order_by(table.c.started_at.desc()).limit(1)
    ).first()
    if row is None:
        return None
    found = Experiment(*row)
    plan = Design.model_validate(found.plan)
    done = min(plan.blocks, found.block(found.ended_at or now).number)
    counted = (
        sa.select(sa.func.count(), sa.func.count(sa.case((studies.reading == "signed", 1))))
        .join(store.study, studies.id == assigned.study)
        .where(assigned.unit == found.id)
    )
    return Progress(found, plan, done, *connection.execute(counted).one())

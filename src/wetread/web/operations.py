"""For those who run it: is it alive, is it ready, how much is it doing. No names of people anywhere here."""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wetread.clinic import delivery, store, switches
from wetread.clinic.jobs import Job
from wetread.clinic.service import Clinic, Served
from wetread.infer.predict import Analysis
from wetread.web import deployments
from wetread.web.api import clinic_of
from wetread.web.problems import problem

router = APIRouter(tags=["operations"])


class Metrics:
    """The numbers of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        more: dict[str, Any] = {"registry": self.registry}
        self.requests = Histogram(
            "wetread_http_seconds", "Time to answer, by route.", ("method", "route", "status"), **more
        )
        self.analyses = Counter("wetread_analyses", "Images analysed or refused.", ("model", "outcome"), **more)
        self.seconds = Histogram("wetread_analysis_seconds", "Time to read and analyse one image.", ("model",), **more)
        self.unread = Gauge("wetread_unread", "Unread studies.", ("priority", "analysis", "overdue"), **more)
        self.waiting = Gauge("wetread_longest_wait_seconds", "Wait of the oldest unread study.", **more)
        self.jobs = Gauge("wetread_jobs", "Analyses not yet done, and those set aside.", ("state",), **more)
        self.free = Gauge("wetread_disk_free_bytes", "Room until the reserve of the disk; negative beyond it.", **more)
        self.has_room = Gauge("wetread_has_room", "1 when more can be taken in, 0 when the disk is full.", **more)
        self.serving = Gauge(
            "wetread_model_serving", "1 when the model serves, 0 when it does not.", ("model",), **more
        )
        self.ai_off = Gauge(
            "wetread_ai_off", "1 while a model, or all of a site's AI (model empty), is off; by whom: person, system.",
            ("site", "model", "by"), **more,
        )  # fmt: skip
        self.deliveries = Counter("wetread_deliveries", "Tries to send an output.", ("kind", "outcome"), **more)
        self.undelivered = Gauge(
            "wetread_undelivered", "Outputs that have not arrived: queued, failed (tried again), given up.",
            ("kind", "state"), **more,
        )  # fmt: skip
        self.deployed = deployments.Gauges(self.registry)
        self.remote = Counter(
            "wetread_remote",
            "Batches of a remote model by who answered, and its failures.",
            ("model", "outcome"),
            **more,
        )
        self.remote_state = Gauge(
            "wetread_remote_breaker", "Breaker of a remote model: 0 closed, 1 half-open, 2 open.", ("model",), **more
        )

    def analysed(self, job: Job, analysis: Analysis | None, seconds: float) -> None:
        """Count one finished job."""
        if analysis is not None:
            outcome = str(analysis.code) if analysis.code else "analysed"
            self.analyses.labels(analysis.model, outcome).inc()
            self.seconds.labels(analysis.model).observe(seconds)

    def delivered(self, kind: str, outcome: str) -> None:
        """Count one try to send something."""
        self.deliveries.labels(kind, outcome).inc()

    def measure(self, clinic: Clinic) -> None:
        """Take the numbers that the database knows."""
        table = store.study.c
        unread = sa.and_(sa.text("study.reading != 'signed'"), sa.text("study.listed"))  # as the indexes say it
        keys = (table.priority, table.analysis, table.overdue)
        with clinic.database.read() as connection:
            groups = connection.execute(sa.select(*keys, sa.func.count()).where(unread).group_by(*keys)).all()
            oldest = connection.execute(sa.select(sa.func.min(table.received_at)).where(unread)).scalar()
            states = connection.execute(
                sa.select(store.job.c.state, sa.func.count().label("jobs"))
                .where(sa.text("job.state != 'done'"))
                .group_by(store.job.c.state)
            ).all()
            owed = connection.execute(
                sa.select(store.delivery.c.kind, store.delivery.c.state, sa.func.count())
                .where(store.delivery.c.state.in_(delivery.UNSENT))
                .group_by(store.delivery.c.kind, store.delivery.c.state)
            ).all()
            off = switches.everywhere(connection)
            self.deployed.measure(connection)
            aside = connection.execute(
                sa.select(sa.func.count(store.job.c.id)).where(sa.text("job.state = 'done' AND job.error IS NOT NULL"))
            ).scalar_one()
        self.ai_off.clear()
        for each in off:
            self.ai_off.labels(each.site, each.model, "system" if each.by_itself else "person").set(1)
        self.undelivered.clear()
        for kind, state, count in owed:
            self.undelivered.labels(kind, state).set(count)
        self.unread.clear()
        for priority, analysis, overdue, count in groups:
            self.unread.labels(priority, analysis, str(overdue).lower()).set(count)
        self.waiting.set((store.now() - oldest).total_seconds() if oldest else 0)
        counts = {"queued": 0, "running": 0} | {row.state: row.jobs for row in states} | {"aside": aside}
        self.free.set(clinic.free())
        self.has_room.set(clinic.has_room())
        for state, count in counts.items():
            self.jobs.labels(state).set(count)
        for model in clinic.ai(clinic.settings.site).models:
            self.serving.labels(model.name).set(model.state in ("serving", "local"))
        for served in clinic.models.values():
            if isinstance(served, Served) and (remote := served.predictor.remote) is not None:
                self.remote_state.labels(served.name).set(("closed", "half-open", "open").index(remote.breaker.state))
                for outcome, count in remote.since().items():
                    self.remote.labels(served.name, outcome).inc(count)


class Timing:
    """ASGI middleware that times each request, by the route's template and never by its address."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note how long it took."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in ("GET", "POST", "PUT", "DELETE", "HEAD") else "other"
            self.metrics.requests.labels(method, route, str(status)).observe(time.perf_counter() - start)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Answer as long as the process lives."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"description": "not ready"}})
def readyz(request: Request) -> JSONResponse:
    """Answer 200 when studies can be taken in: the database answers, there is room, and we are not stopping."""
    clinic = clinic_of(request)
    if clinic.worker is None or clinic.stopping.is_set():
        return problem(503, "starting or stopping")
    if not clinic.has_room():
        return problem(503, "the disk has only its reserve left; nothing is taken in")
    try:
        with clinic.database.read() as connection:
            connection.execute(sa.select(sa.literal(1)))
    except SQLAlchemyError:
        return problem(503, "the database does not answer")
    return JSONResponse({"status": "ready", "models": [m.name for m in clinic.ai(clinic.settings.site).models]})


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(request: Request) -> Response:
    """Return the numbers for Prometheus."""
    found: Metrics = request.app.state.metrics
    clinic = clinic_of(request)
    found.measure(clinic)
    text = generate_latest(found.registry) + generate_latest(clinic.intake.tally.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

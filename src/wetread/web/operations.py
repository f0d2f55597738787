"""For those who run it: is it alive, is it ready, how much is it doing. No names of people anywhere here."""

from __future__ import annotations

import logging
import threading
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

from wetread.clinic import store, tracing
from wetread.clinic.service import Clinic, Served
from wetread.clinic.tally import Done
from wetread.web import deployments, gauges
from wetread.web.api import clinic_of
from wetread.web.problems import problem

access = logging.getLogger("wetread.access")
router = APIRouter(tags=["operations"])

_SILENT = ("/healthz", "/readyz", "/metrics", "/static")  # asked for all the time, or of no interest


class Metrics:
    """The numbers of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.lock = threading.Lock()  # who asks while another does must not see numbers half taken
        ProcessCollector(registry=self.registry)
        more: dict[str, Any] = {"registry": self.registry}
        self.requests = Histogram(
            "wetread_http_seconds", "Time to answer, by route.", ("method", "route", "status"), **more
        )
        self.done = Done(self.registry)
        self.free = Gauge("wetread_disk_free_bytes", "Room until the reserve of the disk; negative beyond it.", **more)
        self.has_room = Gauge("wetread_has_room", "1 when more can be taken in, 0 when the disk is full.", **more)
        self.serving = Gauge(
            "wetread_model_serving", "1 when the model serves, 0 when it does not.", ("model",), **more
        )
        self.known = gauges.ClinicGauges(self.registry)
        self.deployed = deployments.DeploymentGauges(self.registry)
        self.remote = Counter(
            "wetread_remote",
            "Batches of a remote model by who answered, and its failures.",
            ("model", "outcome"),
            **more,
        )
        self.remote_state = Gauge(
            "wetread_remote_breaker", "Breaker of a remote model: 0 closed, 1 half-open, 2 open.", ("model",), **more
        )

    def measure(self, clinic: Clinic) -> None:
        """Take the numbers that the database knows, and those of this machine."""
        with clinic.database.read() as connection:
            self.known.measure(connection, store.now(), clinic.accuracy)
            self.deployed.measure(connection)
        self.free.set(clinic.free())
        self.has_room.set(clinic.has_room())
        for model in clinic.ai(clinic.settings.site).models:
            self.serving.labels(model.name).set(model.state in ("serving", "local"))
        for served in clinic.models.values():
            if isinstance(served, Served) and (remote := served.predictor.remote) is not None:
                self.remote_state.labels(served.name).set(("closed", "half-open", "open").index(remote.breaker.state))
                for outcome, count in remote.since().items():
                    self.remote.labels(served.name, outcome).inc(count)


class Timing:
    """ASGI middleware that times each request, by the route's template and never by its address, and may log it."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, log: bool = False) -> None:
        self.app, self.metrics, self.log = app, metrics, log

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

        with tracing.span("request") as span:
            try:
                await self.app(scope, receive, sending)
            finally:
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in ("GET", "POST", "PUT", "DELETE", "HEAD") else "other"
                seconds = time.perf_counter() - start
                self.metrics.requests.labels(method, route, str(status)).observe(seconds)
                span.say(method=method, route=route, status=status)
                if self.log and route not in _SILENT:
                    said = {"method": method, "route": route, "status": status, "seconds": round(seconds, 4)}
                    access.info("%s %s: %d", method, route, status, extra=said)


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
    with found.lock:
        found.measure(clinic)
        text = generate_latest(found.registry) + generate_latest(clinic.intake.tally.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

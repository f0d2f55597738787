"""The web application: the clinic's routes, guarded, in one place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from wetread import __version__
from wetread.clinic import audit
from wetread.clinic.dicomweb import Headers
from wetread.clinic.service import Clinic
from wetread.clinic.worker import Model
from wetread.config import Settings
from wetread.web import (
    ai,
    api,
    corrections,
    critical,
    deployments,
    dicomweb,
    drift,
    events,
    history,
    images,
    inference,
    language,
    lists,
    oidc,
    operations,
    outputs,
    pages,
    preferences,
    problems,
    pulls,
    quality,
    report,
    rule,
    signin,
    tryout,
    upkeep,
    users,
    wado,
    worklist,
)
from wetread.web import (
    models as model_pages,
)
from wetread.web import (
    settings as settings_pages,
)
from wetread.web.cors import Cors
from wetread.web.operations import Metrics, Timing
from wetread.web.security import Guard

_TAGS = [
    {"name": "studies", "description": "Radiographs in, studies out."},
    {"name": "worklist", "description": "The list in its order."},
    {"name": "images", "description": "Frames, previews, heatmaps."},
    {"name": "dicomweb", "description": "STOW-RS, QIDO-RS, WADO-RS (DICOM PS3.18)."},
    {"name": "reviews", "description": "Claims and the reader's decision."},
    {"name": "critical", "description": "Critical findings, until somebody was told."},
    {"name": "corrections", "description": "What came in wrong, set right; nothing is deleted."},
    {"name": "events", "description": "What happens, as it happens."},
    {"name": "inference", "description": "The models over the Open Inference Protocol v2."},
    {"name": "accounts", "description": "Who may come in."},
    {"name": "pull", "description": "Studies fetched from other archives."},
    {"name": "operations", "description": "Health, numbers, the AI switch."},
]


def create_app(data: Path, settings: Settings | None = None, *, models: Sequence[Model] | None = None) -> FastAPI:
    """Build the application over a data folder.

    Parameters
    ----------
    data : Path
        Database and archive; made when missing.
    settings : Settings, optional
    models : sequence of Model, optional
        The models in service; by default those of the setting `models`.

    Raises
    ------
    ConfigError, ClinicError
        When the folder cannot be used, or another service uses it.
    """
    settings = settings or Settings()
    clinic, metrics = Clinic(data, settings, models=models), Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(clinic.start)
        if clinic.worker is not None:
            clinic.worker.observe = metrics.done.analysed
        clinic.outbox.observe = metrics.done.delivered
        yield
        await run_in_threadpool(clinic.stop)

    app = FastAPI(
        title="Wetread",
        version=__version__,
        summary="A first quick look at every chest radiograph. Research use only.",
        openapi_tags=_TAGS,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses={
            code: {"description": text, "content": {problems.MEDIA_TYPE: {"schema": problems.SCHEMA}}}
            for code, text in (
                (400, "not understood"),
                (401, "not signed in"),
                (403, "not allowed"),
                (404, "not there"),
                (408, "too slow"),
                (409, "not now"),
                (413, "too large"),
                (422, "not valid"),
                (503, "try again later"),
                (507, "no room"),
            )
        },
    )
    app.state.clinic, app.state.metrics, app.state.looks = clinic, metrics, audit.Looks()
    app.state.oidc = oidc.Provider(settings) if settings.oidc_issuer else None
    app.state.headers = Headers(clinic.archive)
    problems.install(app)
    for module in (
        api, lists, corrections, images, dicomweb, events, operations, outputs, worklist, pages, inference, signin,
        upkeep, users, pulls, rule, settings_pages, preferences, quality, model_pages,
        deployments, drift,
    ):  # fmt: skip
        app.include_router(module.router)
    app.include_router(language.router)
    app.include_router(users.pages)
    app.include_router(ai.router)
    app.include_router(critical.router)
    app.include_router(upkeep.pages)
    app.include_router(outputs.pages)
    app.include_router(report.pages)
    app.include_router(report.router)
    app.include_router(history.router)
    app.include_router(tryout.pages)
    app.include_router(tryout.router)
    app.mount("/static", pages.Static(directory=Path(__file__).parent / "static"), name="static")
    app.add_middleware(Timing, metrics=metrics, log=settings.log_format == "json")
    if settings.dicomweb_origins:
        app.add_middleware(Cors, origins=settings.dicomweb_origins, path=f"{wado.ROOT}/")
    app.add_middleware(
        Guard,
        hosts=settings.hosts,
        upload_limit=settings.max_upload_bytes,
        upload_path="/api/v1/studies",
        limits={
            tryout.PATH: settings.max_bytes + tryout.SLACK,
            "/v2/models/": settings.infer_max_bytes,
            "/dicomweb/studies": settings.max_upload_bytes,
        },
    )
    if settings.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=settings.trusted_proxies)
    return app

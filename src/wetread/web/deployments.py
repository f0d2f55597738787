"""What is deployed: over the API, on the pages of the models, and for Prometheus. It is changed on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy.engine import Connection

from wetread.clinic import deployments, store
from wetread.clinic.deployments import Deployment
from wetread.web import schemas
from wetread.web.api import clinic_of
from wetread.web.security import Viewer

router = APIRouter(prefix="/api/v1", tags=["operations"])


@router.get("/deployments")
def get_deployments(request: Request, caller: Viewer, ended: bool = False) -> schemas.DeploymentsOut:
    """Return what is deployed at your site, with `ended` also what was."""
    clinic = clinic_of(request)
    with clinic.database.read() as connection:
        found = told(connection, caller.site, ended=ended)
    out = []
    for row in found:
        values: dict[str, Any] = {
            name: getattr(row, name) for name in Deployment.__dataclass_fields__ if name != "salt"
        }
        out.append(schemas.DeploymentOut.model_validate(values | {"here": row.model in clinic.models}))
    return schemas.DeploymentsOut(deployments=out)


def told(connection: Connection, site: str, *, ended: bool = False, model: str = "") -> Sequence[Deployment]:
    """Return what is deployed at a site, or of one model all that ever was, the newest first."""
    rows = reversed(deployments.history(connection, site))
    return [row for row in rows if (row.model == model if model else ended or row.until is None)]


class DeploymentGauges:
    """What is deployed, for Prometheus, from the database: the same whichever process is asked."""

    def __init__(self, registry: CollectorRegistry) -> None:
        of = ("site", "slot", "model", "version", "package", "stage")
        self.share = Gauge(
            "wetread_deployment_share",
            "Share of new studies in which the word of a deployed model counts; 0 in shadow, 1 for the champion.",
            of,
            registry=registry,
        )
        self.waiting = Gauge(
            "wetread_deployment_jobs", "Analyses that a deployed model still owes.", of, registry=registry
        )
        self.since = Gauge(
            "wetread_deployment_since_seconds", "When its stage began, in seconds since 1970.", of, registry=registry
        )

    def measure(self, connection: Connection) -> None:
        """Take the numbers that the database knows."""
        jobs = store.job.c
        owed = (
            sa.select(jobs.model, sa.func.count().label("jobs"))
            .where(sa.text("job.state != 'done'"))
            .group_by(jobs.model)
        )
        waiting: dict[str, int] = {row.model: row.jobs for row in connection.execute(owed)}
        for gauge in (self.share, self.waiting, self.since):
            gauge.clear()
        for row in deployments.history(connection):
            if row.until is None:
                labels = row.site, row.slot, row.model_name, row.version, row.model[:12], row.stage
                self.share.labels(*labels).set(row.share)
                self.waiting.labels(*labels).set(waiting.get(row.model, 0))
                self.since.labels(*labels).set(row.since.timestamp())

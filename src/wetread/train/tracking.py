"""Runs in MLflow: a SQLite file beside the runs by default, no telemetry, no server needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class Run:
    """One tracked run; `log` takes numbers of one epoch."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.client, self.id = client, run_id

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record metrics of an epoch; those that are not finite are left out."""
        for name, value in numbers.items():
            if abs(value) < float("inf"):
                self.client.log_metric(self.id, name, float(value), step=step)


@contextmanager
def track(folder: Path, name: str, parameters: Mapping[str, Any], resume: str = "") -> Iterator[Run]:
    """Track a run until the block ends; an exception marks it as failed.

    Parameters
    ----------
    folder : Path
        The run's folder. Its parent holds `mlflow.db`, unless `MLFLOW_TRACKING_URI` says otherwise.
    name : str
    parameters : mapping
        The recipe; sections become dotted names.
    resume : str
        The id of an earlier run to go on with.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it announces every new table
    where = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parent.resolve() / 'mlflow.db'}")
    client = MlflowClient(tracking_uri=where)
    experiment = client.get_experiment_by_name("wetread")
    if experiment is None:
        artifacts = (folder.parent / "mlflow").resolve().as_uri()
        experiment_id = client.create_experiment("wetread", artifact_location=artifacts)
    else:
        experiment_id = experiment.experiment_id
    run_id = resume
    if not run_id:
        run_id = client.create_run(experiment_id, run_name=name).info.run_id
        for key, value in _flat(parameters):
            client.log_param(run_id, key, str(value)[:500])
    try:
        yield Run(client, run_id)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")

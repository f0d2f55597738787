"""Runs in MLflow, TensorBoard and Weights & Biases: files beside the runs, no server needed, no telemetry.

Which sinks a run has is a setting of its recipe. Where they are is written into the run's folder (`tracking.json`), so
that a resumed run goes on in them, and an evaluation made much later goes to the same place.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from wetread.errors import TrainError

RECORD = "tracking.json"
_EXPERIMENT = "wetread"


class Sink(Protocol):
    """Where the numbers of one run go."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record finite numbers of a step."""
        ...

    def attach(self, file: Path) -> None:
        """Keep a file with the run, where the sink keeps files."""
        ...

    def close(self, status: str) -> None:
        """End with FINISHED, FAILED or KILLED."""
        ...


class _MLflow:
    """A SQLite file in the folder of all runs, unless `MLFLOW_TRACKING_URI` says otherwise."""

    def __init__(self, folder: Path, name: str, parameters: Mapping[str, Any], known: dict[str, str]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it announces every new table
        beside = f"sqlite:///{folder.parent.resolve() / 'mlflow.db'}"
        where = known.setdefault("uri", os.environ.get("MLFLOW_TRACKING_URI", beside))
        with _alone(folder.parent / ".mlflow.lock"):  # runs that start together would all make the tables
            self.client = MlflowClient(tracking_uri=where)
            experiment = self.client.get_experiment_by_name(_EXPERIMENT)
            if experiment is None:
                artifacts = (folder.parent / "mlflow").resolve().as_uri()
                at = artifacts if where.startswith("sqlite:") else None
                experiment_id = self.client.create_experiment(_EXPERIMENT, artifact_location=at)
            else:
                experiment_id = experiment.experiment_id
        if "run" not in known:
            known["run"] = self.client.create_run(experiment_id, run_name=name).info.run_id
            for key, value in _flat(parameters):
                self.client.log_param(known["run"], key, str(value)[:500])
        self.run = known["run"]

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.client.log_metric(self.run, re.sub(r"[^\w\-. :/]", "_", name), value, step=step)

    def attach(self, file: Path) -> None:
        self.client.log_artifact(self.run, str(file))

    def register(self, name: str, package: Path, lineage: Mapping[str, str]) -> str:
        """Return the number of the version, which is made unless it is there."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        there = self.client.search_model_versions(f"name = '{name}' and tag.sha256 = '{lineage['sha256']}'")
        if there:
            return str(there[0].version)
        self.client.log_artifacts(self.run, str(package), "package")
        source = f"{self.client.get_run(self.run).info.artifact_uri}/package"
        made = self.client.create_model_version(name, source, run_id=self.run, tags=dict(lineage))
        self.client.set_registered_model_alias(name, "candidate", made.version)
        return str(made.version)

    def close(self, status: str) -> None:
        self.client.set_terminated(self.run, status)


class _TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir runs`."""

    def __init__(self, folder: Path, name: str, parameters: Mapping[str, Any], known: dict[str, str]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(known.setdefault("folder", str(folder.resolve() / "tensorboard")))
        if parameters:
            rows = "".join(f"| {key} | {value} |\n" for key, value in _flat(parameters))
            self.writer.add_text("recipe", f"| key | value |\n|---|---|\n{rows}")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def attach(self, file: Path) -> None:
        pass  # TensorBoard keeps no files; they stay where they were written

    def close(self, status: str) -> None:
        self.writer.close()


class _WandB:
    """Files in the run's folder, for `wandb sync` by whoever wants them on a server; `WANDB_MODE` says otherwise."""

    def __init__(self, folder: Path, name: str, parameters: Mapping[str, Any], known: dict[str, str]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.run = wandb.init(
            project=_EXPERIMENT,
            name=name,
            id=known.setdefault("run", uuid.uuid4().hex[:12]),
            dir=known.setdefault("folder", str(folder.resolve())),
            config=dict(parameters) or None,
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            resume="allow" if os.environ.get("WANDB_MODE") == "online" else None,
            settings=wandb.Settings(silent=True, disable_git=True, disable_code=True, x_disable_stats=True),
            reinit="create_new",
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log({**numbers, "epoch": step})

    def attach(self, file: Path) -> None:
        self.run.save(str(file), base_path=str(file.parent), policy="now")

    def close(self, status: str) -> None:
        self.run.finish(exit_code=0 if status == "FINISHED" else 1)


_SINKS: dict[str, type[_MLflow] | type[_TensorBoard] | type[_WandB]] = {
    "mlflow": _MLflow,
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
}


class Run:
    """One tracked run in all of its sinks."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = sinks
        self.status = "FINISHED"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record metrics of an epoch; those that are not finite are left out."""
        finite = {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
        for sink in self.sinks:
            sink.log(step, finite)

    def attach(self, files: Sequence[Path]) -> None:
        """Keep files with the run."""
        for sink in self.sinks:
            for file in files:
                sink.attach(file)


@contextmanager
def track(
    folder: Path, name: str, parameters: Mapping[str, Any], sinks: Sequence[str] | None = ("mlflow",)
) -> Iterator[Run]:
    """Track a run until the block ends; an exception marks it as failed.

    Parameters
    ----------
    folder : Path
        The run's folder. Its parent holds `mlflow.db`, unless `MLFLOW_TRACKING_URI` says otherwise.
    name : str
    parameters : mapping
        The recipe; sections become dotted names.
    sinks : sequence of {"mlflow", "tensorboard", "wandb"}, or None
        A run that was tracked before goes on where it was. None: this process records nothing, another one does.
    """
    if sinks is None:
        yield Run(())
        return
    file = folder / RECORD
    known: dict[str, dict[str, str]] = _known(file) if file.is_file() else {}
    known = {sink: known.get(sink, {}) for sink in sinks}
    with _open(known, folder, name, parameters) as run:
        file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        yield run


def record(folder: Path, prefix: str, evaluation: Mapping[str, Any], files: Sequence[Path] = ()) -> list[str]:
    """Add the figures of an evaluation to a run that is over, in the sinks that it was tracked in.

    Parameters
    ----------
    folder : Path
        The run's folder.
    prefix : str
        What was evaluated, such as ``test``: the first part of each name.
    evaluation : mapping
        Nested numbers, as `Evaluation.metrics` gives them; of [value, low, high] all three are recorded.
    files : sequence of Path
        The report, for instance.

    Returns
    -------
    list of str
        The sinks.

    Raises
    ------
    TrainError
        When the folder is no tracked run.
    """
    file = folder / RECORD
    if not file.is_file():
        raise TrainError(f"run {folder}: has no {RECORD}; give the folder of a run of `wetread train`")
    known = _known(file)
    with _open(known, folder, folder.name, {}) as run:
        run.log(0, {f"{prefix}/{name}": value for name, value in _numbers(evaluation)})
        run.attach(files)
    return list(known)


def register(folder: Path, name: str, package: Path, lineage: Mapping[str, str]) -> dict[str, str]:
    """Register a package as a version of a model in MLflow, alias ``candidate``; again, it changes nothing.

    Parameters
    ----------
    folder : Path
        The run that the package was made of.
    name : str
        Of the registered model.
    package : Path
        Its folder, which becomes an artefact of the run.
    lineage : mapping of str to str
        Tags of the version; `sha256` tells one package from another.

    Returns
    -------
    dict of str to str
        ``model``, ``version`` and ``run``; empty where the run is not tracked in MLflow.
    """
    file = folder / RECORD
    known = _known(file).get("mlflow") if file.is_file() else None
    if known is None:
        return {}
    sink = _MLflow(folder, folder.name, {}, known)
    try:
        version = sink.register(name, package, lineage)
    finally:
        sink.close("FINISHED")
    return {"model": name, "version": version, "run": sink.run}


@contextmanager
def _open(known: dict[str, dict[str, str]], folder: Path, name: str, parameters: Mapping[str, Any]) -> Iterator[Run]:
    with ExitStack() as stack:
        opened: list[Sink] = []
        run = Run(opened)
        for sink, place in known.items():
            one = _SINKS[sink](folder, name, parameters, place)
            stack.callback(_close, one, run)
            opened.append(one)
        try:
            yield run
        except BaseException as error:
            run.status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            raise


def _close(sink: Sink, run: Run) -> None:
    sink.close(run.status)


def _known(file: Path) -> dict[str, dict[str, str]]:
    try:
        known: dict[str, dict[str, str]] = json.loads(file.read_text(encoding="utf-8"))
        return {sink: dict(known[sink]) for sink in known if sink in _SINKS}
    except (ValueError, TypeError, AttributeError) as error:
        raise TrainError(f"{file}: cannot be read ({error}); delete it to track the run anew") from None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (list, tuple)) and len(value) == 3:
            parts = zip((key, f"{key}/low", f"{key}/high"), value, strict=True)
            yield from ((f"{prefix}{part}", float(v)) for part, v in parts if v is not None)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)

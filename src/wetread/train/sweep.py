"""Search over a recipe's keys with Optuna: many workers on one storage, bad trials stopped early, a kill survived.

A trial is a run like any other, in a folder of its own. The storage knows what was tried; the folders know how far
each run is. A trial whose process died is found by its lock, which died with it: its choices are queued again, for
another trial that goes on in the same folder from the last epoch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.pool import NullPool

from wetread.dataset.dataset import Dataset
from wetread.errors import ConfigError, TrainError
from wetread.train import checkpoint, recipe, sweep_plots
from wetread.train.recipe import Recipe
from wetread.train.space import Space

SAMPLERS, PRUNERS = ("tpe", "random"), ("median", "halving", "none")
_JOURNAL, _BEST, _TABLE, _TRIALS = "sweep.journal", "best.toml", "sweep.json", "trials"
_DEATHS = 3  # of the processes that worked on a trial, after which it has failed
_OVER = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Plan:
    """What every worker of a sweep must know; it travels to other processes and machines.

    Attributes
    ----------
    values : dict
        The recipe, nested, without its `sweep` table.
    space : dict of str to dict or list
        What to try, by dotted key (`Space.parse`).
    dataset, out : str
    storage : str
        URL of a database, or path of a journal file.
    trials : int
        How many to finish.
    sampler : {"tpe", "random"}
    pruner : {"median", "halving", "none"}
    """

    values: dict[str, Any]
    space: dict[str, Any]
    dataset: str
    out: str
    storage: str
    trials: int
    sampler: str = "tpe"
    pruner: str = "median"

    @property
    def name(self) -> str:
        """The study's: the same sweep has the same one on every machine."""
        what = json.dumps([self.values, self.space, self.sampler], sort_keys=True, default=str)
        return f"{self.values['name']}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"

    @property
    def seed(self) -> int:
        """The recipe's, for the choices of the sampler too."""
        return int(self.values.get("seed", 0))

    @property
    def folder(self) -> Path:
        """Where the trials' runs are."""
        return Path(self.out) / _TRIALS


def plan(
    base: Recipe,
    space: Mapping[str, Any],
    dataset: Dataset,
    out: Path,
    *,
    storage: str = "",
    trials: int = 20,
    sampler: str = "tpe",
    pruner: str = "median",
) -> Plan:
    """Check a sweep before anything is trained.

    Raises
    ------
    ConfigError
        For a key that no recipe has, a value that it may not take, or an unknown sampler or pruner.
    TrainError
        When `out` holds a sweep of something else.
    """
    for name, value, known in (("--sampler", sampler, SAMPLERS), ("--pruner", pruner, PRUNERS)):
        if value not in known:
            raise ConfigError(f"{name} {value!r}: known are {', '.join(known)}")
    values = base.model_dump(exclude={"sweep"}, exclude_unset=True)
    Space.parse(space, values)
    chosen = Plan(
        values, dict(space), str(dataset.path.resolve()), str(out.resolve()),
        storage or str((out / _JOURNAL).resolve()), trials, sampler, pruner,
    )  # fmt: skip
    facts = {"recipe": base.facts(), "space": dict(space), "dataset": dataset.hash}
    record = out / "plan.json"
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) != json.loads(json.dumps(facts)):
        raise TrainError(f"sweep {out}: was started with another recipe, space or dataset; choose another folder")
    chosen.folder.mkdir(parents=True, exist_ok=True)
    checkpoint.replace(record, json.dumps(facts, indent=1).encode())
    return chosen


def run(
    plan: Plan,
    workers: int = 1,
    *,
    spread: Callable[[Plan, int], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Finish a sweep and write what came of it: `best.toml`, `sweep.json` and the plots.

    Parameters
    ----------
    plan : Plan
    workers : int
        Trials at a time, each in a process of its own; 1: this one.
    spread : callable, optional
        Does the work elsewhere: called with the plan and the number of workers, returns when no trial is left.
    say : callable
        Told what each trial gave, where this process runs them.

    Returns
    -------
    dict
        As in `sweep.json`: ``best`` (trial, values, AUROC) and ``trials``.

    Raises
    ------
    TrainError
        When no trial gave an AUROC.
    """
    open_study(plan)  # before the workers, which would all make it
    if spread is not None:
        spread(plan, workers)
    elif workers == 1:
        work(plan, say)
    else:
        _processes(plan, workers)
    return conclude(plan)


def work(plan: Plan, say: Callable[[str], None] = lambda text: None) -> None:
    """Train trials until none is left; any number of workers may do this at once, on any machine."""
    study, dataset = open_study(plan), Dataset.open(plan.dataset)
    space = Space.parse(plan.space, plan.values)
    while True:
        with _turn(plan.folder / ".turn"):
            trial = _next(study, plan, space)
        if trial is None:
            return
        with trial.lock:
            say(_one(study, plan, space, trial, dataset))


@dataclass
class _Begun:
    trial: Trial
    folder: Path
    lock: Any  # an open file; its lock goes with the process


def open_study(plan: Plan) -> Study:
    """Open a sweep's study, or make it.

    Raises
    ------
    ConfigError
        When the storage cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner: optuna.pruners.BasePruner = {
        "median": optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        "halving": optuna.pruners.SuccessiveHalvingPruner(),
        "none": optuna.pruners.NopPruner(),
    }[plan.pruner]
    try:
        return optuna.create_study(
            storage=_storage(plan.storage),
            study_name=plan.name,
            direction="maximize",
            pruner=pruner,
            load_if_exists=True,
        )
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each driver has its own classes
        raise ConfigError(f"--storage {plan.storage}: {str(error).splitlines()[0]}") from None


def _storage(where: str) -> BaseStorage:
    if "://" in where:
        url = where.replace("postgresql://", "postgresql+psycopg://", 1)
        return RDBStorage(url, engine_kwargs={"poolclass": NullPool})  # nothing stays open between calls
    return JournalStorage(JournalFileBackend(where))


def _next(study: Study, plan: Plan, space: Space) -> _Begun | None:
    """Begin the next trial, or return None when enough are over or under way."""
    trials = study.get_trials(deepcopy=False)
    alive = sum(1 for trial in trials if trial.state == TrialState.RUNNING and not _died(study, plan, trial))
    over = sum(1 for trial in trials if trial.state in _OVER or "reason" in trial.user_attrs)
    if over + alive >= plan.trials:
        return None
    # A sampler of its own for each trial: a resumed sweep chooses as one that was not stopped.
    seed = int(np.random.SeedSequence([plan.seed, len(trials)]).generate_state(1)[0])
    study.sampler = (
        optuna.samplers.TPESampler(seed=seed) if plan.sampler == "tpe" else optuna.samplers.RandomSampler(seed=seed)
    )
    trial = study.ask()
    folder = Path(trial.user_attrs.get("folder", plan.folder / f"{trial.number:04d}"))
    trial.set_user_attr("folder", str(folder))
    trial.set_user_attr("choices", space.suggest(trial))
    if trial.user_attrs.get("deaths", 0) >= _DEATHS:
        trial.set_user_attr("reason", f"its process died {_DEATHS} times")
        study.tell(trial, state=TrialState.FAIL)
        return _next(study, plan, space)
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return _Begun(trial, folder, lock)


def _died(study: Study, plan: Plan, trial: FrozenTrial) -> bool:
    """Tell whether a trial's process is dead; if so end it and queue its choices again, for the same folder."""
    folder = Path(trial.user_attrs.get("folder", plan.folder / f"{trial.number:04d}"))
    if (folder / ".lock").is_file():
        with (folder / ".lock").open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    elif "://" in plan.storage:  # on a machine with another disk
        return False
    study.tell(trial.number, state=TrialState.FAIL)
    deaths = trial.user_attrs.get("deaths", 0) + 1
    study.enqueue_trial(trial.params, user_attrs={"folder": str(folder), "deaths": deaths})
    return True


def _one(study: Study, plan: Plan, space: Space, begun: _Begun, dataset: Dataset) -> str:
    """Train one trial and tell the study what came of it."""
    from wetread.train.loop import train

    trial = begun.trial
    pruned = False

    def on_epoch(entry: dict[str, Any]) -> bool:
        nonlocal pruned
        if not np.isnan(entry["valid_auroc"]):
            trial.report(entry["valid_auroc"], entry["epoch"])
            pruned = trial.should_prune()
        return pruned

    name = f"{plan.values['name']}-{begun.folder.name}"
    try:
        chosen = space.recipe(plan.values, trial.user_attrs["choices"], name=name)
        result = train(chosen, dataset, begun.folder, on_epoch=on_epoch)
    except (ConfigError, TrainError) as error:  # its choices do not go together, or it diverged: a result too
        trial.set_user_attr("reason", str(error))
        study.tell(trial, state=TrialState.FAIL)
        return f"trial {trial.number}: failed: {error}"
    best = result["history"][result["epoch"]]
    for name in ("train_auroc", "valid_auroc", "train_loss", "valid_loss", "epoch"):
        trial.set_user_attr(name, best[name])
    if pruned:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, result["best"])
    return f"trial {trial.number}: AUROC {result['best']:.4f}{', stopped early' if pruned else ''}"


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Let one worker at a time choose, so that none chooses more than are wanted."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _processes(plan: Plan, workers: int) -> None:
    context = multiprocessing.get_context("spawn")
    while True:
        before = _finished(plan)
        started = [context.Process(target=work, args=(plan,)) for _ in range(workers)]
        for process in started:
            process.start()
        try:
            for process in started:
                process.join()
        finally:
            for process in started:
                process.terminate()
        if not any(process.exitcode for process in started):
            return
        if _finished(plan) == before:  # dying does not help
            codes = ", ".join(str(process.exitcode) for process in started)
            raise TrainError(f"sweep {plan.out}: its workers ended with {codes} before any trial did; try --workers 1")


def _finished(plan: Plan) -> int:
    return sum(trial.state in _OVER for trial in open_study(plan).get_trials(deepcopy=False))


def conclude(plan: Plan) -> dict[str, Any]:
    """Write `best.toml`, `sweep.json` and the plots of what is finished so far; return the table.

    Raises
    ------
    TrainError
        When no trial gave an AUROC.
    """
    study, out = open_study(plan), Path(plan.out)
    space = Space.parse(plan.space, plan.values)
    begun = [trial for trial in study.get_trials(deepcopy=False) if "choices" in trial.user_attrs]
    trials = list({trial.user_attrs["folder"]: _row(trial) for trial in begun}.values())  # the last of each folder
    done = [row for row in trials if row["state"] == "complete"] or [row for row in trials if row["state"] == "pruned"]
    if not done:
        reason = next((row["reason"] for row in trials if row["reason"]), "none was finished")
        raise TrainError(f"sweep {out}: no trial gave an AUROC: {reason}")
    best = max(done, key=lambda row: row["valid_auroc"])
    chosen = space.recipe(plan.values, best["values"])
    checkpoint.replace(out / _BEST, recipe.dumps(chosen).encode())
    table = {"best": best, "trials": trials, "recipe": str(out / _BEST)}
    plots = sweep_plots.write(study, space, trials, out)
    table["plots"] = [str(path) for path in plots]
    checkpoint.replace(out / _TABLE, json.dumps(table, indent=1).encode())
    return table


def render(table: dict[str, Any]) -> str:
    """Return the trials, the best first, and where the best recipe is."""
    order = sorted(table["trials"], key=lambda row: row["valid_auroc"] or -1, reverse=True)
    lines = [
        f"{row['trial']:>5}  {row['state']:<9} {_figure(row['valid_auroc'])}  {_figure(row['train_auroc'])}  "
        + ", ".join(f"{key} = {_figure(value, 'g')}" for key, value in row["values"].items())
        for row in order
    ]
    return "\n".join(["trial  state     valid   train   values", *lines, "", table["recipe"]])


def _figure(value: Any, kind: str = "f") -> str:
    return "     –" if value is None else f"{value:.4{kind}}" if isinstance(value, float) else str(value)


def _row(trial: FrozenTrial) -> dict[str, Any]:
    known = trial.user_attrs
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "values": known["choices"],
        "valid_auroc": known.get("valid_auroc"),
        "train_auroc": known.get("train_auroc"),
        "epoch": known.get("epoch"),
        "reason": known.get("reason", ""),
        "folder": known["folder"],
    }

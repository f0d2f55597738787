"""The same work on a Ray cluster: packing, training, sweeps and scoring take an address and are otherwise unchanged.

Every machine has Wetread installed and sees the same folders under the same paths (NFS, for one). What a machine
or a process that dies was doing is done again by another: a shard of images as a whole, training from its last epoch.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import cv2

from wetread.errors import ConfigError, TrainError, WetreadError

if TYPE_CHECKING:
    from wetread.dataset.dataset import Dataset
    from wetread.dataset.parallel import Spread
    from wetread.train.recipe import Recipe
    from wetread.train.sweep import Plan

Item = TypeVar("Item")
Result = TypeVar("Result")
_RETRIES = 3  # of a task whose process or machine died


@contextmanager
def joined(address: str) -> Iterator[dict[str, float]]:
    """Connect to a cluster, and leave it at the end of the block.

    Parameters
    ----------
    address : str
        ``host:port`` of its head, ``auto`` for the one on this machine, or ``local`` for one of this process's own.

    Yields
    ------
    dict
        What the cluster has: ``CPU``, ``GPU`` and others.

    Raises
    ------
    ConfigError
        When there is none at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray

    ours = not ray.is_initialized()
    if ours:
        try:
            _reach(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"--ray {address}: no cluster there ({reason}); run `ray start --head`") from None
    try:
        yield ray.cluster_resources()  # type: ignore[no-untyped-call]
    finally:
        if ours:
            ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError where nothing answers at ``host:port``: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10):
            pass


def in_order(address: str) -> Spread:
    """Return `wetread.dataset.parallel.in_order` on a cluster: results in order, and a crash costs one item.

    A batch whose worker or machine dies is done again elsewhere, three times; then its items are tried one by one.
    """

    def spread(
        batches: Iterable[list[Item]],
        work: Callable[[list[Item]], Result],
        rescue: Callable[[list[Item], Callable[[Item], Result | None]], Result],
        workers: int,
    ) -> Iterator[Result]:
        with joined(address):
            import ray

            known = ray.put(work)
            call: Any = ray.remote(_call)

            def alone(item: Item) -> Result | None:
                try:
                    return cast(Result, _get(call.options(max_retries=1).remote(known, [item])))
                except _died():
                    return None

            waiting: deque[tuple[list[Item], Any]] = deque()

            def take() -> Result:
                batch, task = waiting.popleft()
                try:
                    return cast(Result, _get(task))
                except _died():
                    return rescue(batch, alone)

            for batch in batches:
                waiting.append((batch, call.options(max_retries=_RETRIES).remote(known, batch)))
                if len(waiting) >= 2 * workers:
                    yield take()
            while waiting:
                yield take()

    return spread


def workers(address: str) -> int:
    """Return how many tasks a cluster can do at once: its processors."""
    with joined(address) as has:
        return max(1, int(has.get("CPU", 1)))


def train(address: str, recipe: Recipe, dataset: Dataset, out: Path, workers: int) -> dict[str, Any]:
    """Train a recipe in several processes of a cluster with Ray Train; the result is that of one process.

    Where the cluster has GPUs and the recipe does not say ``device = "cpu"``, each process gets one.

    Parameters
    ----------
    address : str
    recipe, dataset, out
        As for `wetread.train.loop.train`; the folders are the same on every machine.
    workers : int
        Processes that share each step.

    Raises
    ------
    TrainError
        When the run fails, on its own or because its processes die again and again.
    """
    from wetread.train import checkpoint

    with joined(address) as has:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        gpu = recipe.device != "cpu" and has.get("GPU", 0) >= workers
        known = recipe.model_dump() | ({} if gpu else {"device": "cpu"})
        given = {"recipe": known, "dataset": str(dataset.path.resolve()), "out": str(out.resolve())}
        out.mkdir(parents=True, exist_ok=True)
        trainer = TorchTrainer(
            _train,
            train_loop_config=given,
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
            run_config=RunConfig(
                name=recipe.name,
                storage_path=str(out.resolve() / ".ray"),
                failure_config=FailureConfig(max_failures=_RETRIES),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # Ray Train's, with those of the processes inside
            raise _cause(error) or TrainError(f"run {out}: {' '.join(str(error).split())[:300]}") from None
    state = checkpoint.load(out / "last.pt")
    return {"best": state["best"], "epoch": state["best_epoch"], "epochs": state["epoch"], "history": state["history"]}


def sweep(address: str, plan: Plan, workers: int) -> None:
    """Work on a sweep with so many tasks of a cluster, until no trial is left.

    Raises
    ------
    TrainError
        When the tasks die again and again.
    """
    from wetread.train.sweep import work

    with joined(address) as has:
        import ray

        gpu = 1 if has.get("GPU", 0) and plan.values.get("device") != "cpu" else 0
        task = ray.remote(work).options(max_retries=_RETRIES, num_gpus=gpu)
        started = [task.remote(plan) for _ in range(workers)]
        for one in started:
            try:
                _get(one)
            except _died() as error:
                raise TrainError(f"sweep {plan.out}: {' '.join(str(error).split())[:300]}") from None


def _call(work: Callable[[list[Item]], Result], batch: list[Item]) -> Result:
    cv2.setNumThreads(1)
    return work(batch)


def _train(given: dict[str, Any]) -> None:
    from wetread.dataset.dataset import Dataset
    from wetread.train.loop import train
    from wetread.train.recipe import Recipe

    train(Recipe.model_validate(given["recipe"]), Dataset.open(given["dataset"]), Path(given["out"]))


def _get(task: Any) -> Any:
    """Return what a task gave, or raise what it raised, without Ray's account of where."""
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _died() -> tuple[type[Exception], ...]:
    from ray import exceptions

    return (exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.ObjectLostError,
            exceptions.OutOfMemoryError, exceptions.LocalRayletDiedError)  # fmt: skip


def _cause(error: BaseException) -> WetreadError | None:
    """Return our own error among those that Ray Train collected."""
    for inner in [*getattr(error, "worker_failures", {}).values(), error.__cause__, error.__context__]:
        for one in (inner, getattr(inner, "cause", None), getattr(inner, "__cause__", None)):
            if isinstance(one, WetreadError):
                return one
    return None

"""The training loop: plain, seeded, and resumable bit for bit."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from wetread.dataset.dataset import Dataset
from wetread.errors import TrainError
from wetread.evaluate.metrics import mean_auroc
from wetread.train import checkpoint, tracking
from wetread.train.batches import Batches, class_weight, mixed, targets
from wetread.train.losses import task_loss
from wetread.train.network import Network, load_weights
from wetread.train.recipe import Recipe

Progress = Callable[[str, int, int], None]


@torch.inference_mode()
def score(network: Network, pixels: NDArray[np.uint8], rows: NDArray[np.int64], batch: int = 64) -> NDArray[np.float32]:
    """Return logits float32 [len(rows), F] in evaluation mode."""
    network.eval()
    parts = [
        network(torch.from_numpy(np.asarray(pixels[rows[start : start + batch]]))[:, None])
        for start in range(0, len(rows), batch)
    ]
    return torch.cat(parts).float().numpy() if parts else np.zeros((0, network.head.out_features), np.float32)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities [N, F] that sum to 1."""
    return torch.softmax(torch.from_numpy(logits), 1).numpy()


def _keep_memory() -> None:
    """Let glibc keep freed memory: giving 10-MiB tensors back after every step cost a fifth of the time."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library: slower, not wrong


def _average(average: dict[str, Tensor], network: Network, decay: float) -> None:
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                average[key].lerp_(value, 1 - decay)
            else:
                average[key].copy_(value)


def _optimizer(network: Network, recipe: Recipe) -> torch.optim.AdamW:
    o = recipe.optimise
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        groups.setdefault((name.startswith("backbone."), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": o.weight_decay if decays else 0.0,
                "factor": o.backbone_factor if backbone else 1.0,
            }
            for (backbone, decays), parameters in groups.items()
        ],
        lr=o.learning_rate,
    )


def rate(step: int, steps: int, warmup: float) -> float:
    """Return the learning rate's factor: linear warm-up, then half a cosine to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def train(
    recipe: Recipe, dataset: Dataset, out: Path, *, progress: Progress | None = None, stop_after: int | None = None
) -> dict[str, Any]:
    """Train to the end, going on from `out/last.pt` if it is there.

    Parameters
    ----------
    recipe : Recipe
    dataset : Dataset
        With a `train` and a `valid` split.
    out : Path
        The run's folder: recipe.json, last.pt, best.safetensors, history.json.
    progress : callable, optional
        Called with (what, done, total) after every step.
    stop_after : int, optional
        Leave after this many epochs of this call, as if killed (for tests of resuming).

    Returns
    -------
    dict
        ``best`` (validation AUROC), ``epoch`` of it, ``epochs`` done, ``history``.

    Raises
    ------
    TrainError
        When a split is empty, the folder holds another run, or the loss is not finite.
    """
    _keep_memory()
    cv2.setNumThreads(1)
    torch.set_num_threads(recipe.threads)
    task = dataset.task
    rows, valid = dataset.rows("train"), dataset.rows("valid")
    if not len(rows) or not len(valid):
        raise TrainError(
            f"dataset {dataset.path}: split 'train' has {len(rows)} images and 'valid' {len(valid)}; pack with --valid"
        )
    out.mkdir(parents=True, exist_ok=True)
    facts = {"recipe": recipe.model_dump(exclude={"package"}), "dataset": dataset.hash, "task": task.to_dict()}
    record = out / "recipe.json"
    if record.exists() and json.loads(record.read_text()) != facts:
        raise TrainError(f"run {out}: was started with another recipe or dataset; choose another --out")
    checkpoint.replace(record, json.dumps(facts, indent=1).encode())

    o = recipe.optimise
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = Network(recipe.network, len(task.findings)).to(memory_format=torch.channels_last)
        if recipe.network.weights not in ("", "hub"):
            load_weights(network, Path(recipe.network.weights))
        optimizer = _optimizer(network, recipe)
        wanted = targets(task, dataset.labels, recipe.labels, np.random.default_rng([recipe.seed, 2]))
        weight = class_weight(task, wanted[rows]) if recipe.labels.balance else None
        batches = Batches(dataset.pixels, rows, wanted, recipe)
        steps = len(batches) * o.epochs
        average = {key: value.clone() for key, value in network.state_dict().items()}
        judged = Network(recipe.network.model_copy(update={"weights": ""}), len(task.findings)) if o.ema else network
        judged.to(memory_format=torch.channels_last)
        state: dict[str, Any] = {"epoch": 0, "best": -1.0, "best_epoch": -1, "history": [], "run": ""}
        last = out / "last.pt"
        if last.exists():
            state = checkpoint.load(last)
            network.load_state_dict(state.pop("network"))
            average = state.pop("average")
            optimizer.load_state_dict(state.pop("optimizer"))
            torch.set_rng_state(state.pop("rng"))

        with tracking.track(out, recipe.name, recipe.model_dump(), state["run"]) as run:
            state["run"] = run.id
            first = state["epoch"]
            for epoch in range(first, o.epochs):
                if o.patience and epoch - state["best_epoch"] > o.patience and state["best_epoch"] >= 0:
                    break
                if stop_after is not None and epoch - first >= stop_after:
                    break
                total = 0.0
                network.train()
                for index, (x, y) in enumerate(batches.epoch(epoch)):
                    step = epoch * len(batches) + index
                    for group in optimizer.param_groups:
                        group["lr"] = o.learning_rate * group["factor"] * rate(step, steps, o.warmup)
                    x, y = mixed(x, y, recipe.augment.mixup, np.random.default_rng([recipe.seed, 1, step]))
                    with torch.autocast("cpu", torch.bfloat16, enabled=o.precision == "bf16"):
                        logits = network(x)
                    loss = task_loss(task, logits.float(), y, weight)
                    if not torch.isfinite(loss):
                        raise TrainError(
                            f"run {out}: the loss is {loss.item()} in epoch {epoch}; lower optimise.learning_rate"
                        )
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    if o.clip:
                        torch.nn.utils.clip_grad_norm_(network.parameters(), o.clip)
                    optimizer.step()
                    if o.ema:
                        _average(average, network, min(o.ema, (1 + step) / (10 + step)))
                    total += loss.item()
                    if progress:
                        progress(f"epoch {epoch + 1}/{o.epochs}", index + 1, len(batches))
                if o.ema:
                    judged.load_state_dict(average)
                logits_valid = score(judged, dataset.pixels, valid)
                value = mean_auroc(dataset.labels[valid], softmax(logits_valid) if task.exclusive else logits_valid)
                wanted_valid = torch.from_numpy(wanted[valid])
                numbers = {
                    "train_loss": total / len(batches),
                    "valid_loss": float(task_loss(task, torch.from_numpy(logits_valid), wanted_valid)),
                    "valid_auroc": value,
                }
                run.log(epoch, numbers)
                state["history"].append({"epoch": epoch, **numbers})
                state["epoch"] = epoch + 1
                if not math.isnan(value) and (value > state["best"] or o.keep == "last"):
                    state["best"], state["best_epoch"] = value, epoch
                    best = {key: t.detach().contiguous().clone() for key, t in judged.state_dict().items()}
                    checkpoint.replace(out / "best.safetensors", safetensors_bytes(best))
                checkpoint.save(
                    last,
                    {
                        **state,
                        "network": network.state_dict(),
                        "average": average,
                        "optimizer": optimizer.state_dict(),
                        "rng": torch.get_rng_state(),
                    },
                )
                checkpoint.replace(out / "history.json", json.dumps(state["history"], indent=1).encode())
    if state["best_epoch"] < 0:
        raise TrainError(
            f"run {out}: validation AUROC was never defined; the valid split needs both classes of a finding"
        )
    return {"best": state["best"], "epoch": state["best_epoch"], "epochs": state["epoch"], "history": state["history"]}

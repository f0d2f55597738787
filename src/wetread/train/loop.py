"""The training loop: plain, seeded, and resumable bit for bit."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from wetread.dataset.dataset import Dataset
from wetread.dataset.studies import studies
from wetread.errors import TrainError
from wetread.evaluate.metrics import mean_auroc
from wetread.train import checkpoint, optimiser, tracking
from wetread.train.batches import Batch, Batches, class_weight, mixed, targets
from wetread.train.losses import pointing_loss, task_loss
from wetread.train.network import Network, load_weights
from wetread.train.objective import Objective
from wetread.train.recipe import Recipe
from wetread.train.world import World, enter, held_back

Progress = Callable[[str, int, int], None]
_LOOK = 20  # steps between looks at whether the loss is still a number: each waits for the GPU
_SAMPLE = 1000  # training images on which AUROC is measured, at most


@torch.inference_mode()
def score(network: Network, pixels: NDArray[np.uint8], rows: NDArray[np.int64], batch: int = 64) -> NDArray[np.float32]:
    """Return logits float32 [len(rows), F] in evaluation mode."""
    network.eval()
    device = network.head.weight.device
    parts = [
        network(torch.from_numpy(np.asarray(pixels[rows[start : start + batch]]))[:, None].to(device))
        for start in range(0, len(rows), batch)
    ]
    return torch.cat(parts).float().cpu().numpy() if parts else np.zeros((0, network.head.out_features), np.float32)


def _score(world: World, network: Network, pixels: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return logits float32 [len(rows), F]; each process computes its share."""
    parts = world.gather(score(network, pixels, rows[world.rank :: world.size]))
    logits = np.empty((len(rows), parts[0].shape[1]), np.float32)
    for rank, part in enumerate(parts):
        logits[rank :: world.size] = part
    return logits


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities [N, F] that sum to 1."""
    return torch.softmax(torch.from_numpy(logits), 1).numpy()


def _value(recipe: Recipe, key: str) -> float:
    section, _, name = key.partition(".")
    return float(getattr(getattr(recipe, section), name))


def keep_memory() -> None:
    """Let glibc keep freed memory: giving 10-MiB tensors back after every step cost a fifth of the time."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library: slower, not wrong


class _Step(nn.Module):
    """Features and logits in one call: gradients are shared between processes for what is called, not for methods."""

    def __init__(self, network: Network, precision: str) -> None:
        super().__init__()
        self.network, self.bf16 = network, precision == "bf16"

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B, C, h, w] and logits [B, F] of uint8 pixels [B, 1, S, S]."""
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.network.features(pixels)
            return features, self.network.logits(features)


@torch.no_grad()
def _average(average: dict[str, Tensor], values: dict[str, Tensor], decay: float) -> None:
    moving = [key for key, value in values.items() if value.is_floating_point()]
    move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    move([average[key] for key in moving], [values[key] for key in moving], 0)
    for key in values.keys() - moving:
        average[key].copy_(values[key])


def train(
    recipe: Recipe,
    dataset: Dataset,
    out: Path,
    *,
    progress: Progress | None = None,
    on_epoch: Callable[[dict[str, Any]], bool] | None = None,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """Train to the end, going on from `out/last.pt` if it is there.

    Under torchrun or on Ray every process calls this; `out` is one folder that all of them see.

    Parameters
    ----------
    recipe : Recipe
    dataset : Dataset
        With a `train` and a `valid` split.
    out : Path
        The run's folder: recipe.json, last.pt, best.safetensors, history.json.
    progress : callable, optional
        Called with (what, done, total) after every step.
    on_epoch : callable, optional
        Called with the epoch's entry of the history, those of an earlier call too; the run ends where it returns True.
    stop_after : int, optional
        Leave after this many epochs of this call, as if killed (for tests of resuming).

    Returns
    -------
    dict
        ``best`` (validation AUROC), ``epoch`` of it, ``epochs`` done, ``history``.

    Raises
    ------
    TrainError
        When a split is empty, masks are wanted and not there, the folder holds another run, or the loss is not finite.
    """
    keep_memory()
    cv2.setNumThreads(1)
    torch.set_num_threads(recipe.threads)
    with enter(recipe.device) as world:
        return _train(world, recipe, dataset, out, progress, on_epoch, stop_after)


def _train(
    world: World,
    recipe: Recipe,
    dataset: Dataset,
    out: Path,
    progress: Progress | None,
    on_epoch: Callable[[dict[str, Any]], bool] | None,
    stop_after: int | None,
) -> dict[str, Any]:
    if recipe.network.views == "study":
        if wrong := next((k for k in ("augment.mixup", "optimise.localise") if _value(recipe, k)), None):
            raise TrainError(f"{wrong} = {_value(recipe, wrong):g}: is for images; with network.views = study set 0")
        dataset = studies(dataset)
    task = dataset.task
    rows, valid = dataset.rows("train"), dataset.rows("valid")
    if not len(rows) or not len(valid):
        raise TrainError(
            f"dataset {dataset.path}: split 'train' has {len(rows)} images and 'valid' {len(valid)}; pack with --valid"
        )
    if recipe.optimise.localise and dataset.masks is None:
        raise TrainError(
            f"optimise.localise = {recipe.optimise.localise}: {dataset.path} has no masks; pack with --masks"
        )
    out.mkdir(parents=True, exist_ok=True)
    facts = {"recipe": recipe.facts(), "dataset": dataset.hash, "task": task.to_dict()}
    record = out / "recipe.json"
    if record.exists() and json.loads(record.read_text()) != facts:
        raise TrainError(f"run {out}: was started with another recipe or dataset; choose another --out")
    world.wait()
    if world.first:
        checkpoint.replace(record, json.dumps(facts, indent=1).encode())

    o = recipe.optimise
    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        network = Network(recipe.network, len(task.findings))
        if recipe.network.weights not in ("", "hub"):
            load_weights(network, Path(recipe.network.weights))
        network.to(world.device).to(memory_format=torch.channels_last)
        optimizer = optimiser.make(network, recipe)
        wanted = targets(task, dataset.labels, recipe.labels, np.random.default_rng([recipe.seed, 2]))
        weight = class_weight(task, wanted[rows]).to(world.device) if recipe.labels.balance else None
        masks = dataset.masks if o.localise else None
        pin = world.device.type == "cuda"
        batches = Batches(
            dataset.pixels, rows, wanted, recipe, masks, world.rank, world.size, pin, exclusive=task.exclusive
        )
        objective = Objective(task, recipe, weight)
        values = network.state_dict()
        average = {key: value.clone() for key, value in values.items()}
        judged = Network(recipe.network.model_copy(update={"weights": ""}), len(task.findings)) if o.ema else network
        judged.to(world.device).to(memory_format=torch.channels_last)
        sample = np.random.default_rng([recipe.seed, 5]).permutation(rows)[: min(len(valid), _SAMPLE)]
        state: dict[str, Any] = {"epoch": 0, "best": -1.0, "best_epoch": -1, "history": []}
        last = out / "last.pt"
        if last.exists():
            state = checkpoint.load(last)
            network.load_state_dict(state.pop("network"))
            average = {key: value.to(world.device) for key, value in state.pop("average").items()}
            optimizer.load_state_dict(state.pop("optimizer"))
        sinks = recipe.tracking.sinks if world.first else None

        with tracking.track(out, recipe.name, recipe.model_dump(), sinks) as run:
            first = state["epoch"]
            leave = [bool(on_epoch(entry)) for entry in state["history"]] if on_epoch and world.first else []
            for epoch in range(first, o.epochs):
                if any(world.gather(any(leave))):
                    break
                if o.patience and epoch - state["best_epoch"] > o.patience and state["best_epoch"] >= 0:
                    break
                if stop_after is not None and epoch - first >= stop_after:
                    break
                # Chance of this epoch and process, whether or not the run was resumed.
                torch.manual_seed(int(np.random.SeedSequence([recipe.seed, 3, epoch, world.rank]).generate_state(1)[0]))
                total = torch.zeros((), dtype=torch.float64, device=world.device)
                optimiser.set_trainable(network, recipe, epoch)
                if objective.head_alone(epoch):
                    optimiser.head_only(network)
                if recipe.labels.redraw == "epoch":
                    rng = np.random.default_rng([recipe.seed, 2, epoch])
                    batches.wanted = targets(task, dataset.labels, recipe.labels, rng)
                batches.balanced = objective.balanced(epoch)
                begin, length = objective.span(epoch)
                highest = o.learning_rate * objective.factor(epoch)
                call = world.join(_Step(network, o.precision))
                stream = batches.epoch(epoch)
                for index, some in enumerate(iter(lambda: list(islice(stream, o.accumulate)), [])):  # noqa: B023
                    step = epoch * len(batches) + index
                    done, steps = step - begin * len(batches), length * len(batches)
                    for group in optimizer.param_groups:
                        group["lr"] = highest * group["factor"] * optimiser.rate(done, steps, o.warmup)
                    parts: list[Batch] = []
                    for part, (x, y, cover) in enumerate(some):
                        rng = np.random.default_rng([recipe.seed, 1, step, world.rank, part])
                        x, y = mixed(x, y, recipe.augment.mixup, rng)
                        parts.append(Batch(x, objective.visible(y, epoch), cover).to(world.device))
                    # The loss is the mean over all labels of the step, whichever process and part they fell to.
                    counts = torch.stack([torch.stack(one.counts(task, weight)) for one in parts])
                    shares = world.size * counts / world.sum(counts.sum(0)).clamp(min=1e-6)
                    optimizer.zero_grad(set_to_none=True)
                    for part, (x, y, cover) in enumerate(parts):
                        with held_back(call, part + 1 < len(parts)):
                            features, logits = call(x)
                            loss = shares[part, 0] * objective.loss(logits.float(), y, epoch)
                            if cover is not None:
                                aim = pointing_loss(network.maps(features.float()), cover / 255)
                                loss = loss + o.localise * shares[part, 1] * aim
                            loss.backward()  # type: ignore[no-untyped-call]
                        total += loss.detach() / world.size
                    if o.clip:
                        torch.nn.utils.clip_grad_norm_(network.parameters(), o.clip)
                    optimizer.step()
                    if o.ema:
                        _average(average, values, min(o.ema, (1 + step) / (10 + step)))
                    if (index % _LOOK == 0 or index + 1 == len(batches)) and not torch.isfinite(total):
                        raise TrainError(
                            f"run {out}: the loss is {total.item()} in epoch {epoch}; lower optimise.learning_rate"
                        )
                    if progress and world.first:
                        progress(f"epoch {epoch + 1}/{o.epochs}", index + 1, len(batches))
                if o.ema:
                    judged.load_state_dict(average)
                world.level(judged)
                logits_valid = objective.odds(torch.from_numpy(_score(world, judged, dataset.pixels, valid))).numpy()
                logits_train = objective.odds(torch.from_numpy(_score(world, judged, dataset.pixels, sample))).numpy()
                value = mean_auroc(dataset.labels[valid], softmax(logits_valid) if task.exclusive else logits_valid)
                wanted_valid = torch.from_numpy(wanted[valid])
                numbers = {
                    "train_loss": float(world.sum(total)) / len(batches),
                    "train_auroc": mean_auroc(
                        dataset.labels[sample], softmax(logits_train) if task.exclusive else logits_train
                    ),
                    "valid_loss": float(task_loss(task, torch.from_numpy(logits_valid), wanted_valid)),
                    "valid_auroc": value,
                }
                run.log(epoch, numbers)
                state["history"].append({"epoch": epoch, **numbers})
                state["epoch"] = epoch + 1
                better = objective.counts(epoch) and not math.isnan(value)
                better = better and (value > state["best"] or o.keep == "last")
                if better:
                    state["best"], state["best_epoch"] = value, epoch
                if world.first:
                    if better:
                        best = {key: t.detach().cpu().contiguous() for key, t in judged.state_dict().items()}
                        checkpoint.replace(out / "best.safetensors", safetensors_bytes(best))
                    everything = {"network": values, "average": average, "optimizer": optimizer.state_dict()}
                    checkpoint.save(last, state | everything)
                    checkpoint.replace(out / "history.json", json.dumps(state["history"], indent=1).encode())
                    leave = [bool(on_epoch(state["history"][-1]))] if on_epoch else []
    if state["best_epoch"] < 0 and objective.counts(state["epoch"] - 1):
        raise TrainError(
            f"run {out}: validation AUROC was never defined; the valid split needs both classes of a finding"
        )
    return {"best": state["best"], "epoch": state["best_epoch"], "epochs": state["epoch"], "history": state["history"]}

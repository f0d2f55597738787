"""What the loop is fed: targets from labels, and augmented batches in a reproducible order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wetread.dataset import labels as label_rules
from wetread.errors import ConfigError
from wetread.findings import Task
from wetread.train.augment import augment, change, move, placement
from wetread.train.losses import labelled, pointed
from wetread.train.recipe import LabelsRecipe, Recipe

T = TypeVar("T")


def targets(
    task: Task, labels: NDArray[np.float32], recipe: LabelsRecipe, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Turn labels into training targets: closed along the tree first, then the uncertain ones, then the missing.

    An uncertain child says nothing about its parent; below an absent parent it becomes absent with `close_down`.

    Parameters
    ----------
    task : Task
    labels : float32 array, shape [N, F]
        1, 0, -1 (uncertain), NaN (not mentioned).
    recipe : LabelsRecipe
    rng : numpy.random.Generator
        For policies that draw the targets of uncertain labels.

    Returns
    -------
    float32 array, shape [N, F]
        0 to 1; NaN where there is no target.

    Raises
    ------
    ConfigError
        When a table of the recipe names a finding that the task has not.
    """
    result = labels.astype(np.float32, copy=True)
    if recipe.close_up and task.parents:
        result = label_rules.close_up(task, result)
    if recipe.close_down and task.parents:
        result = label_rules.close_down(task, result)
    uncertain = _by_finding(task, "uncertain", recipe.uncertain, "ignore")
    missing = _by_finding(task, "missing", recipe.missing, "ignore")
    ones = _by_finding(task, "ones_lsr", recipe.ones_lsr, label_rules.POLICIES["ones-lsr"])
    zeros = _by_finding(task, "zeros_lsr", recipe.zeros_lsr, label_rules.POLICIES["zeros-lsr"])
    for column, finding in enumerate(task.findings):
        # Absent labels count as such before uncertain ones are ignored: only what was never mentioned is missing.
        unmentioned = np.isnan(result[:, column])
        spans = {**label_rules.POLICIES, "ones-lsr": ones[finding], "zeros-lsr": zeros[finding]}
        result[:, column] = label_rules.resolve(result[:, column], uncertain[finding], rng, spans)
        if missing[finding] == "zeros":
            result[unmentioned, column] = 0.0
    share = 1 / len(task.findings) if task.exclusive else 0.5
    return np.asarray(result * (1 - 2 * recipe.smoothing) + 2 * recipe.smoothing * share, np.float32)


def _by_finding(task: Task, key: str, chosen: T | Mapping[str, T], other: T) -> dict[str, T]:
    """Return the choice of each finding; of those that a table does not name its ``default``, or else `other`."""
    if not isinstance(chosen, Mapping):
        return dict.fromkeys(task.findings, chosen)
    if unknown := sorted(set(chosen) - {*task.findings, "default"}):
        raise ConfigError(f"labels.{key}: {unknown[0]!r} is no finding of task {task.name!r}")
    return dict.fromkeys(task.findings, chosen.get("default", other)) | {
        f: p for f, p in chosen.items() if f != "default"
    }


def class_weight(task: Task, wanted: NDArray[np.float32]) -> Tensor:
    """Return weights [F] with which classes (or positives against negatives) count alike."""
    positive = np.nansum(wanted, 0)
    if task.exclusive:
        positive = wanted[~np.isnan(wanted).any(1)].sum(0)  # the rows that the loss counts
        weight = positive.sum() / (len(task.findings) * np.maximum(positive, 1))
    else:
        negative = np.nansum(1 - wanted, 0)
        weight = np.clip(negative / np.maximum(positive, 1), 0.1, 20)
    return torch.from_numpy(np.asarray(weight, np.float32))


class Batch(NamedTuple):
    """What a step learns from.

    Attributes
    ----------
    pixels : uint8 tensor, shape [B, 1, S, S]
    wanted : float32 tensor, shape [B, F]
        Targets 0 to 1; NaN where there is none.
    cover : uint8 tensor, shape [B, F, M, M], or None
        Masks of the findings, moved with the pixels.
    """

    pixels: Tensor
    wanted: Tensor
    cover: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        cover = None if self.cover is None else self.cover.to(device, non_blocking=True)
        return Batch(self.pixels.to(device, non_blocking=True), self.wanted.to(device, non_blocking=True), cover)

    def pinned(self) -> Batch:
        """Return the batch in memory that a GPU can fetch by itself."""
        cover = None if self.cover is None else self.cover.pin_memory()
        return Batch(self.pixels.pin_memory(), self.wanted.pin_memory(), cover)

    def silent(self) -> Batch:
        """Return the batch without anything to learn."""
        cover = None if self.cover is None else torch.zeros_like(self.cover)
        return Batch(self.pixels, torch.full_like(self.wanted, torch.nan), cover)

    def counts(self, task: Task, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what the losses of labels and of masks divide by."""
        masks = self.wanted.new_zeros(()) if self.cover is None else pointed(self.cover)
        return labelled(task, self.wanted, weight), masks


@dataclass
class Batches:
    """Augmented training batches of one epoch, made ahead by threads.

    The order depends on (seed, epoch), and each image's changes on (seed, epoch, row, how often it was drawn before)
    alone: not on the number of threads, of processes, or of the parts into which a step is split.

    Attributes
    ----------
    pixels : uint8 array, shape [N, S, S], or [N, S, 2 S] for studies
        Memory-mapped, as a rule.
    rows : int64 array
        The training images among them.
    wanted : float32 array, shape [N, F]
    recipe : Recipe
    masks : uint8 array, shape [N, F, M, M], optional
    rank, size : int
        This process among all: each gets its share of every step.
    balanced : bool
        Draw present and absent findings alike, each finding as often as any other.
    exclusive : bool
        Exactly one finding holds: what is balanced are the classes.
    pin : bool
        Put batches where a GPU can fetch them by itself.
    """

    pixels: NDArray[np.uint8]
    rows: NDArray[np.int64]
    wanted: NDArray[np.float32]
    recipe: Recipe
    masks: NDArray[np.uint8] | None = None
    rank: int = 0
    size: int = 1
    pin: bool = False
    balanced: bool = False
    exclusive: bool = False

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        drawn = self.recipe.optimise.per_epoch or len(self.rows)
        return math.ceil(drawn / self.recipe.optimise.batch)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield this process's batches of an epoch, in order: `optimise.accumulate` of them make a step."""
        seed, size, parts = self.recipe.seed, self.recipe.optimise.batch, self.recipe.optimise.accumulate
        rng = np.random.default_rng([seed, epoch])
        drawn = self.recipe.optimise.per_epoch or len(self.rows)
        if self.balanced:
            order = draw_balanced(self.wanted[self.rows], drawn, rng, self.exclusive)
        else:
            order = np.resize(rng.permutation(len(self.rows)), drawn)

        before = drawn_before(order)

        def make(places: NDArray[np.int64]) -> Batch:
            images, covers, part = [], [], order[places]
            for i, nth in zip(part, before[places], strict=True):
                # An image that is drawn again is changed otherwise, or rare findings would come as copies.
                rng = np.random.default_rng([seed, epoch, i, nth] if nth else [seed, epoch, i])
                if self.masks is None:
                    images.append(augment(np.asarray(self.pixels[self.rows[i]]), self.recipe.augment, rng))
                    continue
                matrix = placement(self.recipe.augment, rng)
                image = move(np.asarray(self.pixels[self.rows[i]]), matrix)
                images.append(change(image, self.recipe.augment, rng))
                covers.append([move(mask, matrix) if mask.any() else mask for mask in self.masks[self.rows[i]]])
            cover = torch.from_numpy(np.array(covers, np.uint8)) if covers else None
            wanted = torch.from_numpy(self.wanted[self.rows[part]])
            return Batch(torch.from_numpy(np.stack(images)[:, None]), wanted, cover)

        def share(places: NDArray[np.int64]) -> Batch:
            # Fewer images than processes in the last step: one that teaches nothing, to keep step with the others.
            batch = make(places) if len(places) else make(np.zeros(1, np.int64)).silent()
            return batch.pinned() if self.pin else batch

        with ThreadPoolExecutor(self.recipe.loaders, thread_name_prefix="loader") as pool:
            waiting: deque[Future[Batch]] = deque()
            try:
                for start in range(0, drawn, size):
                    shares = np.array_split(np.arange(start, min(start + size, drawn)), self.size * parts)
                    for part in shares[self.rank * parts : (self.rank + 1) * parts]:
                        waiting.append(pool.submit(share, part))
                        if len(waiting) > 2 * self.recipe.loaders:
                            yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def draw_balanced(
    wanted: NDArray[np.float32], count: int, rng: np.random.Generator, exclusive: bool = False
) -> NDArray[np.int64]:
    """Draw images so that findings, and of each the present and the absent, come up alike.

    Each draw takes a finding that has both kinds, then a kind, then an image, by equal chance. Of exclusive findings it
    takes one that is present somewhere, then an image of it: the others are where it is absent.

    Parameters
    ----------
    wanted : float32 array, shape [N, F]
        Targets; above one half is present, NaN neither.
    count : int
    rng : numpy.random.Generator

    Returns
    -------
    int64 array, shape [count]
        Row numbers.
    """
    if exclusive:
        known = ~np.isnan(wanted).any(1)  # a row with a gap teaches nothing, and NaN would be its maximum
        classes = [np.flatnonzero(known & (wanted.argmax(1) == f)) for f in range(wanted.shape[1])]
        usable = [(rows, rows) for rows in classes if len(rows)]
    else:
        kinds = [(np.flatnonzero(column > 0.5), np.flatnonzero(column <= 0.5)) for column in wanted.T]
        usable = [kind for kind in kinds if len(kind[0]) and len(kind[1])]
    if not usable:
        return np.resize(rng.permutation(len(wanted)), count)
    chosen = rng.integers(len(usable), size=count)
    present = rng.integers(2, size=count)
    place = rng.random(count)
    picks = [usable[f][1 - p] for f, p in zip(chosen, present, strict=True)]
    return np.array([rows[int(x * len(rows))] for rows, x in zip(picks, place, strict=True)], np.int64)


def mixed(x: Tensor, y: Tensor, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Blend each image and its targets with another of the batch (Zhang et al. 2018).

    Where only one of a pair has a label, the blend has none.
    """
    if not alpha:
        return x, y
    share = float(rng.beta(alpha, alpha))
    other = torch.from_numpy(rng.permutation(len(x)))
    pixels = (x.float() * share + x[other].float() * (1 - share)).round().to(torch.uint8)
    return pixels, y * share + y[other] * (1 - share)


def drawn_before(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each place of an order, int64 [N], how often its image stands at an earlier place."""
    sorted_places = np.argsort(order, kind="stable")
    ranked = order[sorted_places]
    first = np.searchsorted(ranked, ranked)  # where each image's run begins
    result = np.empty(len(order), np.int64)
    result[sorted_places] = np.arange(len(order)) - first
    return result

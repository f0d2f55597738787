"""What the loop is fed: targets from labels, and augmented batches in a reproducible order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wetread.dataset import labels as label_rules
from wetread.findings import Task
from wetread.train.augment import augment
from wetread.train.recipe import LabelsRecipe, Recipe


def targets(
    task: Task, labels: NDArray[np.float32], recipe: LabelsRecipe, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Turn labels into training targets.

    Parameters
    ----------
    task : Task
    labels : float32 array, shape [N, F]
        1, 0, -1 (uncertain), NaN (not mentioned).
    recipe : LabelsRecipe
    rng : numpy.random.Generator
        For policies that draw the targets of uncertain labels: once for the run.

    Returns
    -------
    float32 array, shape [N, F]
        0 to 1; NaN where there is no target.
    """
    result = labels.astype(np.float32, copy=True)
    if recipe.close_up and task.parents:
        result = label_rules.close_up(task, result)
    result = label_rules.resolve(result, recipe.uncertain, rng)
    if recipe.missing == "zeros":
        result[np.isnan(result)] = 0.0
    share = 1 / len(task.findings) if task.exclusive else 0.5
    return np.asarray(result * (1 - 2 * recipe.smoothing) + 2 * recipe.smoothing * share, np.float32)


def class_weight(task: Task, wanted: NDArray[np.float32]) -> Tensor:
    """Return weights [F] with which classes (or positives against negatives) count alike."""
    positive = np.nansum(wanted, 0)
    if task.exclusive:
        weight = positive.sum() / (len(task.findings) * np.maximum(positive, 1))
    else:
        negative = np.nansum(1 - wanted, 0)
        weight = np.clip(negative / np.maximum(positive, 1), 0.1, 20)
    return torch.from_numpy(np.asarray(weight, np.float32))


@dataclass
class Batches:
    """Augmented training batches of one epoch, made ahead by threads.

    The order depends on (seed, epoch) and each image's changes on (seed, epoch, row) alone.
    """

    pixels: NDArray[np.uint8]
    rows: NDArray[np.int64]
    wanted: NDArray[np.float32]
    recipe: Recipe

    def __len__(self) -> int:
        drawn = self.recipe.optimise.per_epoch or len(self.rows)
        return math.ceil(drawn / self.recipe.optimise.batch)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (pixels uint8 [B, 1, S, S], targets float32 [B, F])."""
        seed, size = self.recipe.seed, self.recipe.optimise.batch
        order = np.random.default_rng([seed, epoch]).permutation(len(self.rows))
        drawn = self.recipe.optimise.per_epoch or len(order)
        order = np.resize(order, drawn)

        def make(part: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
            images = np.stack(
                [
                    augment(
                        np.asarray(self.pixels[self.rows[i]]),
                        self.recipe.augment,
                        np.random.default_rng([seed, epoch, i]),
                    )
                    for i in part
                ]
            )
            return torch.from_numpy(images[:, None]), torch.from_numpy(self.wanted[self.rows[part]])

        with ThreadPoolExecutor(1) as pool:
            waiting: deque[Future[tuple[Tensor, Tensor]]] = deque()
            for start in range(0, drawn, size):
                waiting.append(pool.submit(make, order[start : start + size]))
                if len(waiting) > 2:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


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

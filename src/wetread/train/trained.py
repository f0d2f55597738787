"""Finished runs, read back: one as it is, or several averaged into one network (a *model soup*)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from wetread.dataset.dataset import Dataset
from wetread.errors import ConfigError, TrainError
from wetread.evaluate.metrics import mean_auroc
from wetread.findings import Task
from wetread.train.augment import augment
from wetread.train.hierarchy import unconditional
from wetread.train.loop import score, softmax
from wetread.train.network import Network, load_weights
from wetread.train.recipe import Recipe

_BATCH = 32
_ENOUGH = 2048  # images that settle the statistics of batch norm


@dataclass(frozen=True)
class Trained:
    """A finished run, read back.

    Attributes
    ----------
    path : Path
    recipe : Recipe
    network : Network
        With the best weights, in evaluation mode.
    task : Task
    dataset_hash : str
        Of the dataset that it was trained on.
    """

    path: Path
    recipe: Recipe
    network: Network
    task: Task
    dataset_hash: str

    @classmethod
    def open(cls, run: Path) -> Trained:
        """Read a run's folder.

        Raises
        ------
        TrainError
            When the folder is no run, or no epoch of it was finished.
        """
        record, weights = run / "recipe.json", run / "best.safetensors"
        if not record.is_file() or not weights.is_file():
            raise TrainError(f"run {run}: {(record if not record.is_file() else weights).name} is missing; train first")
        try:
            facts = json.loads(record.read_text(encoding="utf-8"))
            recipe, task = Recipe.model_validate(facts["recipe"]), Task.from_dict(facts["task"])
        except (ValueError, KeyError, ConfigError) as error:
            raise TrainError(f"run {run}: recipe.json: {str(error).splitlines()[0]}") from None
        network = Network(recipe.network.model_copy(update={"weights": ""}), len(task.findings))
        load_weights(network, weights)
        return cls(run, recipe, network.eval(), task, str(facts["dataset"]))

    def fits(self, dataset: Dataset) -> None:
        """Check that this is the dataset of the run.

        Raises
        ------
        TrainError
            When it is another.
        """
        if dataset.hash != self.dataset_hash:
            raise TrainError(
                f"dataset {dataset.path}: its hash {dataset.hash[:12]} is not that of the run {self.path}, "
                f"{self.dataset_hash[:12]}; give the dataset that the run was trained on"
            )

    def auroc(self, dataset: Dataset) -> float:
        """Return the mean AUROC on the validation split."""
        valid = dataset.rows("valid")
        logits = score(self.network, dataset.pixels, valid)
        if self.recipe.network.hierarchy != "flat":
            logits = unconditional(self.task, torch.from_numpy(logits)).numpy()
        return mean_auroc(dataset.labels[valid], softmax(logits) if self.task.exclusive else logits)


def soup(runs: Sequence[Trained], dataset: Dataset, say: Callable[[str], None] = lambda text: None) -> Trained:
    """Average the weights of runs of one network that began from the same weights (Wortsman et al. 2022).

    The result costs no more than one of them. Batch norm's statistics are those of other weights, so they are taken
    anew from training images, changed as the first run's recipe says; with `optimise.frozen_norm` all runs learnt with
    the ones that they began with, and these stay.

    Parameters
    ----------
    runs : sequence of Trained
        At least one; the first gives the recipe.
    dataset : Dataset
        What all were trained on.
    say : callable
        Told the validation AUROC of the runs and of their mean.

    Raises
    ------
    TrainError
        When the networks differ, or their mean is worse on validation than each of them: such runs have no
        common start, and only an ensemble joins them.
    """
    first = runs[0]
    if len(runs) == 1:
        return first
    for other in runs[1:]:
        if other.recipe.network.model_dump(exclude={"weights"}) != first.recipe.network.model_dump(exclude={"weights"}):
            raise TrainError(
                f"run {other.path}: its recipe's network is not that of {first.path}; only equal networks have a mean,"
                " join these with --member"
            )
    network = Network(first.recipe.network.model_copy(update={"weights": ""}), len(first.task.findings))
    states = [run.network.state_dict() for run in runs]
    network.load_state_dict(
        {
            key: torch.stack([state[key] for state in states]).mean(0) if value.is_floating_point() else value
            for key, value in states[0].items()
        }
    )
    if not first.recipe.optimise.frozen_norm:
        with torch.random.fork_rng(devices=[]):  # dropped paths of a backbone
            torch.manual_seed(first.recipe.seed)
            update_bn(_training_images(first.recipe, dataset), network)
    mean = replace(first, network=network.eval())
    alone = [run.auroc(dataset) for run in runs]
    together = mean.auroc(dataset)
    say(f"validation AUROC {together:.4f}; alone " + ", ".join(f"{value:.4f}" for value in alone))
    if together < min(alone):
        raise TrainError(
            f"the mean of {len(runs)} runs has a validation AUROC of {together:.4f}, the worst alone {min(alone):.4f}:"
            " perhaps they did not begin from the same weights; join them with --member"
        )
    return mean


def _training_images(recipe: Recipe, dataset: Dataset) -> Iterator[Tensor]:
    """Yield batches uint8 [B, 1, S, S] of training images, changed as in training."""
    rng = np.random.default_rng([recipe.seed, 4])
    rows = rng.permutation(dataset.rows("train"))[:_ENOUGH]
    for start in range(0, len(rows) - 1, _BATCH):  # a batch of one has no statistics
        some = [augment(np.asarray(dataset.pixels[row]), recipe.augment, rng) for row in rows[start : start + _BATCH]]
        yield torch.from_numpy(np.stack(some)[:, None])

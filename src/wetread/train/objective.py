"""What a run minimises, stage by stage.

Three methods learn in two stages. *Conditional training* learns each finding where its parent is there, then the last
layer alone on everything. *HMLC* follows the same first stage with the loss of the unconditional products. *AUC-margin*
follows cross-entropy with the margin loss on balanced batches. Everything else has one stage. They can be joined: with
HMLC whatever loss is chosen is one of the products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wetread.errors import ConfigError
from wetread.findings import Task
from wetread.train.hierarchy import given_parents, unconditional
from wetread.train.losses import asymmetric_loss, auc_margin_loss, focal_loss, task_loss
from wetread.train.recipe import Recipe


class Objective:
    """The losses of a run's stages.

    Parameters
    ----------
    task : Task
    recipe : Recipe
    weight : float tensor, shape [F], optional
        Class weights, or the weights of positives.

    Raises
    ------
    ConfigError
        When the recipe asks for what the task has not: a tree, or independent findings.
    """

    def __init__(self, task: Task, recipe: Recipe, weight: Tensor | None = None) -> None:
        self.task, self.recipe, self.weight = task, recipe, weight
        self.hierarchy, self.kind = recipe.network.hierarchy, recipe.loss.kind
        if self.hierarchy != "flat" and task.exclusive:
            raise ConfigError(
                f"network.hierarchy = {self.hierarchy!r}: task {task.name!r} is exclusive and has no tree; use 'flat'"
            )
        if self.kind == "asymmetric" and task.exclusive:
            raise ConfigError(
                f"loss.kind = 'asymmetric': task {task.name!r} is exclusive; use 'cross-entropy' or 'focal'"
            )
        epochs = recipe.optimise.epochs
        self.staged = self.hierarchy != "flat" or self.kind == "auc-margin"
        if self.staged and epochs < 2:
            raise ConfigError(
                f"optimise.epochs = {epochs}: {self.hierarchy}, {self.kind} has two stages; give 2 or more"
            )
        second = max(1, round(recipe.optimise.second * epochs)) if self.staged else 0
        self.first = max(1, epochs - second) if self.staged else epochs

    def second(self, epoch: int) -> bool:
        """Return whether an epoch belongs to the second stage."""
        return epoch >= self.first

    def counts(self, epoch: int) -> bool:
        """Return whether the weights of an epoch may be kept: those of the last stage only."""
        return not self.staged or self.second(epoch)

    def span(self, epoch: int) -> tuple[int, int]:
        """Return the first epoch of the stage of an epoch, and how many it has: each has its own schedule."""
        return (self.first, self.recipe.optimise.epochs - self.first) if self.second(epoch) else (0, self.first)

    def factor(self, epoch: int) -> float:
        """Return by what the learning rate of the stage is multiplied."""
        return self.recipe.optimise.second_factor if self.second(epoch) else 1.0

    def head_alone(self, epoch: int) -> bool:
        """Return whether only the last layer learns."""
        return self.hierarchy == "conditional" and self.second(epoch)

    def balanced(self, epoch: int) -> bool:
        """Return whether batches show present and absent findings alike."""
        return self.recipe.optimise.sampler == "balanced" or (self.kind == "auc-margin" and self.second(epoch))

    def visible(self, targets: Tensor, epoch: int) -> Tensor:
        """Return the targets [B, F] that count in an epoch."""
        if self.hierarchy != "flat" and not self.second(epoch):
            return given_parents(self.task, targets)
        return targets

    def odds(self, logits: Tensor) -> Tensor:
        """Return what scores findings, of a network's logits [B, F]."""
        return logits if self.hierarchy == "flat" else unconditional(self.task, logits)

    def loss(self, logits: Tensor, targets: Tensor, epoch: int) -> Tensor:
        """Return the loss, a mean over the labels that are there.

        Parameters
        ----------
        logits : float32 tensor, shape [B, F]
        targets : float32 tensor, shape [B, F]
            As `visible` gave them.
        epoch : int
        """
        settings = self.recipe.loss
        if self.second(epoch) and (self.hierarchy == "hmlc" or self.kind == "auc-margin"):
            logits = self.odds(logits)
        if self.second(epoch) and self.kind == "auc-margin":
            chance = torch.softmax(logits, 1) if self.task.exclusive else torch.sigmoid(logits)
            return auc_margin_loss(chance, targets, settings.margin)
        if self.kind == "focal":
            return focal_loss(logits, targets, settings.gamma, exclusive=self.task.exclusive, weight=self.weight)
        if self.kind == "asymmetric":
            return asymmetric_loss(
                logits, targets, positive=settings.gamma_positive, negative=settings.gamma_negative, clip=settings.clip
            )
        return task_loss(self.task, logits, targets, self.weight)

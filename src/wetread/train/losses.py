"""Losses in which a label that is not there costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from wetread.findings import Task


def masked_bce(logits: Tensor, targets: Tensor, positive_weight: Tensor | None = None) -> Tensor:
    """Return the mean binary cross-entropy over the labels that are there.

    Parameters
    ----------
    logits : float tensor, shape [B, F]
    targets : float tensor, shape [B, F]
        0 to 1; NaN where there is no label, which gives neither loss nor gradient.
    positive_weight : float tensor, shape [F], optional
        Weight of the positive part of the loss.

    Returns
    -------
    float tensor, scalar
        0 when no label is there.
    """
    there = ~torch.isnan(targets)
    losses = functional.binary_cross_entropy_with_logits(
        logits, torch.where(there, targets, torch.zeros_like(targets)), pos_weight=positive_weight, reduction="none"
    )
    return torch.where(there, losses, torch.zeros_like(losses)).sum() / there.sum().clamp(min=1)


def masked_cross_entropy(logits: Tensor, targets: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of exclusive findings over the rows that are labelled.

    Parameters
    ----------
    logits : float tensor, shape [B, F]
    targets : float tensor, shape [B, F]
        Rows that sum to 1; a row with any NaN counts as not labelled.
    class_weight : float tensor, shape [F], optional

    Returns
    -------
    float tensor, scalar
        0 when no row is labelled.
    """
    there = ~torch.isnan(targets).any(1)
    share = torch.where(there[:, None], targets, torch.zeros_like(targets))
    if class_weight is not None:
        share = share * class_weight
    return -(share * torch.log_softmax(logits, 1)).sum() / share.sum().clamp(min=1e-6)


def task_loss(task: Task, logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the loss that suits a task: softmax for exclusive findings, sigmoid for others."""
    return (masked_cross_entropy if task.exclusive else masked_bce)(logits, targets, weight)

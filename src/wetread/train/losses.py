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
    wanted = torch.where(there, targets, torch.zeros_like(targets))
    # Not PyTorch's own, whose gradient σ - 1 loses its digits where σ is nearly 1.
    positive = wanted * functional.logsigmoid(logits) * (1 if positive_weight is None else positive_weight)
    return _mean(-(positive + (1 - wanted) * functional.logsigmoid(-logits)), there)


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


def pointing_loss(maps: Tensor, cover: Tensor) -> Tensor:
    """Return the mean surprise that the place a map points to lies inside the finding's mask.

    A map's softmax over its cells is where it points, softly: what lies inside the mask is the chance of a hit in the
    pointing game of Zhang et al., *Top-down neural attention by excitation backprop* (2018). A constant added to a map,
    and so the bias of the head, changes nothing.

    Parameters
    ----------
    maps : float tensor, shape [B, F, h, w]
    cover : float tensor, shape [B, F, M, M]
        Share of each cell that the finding covers, 0 to 1; an empty mask gives neither loss nor gradient.

    Returns
    -------
    float tensor, scalar
        0 when no mask is there.
    """
    inside = functional.adaptive_avg_pool2d(cover, (maps.shape[2], maps.shape[3])).flatten(2)
    there = inside.amax(2) > 0
    chance = torch.logsumexp(torch.log_softmax(maps.flatten(2), 2) + inside.clamp(min=1e-6).log(), 2)
    return -torch.where(there, chance, torch.zeros_like(chance)).sum() / there.sum().clamp(min=1)


def _mean(losses: Tensor, there: Tensor) -> Tensor:
    return torch.where(there, losses, torch.zeros_like(losses)).sum() / there.sum().clamp(min=1)


def focal_loss(
    logits: Tensor, targets: Tensor, gamma: float = 2.0, *, exclusive: bool = False, weight: Tensor | None = None
) -> Tensor:
    """Return the mean focal loss: cross-entropy times (1 - p of the truth)^gamma (Lin et al. 2017).

    With gamma = 0 it is cross-entropy.

    Parameters
    ----------
    logits : float tensor, shape [B, F]
    targets : float tensor, shape [B, F]
        0 to 1; NaN where there is none. A soft target weighs both sides.
    gamma : float
        How much what is easy counts less.
    exclusive : bool
        Softmax over the findings instead of a sigmoid for each.
    weight : float tensor, shape [F], optional
        Of classes, or of positives.
    """
    there = ~torch.isnan(targets)
    wanted = torch.where(there, targets, torch.zeros_like(targets))
    if exclusive:
        there = there.all(1)
        share = wanted * there[:, None] if weight is None else wanted * there[:, None] * weight
        log_p = torch.log_softmax(logits, 1)
        # Bounded below: the slope of a root is infinite at 0, where a confident image stands.
        return -(share * (1 - log_p.exp()).clamp(min=1e-6) ** gamma * log_p).sum() / share.sum().clamp(min=1e-6)
    yes, no = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    positive = wanted * (gamma * no).exp() * yes * (1 if weight is None else weight)
    return _mean(-(positive + (1 - wanted) * (gamma * yes).exp() * no), there)


def asymmetric_loss(
    logits: Tensor, targets: Tensor, *, positive: float = 0.0, negative: float = 4.0, clip: float = 0.05
) -> Tensor:
    """Return the mean asymmetric loss of Ridnik et al. (2021): easy negatives count less, the easiest not at all.

    With both exponents and the clip at 0 it is cross-entropy.

    Parameters
    ----------
    logits : float tensor, shape [B, F]
    targets : float tensor, shape [B, F]
        0 to 1; NaN where there is none.
    positive, negative : float
        Exponents of focusing of either side.
    clip : float
        Probability below which a negative costs nothing.
    """
    there = ~torch.isnan(targets)
    wanted = torch.where(there, targets, torch.zeros_like(targets))
    yes = functional.logsigmoid(logits)
    # log (1 - max(p - clip, 0)) = log min(1 - p + clip, 1); without a clip the form that never rounds to log 0
    no = functional.logsigmoid(-logits) if not clip else (torch.sigmoid(-logits) + clip).clamp(max=1).log()
    for_positive = wanted * torch.sigmoid(-logits) ** positive * yes
    for_negative = (1 - wanted) * (1 - no.exp()).clamp(min=0) ** negative * no
    return _mean(-(for_positive + for_negative), there)


def auc_margin_loss(chance: Tensor, targets: Tensor, margin: float = 1.0) -> Tensor:
    """Return the mean AUC-margin loss over the findings that have both kinds in the batch (Yuan et al. 2021, DeepAUC).

    Their loss is the saddle point, over a, b and α ≥ 0, of

        E[(h - a)² | 1] + E[(h - b)² | 0] + 2 α (margin + E[h | 0] - E[h | 1]) - α².

    On a batch it is known: a and b are the means of either kind and α = max(0, margin + b - a). So the loss is both
    variances and max(0, margin + b - a)², and nothing but the network needs an optimiser. While a - b is below the
    margin it equals the mean over all pairs, E[(margin - (h₁ - h₀))²].

    Parameters
    ----------
    chance : float tensor, shape [B, F]
        Probabilities.
    targets : float tensor, shape [B, F]
        Above one half counts as present; NaN where there is none.
    margin : float
        By which present should score above absent.

    Returns
    -------
    float tensor, scalar
        0 when no finding has both kinds.
    """
    one, zero = (targets > 0.5).float(), (targets <= 0.5).float()  # NaN is neither
    ones, zeros = one.sum(0), zero.sum(0)
    a = (one * chance).sum(0) / ones.clamp(min=1)
    b = (zero * chance).sum(0) / zeros.clamp(min=1)
    spread = (one * (chance - a) ** 2).sum(0) / ones.clamp(min=1) + (zero * (chance - b) ** 2).sum(0) / zeros.clamp(
        min=1
    )
    losses = spread + (margin + b - a).clamp(min=0) ** 2
    return _mean(losses, (ones > 0) & (zeros > 0))


def task_loss(task: Task, logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the loss that suits a task: softmax for exclusive findings, sigmoid for others."""
    return (masked_cross_entropy if task.exclusive else masked_bce)(logits, targets, weight)


def labelled(task: Task, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return what `task_loss` divides by, float32: with it, means over parts of a batch become the mean over all."""
    there = ~torch.isnan(targets)
    if not task.exclusive:
        return there.sum().float()
    share = torch.where(there.all(1, keepdim=True), targets, torch.zeros_like(targets))
    return (share if weight is None else share * weight).sum()


def pointed(cover: Tensor) -> Tensor:
    """Return what `pointing_loss` divides by, float32: the findings with a mask."""
    return (cover > 0).flatten(2).any(2).sum().float()

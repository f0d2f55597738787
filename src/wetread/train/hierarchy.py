"""The task's tree in training and in the graph: conditional logits, and the products along the paths.

A conditional network's logit says how likely a finding is *given that its parent is there*. The chance of a finding is
the product of the conditional ones from the root down to it (Chen et al. 2019; Pham et al. 2021, arXiv 1911.06475).
All is done with logarithms, and without ever computing 1 - p: what is not there is either absent at the parent, or
there and absent at this step,

    log (1 - p) = log ((1 - p_parent) + p_parent (1 - σ)),

a sum of two positive terms, exact however close p comes to 0 or 1; Chen et al., *Deep hierarchical multi-label
classification of chest X-ray images* (HMLC, 2020), need a stable form for their loss. In ONNX it is Gather, Add and
Softplus: no matrix product, in which bf16 would merge scores.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from wetread.findings import Task


def _by_depth(task: Task) -> list[int]:
    """Return the columns, parents before their children."""
    return sorted(range(len(task.findings)), key=lambda f: len(task.path(task.findings[f])))


def log_chances(task: Task, logits: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return log p and log (1 - p), each [B], of every finding, of conditional logits [B, F].

    By softplus, for the log-sigmoid is exported as the logarithm of a sigmoid that may have become 0.
    """
    present, absent = [logits[:, 0]] * logits.shape[1], [logits[:, 0]] * logits.shape[1]
    parents = task.parent_index()
    for f in _by_depth(task):
        here, gone = -functional.softplus(-logits[:, f]), -functional.softplus(logits[:, f])
        if (p := parents[f]) < 0:
            present[f], absent[f] = here, gone
        else:
            present[f] = present[p] + here
            absent[f] = absent[p] + functional.softplus(present[p] + gone - absent[p])  # logaddexp
    return present, absent


def unconditional(task: Task, logits: Tensor) -> Tensor:
    """Return the log-odds of findings whose logits are conditional on their parents.

    Parameters
    ----------
    task : Task
        Without edges the logits come back.
    logits : float tensor, shape [B, F]

    Returns
    -------
    float tensor, shape [B, F]
        A child's are never above its parent's. Their cross-entropy, -log p or -log (1 - p), is the loss of HMLC;
        its gradient keeps its digits where p is nearly 0 or 1.
    """
    if not task.parents:
        return logits
    present, absent = log_chances(task, logits)
    return torch.stack([here - gone for here, gone in zip(present, absent, strict=True)], 1)


def unconditional_maps(task: Task, logits: Tensor, maps: Tensor) -> Tensor:
    """Return the maps of the unconditional log-odds, of the maps of conditional logits.

    With p the product along the path, d log-odds / d logit is (1 - σ) / (1 - p) at each of its steps.

    Parameters
    ----------
    task : Task
    logits : float tensor, shape [B, F]
        Conditional.
    maps : float tensor, shape [B, F, h, w]
        Gradient of each logit with respect to the last features, times these.

    Returns
    -------
    float tensor, shape [B, F, h, w]
    """
    if not task.parents:
        return maps
    column = {finding: index for index, finding in enumerate(task.findings)}
    gone = -functional.softplus(logits)
    _, absent = log_chances(task, logits)
    result = []
    for f, finding in enumerate(task.findings):
        steps = [column[step] for step in task.path(finding)]
        total = maps[:, f]
        if len(steps) > 1:
            parts = [torch.exp(gone[:, j] - absent[f])[:, None, None] * maps[:, j] for j in steps]
            total = torch.stack(parts).sum(0)
        result.append(total)
    return torch.stack(result, 1)


def given_parents(task: Task, targets: Tensor) -> Tensor:
    """Return the targets of conditional training: a child's counts only where its parent is there.

    A parent of unknown or absent label leaves nothing to learn about the child given the parent. Closing labels upward
    first keeps the positives whose parent was never mentioned (in CheXpert 93 % of cardiomegaly).

    Parameters
    ----------
    task : Task
    targets : float tensor, shape [B, F]
        0 to 1; NaN where there is none. A soft target above one half counts as there.
    """
    parents = task.parent_index()
    columns = []
    for f, p in enumerate(parents):
        column = targets[:, f]
        columns.append(
            column if p < 0 else torch.where(targets[:, p] > 0.5, column, torch.full_like(column, torch.nan))
        )
    return torch.stack(columns, 1)

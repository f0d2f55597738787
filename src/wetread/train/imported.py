"""A network of another library as the graph of a package: its own outputs, with exact maps beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from wetread.findings import Task
from wetread.train.ensemble import Ensemble, log_odds


@dataclass(frozen=True, eq=False)
class Foreign:
    """What is known of a network that was trained elsewhere.

    Attributes
    ----------
    source : str
        Where it comes from, e.g. ``"txrv:densenet121-res224-chex"``.
    task : Task
    features : torch.nn.Module
        From its own input [B, C, S, S] to its last features [B, D, h, w].
    head : sequence of torch.nn.Module
        From the averaged features to the logits: linear layers, layer norms and hard swishes.
    rows : sequence of int
        For each finding of the task its row of the logits.
    size : int
        Side of the input, in pixels.
    scale, offset : sequence of float
        For each channel of the input: uint8 value · scale + offset.
    thresholds : sequence of float
        The probability at each finding's operating point, which becomes .5; empty leaves probabilities alone.
    licence, attribution : str
    limits : tuple of str
    """

    source: str
    task: Task
    features: nn.Module
    head: Sequence[nn.Module]
    rows: Sequence[int]
    size: int
    scale: Sequence[float]
    offset: Sequence[float]
    thresholds: Sequence[float] = ()
    licence: str = ""
    attribution: str = ""
    limits: tuple[str, ...] = field(default=())


class Imported(Ensemble):
    """The log-odds, maps and features of a foreign network, in the place of an ensemble."""

    scale: Tensor
    offset: Tensor
    thresholds: Tensor

    def __init__(self, foreign: Foreign) -> None:
        super().__init__([], foreign.task)
        self.backbone = foreign.features.eval()
        self.head = nn.ModuleList(foreign.head).eval()
        self.rows = list(foreign.rows)
        for name in ("scale", "offset"):
            self.register_buffer(name, torch.tensor(getattr(foreign, name), dtype=torch.float32)[:, None, None])
        self.register_buffer("thresholds", torch.tensor(foreign.thresholds, dtype=torch.float32))

    def prepare(self, pixels: Tensor) -> Tensor:
        """Return the network's own input [B, C, S, S] of uint8 pixels [B, 1, S, S]."""
        return pixels.float() * self.scale + self.offset

    def logits(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, F] of averaged features [B, D], and their gradients [B, F, D]."""
        steps: list[tuple[nn.Module, Tensor]] = []
        x = pooled
        for module in self.head:
            steps.append((module, x))
            x = _apply(module, x)
        gradient = torch.eye(x.shape[1])[self.rows].expand(x.shape[0], -1, -1)
        for module, before in reversed(steps):
            gradient = _back(module, before, gradient)
        return x[:, self.rows], gradient

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return log-odds [B, F], their maps [B, F, h, w], and the averaged features [B, D] in a list."""
        last = self.backbone(self.prepare(pixels))
        pooled = last.mean((2, 3))
        logits, gradient = self.logits(pooled)
        area = last.shape[2] * last.shape[3]
        maps = (gradient @ last.flatten(2)).unflatten(2, last.shape[2:]) / area
        odds, maps = log_odds(self.task, logits, maps)
        if len(self.thresholds):
            odds, slope = at_half(odds, self.thresholds)
            maps = maps * slope[:, :, None, None]
        return odds, maps, [pooled]


def at_half(odds: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """Move each finding's operating point to .5, by a straight line of probability on either side of it.

    That is TorchXRayVision's `op_norm` (Cohen et al. 2022), in log-odds.

    Parameters
    ----------
    odds : float32 [B, F]
    thresholds : float32 [F]
        Probabilities, 0 to 1.

    Returns
    -------
    odds : float32 [B, F]
    slope : float32 [B, F]
        Derivative of the new log-odds with respect to the old.
    """
    p, q, t = torch.sigmoid(odds), torch.sigmoid(-odds), thresholds
    below = p < t
    to_one = torch.where(below, 2 * t - p, p)  # below: p / 2t against (2t - p) / 2t
    to_nought = torch.where(below, q, 2 * (1 - t) - q)  # above: 1 - q / 2(1 - t) against q / 2(1 - t)
    moved = torch.where(below, functional.logsigmoid(odds) - torch.log(to_one), torch.log(to_nought)) - torch.where(
        below, torch.zeros(()), functional.logsigmoid(-odds)
    )
    slope = torch.where(below, 2 * t * to_nought / to_one, 2 * (1 - t) * to_one / to_nought)
    return moved, slope


def _apply(module: nn.Module, x: Tensor) -> Tensor:
    """Apply one module of a head to vectors [B, D]."""
    if isinstance(module, nn.Conv2d):  # 1 x 1 on a single place
        return functional.linear(x, module.weight.flatten(1), module.bias)
    if isinstance(module, nn.LayerNorm):  # timm's LayerNorm2d is one, of another layout
        return functional.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)
    if isinstance(module, nn.Hardswish):  # never in place: `_back` needs the input
        return functional.hardswish(x)
    return cast(Tensor, module(x))


def _back(module: nn.Module, x: Tensor, gradient: Tensor) -> Tensor:
    """Return gradients [B, F, D] before a module of those [B, F, E] behind it; x [B, D] is its input."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        return gradient @ module.weight.flatten(1)
    if isinstance(module, nn.Hardswish):
        return gradient * torch.where(x < -3, 0.0, torch.where(x > 3, 1.0, (2 * x + 3) / 6))[:, None]
    assert isinstance(module, nn.LayerNorm)
    centred = x - x.mean(1, keepdim=True)
    deviation = (centred.square().mean(1, keepdim=True) + module.eps).sqrt()
    normal = (centred / deviation)[:, None]
    if module.weight is not None:
        gradient = gradient * module.weight
    along = (gradient * normal).mean(2, keepdim=True)
    return (gradient - gradient.mean(2, keepdim=True) - normal * along) / deviation[:, None]


def known(module: Any) -> bool:
    """Return whether a module may be part of a head."""
    one_by_one = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    return one_by_one or isinstance(module, nn.Linear | nn.LayerNorm | nn.Hardswish)

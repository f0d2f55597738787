"""Several networks, and several looks at each image, as one: the mean of their probabilities and its exact maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from wetread.errors import TrainError
from wetread.findings import Task
from wetread.train.fusion import VIEWS, apart
from wetread.train.hierarchy import unconditional, unconditional_maps
from wetread.train.looks import Look
from wetread.train.network import Network

_LARGEST = 30.0  # log-odds beyond this are certainty in float32


class Ensemble(nn.Module):
    """Members and looks to log-odds, maps and features.

    Parameters
    ----------
    networks : sequence of Network
        The members; each counts alike.
    task : Task
    looks : sequence of Look
        How each member sees an image; each counts alike.
    """

    def __init__(self, networks: Sequence[Network], task: Task, looks: Sequence[Look] = (Look(),)) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks).eval()
        self.task, self.looks = task, tuple(looks)
        fused = {network.fusion is not None for network in networks}
        if len(fused) > 1:
            raise TrainError("members: some judge images, others studies; give runs of one network.views")
        self.views = VIEWS if fused == {True} else 1

    @property
    def members(self) -> list[Network]:
        """The networks."""
        return [cast(Network, network) for network in self.networks]

    def member(self, network: Network, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-odds [B, F], their maps [B, F, h, w] and pooled features [B, D] of one member's one look."""
        last = network.features(pixels).float()
        features = last.mean((2, 3))
        logits = network.head(features)
        maps = torch.conv2d(last, network.head.weight[:, :, None, None]) / (last.shape[2] * last.shape[3])
        if network.conditional:
            maps = unconditional_maps(self.task, logits, maps)
            logits = unconditional(self.task, logits)
        odds, maps = log_odds(self.task, logits, maps)
        return odds, maps, features

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the log-odds of the mean probability, their maps, and each member's features.

        Returns
        -------
        odds : float32 [B, F]
        maps : float32 [B, F, h, w]
            Gradient of `odds` with respect to the last features of every member and look, times these features,
            summed; on the finest grid of the members. Those of the views of a study lie side by side.
        features : list of float32 [B, D]
            For each member, the mean over its looks.
        """
        if self.views > 1:
            pixels = apart(pixels)
        odds: list[Tensor] = []
        maps: list[Tensor] = []
        features: list[Tensor] = []
        for network in self.members:
            seen = [self.member(network, look.see(pixels)) for look in self.looks]
            odds += [one[0] for one in seen]
            maps += [self._by_view(look.back, one[1]) for look, one in zip(self.looks, seen, strict=True)]
            features.append(torch.stack([one[2] for one in seen]).mean(0) if len(seen) > 1 else seen[0][2])
        if len(odds) == 1:
            return odds[0], maps[0], features
        every = torch.stack(odds)
        present, absent = torch.sigmoid(every).mean(0), torch.sigmoid(-every).mean(0)
        # d log-odds of the mean / d log-odds of a member, without the cancellation of 1 - p
        share = torch.sigmoid(every) * torch.sigmoid(-every) / (len(odds) * present * absent)
        height, width = max(one.shape[2] for one in maps), max(one.shape[3] for one in maps) // self.views
        together = torch.zeros(())
        for part, one in zip(share.unbind(0), maps, strict=True):
            together = together + part[:, :, None, None] * self._by_view(lambda view: _onto(view, height, width), one)
        return torch.log(present) - torch.log(absent), together, features

    def _by_view(self, change: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
        """Change the maps of each view by themselves."""
        return change(maps) if self.views == 1 else torch.cat([change(part) for part in maps.chunk(self.views, 3)], 3)


def log_odds(task: Task, logits: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-odds [B, F], limited to ±30, and their maps [B, F, h, w], of logits and theirs."""
    count = len(task.findings)
    if not task.exclusive:
        odds = logits
    elif count == 2:
        odds, maps = logits - logits.flip(1), maps - maps.flip(1)
    else:  # the log-odds of a softmax: own logit against the others', weighed by their share of the rest
        rest = logits[:, None, :].masked_fill(torch.eye(count).bool(), -torch.inf)
        odds = logits - torch.logsumexp(rest, 2)
        maps = maps - (torch.softmax(rest, 2) @ maps.flatten(2)).reshape(maps.shape)
    return odds.clamp(-_LARGEST, _LARGEST), maps


def _onto(maps: Tensor, height: int, width: int) -> Tensor:
    """Resample maps [B, F, h, w] onto a finer grid; a cell's part of the log-odds shrinks with its area."""
    h, w = maps.shape[2:]
    if (h, w) == (height, width):
        return maps
    finer = functional.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    return finer * (h * w / (height * width))

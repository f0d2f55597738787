"""A frontal and a lateral view to one map of features: shared backbone, view embedding, either view may be missing.

At each place of a view the backbone's features, an embedding of the view and what the other view shows on average
are added and rectified. The features of both views are then laid side by side, so that their mean is the mean of the
views, the head behind it stays linear, and its maps stay exact. A missing view is black: it adds nothing, and the other
counts double.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

VIEWS = 2


def apart(pixels: Tensor) -> Tensor:
    """Return the views [B, 2, S, S] of wide pictures [B, 1, S, 2 S]; views as they are."""
    return torch.cat(pixels.chunk(VIEWS, 3), 1) if pixels.shape[1] == 1 else pixels


class Fusion(nn.Module):
    """The last features of a study.

    Parameters
    ----------
    channels : int
        Of the backbone's features.
    width : int
        Of the study's.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.own = nn.Conv2d(channels, width, 1, bias=False)
        self.other = nn.Linear(channels, width, bias=False)
        self.view = nn.Parameter(torch.zeros(VIEWS, width))
        self.norm = nn.BatchNorm2d(width)
        nn.init.normal_(self.view, 0, 0.02)
        nn.init.zeros_(self.other.weight)  # views learn to hear each other

    def forward(self, pixels: Tensor, features: Callable[[Tensor], Tensor]) -> Tensor:
        """Return features [B, D, h, 2 w].

        Parameters
        ----------
        pixels : uint8 tensor, shape [B, 2, S, S] or [B, 1, S, 2 S]
            Frontal and lateral; a missing view is black.
        features : callable
            The backbone: pixels [N, 1, S, S] to features [N, C, h, w].
        """
        views = apart(pixels)
        flat = views.flatten(0, 1)[:, None]
        there = (flat.flatten(1).float().amax(1) > 0).float()
        chosen: Tensor | None = None
        if self.training:  # what is not there must not move the statistics of batch norm
            chosen = torch.nonzero(there)[:, 0]
        last = features(flat if chosen is None else flat[chosen])
        present = there.reshape(-1, VIEWS)

        def whole(some: Tensor) -> Tensor:
            """Return values [2 B, ...] for all views, 0 where there is none."""
            if chosen is None:
                return some * there.reshape(-1, *[1] * (some.ndim - 1)).to(some.dtype)
            full = some.new_zeros((there.shape[0], *some.shape[1:]))
            return full.index_copy(0, chosen, some)

        pooled = whole(last.mean((2, 3))).reshape(-1, VIEWS, last.shape[1])
        said = (self.view + self.other(pooled.flip(1))).flatten(0, 1)
        added = self.own(last) + (said if chosen is None else said[chosen])[:, :, None, None]
        fused = whole(torch.relu(self.norm(added)))
        count = present.sum(1, keepdim=True).clamp(min=1)
        weight = (VIEWS * present / count).to(fused.dtype)
        fused = fused.reshape(-1, VIEWS, *fused.shape[1:]) * weight[:, :, None, None, None]
        return torch.cat([fused[:, view] for view in range(VIEWS)], 3)

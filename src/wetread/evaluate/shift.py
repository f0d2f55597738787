"""Has anything changed between two samples of images? Effect sizes, and how often chance alone gives such.

A *channel* is one thing that may have changed: a figure of the pixels, the mix of devices, the features, the scores of
a finding. All channels are tested together by the same permutations of which sample an image belongs to, and their p
values are adjusted by the single-step maxT of Westfall and Young (1993): without any change the chance that even one
channel reaches ``p <= alpha`` is at most alpha, however the channels hang together. What such a p says grows with the
number of images; how *much* changed is the effect, in the channel's own unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from wetread.evaluate.metrics import BoolArray, FloatArray

Effect = Callable[[BoolArray], FloatArray]
"""Takes which images [B, N] count as new, B times, and gives the effect [B] of each; NaN where a sample is empty."""

_AT_ONCE = 100  # permutations, so that memory stays small


@dataclass(frozen=True)
class Channel:
    """One thing that may have changed.

    Attributes
    ----------
    kind, name : str
        As ``"pixels"`` and ``"mean"``.
    effect : Effect
    limit : float
        The smallest effect that matters.
    known : bool array, shape [N]
        The images that say anything about it.
    """

    kind: str
    name: str
    effect: Effect
    limit: float
    known: BoolArray


@dataclass(frozen=True)
class Change:
    """How much one channel changed.

    Attributes
    ----------
    kind, name : str
    effect, limit : float
    usual : float
        What 95 % of the permutations stay below: what chance alone gives with so many images.
    p : float
        Adjusted for all channels that were tested together.
    before, after : int
        Images behind it, of either sample.
    """

    kind: str
    name: str
    effect: float
    limit: float
    usual: float
    p: float
    before: int
    after: int

    def alarms(self, alpha: float) -> bool:
        """Return whether it is both more than chance and large enough to matter."""
        return self.p <= alpha and self.effect >= self.limit


def compare(
    channels: Sequence[Channel], after: ArrayLike, *, least: int = 2, resamples: int = 999, seed: int = 0
) -> list[Change]:
    """Compare two samples on every channel of which both have at least `least` images.

    Parameters
    ----------
    channels : sequence of Channel
    after : array_like of bool [N]
        Which images are of the newer sample. Images must be independent: one of each patient.
    least : int
        Fewer images of either sample, and a channel is left out.
    resamples : int
        Permutations; the smallest p is 1 / (resamples + 1).
    seed : int
        Of the permutations.
    """
    new = np.asarray(after, dtype=bool)
    tested = [c for c in channels if min((new & c.known).sum(), (~new & c.known).sum()) >= least]
    if not tested:
        return []
    rng = np.random.default_rng(seed)
    effects = np.empty((len(tested), resamples + 1))
    for start in range(0, resamples + 1, _AT_ONCE):
        stop = min(start + _AT_ONCE, resamples + 1)
        drawn = rng.permuted(np.broadcast_to(new, (stop - start, len(new))), axis=1)
        if start == 0:
            drawn[0] = new
        for row, channel in zip(effects, tested, strict=True):
            row[start:stop] = np.nan_to_num(channel.effect(drawn))  # a sample that was drawn empty shows nothing
    # In units of what permutations give, so that no channel drowns the others.
    spread = effects.std(axis=1, keepdims=True)
    unusual = np.divide(effects - effects.mean(axis=1, keepdims=True), spread, where=spread > 0, out=0 * effects)
    most = unusual.max(axis=0)
    return [
        Change(
            channel.kind,
            channel.name,
            float(row[0]),
            channel.limit,
            float(np.quantile(row[1:], 0.95)),
            float(np.mean(most >= own[0] - 1e-9)),
            int((~new & channel.known).sum()),
            int((new & channel.known).sum()),
        )
        for channel, row, own in zip(tested, effects, unusual, strict=True)
    ]


def distance(values: ArrayLike) -> Effect:
    """Return the effect of numbers [N], NaN where unknown: the largest distance between the two distributions.

    This is the statistic of Kolmogorov and Smirnov, 0 to 1, blind to the unit of the values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(numbers))
    order = known[np.argsort(numbers[known], kind="stable")]
    ends = np.flatnonzero(np.append(np.diff(numbers[order]) > 0, True))  # the last of equal values

    def effect(new: BoolArray) -> FloatArray:
        inside = new[:, order]
        up = np.cumsum(inside, axis=1, dtype=np.float64)[:, ends]
        of_new = inside.sum(axis=1, keepdims=True)
        return np.asarray(np.abs(_share(up, of_new) - _share(ends + 1 - up, len(order) - of_new)).max(axis=1))

    return effect


def difference(values: ArrayLike) -> Effect:
    """Return the effect of numbers [N], NaN where unknown: by how much the means differ, in their unit."""
    numbers = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(numbers)
    total, filled = float(numbers[known].sum()), np.where(known, numbers, 0.0)

    def effect(new: BoolArray) -> FloatArray:
        of_new, sums = (new & known).sum(axis=1), new @ filled
        return np.abs(_share(sums, of_new) - _share(total - sums, known.sum() - of_new))

    return effect


def mix(names: ArrayLike) -> Effect:
    """Return the effect of categories [N]: the share of images that would have to change theirs, 0 to 1.

    It is the total variation distance.
    """
    _, codes = np.unique(np.asarray(names), return_inverse=True)
    each = np.eye(int(codes.max(initial=-1)) + 1)[codes]
    total = each.sum(axis=0)

    def effect(new: BoolArray) -> FloatArray:
        counts, of_new = new @ each, new.sum(axis=1, keepdims=True)
        return np.asarray(np.abs(_share(counts, of_new) - _share(total - counts, len(codes) - of_new)).sum(axis=1) / 2)

    return effect


def discrepancy(features: ArrayLike) -> Effect:
    """Return the effect of features [N, D], rows of NaN where unknown: the maximum mean discrepancy.

    Gretton et al., *A kernel two-sample test*, JMLR 2012: the distance between the two samples' mean embeddings under
    a Gaussian kernel as wide as the median distance; the square root of the unbiased estimate, 0 where that is
    negative. 0 is no difference, 1.41 the most.
    """
    rows = np.asarray(features, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(rows).any(axis=1))
    rows = rows[known]
    squares = np.sum(rows**2, axis=1)
    apart = np.maximum(squares[:, None] + squares[None] - 2 * rows @ rows.T, 0)
    width = float(np.median(apart[np.triu_indices(len(rows), 1)])) if len(rows) > 1 else 1.0
    kernel = np.exp(-apart / (width or 1.0)).astype(np.float32)
    np.fill_diagonal(kernel, 0)
    whole, to_all = float(kernel.sum()), kernel.sum(axis=1)

    def effect(new: BoolArray) -> FloatArray:
        inside = new[:, known].astype(np.float32)
        m = inside.sum(axis=1, dtype=np.float64)
        n = len(known) - m
        among_new = ((inside @ kernel) * inside).sum(axis=1, dtype=np.float64)
        across = inside @ to_all - among_new
        among_old = whole - among_new - 2 * across
        squared = _share(among_new, m * (m - 1)) + _share(among_old, n * (n - 1)) - 2 * _share(across, m * n)
        return np.sqrt(np.maximum(squared, 0))

    return effect


def _share(part: ArrayLike, whole: ArrayLike) -> FloatArray:
    """Divide; NaN where there is nothing to divide by."""
    above, below = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    divided: FloatArray = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    return divided

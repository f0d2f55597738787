"""DeLong's variance of areas under ROC curves, and the test whether two of them differ.

An area is a mean twice over: over the positives, of the share of negatives that each outscores, and
over the negatives, of the share of positives that outscore each. The spread of these *placements* gives
the covariance of the areas of several models on the same images (DeLong, DeLong and Clarke-Pearson
1988). Placements come from sorting, in N log N instead of all pairs (Sun and Xu 2014), ties counting half.

DeLong takes every image as independent. Where patients have several images its intervals are too narrow:
then use the bootstrap over patients of `wetread.evaluate.intervals`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erfc, sqrt

import numpy as np
from numpy.typing import ArrayLike

from wetread.errors import WetreadError
from wetread.evaluate.intervals import Interval, Z
from wetread.evaluate.metrics import FloatArray, validate


@dataclass(frozen=True)
class Areas:
    """Areas under the ROC curves of several models on the same images.

    Attributes
    ----------
    value : float64 [M]
        NaN without a positive or a negative.
    covariance : float64 [M, M]
        NaN with fewer than two positives or two negatives.
    """

    value: FloatArray
    covariance: FloatArray


@dataclass(frozen=True)
class Difference:
    """How much larger one area is than another, with its 95 % interval and two-sided p-value.

    Without limits (NaN) where no variance exists; limits 0, 0 and p = 1 for scores of the same order.
    """

    value: float
    low: float
    high: float
    p: float


def areas(labels: ArrayLike, scores: ArrayLike) -> Areas:
    """Return areas under ROC curves with their covariance.

    Parameters
    ----------
    labels : array_like of float [N]
        1, 0; images with -1 or NaN are left out.
    scores : array_like of float [M, N]
        One row per model; any finite numbers.

    Raises
    ------
    WetreadError
        For arrays of the wrong shape or content.
    """
    rows = np.asarray(scores, dtype=np.float64)
    if rows.ndim != 2 or not len(rows):
        raise WetreadError(f"scores {rows.shape}: give one row of scores for each model")
    by_positive, by_negative = zip(*(placements(labels, row) for row in rows), strict=True)
    positive, negative = np.array(by_positive), np.array(by_negative)
    n1, n0 = positive.shape[1], negative.shape[1]
    if not n1 or not n0:
        return Areas(np.full(len(rows), np.nan), np.full((len(rows), len(rows)), np.nan))
    value = positive.mean(axis=1)
    if min(n1, n0) < 2:
        return Areas(value, np.full((len(rows), len(rows)), np.nan))
    covariance = np.atleast_2d(np.cov(positive)) / n1 + np.atleast_2d(np.cov(negative)) / n0
    return Areas(value, covariance)


def auroc(labels: ArrayLike, scores: ArrayLike) -> Interval:
    """Return the area under the ROC curve with DeLong's 95 % interval (Wald, cut at 0 and 1), images independent.

    Parameters
    ----------
    labels, scores : array_like of float [N]

    Returns
    -------
    Interval
        Without limits where no variance exists: one positive or negative, or all told apart.
    """
    found = areas(labels, np.asarray(scores, dtype=np.float64)[None])
    value, variance = float(found.value[0]), float(found.covariance[0, 0])
    if not variance > 0:
        return Interval(value, float("nan"), float("nan"))
    half = Z * sqrt(variance)
    return Interval(value, max(0.0, value - half), min(1.0, value + half))


def difference(labels: ArrayLike, new: ArrayLike, old: ArrayLike) -> Difference:
    """Compare the areas of two models on the same images, which are taken as independent.

    Parameters
    ----------
    labels, new, old : array_like of float [N]
        The same images in the same order.
    """
    return contrast(areas(labels, np.array([new, old], dtype=np.float64)), 0, 1)


def contrast(found: Areas, new: int, old: int) -> Difference:
    """Compare two of several areas, by their rows."""
    value = float(found.value[new] - found.value[old])
    covariance = found.covariance
    variance = float(covariance[new, new] + covariance[old, old] - 2 * covariance[new, old])
    if np.isnan(value) or np.isnan(variance):
        return Difference(value, float("nan"), float("nan"), float("nan"))
    if variance <= 1e-15:  # rounding of identical placements
        same = abs(value) < 1e-9
        return Difference(0.0, 0.0, 0.0, 1.0) if same else Difference(value, *3 * (float("nan"),))
    error = sqrt(variance)
    return Difference(value, value - Z * error, value + Z * error, erfc(abs(value) / error / sqrt(2)))


def placements(labels: ArrayLike, scores: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return for each positive the share of negatives below it, for each negative that of positives above it."""
    _, positive, values = validate(labels, scores)
    high, low = values[positive], values[~positive]
    return _below(high, low), 1 - _below(low, high)


def _below(these: FloatArray, others: FloatArray) -> FloatArray:
    """Return the share of `others` below each of `these`, ties half."""
    ordered = np.sort(others)
    count = np.searchsorted(ordered, these, "left") + np.searchsorted(ordered, these, "right")
    return np.asarray(count / (2 * max(1, others.size)))

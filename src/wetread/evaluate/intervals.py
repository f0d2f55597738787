"""How sure a number is: 95 % intervals by resampling patients.

Images of one patient resemble each other, so the bootstrap draws patients, not images, and takes
all images of a drawn patient (cluster bootstrap; Efron and Tibshirani 1993). A resample is a
weight for each image, how often it was drawn, and every statistic takes weights: nothing is
copied or sorted again. The same seed and groups give the same resamples, so that two models
compared on them are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from wetread.errors import WetreadError
from wetread.evaluate.metrics import Counts, FloatArray, Ranking, ratio

LEVEL = 0.95
Z = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""

_BLOCK = 1_000_000  # weights held at a time: 8 MB, for which sorting rows into order was fastest


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval.

    Attributes
    ----------
    value, low, high : float
        NaN where undefined.
    defined : float
        Share of the resamples in which the value exists; below 1 the interval leans on the others.
    """

    value: float
    low: float
    high: float
    defined: float = 1.0


def resamples(groups: ArrayLike, count: int = 1000, seed: int = 0) -> Iterator[FloatArray]:
    """Draw patients with replacement, block by block.

    Parameters
    ----------
    groups : array_like [N]
        Patient of each image, any values that can be compared.
    count : int
        Number of resamples.
    seed : int

    Yields
    ------
    ndarray of float64 [r, N]
        How often each image was drawn; all blocks together have `count` rows, whatever their size.

    Raises
    ------
    WetreadError
        Without a patient or a resample.
    """
    patients, member = np.unique(np.asarray(groups), return_inverse=True)
    if not patients.size or count < 1:
        raise WetreadError(f"bootstrap: {patients.size} patients and {count} resamples; at least one of each is needed")
    rng = np.random.default_rng(seed)
    size = max(1, _BLOCK // member.size)
    for start in range(0, count, size):
        rows = min(size, count - start)
        drawn = rng.integers(0, patients.size, (rows, patients.size)) + patients.size * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * patients.size).reshape(rows, patients.size)
        yield times.astype(np.float64)[:, member]


def percentiles(value: float, sample: FloatArray) -> Interval:
    """Return a statistic with the percentile interval of its resamples.

    Parameters
    ----------
    value : float
        The statistic of the data themselves.
    sample : float64 [R]
        The statistic of each resample; NaN where it does not exist there.

    Returns
    -------
    Interval
        Without limits when the value does not exist, or exists in fewer than half of the resamples.
    """
    exists = ~np.isnan(sample)
    if np.isnan(value) or exists.mean() < 0.5:
        return Interval(value, float("nan"), float("nan"), float(exists.mean()))
    low, high = np.quantile(sample[exists], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high), float(exists.mean()))


def interval(value: float, sample: FloatArray, *, trials: int = 0) -> Interval:
    """Return a statistic with its interval, also where resampling is blind.

    When nothing was missed no resample can miss anything, and the percentiles shrink to the value. A share of
    `trials` patients then gets its Wilson interval; any other statistic gets no limits.

    Parameters
    ----------
    value, sample
        As `percentiles`.
    trials : int
        For a share: the number of patients that it is a share of.
    """
    found = percentiles(value, sample)
    if found.low < found.high or np.isnan(found.low):
        return found
    low, high = wilson(value * trials, trials)
    return Interval(value, float(low), float(high), found.defined)


def bootstrap(
    statistic: Callable[[FloatArray], FloatArray], groups: ArrayLike, *, count: int = 1000, seed: int = 0
) -> tuple[float, FloatArray]:
    """Return a statistic of the data themselves, and of each resample of patients (float64 [count]).

    Parameters
    ----------
    statistic : callable
        Takes weights float64 [r, N] and returns float64 [r].
    groups, count, seed
        As `resamples`.
    """
    sample = np.concatenate([statistic(weights) for weights in resamples(groups, count, seed)])
    return float(statistic(np.ones((1, np.asarray(groups).size)))[0]), sample


def auroc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, *, count: int = 1000, seed: int = 0) -> Interval:
    """Return the area under the ROC curve with its interval over patients; none when all are told apart."""
    ranking = Ranking(labels, scores).merged()
    return interval(*bootstrap(lambda weights: ranking.counts(weights).auroc(), groups, count=count, seed=seed))


def difference(
    metric: Callable[[Counts], FloatArray],
    labels: ArrayLike,
    new: ArrayLike,
    old: ArrayLike,
    groups: ArrayLike,
    *,
    count: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return how much better the new scores are than the old, on the same resamples of patients.

    Parameters
    ----------
    metric : callable
        From counts to one value per resample, e.g. `Counts.auroc` or
        ``lambda counts: counts.at(0.5).sensitivity``.
    labels, new, old : array_like of float [N]
        The same images in the same order.
    groups : array_like [N]
        Patient of each image.

    Returns
    -------
    Interval
        Of metric(new) - metric(old); an interval that holds 0 is no evidence of a difference.
    """
    first, second = Ranking(labels, new), Ranking(labels, old)
    if metric in (Counts.auroc, Counts.average_precision):
        first, second = first.merged(), second.merged()
    return percentiles(
        *bootstrap(
            lambda weights: metric(first.counts(weights)) - metric(second.counts(weights)),
            groups,
            count=count,
            seed=seed,
        )
    )


def wilson(successes: ArrayLike, trials: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return the 95 % interval of a proportion (Wilson 1927), for independent trials; NaN for none.

    Parameters
    ----------
    successes, trials : array_like of float, same shape
    """
    k, n = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    p = ratio(k, n)
    middle = ratio(k + Z**2 / 2, n + Z**2)
    half = Z * np.sqrt(ratio(p * (1 - p), n) + ratio(Z**2, 4 * n**2)) * ratio(n, n + Z**2)
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)

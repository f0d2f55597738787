"""Where to cut the scores of one finding: for a sensitivity that is proved, by Youden's index, or by what errors cost.

A threshold lies in the middle, in log-odds, between the scores that it parts, so that rounding in another runtime
does not move an image across it. Fit on validation, never on test.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma

import numpy as np
from numpy.typing import ArrayLike

from wetread.errors import WetreadError
from wetread.evaluate.calibration import logit, sigmoid
from wetread.evaluate.metrics import Counts, FloatArray, Ranking, ratio, validate

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Threshold:
    """Where to cut, and what that gives on the images that it was fitted on.

    Attributes
    ----------
    value : float
        At or above it a finding is flagged.
    sensitivity, specificity : float
    proved : float
        One-sided 95 % lower limit of the sensitivity (Clopper and Pearson 1934), images taken as independent.
    """

    value: float
    sensitivity: float
    specificity: float
    proved: float


def for_sensitivity(labels: ArrayLike, probability: ArrayLike, sensitivity: float) -> Threshold:
    """Return the highest threshold whose sensitivity is proved to reach a target.

    Parameters
    ----------
    labels : array_like of float [N]
        1, 0; -1 and NaN are left out.
    probability : array_like of float [N], 0 to 1
    sensitivity : float
        Target of the one-sided 95 % lower limit, between 0 and 1. Where the positives are too few to prove it, the
        threshold misses none of them, and `proved` says what that shows.

    Raises
    ------
    WetreadError
        For a target that cannot be proved, without a positive or a negative, or for bad labels or probabilities.
    """
    counts = _counts(labels, probability)
    check_sensitivity(sensitivity)
    return _describe(counts, safe(counts, allowed_misses(int(counts.tp[0, -1]), sensitivity)))


def youden(labels: ArrayLike, probability: ArrayLike) -> Threshold:
    """Return the threshold at the top of sensitivity + specificity (Youden 1950); see `best`."""
    counts = _counts(labels, probability)
    return _describe(counts, best(counts))


def at_cost(labels: ArrayLike, probability: ArrayLike, cost: float, *, prevalence: float | None = None) -> Threshold:
    """Return the threshold at which errors cost least.

    Parameters
    ----------
    labels, probability : array_like of float [N]
    cost : float
        How many false alarms one missed finding costs; above 0. For calibrated probabilities the threshold comes near
        1 / (1 + cost) (Elkan 2001), whatever the prevalence.
    prevalence : float, optional
        Where the threshold will be used, between 0 and 1; by default that of these images.

    Raises
    ------
    WetreadError
        For a cost or prevalence out of range, without a positive or a negative, or for bad labels or probabilities.
    """
    counts = _counts(labels, probability)
    return _describe(counts, best(counts, *cost_weights(counts, cost, prevalence)))


def cost_weights(counts: Counts, cost: float, prevalence: float | None = None) -> tuple[float, float]:
    """Return what sensitivity and specificity are worth where a miss costs `cost` false alarms.

    Raises
    ------
    WetreadError
        For a cost or prevalence out of range.
    """
    n1, n0 = counts.tp[0, -1], counts.fp[0, -1]
    share = n1 / (n1 + n0) if prevalence is None else prevalence
    if not 0 < cost < np.inf:
        raise WetreadError(f"cost: {cost:g} is none; give how many false alarms one missed finding costs, e.g. 10")
    if not 0 < share < 1:
        raise WetreadError(f"prevalence: {share:g} is none; give a share between 0 and 1")
    return float(cost * share), float(1 - share)


def best(counts: Counts, worth: float = 1.0, other: float = 1.0) -> float:
    """Return the threshold at the top of worth · sensitivity + other · specificity.

    The top is flat and noisy, so the threshold is the middle, in log-odds, of all its neighbours within one standard
    error of it. In simulations with 10 to 1,000 positives the loss against the true optimum was a tenth to nearly a
    half smaller than with the top itself. It flags neither nothing nor everything.
    """
    tp, fp = counts.tp[0], counts.fp[0]
    n1, n0 = tp[-1], fp[-1]
    benefit = worth * tp / n1 - other * fp / n0
    top = 1 + int(np.argmax(benefit[1:-1]))  # neither nothing nor everything flagged
    a, b = (tp[top] + 1) / (n1 + 2), (fp[top] + 1) / (n0 + 2)
    good = benefit >= benefit[top] - np.sqrt(worth**2 * a * (1 - a) / n1 + other**2 * b * (1 - b) / n0)
    good[[0, -1]] = False
    bad = np.flatnonzero(~good)
    return between(counts, int(bad[bad < top].max()) + 1, int(bad[bad > top].min()) - 1)


def safe(counts: Counts, misses: int) -> float:
    """Return the highest threshold below which at most `misses` positives lie."""
    column = max(int(np.argmax(counts.tp[0] >= counts.tp[0, -1] - misses)), 1)
    return between(counts, column, column)


def lowest(counts: Counts, specificity: float, ppv: float = 0.0) -> float:
    """Return the lowest threshold with at least this specificity and more than this PPV, or 1."""
    tp, fp = counts.tp[0], counts.fp[0]
    enough = (1 - ratio(fp, fp[-1]) >= specificity) & (ratio(tp, tp + fp) > ppv)  # NaN: nothing flagged
    return between(counts, last := int(np.flatnonzero(enough).max()), last) if enough.any() else 1.0


def between(counts: Counts, first: int, last: int) -> float:
    """Return the middle, in log-odds, of the thresholds that flag columns `first` to `last` of the counts."""
    upper = counts.thresholds[first]
    lower = counts.thresholds[last + 1] if last + 1 < counts.thresholds.size else upper / 2
    middle = float(sigmoid((logit(upper) + logit(lower)) / 2))
    return middle if lower < middle <= upper else float(upper)  # rounding of neighbours


def check_sensitivity(sensitivity: float) -> None:
    """Raise `WetreadError` for a sensitivity that no number of images can prove."""
    if not 0 < sensitivity < 1:
        raise WetreadError(f"sensitivity: {sensitivity:g} cannot be proved; choose a value between 0 and 1, e.g. 0.98")


def allowed_misses(positives: int, sensitivity: float) -> int:
    """Return how many of the positives may be missed while `sensitivity` is proved; 0 also if it cannot be."""
    most = min(positives, int(positives * (1 - sensitivity)) + 1)  # the mean; the median is not above the next
    chance = _at_most(most, positives, 1 - sensitivity)  # of so few misses, were the sensitivity no better
    return max(0, int((chance <= 1 - CONFIDENCE).sum()) - 1)


def proved_sensitivity(misses: int, positives: int) -> float:
    """Return the one-sided 95 % lower limit (Clopper and Pearson 1934) of a sensitivity.

    It is the sensitivity at which so few misses would have had a chance of 5 %, found by bisection.
    """
    if misses >= positives:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if _at_most(misses, positives, 1 - middle)[-1] <= 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return low


def _at_most(most: int, trials: int, chance: float) -> FloatArray:
    """Return the binomial chances of at most 0, 1 ... `most` successes."""
    k = np.arange(most + 1)
    ways = lgamma(trials + 1) - np.array([lgamma(i + 1) + lgamma(trials - i + 1) for i in range(most + 1)])
    return np.cumsum(np.exp(ways + k * np.log(chance) + (trials - k) * np.log1p(-chance)))


def _counts(labels: ArrayLike, probability: ArrayLike) -> Counts:
    validate(labels, probability, probability=True)
    counts = Ranking(labels, probability).counts()
    n1, n0 = int(counts.tp[0, -1]), int(counts.fp[0, -1])
    if not n1 or not n0 or counts.thresholds.size < 3:
        raise WetreadError(
            f"threshold: {n1} images with the finding, {n0} without, {counts.thresholds.size - 1} distinct"
            " probabilities; both kinds and two probabilities are needed"
        )
    return counts


def _describe(counts: Counts, value: float) -> Threshold:
    table = counts.at(value)
    misses, positives = int(table.fn[0]), int(counts.tp[0, -1])
    return Threshold(
        value, float(table.sensitivity[0]), float(table.specificity[0]), proved_sensitivity(misses, positives)
    )

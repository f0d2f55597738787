"""Standard errors of areas and shares over patients, in closed form, and differences between them.

Every statistic here is, up to a term that vanishes, a sum over images: its *influences*. The influences of one
patient's images are added up, and the spread of the sums over patients gives the variance (the sandwich of
Liang and Zeger 1986; for the area under the ROC curve the clustered DeLong variance of Obuchowski 1997). The
difference of two statistics has the difference of their influences, also when they share patients. A
bootstrap says the same, a thousand times slower: slices by findings by metrics are many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import erfc, sqrt

import numpy as np
from numpy.typing import NDArray

from wetread.evaluate.calibration import logit, sigmoid
from wetread.evaluate.delong import placements
from wetread.evaluate.intervals import Interval, Z, wilson
from wetread.evaluate.metrics import BoolArray, FloatArray

NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A statistic of some of N images.

    Attributes
    ----------
    value : float
        NaN where undefined.
    influence : float64 [N]
        How much each image moves the value; 0 for images that do not count.
    trials : int
        Patients behind a share; 0 for an area.
    interval : Interval
    """

    value: float
    influence: FloatArray
    trials: int
    interval: Interval


@dataclass(frozen=True)
class Contrast:
    """A difference with its 95 % interval and two-sided p-value; NaN where undefined."""

    value: float
    low: float
    high: float
    p: float


def standard_error(influence: FloatArray, patient: NDArray[np.intp]) -> float:
    """Return the standard error that influences [N] of images of `patient` [N] (0, 1, 2 ...) give."""
    counted = np.zeros(int(patient.max(initial=-1)) + 1, dtype=bool)
    counted[patient[influence != 0]] = True
    sums = np.bincount(patient, weights=influence, minlength=counted.size)[counted]
    return sqrt(float((sums**2).sum()) * sums.size / (sums.size - 1)) if sums.size > 1 else 0.0


def area(positive: BoolArray, score: FloatArray, chosen: BoolArray, patient: NDArray[np.intp]) -> Estimate:
    """Return the area under the ROC curve of the chosen images; all arrays [N]. Its interval is Wald's in log-odds."""
    rows = np.flatnonzero(chosen)
    influence = np.zeros(chosen.size)
    y = positive[rows]
    if not y.any() or y.all():
        return Estimate(NAN, influence, 0, Interval(NAN, NAN, NAN, 0.0))
    by_positive, by_negative = placements(y.astype(np.float64), score[rows])
    value = float(by_positive.mean())
    influence[rows[y]] = (by_positive - value) / by_positive.size
    influence[rows[~y]] = (by_negative - value) / by_negative.size
    return Estimate(value, influence, 0, _wald(value, standard_error(influence, patient)))


def _wald(value: float, error: float) -> Interval:
    """Return the interval in log-odds, which stays between 0 and 1; none at either end or without an error."""
    if not error or not 0 < value < 1:
        return Interval(value, NAN, NAN)
    half = Z * error / (value * (1 - value))
    low, high = (float(sigmoid(logit(value) + sign * half)) for sign in (-1, 1))
    return Interval(value, low, high)


def share(hit: BoolArray, chosen: BoolArray, patient: NDArray[np.intp]) -> Estimate:
    """Return the share of hits among the chosen images; all arrays [N].

    Its interval is Wilson's with the effective number of images: as many independent ones as would give the
    clustered standard error (Korn and Graubard 1998), at least the patients, at most the images.
    """
    influence = np.zeros(chosen.size)
    count = int(chosen.sum())
    if not count:
        return Estimate(NAN, influence, 0, Interval(NAN, NAN, NAN, 0.0))
    value = float(hit[chosen].mean())
    influence[chosen] = (hit[chosen] - value) / count
    error = standard_error(influence, patient)
    patients = int(np.unique(patient[chosen]).size)
    effective = min(count, value * (1 - value) / error**2) if error else patients
    low, high = wilson(value * effective, effective)
    return Estimate(value, influence, patients, Interval(value, float(low), float(high)))


def f1(hit: BoolArray, positive: BoolArray, flagged: BoolArray, patient: NDArray[np.intp]) -> Estimate:
    """Return F1, ``2 hits / (positives + flagged)``, of images [N]; its interval is Wald's in log-odds."""
    whole = positive.astype(np.float64) + flagged
    total = float(whole.sum())
    if not total:
        return Estimate(NAN, np.zeros(hit.size), 0, Interval(NAN, NAN, NAN, 0.0))
    value = float(2 * hit.sum() / total)
    influence: FloatArray = (2.0 * hit - value * whole) / total
    return Estimate(value, influence, 0, _wald(value, standard_error(influence, patient)))


def contrast(one: Estimate, other: Estimate, patient: NDArray[np.intp]) -> Contrast:
    """Compare two statistics of the same N images.

    The standard error of a difference of shares is never below that of Agresti and Caffo (2000), which puts a
    success and a failure of its own on each side: where all of few patients are right, nothing seems to vary.
    """
    return _contrast(
        one, other, patient, least=_agresti_caffo(one) + _agresti_caffo(other) if one.trials and other.trials else 0.0
    )


def paired(one: BoolArray, other: BoolArray, chosen: BoolArray, patient: NDArray[np.intp]) -> Contrast:
    """Compare the shares of hits of two judges among the *same* chosen images; all arrays [N].

    As Bonett and Price (2012) do for independent ones, a patient of its own is put on either kind of difference: where
    both judge alike in all of few patients, nothing seems to vary. The interval is narrower than that of two groups as
    far as both are right in the same images.
    """
    first, second = (share(hit, chosen, patient) for hit in (one, other))
    return _contrast(first, second, patient, added=2 / (first.trials + 2) ** 2)


def _contrast(
    one: Estimate, other: Estimate, patient: NDArray[np.intp], *, least: float = 0.0, added: float = 0.0
) -> Contrast:
    """Contrast with a variance that is at least so much, or has so much added."""
    value = one.value - other.value
    if np.isnan(value):
        return Contrast(NAN, NAN, NAN, NAN)
    error = sqrt(max(least, standard_error(one.influence - other.influence, patient) ** 2 + added))
    if not error:
        return Contrast(value, NAN, NAN, NAN)
    return Contrast(value, value - Z * error, value + Z * error, erfc(abs(value) / error / sqrt(2)))


def _agresti_caffo(estimate: Estimate) -> float:
    chance = (estimate.value * estimate.trials + 1) / (estimate.trials + 2)
    return chance * (1 - chance) / (estimate.trials + 2)


def holm(p: FloatArray) -> FloatArray:
    """Return p-values [M] adjusted so that the chance of any false alarm keeps its level (Holm 1979).

    NaN is no test: it is not counted and stays NaN.
    """
    return _adjust(p, lambda ordered: np.maximum.accumulate(ordered * np.arange(ordered.size, 0, -1)))


def benjamini_hochberg(p: FloatArray) -> FloatArray:
    """Return p-values [M] adjusted so that the share of false alarms keeps its level (Benjamini and Hochberg 1995)."""
    return _adjust(
        p,
        lambda ordered: np.minimum.accumulate((ordered * ordered.size / np.arange(1, ordered.size + 1))[::-1])[::-1],
    )


def _adjust(p: FloatArray, rule: Callable[[FloatArray], FloatArray]) -> FloatArray:
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    result = np.full(p.shape, np.nan)
    result[order] = np.minimum(rule(p[order]), 1.0)
    return result

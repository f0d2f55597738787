"""From scores to chances: Platt scaling per finding, and the reliability curve that checks it.

The tail of every model is the same, here in NumPy and in the exported graph::

    member probabilities → mean → log-odds → slope · x + intercept → sigmoid
        → exclusive task: divided by the sum over the findings (two classes sum to one already)
        → task with a tree: running minimum down the tree, so that parent ≥ child

The slope is positive, so calibration never changes the order of images within a finding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from wetread.errors import WetreadError
from wetread.evaluate.intervals import wilson
from wetread.evaluate.metrics import FloatArray, bin_index, validate
from wetread.findings import Task

MIN_IMAGES = 10
"""Fewest positives, and fewest negatives, from which a finding is calibrated; else it stays as it is."""

MIN_SLOPE = 0.05
"""A finding whose scores say nothing gets (almost) its frequency, without losing its order."""

_PENALTY = 1.0  # pull of the slope towards 1: one strong observation, which matters to small sets only
_LARGEST = 30.0  # log-odds beyond this are certainty in float32


def logit(probability: ArrayLike) -> FloatArray:
    """Return the log-odds of probabilities, limited to ±30."""
    p = np.asarray(probability, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(np.log(p) - np.log1p(-p), -_LARGEST, _LARGEST))


def sigmoid(x: ArrayLike) -> FloatArray:
    """Return the probabilities of log-odds."""
    return np.exp(-np.logaddexp(0, -np.asarray(x, dtype=np.float64)))


def fit_platt(logit: ArrayLike, label: ArrayLike) -> tuple[float, float]:
    """Fit the chance of a finding as sigmoid(slope · logit + intercept).

    Maximum likelihood with the smoothed targets of Platt (1999), (N₊ + 1)/(N₊ + 2) and
    1/(N₋ + 2), found by Newton's method with step halving (Lin, Lin and Weng 2007), a weak pull of
    the slope to 1, and the slope held at `MIN_SLOPE` or above.

    Parameters
    ----------
    logit : array_like of float [N]
        Log-odds of the uncalibrated probability.
    label : array_like of float [N]
        1, 0; -1 and NaN are left out.

    Returns
    -------
    slope : float
        Positive.
    intercept : float
        (1, 0), the identity, with fewer than `MIN_IMAGES` positives or negatives. Swapping present and
        absent negates the intercept and keeps the slope.

    Raises
    ------
    WetreadError
        For labels or log-odds that are not usable.
    """
    _, positive, x = validate(label, logit)
    n1 = int(positive.sum())
    n0 = positive.size - n1
    if min(n1, n0) < MIN_IMAGES:
        return 1.0, 0.0
    x = np.clip(x, -_LARGEST, _LARGEST)
    target = np.where(positive, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))
    slope, intercept = _newton(x, target, 1.0, float(np.log((n1 + 1) / (n0 + 1))), free_slope=True)
    if slope < MIN_SLOPE:  # the loss is convex, so the best allowed slope is the bound
        slope, intercept = _newton(x, target, MIN_SLOPE, intercept, free_slope=False)
    return slope, intercept


def _newton(
    x: FloatArray, target: FloatArray, slope: float, intercept: float, *, free_slope: bool
) -> tuple[float, float]:
    def loss(at: FloatArray) -> float:
        z = at[0] * x + at[1]
        return float((np.logaddexp(0, z) - target * z).sum() + _PENALTY / 2 * (at[0] - 1) ** 2)

    here = np.array([slope, intercept])
    value = loss(here)
    for _ in range(100):
        p = sigmoid(here[0] * x + here[1])
        error, curve = p - target, p * (1 - p)
        gradient = np.array([(error * x).sum() + _PENALTY * (here[0] - 1), error.sum()])
        hessian = np.array([[(curve * x * x).sum() + _PENALTY, (curve * x).sum()], [(curve * x).sum(), curve.sum()]])
        hessian[1, 1] += 1e-12  # all images certain: still invertible
        step = np.linalg.solve(hessian, gradient) if free_slope else np.array([0.0, gradient[1] / hessian[1, 1]])
        scale = 1.0
        while (there := loss(here - scale * step)) > value and scale > 1e-10:
            scale /= 2
        if there > value:
            break
        here, gain, value = here - scale * step, value - there, there
        if gain < 1e-12 * (1 + abs(value)):
            break
    return float(here[0]), float(here[1])


@dataclass(frozen=True)
class Calibration:
    """Slope and intercept of each finding, in the order of the task.

    Attributes
    ----------
    task : Task
    slope, intercept : float64 [F]
        Slopes are positive. Findings that could not be calibrated have 1 and 0.
    """

    task: Task
    slope: FloatArray
    intercept: FloatArray

    def apply(self, probability: ArrayLike) -> FloatArray:
        """Return calibrated probabilities (the tail in the module's docstring), float64 [N, F]."""
        return settle(self.task, sigmoid(self.slope * logit(probability) + self.intercept))


def settle(task: Task, probability: FloatArray) -> FloatArray:
    """Return probabilities [N, F] that agree: divided by their sum (exclusive), or none above its parent's.

    Where all findings of an exclusive task are at 0, each is as likely.
    """
    p = probability
    if task.exclusive:
        total = p.sum(axis=1, keepdims=True)
        return np.where(total > 0, p / np.where(total > 0, total, 1), 1 / p.shape[1])
    column = {finding: index for index, finding in enumerate(task.findings)}
    paths = [[column[step] for step in task.path(finding)] for finding in task.findings]
    return np.stack([p[:, path].min(axis=1) for path in paths], axis=1)


def check(task: Task, probability: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return probabilities and labels as float64 [N, F].

    Raises
    ------
    WetreadError
        When their shapes are not the task's.
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if p.ndim != 2 or p.shape != y.shape or p.shape[1] != len(task.findings):
        raise WetreadError(
            f"probability {p.shape} and labels {y.shape}: task {task.name} needs [images, {len(task.findings)}] of both"
        )
    return p, y


def fit(task: Task, probability: ArrayLike, labels: ArrayLike) -> Calibration:
    """Fit Platt scaling for every finding of a task, on validation images.

    Parameters
    ----------
    task : Task
        Two exclusive findings share one slope and take opposite intercepts, so that they sum to one.
    probability : array_like of float [N, F], 0 to 1
        Before calibration.
    labels : array_like of float [N, F]

    Raises
    ------
    WetreadError
        For arrays of the wrong shape or content.
    """
    p, y = check(task, probability, labels)
    x = logit(p)
    if task.exclusive and len(task.findings) == 2:
        slope, intercept = fit_platt(x[:, 1], y[:, 1])
        return Calibration(task, np.array([slope, slope]), np.array([-intercept, intercept]))
    pairs = np.array([fit_platt(x[:, f], y[:, f]) for f in range(p.shape[1])])
    return Calibration(task, pairs[:, 0], pairs[:, 1])


@dataclass(frozen=True)
class Reliability:
    """Predicted chance against observed frequency, one value per bin that holds images.

    Attributes
    ----------
    predicted, observed : float64 [B]
        Mean probability and share of positives.
    low, high : float64 [B]
        95 % Wilson interval of `observed`.
    count : float64 [B]
        Images in the bin.
    """

    predicted: FloatArray
    observed: FloatArray
    low: FloatArray
    high: FloatArray
    count: FloatArray


def reliability(labels: ArrayLike, probability: ArrayLike, *, bins: int = 10) -> Reliability:
    """Compare predicted chances with observed frequencies in bins of equal size.

    Parameters
    ----------
    labels : array_like of float [N]
    probability : array_like of float [N], 0 to 1
    bins : int
        Most bins; equal probabilities stay together, so there may be fewer.
    """
    _, positive, p = validate(labels, probability, probability=True)
    index = bin_index(p, bins, equal_mass=True)
    count = np.bincount(index, minlength=bins).astype(np.float64)
    used = count > 0
    count = count[used]
    present = np.bincount(index, weights=positive, minlength=bins)[used]
    low, high = wilson(present, count)
    return Reliability(np.bincount(index, weights=p, minlength=bins)[used] / count, present / count, low, high, count)

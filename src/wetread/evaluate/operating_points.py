"""Where to cut a probability: two operating points and the cut-offs of the calls, per finding.

Fitted on validation, never on test. At or above a threshold counts as flagged.

- **screen** comes first to sensitivity: the highest threshold that is *safe*, which means that the one-sided
  95 % Clopper-Pearson limit of its sensitivity still reaches 98 %. With fewer than 149 positives nothing can prove
  that, and safe is the highest threshold that misses none of them. A weak finding would pay for this by flagging
  nearly everybody, which ranks nothing: then screen is the lowest threshold that leaves half of the images without
  the finding alone. `shown` says what sensitivity is proved in the end.
- **balanced** gives a missed positive and a false alarm of either class the same weight (Youden 1950).
  Sensitivity + specificity is a flat and noisy hill, so the threshold is the middle, in log-odds, of
  all the neighbours within one standard error of its top. In simulations with 10 to 1,000 positives
  its loss against the true optimum was a tenth to nearly a half smaller than with the top itself.
- **cut-offs** (low, high) of the three calls: *unlikely* below low, *likely* from high on, *unsure*
  between. Low is the safe threshold. High is the lowest threshold from `balanced` up with a specificity
  of 95 % or more at which more than half of the flagged are positive, or 1 (never *likely*) when there
  is none. Low ≤ screen ≤ balanced ≤ high: what is *unlikely* is flagged at neither point, what is *likely* at both.

The task's normal finding is the other way round: its thresholds are those of "not normal",
mirrored, so that at `screen` an image is called normal only where hardly any abnormal one is.

A threshold lies in the middle, in log-odds, between the scores that it parts, so that rounding in
another runtime does not move an image across it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma

import numpy as np
from numpy.typing import ArrayLike

from wetread.errors import WetreadError
from wetread.evaluate.calibration import logit, sigmoid
from wetread.evaluate.metrics import Counts, FloatArray, Ranking, known, ratio, validate
from wetread.findings import Task

SENSITIVITY = 0.98
CONFIDENCE = 0.95
SPECIFICITY = 0.95
PPV = 0.5
SCREEN_SPECIFICITY = 0.5
MIN_IMAGES = 5
"""Fewest positives, and fewest negatives, in validation; a finding with fewer gets the defaults."""

DEFAULT_SCREEN = 0.5
DEFAULT_BALANCED = 0.5
DEFAULT_CUTOFFS = (0.1, 0.9)


@dataclass(frozen=True)
class Points:
    """Operating points of a task, as probabilities.

    Attributes
    ----------
    screen, balanced : dict of finding to float
        Threshold; at or above it a finding is flagged. Screen ≤ balanced (≥ for the normal finding).
    cutoffs : dict of finding to (float, float)
        (low, high); both thresholds lie between them.
    shown : dict of finding to float
        Sensitivity at `screen` that validation proves with 95 % confidence (of "not normal" for the normal
        finding). Findings with defaults are not in it.
    defaults : list of str
        Findings with too few images of either class to fit anything.
    """

    screen: dict[str, float]
    balanced: dict[str, float]
    cutoffs: dict[str, tuple[float, float]]
    shown: dict[str, float]
    defaults: list[str]


def fit(task: Task, probability: ArrayLike, labels: ArrayLike, *, sensitivity: float = SENSITIVITY) -> Points:
    """Choose the operating points of every finding on validation images.

    Parameters
    ----------
    task : Task
    probability : array_like of float [N, F], 0 to 1
        Calibrated, as the model package gives it.
    labels : array_like of float [N, F]
    sensitivity : float
        What `screen` shall prove, between 0 and 1.

    Raises
    ------
    WetreadError
        For arrays of the wrong shape or content, or a sensitivity that is none.
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if p.ndim != 2 or p.shape != y.shape or p.shape[1] != len(task.findings):
        raise WetreadError(
            f"probability {p.shape} and labels {y.shape}: task {task.name} needs [images, {len(task.findings)}] of both"
        )
    if not 0 < sensitivity < 1:
        raise WetreadError(f"sensitivity: {sensitivity:g} cannot be proved; choose a value between 0 and 1, e.g. 0.98")
    points = Points({}, {}, {}, {}, [])
    for column, finding in enumerate(task.findings):
        mirrored = finding == task.normal
        score, label = p[:, column], y[:, column]
        validate(label, score, probability=True)
        if mirrored:
            score, label = 1 - score, np.where(known(label), 1 - label, np.nan)
        ranking = Ranking(label, score)
        positives = int(ranking.positive.sum())
        if min(positives, ranking.positive.size - positives) < MIN_IMAGES or ranking.thresholds.size < 3:
            points.defaults.append(finding)
            points.screen[finding], points.balanced[finding] = DEFAULT_SCREEN, DEFAULT_BALANCED
            points.cutoffs[finding] = DEFAULT_CUTOFFS
            continue
        counts = ranking.counts()
        misses = allowed_misses(positives, sensitivity)
        balanced = _balanced(counts)
        low = min(_safe(counts, misses), balanced)
        screen = min(max(low, _lowest(counts, SCREEN_SPECIFICITY)), balanced)
        high = max(_lowest(counts, SPECIFICITY, PPV), balanced)
        points.shown[finding] = proved_sensitivity(int(counts.at(screen).fn[0]), positives)
        points.screen[finding] = 1 - screen if mirrored else screen
        points.balanced[finding] = 1 - balanced if mirrored else balanced
        points.cutoffs[finding] = (1 - high, 1 - low) if mirrored else (low, high)
    return points


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


def _between(counts: Counts, first: int, last: int) -> float:
    """Return the middle, in log-odds, of the thresholds that flag columns `first` to `last` of the counts."""
    upper = counts.thresholds[first]
    lower = counts.thresholds[last + 1] if last + 1 < counts.thresholds.size else upper / 2
    middle = float(sigmoid((logit(upper) + logit(lower)) / 2))
    return middle if lower < middle <= upper else float(upper)  # rounding of neighbours


def _safe(counts: Counts, misses: int) -> float:
    column = int(np.argmax(counts.tp[0] >= counts.tp[0, -1] - misses))
    column = max(column, 1)
    return _between(counts, column, column)


def _balanced(counts: Counts) -> float:
    tp, fp = counts.tp[0], counts.fp[0]
    n1, n0 = tp[-1], fp[-1]
    benefit = tp / n1 - fp / n0
    best = 1 + int(np.argmax(benefit[1:-1]))  # neither nothing nor everything flagged
    a, b = (tp[best] + 1) / (n1 + 2), (fp[best] + 1) / (n0 + 2)
    good = benefit >= benefit[best] - np.sqrt(a * (1 - a) / n1 + b * (1 - b) / n0)
    good[[0, -1]] = False
    bad = np.flatnonzero(~good)
    return _between(counts, int(bad[bad < best].max()) + 1, int(bad[bad > best].min()) - 1)


def _lowest(counts: Counts, specificity: float, ppv: float = 0.0) -> float:
    """Return the lowest threshold with at least this specificity and more than this PPV, or 1."""
    tp, fp = counts.tp[0], counts.fp[0]
    enough = (1 - ratio(fp, fp[-1]) >= specificity) & (ratio(tp, tp + fp) > ppv)  # NaN: nothing flagged
    return _between(counts, last := int(np.flatnonzero(enough).max()), last) if enough.any() else 1.0

"""Where to cut a probability: two operating points and the cut-offs of the calls, per finding.

Fitted on validation, never on test. At or above a threshold counts as flagged. Each point follows a rule of
`wetread.evaluate.thresholds`; these are the rules that they follow unless told otherwise:

- **screen** comes first to sensitivity: the highest threshold that is *safe*, which means that the one-sided
  95 % Clopper-Pearson limit of its sensitivity still reaches 98 %. With fewer than 149 positives nothing can prove
  that, and safe is the highest threshold that misses none of them. A weak finding would pay for this by flagging
  nearly everybody, which ranks nothing: then screen is the lowest threshold that leaves half of the images without
  the finding alone. `shown` says what sensitivity is proved in the end.
- **balanced** gives a missed positive and a false alarm of either class the same weight (Youden 1950).
- **cut-offs** (low, high) of the three calls: *unlikely* below low, *likely* from high on, *unsure*
  between. Low is the safe threshold. High is the lowest threshold from `balanced` up with a specificity
  of 95 % or more at which more than half of the flagged are positive, or 1 (never *likely*) when there
  is none. Low ≤ screen ≤ balanced ≤ high: what is *unlikely* is flagged at neither point, what is *likely* at both.

The task's normal finding is the other way round: its thresholds are those of "not normal",
mirrored, so that at `screen` an image is called normal only where hardly any abnormal one is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from wetread.errors import WetreadError
from wetread.evaluate import thresholds
from wetread.evaluate.metrics import Counts, Ranking, known, validate
from wetread.findings import Task

Rule = Literal["sensitivity", "youden", "cost"]

SENSITIVITY = 0.98
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


def fit(
    task: Task,
    probability: ArrayLike,
    labels: ArrayLike,
    *,
    screen: Rule = "sensitivity",
    balanced: Rule = "youden",
    sensitivity: float = SENSITIVITY,
    cost: float = 1.0,
) -> Points:
    """Choose the operating points of every finding on validation images.

    Parameters
    ----------
    task : Task
    probability : array_like of float [N, F], 0 to 1
        Calibrated, as the model package gives it.
    labels : array_like of float [N, F]
    screen, balanced : {"sensitivity", "youden", "cost"}
        How each point is chosen; screen is never above balanced.
    sensitivity : float
        What the rule of that name shall prove, and what the lower cut-off always does; between 0 and 1.
    cost : float
        For the rule of that name: how many false alarms one missed finding costs, at the prevalence of these images.

    Raises
    ------
    WetreadError
        For arrays of the wrong shape or content, or a rule, sensitivity or cost that is none.
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if p.ndim != 2 or p.shape != y.shape or p.shape[1] != len(task.findings):
        raise WetreadError(
            f"probability {p.shape} and labels {y.shape}: task {task.name} needs [images, {len(task.findings)}] of both"
        )
    thresholds.check_sensitivity(sensitivity)
    for name, rule in (("screen", screen), ("balanced", balanced)):
        if rule not in get_args(Rule):
            raise WetreadError(f"{name}: no rule {rule!r}; use {', '.join(get_args(Rule))}")
    points = Points({}, {}, {}, {}, [])

    def cut(counts: Counts, rule: Rule) -> float:
        if rule == "sensitivity":
            misses = thresholds.allowed_misses(int(counts.tp[0, -1]), sensitivity)
            return max(thresholds.safe(counts, misses), thresholds.lowest(counts, SCREEN_SPECIFICITY))
        if rule == "cost":
            return thresholds.best(counts, *thresholds.cost_weights(counts, cost))
        return thresholds.best(counts)

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
        middle = cut(counts, balanced)
        first = min(cut(counts, screen), middle)
        low = min(thresholds.safe(counts, thresholds.allowed_misses(positives, sensitivity)), first)
        high = max(thresholds.lowest(counts, SPECIFICITY, PPV), middle)
        points.shown[finding] = thresholds.proved_sensitivity(int(counts.at(first).fn[0]), positives)
        points.screen[finding] = 1 - first if mirrored else first
        points.balanced[finding] = 1 - middle if mirrored else middle
        points.cutoffs[finding] = (1 - high, 1 - low) if mirrored else (low, high)
    return points


def describe(rules: Mapping[str, Any], point: str) -> str:
    """Return in words how a point was chosen on validation.

    Parameters
    ----------
    rules : mapping
        The keyword arguments of `fit`; those that are missing have its defaults.
    point : {"screen", "balanced"}
    """
    rule = rules.get(point, "sensitivity" if point == "screen" else "youden")
    if rule == "sensitivity":
        target = rules.get("sensitivity", SENSITIVITY)
        return f"the highest threshold whose sensitivity has a lower 95 % limit of {target:.1%} or more"
    if rule == "cost":
        return f"the threshold at which errors cost least, a miss worth {rules.get('cost', 1.0):g} false alarms"
    return "the threshold at the top of sensitivity + specificity"

"""What a reader of the numbers must be told: sentences, in the order of their weight."""

from __future__ import annotations

import numpy as np

from wetread.evaluate import operating_points
from wetread.evaluate.results import Evaluation, FindingResult

FEW = 30
"""Fewer positives (or negatives) than this: percentile intervals are rough."""

WIDE = 0.1
"""Width of an AUROC's interval from which the value should not be quoted without it."""

MISCALIBRATED = 0.1
FLAGS_NEARLY_ALL = 0.9
GIVEN_AWAY = 0.95

TUNED = "These images chose the model's epoch, calibration and thresholds: the figures are too good."
"""For an evaluation on the split that was used for fitting."""


def about(
    result: FindingResult, *, normal: bool = False, aim: float | None = operating_points.SENSITIVITY
) -> tuple[str, ...]:
    """Return the cautions about one finding.

    Parameters
    ----------
    result : FindingResult
    normal : bool
        Whether it is the task's normal finding.
    aim : float, optional
        Sensitivity that the point `screen` was chosen for; None when it follows another rule.
    """
    negatives = result.images - result.positives
    if not result.images:
        return ("No image has a certain label: nothing can be said.",)
    if not result.positives or not negatives:
        lacking = "absent" if not negatives else "present"
        return (f"No image has the finding {lacking}: AUROC and every rate that needs one are undefined.",)
    cautions = []
    if min(result.positives, negatives) < FEW:
        which, count = ("present", result.positives) if result.positives <= negatives else ("absent", negatives)
        plural = "image has" if count == 1 else "images have"
        cautions.append(f"Only {count} {plural} the finding {which}: values are rough and intervals only a guide.")
    area = result.auroc
    if area.low <= 0.5 <= area.high:
        cautions.append("The AUROC's interval holds 0.5: not shown to be better than chance.")
    elif area.high < 0.5:
        cautions.append("The AUROC is below 0.5: scores and labels are the wrong way round.")
    if area.high - area.low > WIDE:
        cautions.append(f"The AUROC's interval is {area.high - area.low:.2f} wide: never quote the value without it.")
    if area.defined < 1:
        cautions.append(f"{1 - area.defined:.0%} of the resamples had no AUROC: the intervals leave them out.")
    if (caution := _given_away(result)) is not None:
        cautions.append(caution)
    if not normal and (screen := result.points.get("screen")) is not None:
        if aim is not None and screen.sensitivity.high < aim:
            cautions.append(
                f"At screen the sensitivity is {screen.sensitivity.value:.1%}, below the "
                f"{aim:.0%} that screening aims at."
            )
        flagged = (screen.tp + screen.fp) / result.images
        if flagged > FLAGS_NEARLY_ALL > result.prevalence.value:
            cautions.append(f"Screen flags {flagged:.0%} of the images: it ranks nothing.")
    defaults = {"screen": operating_points.DEFAULT_SCREEN, "balanced": operating_points.DEFAULT_BALANCED}
    if result.cutoffs == operating_points.DEFAULT_CUTOFFS and all(
        point.threshold == defaults.get(name) for name, point in result.points.items()
    ):
        cautions.append("The thresholds are defaults: validation held too few images of either class to fit them.")
    if result.ece_equal_mass > MISCALIBRATED and result.images >= FEW:
        cautions.append(
            f"Probabilities are off by {result.ece_equal_mass:.2f} on average: they rank, but are no chances here."
        )
    return tuple(cautions)


def _given_away(result: FindingResult) -> str | None:
    """Return a caution when the collection tells the finding almost as well as any model could."""
    pairs = np.array(list(result.sources.values()))
    if len(pairs) < 2 or len(set(pairs.argmax(axis=1))) < 2 or pairs.max(axis=1).sum() < GIVEN_AWAY * pairs.sum():
        return None
    mix = ", ".join(f"{name}: {present} present, {absent} absent" for name, (present, absent) in result.sources.items())
    return f"Source and finding coincide ({mix}): the model may have learnt the source."


def overall(evaluation: Evaluation) -> tuple[str, ...]:
    """Return the cautions about an evaluation as a whole."""
    cautions = []
    if evaluation.patients is None:
        cautions.append("Patients are not known: each image counts as one, so intervals may be too narrow.")
    undefined = [f.finding for f in evaluation.findings if np.isnan(f.auroc.value)]
    if undefined:
        cautions.append(f"Without an AUROC: {', '.join(undefined)}. The mean leaves them out.")
    if few := [f.finding for f in evaluation.findings if 0 < min(f.positives, f.images - f.positives) < FEW]:
        cautions.append(f"Fewer than {FEW} images of one kind: {', '.join(few)}.")
    return tuple(cautions)

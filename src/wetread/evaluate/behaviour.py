"""Whether a model behaves: unmoved by what means nothing, moved by what means something.

After Ribeiro and others 2020 (CheckList). *Invariance*: small changes of a picture (`changes`) must leave every
finding on its side of the operating point. *Direction*: a finding that is put into a phantom, the same body with
and without it, must raise its own probability, and lower that of the normal finding.

A check passes when the 95 % interval of its rate lies wholly within the limit, fails when it lies wholly
outside, and is inconclusive otherwise: more images decide it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wetread.errors import WetreadError
from wetread.evaluate import clustered
from wetread.evaluate.calibration import logit
from wetread.evaluate.changes import CHANGES, Change
from wetread.evaluate.intervals import Interval
from wetread.evaluate.metrics import FloatArray
from wetread.findings import CHEXPERT, Task
from wetread.radiograph import phantom
from wetread.radiograph.pixels import Transform

Score = Callable[[NDArray[np.uint8]], NDArray[np.floating[Any]]]
"""From uint8 [B, 1, H, W] to probabilities [B, F]."""

Verdict = Literal["pass", "fail", "inconclusive"]

MOST_FLIPS = 0.1
"""Largest share of images that a change may move across the operating point."""

LEAST_RISES = 0.9
"""Smallest share of phantoms in which adding a finding must raise it."""

PHANTOM_NAMES = {
    "Effusion": "Pleural Effusion",
    "Mass": "Lung Lesion",
    "Nodule": "Lung Lesion",
    "Pleural_Thickening": "Pleural Other",
}
"""What a finding of another task is called in a phantom."""

_BATCH = 16


@dataclass(frozen=True)
class Check:
    """One expectation.

    Attributes
    ----------
    kind : {"invariance", "direction"}
    name : str
        E.g. ``rotation by 3°``, ``adding Pleural Effusion``.
    finding : str
    images : int
    rate : Interval
        Invariance: share of images that change side. Direction: share of phantoms in which the finding rises
        (the normal finding falls).
    limit : float
        What the rate may be at most (invariance) or must be at least (direction).
    shift : float
        Mean change in log-odds, its size for an invariance, with its sign for a direction.
    verdict : {"pass", "fail", "inconclusive"}
    """

    kind: Literal["invariance", "direction"]
    name: str
    finding: str
    images: int
    rate: Interval
    limit: float
    shift: float
    verdict: Verdict


@dataclass(frozen=True)
class Behaviour:
    """All checks, and the operating point of the sides."""

    point: str
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> Verdict:
        """Fail when any check fails, pass when all pass."""
        return worst([check.verdict for check in self.checks])

    def cautions(self) -> list[str]:
        """Return a sentence for each check that fails."""
        return [
            f"{check.finding}, {check.name}: {check.rate.value:.0%} "
            + ("change side" if check.kind == "invariance" else "answer as expected")
            + f" ({'at most' if check.kind == 'invariance' else 'at least'} {check.limit:.0%} wanted)."
            for check in self.checks
            if check.verdict == "fail"
        ]


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return fail when any is, else inconclusive when any is or there are none, else pass."""
    for verdict in ("fail", "inconclusive"):
        if verdict in verdicts:
            return verdict
    return "pass" if verdicts else "inconclusive"


def judge(rate: Interval, *, at_most: float | None = None, at_least: float | None = None) -> Verdict:
    """Return the verdict on a rate whose whole interval must keep a limit."""
    if np.isnan(rate.low) or np.isnan(rate.high):
        return "inconclusive"
    if at_most is not None:
        return "pass" if rate.high <= at_most else "fail" if rate.low > at_most else "inconclusive"
    assert at_least is not None
    return "pass" if rate.low >= at_least else "fail" if rate.high < at_least else "inconclusive"


def invariance(
    score: Score,
    task: Task,
    pixels: NDArray[np.uint8],
    thresholds: Mapping[str, float],
    *,
    groups: ArrayLike | None = None,
    changes: Mapping[str, Sequence[Change]] = CHANGES,
    at_most: float = MOST_FLIPS,
) -> list[Check]:
    """Count how often a change moves a finding across its threshold.

    Parameters
    ----------
    score : callable
        From uint8 [B, 1, H, W] to probabilities [B, F].
    task : Task
    pixels : uint8 array, shape [N, H, W]
        As the model sees them.
    thresholds : mapping of finding to float
    groups : array_like [N], optional
        Patient of each image; by default each image is one.
    changes : mapping of name to changes
        Image n takes change n modulo their number.
    at_most : float
        Limit of the rate, 0 to 1.

    Raises
    ------
    WetreadError
        Without an image.
    """
    if pixels.ndim != 3 or not len(pixels):
        raise WetreadError(f"pixels {pixels.shape}: behaviour needs one image or more, [images, height, width]")
    patient = np.unique(np.arange(len(pixels)) if groups is None else np.asarray(groups), return_inverse=True)[1]
    everywhere = np.ones(len(pixels), dtype=bool)
    before = _score(score, pixels)
    checks = []
    for name, kind in changes.items():
        changed = np.stack([kind[n % len(kind)](np.asarray(image)) for n, image in enumerate(pixels)])
        after = _score(score, changed)
        for f, finding in enumerate(task.findings):
            flips = (before[:, f] >= thresholds[finding]) != (after[:, f] >= thresholds[finding])
            rate = clustered.share(flips, everywhere, patient).interval
            moved = float(np.abs(logit(after[:, f]) - logit(before[:, f])).mean())
            verdict = judge(rate, at_most=at_most)
            checks.append(Check("invariance", name, finding, len(pixels), rate, at_most, moved, verdict))
    return checks


def direction(
    score: Score,
    task: Task,
    transform: Transform,
    *,
    count: int = 40,
    seed: int = 0,
    at_least: float = LEAST_RISES,
    findings: Sequence[str] | None = None,
) -> list[Check]:
    """Put findings into healthy phantoms and see whether the model notices.

    Parameters
    ----------
    score : callable
        From uint8 [B, 1, H, W] to probabilities [B, F].
    task : Task
        Findings that phantoms do not have are left out.
    transform : Transform
        From a phantom to what the model sees.
    count : int
        Bodies; each is drawn once healthy and once with each finding.
    seed : int
        Of the bodies.
    at_least : float
        Limit of the rate, 0 to 1.
    findings : sequence of str, optional
        Which of the task's findings to add; by default all that phantoms have.
    """
    known = {f: PHANTOM_NAMES.get(f, f) for f in (findings or task.findings) if f != task.normal}
    known = {f: name for f, name in known.items() if name in CHEXPERT.findings and name != CHEXPERT.normal}
    if not known:
        return []
    bodies = [(phantom.patient_seed(seed, n), "PA" if n % 2 else "AP") for n in range(count)]

    def see(added: Sequence[str]) -> FloatArray:
        images = [phantom.make(body, view=view, findings=added).radiograph for body, view in bodies]  # type: ignore[arg-type]
        return _score(score, np.stack([transform(image).array for image in images]))

    column = {finding: index for index, finding in enumerate(task.findings)}
    patient, everywhere = np.arange(count), np.ones(count, dtype=bool)
    healthy = see(())
    checks = []
    for finding, name in known.items():
        changed = see((name,))
        watched = [(finding, 1.0)]
        if task.normal is not None and name not in CHEXPERT.neutral:
            watched.append((task.normal, -1.0))
        for watch, sign in watched:
            f = column[watch]
            rises = sign * (changed[:, f] - healthy[:, f]) > 0
            rate = clustered.share(rises, everywhere, patient).interval
            moved = float((logit(changed[:, f]) - logit(healthy[:, f])).mean())
            verdict = judge(rate, at_least=at_least)
            checks.append(Check("direction", f"adding {finding}", watch, count, rate, at_least, moved, verdict))
    return checks


def _score(score: Score, pixels: NDArray[np.uint8]) -> FloatArray:
    parts = [
        np.asarray(score(np.ascontiguousarray(pixels[start : start + _BATCH, None])), dtype=np.float64)
        for start in range(0, len(pixels), _BATCH)
    ]
    return np.concatenate(parts)

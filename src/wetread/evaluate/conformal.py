"""Conformal sets: for each finding the answers, present or absent, that cannot be ruled out at a stated error rate.

Split conformal prediction (Vovk, Gammerman and Shafer 2005): images that were not trained on say how strange a
probability may be for a true answer. For a new image from the same source, the set then holds the true answer with a
chance of at least 1 - alpha, whatever the model is worth; a poor model pays with sets that hold both answers. By
class (Mondrian, the default) this holds among the images with the finding and among those without it, each on their
own, so that a rare finding is not drowned by the many normal images.

The promise is about images drawn like those of the fit. Another hospital breaks it; so, mildly, do patients with many
images. `coverage` measures what is left of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wetread.errors import WetreadError
from wetread.evaluate import exclusive, metrics
from wetread.evaluate.intervals import Interval, wilson
from wetread.evaluate.metrics import BoolArray, FloatArray, validate
from wetread.findings import Task

ALPHA = 0.1


@dataclass(frozen=True)
class Conformal:
    """The cut-offs of the sets, in the order of the task's findings.

    Attributes
    ----------
    task : Task
    alpha : float
        Error rate, between 0 and 1.
    present, absent : float64 [F]
        "Present" is in the set at or above the first, "absent" at or below the second. 0 and 1 (always in the
        set) where the images of the fit are too few to rule anything out: fewer than 1 / alpha - 1.
    """

    task: Task
    alpha: float
    present: FloatArray
    absent: FloatArray

    def sets(self, probability: ArrayLike) -> BoolArray:
        """Return which answers are in the sets of images.

        Parameters
        ----------
        probability : array_like of float [N, F], 0 to 1

        Returns
        -------
        ndarray of bool [N, F, 2]
            "Absent" and "present" of each finding. In an exclusive task ``[:, :, 1]`` is the set of findings that
            one image may have; it holds the true one with a chance of 1 - alpha.
        """
        p = _matrix(self.task, probability)
        return np.stack([p <= self.absent, p >= self.present], axis=2)

    def to_dict(self) -> dict[str, Any]:
        """Return the cut-offs as JSON-ready values; `from_dict` is the inverse."""
        pairs = zip(self.task.findings, self.present.tolist(), self.absent.tolist(), strict=True)
        return {"alpha": self.alpha, "findings": {f: {"present": high, "absent": low} for f, high, low in pairs}}

    @classmethod
    def from_dict(cls, task: Task, values: Mapping[str, Any]) -> Conformal:
        """Build from the values that `to_dict` gives.

        Raises
        ------
        WetreadError
            When a finding or a value is missing or no number from 0 to 1.
        """
        try:
            rows = [values["findings"][finding] for finding in task.findings]
            cuts = np.array([[row["present"], row["absent"]] for row in rows], dtype=np.float64)
            alpha = float(values["alpha"])
        except (KeyError, TypeError, ValueError) as error:
            raise WetreadError(f"conformal: {error} is missing or no number; package the model again") from None
        if not ((cuts >= 0) & (cuts <= 1)).all() or not 0 < alpha < 1:
            raise WetreadError("conformal: a value is not between 0 and 1; package the model again")
        return cls(task, alpha, cuts[:, 0], cuts[:, 1])


def fit(
    task: Task, probability: ArrayLike, labels: ArrayLike, *, alpha: float = ALPHA, by_class: bool = True
) -> Conformal:
    """Fit the sets on images that the model was not trained on.

    Parameters
    ----------
    task : Task
    probability : array_like of float [N, F], 0 to 1
    labels : array_like of float [N, F]
        1, 0; -1 and NaN are left out, finding by finding.
    alpha : float
        Share of the true answers that sets may miss, between 0 and 1.
    by_class : bool
        Keep the promise for present and for absent each; otherwise only over both together (over all findings
        together in an exclusive task), with smaller sets.

    Raises
    ------
    WetreadError
        For arrays of the wrong shape or content, or an alpha that is none.
    """
    p, y = _matrix(task, probability), _matrix(task, labels)
    if len(p) != len(y):
        raise WetreadError(f"probability {p.shape} and labels {y.shape}: give one row of both for each image")
    if not 0 < alpha < 1:
        raise WetreadError(f"alpha: {alpha:g} is no error rate; give a share between 0 and 1, e.g. 0.1")
    present, absent = np.empty((2, len(task.findings)))
    for f in range(len(task.findings)):
        _, positive, score = validate(y[:, f], p[:, f], probability=True)
        if by_class:
            present[f] = 1 - _strangest(1 - score[positive], alpha)
            absent[f] = _strangest(score[~positive], alpha)
        else:
            absent[f] = _strangest(np.where(positive, 1 - score, score), alpha)
            present[f] = 1 - absent[f]
    if task.exclusive and not by_class:
        truth = exclusive.classes(y)
        rows = np.flatnonzero(truth >= 0)
        present[:] = 1 - _strangest(1 - p[rows, truth[rows]], alpha)
    # 1 - (1 - p) may differ from p in the last bit: the image that gave a cut-off stays in.
    return Conformal(task, alpha, np.clip(present - 1e-12, 0, 1), np.clip(absent + 1e-12, 0, 1))


def _strangest(strangeness: FloatArray, alpha: float) -> float:
    """Return how strange a true answer may be: the ceil((n + 1)(1 - alpha))-th smallest of n, or 1 if none is."""
    rank = ceil((strangeness.size + 1) * (1 - alpha) - 1e-9)
    return float(np.sort(strangeness)[rank - 1]) if rank <= strangeness.size else 1.0


@dataclass(frozen=True)
class Coverage:
    """How often the sets of one finding hold the truth, and how much they say.

    Attributes
    ----------
    finding : str
    alpha : float
        Share that the sets may miss.
    present, absent : Interval
        Share of the images with the finding, and of those without it, whose set holds the truth; Wilson limits.
    decided, undecided, empty : float
        Share of sets with one answer, both, and none. An empty set says that the image fits neither.
    """

    finding: str
    alpha: float
    present: Interval
    absent: Interval
    decided: float
    undecided: float
    empty: float


def coverage(
    conformal: Conformal, probability: ArrayLike, labels: ArrayLike, *, groups: ArrayLike | None = None
) -> tuple[Coverage, ...]:
    """Measure the sets on other images than those of the fit.

    Parameters
    ----------
    conformal : Conformal
    probability, labels : array_like of float [N, F]
    groups : array_like [N], optional
        Patient of each image; limits are then those of as many trials as there are patients.

    Returns
    -------
    tuple of Coverage
        In the order of the task; NaN where no image has a certain label.

    Raises
    ------
    WetreadError
        For arrays of the wrong shape or content.
    """
    p, y = _matrix(conformal.task, probability), _matrix(conformal.task, labels)
    patient = np.arange(len(p)) if groups is None else np.asarray(groups)
    if len(p) != len(y) or patient.shape != (len(p),):
        raise WetreadError(f"probability {p.shape}, labels {y.shape}, groups {patient.shape}: one row for each image")
    sets = conformal.sets(p)
    found = []
    for f, finding in enumerate(conformal.task.findings):
        rows, positive, _ = validate(y[:, f], p[:, f], probability=True)
        size = sets[rows, f].sum(axis=1)
        present, absent = (
            _share(sets[rows[these], f, answer], patient[rows[these]])
            for these, answer in ((positive, 1), (~positive, 0))
        )
        decided, undecided, empty = (float(metrics.ratio((size == k).sum(), size.size)) for k in (1, 2, 0))
        found.append(Coverage(finding, conformal.alpha, present, absent, decided, undecided, empty))
    return tuple(found)


def plain(found: tuple[Coverage, ...]) -> dict[str, dict[str, Any]]:
    """Return coverage as JSON-ready values by finding, shares rounded to four decimals, undefined ones None."""

    def number(value: float) -> float | None:
        return None if np.isnan(value) else round(value, 4)

    def triple(value: Interval) -> list[float | None]:
        return [number(v) for v in (value.value, value.low, value.high)]

    return {
        c.finding: {
            "present": triple(c.present),
            "absent": triple(c.absent),
            **{name: number(getattr(c, name)) for name in ("decided", "undecided", "empty")},
        }
        for c in found
    }


@dataclass(frozen=True)
class Choice:
    """How often the set of findings of an image of an exclusive task holds the true one, and its mean size."""

    held: Interval
    size: float


def exclusive_coverage(
    conformal: Conformal, probability: ArrayLike, labels: ArrayLike, *, groups: ArrayLike | None = None
) -> Choice:
    """Measure the sets of findings of an exclusive task; parameters as `coverage`."""
    p, y = _matrix(conformal.task, probability), _matrix(conformal.task, labels)
    truth = exclusive.classes(y)
    rows = np.flatnonzero(truth >= 0)
    patient = np.arange(len(p)) if groups is None else np.asarray(groups)
    chosen = conformal.sets(p)[rows, :, 1]
    size = float(metrics.ratio(chosen.sum(), rows.size))
    return Choice(_share(chosen[np.arange(rows.size), truth[rows]], patient[rows]), size)


def _share(held: BoolArray, patient: Any) -> Interval:
    trials = len(np.unique(patient))
    value = float(metrics.ratio(held.sum(), held.size))
    low, high = wilson(value * trials, trials)
    return Interval(value, float(low), float(high))


def _matrix(task: Task, values: ArrayLike) -> FloatArray:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] != len(task.findings):
        raise WetreadError(f"values {matrix.shape}: task {task.name} needs [images, {len(task.findings)}]")
    return matrix

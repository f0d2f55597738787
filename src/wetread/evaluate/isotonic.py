"""Isotonic calibration: the monotone curve from scores to frequencies that fits best, without a formula for it.

It bends where Platt scaling cannot, and wants some hundred images of each kind for it. Packages do not use it,
although a graph could hold it: its steps give one probability to many images, which loses their order in
the worklist (and the AUROC that came with it), and its slope is 0 there, so that heatmaps, which are
gradients of the log-odds, would vanish. Use it to judge how much Platt scaling leaves on the table, or on scores
whose order within a step does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from wetread.evaluate.calibration import MIN_IMAGES, check, settle
from wetread.evaluate.metrics import FloatArray, validate
from wetread.findings import Task


@dataclass(frozen=True)
class Steps:
    """A monotone curve through knots, straight between them and level beyond.

    Attributes
    ----------
    score, probability : float64 [K]
        Both ascending.
    """

    score: FloatArray
    probability: FloatArray

    def __call__(self, score: ArrayLike) -> FloatArray:
        """Return the calibrated probabilities of scores, same shape."""
        return np.asarray(np.interp(np.asarray(score, dtype=np.float64), self.score, self.probability))


def fit_steps(labels: ArrayLike, scores: ArrayLike) -> Steps | None:
    """Fit the monotone curve of least squares by pooling adjacent violators (Ayer et al. 1955).

    Parameters
    ----------
    labels : array_like of float [N]
        1, 0; -1 and NaN are left out.
    scores : array_like of float [N]
        Any finite numbers.

    Returns
    -------
    Steps or None
        None with fewer than `calibration.MIN_IMAGES` positives or negatives.

    Raises
    ------
    WetreadError
        For labels or scores that are not usable.
    """
    _, positive, values = validate(labels, scores)
    if min(positive.sum(), (~positive).sum()) < MIN_IMAGES:
        return None
    distinct, index, count = np.unique(values, return_inverse=True, return_counts=True)
    found = np.bincount(index, weights=positive)
    blocks: list[list[float]] = []  # positives, images, first and last of the distinct scores
    for k in range(distinct.size):
        blocks.append([found[k], float(count[k]), k, k])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [blocks[-1][0] + last[0], blocks[-1][1] + last[1], blocks[-1][2], last[3]]
    ends = np.array([[first, last] for _, _, first, last in blocks], dtype=np.intp)
    level = np.array([share / images for share, images, *_ in blocks])
    knots, first_of = np.unique(distinct[ends].ravel(), return_index=True)  # a step of one score has one knot
    return Steps(knots, np.repeat(level, 2)[first_of])


@dataclass(frozen=True)
class Isotonic:
    """A curve for each finding of a task, None where it stays as it is; used like `calibration.Calibration`."""

    task: Task
    steps: tuple[Steps | None, ...]

    def apply(self, probability: ArrayLike) -> FloatArray:
        """Return calibrated probabilities, divided by their sum (exclusive) or held down the tree, float64 [N, F]."""
        p = np.asarray(probability, dtype=np.float64)
        columns = [p[:, f] if steps is None else steps(p[:, f]) for f, steps in enumerate(self.steps)]
        return settle(self.task, np.stack(columns, axis=1))


def fit(task: Task, probability: ArrayLike, labels: ArrayLike) -> Isotonic:
    """Fit a curve for every finding of a task, on images that are not judged.

    Parameters
    ----------
    task : Task
    probability : array_like of float [N, F], 0 to 1
    labels : array_like of float [N, F]

    Raises
    ------
    WetreadError
        For arrays of the wrong shape or content.
    """
    p, y = check(task, probability, labels)
    if task.exclusive and len(task.findings) == 2:  # the two curves are mirror images
        second = fit_steps(y[:, 1], p[:, 1])
        first = second and Steps(1 - second.score[::-1], 1 - second.probability[::-1])
        return Isotonic(task, (first, second))
    return Isotonic(task, tuple(fit_steps(y[:, f], p[:, f]) for f in range(p.shape[1])))

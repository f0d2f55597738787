"""How well probabilities name the one finding of an image, for tasks in which exactly one holds.

The finding of the highest probability is the call. Images without exactly one known finding are left out. What
has no answer is NaN; `why_undefined` says why.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wetread.evaluate.metrics import FloatArray, known, ratio


def classes(labels: ArrayLike) -> NDArray[np.intp]:
    """Return the one present finding of each image of an exclusive task.

    Parameters
    ----------
    labels : array_like of float [N, F]

    Returns
    -------
    ndarray of int [N]
        Column of the finding, or -1 where not exactly one is known to be present.
    """
    y = np.asarray(labels, dtype=np.float64)
    present = known(y) & (y == 1)
    return np.where(present.sum(axis=1) == 1, present.argmax(axis=1), -1)


def hits(labels: ArrayLike, probability: ArrayLike) -> FloatArray:
    """Tell for which images of an exclusive task the most probable class is the true one.

    Parameters
    ----------
    labels, probability : array_like of float [N, F]

    Returns
    -------
    ndarray of float64 [N]
        1 right, 0 wrong, NaN where not exactly one finding is known to be present.
    """
    truth = classes(labels)
    return np.where(truth >= 0, truth == np.asarray(probability).argmax(axis=1), np.nan)


def confusion(labels: ArrayLike, probability: ArrayLike) -> NDArray[np.intp]:
    """Count true class (row) against most probable class (column) of an exclusive task.

    Parameters
    ----------
    labels, probability : array_like of float [N, F]

    Returns
    -------
    ndarray of int [F, F]
        Images without one known class are left out.
    """
    p = np.asarray(probability, dtype=np.float64)
    truth, size = classes(labels), p.shape[1]
    rows = truth >= 0
    return np.bincount(truth[rows] * size + p[rows].argmax(axis=1), minlength=size * size).reshape(size, size)


def accuracy(labels: ArrayLike, probability: ArrayLike) -> float:
    """Return the share of images whose most probable class is the true one; NaN without images."""
    right = hits(labels, probability)
    return float(ratio(np.nansum(right), (~np.isnan(right)).sum()))


def recalls(table: ArrayLike) -> FloatArray:
    """Return of each class (row) of a confusion matrix [F, F] the share that is called so; NaN without an image."""
    counts = np.asarray(table, dtype=np.float64)
    return ratio(np.diag(counts), counts.sum(axis=1))


def precisions(table: ArrayLike) -> FloatArray:
    """Return of each call (column) of a confusion matrix [F, F] the share that is right; NaN where never called."""
    counts = np.asarray(table, dtype=np.float64)
    return ratio(np.diag(counts), counts.sum(axis=0))


def f1s(table: ArrayLike) -> FloatArray:
    """Return the harmonic mean of recall and precision of each class, float64 [F]; NaN without an image of it."""
    counts = np.asarray(table, dtype=np.float64)
    rows = counts.sum(axis=1)
    return np.where(rows > 0, ratio(2 * np.diag(counts), rows + counts.sum(axis=0)), np.nan)


def balanced_accuracy(labels: ArrayLike, probability: ArrayLike) -> float:
    """Return the mean recall over the classes that have an image; NaN without images."""
    return _mean(recalls(confusion(labels, probability)))


def macro_f1(labels: ArrayLike, probability: ArrayLike) -> float:
    """Return the mean F1 over the classes that have an image; NaN without images."""
    return _mean(f1s(confusion(labels, probability)))


def mcc(labels: ArrayLike, probability: ArrayLike) -> float:
    """Return the correlation of calls and classes (Gorodkin 2004), -1 to 1.

    0 when all images are called alike; NaN with fewer than two classes.
    """
    counts = confusion(labels, probability).astype(np.float64)
    truth, calls, images = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    spread, called = images**2 - (truth**2).sum(), images**2 - (calls**2).sum()
    if not spread:
        return float("nan")
    return float((np.trace(counts) * images - truth @ calls) / np.sqrt(spread * called)) if called else 0.0


def kappa(labels: ArrayLike, probability: ArrayLike) -> float:
    """Return the agreement of calls and classes beyond chance (Cohen 1960), up to 1; NaN with one class."""
    counts = confusion(labels, probability).astype(np.float64)
    truth, calls, images = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    chance = float(ratio(truth @ calls, images**2))
    return float("nan") if (truth > 0).sum() < 2 else float(ratio(ratio(np.trace(counts), images) - chance, 1 - chance))


def log_loss(labels: ArrayLike, probability: ArrayLike) -> float:
    """Return the mean of -log of the true class's probability (at least 1e-12), in nats; NaN without images."""
    truth, p = classes(labels), np.asarray(probability, dtype=np.float64)
    rows = np.flatnonzero(truth >= 0)
    return float(-np.log(np.clip(p[rows, truth[rows]], 1e-12, 1)).mean()) if rows.size else float("nan")


def why_undefined(labels: ArrayLike) -> str:
    """Return why labels [N, F] give no correlation and no kappa; empty when they do."""
    truth = classes(labels)
    found = np.unique(truth[truth >= 0])
    return (
        ("no image has exactly one known finding", "all images have the same finding")[found.size]
        if found.size < 2
        else ""
    )


def _mean(values: FloatArray) -> float:
    return float(values[~np.isnan(values)].mean()) if (~np.isnan(values)).any() else float("nan")

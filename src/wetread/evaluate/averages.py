"""One figure for many findings: macro averages count findings alike, micro averages count labels alike.

Labels are masked: uncertain (-1) and not mentioned (NaN) are left out, finding by finding. A finding with one class
has no area and no rate; a macro average leaves it out and `left_out` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from wetread.errors import WetreadError
from wetread.evaluate import metrics
from wetread.evaluate.metrics import Confusion, FloatArray


def macro(metric: Callable[[FloatArray, FloatArray], float], labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the mean of a metric over the findings that have it.

    Parameters
    ----------
    metric : callable
        From labels and scores [N] of one finding to a figure, e.g. `metrics.auroc`.
    labels, scores : array_like of float [N, F]

    Returns
    -------
    float
        NaN when no finding has one.

    Raises
    ------
    WetreadError
        For arrays of the wrong shape or content.
    """
    y, s = _pair(labels, scores)
    values = np.array([metric(y[:, f], s[:, f]) for f in range(y.shape[1])])
    return float(values[~np.isnan(values)].mean()) if (~np.isnan(values)).any() else float("nan")


def micro(metric: Callable[[FloatArray, FloatArray], float], labels: ArrayLike, scores: ArrayLike) -> float:
    """Return a metric of all findings' labels and scores together, as if they were one finding's.

    Frequent findings weigh most, and scores must mean the same for all, as calibrated probabilities do.

    Parameters
    ----------
    metric, labels, scores
        As `macro`.
    """
    y, s = _pair(labels, scores)
    return metric(y.ravel(), s.ravel())


def confusions(labels: ArrayLike, scores: ArrayLike, thresholds: ArrayLike) -> list[Confusion]:
    """Return the confusion of each finding at its threshold.

    Parameters
    ----------
    labels, scores : array_like of float [N, F]
    thresholds : array_like of float [F]
    """
    y, s = _pair(labels, scores)
    at = np.broadcast_to(np.asarray(thresholds, dtype=np.float64), (y.shape[1],))
    return [metrics.confusion(y[:, f], s[:, f], float(at[f])) for f in range(y.shape[1])]


def macro_rate(rate: str, labels: ArrayLike, scores: ArrayLike, thresholds: ArrayLike) -> float:
    """Return the mean over findings of a rate of `Confusion`, e.g. ``"f1"``, each at its own threshold."""
    values = np.array([getattr(table, rate)[0] for table in confusions(labels, scores, thresholds)])
    return float(values[~np.isnan(values)].mean()) if (~np.isnan(values)).any() else float("nan")


def micro_rate(rate: str, labels: ArrayLike, scores: ArrayLike, thresholds: ArrayLike) -> float:
    """Return a rate of `Confusion` of all findings' calls together, each at its own threshold."""
    tables = confusions(labels, scores, thresholds)
    cells = (sum((getattr(t, cell) for t in tables), np.zeros(1)) for cell in ("tp", "fp", "fn", "tn"))
    return float(getattr(Confusion(*cells), rate)[0])


def left_out(findings: Sequence[str], labels: ArrayLike) -> dict[str, str]:
    """Return the findings that a macro average of areas leaves out, with the reason.

    Parameters
    ----------
    findings : sequence of str
    labels : array_like of float [N, F]
    """
    y = np.asarray(labels, dtype=np.float64)
    reasons = {finding: metrics.why_undefined(y[:, f]) for f, finding in enumerate(findings)}
    return {finding: reason for finding, reason in reasons.items() if reason}


def _pair(labels: ArrayLike, scores: ArrayLike) -> tuple[FloatArray, FloatArray]:
    y, s = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if y.ndim != 2 or y.shape != s.shape or not y.shape[1]:
        raise WetreadError(f"labels {y.shape} and scores {s.shape}: give both as [images, findings]")
    return y, s

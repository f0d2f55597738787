"""How well scores tell present from absent, per finding.

Every function takes `labels` and `scores` of one finding, leaves out the rows whose label is
uncertain (-1) or not mentioned (NaN), and answers NaN, never 0, where the question has no
answer (no positives, nothing flagged ...). A score at or above a threshold counts as positive.

All metrics that depend on order or on a threshold come from one table of counts, `Counts`: how
many positives and negatives lie at or above each distinct score. A bootstrap resample only
changes the weights of the rows, so the scores are sorted once for all resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wetread.errors import WetreadError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]
BoolArray = NDArray[np.bool_]


def known(labels: ArrayLike) -> BoolArray:
    """Tell which labels are certain.

    Parameters
    ----------
    labels : array_like of float, any shape
        1 present, 0 absent, -1 uncertain, NaN not mentioned.

    Returns
    -------
    ndarray of bool, same shape
        True for 0 and 1.

    Raises
    ------
    WetreadError
        For any other value.
    """
    values = np.asarray(labels, dtype=np.float64)
    certain = (values == 0) | (values == 1)
    if (bad := ~(certain | (values == -1) | np.isnan(values))).any():
        raise WetreadError(
            f"labels: {values[bad].flat[0]:g} is no label; use 1, 0, -1 (uncertain) or NaN (not mentioned)"
        )
    return np.asarray(certain)


def validate(
    labels: ArrayLike, scores: ArrayLike, *, probability: bool = False
) -> tuple[IntArray, BoolArray, FloatArray]:
    """Check one finding's labels and scores and keep the rows that count.

    Parameters
    ----------
    labels : array_like of float [N]
    scores : array_like of float [N]
        Any real scores, or with `probability` values from 0 to 1.

    Returns
    -------
    rows : ndarray of int [n]
        The rows whose label is certain.
    positive : ndarray of bool [n]
    scores : ndarray of float64 [n]

    Raises
    ------
    WetreadError
        When shapes differ, a label is none, or a score that counts is not finite or out of range.
    """
    y, s = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if y.ndim != 1 or y.shape != s.shape:
        raise WetreadError(f"labels {y.shape} and scores {s.shape}: give one label and one score for each image")
    rows = np.flatnonzero(known(y))
    y, s = y[rows], s[rows]
    bad = ~np.isfinite(s) if not probability else ~((s >= 0) & (s <= 1))
    if bad.any():
        allowed = "a probability from 0 to 1" if probability else "a finite score"
        first = np.flatnonzero(bad)[0]
        raise WetreadError(f"scores: row {rows[first]} is {s[first]:g}; expected {allowed}")
    return rows, y == 1, s


def ratio(part: ArrayLike, whole: ArrayLike) -> FloatArray:
    """Divide; NaN where the whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    shape = np.broadcast_shapes(part.shape, whole.shape)
    return np.asarray(np.divide(part, whole, out=np.full(shape, np.nan), where=np.broadcast_to(whole != 0, shape)))


@dataclass(frozen=True)
class Confusion:
    """Counts at one threshold, one value per resample (float64 [R]), and the ratios they give."""

    tp: FloatArray
    fp: FloatArray
    fn: FloatArray
    tn: FloatArray

    @property
    def sensitivity(self) -> FloatArray:
        """Share of the positives that are flagged."""
        return ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> FloatArray:
        """Share of the negatives that are not flagged."""
        return ratio(self.tn, self.tn + self.fp)

    @property
    def ppv(self) -> FloatArray:
        """Share of the flagged that are positive (precision)."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def npv(self) -> FloatArray:
        """Share of the not flagged that are negative."""
        return ratio(self.tn, self.tn + self.fn)

    @property
    def f1(self) -> FloatArray:
        """Harmonic mean of sensitivity and PPV, 0 when all positives are missed; NaN without a positive."""
        return np.where(self.tp + self.fn > 0, ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn), np.nan)

    @property
    def accuracy(self) -> FloatArray:
        """Share of all that are right."""
        return ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    @property
    def balanced_accuracy(self) -> FloatArray:
        """Mean of sensitivity and specificity; NaN where one of them is."""
        return (self.sensitivity + self.specificity) / 2

    @property
    def mcc(self) -> FloatArray:
        """Correlation of calls and labels (Matthews 1975), -1 to 1; 0 when all are called alike, NaN with one class."""
        tp, fp, fn, tn = self.tp, self.fp, self.fn, self.tn
        labels, calls = (tp + fn) * (tn + fp), (tp + fp) * (tn + fn)
        value = (tp * tn - fp * fn) / np.sqrt(np.where((labels > 0) & (calls > 0), labels * calls, 1))
        return np.where(labels > 0, value, np.nan)


@dataclass(frozen=True)
class Counts:
    """Positives and negatives at or above each distinct score, highest score first.

    Attributes
    ----------
    thresholds : float64 [K + 1]
        Infinity (nothing flagged), then the distinct scores in descending order.
    tp, fp : float64 [R, K + 1]
        Weight of the positives and of the negatives that score at or above the threshold.
    """

    thresholds: FloatArray
    tp: FloatArray
    fp: FloatArray

    def auroc(self) -> FloatArray:
        """Return the area under the ROC curve, ties counting half (Mann-Whitney), float64 [R]."""
        area = (np.diff(self.fp) * (self.tp[:, 1:] + self.tp[:, :-1])).sum(axis=1) / 2
        return ratio(area, self.tp[:, -1] * self.fp[:, -1])

    def average_precision(self) -> FloatArray:
        """Return the sum of precision times step in recall, as scikit-learn defines it, float64 [R]."""
        found, flagged = self.tp[:, 1:], self.tp[:, 1:] + self.fp[:, 1:]
        precision = found / np.maximum(flagged, np.finfo(np.float64).tiny)  # 0 where nothing is flagged yet
        return ratio((np.diff(self.tp) * precision).sum(axis=1), self.tp[:, -1])

    def at(self, threshold: float) -> Confusion:
        """Return the confusion when scores at or above `threshold` are flagged."""
        column = int(np.searchsorted(-self.thresholds, -threshold, side="right")) - 1
        tp, fp = self.tp[:, column], self.fp[:, column]
        return Confusion(tp=tp, fp=fp, fn=self.tp[:, -1] - tp, tn=self.fp[:, -1] - fp)


class Ranking:
    """One finding's labels and scores, checked and sorted once.

    Parameters
    ----------
    labels, scores : array_like of float [N]

    Raises
    ------
    WetreadError
        As `validate`.
    """

    def __init__(self, labels: ArrayLike, scores: ArrayLike) -> None:
        rows, positive, values = validate(labels, scores)
        order = np.argsort(-values, kind="stable")
        self.rows, self.positive, values = rows[order], positive[order], values[order]
        # The last row of each run of equal scores: ties enter together.
        last = np.flatnonzero(np.append(np.diff(values) != 0, True)) if values.size else np.zeros(0, np.intp)
        self._cut(last, values[last])

    def _cut(self, last: IntArray, scores: FloatArray) -> None:
        self._last = last
        self._first = np.append(0, last[:-1] + 1)[: last.size]
        self._found = np.cumsum(self.positive, dtype=np.intp)[last]
        self.thresholds = np.concatenate(([np.inf], scores))

    def merged(self, *thresholds: float) -> Ranking:
        """Return the same ranking without the thresholds between two negatives, for resampling.

        Areas, average precision and curves stay what they are, since nothing is found there, and so does
        `Counts.at` for the given thresholds. Where positives are few, so are the thresholds that are left.
        """
        found = np.diff(self._found, prepend=0) > 0
        keep = found | np.append(found[1:], True)[: found.size]
        at = np.searchsorted(-self.thresholds, -np.asarray(thresholds, dtype=np.float64), side="right") - 2
        keep[at[at >= 0]] = True
        ranking = object.__new__(Ranking)
        ranking.rows, ranking.positive = self.rows, self.positive
        ranking._cut(self._last[keep], self.thresholds[1:][keep])
        return ranking

    def counts(self, weights: FloatArray | None = None) -> Counts:
        """Count, each row as often as its weight says.

        Parameters
        ----------
        weights : float64 [R, N], optional
            One row per resample; by default every image once (R = 1).
        """
        chosen = np.ones((1, self.rows.size)) if weights is None else weights[:, self.rows]
        tp, fp = np.zeros((2, chosen.shape[0], self.thresholds.size))
        if self.rows.size:
            flagged = np.cumsum(np.add.reduceat(chosen, self._first, axis=1), axis=1)
            found = np.zeros((len(chosen), int(self._found[-1]) + 1))
            np.cumsum(chosen[:, self.positive], axis=1, out=found[:, 1:])
            tp[:, 1:] = found[:, self._found]
            np.subtract(flagged, tp[:, 1:], out=fp[:, 1:])
        return Counts(self.thresholds, tp, fp)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the area under the ROC curve: the chance that a positive outscores a negative, ties half.

    NaN without a positive or without a negative. For labels and scores see the module.
    """
    return float(Ranking(labels, scores).counts().auroc()[0])


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the average precision, without interpolation; NaN without a positive."""
    return float(Ranking(labels, scores).counts().average_precision()[0])


def mean_auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the mean area over the findings that have one, each against the rest.

    Parameters
    ----------
    labels, scores : array_like of float [N, F]

    Returns
    -------
    float
        NaN when no finding has both classes.
    """
    y, s = np.asarray(labels), np.asarray(scores)
    areas = np.array([auroc(y[:, f], s[:, f]) for f in range(y.shape[1])])
    return float(areas[~np.isnan(areas)].mean()) if (~np.isnan(areas)).any() else float("nan")


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return false-positive rate, sensitivity and threshold, float64 [K + 1] each, from (0, 0) to (1, 1)."""
    counts = Ranking(labels, scores).counts()
    tp, fp = counts.tp[0], counts.fp[0]
    return ratio(fp, fp[-1]), ratio(tp, tp[-1]), counts.thresholds


def precision_recall_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return precision, recall and threshold, float64 [K] each, in the order of descending threshold."""
    counts = Ranking(labels, scores).counts()
    tp, fp = counts.tp[0, 1:], counts.fp[0, 1:]
    return ratio(tp, tp + fp), ratio(tp, counts.tp[0, -1]), counts.thresholds[1:]


def confusion(labels: ArrayLike, scores: ArrayLike, threshold: float) -> Confusion:
    """Return the counts (float64 [1] each) when scores at or above `threshold` are flagged."""
    return Ranking(labels, scores).counts().at(threshold)


def sensitivity(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Return the share of the positives at or above `threshold`; NaN without a positive."""
    return float(confusion(labels, scores, threshold).sensitivity[0])


def specificity(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Return the share of the negatives below `threshold`; NaN without a negative."""
    return float(confusion(labels, scores, threshold).specificity[0])


def ppv(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Return the share of positives among those at or above `threshold`; NaN when there are none."""
    return float(confusion(labels, scores, threshold).ppv[0])


def npv(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Return the share of negatives among those below `threshold`; NaN when there are none."""
    return float(confusion(labels, scores, threshold).npv[0])


def f1(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Return the harmonic mean of sensitivity and PPV; NaN without a positive."""
    return float(confusion(labels, scores, threshold).f1[0])


def accuracy(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Return the share of images on the right side of `threshold`; NaN without images."""
    return float(confusion(labels, scores, threshold).accuracy[0])


def balanced_accuracy(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Return the mean of sensitivity and specificity; NaN without a positive or without a negative."""
    return float(confusion(labels, scores, threshold).balanced_accuracy[0])


def mcc(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Return Matthews' correlation of calls and labels; NaN without a positive or without a negative."""
    return float(confusion(labels, scores, threshold).mcc[0])


def why_undefined(labels: ArrayLike) -> str:
    """Return why labels [N] of one finding have no area under a ROC curve; empty when they have one."""
    y = np.asarray(labels, dtype=np.float64)
    if not known(y).any():
        return "no certain label"
    missing = [word for word, value in (("present", 1), ("absent", 0)) if not (y == value).any()]
    return f"never {missing[0]}" if missing else ""


def brier(labels: ArrayLike, probability: ArrayLike) -> float:
    """Return the mean squared difference of probability and label (Brier 1950); NaN without images."""
    _, positive, p = validate(labels, probability, probability=True)
    return float(((p - positive) ** 2).mean()) if p.size else float("nan")


def bin_index(probability: FloatArray, bins: int, *, equal_mass: bool = False) -> NDArray[np.intp]:
    """Assign probabilities to bins.

    Parameters
    ----------
    probability : float64 [n], 0 to 1
    bins : int
    equal_mass : bool
        False: bins of equal width, closed below, 1 in the last. True: edges at the quantiles, so that
        bins hold equally many images; equal probabilities stay together.

    Returns
    -------
    ndarray of int [n], 0 to bins - 1
    """
    steps = np.linspace(0, 1, bins + 1)[1:-1]
    edges = np.quantile(probability, steps) if equal_mass and probability.size else steps
    return np.searchsorted(edges, probability, side="right")


def ece(labels: ArrayLike, probability: ArrayLike, *, bins: int = 15, equal_mass: bool = False) -> float:
    """Return the expected calibration error: mean gap of probability and frequency, weighted by bin.

    Parameters
    ----------
    labels : array_like of float [N]
    probability : array_like of float [N], 0 to 1
    bins : int
        Equal widths as in Guo et al. 2017 (ICML), or with `equal_mass` equal counts (Nguyen and
        O'Connor 2015), which leaves no bin to a handful of images.

    Returns
    -------
    float
        0 to 1; NaN without images.
    """
    _, positive, p = validate(labels, probability, probability=True)
    if not p.size:
        return float("nan")
    index = bin_index(p, bins, equal_mass=equal_mass)
    return float(np.abs(np.bincount(index, weights=p - positive, minlength=bins)).sum() / p.size)

"""Compare a model's probabilities with the labels of a task.

One pass over the resamples of patients serves every finding and every metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wetread.errors import WetreadError
from wetread.evaluate import calibration, exclusive, intervals, metrics
from wetread.evaluate.cautions import about, overall
from wetread.evaluate.intervals import Interval, interval
from wetread.evaluate.metrics import Counts, FloatArray, Ranking, ratio
from wetread.evaluate.operating_points import SENSITIVITY
from wetread.evaluate.results import GRID, RATES, Classes, Curve, Evaluation, FindingResult, PointResult
from wetread.findings import Task


def evaluate(
    task: Task,
    probability: ArrayLike,
    labels: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    points: Mapping[str, Mapping[str, float]] | None = None,
    cutoffs: Mapping[str, tuple[float, float]] | None = None,
    sources: ArrayLike | None = None,
    aim: float | None = SENSITIVITY,
    bins: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    cautions: Sequence[str] = (),
    meta: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Compare probabilities with labels.

    Parameters
    ----------
    task : Task
    probability : array_like of float [N, F], 0 to 1
    labels : array_like of float [N, F]
        1, 0, -1 (uncertain) and NaN (not mentioned); the last two are left out, finding by finding.
    groups : array_like [N], optional
        Patient of each image; without it every image counts as a patient, and the evaluation says so.
    points : mapping of point to mapping of finding to threshold, optional
        E.g. ``{"screen": {...}, "balanced": {...}}``, fitted on other images than these.
    cutoffs : mapping of finding to (low, high), optional
    sources : array_like [N], optional
        Collection of each image, to see whether it gives the finding away.
    aim : float, optional
        Sensitivity that the point `screen` was chosen for; None when it follows another rule.
    bins : int
        Of the reliability curve and the calibration errors.
    resamples, seed : int
        Of the bootstrap.
    cautions : sequence of str
        What else a reader must know, put before what the figures themselves show.
    meta : mapping, optional
        What was evaluated; kept as it is.

    Returns
    -------
    Evaluation

    Raises
    ------
    WetreadError
        When shapes do not fit the task, or a label, a probability or a point is none.
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if p.ndim != 2 or p.shape != y.shape or p.shape[1] != len(task.findings) or not p.size:
        raise WetreadError(
            f"probability {p.shape} and labels {y.shape}: task {task.name} needs [images, {len(task.findings)}] of both"
        )
    patient = np.arange(len(p)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    source = np.full(len(p), "") if sources is None else np.asarray(sources).astype(str)
    for name, given in (("groups", patient), ("sources", source)):
        if given.shape != (len(p),):
            raise WetreadError(f"{name} {given.shape}: give one value for each of the {len(p)} images")
    for finding in task.findings:
        for name, given_for in {**(points or {}), **({"cutoffs": cutoffs} if cutoffs else {})}.items():
            if finding not in given_for:
                raise WetreadError(f"{name}: nothing for {finding!r}; give a value for each finding of {task.name}")

    columns = [
        _Column(y[:, f], p[:, f], {name: float(at[finding]) for name, at in (points or {}).items()})
        for f, finding in enumerate(task.findings)
    ]
    sampled: list[list[dict[str, FloatArray]]] = []
    accuracies = []
    hit = exclusive.hits(y, p) if task.exclusive else np.full(len(p), np.nan)
    usable, right = (~np.isnan(hit)).astype(np.float64), np.nan_to_num(hit)
    for weights in intervals.resamples(patient, resamples, seed):
        sampled.append([column.statistics(weights) for column in columns])
        accuracies.append(ratio(weights @ right, weights @ usable))

    results, areas = [], []
    for f, finding in enumerate(task.findings):
        samples = {name: np.concatenate([block[f][name] for block in sampled]) for name in sampled[0][f]}
        result = columns[f].result(finding, samples, patient, source, cutoffs[finding] if cutoffs else None, bins)
        results.append(replace(result, cautions=about(result, normal=finding == task.normal, aim=aim)))
        areas.append(samples["auroc"])
    evaluation = Evaluation(
        task=task,
        images=len(p),
        patients=len(np.unique(patient)) if groups is not None else None,
        resamples=resamples,
        seed=seed,
        findings=tuple(results),
        mean_auroc=_mean([result.auroc.value for result in results], areas),
        classes=Classes(
            accuracy=interval(
                float(ratio(right.sum(), usable.sum())),
                np.concatenate(accuracies),
                trials=len(np.unique(patient[usable > 0])),
            ),
            confusion=exclusive.confusion(y, p),
            balanced_accuracy=exclusive.balanced_accuracy(y, p),
            macro_f1=exclusive.macro_f1(y, p),
            mcc=exclusive.mcc(y, p),
            kappa=exclusive.kappa(y, p),
            reason=exclusive.why_undefined(y),
        )
        if task.exclusive
        else None,
        cautions=(),
        meta=dict(meta or {}),
    )
    return replace(evaluation, cautions=(*cautions, *overall(evaluation)))


class _Column:
    """One finding: its certain labels and their probabilities, sorted once."""

    def __init__(self, labels: FloatArray, probability: FloatArray, thresholds: dict[str, float]) -> None:
        self.rows, self.positive, self.probability = metrics.validate(labels, probability, probability=True)
        self.left_out = labels.size - self.rows.size
        self.ranking = Ranking(labels, probability)
        self.thresholds = thresholds
        self._sampled = self.ranking.merged(*thresholds.values())
        self._squared_error = np.zeros(labels.size)
        self._squared_error[self.rows] = (self.probability - self.positive) ** 2

    def statistics(self, weights: FloatArray | None = None) -> dict[str, FloatArray]:
        """Return every statistic under weights [r, N]: float64 [r], curves [r, 101]."""
        counts = self._sampled.counts(weights)
        everyone = np.ones((1, self._squared_error.size)) if weights is None else weights
        total = counts.tp[:, -1] + counts.fp[:, -1]
        values = {
            "prevalence": ratio(counts.tp[:, -1], total),
            "auroc": counts.auroc(),
            "average_precision": counts.average_precision(),
            "brier": ratio(everyone @ self._squared_error, total),
            "roc": _roc(counts),
            "precision_recall": _precision_recall(counts),
        }
        for name, threshold in self.thresholds.items():
            table = counts.at(threshold)
            values |= {f"{name} {rate}": getattr(table, rate) for rate in RATES}
        return values

    def result(
        self,
        finding: str,
        samples: dict[str, FloatArray],
        patient: NDArray[np.intp],
        source: NDArray[np.str_],
        cutoffs: tuple[float, float] | None,
        bins: int,
    ) -> FindingResult:
        """Return the values of the images themselves with the intervals that the resamples give."""
        here = self.statistics()
        trials = self._patients(patient[self.rows])
        value = {
            name: interval(float(here[name][0]), sample, trials=trials.get(name, 0))
            for name, sample in samples.items()
            if sample.ndim == 1
        }
        y, p = self.positive.astype(np.float64), self.probability
        edges = np.linspace(0, 1, 21)
        collections = source[self.rows]
        return FindingResult(
            finding=finding,
            images=self.rows.size,
            positives=int(self.positive.sum()),
            left_out=self.left_out,
            patients=trials["prevalence"],
            prevalence=value["prevalence"],
            auroc=value["auroc"],
            average_precision=value["average_precision"],
            brier=value["brier"],
            ece=metrics.ece(y, p, bins=bins),
            ece_equal_mass=metrics.ece(y, p, bins=bins, equal_mass=True),
            points={name: self._point(name, threshold, value) for name, threshold in self.thresholds.items()},
            cutoffs=None if cutoffs is None else (float(cutoffs[0]), float(cutoffs[1])),
            calls=self._calls(*cutoffs) if cutoffs is not None else {},
            roc=_curve(here["roc"], samples["roc"]),
            precision_recall=_curve(here["precision_recall"], samples["precision_recall"]),
            reliability=calibration.reliability(y, p, bins=bins),
            histogram=(np.histogram(p[self.positive], edges)[0], np.histogram(p[~self.positive], edges)[0]),
            sources={str(name): self._split(collections == name) for name in np.unique(collections) if name},
            cautions=(),
        )

    def _point(self, name: str, threshold: float, value: dict[str, Interval]) -> PointResult:
        table = self.ranking.counts().at(threshold)
        return PointResult(
            threshold=threshold,
            tp=int(table.tp[0]),
            fp=int(table.fp[0]),
            fn=int(table.fn[0]),
            tn=int(table.tn[0]),
            **{rate: value[f"{name} {rate}"] for rate in RATES},
        )

    def _patients(self, patient: NDArray[np.intp]) -> dict[str, int]:
        """Return for each share the number of patients that it is a share of."""
        everyone = np.ones(self.rows.size, dtype=bool)
        sets = {"prevalence": everyone}
        for name, threshold in self.thresholds.items():
            flagged = self.probability >= threshold
            sets |= {
                f"{name} sensitivity": self.positive,
                f"{name} specificity": ~self.positive,
                f"{name} ppv": flagged,
                f"{name} npv": ~flagged,
                f"{name} accuracy": everyone,
            }
        return {name: len(np.unique(patient[rows])) for name, rows in sets.items()}

    def _calls(self, low: float, high: float) -> dict[str, tuple[int, int]]:
        p = self.probability
        chosen = {"unlikely": p < low, "unsure": (p >= low) & (p < high), "likely": p >= high}
        return {call: self._split(rows) for call, rows in chosen.items()}

    def _split(self, chosen: NDArray[np.bool_]) -> tuple[int, int]:
        return int((chosen & self.positive).sum()), int((chosen & ~self.positive).sum())


def _roc(counts: Counts) -> FloatArray:
    """Return the sensitivity at the false-positive rates of `GRID`, straight between points, float64 [r, 101]."""
    x, y = ratio(counts.fp, counts.fp[:, -1:]), ratio(counts.tp, counts.tp[:, -1:])
    return np.stack([np.interp(GRID, row_x, row_y) for row_x, row_y in zip(x, y, strict=True)])


def _precision_recall(counts: Counts) -> FloatArray:
    """Return the precision at the highest threshold that reaches the recalls of `GRID`, float64 [r, 101]."""
    result = np.full((len(counts.tp), GRID.size), np.nan)
    for row, (tp, fp) in enumerate(zip(counts.tp, counts.fp, strict=True)):
        if tp[-1] > 0:
            column = np.searchsorted(tp, np.maximum(GRID * tp[-1] - 1e-9, 1e-9))  # the first that finds anything
            result[row] = tp[column] / (tp[column] + fp[column])
    return result


def _curve(value: FloatArray, samples: FloatArray) -> Curve:
    exists = ~np.isnan(samples).any(axis=1)
    if np.isnan(value).any() or exists.mean() < 0.5:
        return Curve(np.zeros(0), np.zeros(0), np.zeros(0))
    low, high = np.quantile(samples[exists], [(1 - intervals.LEVEL) / 2, (1 + intervals.LEVEL) / 2], axis=0)
    return Curve(value[0], low, high)


def _mean(values: list[float], samples: list[FloatArray]) -> Interval:
    """Return the mean over the findings that have a value; a resample that lacks one of them is left out."""
    has = [i for i, value in enumerate(values) if not np.isnan(value)]
    if not has:
        return Interval(float("nan"), float("nan"), float("nan"), 0.0)
    return interval(float(np.mean([values[i] for i in has])), np.mean([samples[i] for i in has], axis=0))

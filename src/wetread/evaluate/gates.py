"""Gates: what a candidate must show before it may replace the champion.

`gate_file` says how they are stated. A floor or ceiling passes when the whole 95 % interval keeps it and fails when
the whole interval breaks it; a margin passes when the interval of the paired difference shows that no more was lost
(non-inferiority) and fails when it shows that more was. What lies between is inconclusive. A *critical* finding is
stricter: it fails when its sensitivity *may* have dropped by more than the margin. Whatever the interval, too few
samples are never a pass.

The whole fails when one gate does, is inconclusive when one is, and passes only when all do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wetread.errors import ConfigError, WetreadError
from wetread.evaluate import intervals, metrics
from wetread.evaluate.behaviour import Behaviour, Verdict, worst
from wetread.evaluate.gate_file import MEAN, RATES, Gates, HardGate, load, parse
from wetread.evaluate.intervals import Interval, Z
from wetread.evaluate.metrics import FloatArray, Ranking, ratio
from wetread.findings import Task

__all__ = ["Decision", "Gate", "Gates", "HardScores", "judge", "load", "parse"]


@dataclass(frozen=True)
class Gate:
    """One gate and how it went.

    Attributes
    ----------
    gate : {"critical", "floor", "ceiling", "margin", "hard", "behaviour"}
    subject : str
        Finding, ``mean`` or hard batch.
    figure : str
    limit : float
        For a comparison the loss that is allowed.
    candidate, champion : float or None
        The figures; champion None where none was asked for.
    value : Interval
        Judged against the limit: the figure, or what was gained, candidate minus champion (Brier score: the other way).
    samples : int
        Patients behind it.
    verdict : {"pass", "fail", "inconclusive"}
    reason : str
    """

    gate: str
    subject: str
    figure: str
    limit: float
    candidate: float | None
    champion: float | None
    value: Interval
    samples: int
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Decision:
    """All gates and the verdict on the candidate."""

    verdict: Verdict
    gates: tuple[Gate, ...]


@dataclass(frozen=True)
class HardScores:
    """A hard batch scored: 1 or 0 for each case, float64 [K], and the patient of each."""

    candidate: FloatArray
    groups: NDArray[Any]
    champion: FloatArray | None = None


@dataclass(frozen=True)
class _Models:
    """Aligned scores of one or two models, patients, and the gates they face."""

    gates: Gates
    task: Task
    labels: FloatArray
    scores: dict[str, FloatArray]
    points: dict[str, Mapping[str, float]]
    patient: NDArray[np.intp]
    out: list[Gate] = field(default_factory=list)


def judge(
    gates: Gates,
    task: Task,
    labels: ArrayLike,
    candidate: ArrayLike,
    champion: ArrayLike | None = None,
    *,
    groups: ArrayLike,
    candidate_points: Mapping[str, float],
    champion_points: Mapping[str, float] | None = None,
    hard: Mapping[str, HardScores] | None = None,
    behaviour: Behaviour | None = None,
) -> Decision:
    """Judge a candidate by its scores, alone and against the champion's on the same images.

    Parameters
    ----------
    gates : Gates
    task : Task
    labels : array_like of float [N, F]
        1, 0, -1 (uncertain), NaN (not mentioned); the last two are left out.
    candidate, champion : array_like of float [N, F], 0 to 1
        The same images in the same order. Without a champion comparisons are inconclusive.
    groups : array_like [N]
        Patient of each image.
    candidate_points, champion_points : mapping of finding to float
        Each model's own thresholds at `gates.point`.
    hard : mapping of name to HardScores, optional
        For every batch that the gates name.
    behaviour : Behaviour, optional
        When the gates ask for it.

    Raises
    ------
    ConfigError
        When a gate names a finding or a batch that is not there.
    WetreadError
        When shapes do not fit, or a threshold is missing.
    """
    y = np.asarray(labels, dtype=np.float64)
    scores = {"candidate": np.asarray(candidate, dtype=np.float64)}
    points = {"candidate": candidate_points}
    if champion is not None:
        scores["champion"] = np.asarray(champion, dtype=np.float64)
        points["champion"] = champion_points or {}
    for name, p in scores.items():
        if p.ndim != 2 or p.shape != y.shape or p.shape[1] != len(task.findings) or not len(p):
            raise WetreadError(
                f"{name} {p.shape} and labels {y.shape}: task {task.name} needs [images, {len(task.findings)}] of both"
            )
        if missing := [finding for finding in task.findings if finding not in points[name]]:
            raise WetreadError(f"{name}: no threshold for {missing[0]!r} at {gates.point}")
    patient = np.unique(np.asarray(groups), return_inverse=True)[1]
    if patient.shape != (len(y),):
        raise WetreadError(f"groups {patient.shape}: give one patient for each of the {len(y)} images")
    for table in (gates.critical, gates.floor, gates.ceiling, gates.margin):
        for name in table:
            if name not in task.findings and not (name == MEAN and table is not gates.critical):
                raise ConfigError(f"gates: {name!r} is no finding of task {task.name}: {', '.join(task.findings)}")
    judged = _Models(gates, task, y, scores, points, patient)
    for finding, margin in gates.critical.items():
        judged.out.append(_critical(judged, finding, margin))
    for kind, wanted in (("floor", gates.floor), ("ceiling", gates.ceiling), ("margin", gates.margin)):
        for name, figures in wanted.items():
            for figure, limit in figures.model_dump(exclude_none=True).items():
                judged.out.append(_figure(judged, kind, name, figure, limit))
    for name, gate in gates.hard.items():
        if hard is None or name not in hard:
            raise ConfigError(f"gates: hard batch {name!r} was not scored; make it with `wetread hard`")
        judged.out.extend(_hard(gates, name, gate, hard[name]))
    if gates.behaviour is not None:
        judged.out.extend(_behaviour(behaviour))
    return Decision(worst([gate.verdict for gate in judged.out]), tuple(judged.out))


def _sample(models: _Models, model: str, subject: str, figure: str) -> tuple[float, FloatArray]:
    """Return a figure of one model, and of each resample of patients; the same resamples for both models."""
    again = partial(
        intervals.bootstrap, groups=models.patient, count=models.gates.resamples, seed=models.gates.seed
    )  # one seed: paired
    columns = range(len(models.task.findings)) if subject == MEAN else [models.task.findings.index(subject)]
    values, samples = [], []
    for f in columns:
        label, score = models.labels[:, f], models.scores[model][:, f]
        if figure == "brier":
            rows, positive, p = metrics.validate(label, score, probability=True)
            squared = np.zeros(len(label))
            squared[rows], counted = (p - positive) ** 2, np.isin(np.arange(len(label)), rows).astype(np.float64)
            value, sample = again(lambda w, s=squared, c=counted: ratio(w @ s, w @ c))  # type: ignore[misc]
        else:
            ranking, cut = Ranking(label, score), float(models.points[model][models.task.findings[f]])
            value, sample = again(lambda w, r=ranking, t=cut: _of(r.counts(w), figure, t))  # type: ignore[misc]
        if not (subject == MEAN and np.isnan(value)):
            values.append(value)
            samples.append(sample)
    if not values:
        return float("nan"), np.full(models.gates.resamples, np.nan)
    return float(np.mean(values)), np.asarray(np.mean(samples, axis=0))


def _of(counts: metrics.Counts, figure: str, threshold: float) -> FloatArray:
    value = getattr(counts.at(threshold), figure) if figure in RATES else getattr(counts, figure)()
    return np.asarray(value, dtype=np.float64)


def _patients(models: _Models, subject: str) -> tuple[int, int]:
    """Return how many patients have the finding, and how many have not; for the mean the fewest over its findings."""
    if subject == MEAN:
        each = [_patients(models, finding) for finding in models.task.findings]
        both = [pair for pair in each if min(pair)]
        return (min(p for p, _ in both), min(n for _, n in both)) if both else (0, 0)
    label = models.labels[:, models.task.findings.index(subject)]
    with_it, without = (int(np.unique(models.patient[label == value]).size) for value in (1, 0))
    return with_it, without


def _too_few(models: _Models, subject: str, figure: str) -> tuple[int, str]:
    """Return the patients behind a figure, and why they are too few (or an empty text)."""
    gates, (positives, negatives) = models.gates, _patients(models, subject)
    needed = {"sensitivity": (True, False), "specificity": (False, True)}.get(figure, (True, True))
    samples = sum(n for n, need in zip((positives, negatives), needed, strict=True) if need)
    fewest = " in one of its findings" if subject == MEAN else ""
    if needed[0] and positives < gates.min_positives:
        return samples, f"only {positives} patients with the finding{fewest}, {gates.min_positives} wanted"
    if needed[1] and negatives < gates.min_negatives:
        return samples, f"only {negatives} patients without the finding{fewest}, {gates.min_negatives} wanted"
    return samples, ""


def _critical(models: _Models, finding: str, margin: float) -> Gate:
    """Judge the sensitivity of a critical finding: it fails when it may have dropped by more than `margin`."""
    samples, few = _too_few(models, finding, "sensitivity")
    mine, sample = _sample(models, "candidate", finding, "sensitivity")
    make = partial(Gate, "critical", finding, "sensitivity", margin, mine)
    if "champion" not in models.scores:
        return make(None, Interval(*3 * (float("nan"),)), samples, "inconclusive", "no champion to compare with")
    theirs, other = _sample(models, "champion", finding, "sensitivity")
    value = _widened(intervals.percentiles(mine - theirs, sample - other), samples)
    if np.isnan(value.value):
        return make(theirs, value, samples, "inconclusive", few or "undefined: no patient with the finding")
    if not few and _least(samples) > margin:  # not even if no case had changed sides
        few = f"{samples} patients with the finding cannot exclude a drop of {margin:g}"
    if few:
        return make(theirs, value, samples, "fail" if value.value < -margin else "inconclusive", few)
    if value.low < -margin:
        return make(theirs, value, samples, "fail", f"may have dropped by {-value.low:.3f}, {margin:g} allowed")
    return make(theirs, value, samples, "pass", f"has not dropped by more than {max(0.0, -value.low):.3f}")


def _least(samples: int) -> float:
    """Return the half-width of the 95 % interval of a paired difference in which no pair differs.

    Agresti and Min 2005: half a pair is added to each of the four cells of the table.
    """
    return Z / (samples + 2)


def _widened(value: Interval, samples: int) -> Interval:
    """Return the interval of a paired difference of shares, where resampling sees too few pairs that differ."""
    half = _least(samples)
    low, high = min(value.low, max(-1.0, value.value - half)), max(value.high, min(1.0, value.value + half))
    return Interval(value.value, low, high, value.defined)


def _figure(models: _Models, kind: str, subject: str, figure: str, limit: float) -> Gate:
    """Judge one figure of one finding: alone (floor, ceiling), or against the champion (margin)."""
    samples, few = _too_few(models, subject, figure)
    mine, sample = _sample(models, "candidate", subject, figure)
    make = partial(Gate, kind, subject, figure, limit, mine)
    if kind != "margin":
        is_share = figure in RATES
        value = intervals.interval(mine, sample, trials=samples if is_share else 0)
        if figure in ("auroc", "average_precision") and mine == 1 and np.isnan(value.low):
            value = Interval(1.0, 1.0, 1.0, value.defined)  # all told apart: no resample can do worse
        return make(
            None,
            value,
            samples,
            *_verdict(
                value,
                few,
                figure,
                floor=limit if kind == "floor" else None,
                ceiling=limit if kind == "ceiling" else None,
            ),
        )
    if "champion" not in models.scores:
        return make(None, Interval(*3 * (float("nan"),)), samples, "inconclusive", "no champion to compare with")
    theirs, other = _sample(models, "champion", subject, figure)
    sign = -1.0 if figure == "brier" else 1.0  # a lower Brier score is better: gained is old minus new
    value = intervals.percentiles(sign * (mine - theirs), sign * (sample - other))
    if figure in RATES:
        value = _widened(value, samples)
    return make(theirs, value, samples, *_verdict(value, few, figure, floor=-limit))


def _verdict(
    value: Interval, few: str, figure: str, *, floor: float | None = None, ceiling: float | None = None
) -> tuple[Verdict, str]:
    """Return the verdict on an interval that must lie at or above `floor`, or at or below `ceiling`."""
    if np.isnan(value.value) or np.isnan(value.low):
        return "inconclusive", few or f"{figure} is undefined on these images"
    if floor is not None:
        kept, broken = value.low >= floor, value.high < floor
    else:
        assert ceiling is not None
        kept, broken = value.high <= ceiling, value.low > ceiling
    if broken:
        return "fail", few
    if few or not kept:
        return "inconclusive", few or "the interval holds the limit: more images would decide"
    return "pass", ""


def _hard(gates: Gates, name: str, gate: HardGate, scores: HardScores) -> list[Gate]:
    """Judge the share of a hard batch that is right, alone and against the champion."""
    patient = np.unique(scores.groups, return_inverse=True)[1]
    samples = int(np.unique(patient).size)
    few = "" if samples >= gates.min_positives else f"only {samples} patients, {gates.min_positives} wanted"
    again = partial(intervals.bootstrap, groups=patient, count=gates.resamples, seed=gates.seed)
    mean = [
        again(lambda w, hit=hit: ratio(w @ hit, w.sum(axis=1))) if hit is not None else None  # type: ignore[misc]
        for hit in (scores.candidate, scores.champion)
    ]
    assert mean[0] is not None
    mine, sample = mean[0]
    result = []
    if gate.floor is not None:
        value = intervals.interval(mine, sample, trials=samples)
        result.append(
            Gate(
                "hard",
                name,
                "right",
                gate.floor,
                mine,
                None,
                value,
                samples,
                *_verdict(value, few, "right", floor=gate.floor),
            )
        )
    if gate.margin is not None:
        make = partial(Gate, "hard", name, "right", gate.margin, mine)
        if mean[1] is None:
            nothing = Interval(*3 * (float("nan"),))
            result.append(make(None, nothing, samples, "inconclusive", "no champion to compare with"))
        else:
            theirs, other = mean[1]
            value = _widened(intervals.percentiles(mine - theirs, sample - other), samples)
            result.append(make(theirs, value, samples, *_verdict(value, few, "right", floor=-gate.margin)))
    return result


def _behaviour(behaviour: Behaviour | None) -> list[Gate]:
    if behaviour is None or not behaviour.checks:
        nothing = Interval(*3 * (float("nan"),))
        return [Gate("behaviour", "all", "checks", 0.0, None, None, nothing, 0, "inconclusive", "no check was run")]
    return [
        Gate(
            "behaviour",
            check.finding,
            check.name,
            check.limit,
            check.rate.value,
            None,
            check.rate,
            check.images,
            check.verdict,
            "" if check.verdict == "pass" else "see `wetread behave`",
        )
        for check in behaviour.checks
    ]

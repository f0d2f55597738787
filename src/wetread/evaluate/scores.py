"""Anybody's scores against anybody's truth: areas with intervals, readers beside the curve, models in pairs.

`wetread evaluate-scores` reads CSV files (`wetread.evaluate.tables`) and never sees an image or a model. Areas need
only the order of the scores, so that scores above 1 are as good as chances.

Intervals are percentiles over resamples of patients; DeLong's stand beside them for comparison with other
tools. Pairs of models are compared on the same resamples, and by DeLong's test with Holm's correction over all the
tests that are shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from wetread.errors import WetreadError
from wetread.evaluate import delong, intervals, metrics
from wetread.evaluate.clustered import holm
from wetread.evaluate.delong import Difference
from wetread.evaluate.intervals import Interval, interval, percentiles, wilson
from wetread.evaluate.metrics import FloatArray, Ranking
from wetread.evaluate.tables import Table

COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five findings over which the CheXpert competition took its mean."""

PATIENT = "Patient"
_PATIENT = re.compile(r"patient\d+")


@dataclass(frozen=True)
class Reader:
    """A reader's calls of one finding: rates with Wilson intervals, and whether they lie below a model's ROC curve.

    `below` is None where the reader or the model has no such rate.
    """

    sensitivity: Interval
    specificity: Interval
    below: bool | None


@dataclass(frozen=True)
class FindingScore:
    """One model on one finding.

    Attributes
    ----------
    positives, negatives : int
        Studies with a certain label.
    auroc : Interval
        Over resamples of patients.
    delong : Interval
        With DeLong's limits.
    readers : dict of str to Reader
    reason : str
        Why there is no area; empty where there is one.
    """

    finding: str
    positives: int
    negatives: int
    auroc: Interval
    delong: Interval
    readers: dict[str, Reader]
    reason: str

    @property
    def readers_below(self) -> int:
        """Number of readers below the ROC curve."""
        return sum(reader.below is True for reader in self.readers.values())


@dataclass(frozen=True)
class ModelScore:
    """One file of scores.

    Attributes
    ----------
    name : str
    findings : dict of str to FindingScore
    mean : Interval
        Mean area over `averaged`.
    averaged : tuple of str
        Those findings of the mean that have an area.
    """

    name: str
    findings: dict[str, FindingScore]
    mean: Interval
    averaged: tuple[str, ...]

    @property
    def readers_below(self) -> float:
        """Readers below the ROC curve, on average over the findings of the mean; NaN without readers."""
        counts = [self.findings[f].readers_below for f in self.averaged if self.findings[f].readers]
        return float(np.mean(counts)) if counts else float("nan")


@dataclass(frozen=True)
class Pair:
    """The difference of two areas: over resamples, by DeLong, and DeLong's p-value after Holm's correction."""

    bootstrap: Interval
    delong: Difference
    adjusted: float


@dataclass(frozen=True)
class Comparison:
    """How much better `new` is than `old`, per finding and in the mean."""

    new: str
    old: str
    findings: dict[str, Pair]
    mean: Interval


@dataclass(frozen=True)
class Scores:
    """What `judge` returns.

    Attributes
    ----------
    studies, patients : int
    models : tuple of ModelScore
    comparisons : tuple of Comparison
    resamples, seed : int
    notes : tuple of str
        What a reader of the figures must know.
    """

    studies: int
    patients: int
    models: tuple[ModelScore, ...]
    comparisons: tuple[Comparison, ...]
    resamples: int
    seed: int
    notes: tuple[str, ...]


def choose(truth: Table, models: Sequence[Table], wanted: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Return the findings to judge, and those of them over which the mean is taken.

    Parameters
    ----------
    truth : Table
    models : sequence of Table
    wanted : sequence of str
        Exactly these, in this order; the mean is over all of them. Without any: every column that truth and all
        scores share. The mean is then over the five of the competition if the truth has all five (then scores must
        have them too), and else over all.

    Raises
    ------
    WetreadError
        When nothing is shared. A finding that is asked for and missing is an error of `Table.values`.
    """
    if wanted:
        return list(wanted), list(wanted)
    named = [column for column in truth.columns if column != PATIENT]
    needed = list(COMPETITION) if set(COMPETITION) <= set(named) else []
    others = [f for f in named if f not in needed and all(f in model.columns for model in models)]
    shared = needed + others
    if not shared:
        raise WetreadError(
            f"{models[0].path}: no column in common with {truth.path}, which has {', '.join(named) or 'no finding'}"
        )
    return shared, needed or shared


def patients(truth: Table) -> tuple[list[str], bool]:
    """Return the patient of each study, and whether they are known.

    A column ``Patient``, or else ``patient123`` within the study's name; without either each study counts as one.
    """
    if PATIENT in truth.columns:
        return truth.text(PATIENT), True
    found = [_PATIENT.search(study) for study in truth.rows]
    return [match[0] if match else study for match, study in zip(found, truth.rows, strict=True)], all(found)


def judge(
    truth: Table,
    models: Mapping[str, Table],
    readers: Mapping[str, Table] | None = None,
    *,
    findings: Sequence[str] = (),
    first: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Scores:
    """Compare scores, and readers' calls, with the truth.

    Parameters
    ----------
    truth : Table
        1, 0; -1 (uncertain) and empty cells are left out, finding by finding.
    models : mapping of name to Table
        Any finite scores, higher for present. At least one model.
    readers : mapping of name to Table, optional
        1, 0; -1 and empty cells are left out. A reader need not have read every finding.
    findings : sequence of str
        See `choose`.
    first : bool
        Compare the first model with each of the others instead of every pair.
    resamples, seed : int
        Of the bootstrap over patients.

    Raises
    ------
    WetreadError
        For a table that does not fit, naming file, study, column and value.
    """
    readers = readers or {}
    names, averaged = choose(truth, list(models.values()), findings)
    studies = list(truth.rows)
    for table in (*models.values(), *readers.values()):
        table.same_studies(truth)
    labels = truth.values(names, studies, allowed=(1, 0, -1), missing=True)
    scored = {name: table.values(names, studies, allowed=None, missing=False) for name, table in models.items()}
    calls = {name: _calls(table, names, studies) for name, table in readers.items()}
    patient, known = patients(truth)

    rankings = [[Ranking(labels[:, f], s[:, f]).merged() for f in range(len(names))] for s in scored.values()]
    blocks = [
        np.array([[ranking.counts(weights).auroc() for ranking in row] for row in rankings])
        for weights in intervals.resamples(np.array(patient), resamples, seed)
    ]
    samples = np.concatenate(blocks, axis=2)  # [models, findings, resamples]
    areas = np.array([[metrics.auroc(labels[:, f], s[:, f]) for f in range(len(names))] for s in scored.values()])
    meant = [f for f, name in enumerate(names) if name in averaged and not np.isnan(areas[0, f])]

    found = []
    for m, (name, s) in enumerate(scored.items()):
        results = {
            finding: FindingScore(
                finding,
                positives=int((labels[:, f] == 1).sum()),
                negatives=int((labels[:, f] == 0).sum()),
                auroc=interval(float(areas[m, f]), samples[m, f]),
                delong=delong.auroc(labels[:, f], s[:, f]),
                readers={
                    reader: _reader(labels[:, f], made[finding], s[:, f])
                    for reader, made in calls.items()
                    if finding in made
                },
                reason=metrics.why_undefined(labels[:, f]),
            )
            for f, finding in enumerate(names)
        }
        found.append(ModelScore(name, results, _mean(areas[m], samples[m], meant), tuple(names[f] for f in meant)))
    return Scores(
        studies=len(studies),
        patients=len(set(patient)),
        models=tuple(found),
        comparisons=_compare(list(scored.items()), names, labels, areas, samples, meant, first=first),
        resamples=resamples,
        seed=seed,
        notes=_notes(known, len(set(patient)) < len(studies), names, averaged, labels, truth, list(models.values())),
    )


def sensitivity_at(labels: ArrayLike, scores: ArrayLike, false_positive_rate: float) -> float:
    """Return the sensitivity of the ROC curve (straight between its points) at a false-positive rate.

    Parameters
    ----------
    labels, scores : array_like of float [N]
    false_positive_rate : float
        0 to 1. Where the curve is vertical, its upper end.
    """
    x, y, _ = metrics.roc_curve(labels, scores)
    left = int(np.searchsorted(x, false_positive_rate + 1e-12, side="right")) - 1
    if left + 1 >= x.size:
        return float(y[-1])
    share = (false_positive_rate - x[left]) / (x[left + 1] - x[left])
    return float(y[left] + max(0.0, share) * (y[left + 1] - y[left]))


def _calls(table: Table, findings: Sequence[str], studies: Sequence[str]) -> dict[str, FloatArray]:
    read = [finding for finding in findings if finding in table.columns]
    values = table.values(read, studies, allowed=(1, 0, -1), missing=True)
    return {finding: values[:, f] for f, finding in enumerate(read)}


def _reader(labels: FloatArray, calls: FloatArray, scores: FloatArray) -> Reader:
    made = metrics.known(calls)
    table = metrics.confusion(np.where(made, labels, np.nan), np.where(made, calls, 0), 1)
    rates = []
    for right, wrong in ((table.tp, table.fn), (table.tn, table.fp)):
        low, high = wilson(right, right + wrong)
        rates.append(Interval(float(metrics.ratio(right, right + wrong)[0]), float(low[0]), float(high[0])))
    sensitivity, specificity = rates
    curve = sensitivity_at(labels, scores, 1 - specificity.value) if specificity.value >= 0 else float("nan")
    defined = not np.isnan([curve, sensitivity.value]).any()
    return Reader(sensitivity, specificity, bool(sensitivity.value < curve - 1e-12) if defined else None)


def _mean(areas: FloatArray, samples: FloatArray, meant: list[int]) -> Interval:
    if not meant:
        return Interval(float("nan"), float("nan"), float("nan"), 0.0)
    return interval(float(areas[meant].mean()), samples[meant].mean(axis=0))


def _compare(
    scored: list[tuple[str, FloatArray]],
    names: list[str],
    labels: FloatArray,
    areas: FloatArray,
    samples: FloatArray,
    meant: list[int],
    *,
    first: bool,
) -> tuple[Comparison, ...]:
    pairs = [(new, old) for new, old in combinations(range(len(scored)), 2) if new == 0 or not first]
    if not pairs:
        return ()
    together = [delong.areas(labels[:, f], np.array([s[:, f] for _, s in scored])) for f in range(len(names))]
    tests = [[delong.contrast(found, new, old) for found in together] for new, old in pairs]
    p = np.array([[test.p for test in row] for row in tests])
    same = p == 1  # scores of the same order: nothing was tested
    adjusted = np.where(same, 1, holm(np.where(same, np.nan, p).ravel()).reshape(p.shape))
    found = []
    for k, (new, old) in enumerate(pairs):
        differences = {
            finding: Pair(
                percentiles(float(areas[new, f] - areas[old, f]), samples[new, f] - samples[old, f]),
                tests[k][f],
                float(adjusted[k, f]),
            )
            for f, finding in enumerate(names)
        }
        mean = (
            percentiles(
                float((areas[new] - areas[old])[meant].mean()), (samples[new] - samples[old])[meant].mean(axis=0)
            )
            if meant
            else Interval(float("nan"), float("nan"), float("nan"), 0.0)
        )
        found.append(Comparison(scored[new][0], scored[old][0], differences, mean))
    return tuple(found)


def _notes(
    known: bool,
    clustered: bool,
    names: list[str],
    averaged: list[str],
    labels: FloatArray,
    truth: Table,
    models: list[Table],
) -> tuple[str, ...]:
    notes = [f"{f}: {reason}" for i, f in enumerate(names) if (reason := metrics.why_undefined(labels[:, i]))]
    if set(averaged) != set(names):
        notes.append(f"The mean is over {', '.join(averaged)}.")
    if left := [f for f in truth.columns if f not in names and f != PATIENT and any(f in m.columns for m in models)]:
        notes.append(f"Not judged, because not all scores have it: {', '.join(left)}.")
    if not known:
        notes.append("Patients are not known: each study counts as one, so intervals may be too narrow.")
    elif clustered:
        notes.append(
            "Some patients have several studies: trust the bootstrap; DeLong and Wilson take studies as independent."
        )
    return tuple(notes)

"""What an evaluation holds: plain values, ready for JSON, a page or a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from wetread.evaluate.calibration import Reliability
from wetread.evaluate.intervals import Interval
from wetread.evaluate.metrics import FloatArray
from wetread.findings import Task

if TYPE_CHECKING:
    from wetread.evaluate.evidence import Evidence

GRID: FloatArray = np.linspace(0, 1, 101)
"""Where curves are given: false-positive rates of the ROC curve, recalls of the precision-recall curve."""

RATES = ("sensitivity", "specificity", "ppv", "npv", "f1", "accuracy")


@dataclass(frozen=True)
class PointResult:
    """One finding at one operating point: threshold, counts of images, rates from 0 to 1 with intervals."""

    threshold: float
    tp: int
    fp: int
    fn: int
    tn: int
    sensitivity: Interval
    specificity: Interval
    ppv: Interval
    npv: Interval
    f1: Interval
    accuracy: Interval


@dataclass(frozen=True)
class Curve:
    """A curve over `GRID` with its pointwise 95 % band, float64 [101] each; empty where undefined."""

    value: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True)
class FindingResult:
    """One finding.

    Attributes
    ----------
    finding : str
    images, positives, left_out : int
        Images with a certain label, those present among them, and images whose label is uncertain or missing.
    patients : int
        Patients of the images with a certain label.
    prevalence, auroc, average_precision, brier : Interval
    ece, ece_equal_mass : float
        Expected calibration error; without interval, because resampling biases it upwards.
    points : dict of str to PointResult
    cutoffs : tuple of float, or None
        (low, high) of the calls.
    calls : dict of str to tuple of int
        unlikely, unsure, likely: images with the finding present, absent.
    roc, precision_recall : Curve
    reliability : Reliability
    histogram : tuple of int [20]
        Images per twentieth of probability: present, absent.
    sources : dict of str to tuple of int
        Source: images with the finding present, absent.
    cautions : tuple of str
        What a reader of these numbers must know.
    """

    finding: str
    images: int
    positives: int
    left_out: int
    patients: int
    prevalence: Interval
    auroc: Interval
    average_precision: Interval
    brier: Interval
    ece: float
    ece_equal_mass: float
    points: dict[str, PointResult]
    cutoffs: tuple[float, float] | None
    calls: dict[str, tuple[int, int]]
    roc: Curve
    precision_recall: Curve
    reliability: Reliability
    histogram: tuple[NDArray[np.intp], NDArray[np.intp]]
    sources: dict[str, tuple[int, int]]
    cautions: tuple[str, ...]


@dataclass(frozen=True)
class Classes:
    """An exclusive task as one question, which finding it is.

    Attributes
    ----------
    accuracy : Interval
        Share of images whose most probable finding is the true one.
    confusion : int [F, F]
        True finding (row) against most probable finding (column).
    balanced_accuracy, macro_f1 : float
        Mean recall and mean F1 over the findings that an image has.
    mcc, kappa : float
        Correlation of calls and truth (Gorodkin 2004), and agreement beyond chance (Cohen 1960).
    reason : str
        Why these two are undefined; empty where they are not.
    """

    accuracy: Interval
    confusion: NDArray[np.intp]
    balanced_accuracy: float
    macro_f1: float
    mcc: float
    kappa: float
    reason: str


@dataclass(frozen=True)
class Evaluation:
    """A model's probabilities against the labels of a task.

    Attributes
    ----------
    task : Task
    images : int
    patients : int or None
        None when they are not known.
    resamples, seed : int
        Of the bootstrap behind every interval.
    findings : tuple of FindingResult
        In the order of the task.
    mean_auroc : Interval
        Over the findings that have one.
    classes : Classes or None
        For an exclusive task.
    cautions : tuple of str
        About the evaluation as a whole.
    meta : dict
        What was evaluated: model, dataset, split ... as given; any JSON values.
    evidence : Evidence or None
        What was looked at beside the figures: slices, mistakes, behaviour, places, shortcuts, costs.
    """

    task: Task
    images: int
    patients: int | None
    resamples: int
    seed: int
    findings: tuple[FindingResult, ...]
    mean_auroc: Interval
    classes: Classes | None
    cautions: tuple[str, ...]
    meta: dict[str, Any]
    evidence: Evidence | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values; what is undefined is null."""
        values: dict[str, Any] = plain(self)
        return values

    def metrics(self) -> dict[str, Any]:
        """Return the figures without curves, as a model package keeps them.

        Returns
        -------
        dict
            ``images``, ``patients``, ``mean_auroc`` and per finding ``positives``, ``auroc``, ``average_precision``,
            ``brier``, ``ece`` and, per point, the rates. A figure with an interval is [value, low, high], rounded
            to four decimals; what is undefined is None.
        """
        result: dict[str, Any] = {
            "images": self.images,
            "patients": self.patients,
            "mean_auroc": _triple(self.mean_auroc),
            "findings": {
                f.finding: {
                    "images": f.images,
                    "positives": f.positives,
                    "auroc": _triple(f.auroc),
                    "average_precision": _triple(f.average_precision),
                    "brier": _triple(f.brier),
                    "ece": plain(f.ece),
                    **{name: {rate: _triple(getattr(p, rate)) for rate in RATES} for name, p in f.points.items()},
                }
                for f in self.findings
            },
        }
        if self.classes is not None:
            result["accuracy"] = _triple(self.classes.accuracy)
        return result

    def roc(self) -> dict[str, list[float]]:
        """Return of each finding that has a ROC curve the sensitivity at the false-positive rates of `GRID`."""
        return {f.finding: np.round(f.roc.value, 4).tolist() for f in self.findings if f.roc.value.size}


def _triple(value: Interval) -> list[float | None]:
    return [None if np.isnan(v) else round(v, 4) for v in (value.value, value.low, value.high)]


def plain(value: Any) -> Any:
    """Return any result as JSON-ready values: NaN and infinity are None, pictures are left out."""
    if isinstance(value, Task):
        return value.to_dict()
    if is_dataclass(value):
        held = {field.name: getattr(value, field.name) for field in fields(value)}
        return {name: plain(v) for name, v in held.items() if not isinstance(v, bytes)}  # pictures are for the page
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value

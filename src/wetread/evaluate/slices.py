"""How a model does in parts of the images: by sex, age, view, source, devices, picture quality, any column.

Each slice is compared with the other images whose group is known, finding by finding. Many comparisons make a
few differences by chance, so the p-values are adjusted over all of them together, and a slice with few images
of either kind is shown but not tested, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from wetread.errors import WetreadError
from wetread.evaluate import clustered, metrics
from wetread.evaluate.attributes import order
from wetread.evaluate.clustered import Contrast, Estimate
from wetread.evaluate.intervals import Interval
from wetread.evaluate.metrics import BoolArray, FloatArray
from wetread.findings import Task

Correction = Literal["holm", "benjamini-hochberg"]

MINIMUM = 20
"""Fewest patients with the finding, and fewest without, from which a slice is compared; also for the others."""

SIGNIFICANT = 0.05
METRICS = ("auroc", "sensitivity", "specificity")


@dataclass(frozen=True)
class Comparison:
    """A metric in a slice minus the same in the other images.

    Attributes
    ----------
    value, low, high : float
        The difference with its 95 % interval, not adjusted.
    p, adjusted : float
        Two-sided p-value, alone and adjusted over all comparisons.
    """

    value: float
    low: float
    high: float
    p: float
    adjusted: float


@dataclass(frozen=True)
class Slice:
    """One finding in one group of images.

    Attributes
    ----------
    column, value : str
        What the images have in common, e.g. ``sex``, ``F``.
    finding : str
    images, patients, positives : int
        With a certain label; patients are those of the images.
    auroc, sensitivity, specificity : Interval
        NaN where undefined; the rates at the operating point.
    against : dict of metric to Comparison
        Empty where the slice, or what is left without it, is too small.
    note : str
        Why nothing was compared; empty otherwise.
    """

    column: str
    value: str
    finding: str
    images: int
    patients: int
    positives: int
    auroc: Interval
    sensitivity: Interval
    specificity: Interval
    against: dict[str, Comparison]
    note: str

    @property
    def worse(self) -> tuple[str, ...]:
        """The metrics that are lower than elsewhere, after adjustment."""
        return tuple(name for name, c in self.against.items() if c.value < 0 and c.adjusted < SIGNIFICANT)

    @property
    def better(self) -> tuple[str, ...]:
        """The metrics that are higher than elsewhere, after adjustment."""
        return tuple(name for name, c in self.against.items() if c.value > 0 and c.adjusted < SIGNIFICANT)


@dataclass(frozen=True)
class Slices:
    """All slices of an evaluation.

    Attributes
    ----------
    point : str
        Operating point of the rates.
    correction : {"holm", "benjamini-hochberg"}
    minimum : int
        Patients of either kind that a comparison needs.
    comparisons : int
        How many were made, over which the p-values are adjusted; two halves of a column count once.
    rows : tuple of Slice
    """

    point: str
    correction: Correction
    minimum: int
    comparisons: int
    rows: tuple[Slice, ...]

    def cautions(self) -> list[str]:
        """Return a sentence for each slice that does worse than the others."""
        sentences = []
        for row in self.rows:
            for name in row.worse:
                value, c = getattr(row, name).value, row.against[name]
                what = "AUROC" if name == "auroc" else f"{name} at {self.point}"
                sentences.append(
                    f"{row.finding}, {row.column} {row.value}: {what} is {value:.3f}, {-c.value:.3f} below the others "
                    f"(adjusted p = {c.adjusted:.2g})."
                )
        return sentences


def evaluate(
    task: Task,
    probability: ArrayLike,
    labels: ArrayLike,
    attributes: Mapping[str, ArrayLike],
    *,
    groups: ArrayLike,
    thresholds: Mapping[str, float],
    point: str = "",
    correction: Correction = "holm",
    minimum: int = MINIMUM,
) -> Slices:
    """Compare slices with the other images.

    Parameters
    ----------
    task : Task
    probability : array_like of float [N, F], 0 to 1
    labels : array_like of float [N, F]
        1, 0, -1 (uncertain) and NaN (not mentioned); the last two are left out.
    attributes : mapping of column to array_like of str [N]
        ``""`` where the group is not known; such images belong to no slice of the column, nor to its others.
    groups : array_like [N]
        Patient of each image.
    thresholds : mapping of finding to float
        At or above which an image is flagged.
    point : str
        Name of the thresholds.
    correction : {"holm", "benjamini-hochberg"}
        Holm keeps the chance of any false alarm at 5 %, Benjamini and Hochberg the share of false alarms.
    minimum : int

    Raises
    ------
    WetreadError
        When shapes do not fit, or the correction is unknown.
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if p.ndim != 2 or p.shape != y.shape or p.shape[1] != len(task.findings):
        raise WetreadError(
            f"probability {p.shape} and labels {y.shape}: task {task.name} needs [images, {len(task.findings)}] of both"
        )
    adjusters = {"holm": clustered.holm, "benjamini-hochberg": clustered.benjamini_hochberg}
    if correction not in adjusters:
        raise WetreadError(f"correction {correction!r}: known are {', '.join(adjusters)}")
    patient = np.unique(np.asarray(groups), return_inverse=True)[1]
    columns = {name: np.asarray(values).astype(str) for name, values in attributes.items()}
    for name, values in {"groups": patient, **columns}.items():
        if values.shape != (len(p),):
            raise WetreadError(f"{name} {values.shape}: give one value for each of the {len(p)} images")

    mirror = task.normal if task.exclusive and len(task.findings) == 2 else None  # says what the other finding says
    rows: list[Slice] = []
    tests: list[tuple[int, str, Contrast, int]] = []  # row, metric, difference, family member
    family = 0
    for f, finding in enumerate(task.findings):
        if finding == mirror:
            continue
        positive = y[:, f] == 1
        certain = metrics.known(y[:, f])
        metrics.validate(y[:, f], p[:, f], probability=True)
        flagged = p[:, f] >= thresholds[finding]
        for name, values in columns.items():
            if name == finding:  # tells the finding from itself
                continue
            present = sorted({str(value) for value in values[certain] if value}, key=order)
            halves = len(present) == 2  # one comparison, seen from both sides
            first = family
            for value in present if len(present) > 1 else ():
                inside, outside = certain & (values == value), certain & (values != value) & (values != "")
                here = _measure(positive, p[:, f], flagged, inside, patient)
                note = _too_small(positive, inside, outside, patient, minimum)
                rows.append(
                    Slice(
                        name,
                        value,
                        finding,
                        int(inside.sum()),
                        int(np.unique(patient[inside]).size),
                        int((inside & positive).sum()),
                        **{metric: here[metric].interval for metric in METRICS},
                        against={},
                        note=note,
                    )
                )
                if note:
                    continue
                there = _measure(positive, p[:, f], flagged, outside, patient)
                family = first if halves else family
                for metric in METRICS:
                    difference = clustered.contrast(here[metric], there[metric], patient)
                    tests.append((len(rows) - 1, metric, difference, family))
                    family += 1
    alone = np.full(family, np.nan)
    for _, _, difference, member in tests:
        alone[member] = difference.p
    adjusted = adjusters[correction](alone)
    for row, metric, difference, member in tests:
        rows[row].against[metric] = Comparison(
            difference.value, difference.low, difference.high, difference.p, float(adjusted[member])
        )
    return Slices(point, correction, minimum, int((~np.isnan(alone)).sum()), tuple(rows))


def _measure(
    positive: BoolArray, score: FloatArray, flagged: BoolArray, chosen: BoolArray, patient: metrics.IntArray
) -> dict[str, Estimate]:
    return {
        "auroc": clustered.area(positive, score, chosen, patient),
        "sensitivity": clustered.share(flagged, chosen & positive, patient),
        "specificity": clustered.share(~flagged, chosen & ~positive, patient),
    }


def _too_small(
    positive: BoolArray, inside: BoolArray, outside: BoolArray, patient: metrics.IntArray, minimum: int
) -> str:
    """Return why a slice is not compared, or an empty text."""
    for where, chosen in (("", inside), (" among the others", outside)):
        for what, rows in (("with", chosen & positive), ("without", chosen & ~positive)):
            if (count := np.unique(patient[rows]).size) < minimum:
                return f"too small: {count} patient{'s' * (count != 1)} {what} the finding{where}, {minimum} wanted"
    return ""

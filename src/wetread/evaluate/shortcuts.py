"""What a model could have learnt instead of the finding.

*Coincidence*: does source, view, age or image size alone give the finding away? *Near-duplicates*: is a test
image, all but for compression or exposure, also in training? *Lungs out*: how well does the model do when it
cannot see the lungs (Maguolo and Nanni 2021)? Each is a table and, where it matters, a caution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from wetread.errors import WetreadError
from wetread.evaluate import clustered, metrics
from wetread.evaluate.attributes import Names
from wetread.evaluate.intervals import Interval
from wetread.evaluate.metrics import BoolArray
from wetread.findings import Task
from wetread.radiograph import phantom
from wetread.radiograph.pixels import Transform

COINCIDES = 0.9
"""AUROC of an attribute alone from which it nearly coincides with the finding."""

MINIMUM = 20
"""Fewest images of either kind for which a coincidence is looked for."""

SMALL = 10
"""Groups of fewer patients are put together."""

HASH_SIDE = 16
NEAR = 10
"""Most of the 256 bits in which the hashes of near-duplicates differ."""

ALIKE = 0.98
"""Least correlation of the pictures of near-duplicates, at 64 x 64 pixels."""

KEPT = 0.7
"""Share of the skill (AUROC - 0.5) that may be left without lungs before it is a caution."""


# --- coincidence ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coincidence:
    """How well one attribute alone tells a finding.

    Attributes
    ----------
    attribute, finding : str
    auroc : float
        Of the finding's frequency in the image's group, 0.5 to 1; near 0.5 is good news.
    groups : dict of str to (int, int)
        Group: images with the finding present, absent.
    """

    attribute: str
    finding: str
    auroc: float
    groups: dict[str, tuple[int, int]]

    @property
    def nearly(self) -> bool:
        """Whether finding and attribute nearly coincide."""
        return self.auroc >= COINCIDES

    def sentence(self) -> str:
        """Return the caution."""
        largest = sorted(self.groups.items(), key=lambda item: -sum(item[1]))[:4]
        mix = ", ".join(f"{name}: {present} present, {absent} absent" for name, (present, absent) in largest)
        return (
            f"{self.finding} and {self.attribute} nearly coincide ({mix}): {self.attribute} alone has an AUROC of "
            f"{self.auroc:.2f}, so the model may have learnt it instead."
        )


def coincidences(
    task: Task, labels: ArrayLike, attributes: Mapping[str, ArrayLike], *, groups: ArrayLike
) -> tuple[Coincidence, ...]:
    """Ask how well each attribute alone tells each finding.

    Every image is scored by the frequency of the finding in its group; groups of few patients are put together
    first. Images whose group is not known (``""``) are a group too: that age is missing can give a class away.

    Parameters
    ----------
    task : Task
    labels : array_like of float [N, F]
    attributes : mapping of name to array_like of str [N]
    groups : array_like [N]
        Patient of each image.

    Returns
    -------
    tuple of Coincidence
        For findings with `MINIMUM` images of either kind; of two mirrored findings only the abnormal one.
    """
    y = np.asarray(labels, dtype=np.float64)
    patient = np.unique(np.asarray(groups), return_inverse=True)[1]
    mirror = task.normal if task.exclusive and len(task.findings) == 2 else None
    result = []
    for f, finding in enumerate(task.findings):
        certain = np.flatnonzero(metrics.known(y[:, f]))
        positive = y[certain, f] == 1
        if finding == mirror or min(positive.sum(), (~positive).sum()) < MINIMUM:
            continue
        for name, values in attributes.items():
            group = _merged(np.asarray(values).astype(str)[certain], patient[certain])
            if len(found := np.unique(group)) < 2:
                continue
            counts = {
                str(name): (int(positive[group == name].sum()), int((~positive[group == name]).sum())) for name in found
            }
            frequency = {name: present / (present + absent) for name, (present, absent) in counts.items()}
            score = np.array([frequency[str(name)] for name in group])
            result.append(Coincidence(name, finding, metrics.auroc(positive.astype(float), score), counts))
    return tuple(result)


def _merged(names: Names, patient: NDArray[np.intp]) -> Names:
    """Put groups of few patients together: by chance alone each of many small ones would tell its finding."""
    sizes = {name: np.unique(patient[names == name]).size for name in np.unique(names)}
    small = [name for name, size in sizes.items() if size < SMALL and name]
    return np.where(np.isin(names, small), "other", np.where(names == "", "unknown", names))


# --- near-duplicates --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Twins:
    """Near-duplicates across two splits.

    Attributes
    ----------
    images : int
        Images of the judged split that have one elsewhere.
    checked, against : int
        Images of the judged split, and of the others.
    pairs : tuple of (str, str, str)
        The closest: judged image, its twin, and the twin's split; at most 20.
    """

    images: int
    checked: int
    against: int
    pairs: tuple[tuple[str, str, str], ...]


def dhash(picture: NDArray[np.uint8], side: int = HASH_SIDE) -> BoolArray:
    """Return the difference hash of a picture [H, W]: whether each of side x side cells is brighter than its left one.

    After Krawetz 2013; it ignores size, exposure and compression. Bool [side²].
    """
    small = cv2.resize(picture, (side + 1, side), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.asarray(small[:, 1:] > small[:, :-1]).ravel()


def twins(pixels: NDArray[np.uint8], judged: NDArray[np.int64], others: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Find pairs of nearly equal pictures across two sets.

    Hashes that differ in at most `NEAR` bits agree wholly in one of `NEAR` + 1 bands of bits, so that only
    those are compared; a pair must also correlate at 64 x 64 pixels, because chests resemble each other.

    Parameters
    ----------
    pixels : uint8 array, shape [N, H, W]
    judged, others : int arrays
        Rows.

    Returns
    -------
    list of (int, int)
        Rows: each judged image that has one, with its closest.
    """
    if not len(judged) or not len(others):
        return []
    mine = np.stack([dhash(np.asarray(pixels[row])) for row in judged])
    theirs = np.stack([dhash(np.asarray(pixels[row])) for row in others])
    bands = np.array_split(np.random.default_rng(0).permutation(mine.shape[1]), NEAR + 1)  # neighbours are alike
    candidates: dict[int, set[int]] = {}
    for bits in bands:
        table: dict[bytes, list[int]] = {}
        for n, key in enumerate(np.packbits(theirs[:, bits], axis=1)):
            table.setdefault(key.tobytes(), []).append(n)
        for n, key in enumerate(np.packbits(mine[:, bits], axis=1)):
            candidates.setdefault(n, set()).update(table.get(key.tobytes(), ()))
    found = []
    for n, near in candidates.items():
        rivals = np.array(sorted(near), dtype=np.intp)
        distance = (mine[n] ^ theirs[rivals]).sum(1) if rivals.size else rivals
        order = np.argsort(distance, kind="stable")
        for place in order[: int((distance <= NEAR).sum())]:
            other = int(others[rivals[place]])
            if _correlation(pixels[judged[n]], pixels[other]) >= ALIKE:
                found.append((int(judged[n]), other))
                break
    return found


def _correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    a, b = (
        cv2.resize(np.asarray(p), (64, 64), interpolation=cv2.INTER_AREA).ravel().astype(float) for p in (one, other)
    )
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else 1.0


# --- lungs out --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LungsOut:
    """One finding with and without lungs.

    Attributes
    ----------
    finding : str
    whole, masked : Interval
        AUROC on the pictures, and on the same without the chest's inside.
    kept : float
        Share of the skill (AUROC - 0.5) that is left.
    """

    finding: str
    whole: Interval
    masked: Interval
    kept: float

    @property
    def suspicious(self) -> bool:
        """Whether most of the skill is left, beyond chance."""
        beyond_chance = all(area.value == 1 or area.low > 0.5 for area in (self.whole, self.masked))
        return beyond_chance and self.kept >= KEPT

    def sentence(self) -> str:
        """Return the caution."""
        return (
            f"{self.finding}: without the lungs the AUROC is still {self.masked.value:.2f} (with them "
            f"{self.whole.value:.2f}): most of the skill does not need them."
        )


@lru_cache(maxsize=8)
def chest_zone(transform: Transform, count: int = 12) -> BoolArray:
    """Return where lungs and heart are in what a model sees, from the lung fields of phantoms, bool [size, size].

    The hull of each phantom's lungs, counted where a quarter of the phantoms have it, and a margin: a real chest
    whose film is about filled lies within.
    """
    total = np.zeros((transform.size, transform.size), np.int64)
    for n in range(count):
        made = phantom.make(phantom.patient_seed(7, n), view="PA" if n % 2 else "AP", findings=())
        seen = transform(made.radiograph)
        height, width = made.lungs.shape
        x, y, w, h = seen.box
        columns = ((x + (np.arange(transform.size) + 0.5) / transform.size * w) * width).astype(int)
        rows = ((y + (np.arange(transform.size) + 0.5) / transform.size * h) * height).astype(int)
        lungs = made.lungs[np.ix_(rows.clip(0, height - 1), columns.clip(0, width - 1))]
        hull = cv2.convexHull(np.argwhere(lungs)[:, ::-1].astype(np.int32))
        total += np.asarray(cv2.fillConvexPoly(np.zeros(lungs.shape, np.uint8), hull, 1), np.int64)
    margin = max(3, transform.size // 16 | 1)
    zone = np.asarray(cv2.dilate((total >= count / 4).astype(np.uint8), np.ones((margin, margin), np.uint8)) > 0)
    zone.flags.writeable = False  # the same array for every caller
    return zone


def without(pixels: NDArray[np.uint8], zone: BoolArray) -> NDArray[np.uint8]:
    """Return pictures [N, H, W] with a zone [H, W] (or [N, H, W]) filled by each picture's mean outside it."""
    zones = np.broadcast_to(zone, pixels.shape)
    result = pixels.copy()
    for image, hidden in zip(result, zones, strict=True):
        image[hidden] = round(float(image[~hidden].mean())) if not hidden.all() else 0
    return result


def lungs_out(
    score: Callable[[NDArray[np.uint8]], NDArray[np.floating[Any]]],
    task: Task,
    pixels: NDArray[np.uint8],
    labels: ArrayLike,
    probability: ArrayLike,
    zone: BoolArray,
    *,
    groups: ArrayLike,
) -> tuple[LungsOut, ...]:
    """Score the pictures again without the chest's inside.

    Parameters
    ----------
    score : callable
        From uint8 [B, 1, H, W] to probabilities [B, F].
    task : Task
    pixels : uint8 array, shape [N, H, W]
    labels, probability : array_like of float [N, F]
        The probabilities of the whole pictures.
    zone : bool array, shape [H, W] or [N, H, W]
        What is hidden: `chest_zone`, or known masks.
    groups : array_like [N]
        Patient of each image.

    Returns
    -------
    tuple of LungsOut
        For findings with `MINIMUM` images of either kind.

    Raises
    ------
    WetreadError
        When the zone does not fit the pictures.
    """
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    if zone.shape[-2:] != pixels.shape[-2:]:
        raise WetreadError(f"zone {zone.shape}: pictures are {pixels.shape[-2:]}")
    patient = np.unique(np.asarray(groups), return_inverse=True)[1]
    batch = 16
    masked = np.concatenate(
        [
            np.asarray(
                score(without(pixels[i : i + batch], zone if zone.ndim == 2 else zone[i : i + batch])[:, None]),
                dtype=np.float64,
            )
            for i in range(0, len(pixels), batch)
        ]
    )
    mirror = task.normal if task.exclusive and len(task.findings) == 2 else None
    result = []
    for f, finding in enumerate(task.findings):
        certain, positive = metrics.known(y[:, f]), y[:, f] == 1
        if finding == mirror or min((certain & positive).sum(), (certain & ~positive).sum()) < MINIMUM:
            continue
        whole, left = (clustered.area(positive, scores[:, f], certain, patient).interval for scores in (p, masked))
        skill = whole.value - 0.5
        result.append(LungsOut(finding, whole, left, (left.value - 0.5) / skill if skill > 0 else float("nan")))
    return tuple(result)


# --- together ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shortcuts:
    """What was looked for, and found; None where it was not looked for."""

    coincidences: tuple[Coincidence, ...]
    twins: Twins | None
    lungs_out: tuple[LungsOut, ...] | None

    def cautions(self) -> list[str]:
        """Return a sentence for each shortcut that was found."""
        sentences = [found.sentence() for found in self.coincidences if found.nearly]
        if self.twins is not None and self.twins.images:
            judged, twin, split = self.twins.pairs[0]
            sentences.append(
                f"{self.twins.images} of {self.twins.checked} images have a near-duplicate in another split, e.g. "
                f"{judged} and {twin} ({split}): they test memory."
            )
        return sentences + [found.sentence() for found in self.lungs_out or () if found.suspicious]

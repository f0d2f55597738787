"""Whether heatmaps point at what they should: pointing game and overlap with masks or boxes.

*Pointing game* (Zhang and others 2018): the highest place of the map lies inside the mask. *Overlap*: intersection
over union of the mask and the part of the map at or above a share of its maximum, at a stated share and at the best
one over all images of a finding; the best is chosen on the same images, and so flatters a little. Beside
them stands what a guess at the middle of the image would have got.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from wetread.errors import DatasetError
from wetread.evaluate import clustered
from wetread.evaluate.intervals import Interval
from wetread.evaluate.metrics import BoolArray, FloatArray
from wetread.findings import Task

SHARES: FloatArray = np.round(np.arange(0.1, 1.0, 0.1), 1)
"""Shares of a map's maximum at which it is cut."""

SHARE = 0.5
NIH_SIDE = 1024
"""Side in pixels of the images to which NIH's boxes refer."""

NIH_NAMES = {"Infiltrate": "Infiltration"}
"""The table of boxes has its own word for one label."""

Box = tuple[float, float, float, float]
Picture = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Localised:
    """One finding.

    Attributes
    ----------
    finding : str
    images : int
        With the finding present and its place known.
    flagged : int
        Those at or above the operating point.
    pointing, pointing_flagged, middle : Interval
        Share of maps whose highest place is inside; the same among the flagged; share for the middle of the image.
    iou : float
        Mean overlap when maps are cut at `SHARE` of their maximum, 0 to 1.
    best_iou, best_share : float
        The largest mean overlap, and where it was cut.
    """

    finding: str
    images: int
    flagged: int
    pointing: Interval
    pointing_flagged: Interval
    middle: Interval
    iou: float
    best_iou: float
    best_share: float


def resize(heat: Picture, shape: tuple[int, int]) -> FloatArray:
    """Bring a map [h, w] to the grid of a mask [H, W]: bilinear between the centres of cells."""
    return np.asarray(
        cv2.resize(np.asarray(heat, np.float32), shape[::-1], interpolation=cv2.INTER_LINEAR), dtype=np.float64
    )


def points(heat: Picture, mask: BoolArray) -> bool:
    """Tell whether the highest place of a map lies inside the mask; both [H, W], NaN where nothing was seen."""
    return bool(mask.flat[int(np.nanargmax(heat))])


def overlap(heat: Picture, mask: BoolArray, shares: ArrayLike = SHARES) -> FloatArray:
    """Return the intersection over union of a mask and a map cut at shares of its maximum, float64 [S], 0 to 1.

    A map that is nowhere positive speaks for nothing and overlaps with nothing.
    """
    cut = np.asarray(shares, dtype=np.float64)
    values = np.nan_to_num(np.asarray(heat, dtype=np.float64), nan=-np.inf)
    highest = float(values.max())
    if highest <= 0:
        return np.zeros(cut.shape)
    inside = values[None] >= cut[:, None, None] * highest
    return np.asarray((inside & mask).sum((1, 2)) / (inside | mask).sum((1, 2)))


class Localiser:
    """Collects maps and masks image by image, so that only figures stay in memory.

    Parameters
    ----------
    task : Task
    thresholds : mapping of finding to float
        At or above which an image is flagged.
    """

    def __init__(self, task: Task, thresholds: Mapping[str, float]) -> None:
        self.task, self.thresholds = task, thresholds
        self._seen: dict[str, list[tuple[str, bool, bool, bool, FloatArray]]] = {f: [] for f in task.findings}

    def add(self, finding: str, heat: Picture, mask: BoolArray, probability: float, patient: str) -> None:
        """Add a finding that is present; `heat` is brought to the grid of `mask` [H, W], an empty one is ignored."""
        if not mask.any():
            return
        heat = heat if heat.shape == mask.shape else resize(heat, (mask.shape[0], mask.shape[1]))
        middle = bool(mask[mask.shape[0] // 2, mask.shape[1] // 2])
        flagged = probability >= self.thresholds[finding]
        self._seen[finding].append((patient, flagged, points(heat, mask), middle, overlap(heat, mask)))

    def result(self) -> tuple[Localised, ...]:
        """Return the figures of the findings that were added, and of ``all`` together where there are several."""
        named = {finding: seen for finding, seen in self._seen.items() if seen}
        whole = {"all": [entry for seen in named.values() for entry in seen]} if len(named) > 1 else {}
        return tuple(self._one(finding, seen) for finding, seen in (named | whole).items())

    @staticmethod
    def _one(finding: str, seen: list[tuple[str, bool, bool, bool, FloatArray]]) -> Localised:
        patient = np.unique([entry[0] for entry in seen], return_inverse=True)[1]
        flagged, hit, middle = (np.array([entry[i] for entry in seen], dtype=bool) for i in (1, 2, 3))
        everywhere = np.ones(len(seen), dtype=bool)
        mean = np.mean([entry[4] for entry in seen], axis=0)
        best = int(mean.argmax())
        return Localised(
            finding,
            len(seen),
            int(flagged.sum()),
            clustered.share(hit, everywhere, patient).interval,
            clustered.share(hit, flagged, patient).interval,
            clustered.share(middle, everywhere, patient).interval,
            float(mean[int(np.flatnonzero(SHARES == SHARE)[0])]),
            float(mean[best]),
            float(SHARES[best]),
        )


def read_boxes(path: Path, *, side: float = NIH_SIDE) -> dict[tuple[str, str], list[Box]]:
    """Read boxes in the layout of NIH's ``BBox_List_2017.csv``.

    Its header is ``Image Index,Finding Label,Bbox [x,y,w,h],,,``: the four numbers of a box are four columns, and
    three more without a name follow.

    Parameters
    ----------
    path : Path
    side : float
        Side in pixels of the images to which the numbers refer.

    Returns
    -------
    dict of (image, finding) to list of (x, y, width, height)
        As fractions of the image.

    Raises
    ------
    DatasetError
        Naming the line that is no box.
    """
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: not a CSV file in UTF-8: {error}") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from None
    header = [name.strip().lower() for name in (lines[0] if lines else [])]
    if header[:2] != ["image index", "finding label"] or not "".join(header[2:6]).startswith("bbox"):
        raise DatasetError(f"{path}: the first line must begin Image Index,Finding Label,Bbox [x,y,w,h]; it is no list")
    found: dict[tuple[str, str], list[Box]] = {}
    for number, cells in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in cells):
            continue
        try:
            image, finding = cells[0].strip(), cells[1].strip()
            x, y, width, height = (float(cell) / side for cell in cells[2:6])
        except (ValueError, IndexError):
            raise DatasetError(f"{path}: line {number}: expected image, finding and four numbers") from None
        if not (image and finding and width > 0 and height > 0 and 0 <= x <= 1 and 0 <= y <= 1):
            raise DatasetError(
                f"{path}: line {number}: x {x * side:g}, y {y * side:g}, width {width * side:g}, height "
                f"{height * side:g} is no box in an image of {side:g} pixels"
            )
        found.setdefault((image, NIH_NAMES.get(finding, finding)), []).append((x, y, width, height))
    if not found:
        raise DatasetError(f"{path}: no box below the first line")
    return found


def box_mask(boxes: Sequence[Box], side: int) -> BoolArray:
    """Return the union of boxes, fractions of the picture, as a mask [side, side]: cells whose centre is inside."""
    centre = (np.arange(side) + 0.5) / side
    mask = np.zeros((side, side), dtype=bool)
    for x, y, width, height in boxes:
        rows, columns = (centre >= y) & (centre < y + height), (centre >= x) & (centre < x + width)
        mask |= rows[:, None] & columns[None]
    return mask

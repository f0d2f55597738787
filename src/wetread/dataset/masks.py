"""Where the findings of an image are: masks beside the images, brought into the coordinates that a model sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wetread.dataset import files
from wetread.errors import DatasetError
from wetread.radiograph.read import Limits, read

SIDE = 48
"""Side of a packed mask, in cells: finer than any finding map."""

Box = tuple[float, float, float, float]


def name(image: str, finding: str) -> str:
    """Return the name of a finding's mask beside an image: ``view1_frontal.pleural_effusion.png``."""
    return str(Path(image).with_suffix(f".{finding.lower().replace(' ', '_')}.png"))


def beside(file: str, member: str | None, findings: Sequence[str], box: Box) -> NDArray[np.uint8]:
    """Read the masks that lie beside an image.

    Parameters
    ----------
    file, member : str, str or None
        The image, or the archive and the image inside it.
    findings : sequence of str
        F names; a finding without a mask has an empty one.
    box : (float, float, float, float)
        x, y, width and height of the part of the image that a model sees, as fractions.

    Returns
    -------
    uint8 array, shape [F, SIDE, SIDE]
        Share of each cell that the finding covers, times 255.

    Raises
    ------
    ReadError, DatasetError
        For a mask that is no picture.
    """
    cells = np.zeros((len(findings), SIDE, SIDE), np.uint8)
    for index, finding in enumerate(findings):
        place = name(member or file, finding)
        if member is None:
            if not Path(place).is_file():
                continue
            mask = read(Path(place), name=Path(place).name).pixels
        else:
            try:
                data = files.read(file, place, Limits().max_bytes)
            except DatasetError:
                continue
            mask = read(data, name=Path(place).name).pixels
        cells[index] = crop(mask > 0, box)
    return cells


def crop(mask: NDArray[np.bool_], box: Box, side: int = SIDE) -> NDArray[np.uint8]:
    """Return the share, times 255, that a mask [H, W] covers of each cell of a grid over a part of it."""
    height, width = mask.shape
    fine = 8 * side  # first by position, then the mean of 8 x 8: any box, whole or not, counts exactly enough
    x, y, w, h = box
    columns = np.clip(((x + (np.arange(fine) + 0.5) / fine * w) * width).astype(int), 0, width - 1)
    rows = np.clip(((y + (np.arange(fine) + 0.5) / fine * h) * height).astype(int), 0, height - 1)
    picked = mask[np.ix_(rows, columns)].astype(np.float32)
    return np.rint(255 * cv2.resize(picked, (side, side), interpolation=cv2.INTER_AREA)).astype(np.uint8)

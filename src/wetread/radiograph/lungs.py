"""Where the lungs are: the best match of a lung template in a radiograph, and templates of our own making.

The method is that of Pham et al. 2021 (arXiv 1911.06475): a radiograph of 256×256 pixels is searched for the
224×224 region that resembles a template best. Resemblance is the normalised cross-correlation after subtracting
both means (OpenCV's ``TM_CCOEFF_NORMED``), which neither exposure nor contrast can change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wetread.errors import ReadError
from wetread.radiograph.read import Radiograph, ramp, read, to_8_bit

SOURCE, SIZE = 256, 224


def squash(radiograph: Radiograph, size: int) -> NDArray[np.uint8]:
    """Resize a radiograph to `size` × `size` pixels of 8 bits; the aspect is not kept, as in the CheXpert papers.

    Returns
    -------
    uint8 array, shape [size, size]
    """
    small: Any = cv2.resize(radiograph.pixels, (size, size), interpolation=cv2.INTER_AREA)
    return to_8_bit(small)


def locate(image: NDArray[np.uint8], template: NDArray[np.uint8]) -> tuple[int, int, float]:
    """Find the region of `image` that resembles `template` best.

    Parameters
    ----------
    image : uint8 array, shape [H, W]
    template : uint8 array, shape [h, w]
        Not larger than `image`.

    Returns
    -------
    x, y : int
        Left column and top row of the region of the template's size.
    match : float
        Correlation coefficient there, -1 to 1; 0 where the image is constant.
    """
    scores = cv2.matchTemplate(image, template, cv2.TM_CCOEFF_NORMED)
    scores = np.where(np.isfinite(scores) & (np.abs(scores) <= 1.0001), scores, 0.0)  # constant regions give ±inf
    y, x = np.unravel_index(int(scores.argmax()), scores.shape)
    return int(x), int(y), float(np.clip(scores[y, x], -1, 1))


def average(arrays: Iterable[NDArray[np.uint8]], size: int = SIZE, rounds: int = 1) -> NDArray[np.uint8]:
    """Make a template from many radiographs.

    The first average is of one region that is central from side to side and three quarters of the way down, because
    the costophrenic angles reach lower than anything above the apices that matters. Each later round averages the
    regions that match the template so far, so that lungs come to lie upon lungs.

    Parameters
    ----------
    arrays : iterable of uint8 arrays, shape [H, W]
        Whole radiographs of one common size, at least `size` in both directions.
    size : int
        Side of the template.
    rounds : int
        Rounds of alignment after the first average.

    Returns
    -------
    uint8 array, shape [size, size]

    Raises
    ------
    ValueError
        When there are no arrays, or they are too small.
    """
    images = list(arrays)
    if not images or min(min(image.shape) for image in images) < size:
        raise ValueError(f"a template needs at least one radiograph of {size}×{size} pixels or more")
    height, width = images[0].shape
    x, y = (width - size) // 2, 3 * (height - size) // 4
    template = _mean([image[y : y + size, x : x + size] for image in images])
    for _ in range(rounds):
        places = [locate(image, template)[:2] for image in images]
        template = _mean([i[y : y + size, x : x + size] for i, (x, y) in zip(images, places, strict=True)])
    return template


def _mean(regions: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Average regions of equal exposure: each is brought to mean 0 and deviation 1 first."""
    total = np.zeros(regions[0].shape)
    for region in regions:
        deviation = float(region.std())
        if deviation > 0:
            total += (region - region.mean()) / deviation
    return ramp(total, float(total.min()), float(total.max()), 8).astype(np.uint8)


def from_file(file: Path, box: tuple[int, int, int, int], source: int = SOURCE, size: int = SIZE) -> NDArray[np.uint8]:
    """Cut a template by hand from one clear film.

    Parameters
    ----------
    file : Path
        Any radiograph that `read` takes.
    box : (x, y, w, h)
        The lungs, in pixels of the file's image.

    Returns
    -------
    uint8 array, shape [size, size]

    Raises
    ------
    ReadError
        When the file cannot be read, or the box does not lie within its image.
    """
    radiograph = read(file)
    x, y, w, h = box
    height, width = radiograph.pixels.shape
    if w < 1 or h < 1 or x < 0 or y < 0 or x + w > width or y + h > height:
        raise ReadError(f"{file}: box {x},{y},{w},{h} does not lie within its {width}×{height} pixels")
    return squash(replace(radiograph, pixels=radiograph.pixels[y : y + h, x : x + w]), size)

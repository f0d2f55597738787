"""Changes to a picture that must not change what is found: shift, rotation, exposure, markers, borders.

Each takes and gives uint8 arrays [H, W] in the coordinates that a model sees, and is small: what a technician,
another machine or another crop does every day.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Change = Callable[[Picture], Picture]

_RIM = 0.25
"""Markers are looked for within this share of the sides from the border."""

_MARKER_AREA = 0.02
"""Largest share of the picture that one marker covers."""


def shift(picture: Picture, right: float, down: float) -> Picture:
    """Move the picture by shares of its sides; the edge is repeated into the gap."""
    height, width = picture.shape
    return _warp(picture, np.array([[1, 0, right * width], [0, 1, down * height]], np.float32))


def rotate(picture: Picture, degrees: float) -> Picture:
    """Turn the picture around its middle, anticlockwise; the edge is repeated into the gap."""
    height, width = picture.shape
    return _warp(picture, cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0))


def brighten(picture: Picture, by: float) -> Picture:
    """Add a share of the full range to every pixel, 0 to 255."""
    return np.asarray(np.clip(np.rint(picture + 255.0 * by), 0, 255), np.uint8)


def stretch(picture: Picture, factor: float) -> Picture:
    """Multiply the distance of every pixel from the mean grey value."""
    mean = float(picture.mean())
    return np.asarray(np.clip(np.rint(mean + (picture - mean) * factor), 0, 255), np.uint8)


def without_markers(picture: Picture) -> Picture:
    """Paint over small bright objects near the border: side letters, initials, stickers.

    They are found as what a white top-hat keeps (objects thinner than a fifteenth of the picture and much
    brighter than what surrounds them, in the corners), and filled from their surroundings (Telea 2004).
    """
    side = max(3, min(picture.shape) // 15 | 1)
    tophat = cv2.morphologyEx(picture, cv2.MORPH_TOPHAT, np.ones((side, side), np.uint8))
    bright = tophat > 45
    height, width = picture.shape
    rows, columns = np.arange(height)[:, None] / height, np.arange(width)[None] / width
    near = (np.minimum(rows, 1 - rows) < _RIM) & (np.minimum(columns, 1 - columns) < _RIM)  # the corners
    _, label, stats, _ = cv2.connectedComponentsWithStats((bright & near).astype(np.uint8), connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] <= _MARKER_AREA * picture.size
    small[0] = False
    mask = cv2.dilate(small[label].astype(np.uint8), np.ones((5, 5), np.uint8))
    return np.asarray(cv2.inpaint(picture, mask, 3, cv2.INPAINT_TELEA), np.uint8) if mask.any() else picture.copy()


def without_border(picture: Picture, share: float) -> Picture:
    """Replace a frame, as wide as a share of the sides, by the pixels at its inner edge."""
    height, width = picture.shape
    y, x = round(share * height), round(share * width)
    inner = picture[y : height - y, x : width - x]
    return np.pad(inner, ((y, height - y - inner.shape[0]), (x, width - x - inner.shape[1])), mode="edge")


CHANGES: Mapping[str, tuple[Change, ...]] = {
    "shift by 2 %": tuple(partial(shift, right=x, down=y) for x, y in ((0.02, 0), (-0.02, 0), (0, 0.02), (0, -0.02))),
    "brightness by 5 %": tuple(partial(brighten, by=by) for by in (0.05, -0.05)),
    "contrast by 10 %": tuple(partial(stretch, factor=factor) for factor in (1.1, 0.9)),
    "rotation by 3°": tuple(partial(rotate, degrees=degrees) for degrees in (3.0, -3.0)),
    "markers removed": (without_markers,),
    "border removed": (partial(without_border, share=0.04),),
}
"""The changes of each kind; each image takes the changes of a kind in turn."""


def _warp(picture: Picture, matrix: NDArray[Any]) -> Picture:
    size = (picture.shape[1], picture.shape[0])
    return np.asarray(
        cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )

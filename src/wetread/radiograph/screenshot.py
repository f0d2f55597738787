"""Text in a picture: a film carries a marker and a few words, a picture of a screen carries lines and lines of them.

Letters change from ground to ink and back several times within a few pixels, on a ground of one grey. Blocks of 16×16
pixels where that is so, four or more of them side by side, count as text; films have at most a dozen such blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from wetread.radiograph.read import Radiograph, to_8_bit

MANY = 24  # blocks of text: twice as many as any film of the public collections has

_BLOCK = 16
_EDGE = 60  # grey levels between neighbouring pixels
_STROKES = 10  # such edges in a block
_GROUND, _SHARE = 6, 0.5  # share of a block's pixels that lie within so many levels of its median
_RUN = 4  # blocks side by side
_BLACK = 8  # grey levels: above, the ground of a text is a panel and no unexposed film


class Text(NamedTuple):
    """How many blocks of a picture hold text, on any ground, and on a ground that is not black."""

    blocks: int
    on_panels: int


def text(radiograph: Radiograph) -> Text:
    """Count the blocks of text in a radiograph, best at full size: at half size nine screens in ten are still told."""
    pixels = to_8_bit(radiograph.pixels)
    height, width = (side // _BLOCK for side in pixels.shape)
    if min(height, width) < 1:
        return Text(0, 0)
    edges = (cv2.absdiff(pixels[:, 1:], pixels[:, :-1]) > _EDGE).astype(np.float32)
    edges = np.pad(edges, ((0, 0), (0, 1)))[: height * _BLOCK, : width * _BLOCK]
    strokes = cv2.resize(edges, (width, height), interpolation=cv2.INTER_AREA) * _BLOCK**2
    here = np.argwhere(np.asarray(strokes) > _STROKES - 0.5)
    if not len(here):
        return Text(0, 0)
    blocks = pixels[: height * _BLOCK, : width * _BLOCK].reshape(height, _BLOCK, width, _BLOCK)
    chosen = blocks[here[:, 0], :, here[:, 1], :].reshape(len(here), -1).astype(np.int16)
    ground = np.median(chosen, axis=1)
    letters = (np.abs(chosen - ground[:, None]) <= _GROUND).mean(axis=1) >= _SHARE
    found, panels = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    found[tuple(here[letters].T)] = 1
    panels[tuple(here[letters & (ground > _BLACK)].T)] = 1
    return Text(_lines(found), _lines(panels))


def _lines(found: NDArray[np.uint8]) -> int:
    """Count the blocks that stand in a row of at least four."""
    return int(cv2.morphologyEx(found, cv2.MORPH_OPEN, np.ones((1, _RUN), np.uint8)).sum())

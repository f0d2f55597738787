"""Writing in the picture itself: names, numbers and dates that no tag can take away.

Writing is a row of strokes: thin, of high contrast, of one height, on one line, and crossed again and again by any row
of pixels. Ribs, wires and edges are crossed once or twice. Rows are looked for in white and black, in small and large,
and upright or turned by a quarter.

What says how the film was taken may stay: markers of a few letters (L, R, AP, initials of the technologist) are shorter
than what counts as writing, and the words of `WORDS` are recognised by comparing them with how they look in print.
There is no reading beyond that: any other writing, a clock or the tube's current, counts as burned in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wetread.radiograph.read import Pixels, to_8_bit

WORDS = (
    "PORTABLE", "PORT", "MOBILE", "SUPINE", "ERECT", "SEMI-ERECT", "SEMIERECT", "SEMI ERECT", "UPRIGHT", "SEMI-UPRIGHT",
    "SITTING", "STANDING", "DECUBITUS", "LATERAL", "RIGHT", "LEFT", "AP PORTABLE", "PORTABLE AP", "PORTABLE SUPINE",
    "AP SUPINE", "AP ERECT", "PA ERECT", "AP UPRIGHT",
)  # fmt: skip

_LONG, _SHORT = 1280, 640  # sides in pixels: larger pictures are made smaller, small ones larger
_KERNELS = (9, 19)  # strokes are thinner than this
_CONTRAST = 45  # of 255, of a stroke against what is around it
_LOWEST = 7  # height of a letter in pixels
_CROSSED = (5, 7)  # strokes on a row of pixels, upright and turned: markers such as "AP" or "MST" have fewer
_DENSE = 1.1  # strokes for each height of the line that it is long
_LENGTH = 8.0  # strokes and heights together: three initials have fewer
_EVEN = 25.0  # spread of the brightness of letters of one line
_TALL = 20  # pixels to which a line is brought to be compared with words
_HINT = 0.25  # correlation at a middle size, below which no other size is tried
_ALIKE = {"short": 0.72, "long": 0.57}  # correlation with a known word of at most, or more than, six letters


@dataclass(frozen=True)
class Writing:
    """A line of writing.

    Attributes
    ----------
    box : (float, float, float, float)
        Left, top, right and bottom, as shares of the picture's width and height.
    strokes : int
        How often a row of pixels crosses it: about one and a half to two for each letter.
    """

    box: tuple[float, float, float, float]
    strokes: int


@dataclass(frozen=True)
class _Line:
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels
    strokes: int


def find(pixels: Pixels) -> list[Writing]:
    """Return the lines of writing in a radiograph, markers and technical words left out, most strokes first.

    Parameters
    ----------
    pixels : uint8 or uint16 array, shape [H, W]
    """
    picture = _sized(to_8_bit(pixels))
    found = []
    for turns in range(2):
        turned = np.ascontiguousarray(np.rot90(picture, turns))
        height, width = turned.shape
        for line in _unknown(turned, [line for line in _lines(turned) if line.strokes >= _CROSSED[turns]]):
            left, top, right, bottom = (v / n for v, n in zip(line.box, (width, height) * 2, strict=True))
            box = (left, top, right, bottom) if not turns else (1 - bottom, left, 1 - top, right)
            found.append(Writing(box, line.strokes))
    return sorted(found, key=lambda writing: -writing.strokes)


def _sized(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    longest = max(picture.shape)
    if longest > _LONG:
        picture = _resized(picture, _LONG / longest, cv2.INTER_AREA)
    elif longest < _SHORT:
        picture = _resized(picture, 2.0, cv2.INTER_CUBIC)
    return picture


def _resized(picture: Any, scale: float, how: int) -> Any:
    height, width = picture.shape
    return cv2.resize(picture, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=how)


def _lines(picture: NDArray[np.uint8]) -> list[_Line]:
    found = []
    for kernel in _KERNELS:
        square = cv2.getStructuringElement(cv2.MORPH_RECT, (kernel, kernel))
        for way in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):  # white strokes, black strokes
            strokes = (cv2.morphologyEx(picture, way, square) >= _CONTRAST).astype(np.uint8)
            found += _rows(picture, strokes, 6 * kernel, 85 if way == cv2.MORPH_TOPHAT else 15)
    return found


def _rows(picture: NDArray[np.uint8], strokes: NDArray[np.uint8], tallest: int, ink: int) -> list[_Line]:
    """Put pieces that stand side by side together, and return those that look written.

    Parameters
    ----------
    tallest : int
        Height of a letter in pixels, at most.
    ink : int
        Which percentile of a letter's pixels is its ink.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(strokes, connectivity=8)
    left, top, width, height, area = stats[1:].T
    fill = area / (width * height)
    bar = (width > 2.5 * height) & (fill > 0.75)
    kept = (height >= _LOWEST - 2) & (height <= tallest) & (width <= 14 * height) & (fill > 0.15) & ~bar
    pieces = sorted(
        (int(left[i]), int(top[i]), int(width[i]), int(height[i]), int(i) + 1) for i in np.flatnonzero(kept)
    )
    rows: list[list[tuple[int, int, int, int, int]]] = []
    for piece in pieces:
        row = next((row for row in reversed(rows[-400:]) if _joins(row[-1], piece)), None)
        if row is None:
            rows.append([piece])
        else:
            row.append(piece)
    return [line for row in rows if (line := _written(picture, labels, row, ink)) is not None]


def _joins(last: tuple[int, int, int, int, int], piece: tuple[int, int, int, int, int]) -> bool:
    """Tell whether a piece goes on where the last one ended: same line, like height, no wide gap."""
    x, y, w, h, _ = last
    left, top, _, height, _ = piece
    high, low = max(h, height), min(h, height)
    overlap = min(y + h, top + height) - max(y, top)
    return (
        -0.5 * high <= left - (x + w) <= 1.3 * high
        and low >= 0.55 * high
        and overlap >= 0.6 * low
        and abs((y + h) - (top + height)) <= 0.25 * high
    )


def _written(
    picture: NDArray[np.uint8], labels: NDArray[Any], row: list[tuple[int, int, int, int, int]], ink: int
) -> _Line | None:
    left, top = min(piece[0] for piece in row), min(piece[1] for piece in row)
    right = max(piece[0] + piece[2] for piece in row)
    bottom = max(piece[1] + piece[3] for piece in row)
    high, wide = bottom - top, right - left
    if high < _LOWEST or wide < 2 * high:
        return None
    inside = np.isin(labels[top:bottom, left:right], [piece[4] for piece in row])
    middle = np.pad(inside[high // 5 : high - high // 5].astype(np.int8), ((0, 0), (1, 1)))
    crossed = (np.diff(middle, axis=1) == 1).sum(1)
    strokes, least = np.percentile(crossed, (60, 20))
    if strokes < _CROSSED[0] or least < 2 or strokes < _DENSE * wide / high or wide / high + strokes < _LENGTH:
        return None
    tones = [
        np.percentile(picture[y : y + h, x : x + w][labels[y : y + h, x : x + w] == label], ink)
        for x, y, w, h, label in row
    ]
    return _Line((left, top, right, bottom), int(strokes)) if np.std(tones) < _EVEN else None


def _unknown(picture: NDArray[np.uint8], lines: list[_Line]) -> list[_Line]:
    """Return the lines that are not covered by known words."""
    known = [line.box for line in lines if _is_word(picture, line.box)]

    def covered(box: tuple[int, int, int, int]) -> bool:
        columns = np.zeros(box[2] - box[0], bool)
        for left, top, right, bottom in known:
            if min(bottom, box[3]) - max(top, box[1]) > 0.5 * (box[3] - box[1]):
                columns[max(0, left - box[0]) : max(0, right - box[0])] = True
        return bool(columns.mean() > 0.7)

    return [line for line in lines if not covered(line.box)]


def _is_word(picture: NDArray[np.uint8], box: tuple[int, int, int, int]) -> bool:
    left, top, right, bottom = box
    high, edge = bottom - top, max(3, (bottom - top) // 4)
    cut = picture[max(0, top - edge) : bottom + edge, max(0, left - edge) : right + edge].astype(np.float32)
    scale = _TALL / high
    cut = _resized(cut, scale, cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    ways = (cut, cut[::-1, ::-1].copy())  # a turned line may stand on its head
    long, across = (right - left) / high, scale * (right - left)
    for word, bold, edged in product(WORDS, (False, True), (False, True)):
        print_ = _print(word, bold, edged)
        if not 0.6 < print_.shape[1] / print_.shape[0] / long < 1.5:
            continue
        enough = _ALIKE["short" if len(word) <= 6 else "long"]
        for way in ways:
            if _correlation(way, print_, across, 18, 0.93) < _HINT:
                continue
            sizes = product((16, 18, 20, 22), (0.86, 0.93, 1.0, 1.06))
            if any(_correlation(way, print_, across, tall, stretch) >= enough for tall, stretch in sizes):
                return True
    return False


def _correlation(
    cut: NDArray[np.float32], print_: NDArray[np.uint8], across: float, tall: int, stretch: float
) -> float:
    """Return the highest correlation of a word of this size anywhere in a cut-out."""
    wide = round(across * stretch)
    if tall > cut.shape[0] or wide > cut.shape[1]:
        return -1.0
    small = cv2.GaussianBlur(cv2.resize(print_, (wide, tall), interpolation=cv2.INTER_AREA), (3, 3), 0)
    return float(cv2.matchTemplate(cut, small.astype(np.float32), cv2.TM_CCOEFF_NORMED).max())


@cache
def _print(word: str, bold: bool, edged: bool) -> NDArray[np.uint8]:
    """Return a word in print, without a margin: white on black, or edged in black on grey."""
    from matplotlib import font_manager  # takes a while
    from matplotlib.ft2font import FT2Font

    properties = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    font = FT2Font(font_manager.findfont(properties))
    font.set_size(40, 72)
    font.set_text(word, 0.0)
    font.draw_glyphs_to_bitmap(antialiased=True)
    picture: Any = np.asarray(font.get_image(), np.uint8)
    if edged:
        picture = cv2.copyMakeBorder(picture, 5, 5, 5, 5, cv2.BORDER_CONSTANT, value=0)
        edge = cv2.dilate(picture, np.ones((9, 9), np.uint8)).astype(np.float32) / 255
        grey = 160 * (1 - edge) * (1 - picture / 255) + picture.astype(np.float32)
        return np.asarray(cv2.GaussianBlur(grey, (3, 3), 0), np.uint8)
    rows, columns = np.nonzero(picture > 60)
    return np.asarray(picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], np.uint8)

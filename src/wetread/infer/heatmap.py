"""From a finding's map to a picture: image coordinates, colours, PNG.

A map is on the grid of the network's last features and covers the part of the image that the model
saw (`Seen.box`). Positive values speak for the finding, negative ones against it; the picture shows
the positive ones, relative to the strongest.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]


def to_image(values: NDArray[np.float32], box: Box, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Resample a map to image coordinates: the inverse of the transform's crop and change of aspect.

    Parameters
    ----------
    values : float32 array, shape [h, w]
        One finding's map.
    box : (x, y, w, h)
        The part of the image that the map covers, as fractions of the image (`Seen.box`).
    shape : (int, int)
        Height and width of the wanted picture; any scale of the image.

    Returns
    -------
    float32 array, shape [H, W]
        Bilinear between the centres of the map's cells; NaN where the model saw nothing.
    """
    x, y, width, height = box
    rows, above = _weights(values.shape[0], y, height, shape[0])
    columns, beside = _weights(values.shape[1], x, width, shape[1])
    result: NDArray[np.float32] = rows @ values.astype(np.float32) @ columns.T
    result[above] = np.nan
    result[:, beside] = np.nan
    return result


def _weights(cells: int, start: float, extent: float, pixels: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the bilinear weights [pixels, cells] along one axis, and which pixels lie outside."""
    inside = ((np.arange(pixels) + 0.5) / pixels - start) / extent
    position = np.clip(inside * cells - 0.5, 0, cells - 1)
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells)))
    return weights.astype(np.float32), (inside < 0) | (inside > 1)


def layer(values: NDArray[np.float32], opacity: float = 0.5) -> NDArray[np.uint8]:
    """Colour a map in image coordinates as a transparent layer.

    Viridis is perceptually uniform and safe for the colour-blind. Opacity grows with the evidence, so that
    the radiograph stays bare where there is none.

    Parameters
    ----------
    values : float32 array, shape [H, W]
        As `to_image` gives it.
    opacity : float
        Of the strongest place, 0 to 1.

    Returns
    -------
    uint8 array, shape [H, W, 4]
        RGBA.
    """
    from matplotlib import colormaps

    positive = np.nan_to_num(np.maximum(values, 0), nan=0.0)
    strength = positive / max(float(positive.max(initial=0.0)), 1e-12)
    table = (colormaps["viridis"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    rgba = np.empty((*values.shape, 4), np.uint8)
    rgba[..., :3] = table[(strength * 255).round().astype(np.uint8)]
    rgba[..., 3] = (strength * opacity * 255).round()
    return rgba


def overlay(
    pixels: NDArray[np.uint8] | NDArray[np.uint16], values: NDArray[np.float32], opacity: float = 0.5
) -> NDArray[np.uint8]:
    """Draw a map in image coordinates over its radiograph.

    Parameters
    ----------
    pixels : uint8 or uint16 array, shape [H, W]
        The radiograph.
    values : float32 array, shape [H, W]
        As `to_image` gives it for that shape.
    opacity : float
        Of the strongest place, 0 to 1.

    Returns
    -------
    uint8 array, shape [H, W, 3]
        RGB.
    """
    grey = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    coloured = layer(values, opacity)
    alpha = coloured[..., 3:].astype(np.float32) / 255
    mixed = grey[..., None] * (1 - alpha) + coloured[..., :3] * alpha
    return np.asarray(mixed.round(), np.uint8)


def over_seen(pixels: NDArray[np.uint8], values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw a map [h, w] over the array [H, W] that the model saw, which it covers wholly; RGB [H, W, 3]."""
    return overlay(pixels, to_image(values, (0.0, 0.0, 1.0, 1.0), (pixels.shape[0], pixels.shape[1])))


def png(picture: NDArray[np.uint8]) -> bytes:
    """Encode grey [H, W], RGB [H, W, 3] or RGBA [H, W, 4] as PNG."""
    if picture.ndim == 3:
        picture = picture[..., [2, 1, 0, 3][: picture.shape[2]]]  # OpenCV's order is BGR
    return cv2.imencode(".png", picture)[1].tobytes()

"""A scene onto film: attenuation, scatter, noise, the display curve, collimation and marker."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from wetread.radiograph.anatomy import Array
from wetread.radiograph.projection import Scene, ease

# Effective linear attenuation in 1/cm near 75 keV (NIST XCOM, hardened beam); bone is cortical.
TISSUE, LUNG, BONE, METAL = 0.19, 0.048, 0.52, 3.0

# What heart, vessels and blur add to the optical depth of the lungs, on average.
_OVERLAP = {"PA": 0.15, "AP": 0.19, "LATERAL": 0.74}


def expose(scene: Scene, *, grain: float | None = None) -> NDArray[np.uint8]:
    """Take the picture: Beer-Lambert, scatter, blur, quantum noise, the display curve, collimation and marker.

    Returns
    -------
    uint8 array [H, W]
        Dense tissue bright.
    """
    body, size = scene.body, scene.size
    rng = np.random.default_rng([body.seed, 6, body.study, ("PA", "AP", "LATERAL").index(scene.view)])
    portable = scene.view == "AP"  # at the bedside: softer beam, no grid or a poor one, flatter contrast
    air = scene.lung[0] + scene.lung[1]
    lung = scene.lung[0] * scene.density[0] + scene.lung[1] * scene.density[1]
    tissue = np.maximum(scene.body_path - air - scene.gas, 0) + scene.soft
    visible = ease(air / 4)
    tissue = tissue + scene.vessels * visible + 0.3 * visible * scene.texture * np.sqrt(np.maximum(air, 0) / 14)
    line = TISSUE * tissue + LUNG * lung + (BONE - TISSUE) * scene.bone + METAL * scene.metal
    primary = np.exp(-np.maximum(line, 0))
    spread = np.float32(rng.uniform(0.4, 0.9) * (1.7 if portable else 1.0))
    scatter = scene.blur(np.minimum(primary, 0.2), 3.0) * spread + np.float32(0.004)
    signal = cv2.GaussianBlur(primary, (0, 0), max(0.45, 0.05 / scene.cm)) + scatter
    dose = rng.uniform(1.0, 2.2) if grain is None else grain
    noise = rng.standard_normal((size, size), dtype=np.float32)
    log = -np.log(signal)
    log = log + np.float32(rng.uniform(0.2, 0.6)) * (
        log - scene.blur(log, 0.7)
    )  # the edge enhancement of every console
    log = log + noise * np.float32(0.004 * dose) / np.sqrt(signal)
    return _display(scene, log, _healthy_level(scene, spread), rng)


def _healthy_level(scene: Scene, spread: np.float32) -> float:
    """Return the optical depth that the darker lung would have without findings.

    The exposure is set by it, so that a finding does not brighten or darken the rest of the picture.
    """
    air = (scene.whole[0] + scene.whole[1])[::4, ::4]
    tissue = np.maximum(scene.body_path[::4, ::4] - air, 0)
    primary = np.exp(-(TISSUE * tissue + LUNG * air + (BONE - TISSUE) * scene.bone[::4, ::4]))
    scatter = cv2.GaussianBlur(np.minimum(primary, 0.2), (0, 0), 3.0 / scene.cm / 4) * spread + 0.004
    fields = air > 6
    depth = float(np.quantile(-np.log(primary + scatter)[fields], 0.3)) if fields.any() else 2.0
    return depth + _OVERLAP[scene.view]


def _display(scene: Scene, log: Array, low: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    inner = scene.body_path > 12
    high = float(np.quantile(log[inner][::17], 0.95)) if inner.any() else 4.0
    x = (log - low) / max(high - low, 0.5)
    contrast = np.float32(rng.uniform(0.85, 1.2) * (0.78 if scene.view == "AP" else 1.0))
    level = np.float32(rng.uniform(-0.08, 0.1) + (0.04 if scene.view == "AP" else 0.0))
    y = 1 / (1 + np.exp(-(x - 0.12 + level) * 3.2 * contrast))
    image = np.asarray(255 * (0.0 + 0.93 * y), np.float32)
    picture = np.clip(_collimate(scene, image, rng), 0, 255).astype(np.uint8)
    if rng.random() < 0.85:
        _mark(scene, picture, rng)
    return picture


def _collimate(scene: Scene, image: Array, rng: np.random.Generator) -> Array:
    size = scene.size
    if rng.random() < 0.35:
        margin = size * rng.uniform(0.0, 0.035, 4)
        tilt = rng.normal(0, 0.012)
        n = np.arange(size, dtype=np.float32)
        rows, cols = n[:, None], n[None]
        slant = tilt * (rows - size / 2)
        edge = np.minimum(
            np.minimum(cols - margin[0] + slant, size - margin[1] - cols - slant),
            np.minimum(rows - margin[2], size - margin[3] - rows),
        )
        image = image * ease(edge / max(1.0, size / 200) + 0.5)
    return image


# Lead letters as strokes in a box 2 wide and 3 high.
_LETTERS: dict[str, list[list[tuple[float, float]]]] = {
    "L": [[(0, 0), (0, 3), (1.8, 3)]],
    "R": [[(0, 3), (0, 0), (1.4, 0), (1.9, 0.4), (1.9, 1.1), (1.4, 1.5), (0, 1.5)], [(1, 1.5), (2, 3)]],
    "P": [[(0, 3), (0, 0), (1.4, 0), (1.9, 0.4), (1.9, 1.1), (1.4, 1.5), (0, 1.5)]],
    "A": [[(0, 3), (1, 0), (2, 3)], [(0.4, 2), (1.6, 2)]],
    "T": [[(0, 0), (2, 0)], [(1, 0), (1, 3)]],
    "M": [[(0, 3), (0, 0), (1, 1.6), (2, 0), (2, 3)]],
    "K": [[(0, 0), (0, 3)], [(1.9, 0), (0, 1.7)], [(0.7, 1.1), (2, 3)]],
    "H": [[(0, 0), (0, 3)], [(2, 0), (2, 3)], [(0, 1.5), (2, 1.5)]],
    "W": [[(0, 0), (0.5, 3), (1, 1.2), (1.5, 3), (2, 0)]],
}


def _mark(scene: Scene, image: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Put the side marker, and now and then the view or a technician's initials, into an upper corner."""
    size = scene.size
    side = "L" if rng.random() < 0.7 or not scene.frontal else "R"
    tall = size * rng.uniform(0.035, 0.06)
    x = size * (rng.uniform(0.85, 0.92) if side == "L" else rng.uniform(0.04, 0.1))
    y = size * rng.uniform(0.05, 0.15)
    bright = float(rng.uniform(215, 252))
    thick = max(1, round(tall * rng.uniform(0.1, 0.22)))
    turn = rng.normal(0, 0.12) * (rng.random() < 0.5)
    words = [(side, x, y, tall, thick)]
    if rng.random() < 0.45:
        view = {"PA": "PA", "AP": "AP", "LATERAL": "LAT"}[scene.view]
        text = view if rng.random() < 0.5 else "".join(rng.choice(list("ATMKHWPR"), 2))
        words.append((text, x - 0.1 * tall, y + 1.35 * tall, 0.5 * tall, 1))
    for text, left, top, height, width in words:
        for n, letter in enumerate(text):
            for line in _LETTERS[letter]:
                points = np.add(line, (2.8 * n, 0)) * height / 3
                points = points + np.stack([points[:, 1], -points[:, 0]], 1) * turn + [left, top]
                cv2.polylines(image, [np.round(points * 16).astype(np.int32)], False, bright, width, cv2.LINE_AA, 4)

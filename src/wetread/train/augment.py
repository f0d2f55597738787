"""Random changes that teach a network what does not matter: position, exposure, sharpness.

Each image draws from its own generator, seeded by (seed, epoch, row), so that a run gives the
same pixels whatever the number of workers and wherever it was resumed.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from wetread.train.recipe import AugmentRecipe

Image = NDArray[np.uint8]


def placement(recipe: AugmentRecipe, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw how an image is moved: a 2 x 3 matrix about its centre, with shifts as fractions of its side."""
    angle = np.deg2rad(rng.uniform(-recipe.rotate, recipe.rotate))
    zoom = 1 + rng.uniform(-recipe.zoom, recipe.zoom)
    stretch = np.sqrt(1 + rng.uniform(-recipe.stretch, recipe.stretch))
    shift = rng.uniform(-recipe.shift, recipe.shift, 2)
    mirror = -1.0 if rng.random() < recipe.flip else 1.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([turn @ np.diag([mirror * zoom * stretch, zoom / stretch]), shift])


def move(image: Image, matrix: NDArray[np.float64]) -> Image:
    """Return an image [S, S] moved as `placement` drew it; what comes in from outside is 0."""
    if np.array_equal(matrix, np.eye(2, 3)):
        return image
    side = image.shape[0]
    centre = np.full(2, (side - 1) / 2)
    offset = centre - matrix[:, :2] @ centre + matrix[:, 2] * side
    whole = np.column_stack([matrix[:, :2], offset])
    return cv2.warpAffine(image, whole, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)  # type: ignore[return-value]


def _expose(image: Image, recipe: AugmentRecipe, rng: np.random.Generator) -> Image:
    grey = np.linspace(0, 1, 256) ** np.exp(rng.uniform(-recipe.gamma, recipe.gamma))
    grey = (grey - 0.5) * (1 + rng.uniform(-recipe.contrast, recipe.contrast)) + 0.5
    grey += rng.uniform(-recipe.brightness, recipe.brightness)
    image = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)[image]
    if rng.random() < recipe.equalise:
        share = rng.random()
        image = cv2.addWeighted(cv2.equalizeHist(image), share, image, 1 - share, 0).astype(np.uint8)
    return image


def _degrade(image: Image, recipe: AugmentRecipe, rng: np.random.Generator) -> Image:
    if rng.random() < recipe.blur:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 2.0)).astype(np.uint8)
    if rng.random() < recipe.sharpen:
        amount = rng.uniform(0.3, 1.5)
        soft = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.7, 2.0))
        image = cv2.addWeighted(image, 1 + amount, soft, -amount, 0).astype(np.uint8)
    if rng.random() < recipe.noise:
        grain = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(1, 12)
        image = np.clip(image + grain, 0, 255).astype(np.uint8)
    if rng.random() < recipe.jpeg:
        _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 91))])
        image = np.asarray(cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE), np.uint8)
    if rng.random() < recipe.erase:
        side = image.shape[0]
        height, width = (rng.uniform(0.08, 0.33, 2) * side).astype(int)
        y, x = int(rng.integers(side - height)), int(rng.integers(side - width))
        image = image.copy()
        image[y : y + height, x : x + width] = rng.integers(256)
    return image


def change(image: Image, recipe: AugmentRecipe, rng: np.random.Generator) -> Image:
    """Return an image with another exposure and sharpness, or by chance (`share`) as it is."""
    return _degrade(_expose(image, recipe, rng), recipe, rng) if rng.random() < recipe.share else image


def augment(image: Image, recipe: AugmentRecipe, rng: np.random.Generator) -> Image:
    """Return a randomly changed copy of a training image.

    Parameters
    ----------
    image : uint8 array, shape [S, S], or [S, 2 S] for the two views of a study
        Each view is changed by itself; a missing one stays black.
    recipe : AugmentRecipe
        The kinds and strengths of change; with all at their defaults the image comes back as it is.
    rng : numpy.random.Generator
        The image's own source of chance.

    Returns
    -------
    uint8 array, of the same shape
    """
    if image.shape[1] == 2 * image.shape[0]:
        views = np.split(image, 2, 1)
        if all(view.any() for view in views) and rng.random() < recipe.one_view:
            views[int(rng.integers(2))] = np.zeros_like(views[0])
        return np.concatenate([augment(view, recipe, rng) if view.any() else view for view in views], 1)
    return change(move(image, placement(recipe, rng)), recipe, rng)

"""Looks at an image: itself, its mirror image, and copies that are turned, scaled or shifted a little.

A look is made inside the exported graph, and its maps are brought back through its inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wetread.train.recipe import PackageRecipe

Affine = NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """One way to see a square image. The content is mirrored, turned, enlarged and shifted, in this order.

    Attributes
    ----------
    mirror : bool
    angle : float
        Counter-clockwise as seen on the screen, in degrees.
    zoom : float
        Relative change of scale; above 0 enlarges.
    right, down : float
        Shift as a fraction of the side.
    """

    mirror: bool = False
    angle: float = 0.0
    zoom: float = 0.0
    right: float = 0.0
    down: float = 0.0

    def _forward(self) -> Affine:
        """Return the 2 x 3 matrix from places of the image to places of the look, both in [-1, 1]² as (x, y)."""
        turn, scale = math.radians(self.angle), 1 + self.zoom
        cosine, sine = scale * math.cos(turn), scale * math.sin(turn)
        return np.array([[cosine, sine, 2 * self.right], [-sine, cosine, 2 * self.down]])

    def see(self, pixels: Tensor) -> Tensor:
        """Return this look at pixels [B, V, S, S]; black comes in from outside."""
        pixels = pixels.flip(-1) if self.mirror else pixels
        return _sample(pixels, _inverse(self._forward()))

    def back(self, maps: Tensor) -> Tensor:
        """Return maps [B, F, h, w] of this look in the image's own frame, with their sums kept.

        A map holds what each cell adds to the log-odds, so its values grow with the area of a cell.
        """
        forward = self._forward()
        maps = _sample(maps, forward)
        if self.zoom:
            maps = maps * float(np.linalg.det(forward[:, :2]))
        return maps.flip(-1) if self.mirror else maps


def _inverse(matrix: Affine) -> Affine:
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def _sample(values: Tensor, matrix: Affine) -> Tensor:
    """Return values [B, C, h, w] as seen at the places to which `matrix` leads, bilinear, 0 outside."""
    if np.array_equal(matrix, np.eye(2, 3)):
        return values
    height, width = values.shape[-2:]
    x, y = ((np.arange(n) * 2 + 1) / n - 1 for n in (width, height))
    places = np.stack(np.meshgrid(x, y), -1) @ matrix[:, :2].T + matrix[:, 2]
    grid = torch.from_numpy(places.astype(np.float32))[None].expand(values.shape[0], -1, -1, -1)
    return functional.grid_sample(values.float(), grid, align_corners=False)


def looks(recipe: PackageRecipe) -> tuple[Look, ...]:
    """Return the looks that a recipe asks for, the image itself first.

    With the mirror image, 7 degrees, 2 % of scale and 5 pixels of 224 (``mirror = true, rotate = 7, zoom = 0.02,
    shift = 0.0223``) these are the ten of Pham et al. 2021.
    """
    found = [Look()]
    if recipe.mirror:
        found.append(Look(mirror=True))
    if recipe.rotate:
        found += [Look(angle=recipe.rotate), Look(angle=-recipe.rotate)]
    if recipe.zoom:
        found += [Look(zoom=recipe.zoom), Look(zoom=-recipe.zoom)]
    if recipe.shift:
        found += [Look(right=recipe.shift), Look(right=-recipe.shift)]
        found += [Look(down=recipe.shift), Look(down=-recipe.shift)]
    return tuple(found)

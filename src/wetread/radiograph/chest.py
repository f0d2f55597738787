"""Does the picture look like a frontal chest radiograph: a comparison with many that do.

A description of the picture that neither exposure, contrast nor blur changes much (its 64×64 thumbnail by rank of
grey value; from it the directions of its edges in 8×8 cells, as in Dalal and Triggs 2005, and its coarse shading) is
compared with those of many chest radiographs: the Mahalanobis distance of probabilistic PCA (Tipping and Bishop
1999). `fit` makes the parameters, which `benchmarks/chest.py` fits to public collections and ships as ``chest.npz``.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import cv2
import numpy as np
from numpy.typing import NDArray

from wetread.radiograph.lungs import squash
from wetread.radiograph.read import Radiograph

Array = NDArray[np.float64]

THUMBNAIL = 64
_GRID, _CELLS, _DIRECTIONS, _SHADING = 32, 8, 8, 16
_SHADING_WEIGHT = 2.0


@dataclass(frozen=True, eq=False)
class Chests:
    """What chest radiographs have in common.

    Attributes
    ----------
    mean : float array, shape [D]
        Mean description.
    axes : float array, shape [K, D]
        Principal axes, divided by the deviation along them.
    noise : float
        Deviation along every other axis.
    threshold : float
        Distance up to which a picture counts as a chest.
    """

    mean: Array
    axes: Array
    noise: float
    threshold: float

    def distance(self, descriptions: Array) -> Array:
        """Return the Mahalanobis distance of descriptions, shape [N, D] to [N], in units of `threshold`."""
        apart = descriptions - self.mean
        along = apart @ self.axes.T
        deviations = 1 / np.linalg.norm(self.axes, axis=1)
        rest = (apart**2).sum(axis=1) - ((along * deviations) ** 2).sum(axis=1)
        squared = (along**2).sum(axis=1) + np.maximum(rest, 0) / self.noise**2
        return np.asarray(np.sqrt(squared) / self.threshold)


def thumbnail(radiograph: Radiograph) -> NDArray[np.uint8]:
    """Return the uint8 array [64, 64] from which a radiograph is described."""
    return squash(radiograph, THUMBNAIL)


def describe(thumb: NDArray[np.uint8]) -> Array:
    """Describe a thumbnail.

    Parameters
    ----------
    thumb : uint8 array, shape [64, 64]

    Returns
    -------
    float array, shape [768]
        Square roots of the edge energy in 8×8 cells and 8 directions, then 16×16 mean ranks.
    """
    counts = np.bincount(thumb.ravel(), minlength=256)
    rank = ((np.cumsum(counts) - counts / 2) * (255 / thumb.size)).astype(np.float32)
    ranks = rank[thumb]
    small = np.asarray(cv2.resize(ranks, (_GRID, _GRID), interpolation=cv2.INTER_AREA))
    dx, dy = (cv2.Sobel(small, cv2.CV_32F, order, 1 - order, ksize=3) for order in (1, 0))
    energy = np.hypot(dx, dy).astype(np.float64)
    turn = np.mod(np.arctan2(dy, dx), 2 * np.pi) * (_DIRECTIONS / (2 * np.pi))
    lower = np.floor(turn)
    share = turn - lower
    rows, columns = np.indices(small.shape) * _CELLS // _GRID
    cell = (rows * _CELLS + columns) * _DIRECTIONS
    edges = np.zeros(_CELLS * _CELLS * _DIRECTIONS)
    for direction, part in ((lower, 1 - share), (lower + 1, share)):
        index = cell + direction.astype(np.int64) % _DIRECTIONS
        edges += np.bincount(index.ravel(), (energy * part).ravel(), minlength=edges.size)
    level = np.linalg.norm(edges.reshape(-1, _DIRECTIONS), axis=1).mean() + 1e-6
    shading = cv2.resize(ranks, (_SHADING, _SHADING), interpolation=cv2.INTER_AREA).ravel() * (_SHADING_WEIGHT / 255)
    return np.concatenate([np.sqrt(edges / level), shading])


def distance(radiograph: Radiograph) -> float:
    """Return how far a radiograph is from chest radiographs; up to 1 it counts as one."""
    return distance_of(describe(thumbnail(radiograph)))


def distance_of(description: Array) -> float:
    """Return how far a picture with this description, shape [768], is from chest radiographs."""
    return float(_shipped().distance(description[None])[0])


def fit(
    descriptions: Array, weights: Array, held_out: Array, *, axes: int = 64, share: float = 0.995, margin: float = 1.08
) -> Chests:
    """Fit what chests have in common.

    Parameters
    ----------
    descriptions : float array, shape [N, D]
    weights : float array, shape [N]
        Of the descriptions; any positive scale.
    held_out : float array, shape [M, D]
        Other patients' descriptions, for the threshold.
    axes : int
        Principal axes to keep.
    share : float
        Of `held_out` that passes.
    margin : float
        The threshold is so many times the distance within which that share lies, for sources never seen.
    """
    weights = weights / weights.sum()
    mean = weights @ descriptions
    apart = descriptions - mean
    values, vectors = np.linalg.eigh((apart * weights[:, None]).T @ apart)
    largest = np.argsort(values)[::-1]
    keep, rest = largest[:axes], largest[axes:]
    noise = float(np.sqrt(values[rest].mean()))
    # float16, as the file holds them
    scaled = (vectors[:, keep] / np.sqrt(values[keep])).T.astype(np.float16).astype(np.float64)
    chests = Chests(mean.astype(np.float16).astype(np.float64), scaled, noise, 1.0)
    return Chests(chests.mean, chests.axes, noise, margin * float(np.quantile(chests.distance(held_out), share)))


def to_bytes(chests: Chests) -> bytes:
    """Return the ``.npz`` file of `chests`."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        mean=chests.mean.astype(np.float16),
        axes=chests.axes.astype(np.float16),
        scale=np.array([chests.noise, chests.threshold]),
    )
    return buffer.getvalue()


def from_bytes(data: bytes) -> Chests:
    """Return the parameters that `to_bytes` wrote."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        noise, threshold = (float(v) for v in arrays["scale"])
        return Chests(arrays["mean"].astype(np.float64), arrays["axes"].astype(np.float64), noise, threshold)


@lru_cache(maxsize=1)
def _shipped() -> Chests:
    return from_bytes((resources.files("wetread.radiograph") / "chest.npz").read_bytes())

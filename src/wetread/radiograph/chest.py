"""Does the picture look like a frontal chest radiograph: a comparison with many that do.

A description of the picture that neither exposure, contrast nor blur changes much (its 64×64 thumbnail by rank of
grey value; from it the directions of its edges in 8×8 cells, as in Dalal and Triggs 2005, and its coarse shading) is
compared with those of many chest radiographs: the Mahalanobis distance of probabilistic PCA (Tipping and Bishop
1999). A chest is also clearly nearer upright than on its side or its head, cut off or not; a hand or a slice is about
as far whichever way it lies. So how much nearer counts too. `fit` and `settle` make the parameters, which
`benchmarks/chest.py` fits to public collections and ships as ``chest.npz``.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
_UPRIGHT = 2.0  # how much it counts, against the distance itself, that a picture is nearer upright than turned


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
        Distance, as `distance` has it, up to which a picture counts as a chest.
    """

    mean: Array
    axes: Array
    noise: float
    threshold: float

    def mahalanobis(self, descriptions: Array) -> Array:
        """Return the Mahalanobis distance of descriptions, shape [..., D] to [...]."""
        apart = descriptions - self.mean
        along = apart @ self.axes.T
        deviations = 1 / np.linalg.norm(self.axes, axis=1)
        rest = (apart**2).sum(axis=-1) - ((along * deviations) ** 2).sum(axis=-1)
        return np.asarray(np.sqrt((along**2).sum(axis=-1) + np.maximum(rest, 0) / self.noise**2))

    def distance(self, descriptions: Array) -> Array:
        """Return how far pictures are from chests, shape [N, 768] to [N], in units of `threshold`; it may be negative.

        The Mahalanobis distance, plus twice what it is more than that of the nearest of the picture's `turns`.
        """
        upright = self.mahalanobis(descriptions)
        turned = self.mahalanobis(descriptions[:, _TURNS]).min(axis=1)
        return np.asarray((upright + _UPRIGHT * (upright - turned)) / self.threshold)


def turns() -> NDArray[np.int64]:
    """Return how turning a picture permutes its description.

    Returns
    -------
    int array, shape [6, 768]
        Of a picture turned by one, two and three quarters (as `numpy.rot90` does), and of its mirror image turned so.
        The mirror image upright is left out: a chest is nearly its own.
    """
    edges = np.arange(_CELLS * _CELLS * _DIRECTIONS).reshape(_CELLS, _CELLS, _DIRECTIONS)
    shading = np.arange(_SHADING * _SHADING).reshape(_SHADING, _SHADING) + edges.size
    directions = np.arange(_DIRECTIONS)
    found = []
    for mirrored in (False, True):
        if mirrored:
            edges = edges[:, ::-1][..., (_DIRECTIONS // 2 - directions) % _DIRECTIONS]
            shading = shading[:, ::-1]
        for quarters in (1, 2, 3):
            turned = np.rot90(edges, quarters)[..., (directions + quarters * _DIRECTIONS // 4) % _DIRECTIONS]
            found.append(np.concatenate([turned.ravel(), np.rot90(shading, quarters).ravel()]))
    return np.array(found)


_TURNS = turns()


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


def fit(descriptions: Array, weights: Array, *, axes: int = 64) -> Chests:
    """Fit what chests have in common; the threshold is left at 1, for `settle`.

    Parameters
    ----------
    descriptions : float array, shape [N, D]
    weights : float array, shape [N]
        Of the descriptions; any positive scale.
    axes : int
        Principal axes to keep.
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
    return Chests(mean.astype(np.float16).astype(np.float64), scaled, noise, 1.0)


def settle(chests: Chests, films: Sequence[Array], others: Array, *, share: float = 0.995) -> Chests:
    """Return `chests` with its threshold half-way between films and what is none.

    Parameters
    ----------
    chests : Chests
    films : sequence of float array, shape [M, 768]
        Descriptions of other patients' films, one array for each collection: `share` of each lies within.
    others : float array, shape [K, 768]
        Descriptions of pictures that are no chest radiographs. The threshold lies half-way to the nearest of them; if
        that is nearer than the films, films come first.
    share : float
    """
    needed = max(float(np.quantile(chests.distance(part), share)) for part in films)
    nearest = float(chests.distance(others).min())
    return replace(chests, threshold=chests.threshold * max(needed, (needed + nearest) / 2))


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

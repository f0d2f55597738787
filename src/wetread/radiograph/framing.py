"""Is a chest radiograph whole and well exposed? Cautions, not refusals: what shows can still be read.

How much of a film is cut off at each side is estimated from the description that `chest` uses, by ridge regression on
films that were cropped by known amounts. `fit` makes the parameters, which `benchmarks/chest.py` fits to public
collections and ships as ``framing.npz``.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from wetread.radiograph.chest import Array

SIDES = ("top", "bottom", "left", "right")

_MIDDLE = slice(13, 51), slice(10, 54)  # rows and columns of a thumbnail where the chest is
_CONTRAST = 40  # of 255, between the darkest and the brightest fiftieth of the middle
_CLIPPED = 0.25  # share of the middle that is black or white and nothing else
_MEAN = 55, 212


@dataclass(frozen=True, eq=False)
class Framing:
    """How to estimate what is cut off.

    Attributes
    ----------
    mean : float array, shape [D]
        Mean description.
    slopes : float array, shape [D, 4]
    offsets : float array, shape [4]
        Estimates at the mean, as shares of the whole film's height or width.
    limits : float array, shape [4]
        Estimates above which a side counts as cut off.
    """

    mean: Array
    slopes: Array
    offsets: Array
    limits: Array

    def estimate(self, descriptions: Array) -> Array:
        """Return the share that is cut off at each of `SIDES`, shape [N, 4], of descriptions of shape [N, D]."""
        return np.asarray((descriptions - self.mean) @ self.slopes + self.offsets)


def cut_off(description: Array) -> tuple[str, ...]:
    """Return the sides at which a chest with this description seems to be cut off."""
    framing = _shipped()
    beyond = framing.estimate(description[None])[0] > framing.limits
    return tuple(side for side, cut in zip(SIDES, beyond, strict=True) if cut)


def exposure(thumb: NDArray[np.uint8]) -> str:
    """Return what is wrong with the exposure of a chest, given its 64×64 thumbnail; empty when nothing is."""
    middle = thumb[_MIDDLE]
    low, high = np.percentile(middle, [2, 98])
    dark, bright = float((middle <= 3).mean()), float((middle >= 252).mean())
    mean = float(middle.mean())
    if dark > _CLIPPED or mean < _MEAN[0]:
        return "too dark"
    if bright > _CLIPPED or mean > _MEAN[1]:
        return "too bright"
    return "almost without contrast" if high - low < _CONTRAST else ""


def fit(
    descriptions: Array, cut: Array, weights: Array, whole: Sequence[Array], *, ridge: float = 100, share: float = 0.995
) -> Framing:
    """Fit what is cut off.

    Parameters
    ----------
    descriptions : float array, shape [N, D]
        Of films after cropping.
    cut : float array, shape [N, 4]
        Share cut off at each of `SIDES`.
    weights : float array, shape [N]
        Of the descriptions; any positive scale.
    whole : sequence of float array, shape [M, D]
        Other patients' films, as they are, for the limits: one array for each collection.
    ridge : float
        Penalty on the slopes, in films.
    share : float
        Of each collection that counts as whole, at each side.
    """
    weights = weights * (len(weights) / weights.sum())
    mean, offsets = (weights @ v / weights.sum() for v in (descriptions, cut))
    apart = descriptions - mean
    gram = (apart * weights[:, None]).T @ apart + ridge * np.eye(apart.shape[1])
    slopes = np.linalg.solve(gram, (apart * weights[:, None]).T @ (cut - offsets))
    half = [np.asarray(v, np.float16).astype(np.float64) for v in (mean, slopes, offsets)]  # as the file holds them
    framing = Framing(half[0], half[1], half[2], np.ones(len(SIDES)))
    limits = np.max([np.quantile(framing.estimate(part), share, axis=0) for part in whole], axis=0)
    return Framing(half[0], half[1], half[2], limits)


def to_bytes(framing: Framing) -> bytes:
    """Return the ``.npz`` file of `framing`."""
    buffer = io.BytesIO()
    arrays = {key: getattr(framing, key).astype(np.float16) for key in ("mean", "slopes", "offsets")}
    np.savez_compressed(buffer, limits=framing.limits, **arrays)
    return buffer.getvalue()


def from_bytes(data: bytes) -> Framing:
    """Return the parameters that `to_bytes` wrote."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return Framing(*(arrays[key].astype(np.float64) for key in ("mean", "slopes", "offsets", "limits")))


@lru_cache(maxsize=1)
def _shipped() -> Framing:
    return from_bytes((resources.files("wetread.radiograph") / "framing.npz").read_bytes())

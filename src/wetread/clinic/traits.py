"""What is kept of an image for drift: its exposure, and where it lies among the model's features.

Features are kept by a fixed random projection to few dimensions, as float16: distances between images survive it
(Johnson and Lindenstrauss 1984), the picture does not.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.infer.predict import Analysis

DIMENSIONS = 64
_MOST = 60_000  # what float16 holds


def row(image: str, model: str, analysis: Analysis, now: datetime) -> dict[str, Any] | None:
    """Return the row of `image_trait` for an image's analysis; None where nothing was measured."""
    if analysis.exposure is None:
        return None
    return {
        "instance": image,
        "model": model,
        "exposure": {name: round(value, 5) for name, value in asdict(analysis.exposure).items()},
        "features": None if analysis.features is None else project(analysis.features, model).tobytes(),
        "at": now,
    }


def project(features: NDArray[np.float32], model: str) -> NDArray[np.float16]:
    """Return features [D] in the `DIMENSIONS` that this model's are kept in, float16; fewer than that as they are."""
    few = features.clip(-_MOST, _MOST)
    if len(few) > DIMENSIONS:
        few = (few @ _directions(model, len(few))).clip(-_MOST, _MOST)
    return few.astype(np.float16)


def unpack(blob: bytes) -> NDArray[np.float32]:
    """Return the features of a row, float32 [at most `DIMENSIONS`]."""
    return np.asarray(np.frombuffer(blob, np.float16), np.float32)


@lru_cache(8)
def _directions(model: str, size: int) -> NDArray[np.float32]:
    seed = int.from_bytes(model.encode()[:16], "little")
    drawn = np.random.default_rng(seed).standard_normal((size, DIMENSIONS))
    scaled: NDArray[np.float64] = drawn / np.sqrt(DIMENSIONS)
    return scaled.astype(np.float32)

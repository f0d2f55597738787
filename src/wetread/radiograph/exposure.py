"""How a radiograph is exposed and sampled: what changes when a scanner, a tube or a protocol does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wetread.radiograph.read import Radiograph

_STEP = 4  # every fourth pixel each way: the figures are of thousands of pixels still


@dataclass(frozen=True)
class Exposure:
    """Figures of one radiograph, after the windows and tables of its file.

    Attributes
    ----------
    mean, spread : float
        Mean and standard deviation of the pixels, as a share of their range, 0 to 1.
    black, white : float
        Share of the pixels at either end of the range, 0 to 1.
    rows, columns : float
        Of the file's image.
    """

    mean: float
    spread: float
    black: float
    white: float
    rows: float
    columns: float

    @classmethod
    def of(cls, radiograph: Radiograph) -> Exposure:
        """Measure a radiograph."""
        pixels, top = radiograph.pixels[::_STEP, ::_STEP], 2**radiograph.bits - 1
        rows, columns = radiograph.full_size if any(radiograph.full_size) else radiograph.pixels.shape
        return cls(
            mean=float(pixels.mean(dtype=np.float64)) / top,
            spread=float(pixels.std(dtype=np.float64)) / top,
            black=float(np.mean(pixels == 0)),
            white=float(np.mean(pixels == top)),
            rows=float(rows),
            columns=float(columns),
        )

"""Any file to a `Radiograph`: DICOM, JPEG, PNG, WebP, TIFF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

View = Literal["PA", "AP", "LATERAL"]


@dataclass(frozen=True, eq=False)
class Radiograph:
    """One radiograph, dense tissue bright whatever the polarity of its file.

    Attributes
    ----------
    pixels : uint8 or uint16 array, shape [H, W]
        After Modality LUT, VOI LUT or window, and only then MONOCHROME1 inversion; 0 to 2**bits - 1.
    bits : int
        8 or 16: the range of `pixels`.
    full_size : (int, int)
        Height and width of the file's image; larger than `pixels` when it was decoded at reduced scale.
    """

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    bits: int = 8
    full_size: tuple[int, int] = (0, 0)
    view: View | None = None
    modality: str | None = None
    body_part: str | None = None
    age_years: float | None = None
    sex: Literal["M", "F", "O"] | None = None
    spacing_mm: tuple[float, float] | None = None
    patient: str | None = None
    study: str | None = None
    series: str | None = None
    instance: str | None = None
    acquired_at: str | None = None
    source: str = ""

"""What changes in the middle of a simulation: the exposure, the scanner, or how many of the patients are ill.

Every size is a number of doublings, so that -1 is as much the other way: of the exponent of the display curve, of the
pixels' number and noise, of the odds of an abnormal study.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from wetread.errors import ConfigError
from wetread.radiograph.dicom import PHANTOM_MANUFACTURER

Kind = Literal["exposure", "scanner", "prevalence"]
KINDS: tuple[Kind, ...] = ("exposure", "scanner", "prevalence")
_NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_NOISE = 0.02  # standard deviation that a new scanner of size 1 adds, as a share of the range
LIMIT = 4.0


@dataclass(frozen=True)
class Shift:
    """A lasting change.

    Attributes
    ----------
    kind : {"exposure", "scanner", "prevalence"}
    at : float
        From which part of the simulation on, 0 to 1.
    size : float
        How many doublings, -4 to 4. Exposure: pixels (0 to 1, dense tissue bright) to the power 2^size, so that a
        positive one darkens. Scanner: 2^(-size/2) times the pixels in each direction, and noise of 0.02 |size|.
        Prevalence: the odds of an abnormal study times 2^size.
    """

    kind: Kind
    at: float = 0.5
    size: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"drift {self.kind!r}: not one of {', '.join(KINDS)}")
        if not 0 <= self.at <= 1:
            raise ConfigError(f"drift-at = {self.at}: must be a fraction, 0 to 1")
        if not (np.isfinite(self.size) and 0 < abs(self.size) <= LIMIT):
            raise ConfigError(f"drift-size = {self.size}: must be -{LIMIT:g} to {LIMIT:g}, and not 0")

    def prevalence(self, before: float) -> float:
        """Return the share of abnormal studies after the shift."""
        if self.kind != "prevalence":
            return before
        odds = before / (1 - before) * 2**self.size if before < 1 else np.inf
        return float(odds / (1 + odds)) if np.isfinite(odds) else 1.0

    def file(self, content: bytes, name: str, *, seed: int) -> bytes:
        """Return a DICOM file as it comes after the shift.

        Parameters
        ----------
        content : bytes
            Uncompressed, one frame of grey.
        name : str
            For messages.
        seed : int
            Of the noise.

        Raises
        ------
        ConfigError
            For a file whose pixels cannot be changed.
        """
        if self.kind == "prevalence":
            return content
        try:
            film = pydicom.dcmread(io.BytesIO(content))
            if film.file_meta.TransferSyntaxUID not in _NATIVE:
                raise ValueError("compressed")
            pixels = film.pixel_array
            if pixels.ndim != 2 or film.PixelRepresentation:
                raise ValueError("not one frame of unsigned grey")
        except Exception as error:  # pydicom raises nearly anything on a file that is none
            raise ConfigError(
                f"{name}: a drift of the {self.kind} needs uncompressed DICOM files of one grey frame ({error})"
            ) from None
        top = 2 ** int(film.BitsStored) - 1
        bright = pixels / top
        if film.PhotometricInterpretation == "MONOCHROME1":
            bright = 1 - bright
        if self.kind == "exposure":
            bright = bright ** (2**self.size)
        else:
            bright = self._other_scanner(film, bright, np.random.default_rng([seed, 11]))
        if film.PhotometricInterpretation == "MONOCHROME1":
            bright = 1 - bright
        changed = np.rint(np.clip(bright, 0, 1) * top).astype(pixels.dtype)
        film.Rows, film.Columns = changed.shape
        film.PixelData = changed.tobytes() + b"\0" * (changed.nbytes % 2)
        stream = io.BytesIO()
        film.save_as(stream, enforce_file_format=True)
        return stream.getvalue()

    def _other_scanner(
        self, film: pydicom.Dataset, bright: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        import cv2

        scale = 2 ** (-self.size / 2)
        shape = [max(64, round(side * scale)) for side in bright.shape]
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        resized = cv2.resize(bright, (shape[1], shape[0]), interpolation=how)
        for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
            if keyword in film and len(film[keyword].value) == 2:
                steps = (
                    float(s) * old / new for s, old, new in zip(film[keyword].value, bright.shape, shape, strict=True)
                )
                film[keyword].value = [f"{step:.5f}" for step in steps]
        if film.get("Manufacturer") != PHANTOM_MANUFACTURER:  # by which alone a phantom is known as one
            film.Manufacturer = "Simulated"
        film.ManufacturerModelName = "mark II"
        film.StationName, film.SoftwareVersions = "NEW-ROOM", "2.0"
        film.DeviceSerialNumber = "2"
        return np.asarray(resized + rng.normal(0, _NOISE * abs(self.size), resized.shape))

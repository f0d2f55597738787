"""A radiograph as a viewer needs it: every value of the file, and the windows that its sender chose.

`wetread.radiograph.read` gives one finished picture. A reader wants to look beyond the sender's window, so here the
values stay whole (after the Modality LUT, before any window), and each window or VOI LUT of the file becomes a `Tone`.
Values are laid so that **larger is brighter**, whatever the polarity of the file: a viewer that shows them in a rising
ramp cannot show them inverted, and *reset* has nothing to remember.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from wetread.errors import Code, ReadError
from wetread.radiograph import dicom, headers, isolated
from wetread.radiograph.read import Limits, Pixels, read, source_bytes

TONES = 16  # of one file, at most; a radiograph has one to three


@dataclass(frozen=True, eq=False)
class Tone:
    """One way to turn values into grey.

    Attributes
    ----------
    name : str
        The sender's words for it (Window Center & Width Explanation, LUT Explanation), or empty.
    lower, upper : float
        Values at and below, at and above which it is black and white; between them it is linear.
    table : uint16 array, shape [top + 1], or None
        For a VOI LUT or a sigmoid window: grey (0 to 65535) of each value; `lower` and `upper` are then 0 and `top`.
    """

    name: str
    lower: float
    upper: float
    table: NDArray[np.uint16] | None = None


@dataclass(frozen=True, eq=False)
class Presentation:
    """All values of a radiograph, larger is brighter.

    Attributes
    ----------
    values : uint8 or uint16 array, shape [H, W]
    tones : tuple of Tone
        The sender's, the preferred one first; never empty.
    slope, intercept : float
        Value × slope + intercept is what the file calls it (modality units); slope is negative where white is low.
    spacing_mm : (float, float) or None
        Distance of rows and of columns, in mm.
    spacing_kind : {"calibrated", "detector", "stated"} or None
        Corrected to the patient's plane; in the plane of the detector, where everything is larger than it is; or
        given without saying which.
    view, laterality : str or None
    orientation : (str, str) or None
        Patient Orientation: to what the rows (to the right) and the columns (downwards) of the image point, e.g.
        ``("L", "F")``.
    """

    values: Pixels
    tones: tuple[Tone, ...]
    slope: float = 1.0
    intercept: float = 0.0
    spacing_mm: tuple[float, float] | None = None
    spacing_kind: str | None = None
    view: str | None = None
    laterality: str | None = None
    orientation: tuple[str, str] | None = None

    def about(self) -> dict[str, Any]:
        """Return all but the arrays, ready for JSON; a tone with a table says so by its place among the tables."""
        tables = 0
        tones: list[dict[str, Any]] = []
        for tone in self.tones:
            entry: dict[str, Any] = {"name": tone.name, "lower": tone.lower, "upper": tone.upper}
            if tone.table is not None:
                entry["table"], tables = tables, tables + 1
            tones.append(entry)
        return {
            "rows": self.values.shape[0],
            "columns": self.values.shape[1],
            "bits": 8 * self.values.itemsize,
            "entries": max((len(tone.table) for tone in self.tones if tone.table is not None), default=0),
            "slope": self.slope,
            "intercept": self.intercept,
            "tones": tones,
            "spacing": self.spacing_mm,
            "spacing_kind": self.spacing_kind,
            "view": self.view,
            "laterality": self.laterality,
            "orientation": self.orientation,
        }

    def body(self) -> NDArray[np.uint8]:
        """Return the tables of the tones, then the values, little endian, as bytes."""
        tables = [
            np.ascontiguousarray(tone.table, "<u2").view(np.uint8) for tone in self.tones if tone.table is not None
        ]
        values = np.ascontiguousarray(self.values, "<u2" if self.values.itemsize == 2 else "u1")
        return (
            np.concatenate([*tables, values.reshape(-1).view(np.uint8)])
            if tables
            else values.reshape(-1).view(np.uint8)
        )


def present(source: Path | bytes, *, name: str = "", limits: Limits | None = None) -> tuple[dict[str, Any], Any]:
    """Return what `Presentation.about` and `Presentation.body` say of a file, read in a process apart if limits say so.

    Raises
    ------
    ReadError
        As `wetread.radiograph.read.read`.
    """
    limits = limits or Limits()
    name = name or (source.name if isinstance(source, Path) else "bytes")
    data = source_bytes(source, name, limits)
    if limits.seconds is not None:
        return isolated.present(data, name, limits)
    found = of(data, name, limits)
    return found.about(), found.body()


def of(data: bytes, name: str, limits: Limits) -> Presentation:
    """Read the presentation of a file's bytes, in this process.

    Raises
    ------
    ReadError
        As `wetread.radiograph.read.read`.
    """
    if headers.sniff(data) != "dicom":
        radiograph = read(data, name=name, limits=Limits(limits.max_bytes, limits.max_pixels))
        top = 2**radiograph.bits - 1
        return Presentation(radiograph.pixels, (Tone("", 0, top),))
    with dicom.quiet():
        try:
            return _of(dicom.parse(data, name, limits), name, limits)
        except ReadError:
            raise
        except MemoryError:
            raise ReadError(f"{name}: too large for the memory of this machine", Code.TOO_LARGE) from None
        except Exception as error:  # hostile bytes can raise anything from a parser
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ReadError(f"{name}: broken DICOM file: {reason}; export it again") from None


def _of(dataset: Dataset, name: str, limits: Limits) -> Presentation:
    if "PixelData" not in dataset:
        raise ReadError(f"{name}: has no Pixel Data (7FE0,0010); send the image, not only its header")
    stored, _, tables = dicom.decoded(dataset, name, limits)
    spacing, kind = _spacing(dataset)
    about: dict[str, Any] = {
        "spacing_mm": spacing,
        "spacing_kind": kind,
        "view": dicom.view(dataset),
        "laterality": _word(dataset, "ImageLaterality") or _word(dataset, "Laterality"),
        "orientation": _orientation(dataset),
    }
    if not tables:
        grey: Any = stored
        return Presentation(grey, (Tone("", 0, 2 ** (8 * stored.itemsize) - 1),), **about)
    return _presented(stored, dataset, about)


def _presented(stored: NDArray[Any], dataset: Dataset, about: dict[str, Any]) -> Presentation:
    low, high = int(stored.min()), int(stored.max())
    if high - low > 0xFFFF:
        raise ValueError(f"its values span {high - low}, more than 16 bits")
    own = np.arange(low, high + 1)  # stored values
    counted = _counted(stored, low)
    inner = np.asarray(dicom.modality(own, dataset), np.float64)  # what the file calls them
    inverse = dicom.is_inverse(dataset)
    step = (inner[-1] - inner[0]) / (len(inner) - 1) if len(inner) > 1 else 1.0
    if step != 0 and np.allclose(inner, inner[0] + step * np.arange(len(inner)), rtol=0, atol=abs(step) / 1000):
        # Straight: values are the stored ones, counted from the end that is black.
        falls = inverse != (step < 0)
        slope, intercept = (-step, float(inner[-1])) if falls else (step, float(inner[0]))
        place = own[::-1] - low if falls else own - low
        values: Any = np.subtract(high - low, counted, dtype=counted.dtype) if falls else counted
    else:
        slope = -1.0 if inverse else 1.0
        intercept = float(inner.max() if inverse else inner.min())
        place = np.rint((inner - intercept) * slope).astype(np.int64)
        if int(place.max()) > 0xFFFF:
            raise ValueError(f"its Modality LUT spans {int(place.max())}, more than 16 bits")
        values = place.astype(np.uint16)[counted]
    top = int(place.max())
    values = values.astype(np.uint8 if top <= 0xFF else np.uint16, copy=False)
    named: Any = slope * np.arange(top + 1) + intercept  # of each value
    tones = tuple(_tones(dataset, named, slope, intercept, inverse)) or (_whole(dataset, own, place, counted),)
    return Presentation(values, tones, slope, intercept, **about)


def _counted(stored: NDArray[Any], low: int) -> NDArray[Any]:
    """Return stored values counted from the lowest, unsigned; for 8 and 16 bits in one pass over the picture."""
    if stored.dtype.itemsize > 2 or not stored.dtype.isnative:
        counted: NDArray[Any] = (stored.astype(np.int64) - low).astype(np.uint16)
        return counted
    kind = np.dtype(f"u{stored.dtype.itemsize}")
    wrapped: NDArray[Any] = np.subtract(stored.view(kind), low % 2 ** (8 * kind.itemsize), dtype=kind)  # as it must
    return wrapped


def _tones(
    dataset: Dataset, named: NDArray[np.float64], slope: float, intercept: float, inverse: bool
) -> Iterator[Tone]:
    """Give the VOI LUTs of a file, then its windows; what cannot be applied is passed over."""

    def tabled(name: str, grey: Pixels) -> Tone:
        return Tone(name, 0, len(named) - 1, np.invert(grey) if inverse else grey.astype(np.uint16))

    tables: Sequence[Dataset] = dataset.get("VOILUTSequence") or ()
    for index, item in enumerate(tables[:TONES]):
        with suppress(Exception):  # a broken table is no reason to show nothing
            yield tabled(_word(item, "LUTExplanation") or "", dicom.voi_table(named, dataset, 16, index))
    with suppress(Exception):
        names = dataset.get("WindowCenterWidthExplanation") or ()
        names = [names] if isinstance(names, str) else list(names)
        for index in range(min(dataset["WindowCenter"].VM, TONES)):
            found = dicom.window_of(dataset, index)
            grey = dicom.voi_window(named, dataset, 16, index)
            if found is None or grey is None:
                continue
            center, width, function = found
            name = _clean(names[index]) if index < len(names) else ""
            if function.upper() == "SIGMOID":
                yield tabled(name, grey)
                continue
            # PS3.3 C.11.2.1.2 and C.11.2.1.3
            edges = (center - width / 2, center + width / 2) if function.upper() == "LINEAR_EXACT" else (
                center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
            )  # fmt: skip
            lower, upper = sorted((edge - intercept) / slope for edge in edges)
            yield Tone(name, lower, max(upper, lower + 1e-3))


def _whole(dataset: Dataset, own: NDArray[Any], place: NDArray[Any], counted: NDArray[Any]) -> Tone:
    """Return the tone of a file that names none: as `dicom.render` does, all values that occur but the padding."""
    bits = int(dataset.get("BitsStored") or 16)
    plain = bits <= 8 and not int(dataset.get("PixelRepresentation") or 0)
    if plain and not dataset.get("ModalityLUTSequence") and not dataset.get("RescaleSlope"):
        ends = np.array([0, 2**bits - 1]) - own[0]
        lower, upper = sorted(ends if place[0] <= place[-1] else len(own) - 1 - ends)
        return Tone("", float(lower), float(upper))
    present_ = np.bincount(counted.ravel(), minlength=len(own)) > 0
    with suppress(TypeError, ValueError):
        present_ &= own != int(dataset.get("PixelPaddingValue", own[0] - 1))
    seen = place[present_] if present_.any() else place
    return Tone("", float(seen.min()), float(max(seen.max(), seen.min() + 1)))


def _spacing(dataset: Dataset) -> tuple[tuple[float, float] | None, str | None]:
    """Return the distance of pixels and what it means (PS3.3 10.7.1.1 and 10.7.1.3)."""

    def read_(keyword: str) -> tuple[float, float] | None:
        with suppress(Exception):
            vertical, horizontal = (float(v) for v in dataset[keyword].value)
            if 0.01 <= vertical <= 10 and 0.01 <= horizontal <= 10:
                return vertical, horizontal
        return None

    own, detector = read_("PixelSpacing"), read_("ImagerPixelSpacing")
    if own is None:
        return detector, "detector" if detector else None
    if _word(dataset, "PixelSpacingCalibrationType") or (detector is not None and not np.allclose(own, detector)):
        return own, "calibrated"
    return own, "detector" if detector else "stated"


def _orientation(dataset: Dataset) -> tuple[str, str] | None:
    with suppress(Exception):
        row, column = (_clean(part).upper() for part in dataset.PatientOrientation)
        if all(re.fullmatch(r"[APRLHF]{1,3}", part) for part in (row, column)):
            return row, column
    return None


def _word(dataset: Dataset, keyword: str) -> str | None:
    try:
        return _clean(dataset.get(keyword) or "") or None
    except Exception:  # a value that its representation cannot hold
        return None


def _clean(value: object) -> str:
    return "".join(c for c in str(value) if c.isprintable()).strip()[:64]

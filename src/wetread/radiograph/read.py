"""Any file to a `Radiograph`: DICOM, JPEG, PNG, WebP, TIFF.

Grey values, whatever the file:

- up to 8 bits, and no window or table in the file: as they are;
- deeper, and no window or table: the smallest value becomes black, the largest white;
- DICOM with a Modality LUT, VOI LUT or window: as they say (`dicom`), and MONOCHROME1 is inverted last.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from wetread.errors import Code, ReadError
from wetread.radiograph import headers, isolated

if TYPE_CHECKING:
    from wetread.config import Settings

View = Literal["PA", "AP", "LATERAL"]
Sex = Literal["M", "F", "O"]
Pixels = NDArray[np.uint8] | NDArray[np.uint16]

# OpenCV reports a broken file on standard error and by returning None; the second is enough.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_COLOUR_SPREAD = 32  # of 255 between a pixel's channels: beyond JPEG's chroma noise
_COLOUR_SHARE = 0.05  # of all pixels: a coloured marker or annotation stays below


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
    view : {"PA", "AP", "LATERAL"} or None
    modality : str or None
        DICOM Modality, e.g. ``"CR"``, ``"DX"``; None for plain pictures.
    body_part : str or None
        DICOM Body Part Examined.
    presentation : str or None
        DICOM Presentation Intent Type: ``"FOR PRESENTATION"`` or ``"FOR PROCESSING"``.
    age_years : float or None
        At the time of the study.
    sex : {"M", "F", "O"} or None
    spacing_mm : (float, float) or None
        Distance between the rows and between the columns of the file's image, in mm.
    patient, study, series, instance : str or None
        Patient ID and the three DICOM UIDs. Never a path: characters that a UID cannot hold make it None.
    acquired_at : str or None
        ISO 8601 date and time, in the scanner's own time zone unless it says which.
    source : str
        ``"dicom"``, ``"jpeg"``, ``"png"``, ``"webp"``, ``"tiff"``, or ``"phantom"`` for a synthetic radiograph.
    """

    pixels: Pixels
    bits: int = 8
    full_size: tuple[int, int] = (0, 0)
    view: View | None = None
    modality: str | None = None
    body_part: str | None = None
    presentation: str | None = None
    age_years: float | None = None
    sex: Sex | None = None
    spacing_mm: tuple[float, float] | None = None
    patient: str | None = None
    study: str | None = None
    series: str | None = None
    instance: str | None = None
    acquired_at: str | None = None
    source: str = ""


@dataclass(frozen=True)
class Limits:
    """What a file may ask for, checked before it is decoded.

    Attributes
    ----------
    max_bytes : int
        Largest file.
    max_pixels : int
        Largest height × width × samples × frames.
    seconds : float or None
        Longest time, in s. When given, the file is read in a process apart, which is killed when it takes longer.
    memory : int
        Most memory that this process may have, in bytes.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = 64 * 2**20
    seconds: float | None = None
    memory: int = 4 * 2**30

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return the limits that the settings `max_bytes`, `max_pixels`, `read_seconds` and `read_memory` name."""
        seconds = settings.read_seconds or None
        return cls(settings.max_bytes, settings.max_pixels, seconds, settings.read_memory)

    def check(self, name: str, *factors: int) -> None:
        """Raise `ReadError` (TOO_LARGE) when the product of `factors` exceeds `max_pixels`."""
        total = int(np.prod([int(f) for f in factors], dtype=object))
        if total > self.max_pixels:
            size = "×".join(str(f) for f in factors)
            raise ReadError(
                f"{name}: {size} samples, more than the limit of {self.max_pixels}; "
                "raise max_pixels if the file is genuine",
                Code.TOO_LARGE,
            )


def read(
    source: Path | bytes, *, name: str = "", limits: Limits | None = None, reduce_to: int | None = None
) -> Radiograph:
    """Read one radiograph from a file or its bytes; the format is told by content.

    Parameters
    ----------
    source : Path or bytes
        The file, or what it holds.
    name : str, optional
        What messages call it; the file's name by default.
    limits : Limits, optional
        Largest file and image.
    reduce_to : int, optional
        Smallest acceptable side in pixels. JPEG pictures, also inside DICOM, are then decoded at the smallest of
        1/8, 1/4, 1/2 or full scale that keeps both sides at least this long, which is several times faster.

    Raises
    ------
    ReadError
        With the code UNREADABLE, TOO_LARGE or NOT_RADIOGRAPH; nothing else, whatever the bytes.
    """
    limits = limits or Limits()
    name = name or (source.name if isinstance(source, Path) else "bytes")
    data = source_bytes(source, name, limits)
    if limits.seconds is not None:
        return isolated.read(data, name, limits, reduce_to)
    kind = headers.sniff(data)
    if kind is None:
        what = "is empty" if not data else "is not a DICOM, JPEG, PNG, WebP or TIFF file"
        raise ReadError(f"{name}: {what}; send the radiograph in one of these formats")
    if kind == "dicom":
        from wetread.radiograph import dicom  # pydicom takes half a second to import

        return dicom.read(data, name, limits, reduce_to)
    try:
        header = headers.header(data, kind)
    except ValueError as error:
        raise ReadError(f"{name}: broken {kind.upper()} file, {error}; export it again") from None
    if header.frames > 1:
        raise ReadError(f"{name}: holds several pictures; send one file per radiograph", Code.NOT_RADIOGRAPH)
    limits.check(name, header.height, header.width, header.samples)
    try:
        pixels = decode(data, header if kind == "jpeg" else None, reduce_to)
    except MemoryError:
        raise ReadError(f"{name}: too large for the memory of this machine", Code.TOO_LARGE) from None
    if pixels is None:
        raise ReadError(f"{name}: broken or unsupported {kind.upper()} file; export it again")
    if pixels.ndim == 3:
        pixels = grey(pixels, name)
    height, width = header.height, header.width
    if (pixels.shape[0] < pixels.shape[1]) != (height < width) and height != width:
        height, width = width, height  # an EXIF orientation turned it, as every viewer does
    if pixels.dtype == np.uint16:
        low, high = int(pixels.min()), int(pixels.max())
        pixels = ramp(np.arange(65536), low, high, 16)[pixels]
    return Radiograph(
        pixels=pixels,
        bits=8 * pixels.dtype.itemsize,
        full_size=(height, width),
        source="phantom" if header.phantom else kind,
    )


def decode(data: bytes, header: headers.Header | None, reduce_to: int | None) -> Pixels | None:
    """Decode a JPEG (given its header), PNG, WebP or TIFF file with OpenCV.

    Returns
    -------
    uint8 or uint16 array, shape [H, W] or [H, W, 3] in BGR order, or None when the bytes are broken
    """
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR
    if header is not None:
        scale = reduction(header.height, header.width, reduce_to)
        colour = header.samples > 1
        flags = {
            1: cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE,
            2: cv2.IMREAD_REDUCED_COLOR_2 if colour else cv2.IMREAD_REDUCED_GRAYSCALE_2,
            4: cv2.IMREAD_REDUCED_COLOR_4 if colour else cv2.IMREAD_REDUCED_GRAYSCALE_4,
            8: cv2.IMREAD_REDUCED_COLOR_8 if colour else cv2.IMREAD_REDUCED_GRAYSCALE_8,
        }[scale]
    try:
        pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        return None
    if pixels is None or pixels.size == 0 or pixels.dtype not in (np.uint8, np.uint16):
        return None
    return pixels  # type: ignore[no-any-return]


def reduction(height: int, width: int, reduce_to: int | None) -> int:
    """Return the largest of 8, 4, 2, 1 by which both sides can shrink and stay at least `reduce_to` long."""
    if reduce_to is None:
        return 1
    return next((s for s in (8, 4, 2) if -(-min(height, width) // s) >= reduce_to), 1)


def grey(pixels: Pixels, name: str) -> Pixels:
    """Return the luminance of a colour picture whose content is grey.

    Parameters
    ----------
    pixels : array, shape [H, W, 3]
        In BGR order.

    Raises
    ------
    ReadError
        (NOT_RADIOGRAPH) when more than 5 % of the pixels are really coloured.
    """
    step = max(1, min(pixels.shape[:2]) // 512)
    b, g, r = (pixels[::step, ::step, channel] for channel in range(3))  # ten times faster than along an axis of three
    spread = np.maximum(np.maximum(b, g), r) - np.minimum(np.minimum(b, g), r)
    if float((spread > _COLOUR_SPREAD * (np.iinfo(pixels.dtype).max // 255)).mean()) > _COLOUR_SHARE:
        raise ReadError(f"{name}: a coloured picture; radiographs are grey", Code.NOT_RADIOGRAPH)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)  # type: ignore[return-value]


def ramp(values: NDArray[Any], low: float, high: float, bits: int) -> Pixels:
    """Map `low`..`high` to 0..2**bits - 1, clipped and rounded; all zero when nothing lies between them."""
    top = 2**bits - 1
    scale = top / (high - low) if high > low else 0.0
    mapped = np.clip(np.rint((values - low) * scale), 0, top)
    return mapped.astype(np.uint8) if bits == 8 else mapped.astype(np.uint16)


def to_8_bit(pixels: Pixels) -> NDArray[np.uint8]:
    """Return 16-bit pixels rounded to 8 bits, and 8-bit pixels as they are."""
    if pixels.dtype != np.uint8:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.asarray(pixels, dtype=np.uint8)


def write_png(file: Path, picture: NDArray[np.uint8]) -> None:
    """Write a grey PNG, whatever the file's name; raises OSError where it cannot be written."""
    _, encoded = cv2.imencode(".png", picture)
    file.write_bytes(encoded.tobytes())


def source_bytes(source: Path | bytes, name: str, limits: Limits) -> bytes:
    """Return the file's bytes, never more than the limit."""
    too_large = f"{name}: more than {limits.max_bytes} bytes; raise max_bytes if the file is genuine"
    if not isinstance(source, Path):
        if len(source) > limits.max_bytes:
            raise ReadError(too_large, Code.TOO_LARGE)
        return bytes(source)
    if not source.is_file():
        raise ReadError(f"{source}: no such file; check the path")
    try:
        with source.open("rb") as stream:
            data = stream.read(limits.max_bytes + 1)
    except OSError as error:
        raise ReadError(f"{source}: cannot be opened: {error.strerror}") from None
    if len(data) > limits.max_bytes:
        raise ReadError(too_large, Code.TOO_LARGE)
    return data

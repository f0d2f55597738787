"""A DICOM file to a `Radiograph`.

Stored values pass through the Modality LUT (PS3.3 C.11.1), then the VOI LUT or window (C.11.2), and only then is
MONOCHROME1, or a Presentation LUT Shape of INVERSE, inverted, once. All of it depends on the stored value alone, so
pydicom's functions are applied to a table of all values that occur, and the image is one look-up in that table.
"""

from __future__ import annotations

import logging
import re
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import generate_frames, parse_fragments
from pydicom.filereader import read_dataset
from pydicom.pixels import get_decoder  # type: ignore[attr-defined]
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSNearLossless,
    RLELossless,
)

from wetread.errors import Code, ReadError
from wetread.radiograph import headers, isolated
from wetread.radiograph.read import Limits, Pixels, Radiograph, Sex, View, decode, grey, ramp

PHANTOM_MANUFACTURER = "Wetread phantom"

_PAGES = "{}: Pixel Data holds several pages but no Number of Frames; a radiograph has one"
_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"
FAMILY = {
    "baseline": JPEGBaseline8Bit,
    "lossless": JPEGLosslessSV1,
    "ls": JPEGLSNearLossless,
    "j2k": JPEG2000,
    "rle": RLELossless,
}
logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings quote values, which have no place in a log
_LUT16 = int(cv2.__version__.split(".")[0]) >= 5
_SILENCED = threading.Lock()
_silencers = 0
_catcher: warnings.catch_warnings[Any] | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom's warnings about odd files, in any number of threads at once.

    `warnings.catch_warnings` restores what it found and so must not overlap with itself: the first thread in
    saves the filters, the last one out restores them.
    """
    global _silencers, _catcher
    with _SILENCED:
        if _silencers == 0:
            _catcher = warnings.catch_warnings()
            _catcher.__enter__()
            warnings.simplefilter("ignore")
        _silencers += 1
    try:
        yield
    finally:
        with _SILENCED:
            _silencers -= 1
            if _silencers == 0 and _catcher is not None:
                _catcher.__exit__(None, None, None)


def read(data: bytes, name: str, limits: Limits, reduce_to: int | None = None) -> Radiograph:
    """Read one radiograph from the bytes of a DICOM file; see `wetread.radiograph.read.read`."""
    with quiet():
        try:
            return _read(data, name, limits, reduce_to)
        except ReadError:
            raise
        except MemoryError:
            raise ReadError(f"{name}: too large for the memory of this machine", Code.TOO_LARGE) from None
        except Exception as error:  # hostile bytes can raise anything from a parser
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ReadError(f"{name}: broken DICOM file: {reason}; export it again") from None


def _read(data: bytes, name: str, limits: Limits, reduce_to: int | None) -> Radiograph:
    dataset = parse(data, name, limits)
    for keyword in ("FloatPixelData", "DoubleFloatPixelData"):
        if keyword in dataset:
            raise ReadError(f"{name}: floating-point pixels; radiographs hold integers", Code.NOT_RADIOGRAPH)
    if "PixelData" not in dataset:
        modality = _text(dataset, "Modality")
        if modality in ("SR", "PR", "KO", "DOC", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "AU", "ECG"):
            raise ReadError(f"{name}: a {modality} object, which is no picture; send radiographs", Code.NOT_RADIOGRAPH)
        raise ReadError(f"{name}: has no Pixel Data (7FE0,0010); send the image, not only its header")
    pixels, full_size = _pixels(dataset, name, limits, reduce_to)
    phantom = _text(dataset, "Manufacturer") == PHANTOM_MANUFACTURER
    return Radiograph(
        pixels=pixels,
        bits=8 * pixels.dtype.itemsize,
        full_size=full_size,
        view=view(dataset),
        modality=_text(dataset, "Modality"),
        body_part=_text(dataset, "BodyPartExamined"),
        presentation=_text(dataset, "PresentationIntentType"),
        age_years=age_years(dataset),
        sex=_sex(dataset),
        spacing_mm=_spacing(dataset),
        patient=_text(dataset, "PatientID"),
        study=_uid(dataset, "StudyInstanceUID"),
        series=_uid(dataset, "SeriesInstanceUID"),
        instance=_uid(dataset, "SOPInstanceUID"),
        acquired_at=_acquired(dataset),
        source="phantom" if phantom else "dicom",
    )


def parse(data: bytes, name: str, limits: Limits) -> Dataset:
    """Parse a DICOM file, also one without preamble, meta header or final delimiter.

    Raises
    ------
    ReadError
        (TOO_LARGE) when a deflated file inflates beyond the limit.
    """
    if data[128:132] == b"DICM":
        stream = BytesIO(data)
        stream.seek(132)
        meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        if str(meta.get("TransferSyntaxUID", "")) == DeflatedExplicitVRLittleEndian:
            data = _inflate(data[stream.tell() :], name, limits)
    dataset = dcmread(BytesIO(data), force=True)
    if "PixelData" not in dataset and b"\xe0\x7f\x10\x00" in data:
        dataset = dcmread(BytesIO(data + _DELIMITER), force=True)  # pixel data without its sequence delimiter
    if not len(dataset):
        raise ReadError(f"{name}: holds no DICOM elements; export it again")
    return dataset


def _inflate(data: bytes, name: str, limits: Limits) -> bytes:
    """Inflate a deflated data set, never beyond the limit."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    result = inflater.decompress(data, limits.max_bytes)
    if inflater.unconsumed_tail:
        raise ReadError(
            f"{name}: inflates to more than {limits.max_bytes} bytes; raise max_bytes if the file is genuine",
            Code.TOO_LARGE,
        )
    return result


def _pixels(dataset: Dataset, name: str, limits: Limits, reduce_to: int | None) -> tuple[Pixels, tuple[int, int]]:
    """Decode and render; return the picture and the file's height and width."""
    found, full_size, tables = decoded(dataset, name, limits, reduce_to)
    return (render(found, dataset) if tables else found), full_size


def decoded(
    dataset: Dataset, name: str, limits: Limits, reduce_to: int | None = None
) -> tuple[NDArray[Any], tuple[int, int], bool]:
    """Decode the one frame.

    Returns
    -------
    integer array, shape [H, W]
        Stored values; of a coloured picture its luminance, 8 or 16 bits.
    (int, int)
        Height and width of the file's image.
    bool
        Whether the file's tables and windows apply to the values; they do not to luminance.

    Raises
    ------
    ReadError
        When it is no single frame, too large, or cannot be decoded.
    """
    rows, columns = _number(dataset, "Rows"), _number(dataset, "Columns")
    samples = _number(dataset, "SamplesPerPixel", 1)
    frames = _number(dataset, "NumberOfFrames", 1) or 1
    if min(rows, columns, samples) < 1 or frames < 1:
        raise ReadError(f"{name}: Rows {rows}, Columns {columns}, Samples {samples}: not an image; export it again")
    limits.check(name, rows, columns, samples, frames)
    if frames > 1:
        raise ReadError(f"{name}: {frames} frames; a radiograph has one", Code.NOT_RADIOGRAPH)
    stored: NDArray[Any] | None = None
    value = dataset["PixelData"].value
    if value is None or len(value) == 0:
        raise ReadError(f"{name}: Pixel Data (7FE0,0010) is empty; send the image, not only its header")
    if value[:4] == b"\xfe\xff\x00\xe0" and _is_encapsulated(value):
        stored = _compressed(dataset, value, name, limits, reduce_to)
    else:
        stored = _native(dataset, len(value), rows * columns * samples, name)
    full_size = (rows, columns)
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2")).strip().upper()
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        dataset.BitsStored = 16 if int(stored.max()) > 255 else 8  # the palette's; some hold 8 bits in 16
    if stored.ndim == 3:
        depth = _number(dataset, "BitsStored", 8)
        stored = ramp(stored, 0, 2**depth - 1, 8 if depth <= 8 else 16)
        colour: Any = np.ascontiguousarray(stored[..., 2::-1])
        return grey(colour, name), full_size, False
    return stored, full_size, True


def _is_encapsulated(value: bytes) -> bool:
    """Tell items from native pixels that happen to begin like one: the first item's length must fit."""
    return 8 + int.from_bytes(value[4:8], "little") <= len(value)


def _native(dataset: Dataset, length: int, count: int, name: str) -> NDArray[Any]:
    """Decode native pixel data, whatever transfer syntax the file claims."""
    allocated = _number(dataset, "BitsAllocated", 8)
    if allocated in (8, 16) and length >= 2 * count * allocated // 8 and _number(dataset, "NumberOfFrames", 0) == 0:
        raise ReadError(_PAGES.format(name), Code.NOT_RADIOGRAPH)
    little = dataset.original_encoding[1] is not False
    implicit = dataset.original_encoding[0] is True
    syntax = ExplicitVRBigEndian if not little else ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    stored_bits, high_bit = _number(dataset, "BitsStored", allocated), _number(dataset, "HighBit", 0)
    shift = high_bit + 1 - stored_bits
    if shift > 0 and high_bit < allocated:
        dataset.BitsStored = high_bit + 1
    pixels = native(dataset, syntax)
    if shift > 0 and high_bit < allocated:
        dataset.BitsStored = stored_bits
        # High Bit is often wrong; it is believed when the bits below hold nothing.
        pixels = pixels >> shift if not np.any(pixels & (1 << shift) - 1) else native(dataset, syntax)
    return pixels


def _compressed(dataset: Dataset, value: bytes, name: str, limits: Limits, reduce_to: int | None) -> NDArray[Any]:
    """Decode the one frame of encapsulated pixel data by the codec that its bytes show."""
    _, places = parse_fragments(value)
    starts = [value[at + 8 : at + 12] for at in places]
    if sum(start in (b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xdb", b"\xff\x4f\xff\x51") for start in starts) > 1:
        raise ReadError(_PAGES.format(name), Code.NOT_RADIOGRAPH)
    frame = next(generate_frames(value, number_of_frames=1))
    header: headers.Header | None = None
    if frame[:3] == b"\xff\xd8\xff":
        header = headers.jpeg(frame)
    elif frame[:4] == b"\xff\x4f\xff\x51" or frame[4:8] == b"jP  ":
        header = headers.j2k(frame)
    elif not 1 <= int.from_bytes(frame[:4], "little") <= 15:
        raise ReadError(f"{name}: compressed in a way that is not supported ({_syntax_name(dataset)}); "
                        "send it uncompressed, or as JPEG, JPEG-LS, JPEG 2000 or RLE")  # fmt: skip
    if header is not None and header.codec == "extended":
        raise ReadError(f"{name}: 12-bit JPEG (extended) is not supported; send it uncompressed, or as lossless JPEG")
    if header is not None:
        limits.check(name, header.height, header.width, header.samples)
        rows, columns = _number(dataset, "Rows"), _number(dataset, "Columns")
        if (header.height, header.width) != (rows, columns):
            raise ReadError(
                f"{name}: its header says {columns}×{rows} pixels, its picture {header.width}×{header.height}; "
                "export it again"
            )
        if header.codec != "j2k" and not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
            # OpenCV would say so too, but CharLS keeps looking for the end
            raise ReadError(f"{name}: its compressed picture is cut short; export it again")
        monochrome = str(dataset.get("PhotometricInterpretation", "")).startswith("MONOCHROME")
        signed = _number(dataset, "PixelRepresentation", 0) == 1
        if header.codec == "baseline" and header.samples == 1 and monochrome and not signed:
            pixels = decode(frame, header, reduce_to)
            if pixels is None:
                raise ReadError(f"{name}: its JPEG picture is broken; export it again")
            return pixels
    return decode_frame(dataset, frame, FAMILY[header.codec if header else "rle"])


def decode_frame(dataset: Dataset, frame: bytes, syntax: UID) -> NDArray[Any]:
    """Decode a compressed frame in a process apart; YBR becomes RGB."""
    samples = _number(dataset, "SamplesPerPixel", 1)
    allocated = _number(dataset, "BitsAllocated", 8)
    image = {
        "rows": _number(dataset, "Rows"),
        "columns": _number(dataset, "Columns"),
        "samples_per_pixel": samples,
        "photometric_interpretation": str(dataset.get("PhotometricInterpretation") or "MONOCHROME2").strip(),
        "bits_allocated": allocated,
        "bits_stored": _number(dataset, "BitsStored", allocated),
        "pixel_representation": _number(dataset, "PixelRepresentation", 0),
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
    if samples > 1:
        image["planar_configuration"] = _number(dataset, "PlanarConfiguration", 0)
    plugin = {JPEGLSNearLossless: "pyjpegls", RLELossless: "pylibjpeg"}.get(syntax, "gdcm")
    return isolated.decode(frame, {"syntax": str(syntax), "plugin": plugin, "image": image})


def native(dataset: Dataset, syntax: UID) -> NDArray[Any]:
    """Decode the native frame by `syntax` and not by what the file claims; YBR becomes RGB."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    array, _ = get_decoder(syntax).as_array(dataset, index=0)
    return array


def _syntax_name(dataset: Dataset) -> str:
    meta = getattr(dataset, "file_meta", None)
    uid = meta.get("TransferSyntaxUID") if meta is not None else None
    return str(UID(uid).name) if uid else "no transfer syntax"


def render(stored: NDArray[Any], dataset: Dataset) -> Pixels:
    """Turn stored values into what a reader should see.

    Parameters
    ----------
    stored : integer array, shape [H, W]
        As decoded, before any table.
    dataset : Dataset
        Its Modality LUT, VOI LUT, window, photometric interpretation and presentation LUT shape are used. With
        several windows the first counts; a window that cannot be applied counts as none.

    Returns
    -------
    uint8 (Bits Stored ≤ 8) or uint16 array, shape [H, W]
        0 is black.
    """
    low, high = int(stored.min()), int(stored.max())
    if high - low > 0xFFFF:
        raise ValueError(f"its values span {high - low}, more than 16 bits")
    bits_stored = _number(dataset, "BitsStored", 16)
    bits = 8 if bits_stored <= 8 else 16
    values = np.arange(low, high + 1)
    inner = modality(values, dataset)
    table = _voi(inner, dataset, bits)
    if table is None:
        plain = inner is values and bits == 8 and _number(dataset, "PixelRepresentation", 0) == 0
        if plain:
            table = ramp(values, 0, 2**bits_stored - 1, bits)
        else:
            present = np.bincount((stored.astype(np.int64) - low).ravel()) > 0
            padding = values == _number(dataset, "PixelPaddingValue", low - 1)
            seen = inner[present & ~padding]
            seen = seen if seen.size else inner
            table = ramp(inner, float(seen.min()), float(seen.max()), bits)
    if is_inverse(dataset):
        table = np.invert(table)
    # OpenCV's look-up is the faster; it takes a table for every value, and 16 bits from version 5 on.
    if (stored.dtype == np.uint8 and bits == 8) or (stored.dtype == np.uint16 and _LUT16):
        whole: Any = cv2.LUT(stored, np.pad(table, (low, np.iinfo(stored.dtype).max - high)))
        return whole  # type: ignore[no-any-return]
    rendered: Pixels = table[stored.astype(np.int64) - low]
    return rendered


def is_inverse(dataset: Dataset) -> bool:
    """Tell whether the smallest value is shown white: MONOCHROME1, Presentation LUT Shape INVERSE, or both."""
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip().upper()
    shape = str(dataset.get("PresentationLUTShape", "")).strip().upper()
    return photometric == "MONOCHROME1" or shape == "INVERSE"


def modality(values: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """Apply the Modality LUT or rescale; a slope of zero, which would erase the picture, counts as none."""
    if dataset.get("ModalityLUTSequence") or float(dataset.get("RescaleSlope") or 0) != 0:
        result = np.asarray(apply_modality_lut(values, dataset))
        if np.isfinite(result).all():
            return result
    return values


def _voi(values: NDArray[Any], dataset: Dataset, bits: int) -> Pixels | None:
    """Apply the first VOI LUT or else the first window; None when there is neither, or it makes no sense."""
    if dataset.get("VOILUTSequence"):
        return voi_table(values, dataset, bits)
    return voi_window(values, dataset, bits)


def voi_table(values: NDArray[Any], dataset: Dataset, bits: int, index: int = 0) -> Pixels:
    """Apply an item of the VOI LUT Sequence."""
    depth = int(dataset.VOILUTSequence[index].LUTDescriptor[2])
    whole = np.clip(np.rint(values), -(2**31), 2**31 - 1).astype(np.int64)
    looked_up = np.asarray(apply_voi(whole, dataset, index), dtype=np.float64)
    return ramp(looked_up, 0, max(2**depth - 1, float(looked_up.max())), bits)


def window_of(dataset: Dataset, index: int = 0) -> tuple[float, float, str] | None:
    """Return center, width and function (LINEAR, LINEAR_EXACT, SIGMOID) of a window; None when the file has none."""
    try:
        center, width = (
            float(dataset[keyword].value[index] if dataset[keyword].VM > 1 else dataset[keyword].value)
            for keyword in ("WindowCenter", "WindowWidth")
        )
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return center, width, str(dataset.get("VOILUTFunction") or "LINEAR").strip()


def voi_window(values: NDArray[Any], dataset: Dataset, bits: int, index: int = 0) -> Pixels | None:
    """Apply a window; None when there is none, or it cannot be applied."""
    found = window_of(dataset, index)
    if found is None:
        return None
    window = Dataset()  # unsigned 16-bit without rescale, so that pydicom's result lies in 0..65535
    window.PhotometricInterpretation, window.PixelRepresentation, window.BitsStored = "MONOCHROME2", 0, 16
    try:
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = found
        with np.errstate(over="ignore"):
            result = apply_windowing(values, window)
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return ramp(result, 0, 2**16 - 1, bits) if np.isfinite(result).all() else None


def view(dataset: Dataset) -> View | None:
    """Return the projection: from View Position (0018,5101), then View Code, then the series' description."""
    position = (_text(dataset, "ViewPosition") or "").upper()
    if position in ("PA", "AP"):
        return position  # type: ignore[return-value]
    if position in ("LL", "RL", "LLD", "RLD") or position.startswith("LAT"):
        return "LATERAL"
    try:
        item = dataset.ViewCodeSequence[0]
        meaning = str(item.get("CodeMeaning", "")).lower()
        code = str(item.get("CodeValue", ""))
    except (AttributeError, IndexError, TypeError):
        meaning = code = ""
    # SNOMED CT and the older SNOMED RT codes of CID 4010 "DX View"
    if code in ("272479007", "R-10214") or meaning.startswith("postero-anterior"):
        return "PA"
    if code in ("399348003", "R-10206") or meaning.startswith("antero-posterior"):
        return "AP"
    if code in ("399067008", "399173006", "399198007", "R-10236", "R-10232") or "lateral" in meaning.split():
        return "LATERAL"
    words = set(re.split(r"[^A-Z]+", (_text(dataset, "SeriesDescription") or "").upper()))
    found: list[View] = []
    if "PA" in words:
        found.append("PA")
    if "AP" in words:
        found.append("AP")
    if words & {"LAT", "LATERAL", "LL", "RL"}:
        found.append("LATERAL")
    return found[0] if len(found) == 1 else None


def age_years(dataset: Dataset) -> float | None:
    """Return the age in years from Patient's Age, or from the dates of birth and study; None when it is no age.

    Public copies often drop the unit; a bare number counts as years. A zero is an anonymiser's blank.
    """
    return years(_text(dataset, "PatientAge") or "", _date(dataset, "PatientBirthDate"), _date(dataset, "StudyDate"))


def years(age: str, born: date | None, seen: date | None) -> float | None:
    """Return an age in years from an Age String such as ``063Y``, or from two dates; see `age_years`."""
    found = re.fullmatch(r"(\d{1,3})([DWMY]?)", age.strip().upper())
    if found and int(found[1]) > 0:
        value = int(found[1]) / {"D": 365.25, "W": 52.18, "M": 12.0}.get(found[2], 1.0)
        return value if value <= 120 else None
    if born is None or seen is None or not 0 <= (seen - born).days <= 120 * 366:
        return None
    return (seen - born).days / 365.25


def _date(dataset: Dataset, keyword: str) -> date | None:
    text = _text(dataset, keyword) or ""
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:8])) if re.match(r"\d{8}", text) else None
    except ValueError:
        return None


def _acquired(dataset: Dataset) -> str | None:
    """Return the first usable date of acquisition, content, series or study, with its time and zone if given."""
    for kind in ("Acquisition", "Content", "Series", "Study"):
        if (day := _date(dataset, f"{kind}Date")) is not None:
            clock = re.match(r"([01]\d|2[0-3])([0-5]\d)([0-5]\d)?", _text(dataset, f"{kind}Time") or "")
            zone = re.fullmatch(r"([+-]\d\d)(\d\d)", _text(dataset, "TimezoneOffsetFromUTC") or "")
            time = f"T{clock[1]}:{clock[2]}:{clock[3] or '00'}" if clock else "T00:00:00"
            return day.isoformat() + time + (f"{zone[1]}:{zone[2]}" if zone else "")
    return None


def _sex(dataset: Dataset) -> Sex | None:
    sex = (_text(dataset, "PatientSex") or "").upper()
    return sex if sex in ("M", "F", "O") else None  # type: ignore[return-value]


def _spacing(dataset: Dataset) -> tuple[float, float] | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            vertical, horizontal = (float(v) for v in dataset[keyword].value)
        except (KeyError, TypeError, ValueError):
            continue
        if 0.01 <= vertical <= 10 and 0.01 <= horizontal <= 10:
            return vertical, horizontal
    return None


def _uid(dataset: Dataset, keyword: str) -> str | None:
    text = _text(dataset, keyword) or ""
    return text if re.fullmatch(r"[0-9]+(\.[0-9]+)*", text) and len(text) <= 64 else None


def _text(dataset: Dataset, keyword: str) -> str | None:
    """Return an element as printable text without surrounding blanks; None when absent, empty or broken."""
    try:
        value = dataset.get(keyword)
    except Exception:  # a value that its representation cannot hold, in whatever way
        return None
    text = "".join(c for c in str(value if value is not None else "") if c.isprintable()).strip()
    return text[:256] or None


def _number(dataset: Dataset, keyword: str, default: int = 0) -> int:
    """Return an integer element, or `default` when it is absent, empty or no number."""
    try:
        value = dataset.get(keyword)
        return default if value is None or value == "" else int(value)
    except (TypeError, ValueError, AttributeError):
        return default

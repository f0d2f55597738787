"""Files as they come in the wild, by what is wrong with them, with the code that each must get; None is analysed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import films
import numpy as np
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, ImplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

from wetread.errors import Code
from wetread.infer.predict import Analysis
from wetread.radiograph import phantom
from wetread.radiograph.dicom import quiet
from wetread.radiograph.read import Limits, read
from wetread.radiograph.suitability import suit

CHEST = phantom.make(1).radiograph.pixels
DEEP = CHEST.astype(np.uint16) * 16 + 8
JPEG = films.picture(CHEST, "JPEG", quality=92)
Made = Callable[[], bytes]


def chest(pixels: np.ndarray = DEEP, **elements: object) -> bytes:
    """Return a chest as DICOM, whole; `elements` replace or, when None, delete its own."""
    with quiet():
        return films.dicom(pixels, **elements)


def tail(data: bytes, pixels: bytes) -> bytes:
    """Return a native file with other pixel data, written by hand."""
    at = data.rindex(b"\xe0\x7f\x10\x00")
    return data[:at] + b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<I", len(pixels)) + pixels


def pages() -> bytes:
    """Return two compressed pages without Number of Frames."""
    ds = films.dataset(CHEST, PixelData=encapsulate([JPEG, JPEG]))
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return films.to_bytes(ds)


def bare() -> bytes:
    """Return a file without preamble and meta header."""
    ds = films.dataset(DEEP)
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    data = films.to_bytes(ds)
    return data[data.index(b"\x08\0\x16\0") :]


def colour(photometric: str) -> bytes:
    """Return a colourful screen."""
    rng = np.random.default_rng(0)
    return films.dicom(rng.integers(0, 255, (96, 96, 3), dtype=np.uint8), PhotometricInterpretation=photometric)


NEGATIVE = (4095 - DEEP).astype(np.uint16)
SIGNED = (DEEP.astype(np.int32) - 2048).astype(np.int16)

FILES: dict[str, tuple[Made, Code | None]] = {
    # 1
    "truncated": (lambda: tail(chest(), DEEP.tobytes()[:-100]), Code.UNREADABLE),
    "excess padding": (lambda: tail(chest(), DEEP.tobytes() + b"\0" * 600), None),
    "missing pad byte": (lambda: tail(chest(CHEST[:-1, :-1]), CHEST[:-1, :-1].tobytes()), None),
    "no pixel data": (lambda: chest(PixelData=None), Code.UNREADABLE),
    # 2
    "no delimiter": (lambda: films.compressed(JPEG, CHEST)[:-8], None),
    "lying syntax": (lambda: films.compressed(JPEG, CHEST, JPEG2000), None),
    "unsupported codec": (lambda: films.compressed(b"\0\0\1\xb3" + bytes(range(200)), CHEST), Code.UNREADABLE),
    "broken frame": (lambda: films.compressed(b"\1\0\0\0" + b"\xff" * 90, CHEST, RLELossless), Code.UNREADABLE),
    "no preamble": (bare, None),
    # 3
    "several frames": (
        lambda: tail(chest(NumberOfFrames=2), np.stack([DEEP] * 2).tobytes()), Code.NOT_RADIOGRAPH
    ),
    "pages without number": (pages, Code.NOT_RADIOGRAPH),
    "signed": (lambda: chest(SIGNED), None),
    "high bit too high": (lambda: chest(HighBit=15), None),
    # 4
    "negative without window": (lambda: chest(NEGATIVE, PhotometricInterpretation="MONOCHROME1"), None),
    "negative with window": (
        lambda: chest(NEGATIVE, PhotometricInterpretation="MONOCHROME1", WindowCenter=2048, WindowWidth=4096), None
    ),
    "negative slope": (lambda: chest(NEGATIVE, RescaleSlope=-1, RescaleIntercept=4095), None),
    "window of no width": (lambda: chest(WindowCenter=2048, WindowWidth=0), None),
    "polarity that lies": (lambda: chest(PhotometricInterpretation="MONOCHROME1"), Code.INVERTED),
    # 5
    "screenshot in RGB": (lambda: films.dicom(np.dstack([films.viewer(CHEST)] * 3)), Code.SCREENSHOT),
    "colours": (lambda: colour("RGB"), Code.NOT_RADIOGRAPH),
    "colours in YBR": (lambda: colour("YBR_FULL"), Code.NOT_RADIOGRAPH),
    # 6
    "lateral": (lambda: chest(ViewPosition="LL"), Code.LATERAL_ONLY),
    "no view": (lambda: chest(ViewPosition=None), None),
    "hand": (lambda: chest(BodyPartExamined="HAND"), Code.NOT_CHEST),
    "slice": (lambda: chest(Modality="CT"), Code.NOT_RADIOGRAPH),
    "absent age": (lambda: chest(PatientAge=None), None),
    "bad age": (lambda: chest(PatientAge="999Y"), None),
    "child": (lambda: chest(PatientAge="003M"), Code.CHILD),
    "raw data": (lambda: chest(PresentationIntentType="FOR PROCESSING"), Code.FOR_PROCESSING),
    # 8
    "path as UID": (lambda: chest(StudyInstanceUID="../../etc/passwd"), None),
    "empty study UID": (lambda: chest(StudyInstanceUID=""), None),
    "unknown character set": (lambda: chest(SpecificCharacterSet="ISO_IR 999", PatientName="A"), None),
    "unknown representation": (lambda: chest().replace(b"\x10\0\x40\0CS", b"\x10\0\x40\0ZZ"), None),
    "bomb": (lambda: chest(Rows=60000, Columns=60000), Code.TOO_LARGE),
    "constant": (lambda: chest(np.full_like(DEEP, 7)), Code.NOT_RADIOGRAPH),
    "not a number": (
        lambda: chest(PixelData=None, FloatPixelData=np.full(DEEP.shape, np.nan, np.float32).tobytes()),
        Code.NOT_RADIOGRAPH,
    ),
}  # fmt: skip


def numbered(data: bytes, number: int) -> bytes:
    """Return a file of `films` with identifiers of its own, of the same length."""
    for last in (b"4", b"5", b"6"):
        data = data.replace(b"1.2.3." + last, b"1.%d." % (100 + number) + last)
    return data


class Suits:
    """Implements `wetread.clinic.worker.Model`: reads apart, asks whether the film suits, and finds nothing."""

    name, version, id = "suits", "1", "5" * 64

    def analyse(self, path: Path, name: str) -> Analysis:
        film = read(path, name=name, limits=Limits(max_pixels=2**20, seconds=60))
        answer = suit(film, population="adult")
        return Analysis(
            self.name, self.id, "screen", answer.suitable, answer.code, answer.reason,
            answer.cautions, answer.caution_codes, film.view, 0.0 if answer.suitable else None,
        )  # fmt: skip

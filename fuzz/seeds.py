"""Sound files of every format and transfer syntax, small, for a fuzzer to damage: `python fuzz/seeds.py FOLDER`."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from openjpeg.utils import encode_array
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from wetread.radiograph import phantom

SIZE = 32  # pixels; a small file is damaged where it matters sooner


def seeds() -> dict[str, bytes]:
    """Return name → bytes."""
    made = phantom.make(1, size=64)
    dataset = pydicom.dcmread(io.BytesIO(phantom.dicom(made)))
    small = np.asarray(cv2.resize(dataset.pixel_array, (SIZE, SIZE), interpolation=cv2.INTER_AREA), np.uint16)
    grey = (small >> 4).astype(np.uint8)
    found = {f"native-{name}.dcm": _native(dataset, small, syntax) for name, syntax in _NATIVE.items()}
    found |= {f"frame-{name}.dcm": _encapsulated(dataset, frame, like, UID(syntax))
              for name, (frame, like, syntax) in _frames(dataset, small, grey).items()}  # fmt: skip
    found |= _dcmtk(found["native-explicit.dcm"])
    found["mono1.dcm"] = _changed(dataset, small, PhotometricInterpretation="MONOCHROME1")
    found["signed.dcm"] = _changed(
        dataset, small.astype(np.int16), PixelRepresentation=1, RescaleSlope=-2, RescaleIntercept=100
    )
    found["voi.dcm"] = _changed(dataset, small, VOILUTSequence=[_lut()], WindowCenter=None, WindowWidth=None)
    found["modality.dcm"] = _changed(dataset, small, ModalityLUTSequence=[_lut()], RescaleSlope=None)
    found["rgb.dcm"] = _changed(
        dataset, np.dstack([grey] * 3), PhotometricInterpretation="RGB", SamplesPerPixel=3, PlanarConfiguration=0
    )
    found["palette.dcm"] = _changed(dataset, grey, PhotometricInterpretation="PALETTE COLOR", **_palette())
    for kind, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})):
        for depth, pixels in (("8", grey), ("rgb", np.dstack([grey] * 3)), ("16", small)):
            if depth != "16" or kind in ("PNG", "TIFF"):
                name = f"{kind.lower()}-{depth}{'-lzw' if options else ''}"
                found[name] = _picture(pixels, kind, **options)
    found["phantom.jpg"] = phantom.jpeg(phantom.make(1, size=64))
    found["progressive.jpg"] = _picture(grey, "JPEG", progressive=True)
    found["no-preamble"] = found["native-implicit.dcm"][132:]
    return found


_NATIVE = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}


def _copy(dataset: Dataset, pixels: np.ndarray, **elements: Any) -> Dataset:
    copy = pydicom.dcmread(io.BytesIO(phantom.dicom(phantom.make(1, size=64))))
    copy.Rows, copy.Columns = pixels.shape[:2]
    bits = 8 * pixels.dtype.itemsize
    copy.BitsAllocated, copy.BitsStored, copy.HighBit = bits, min(bits, 12), min(bits, 12) - 1
    copy.PixelData = pixels.tobytes()
    copy["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in elements.items():
        if value is None:
            del copy[keyword]
        else:
            setattr(copy, keyword, value)
            if keyword.endswith("Descriptor"):
                copy[keyword].VR = "US"
    return copy


def _bytes(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _changed(dataset: Dataset, pixels: np.ndarray, **elements: Any) -> bytes:
    return _bytes(_copy(dataset, pixels, **elements))


def _native(dataset: Dataset, pixels: np.ndarray, syntax: UID) -> bytes:
    copy = _copy(dataset, pixels)
    copy.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        copy.PixelData = pixels.astype(">u2").tobytes()
    copy.walk(lambda _, element: None)  # so that every element is written anew
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, copy, enforce_file_format=True)
    return stream.getvalue()


def _encapsulated(dataset: Dataset, frame: bytes, like: np.ndarray, syntax: UID) -> bytes:
    copy = _copy(dataset, like)
    copy.file_meta.TransferSyntaxUID = syntax
    copy.PixelData = encapsulate([frame])
    copy["PixelData"].VR = "OB"
    copy["PixelData"].is_undefined_length = True
    return _bytes(copy)


def _frames(dataset: Dataset, small: np.ndarray, grey: np.ndarray) -> dict[str, tuple[bytes, np.ndarray, str]]:
    deep, plain = _copy(dataset, small), _copy(dataset, grey)
    return {
        "rle": (get_encoder(RLELossless).encode(deep, index=0), small, RLELossless),
        "jls": (get_encoder(JPEGLSLossless).encode(deep, index=0), small, JPEGLSLossless),
        "jls-near": (get_encoder(JPEGLSNearLossless).encode(plain, index=0, jls_error=2), grey, JPEGLSNearLossless),
        "j2k": (encode_array(small, bits_stored=12), small, JPEG2000Lossless),
        "j2k-lossy": (encode_array(grey, bits_stored=8, compression_ratios=[4]), grey, JPEG2000),
        "jpeg": (_picture(grey, "JPEG"), grey, JPEGBaseline8Bit),
    }


def _dcmtk(native: bytes) -> dict[str, bytes]:
    """Return what DCMTK makes of a native file: 12-bit and lossless JPEG; nothing where it is not installed."""
    found: dict[str, bytes] = {}
    if (program := shutil.which("dcmcjpeg")) is None:
        return found
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.dcm"), Path(folder, "out.dcm")
        source.write_bytes(native)
        for name, option in (("jpeg-12", "+ee"), ("jpeg-lossless", "+e1")):
            subprocess.run([program, option, str(source), str(target)], check=True, capture_output=True)
            found[f"frame-{name}.dcm"] = target.read_bytes()
    return found


def _picture(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def _lut() -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [256, 0, 8]
    item.ModalityLUTType, item.LUTData = "US", list(range(256))
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return item


def _palette() -> dict[str, Any]:
    return {f"{colour}PaletteColorLookupTable{part}": value
            for colour in ("Red", "Green", "Blue")
            for part, value in (("Descriptor", [256, 0, 8]), ("Data", bytes(range(256))))}  # fmt: skip


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (folder / name).write_bytes(data)

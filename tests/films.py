"""DICOM files and pictures made by the tests: no real radiograph, no fixture files."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
)


def scene(height: int = 96, width: int = 80, bits: int = 12, seed: int = 0, smooth: float = 4) -> np.ndarray:
    """Return smooth noise over the full range of `bits`, unsigned."""
    rng = np.random.default_rng(seed)
    field = cv2.GaussianBlur(rng.random((height, width)), (0, 0), smooth)
    field = (field - field.min()) / (field.max() - field.min())
    return np.rint(field * (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


def dataset(stored: np.ndarray, **elements: Any) -> Dataset:
    """Return a CR image of `stored`; `elements` are set last, and None deletes one."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = Dataset()
    ds.file_meta, ds.preamble = meta, b"\0" * 128
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3.4"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.5", "1.2.3.6"
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "CR", "CHEST", "PA"
    ds.PatientID, ds.PatientSex, ds.PatientAge = "P1", "F", "034Y"
    ds.Rows, ds.Columns = stored.shape[:2]
    ds.SamplesPerPixel = 1 if stored.ndim == 2 else stored.shape[2]
    ds.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
    if stored.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = 8 * stored.dtype.itemsize
    ds.BitsStored = 8 if stored.dtype.itemsize == 1 else max(9, int(np.abs(stored.astype(np.int64)).max()).bit_length())
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    if ds.PixelRepresentation:
        ds.BitsStored = ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    ds["PixelData"].VR = "OW" if stored.dtype.itemsize == 2 else "OB"
    for keyword, value in elements.items():
        if value is None:
            del ds[keyword]
        else:
            setattr(ds, keyword, value)
    return ds


def to_bytes(ds: Dataset) -> bytes:
    """Return the file's bytes as pydicom writes them."""
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom(stored: np.ndarray, **elements: Any) -> bytes:
    """Return a DICOM file of `stored`."""
    return to_bytes(dataset(stored, **elements))


def compressed(frame: bytes, like: np.ndarray, syntax: UID = JPEGBaseline8Bit, **elements: Any) -> bytes:
    """Return a DICOM file whose pixel data is one encapsulated `frame` of a picture like `like`."""
    ds = dataset(like, **elements)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return to_bytes(ds)


def picture(pixels: np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    """Return a picture file as Pillow writes it."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(entries: dict[int, int], pixels: bytes = b"", following: int = 0) -> bytes:
    """Return a little-endian TIFF of one strip with the given LONG fields; StripOffsets is filled in."""
    at = 8 + 2 + 12 * (len(entries) + 1) + 4
    fields = sorted((entries | {273: at}).items())
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    return struct.pack("<2sHIH", b"II", 42, 8, len(fields)) + body + struct.pack("<I", following) + pixels


def viewer(film: np.ndarray, *, ground: int = 200, ink: int = 20) -> np.ndarray:
    """Return a picture of a screen, 480×640, with a film beside a list and below a row of words."""
    screen = np.full((480, 640), ground, np.uint8)
    screen[40:, :440] = cv2.resize(film, (440, 440), interpolation=cv2.INTER_AREA)
    for x in range(8, 560, 110):
        cv2.putText(screen, "Layout", (x, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.5, ink, 1)
    for y in range(64, 470, 22):
        cv2.putText(screen, f"{y} Series Chest PA", (448, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, ink, 1)
    return screen

"""The frames of a stored image: as they came, decoded, or as a picture for a screen.

Compressed frames are decoded in a process apart (`wetread.radiograph.isolated`), because hostile ones can crash or
stall a decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from wetread.errors import Code, NotFoundError, ReadError
from wetread.radiograph import dicom, headers
from wetread.radiograph.dicom import quiet
from wetread.radiograph.read import Limits

NATIVE = str(ExplicitVRLittleEndian)


@dataclass(frozen=True)
class Window:
    """A VOI window (PS3.3 C.11.2.1.2): `function` is LINEAR, LINEAR_EXACT or SIGMOID."""

    center: float
    width: float
    function: str = "LINEAR"


class Frames:
    """The frames of one data set.

    Parameters
    ----------
    dataset : Dataset
        Whole, as `wetread.clinic.dicomweb.read` gives it.
    limits : Limits

    Raises
    ------
    ReadError
        When it has no pixels that can be given out, or more than the limit.
    """

    def __init__(self, dataset: Dataset, limits: Limits) -> None:
        self.dataset, self.limits = dataset, limits
        value = dataset.get("PixelData")
        self.rows, self.columns, self.samples, self.count, self.allocated = (
            _number(dataset, keyword, default)
            for keyword, default in (
                ("Rows", 0),
                ("Columns", 0),
                ("SamplesPerPixel", 1),
                ("NumberOfFrames", 1),
                ("BitsAllocated", 8),
            )
        )
        self.count = self.count or 1
        if not isinstance(value, bytes) or not value:
            raise ReadError("image: has no pixels", Code.NOT_RADIOGRAPH)
        if min(self.rows, self.columns, self.count) < 1 or self.samples not in (1, 3):
            raise ReadError("image: its header describes no picture", Code.UNREADABLE)
        limits.check("image", self.rows, self.columns, self.samples)
        limits.check("image", self.count)
        self.value: bytes = value
        syntax = getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID")
        self.encapsulated = value[:4] == b"\xfe\xff\x00\xe0" and getattr(syntax, "is_encapsulated", True)
        if self.encapsulated:
            self.syntax = str(syntax) if syntax else ""
        else:
            little, implicit = dataset.original_encoding[1] is not False, dataset.original_encoding[0] is True
            self.syntax = str(
                ExplicitVRBigEndian if not little else ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
            )
        self._frames: list[bytes] | None = None

    def original(self, number: int) -> bytes:
        """Return a frame (from 1) as it is stored; native ones in little endian.

        Raises
        ------
        NotFoundError
            When there is no such frame.
        ReadError
            When its bytes are missing.
        """
        if not 1 <= number <= self.count:
            raise NotFoundError(f"frame {number}: the image has {self.count}")
        if self.encapsulated:
            if self._frames is None:
                self._frames = _encapsulated(self.value, self.count)
            if number > len(self._frames):
                raise ReadError(f"image: frame {number} is missing", Code.UNREADABLE)
            return self._frames[number - 1]
        bits = self.rows * self.columns * self.samples * self.allocated
        if bits % 8 or self.allocated not in (8, 16, 32):
            raise ReadError(f"image: {self.allocated} bits a sample cannot be given by frame", Code.UNREADABLE)
        size = bits // 8
        data = self.value[(number - 1) * size : number * size]
        if len(data) < size:
            raise ReadError(f"image: frame {number} is cut short", Code.UNREADABLE)
        if self.syntax == ExplicitVRBigEndian and self.allocated > 8:
            return np.frombuffer(data, f">u{self.allocated // 8}").astype(f"<u{self.allocated // 8}").tobytes()
        return data

    def stored(self, number: int) -> NDArray[Any]:
        """Return the stored values of a frame (from 1), shape [H, W] or [H, W, 3]; YBR becomes RGB.

        Raises
        ------
        NotFoundError, ReadError
            As `original`, and when it cannot be decoded.
        """
        data = self.original(number)
        with quiet():
            try:
                if self.encapsulated:
                    return self._decoded(data)
                dataset = Dataset()
                dataset.update(self.dataset)
                dataset.PixelData, dataset.NumberOfFrames = data + b"\0" * (len(data) % 2), 1
                dataset["PixelData"].VR = "OB" if self.allocated == 8 else "OW"
                return dicom.native(dataset, ExplicitVRLittleEndian)
            except ReadError:
                raise
            except Exception as error:  # hostile bytes can raise anything
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise ReadError(f"image: frame {number} cannot be decoded: {reason}", Code.UNREADABLE) from None

    def _decoded(self, frame: bytes) -> NDArray[Any]:
        header: headers.Header | None = None
        if frame[:3] == b"\xff\xd8\xff":
            header = headers.jpeg(frame)
        elif frame[:4] == b"\xff\x4f\xff\x51" or frame[4:8] == b"jP  ":
            header = headers.j2k(frame)
        if header and (header.height, header.width) != (self.rows, self.columns):
            raise ReadError("image: its header and its compressed picture differ in size", Code.UNREADABLE)
        return dicom.decode_frame(self.dataset, frame, dicom.FAMILY[header.codec if header else "rle"])

    def native(self, number: int) -> bytes:
        """Return a frame (from 1) decompressed, as Explicit VR Little Endian has it."""
        if not self.encapsulated:
            return self.original(number)
        array = self.stored(number)
        kind = ("i" if _number(self.dataset, "PixelRepresentation", 0) else "u") + str(max(1, self.allocated // 8))
        return np.ascontiguousarray(array.astype(f"<{kind}")).tobytes()

    def picture(self, number: int, window: Window | None = None) -> NDArray[np.uint8]:
        """Return a frame (from 1) for a screen: [H, W], or [H, W, 3] in OpenCV's order of colours.

        Raises
        ------
        NotFoundError, ReadError
            As `stored`.
        """
        stored, dataset = self.stored(number), Dataset()
        dataset.update(self.dataset)
        with quiet():
            try:
                if str(dataset.get("PhotometricInterpretation", "")).strip().upper() == "PALETTE COLOR":
                    stored = apply_color_lut(stored, dataset)
                    dataset.BitsStored = 16 if int(stored.max()) > 255 else 8
                if stored.ndim == 3:
                    deep = _number(dataset, "BitsStored", 8) - 8
                    return np.ascontiguousarray((stored >> max(0, deep)).astype(np.uint8)[..., ::-1])
                if window is not None:
                    dataset.pop("VOILUTSequence", None)
                    dataset.WindowCenter, dataset.WindowWidth = window.center, window.width
                    dataset.VOILUTFunction = window.function
                shown = dicom.render(stored, dataset)
            except Exception as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise ReadError(f"image: frame {number} cannot be shown: {reason}", Code.UNREADABLE) from None
        return np.asarray(shown if shown.dtype == np.uint8 else shown >> 8, np.uint8)


def decompressed(dataset: Dataset, limits: Limits) -> bytes:
    """Return a whole file in Explicit VR Little Endian, which every receiver must understand (PS3.18 8.7.3.3).

    Raises
    ------
    ReadError
        When it cannot be decoded.
    """
    if dataset.get("PixelData"):
        frames = Frames(dataset, limits)
        limits.check("image", frames.rows, frames.columns, frames.samples, frames.count)
        pixels = b"".join(frames.native(number) for number in range(1, frames.count + 1))
        dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
        dataset["PixelData"].VR = "OB" if frames.allocated == 8 else "OW"
        if frames.encapsulated and frames.samples == 3:
            dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(dataset.get("SOPClassUID") or "1.2.840.10008.5.1.4.1.1.7")
    meta.MediaStorageSOPInstanceUID = UID(dataset.get("SOPInstanceUID") or "2.25.0")
    dataset.file_meta, dataset.preamble = meta, b"\0" * 128
    target = BytesIO()
    with quiet():
        try:
            dataset.save_as(target, implicit_vr=False, little_endian=True, enforce_file_format=True)
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ReadError(f"image: cannot be written anew: {reason}", Code.UNREADABLE) from None
    return target.getvalue()


def encode(
    picture: NDArray[np.uint8], media_type: str, *, quality: int = 90, size: Sequence[int] | None = None
) -> bytes:
    """Return a picture as ``image/jpeg`` or ``image/png``, made to fit into `size` (width, height) if given."""
    if size is not None:
        scale = min(size[0] / picture.shape[1], size[1] / picture.shape[0])
        fitted = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        picture = np.asarray(cv2.resize(picture, fitted, interpolation=how), np.uint8)
    if media_type == "image/png":
        return cv2.imencode(".png", picture)[1].tobytes()
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _encapsulated(value: bytes, count: int) -> list[bytes]:
    with quiet():
        try:
            return list(generate_frames(value, number_of_frames=count))
        except Exception:
            raise ReadError("image: its compressed frames are broken", Code.UNREADABLE) from None


def _number(dataset: Dataset, keyword: str, default: int) -> int:
    try:
        value = dataset.get(keyword)
        return default if value is None or value == "" else int(value)
    except Exception:  # a value that is no number, in whatever way
        return default

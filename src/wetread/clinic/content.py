"""What a DICOM file holds beside its identifiers, read with care: whether it has pixels, which, and what it rejects.

A deflated file is inflated only as far as a limit; pixel data is read only when two files claim one UID.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

# Codes of the title of a Key Object Selection, of the scheme DCM (IHE RAD TF-3 4.66.4.1.3.1, PS3.16 CID 7011).
REASONS = {
    "113001": "rejected for quality reasons",
    "113037": "rejected for patient safety reasons",
    "113038": "rejected for an incorrect modality worklist entry",
    "113039": "data retention period expired",
}
KEY_OBJECT = "1.2.840.10008.5.1.4.1.1.88.59"
MAX_REFERENCES = 10_000
_HEADER_BYTES = 4 * 2**20  # of a deflated file, enough for all that stands before the pixels
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_MEANING = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
    "PresentationLUTShape",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
)


@dataclass(frozen=True)
class Note:
    """A rejection note: the code of its title, and the (study UID, SOP UID) of each image that it names."""

    code: str
    images: tuple[tuple[str, str], ...]


def header(path: Path, tags: Sequence[str]) -> tuple[Any, bool]:
    """Read elements that stand before the pixels.

    Parameters
    ----------
    path : Path
    tags : sequence of str
        Keywords.

    Returns
    -------
    dataset : pydicom.Dataset
    pixels : bool
        Whether there is pixel data of any kind.

    Raises
    ------
    Exception
        Of nearly any kind, on hostile bytes.
    """
    with path.open("rb") as file:
        return header_of(file, tags)


def header_of(file: BinaryIO, tags: Sequence[str]) -> tuple[Any, bool]:
    """Read elements that stand before the pixels, as `header` does, from a file that is open."""
    found = False

    def stop(tag: Any, vr: str | None, length: int) -> bool:
        nonlocal found
        found = found or int(tag) in _PIXELS
        return found

    return _part(file, tags, stop, _HEADER_BYTES), found


def same_data(one: Path, other: Path) -> bool:
    """Tell whether two files hold the same data set, whatever stands before it (the file meta header of a sender)."""
    digests = []
    for path in (one, other):
        with path.open("rb") as file:
            file.seek(_start(file))
            digests.append(hashlib.file_digest(file, "sha256").digest())
    return digests[0] == digests[1]


def pixels(path: Path, limit: int) -> str | None:
    """Return the SHA-256 over the pixel data and the elements that give it meaning; None when it cannot be had.

    Two files with the same show the same picture, whatever else their headers say. Windows are left out: they are a
    way to look, not what was taken.

    Parameters
    ----------
    path : Path
    limit : int
        Most bytes that a deflated file may inflate to.
    """
    from wetread.radiograph.dicom import quiet

    try:
        with quiet():
            dataset = _read(path, (*_MEANING, "PixelData"), None, limit)
            data = bytes(dataset.PixelData)
            del dataset.PixelData
            about = dataset.to_json_dict()
            about.pop("00080005", None)  # how text is encoded
            syntax = dataset.file_meta.TransferSyntaxUID if hasattr(dataset, "file_meta") else ""
            if data[:4] == b"\xfe\xff\x00\xe0" and getattr(syntax, "is_encapsulated", False):
                about["syntax"] = str(syntax)
            else:
                samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel") or 1)
                data = data[: samples * int(dataset.BitsAllocated) // 8 * int(dataset.get("NumberOfFrames") or 1)]
    except Exception:  # hostile bytes raise nearly anything
        return None
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest() if data else None


def note(path: Path) -> Note | None:
    """Return what a Key Object Selection rejects; None when its title is no rejection or nothing is named.

    Raises
    ------
    ValueError
        When it names more than `MAX_REFERENCES` images.
    Exception
        Of nearly any kind, on hostile bytes.
    """
    tags = ("ConceptNameCodeSequence", "CurrentRequestedProcedureEvidenceSequence")
    dataset, _ = header(path, tags)
    titles = dataset.get("ConceptNameCodeSequence") or []
    code = next(
        (
            str(t.CodeValue)
            for t in titles
            if t.get("CodeValue") in REASONS and t.get("CodingSchemeDesignator") == "DCM"
        ),
        None,
    )
    if code is None:
        return None
    images: list[tuple[str, str]] = []
    for study in dataset.get("CurrentRequestedProcedureEvidenceSequence") or []:
        for series in study.get("ReferencedSeriesSequence") or []:
            for image in series.get("ReferencedSOPSequence") or []:
                images.append((str(study.StudyInstanceUID), str(image.ReferencedSOPInstanceUID)))
                if len(images) > MAX_REFERENCES:
                    raise ValueError(f"names more than {MAX_REFERENCES} images")
    return Note(code, tuple(dict.fromkeys(images))) if images else None


def _start(file: BinaryIO) -> int:
    """Return where the data set begins: after the file meta header, when there is one."""
    from pydicom.filereader import read_dataset

    file.seek(0)
    if file.read(132)[128:] != b"DICM":
        return 0
    read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    return file.tell()


def _read(path: Path, tags: Sequence[str], stop: Callable[[Any, str | None, int], bool] | None, limit: int) -> Any:
    with path.open("rb") as file:
        return _part(file, tags, stop, limit)


def _part(file: BinaryIO, tags: Sequence[str], stop: Callable[[Any, str | None, int], bool] | None, limit: int) -> Any:
    from pydicom.filereader import read_dataset, read_partial
    from pydicom.tag import Tag
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    wanted: Any = [Tag(tag) for tag in tags]
    file.seek(0)
    if file.read(132)[128:] == b"DICM":
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        if str(meta.get("TransferSyntaxUID", "")) == DeflatedExplicitVRLittleEndian:
            # zlib gives no more than is asked for, however much there would be.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(limit), limit)
            return read_dataset(BytesIO(data), False, True, stop_when=stop, specific_tags=wanted)
    file.seek(0)
    return read_partial(file, stop_when=stop, force=True, specific_tags=wanted)

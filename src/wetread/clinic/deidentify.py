"""A DICOM file without the patient: the basic profile of DICOM PS3.15 Annex E, patient characteristics retained.

The table of the standard is dicom-anonymizer's; the values that it puts in are ours: nothing that is to go stays as a
dummy, UIDs and the patient are replaced by keyed pseudonyms, and it is applied inside sequences too. Beyond the
profile, a new data set is made of the attributes and values of `defined_terms` alone, so that nothing that is free
stays, and pixels are stored decompressed, because compressed streams have room for comments.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from wetread.clinic import defined_terms
from wetread.clinic.pseudonyms import Pseudonyms
from wetread.errors import ReadError
from wetread.radiograph import isolated
from wetread.radiograph.read import Limits

EDITION = "dicomfields_2026c"
OLDEST = 90  # years; the few who are older are told apart by it
KEPT = frozenset({"PatientAge", "PatientSex", "PatientSize", "PatientWeight"})
_EMPTY = (  # type 2: the attribute must be there
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate", "StudyID",
)  # fmt: skip
_CODES = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113108", "Retain Patient Characteristics Option"),
)

Rule = Callable[[Dataset, Any], None]


def deidentify(
    content: bytes,
    pseudonyms: Pseudonyms,
    *,
    patient: str,
    age_years: float | None,
    sex: str | None,
    limits: Limits | None = None,
) -> bytes:
    """Return a DICOM file without what tells who the patient is.

    Parameters
    ----------
    content : bytes
        The file.
    pseudonyms : Pseudonyms
    patient : str
        The patient's pseudonym.
    age_years, sex
        As the clinic knows them: the age goes into the file, because the dates that it follows from do not stay.
    limits : Limits, optional
        With `seconds`, it is done in a process apart: what is in the file may crash a decoder.

    Raises
    ------
    ReadError
        When the file cannot be read or its pixels cannot be decoded; nothing else, whatever the bytes.
    """
    said = {"patient": patient, "age_years": age_years, "sex": sex}
    if limits is not None and limits.seconds is not None:
        return isolated.call(f"{__name__}:apart", content, "DICOM file", limits, said | pseudonyms.told())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom quotes what it finds odd, names included
            return _deidentified(content, pseudonyms, patient, age_years, sex)
    except Exception as error:  # hostile bytes raise nearly anything, and messages quote values
        raise ReadError(f"DICOM file: cannot be de-identified ({type(error).__name__}); it is left out") from None


def apart(content: bytes, *, key: str, site: str, patient: str, age_years: float | None, sex: str | None) -> bytes:
    """Do the same in the process apart."""
    return deidentify(content, Pseudonyms(bytes.fromhex(key), site), patient=patient, age_years=age_years, sex=sex)


def _deidentified(
    content: bytes, pseudonyms: Pseudonyms, patient: str, age_years: float | None, sex: str | None
) -> bytes:
    dataset = dcmread(io.BytesIO(content), force=True)
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.decompress(generate_instance_uid=False)
    _shorten(dataset)
    _mask(dataset)
    if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian and int(dataset.BitsAllocated) == 16:
        dataset.PixelData = np.frombuffer(dataset.PixelData, ">u2").astype("<u2").tobytes()
    for element in list(dataset):
        if element.VR == "SQ" and element.keyword not in defined_terms.SEQUENCES:
            del dataset[element.tag]  # none of it stays, however deep it goes
    rules = _rules(pseudonyms)
    for part in [dataset, *_inside(dataset)]:
        _apply(part, rules)
    clean = defined_terms.reduce(dataset)
    for keyword in _EMPTY:
        setattr(clean, keyword, "")
    clean.SOPClassUID = defined_terms.storage(dataset.SOPClassUID)
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(clean, keyword, dataset[keyword].value)  # pseudonyms by now
    clean.PatientID = clean.PatientName = patient
    said = sex or clean.get("PatientSex", "")
    clean.PatientSex = said if said in ("M", "F", "O") else ""
    if age_years is not None:
        clean.PatientAge = _age(age_years)  # what the clinic could not read as an age may be anything
    clean.PatientIdentityRemoved = "YES"
    clean.LongitudinalTemporalInformationModified = "REMOVED"
    clean.DeidentificationMethod = "DICOM PS3.15 basic profile, patient characteristics retained"
    clean.DeidentificationMethodCodeSequence = Sequence(_code(*code) for code in _CODES)
    clean.add_new("PixelData", "OW" if int(clean.BitsAllocated) > 8 else "OB", dataset.PixelData)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = clean.SOPClassUID
    meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    clean.file_meta, clean.preamble = meta, b"\0" * 128
    out = io.BytesIO()
    clean.save_as(out, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return out.getvalue()


def _shorten(dataset: Dataset) -> None:
    """Cut what stands behind the pixels."""
    bits = (
        int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel", 1)) * int(dataset.BitsAllocated)
    )
    size = bits * int(dataset.get("NumberOfFrames") or 1) // 8
    dataset.PixelData = dataset.PixelData[: size + size % 2]


def _mask(dataset: Dataset) -> None:
    """Clear the bits of each sample that hold no pixel: old files keep overlays there, with names drawn into them."""
    allocated, stored, high = int(dataset.BitsAllocated), int(dataset.BitsStored), int(dataset.HighBit)
    if allocated not in (8, 16, 32) or stored >= allocated:
        return
    order = ">" if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
    signed = int(dataset.get("PixelRepresentation", 0)) == 1
    kind = np.dtype(f"{order}{'i' if signed else 'u'}{allocated // 8}")
    whole = len(dataset.PixelData) // kind.itemsize * kind.itemsize
    samples = np.frombuffer(dataset.PixelData[:whole], kind)
    above, below = allocated - high - 1, high - stored + 1
    if above < 0 or below < 0:
        raise ValueError("HighBit")
    # Up and down again: what stands above goes, and a sign is drawn out over it.
    samples = (samples << above >> above >> below << below).astype(kind)
    dataset.PixelData = samples.tobytes() + dataset.PixelData[whole:]


def _inside(dataset: Dataset) -> Iterator[Dataset]:
    """Yield every item of every sequence, the outer ones first."""
    for element in list(dataset):
        if element.VR == "SQ":
            for item in element.value:
                yield item
                yield from _inside(item)


@cache
def _table() -> dict[tuple[int, ...], str]:
    """Return the profile: tag (or group, element and their masks) → what to do."""
    from dicomanonymizer.simpledicomanonymizer import initialize_actions

    return {tag: action.__name__ for tag, action in initialize_actions(EDITION).items()}


def _rules(pseudonyms: Pseudonyms) -> dict[tuple[int, ...], Rule]:
    def remove(dataset: Dataset, tag: Any) -> None:
        if tag in dataset:
            del dataset[tag]

    def replace(dataset: Dataset, tag: Any) -> None:
        """Give UIDs their pseudonyms; nothing else that is to go is needed by anybody."""
        element = dataset.get(tag)
        if element is None:
            return
        if element.VR != "UI":
            del dataset[tag]
        elif isinstance(element.value, str):
            element.value = pseudonyms.uid(element.value) if element.value else ""
        else:
            element.value = [pseudonyms.uid(value) for value in element.value]

    kept = {tag for tag in _table() if len(tag) == 2 and keyword_for_tag(tag) in KEPT}
    return {tag: remove if action == "delete" else replace for tag, action in _table().items() if tag not in kept}


def _apply(dataset: Dataset, rules: dict[tuple[int, ...], Rule]) -> None:
    from dicomanonymizer.simpledicomanonymizer import anonymize_dataset

    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    anonymize_dataset(dataset, delete_private_tags=True, base_rules_gen=lambda: dict(rules))


def _age(years: float) -> str:
    if years >= 2:
        return f"{min(int(years), OLDEST):03d}Y"
    return f"{int(years * 12):03d}M"


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item

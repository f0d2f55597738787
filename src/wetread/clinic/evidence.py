"""The images that an SR or SC refers to, as clean headers: patient and study as we know them, UIDs as they came.

Nothing of a hostile header is copied unread into an object of ours: identifiers come from the database, where intake
has cleaned them, and the rest is checked value by value.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from datetime import date, datetime

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from wetread.clinic import identity
from wetread.clinic.statement import Picture, Statement
from wetread.errors import ClinicError, NotFoundError
from wetread.radiograph.dicom import quiet

# It tells the log of every group of attributes that it copies.
logging.getLogger("highdicom").setLevel(logging.WARNING)

MANUFACTURER = "Wetread"
_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "PatientName",
    "ReferringPhysicianName",
    "PatientOrientation",
    "ImagerPixelSpacing",
    "SpecificCharacterSet",
    "Rows",
    "Columns",
    "Modality",
]
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")


class NotDicomError(ClinicError):
    """A study has no image that an SR or SC could refer to."""


@dataclass(frozen=True)
class Reference:
    """One image and its clean header."""

    picture: Picture
    header: Dataset


def references(statement: Statement) -> list[Reference]:
    """Return the DICOM images of a statement with clean headers.

    Raises
    ------
    NotDicomError
        When there is none, e.g. for a picture that was uploaded: there is no study in a PACS to add to.
    NotFoundError
        When no model analysed the study.
    """
    if not statement.said:
        raise NotFoundError(f"study {statement.study}: no model analysed it, so that there is nothing to show")
    found = [made for picture in statement.dicom if (made := _reference(statement, picture)) is not None]
    if not found:
        raise NotDicomError(
            f"study {statement.study}: no DICOM image with UIDs of its own, so that no SR or SC can refer to it; "
            "send the images as DICOM"
        )
    return found


def _reference(statement: Statement, picture: Picture) -> Reference | None:
    with quiet():
        try:
            source = pydicom.dcmread(picture.path, force=True, stop_before_pixels=True, specific_tags=list(_TAGS))
        except Exception:  # hostile bytes raise nearly anything
            return None
        # An image whose own UIDs are missing or invalid cannot be found by anybody under those that we derived.
        if (_text(source, "StudyInstanceUID"), _text(source, "SOPInstanceUID")) != (
            statement.study_uid,
            picture.sop_uid,
        ) or not UID(_text(source, "SOPClassUID")).is_valid:
            return None
        header = Dataset()
        header.SOPClassUID, header.SOPInstanceUID = _text(source, "SOPClassUID"), picture.sop_uid
        header.StudyInstanceUID, header.SeriesInstanceUID = statement.study_uid, picture.series_uid
        header.PatientID = clip(statement.patient_id)
        header.PatientName = _name(source, statement)
        header.PatientBirthDate = (statement.birth_date or "").replace("-", "")
        header.PatientSex = statement.sex or ""
        header.AccessionNumber = clip(statement.accession or "", 16)
        header.StudyID = clip(_text(source, "StudyID"), 16)
        header.StudyDate, header.StudyTime = _date(_text(source, "StudyDate")), _time(_text(source, "StudyTime"))
        header.ReferringPhysicianName = clip(_text(source, "ReferringPhysicianName"))
        header.Modality = clip(_text(source, "Modality"), 16)
        for name in ("Rows", "Columns"):
            value = source.get(name)
            if isinstance(value, int) and 0 < value < 65536:
                setattr(header, name, value)
        _geometry(source, header)
        return Reference(picture, header)


def _geometry(source: Dataset, header: Dataset) -> None:
    """Take over orientation and pixel spacing where they are whole."""
    try:
        directions = [str(value) for value in source.get("PatientOrientation") or []]
        spacing = [float(value) for value in source.get("ImagerPixelSpacing") or []]
    except (TypeError, ValueError):
        return
    if len(directions) == 2 and all(re.fullmatch(r"[APRLHF]{1,3}", value) for value in directions):
        header.PatientOrientation = directions
    if len(spacing) == 2 and all(0 < value < 100 for value in spacing):
        header.ImagerPixelSpacing = [f"{value:.6g}" for value in spacing]


def _name(source: Dataset, statement: Statement) -> str:
    """Return the patient's name: as the image writes it, unless the study's was corrected since."""
    written = _text(source, "PatientName")
    plain = ", ".join(part for part in written.split("=")[0].split("^")[:2] if part)
    if plain == statement.patient_name:
        return _person(written)
    return person(statement.patient_name)


def person(name: str) -> str:
    """Return a name as DICOM writes it (VR PN) from ``Family, Given``."""
    return _person("^".join(part.strip() for part in name.split(",", 1)))


def _person(text: str) -> str:
    """Return at most three component groups of 64 characters each (DICOM PS3.5 6.2, VR PN)."""
    groups = [group[:64] for group in text.replace("\\", "").split("=")[:3]]
    return "=".join(groups)


def _text(dataset: Dataset, name: str) -> str:
    try:
        return identity.clean(str(dataset.get(name) or ""))
    except Exception:
        return ""


def clip(text: str, limit: int = 64) -> str:
    """Return text that fits a value of DICOM."""
    return text.replace("\\", "")[:limit]


def _date(text: str) -> str:
    try:
        date.fromisoformat(text)
    except ValueError:
        return ""
    return text if len(text) == 8 and text.isdecimal() else ""


def _time(text: str) -> str:
    return text if _TIME.fullmatch(text) else ""


def reference(sop_class: str, study_uid: str, series_uid: str, sop_uid: str) -> Dataset:
    """Return the header of an object of which only its UIDs count."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = sop_class, sop_uid
    made.StudyInstanceUID, made.SeriesInstanceUID = study_uid, series_uid
    return made


def date_it(made: Dataset, at: datetime) -> None:
    """Write when the result was there as the date of an object, so that making it again gives the same bytes."""
    local = at.astimezone()
    days = ("InstanceCreationDate", "ContentDate", "DateOfSecondaryCapture")
    times = ("InstanceCreationTime", "ContentTime", "TimeOfSecondaryCapture")
    for names, form in ((days, "%Y%m%d"), (times, "%H%M%S")):
        for name in names:
            if name in made:
                setattr(made, name, local.strftime(form))
    for equipment in made.get("ContributingEquipmentSequence", []):
        equipment.ContributionDateTime = local.strftime("%Y%m%d%H%M%S")

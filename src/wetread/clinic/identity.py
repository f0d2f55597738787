"""What a file says it is: its format, its identifiers, its patient. Pixels are not touched here.

Every value is hostile: clipped, freed of control characters, and replaced by a derived identifier when it is no
DICOM UID. UIDs that are derived are ``2.25.{uuid5}`` (DICOM PS3.5 B.2) of what they stand for, so that sending
the same again gives the same.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from wetread.clinic import content
from wetread.clinic.content import Note
from wetread.radiograph import headers

_NAMESPACE = uuid.UUID("6f0a3c1e-57e7-5ead-8f11-9a4b5f0c2d3e")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_TAGS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "StudyDate",
    "StudyTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "AccessionNumber",
    "StudyDescription",
    "SeriesDescription",
    "Modality",
    "BodyPartExamined",
    "ViewPosition",
    "RequestedProcedurePriority",
    "SOPClassUID",
    "Manufacturer",
    "ManufacturerModelName",
    "StationName",
    "DeviceSerialNumber",
)
# Storage classes that hold no picture, by the beginning of their UID (PS3.6 table A-1), in the reader's words.
_DOCUMENTS = {
    "1.2.840.10008.5.1.4.1.1.88.59": "Key Object Selection",
    "1.2.840.10008.5.1.4.1.1.88.": "Structured Report",
    "1.2.840.10008.5.1.4.1.1.11.": "Presentation State",
    "1.2.840.10008.5.1.4.1.1.104.": "encapsulated document",
    "1.2.840.10008.5.1.4.1.1.9.": "waveform",
    "1.2.840.10008.5.1.4.1.1.66": "registration or segmentation",
    "1.2.840.10008.5.1.4.1.1.481.": "radiotherapy object",
}
_NO_PICTURES = frozenset({"SR", "PR", "KO", "DOC", "RTSTRUCT", "RTPLAN", "RTDOSE", "AU", "ECG"})
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
OWN = "our own"  # what those are called
MANUFACTURER = "Wetread"  # of what we make ourselves; its UIDs are derived, see `derive`
_NAMES = {
    "StudyInstanceUID": "Study Instance UID",
    "SeriesInstanceUID": "Series Instance UID",
    "SOPInstanceUID": "SOP Instance UID",
}
_VIEWS = {"PA": "PA", "AP": "AP", "LL": "LATERAL", "RL": "LATERAL", "LAT": "LATERAL", "LATERAL": "LATERAL"}


@dataclass(frozen=True)
class Identity:
    """Who and what a file is about, as far as it says so."""

    format: str
    study_uid: str | None = None
    series_uid: str | None = None
    sop_uid: str | None = None
    patient_id: str = ""
    patient_issuer: str | None = None
    patient_name: str = ""
    birth_date: str | None = None
    sex: str | None = None
    age_years: float | None = None
    accession: str | None = None
    description: str | None = None
    series_description: str | None = None
    modality: str | None = None
    body_part: str | None = None
    acquired_at: str | None = None
    study_date: str | None = None
    study_time: str | None = None
    view: str | None = None
    priority: str | None = None
    sop_class: str | None = None
    device: str | None = None  # manufacturer and model
    station: str | None = None  # which of these: its name, or a word for its serial number
    document: str | None = None  # what it is, when it is kept beside the images: it holds no picture, or is ours
    own: bool = False  # we made it, and it came back
    rejects: Note | None = None
    cautions: tuple[str, ...] = ()


def sniff(head: bytes) -> str:
    """Return the format of a file by its first bytes: dicom, jpeg, png, webp, tiff, zip or other."""
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    return headers.sniff(head) or "other"


def derive(*parts: str) -> str:
    """Return the UID that stands for these words."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(parts)).int}"


def of(path: Path, head: bytes) -> Identity:
    """Read what a file says about itself. Never raises for what the file contains.

    Parameters
    ----------
    path : Path
        The file.
    head : bytes
        Its first 4 KiB.
    """
    kind = sniff(head)
    if kind != "dicom":
        return Identity(kind)
    from wetread.radiograph.dicom import quiet

    try:
        # pydicom raises nearly anything on hostile bytes; the reader of pixels says later what is wrong. Its warnings
        # quote values, which have no place in a log.
        with quiet():
            dataset, pixels = content.header(path, _TAGS)
            said = _dicom({tag: _text(dataset, tag) for tag in _TAGS}, pixels)
            # A note of ours takes back what we sent, not images: when it comes back, it rejects nothing here.
            note = said.sop_class == content.KEY_OBJECT and said.document and not said.own
            return _with_note(said, path) if note else said
    except Exception:
        return Identity("dicom", cautions=("DICOM header unreadable: identifiers unknown",))


def uid(name: str, value: str) -> str:
    """Return a UID as it is kept: itself when it is valid, else the one that stands for it."""
    return value if len(value) <= 64 and _UID.fullmatch(value) else derive(name, value)


def age_between(born: str, acquired_at: str | None) -> float | None:
    """Return the age in years at the time of the image; both are ISO dates, the second may go on with the time."""
    try:
        days = (date.fromisoformat((acquired_at or "")[:10]) - date.fromisoformat(born)).days
    except ValueError:
        return None
    return round(days / 365.25, 2) if days >= 0 else None


def _with_note(said: Identity, path: Path) -> Identity:
    try:
        return replace(said, rejects=content.note(path))
    except Exception:
        return replace(
            said, cautions=(*said.cautions, "a Key Object Selection cannot be read, or names too many images")
        )


def _document(tags: dict[str, str], pixels: bool) -> tuple[str | None, bool]:
    """Return what an object without a picture, or one of ours, is called, and whether it is ours."""
    kind, uid = tags["SOPClassUID"], tags["SOPInstanceUID"]
    word = next((word for prefix, word in _DOCUMENTS.items() if kind.startswith(prefix)), None)
    if tags["Manufacturer"] == MANUFACTURER and uid.startswith("2.25."):
        if word is None and kind.startswith(_SECONDARY_CAPTURE):
            word = "Secondary Capture"
        if word is not None:
            return f"{OWN} {word}", True
    if pixels:  # what has pixels is shown as an image, whatever class it claims
        return None, False
    return word or (f"{tags['Modality']} object" if tags["Modality"] in _NO_PICTURES else None), False


def _dicom(tags: dict[str, str], pixels: bool) -> Identity:
    cautions = []
    uids: dict[str, str | None] = {}
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        value = tags[name]
        uids[name] = value or None
        if not value:
            cautions.append(f"no {_NAMES[name]}")
        elif (kept := uid(name, value)) != value:
            uids[name] = kept
            cautions.append(f"{name} is not a valid UID")
    if not tags["PatientID"]:
        cautions.append("no patient ID")
    born, studied = _date(tags["PatientBirthDate"]), _date(tags["AcquisitionDate"] or tags["StudyDate"])
    time = re.sub(r"\D", "", tags["AcquisitionTime"] or tags["StudyTime"])[:6]
    sex = tags["PatientSex"].upper()
    document, own = _document(tags, pixels)
    return Identity(
        format="dicom",
        study_uid=uids["StudyInstanceUID"],
        series_uid=uids["SeriesInstanceUID"],
        sop_uid=uids["SOPInstanceUID"],
        patient_id=tags["PatientID"],
        patient_issuer=tags["IssuerOfPatientID"] or None,
        patient_name=", ".join(part for part in tags["PatientName"].split("=")[0].split("^")[:2] if part),
        birth_date=born.isoformat() if born else None,
        sex=sex if sex in {"M", "F", "O"} else None,
        age_years=_age(tags["PatientAge"], born, studied),
        accession=tags["AccessionNumber"] or None,
        description=tags["StudyDescription"] or None,
        series_description=tags["SeriesDescription"] or None,
        modality=tags["Modality"][:16] or None,
        body_part=tags["BodyPartExamined"] or None,
        acquired_at=f"{studied.isoformat()}T{time[:2]}:{time[2:4]}" if studied and len(time) >= 4 else _iso(studied),
        study_date=f"{day:%Y%m%d}" if (day := _date(tags["StudyDate"])) else None,
        study_time=tags["StudyTime"] if re.fullmatch(r"\d{2,6}(\.\d{1,6})?", tags["StudyTime"]) else None,
        view=_VIEWS.get(tags["ViewPosition"].upper()),
        priority=tags["RequestedProcedurePriority"] or None,
        sop_class=tags["SOPClassUID"][:64] or None,
        device=_one_spelling(f"{tags['Manufacturer']} {tags['ManufacturerModelName']}"),
        station=_station(tags["StationName"], tags["DeviceSerialNumber"]),
        document=document,
        own=own,
        cautions=tuple(cautions),
    )


def _one_spelling(text: str) -> str | None:
    """Return text with single blanks and in capitals, as many as a column holds."""
    return " ".join(text.upper().split())[:64] or None


def _station(name: str, serial: str) -> str | None:
    """Return what a device is called where it stands; a serial number, known far and wide, only by its hash."""
    if not name and serial:
        return f"serial {hashlib.sha256(serial.encode()).hexdigest()[:8]}"
    return _one_spelling(name)


def _text(dataset: Any, tag: str) -> str:
    """Return a value as short clean text; what cannot be decoded is absent."""
    try:
        return clean(str(dataset.get(tag) or ""))
    except Exception:
        return ""


def clean(text: str, limit: int = 256) -> str:
    """Return text without control characters (a database refuses NUL), on one line, clipped."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return printable.encode("utf-8", "replace").decode().strip()[:limit]


def _date(text: str) -> date | None:
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:8]))
    except ValueError:
        return None


def _iso(day: date | None) -> str | None:
    return day.isoformat() if day else None


def _age(text: str, born: date | None, studied: date | None) -> float | None:
    """Return the age in years, to the hundredth, as the check of suitability takes it."""
    from wetread.radiograph.dicom import years

    age = years(text, born, studied)
    return None if age is None else round(age, 2)

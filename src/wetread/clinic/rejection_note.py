"""A rejection note (IHE RAD, Imaging Object Change Management) that takes back reports and pictures of ours.

A Key Object Selection with the title *Rejected for Patient Safety Reasons*, in the study and of the patient under which
the objects went out: an archive that knows such notes hides what it names, another keeps it beside them, and says what
it is in its description.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from highdicom import ko, sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as dicom_codes
from pydicom.uid import ExplicitVRLittleEndian

from wetread import __version__
from wetread.clinic import evidence, identity
from wetread.clinic.superseding import Before
from wetread.radiograph.dicom import quiet

SERIES = 9003
TITLE = "Rejection note: sent under a wrong patient"
WORDS = "These AI triage results went out under an identity that was corrected since. Do not use them."


def build(before: Sequence[Before], at: datetime, site: str) -> list[ko.KeyObjectSelectionDocument]:
    """Build a note for each study and patient under which something went out; the same gives the same bytes.

    Parameters
    ----------
    before : sequence of Before
        What went out; `sent` lists SOP class, study, series and SOP Instance UID.
    at : datetime
        When it was corrected.
    site : str
        Of the study.
    """
    groups: dict[tuple[str, ...], dict[str, Dataset]] = {}
    for each in before:
        who = tuple(str(each.patient.get(name) or "") for name in _WHO)
        for uids in each.sent:
            groups.setdefault((uids[1], *who), {})[uids[3]] = evidence.reference(*uids)
    return [_note(who, list(objects.values()), at, site) for who, objects in sorted(groups.items())]


_WHO = ("patient_id", "patient_name", "birth_date", "sex", "accession")


def _note(who: tuple[str, ...], objects: list[Dataset], at: datetime, site: str) -> ko.KeyObjectSelectionDocument:
    study_uid, patient_id, name, born, sex, accession = who
    first = objects[0]
    first.PatientID, first.PatientName = evidence.clip(patient_id), evidence.person(name)
    first.PatientBirthDate, first.PatientSex = born.replace("-", ""), sex
    first.AccessionNumber = evidence.clip(accession, 16)
    first.StudyID = first.StudyDate = first.StudyTime = first.ReferringPhysicianName = ""
    words = (study_uid, *who[1:], *sorted(each.SOPInstanceUID for each in objects))
    observer = sr.ObserverContext(
        observer_type=dicom_codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=identity.derive("device", site),
            name="Wetread",
            manufacturer_name=evidence.MANUFACTURER,
            model_name="Wetread",
            serial_number=__version__,
        ),
    )
    content = ko.KeyObjectSelection(
        document_title=dicom_codes.DCM.RejectedForPatientSafetyReasons,
        referenced_objects=objects,
        observer_device_context=observer,
        description=WORDS,
    )
    with quiet():
        made = ko.KeyObjectSelectionDocument(
            evidence=objects,
            content=content,
            series_instance_uid=identity.derive("rejection series", *words),
            series_number=SERIES,
            sop_instance_uid=identity.derive("rejection", *words),
            instance_number=1,
            manufacturer=evidence.MANUFACTURER,
            manufacturer_model_name="Wetread",
            software_versions=__version__,
            device_serial_number=__version__,
            series_description=TITLE,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            specific_character_set="ISO_IR 192",
        )
    evidence.date_it(made, at)
    return made

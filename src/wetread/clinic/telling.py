"""One output on its way: built from a statement, written down, sent; and taken back when it told of the wrong patient.

What is written down before sending is what taking it back needs:

=============  =======================================================
kind           an entry for each
=============  =======================================================
``sr``, ``sc``   object: SOP class, study, series and SOP Instance UID
``fhir``         resource: type, and system and value of its identifier
``hl7``          message, whole
``webhook``      alert that named the patient: its finding
=============  =======================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydicom.dataset import Dataset

from wetread.clinic import capture, destinations, fhir, oru, rejection_note, structured_report, superseding
from wetread.clinic.destinations import Destination
from wetread.clinic.statement import OutdatedError, Statement
from wetread.clinic.store import Store
from wetread.clinic.superseding import Before
from wetread.config import Settings
from wetread.errors import NotFoundError
from wetread.radiograph.read import Limits


def send(
    to: Destination,
    row: Mapping[str, Any],
    said: Statement,
    before: Sequence[Before],
    database: Store,
    settings: Settings,
) -> None:
    """Build an output and send it, and take back what it takes the place of.

    Parameters
    ----------
    row : mapping
        The delivery.
    said : Statement
    before : sequence of Before
        What the destination got under identities of before.

    Raises
    ------
    SendError
        When it did not arrive.
    OutdatedError
        When the patient was corrected in the meantime.
    NotDicomError, NotFoundError
        When there is nothing to send.
    """

    def begin(sent: list[Any]) -> None:
        with database.write() as connection:
            if not superseding.begin(connection, row, sent):
                raise OutdatedError(superseding.CLOSED)

    wrong = [each for each in before if not each.done]
    if to.kind in ("sr", "sc"):
        objects: list[Dataset] = (
            [structured_report.build(said)]
            if to.kind == "sr"
            else list(capture.build(said, database, Limits.of(settings)))
        )
        begin([_uids(made) for made in objects])
        notes = rejection_note.build(wrong, said.told_at, said.site)
        destinations.send_dicom(to, [*notes, *objects], settings)
    elif to.kind == "fhir":
        bundle = fhir.build(
            said,
            patients=settings.outputs_patients,
            before=[key for each in before for key in each.sent],
            gone=[key for each in wrong for key in each.sent],
        )
        begin(fhir.made(bundle))
        statuses = destinations.send_fhir(to, bundle)
        with database.write() as connection:
            superseding.add(connection, row["id"], fhir.made(bundle, statuses))
    elif to.kind == "hl7":
        message = oru.build(said, corrects=bool(before))
        begin([message])
        # Whoever is the same patient, only written otherwise, gets the corrected message alone.
        elsewhere = [b for b in wrong if (b.study, b.patient["patient_id"]) != (said.study, said.patient_id)]
        take_back(to, elsewhere, said.told_at, said.site, settings)
        destinations.send_hl7(to, message)
    else:
        if not said.said:
            raise NotFoundError(f"study {said.study}: no model analysed it, so that there is nothing to tell")
        named = settings.outputs_webhook_patient
        if named and row["revision"] == said.revision:
            begin([superseding.about(row)])
        destinations.send_webhook(to, alert(said, patient=named, corrects=bool(before)), row["id"])


def take_back(to: Destination, wrong: Sequence[Before], at: datetime, site: str, settings: Settings) -> None:
    """Tell a destination that what it was sent is wrong; raises SendError when that did not arrive.

    Parameters
    ----------
    at : datetime
        When it was corrected.
    site : str
        Of the study.
    """
    if not wrong:
        return
    if to.kind in ("sr", "sc"):
        destinations.send_dicom(to, rejection_note.build(wrong, at, site), settings)
    elif to.kind == "fhir":
        destinations.send_fhir(to, fhir.withdraw(key for each in wrong for key in each.sent))
    elif to.kind == "hl7":
        for message in (message for each in wrong for message in each.sent):
            destinations.send_hl7(to, oru.withdraw(message, at))


def alert(said: Statement, *, patient: bool, corrects: bool = False) -> dict[str, Any]:
    """Return what a webhook tells of a critical finding; who the patient is only when asked for.

    `corrects` says that it was told of another patient, or of one written otherwise, before.
    """
    content: dict[str, Any] = {
        "event": "critical_finding",
        "study": said.study,
        "site": said.site,
        "priority": said.priority,
        "finding": said.finding,
        "reason": said.reason,
        "at": said.at.isoformat(),
        "notice": said.notice,
        "findings": [
            {"finding": f.finding, "call": f.call, "model": f.model, "version": f.version} for f in said.flagged
        ],
    }
    if corrects:
        content["corrected"] = True
    if patient:
        content["patient"] = {
            "id": said.patient_id,
            "name": said.patient_name,
            "birth_date": said.birth_date,
            "accession": said.accession,
            "study_uid": said.study_uid,
        }
    return content


def _uids(made: Dataset) -> list[str]:
    return [
        str(made[name].value) for name in ("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    ]

"""What was told of a wrong patient is taken back and told anew: against real sockets, and a FHIR server that keeps."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

import highdicom as hd
import hl7
import pydicom
import pytest
import receivers
import sqlalchemy as sa
from fhir.resources.R4B.bundle import Bundle
from owing import OK, complete, drain, outbox, rows
from pydicom.dataset import Dataset
from ward import SITE, Ward, dicom

from wetread.clinic import adt, delivery, reviews, store, structured_report
from wetread.clinic.corrections import Corrections
from wetread.clinic.delivery import Outbox

A08 = "MSH|^~\\&|HIS|HOSP|||20260101120000||ADT^A08|42|P|2.5\rPID|1||P1||Roe^Jane||19600229|F\r"
A40 = "MSH|^~\\&|HIS|HOSP|||20260101120000||ADT^A40|43|P|2.5\rPID|1||NEW||Roe^Jane\rMRG|P1\r"


@pytest.fixture
def hand(ward: Ward) -> Corrections:
    return Corrections(ward.database, lambda connection, site: ward.ranking, lambda: list(ward.models))


def told(ward: Ward, seed: int = 1, name: str = "edema.dcm", **elements: Any) -> str:
    """Take in a study, analyse it, let it be complete; return it."""
    study = ward.take(dicom(seed, **{"PatientName": "Doe^John", **elements}), name).study
    ward.work()
    complete(ward)
    return study


def objects(receiver: receivers.Receiver) -> list[list[Dataset]]:
    """Return the objects of each STOW request."""
    found = []
    for request in receiver.got:
        [boundary] = re.findall(r"boundary=(\S+)", request.headers["Content-Type"])
        parts = request.body.split(f"--{boundary}".encode())[1:-1]
        found.append([pydicom.dcmread(BytesIO(part.partition(b"\r\n\r\n")[2][:-2])) for part in parts])
    return found


@contextmanager
def stow(ward: Ward, *kinds: str, **settings: Any) -> Iterator[tuple[Outbox, receivers.Receiver]]:
    with receivers.http(OK) as receiver:
        to = f"dicomweb+http://127.0.0.1:{receiver.port}/dicom-web"
        yield outbox(ward, **{f"outputs_{kind}": [to] for kind in kinds}, **settings), receiver


class TestDicom:
    def test_a_corrected_patient_gets_a_new_report_and_the_old_one_is_rejected(
        self, ward: Ward, hand: Corrections
    ) -> None:
        with stow(ward, "sr") as (box, receiver):
            study = told(ward)
            assert drain(box) == 1
            hand.patient(SITE, study, {"patient_id": "P9", "patient_name": "Roe, Jane"}, "mixed up", "admin")
            assert drain(box) == 1
            [[old], [note, new]] = objects(receiver)
        assert (str(old.PatientName), old.PatientID) == ("Doe^John", "P1")
        assert (str(new.PatientName), new.PatientID) == ("Roe^Jane", "P9")
        assert new.StudyInstanceUID == old.StudyInstanceUID
        assert new.SOPInstanceUID != old.SOPInstanceUID
        assert new.SeriesInstanceUID != old.SeriesInstanceUID
        [before] = new.PredecessorDocumentsSequence
        [series] = before.ReferencedSeriesSequence
        assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == old.SOPInstanceUID
        hd.sr.ComprehensiveSR.from_dataset(new)
        # The note is of the patient and study of what it rejects, as IHE's IOCM has it.
        assert note.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.59"
        assert (str(note.PatientName), note.PatientID, note.StudyInstanceUID) == (
            "Doe^John",
            "P1",
            old.StudyInstanceUID,
        )
        title = note.ConceptNameCodeSequence[0]
        assert (title.CodeValue, title.CodingSchemeDesignator) == ("113037", "DCM")
        named = hd.ko.KeyObjectSelectionDocument.from_dataset(note)
        assert named.resolve_reference(old.SOPInstanceUID) == (
            old.StudyInstanceUID,
            old.SeriesInstanceUID,
            old.SOPInstanceUID,
        )
        assert [(row.state, row.revision) for row in rows(ward)] == [("sent", 1), ("sent", 0)]

    def test_captures_are_rejected_and_made_anew(self, ward: Ward, hand: Corrections) -> None:
        with stow(ward, "sc") as (box, receiver):
            study = told(ward)
            drain(box)
            hand.patient(SITE, study, {"patient_name": "Roe, Jane"}, "typing error", "admin")
            drain(box)
            [[old], [note, new]] = objects(receiver)
        assert str(new.PatientName) == "Roe^Jane"
        assert new.SOPInstanceUID != old.SOPInstanceUID
        [evidence] = note.CurrentRequestedProcedureEvidenceSequence
        [reference] = evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence
        assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (
            old.SOPClassUID,
            old.SOPInstanceUID,
        )

    def test_each_correction_is_told_once_and_every_try_alike(self, ward: Ward, hand: Corrections) -> None:
        with stow(ward, "sr") as (box, receiver):
            study = told(ward)
            drain(box)
            for _ in range(3):  # the same message, three times
                assert adt.answer(hand, A08, SITE).code == "AA"
                complete(ward)
                drain(box)
            assert len(receiver.got) == 2
            with ward.database.write() as connection:  # a sender that was killed sends it again
                connection.execute(store.delivery.update().where(store.delivery.c.revision == 1).values(state="queued"))
            drain(box)
            first, second = objects(receiver)[1:]
            assert first[-1] == second[-1]
            hand.patient(SITE, study, {"patient_name": "Doe, John"}, "it was he after all", "admin")
            drain(box)
            [old], [_, new], _, [note, newest] = objects(receiver)
            assert len({old.SOPInstanceUID, new.SOPInstanceUID, newest.SOPInstanceUID}) == 3
            [evidence] = note.CurrentRequestedProcedureEvidenceSequence
            named = [
                o.ReferencedSOPInstanceUID for s in evidence.ReferencedSeriesSequence for o in s.ReferencedSOPSequence
            ]
            assert named == [new.SOPInstanceUID]  # the first was rejected already
        assert [row.revision for row in rows(ward)] == [2, 1, 0]

    def test_nothing_that_waits_goes_out_under_the_old_name(self, ward: Ward, hand: Corrections) -> None:
        with stow(ward, "sr") as (box, receiver):
            told(ward)
            adt.answer(hand, A08, SITE)
            drain(box)
            [[new]] = objects(receiver)
        assert str(new.PatientName) == "Roe^Jane"
        assert "PredecessorDocumentsSequence" not in new
        assert sorted(row.state for row in rows(ward)) == ["nothing", "sent"]
        assert delivery.undelivered(ward.database, SITE) == 0

    def test_a_sender_that_is_late_sends_nothing(
        self, ward: Ward, hand: Corrections, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        build = structured_report.build

        def late(said: Any) -> Any:
            made = build(said)
            monkeypatch.setattr(structured_report, "build", build)
            adt.answer(hand, A08, SITE)  # the patient is corrected between reading and sending
            return made

        with stow(ward, "sr") as (box, receiver):
            told(ward)
            monkeypatch.setattr(structured_report, "build", late)
            drain(box)
            assert [[str(o.PatientName) for o in sent] for sent in objects(receiver)] == [["Roe^Jane"]]

    def test_one_that_is_in_the_middle_of_it_is_waited_for(self, ward: Ward, hand: Corrections) -> None:
        with stow(ward, "sr") as (box, receiver):
            told(ward)
            answer, inside = receiver.answer, threading.Event()
            go = threading.Event()

            def held() -> Any:
                inside.set()
                go.wait(60)
                return answer()

            receiver.answer = held  # type: ignore[method-assign]
            thread = threading.Thread(target=box.step, args=(box.destinations[0],))
            thread.start()
            assert inside.wait(60)
            adt.answer(hand, A08, SITE)
            assert box.step(box.destinations[0])
            [waiting] = [row for row in rows(ward) if row.revision == 1]
            assert waiting.state == "failed"
            assert "identity of before" in str(waiting.error)
            receiver.answer = answer  # type: ignore[method-assign]
            go.set()
            thread.join(60)
            drain(box)
            [[old], [note, new]] = objects(receiver)
        assert (note.PatientID, str(old.PatientName), str(new.PatientName)) == ("P1", "Doe^John", "Roe^Jane")

    def test_one_that_was_killed_may_have_sent_it(self, ward: Ward, hand: Corrections) -> None:
        with stow(ward, "sr") as (box, receiver):
            told(ward)
            drain(box)
            with ward.database.write() as connection:  # it arrived, but nobody lived to see the answer
                connection.execute(store.delivery.update().values(state="queued", lease_until=store.now()))
            adt.answer(hand, A08, SITE)
            drain(box)
            [_, [note, new]] = objects(receiver)
        assert (note.Modality, str(new.PatientName)) == ("KO", "Roe^Jane")

    def test_without_images_what_was_sent_is_rejected_all_the_same(self, ward: Ward, hand: Corrections) -> None:
        with stow(ward, "sr") as (box, receiver):
            study = told(ward)
            drain(box)
            with ward.database.read() as connection:
                image = connection.execute(sa.select(store.instance.c.id)).scalar_one()
            hand.reject(SITE, image, "not this patient's", "admin")
            hand.patient(SITE, study, {"patient_id": "P9"}, "mixed up", "admin")
            drain(box)
            _, [note] = objects(receiver)
        assert (note.Modality, note.PatientID) == ("KO", "P1")
        assert rows(ward)[0].state == "sent"

    @pytest.mark.parametrize("by", ["hand", "message"])
    def test_two_studies_that_become_one_are_told_once(self, ward: Ward, hand: Corrections, by: str) -> None:
        with stow(ward, "sr") as (box, receiver):
            other = "1.2.9.9" if by == "hand" else "1.2.2.1"
            source = told(ward, 1)
            owner = "P1" if by == "hand" else "NEW"
            target = told(ward, 3, "pneumothorax.dcm", PatientID=owner, StudyInstanceUID=other)
            drain(box)
            if by == "hand":
                hand.merge(SITE, source, target, "one visit", "admin")
            else:
                adt.answer(hand, A40, SITE)
            ward.work()
            complete(ward)
            drain(box)
            sent = objects(receiver)
            first, second = sent[0][0], sent[1][0]
            flat = [each for request in sent[2:] for each in request]
            notes, reports = [o for o in flat if o.Modality == "KO"], [o for o in flat if o.Modality == "SR"]
            rejected = {
                o.ReferencedSOPInstanceUID
                for note in notes
                for study in note.CurrentRequestedProcedureEvidenceSequence
                for s in study.ReferencedSeriesSequence
                for o in s.ReferencedSOPSequence
            }
            assert rejected == {first.SOPInstanceUID, second.SOPInstanceUID}
            assert len(reports) == 1
            assert reports[0].StudyInstanceUID == second.StudyInstanceUID
        assert {row.study for row in rows(ward) if row.revision} == {target}


class TestHl7:
    def test_the_other_patient_s_result_is_marked_wrong_and_the_right_one_s_corrected(
        self, ward: Ward, hand: Corrections
    ) -> None:
        with receivers.mllp("AA") as receiver:
            box = outbox(ward, outputs_hl7=[f"mllp://127.0.0.1:{receiver.port}"])
            study = told(ward)
            reviews.save(ward.database, SITE, study, "dr", answers={"Edema": "agree"}, sign=True)
            drain(box)
            adt.answer(hand, A40, SITE)
            drain(box)
            got = [hl7.parse(message) for message in receiver.got]
        assert len(got) == 6
        assert len({str(message.segment("MSH")[10]) for message in got}) == 6
        by = [
            (str(m.segment("PID")[3]), str(m.segment("OBR")[25]), {str(x[11]) for x in m.segments("OBX")}) for m in got
        ]
        assert sorted(map(str, by[:2])) == sorted(map(str, [("P1", "R", {"R"}), ("P1", "F", {"R", "F"})]))
        assert [entry for entry in by[2:] if entry[0] == "P1"] == [("P1", "C", {"W"})] * 2
        assert sorted(map(str, (entry for entry in by[2:] if entry[0] == "NEW"))) == sorted(
            map(str, [("NEW", "C", {"R"}), ("NEW", "C", {"R", "C"})])
        )
        # A receiver knows by the filler order number which report is meant.
        fillers = {str(message.segment("OBR")[3]) for message in got}
        assert len(fillers) == 2
        wrong = next(m for m in got if str(m.segment("OBX")[11]) == "W")
        assert any(str(wrong.segments("OBX")[1][5]) == str(m.segments("OBX")[1][5]) for m in got[:2])

    def test_the_same_patient_written_otherwise_gets_the_corrected_message_alone(
        self, ward: Ward, hand: Corrections
    ) -> None:
        with receivers.mllp("AA") as receiver:
            box = outbox(ward, outputs_hl7=[f"mllp://127.0.0.1:{receiver.port}"])
            told(ward)
            drain(box)
            adt.answer(hand, A08, SITE)
            drain(box)
            first, second = (hl7.parse(message) for message in receiver.got)
        assert str(second.segment("PID")[5]) == "Roe^Jane"
        assert (str(second.segment("OBR")[25]), str(second.segment("OBR")[3])) == ("C", str(first.segment("OBR")[3]))
        assert str(second.segment("MSH")[7]) >= str(first.segment("MSH")[7])


class Keeper:
    """A FHIR server that does what R4 says of conditional creates and updates in a transaction, and no more."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []
        self.log: list[tuple[str, str]] = []

    def find(self, kind: str, identifier: str) -> dict[str, Any] | None:
        system, _, value = identifier.partition("|")
        found = [
            resource
            for resource in self.kept
            if resource["resourceType"] == kind and {"system": system, "value": value} in resource["identifier"]
        ]
        assert len(found) < 2
        return found[0] if found else None

    def transaction(self, bundle: dict[str, Any]) -> bytes:
        Bundle.model_validate_json(json.dumps(bundle))
        statuses = []
        for entry in bundle["entry"]:
            request, resource = entry["request"], entry["resource"]
            url = urlsplit(request["url"])
            text = request["ifNoneExist"] if request["method"] == "POST" else url.query
            there = self.find(url.path, parse_qs(text)["identifier"][0])
            self.log.append((request["method"], url.path))
            if there is not None and request["method"] == "PUT":
                there.clear()
                there.update(resource)
            elif there is None:
                self.kept.append(dict(resource))
            statuses.append("200 OK" if there is not None else "201 Created")
        return json.dumps({"resourceType": "Bundle", "entry": [{"response": {"status": s}} for s in statuses]}).encode()


@contextmanager
def keeper(ward: Ward) -> Iterator[tuple[Outbox, Keeper]]:
    kept = Keeper()
    with receivers.http(OK) as receiver:
        receiver.answer = lambda: (200, kept.transaction(json.loads(receiver.got[-1].body)))  # type: ignore[method-assign]
        yield outbox(ward, outputs_fhir=[f"fhir+http://127.0.0.1:{receiver.port}/fhir"]), kept


def subjects(kept: Keeper) -> set[tuple[str, str, str]]:
    return {
        (r["resourceType"], r["status"], r.get("subject", {}).get("identifier", {}).get("value", ""))
        for r in kept.kept
        if r["resourceType"] != "Device"
    }


class TestFhir:
    def test_the_same_resources_get_the_right_patient(self, ward: Ward, hand: Corrections) -> None:
        with keeper(ward) as (box, kept):
            study = told(ward)
            reviews.save(ward.database, SITE, study, "dr", answers={"Edema": "agree"}, sign=True)
            drain(box)
            count = len(kept.kept)
            assert {subject for *_, subject in subjects(kept)} == {"P1"}
            adt.answer(hand, A40, SITE)
            drain(box)
            assert len(kept.kept) == count
            assert subjects(kept) == {
                ("ImagingStudy", "available", "NEW"),
                ("Observation", "preliminary", "NEW"),
                ("Observation", "corrected", "NEW"),
                ("DiagnosticReport", "corrected", "NEW"),
            }
            before = list(kept.kept)
            adt.answer(hand, A40, SITE)
            complete(ward)
            drain(box)
            assert kept.kept == before

    def test_results_that_were_overtaken_are_entered_in_error(self, ward: Ward, hand: Corrections) -> None:
        with keeper(ward) as (box, kept):
            told(ward)
            drain(box)
            ward.take(dicom(1, SOPInstanceUID="1.2.2.4"), "pneumothorax.dcm")
            ward.work()
            complete(ward)
            drain(box)
            adt.answer(hand, A40, SITE)
            drain(box)
            states = [r["status"] for r in kept.kept if r["resourceType"] == "Observation"]
            assert sorted(states) == ["entered-in-error"] * 5 + ["preliminary"] * 5
            assert {subject for _, status, subject in subjects(kept) if status != "entered-in-error"} == {"NEW"}
            assert {subject for _, status, subject in subjects(kept) if status == "entered-in-error"} == {""}

    def test_an_imaging_study_of_the_archive_s_own_is_left_alone(self, ward: Ward, hand: Corrections) -> None:
        with keeper(ward) as (box, kept):
            own = {
                "resourceType": "ImagingStudy",
                "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.2.1"}],
                "status": "available",
                "subject": {"reference": "Patient/77"},
            }
            kept.kept.append(own)
            told(ward)
            drain(box)
            adt.answer(hand, A40, SITE)
            drain(box)
            assert own["subject"] == {"reference": "Patient/77"}


def test_an_alarm_that_named_the_patient_is_told_again_and_others_are_not(ward: Ward, hand: Corrections) -> None:
    secret = ward.archive.root.parent / "secret"
    secret.write_text("swordfish")
    with receivers.http(OK) as naming, receivers.http(OK) as silent:
        address = "http://127.0.0.1:{}/in#secret-file=" + str(secret)
        named = outbox(ward, outputs_webhook=[address.format(naming.port)], outputs_webhook_patient=True)
        told(ward, 1, "pneumothorax.dcm")
        drain(named)
        adt.answer(hand, A08, SITE)
        drain(named)
        first, second = (json.loads(request.body) for request in naming.got)
        assert (first["patient"]["name"], second["patient"]["name"]) == ("Doe, John", "Roe, Jane")
        assert (first.get("corrected"), second["corrected"]) == (None, True)
        ward.database.followers.clear()
        plain = outbox(ward, outputs_webhook=[address.format(silent.port)])
        told(ward, 5, "pneumothorax.dcm")
        drain(plain)
        adt.answer(hand, A08.replace("P1", "P5"), SITE)
        drain(plain)
        assert len(silent.got) == 1


def test_what_was_let_be_stays_so(ward: Ward, hand: Corrections) -> None:
    with stow(ward, "sr") as (box, receiver):
        told(ward)
        delivery.dismiss(ward.database, SITE, rows(ward)[0].id, "root")
        adt.answer(hand, A08, SITE)
        assert drain(box) == 0
        assert receiver.got == []


def test_what_could_not_be_delivered_is_told_anew_alone(ward: Ward, hand: Corrections) -> None:
    with receivers.http((503, b""), OK) as receiver:
        to = f"dicomweb+http://127.0.0.1:{receiver.port}/dicom-web"
        box = outbox(ward, outputs_sr=[to], outputs_tries=1)
        told(ward)
        drain(box)
        assert delivery.undelivered(ward.database, SITE) == 1
        adt.answer(hand, A08, SITE)
        assert delivery.undelivered(ward.database, SITE) == 0  # it is told anew, and so no longer missing
        drain(box)
        # It may have arrived although the answer was no: the note does no harm where it did not.
        assert [o.Modality for o in objects(receiver)[1]] == ["KO", "SR"]


def test_the_deliveries_of_a_study_are_listed_with_their_revision(ward: Ward, hand: Corrections) -> None:
    with stow(ward, "sr") as (box, _):
        study, other = told(ward), told(ward, 7)
        drain(box)
        adt.answer(hand, A08, SITE)
        found = delivery.listing(ward.database, SITE, states=delivery.STATES, study=study)
        assert [(row.state, row.revision) for row in found] == [("queued", 1), ("sent", 0)]
        assert len(delivery.listing(ward.database, SITE, states=delivery.STATES, study=other)) == 1
        assert delivery.listing(ward.database, "elsewhere", states=delivery.STATES, study=study) == []


def test_a_lease_of_a_clock_that_was_ahead_holds_nothing(ward: Ward, hand: Corrections) -> None:
    with stow(ward, "sr") as (box, receiver):
        told(ward)
        drain(box)
        with ward.database.write() as connection:
            far = store.now() + timedelta(days=300)
            connection.execute(store.delivery.update().values(state="failed", lease_until=far))
        adt.answer(hand, A08, SITE)
        drain(box)
        assert [o.Modality for o in objects(receiver)[1]] == ["KO", "SR"]

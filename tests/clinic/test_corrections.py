"""What came in wrong is set right: kept, flagged, audited, and nothing that is unread disappears."""

from __future__ import annotations

from datetime import timedelta
from io import BytesIO
from pathlib import Path

import highdicom
import pydicom
import pytest
import sqlalchemy as sa
from clinic_dimse import listening
from highdicom.sr.coding import CodedConcept
from peers import dcmtk
from ward import SITE, Ward, dicom, png

from wetread.clinic import (
    adt,
    audit,
    capture,
    completion,
    corrections,
    identity,
    reviews,
    statement,
    store,
    structured_report,
    worklist,
)
from wetread.clinic.content import KEY_OBJECT
from wetread.clinic.corrections import Corrections
from wetread.clinic.worklist import Image, Study
from wetread.errors import ClinicError, ConflictError, NotFoundError

CODES = {
    "113001": "Rejected for Quality Reasons",
    "113037": "Rejected for Patient Safety Reasons",
    "113038": "Incorrect Modality Worklist Entry",
    "113039": "Data Retention Policy Expired",
}


@pytest.fixture
def hand(ward: Ward) -> Corrections:
    return Corrections(ward.database, lambda connection, site: ward.ranking, lambda: list(ward.models))


def study(ward: Ward, key: str) -> Study:
    return worklist.study(ward.database, SITE, key)


def states(ward: Ward, key: str) -> list[str]:
    return [image.state for image in study(ward, key).images]


def listed(ward: Ward) -> list[str]:
    return [row.study for row in worklist.page(ward.database, SITE).rows]


def kinds(ward: Ward, key: str) -> list[str]:
    return [event["kind"] for event in study(ward, key).events]


def deeds(ward: Ward) -> list[str]:
    with ward.database.read() as connection:
        return list(connection.execute(sa.select(store.audit.c.action).order_by(store.audit.c.seq)).scalars())


def note(*files: bytes, code: str = "113001", scheme: str = "DCM") -> bytes:
    """Return a rejection note as highdicom writes it."""
    images = [pydicom.dcmread(BytesIO(file)) for file in files]
    for image in images:
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.StudyID = image.AccessionNumber = image.PatientName = image.PatientBirthDate = ""
        image.StudyDate = image.StudyTime = image.ReferringPhysicianName = ""
    title = CodedConcept(code, scheme, CODES.get(code, "Of Interest"))
    content = highdicom.ko.KeyObjectSelection(document_title=title, referenced_objects=images)
    made = highdicom.ko.KeyObjectSelectionDocument(
        evidence=images,
        content=content,
        series_instance_uid=highdicom.UID(),
        series_number=99,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="PACS",
        institution_name=None,
    )
    buffer = BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def document(seed: int = 0, kind: str = "1.2.840.10008.5.1.4.1.1.88.11", **elements: object) -> bytes:
    """Return an object without a picture of the study of `dicom(seed)`."""
    made = pydicom.dcmread(BytesIO(dicom(seed)))
    for group in [element.tag for element in made if element.tag.group in (0x0028, 0x7FE0)]:
        del made[group]
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = kind
    made.SOPInstanceUID, made.SeriesInstanceUID, made.Modality = f"1.2.{seed + 1}.9", f"1.2.{seed + 1}.8", "SR"
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    buffer = BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


class TestHeaders:
    def test_a_corrected_header_whose_sender_may_not_correct_is_kept_apart(self, ward: Ward) -> None:
        before, after = dicom(0, PatientName="Ro^Jane"), dicom(0, PatientName="Doe^John", PatientID="P0")
        first = ward.take(before, "edema.dcm")
        held = ward.take(after, "edema.dcm", corrects=False, actor="modality")
        assert (held.corrected, held.quarantined, held.study) == (False, True, first.study)
        found = study(ward, first.study)
        assert found.row.patient_name == "Ro, Jane"
        assert {image.state: image.reason for image in found.images} == {
            "stored": None,
            "quarantined": "a corrected header whose sender may not correct",
        }
        assert "a corrected header came whose sender may not correct; it was kept apart, and nothing was changed" in (
            found.cautions
        )
        assert kinds(ward, first.study).count("instance.quarantined") == 1
        assert not {"image.corrected", "study.corrected"} & set(deeds(ward))
        assert ward.archive.path(next(i.sha256 for i in found.images if i.image == held.image)).read_bytes() == after
        heeded = ward.take(after, "edema.dcm")
        assert (heeded.corrected, heeded.quarantined, heeded.image) == (True, False, first.image)
        assert study(ward, first.study).row.patient_name == "Doe, John"
        assert sorted(states(ward, first.study)) == ["stored", "superseded"]

    def test_a_corrected_header_is_an_update_and_both_files_stay(self, ward: Ward) -> None:
        before, after = dicom(0, PatientName="Ro^Jane"), dicom(0, PatientName="Roe^Jane", PatientBirthDate="19600229")
        first = ward.take(before, "edema.dcm")
        ward.work()
        second = ward.take(after, "edema.dcm")
        assert (second.corrected, second.quarantined, second.new) == (True, False, True)
        assert (second.study, second.image) == (first.study, first.image)
        found = study(ward, first.study)
        assert (found.row.patient_name, found.birth_date) == ("Roe, Jane", "1960-02-29")
        assert found.row.priority == "urgent"  # it keeps its place while it is looked at again
        assert sorted(image.state for image in found.images) == ["stored", "superseded"]
        for image, content in zip(sorted(found.images, key=lambda i: i.state), (after, before), strict=True):
            assert ward.archive.path(image.sha256).read_bytes() == content
        assert "corrected after arrival: patient name, birth date" in found.cautions
        assert kinds(ward, first.study).count("instance.corrected") == 1
        assert {"image.corrected", "study.corrected"} <= set(deeds(ward))
        assert ward.work() == 1  # age, sex and view may have changed: it is analysed again
        with ward.database.read() as connection:
            results = connection.execute(sa.select(store.image_result.c.instance, store.image_result.c.basis)).all()
        assert results == [(first.image, next(i.sha256 for i in found.images if i.state == "stored"))]
        assert ward.take(after).new is False
        assert ward.take(before).new is False  # what it was before is known, and changes nothing
        assert study(ward, first.study).row.patient_name == "Roe, Jane"

    def test_no_name_goes_into_events_or_audit(self, ward: Ward) -> None:
        ward.take(dicom(0, PatientName="Secret^Name"))
        ward.take(dicom(0, PatientName="Hidden^Name", PatientID="other"))
        with ward.database.read() as connection:
            said = [str(row) for table in (store.event, store.audit) for row in connection.execute(sa.select(table))]
        assert not [row for row in said if "Secret" in row or "Hidden" in row]

    def test_a_corrected_patient_takes_the_whole_study_along(self, ward: Ward) -> None:
        second = {"StudyInstanceUID": "1.2.1.1", "PatientID": "wrong"}
        key = ward.take(dicom(0, PatientID="wrong")).study
        assert ward.take(dicom(1, **second)).study == key
        ward.take(dicom(0, PatientID="right"))
        assert study(ward, key).row.patient_id == "right"
        late = ward.take(dicom(2, **second))  # from a modality that does not know yet
        assert late.study == key
        assert "an image came under a patient ID that was corrected since" in study(ward, key).cautions
        assert listed(ward) == [key]

    def test_a_corrected_patient_who_has_this_study_already_joins_it(self, ward: Ward) -> None:
        wrong = ward.take(dicom(0, PatientID="wrong")).study
        right = ward.take(dicom(1, StudyInstanceUID="1.2.1.1", PatientID="right")).study
        assert wrong != right
        assert ward.take(dicom(0, PatientID="right")).study == right
        assert listed(ward) == [right]
        assert study(ward, right).row.image_count == 2
        assert study(ward, wrong).merged_into == right

    def test_back_and_forth(self, ward: Ward) -> None:
        contents = [dicom(0, PatientID=name, StudyDescription=str(n)) for n, name in enumerate("ABABA")]
        keys = {ward.take(content).study for content in contents}
        assert len(keys) == 1
        assert study(ward, keys.pop()).row.patient_id == "A"

    def test_what_was_corrected_by_hand_stays(self, ward: Ward, hand: Corrections) -> None:
        key = ward.take(dicom(0)).study
        hand.patient(SITE, key, {"patient_id": "by hand"}, "typing error", "admin")
        ward.take(dicom(0, ViewPosition="AP"))
        ward.work()
        assert study(ward, key).row.patient_id == "by hand"

    @pytest.mark.parametrize(
        "change",
        [{"PhotometricInterpretation": "MONOCHROME1"}, {"RescaleSlope": "2", "RescaleIntercept": "0"}, {"Rows": 16}],
        ids=lambda c: next(iter(c)),
    )
    def test_other_meaning_of_the_pixels_is_another_image(self, ward: Ward, change: dict) -> None:
        key = ward.take(dicom(0)).study
        received = ward.take(dicom(0, **change))
        assert (received.quarantined, received.corrected) == (True, False)
        assert states(ward, key) == ["stored", "quarantined"]

    def test_another_study_under_the_same_image_uid_is_kept_apart(self, ward: Ward) -> None:
        ward.take(dicom(0))
        assert ward.take(dicom(0, StudyInstanceUID="1.2.77")).quarantined

    def test_one_image_in_two_series_is_one_image(self, ward: Ward) -> None:
        key = ward.take(dicom(0)).study
        assert ward.take(dicom(0, SeriesInstanceUID="1.2.78")).corrected
        assert study(ward, key).row.image_count == 1

    def test_the_same_data_set_by_another_way_is_known(self, ward: Ward) -> None:
        content = dicom(0)
        other = pydicom.dcmread(BytesIO(content))
        other.file_meta.SourceApplicationEntityTitle = "MODALITY"
        buffer = BytesIO()
        other.save_as(buffer, enforce_file_format=True)
        key = ward.take(content).study
        again = ward.take(buffer.getvalue())
        assert (again.new, again.corrected, again.quarantined) == (False, False, False)
        assert states(ward, key) == ["stored", "copy"]
        assert study(ward, key).row.cautions == ()
        assert ward.intake.adopt(SITE) == ([], [], [])

    def test_a_corrected_header_does_not_open_a_signed_study(self, ward: Ward) -> None:
        key = ward.take(dicom(0)).study
        ward.work()
        reviews.save(ward.database, SITE, key, "dr", sign=True)
        ward.take(dicom(0, PatientName="Roe^Jane"))
        row = study(ward, key).row
        assert (row.reading, row.patient_name) == ("signed", "Roe, Jane")
        assert "the header of an image was corrected after it came" in row.cautions


class TestDocuments:
    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("1.2.840.10008.5.1.4.1.1.88.33", "Structured Report"),
            (KEY_OBJECT, "Key Object Selection"),
            ("1.2.840.10008.5.1.4.1.1.11.1", "Presentation State"),
            ("1.2.840.10008.5.1.4.1.1.104.1", "encapsulated document"),
        ],
    )
    def test_they_are_kept_beside_the_images(self, ward: Ward, kind: str, words: str) -> None:
        key = ward.take(dicom(0), "edema.dcm").study
        ward.work()
        reviews.save(ward.database, SITE, key, "dr", sign=True)
        received = ward.take(document(0, kind))
        assert (received.study, received.new) == (key, True)
        found = study(ward, key)
        assert [(i.state, i.reason) for i in found.images] == [("stored", None), ("document", words)]
        assert (found.row.reading, found.row.image_count, found.row.status) == ("signed", 1, "reviewed")
        assert ward.work() == 0

    def test_a_document_alone_makes_no_row_and_its_image_does(self, ward: Ward) -> None:
        key = ward.take(document(0)).study
        assert listed(ward) == []
        assert study(ward, key).images[0].state == "document"
        assert worklist.page(ward.database, SITE).counts.unread == 0
        assert ward.take(dicom(0)).study == key
        assert listed(ward) == [key]
        assert worklist.page(ward.database, SITE).counts.unread == 1

    def test_a_picture_is_shown_whatever_class_it_claims(self, ward: Ward) -> None:
        key = ward.take(dicom(0, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")).study
        assert states(ward, key) == ["stored"]
        assert listed(ward) == [key]

    @pytest.mark.parametrize("patient", ["P0", "renamed by the archive"])
    def test_our_own_objects_come_back(self, ward: Ward, patient: str) -> None:
        key = ward.take(dicom(0)).study
        ward.work()
        reviews.save(ward.database, SITE, key, "dr", sign=True)
        mine = {"Manufacturer": identity.MANUFACTURER, "PatientID": patient}
        report = document(0, SOPInstanceUID=identity.derive("sr", key), **mine)
        capture = dicom(
            0, SOPInstanceUID=identity.derive("sc", key), SeriesInstanceUID="1.2.1.7", Modality="OT", **mine
        )
        assert {ward.take(content).study for content in (report, capture)} == {key}
        found = study(ward, key)
        assert [(i.state, i.reason) for i in found.images[1:]] == [
            ("document", "our own Structured Report"),
            ("document", "our own Secondary Capture"),
        ]
        assert (found.row.reading, found.row.image_count, found.row.cautions) == ("signed", 1, ())
        assert ward.work() == 0
        assert listed(ward) == []
        changed = document(0, SOPInstanceUID=identity.derive("sr", key), StudyDescription="coerced", **mine)
        assert not ward.take(changed).quarantined

    def test_a_maker_s_name_alone_hides_nothing(self, ward: Ward) -> None:
        key = ward.take(dicom(0, Manufacturer=identity.MANUFACTURER)).study
        assert listed(ward) == [key]


class TestRejection:
    def test_by_hand_and_back(self, ward: Ward, hand: Corrections) -> None:
        key = ward.take(png(0), "pneumothorax.png").study
        other = ward.take(png(1), "nothing.png", study=key)
        ward.work()
        bad = study(ward, key).images[0].image
        hand.reject(SITE, bad, "wrong patient on the table", "dr")
        found = study(ward, key)
        assert [(i.state, i.reason) for i in found.images] == [
            ("rejected", "wrong patient on the table"),
            ("stored", None),
        ]
        assert (found.row.priority, found.row.image_count) == ("routine", 1)
        assert {f.image for f in found.findings} == {other.image}
        assert "instance.rejected" in kinds(ward, key)
        with pytest.raises(ConflictError, match="is rejected"):
            hand.reject(SITE, bad, "again", "dr")
        hand.restore(SITE, bad, "dr")
        found = study(ward, key)
        assert (found.row.priority, found.row.image_count) == ("critical", 2)
        with pytest.raises(ConflictError, match="not rejected"):
            hand.restore(SITE, bad, "dr")
        assert audit.verify(ward.database) is None

    def test_an_unread_study_never_vanishes(self, ward: Ward, hand: Corrections) -> None:
        key = ward.take(png(0), "pneumothorax.png", requested="urgent").study
        ward.work()
        hand.reject(SITE, study(ward, key).images[0].image, "blurred", "dr")
        assert listed(ward) == [key]
        row = study(ward, key).row
        assert (row.status, row.code, row.priority) == ("not_analysed", "REJECTED", "urgent")
        assert row.reason == "requested as urgent; not analysed: all its images were rejected: blurred"

    @pytest.mark.parametrize("code", ["113001", "113037", "113038", "113039"])
    def test_by_a_note(self, ward: Ward, code: str) -> None:
        bad, good = dicom(0), dicom(1, StudyInstanceUID="1.2.1.1", PatientID="P0")
        key = ward.take(bad).study
        ward.take(good)
        ward.work()
        received = ward.take(note(bad, code=code))
        assert received.study == key
        assert states(ward, key) == ["rejected", "stored", "document"]
        assert study(ward, key).images[0].reason == corrections.REASONS[code]
        assert study(ward, key).row.image_count == 1
        assert "image.rejected" in deeds(ward)

    def test_a_note_that_comes_first(self, ward: Ward) -> None:
        bad = dicom(0)
        ward.take(note(bad))
        received = ward.take(bad)
        assert states(ward, received.study) == ["document", "rejected"]
        assert listed(ward) == [received.study]  # it is said, not hidden
        assert study(ward, received.study).row.code == "REJECTED"

    def test_one_that_came_rejected_and_is_restored_is_analysed(self, ward: Ward, hand: Corrections) -> None:
        bad = dicom(0)
        ward.take(note(bad))
        received = ward.take(bad, "pneumothorax.dcm")
        assert ward.work() == 0
        hand.restore(SITE, received.image, "dr")
        assert ward.work() == 1
        assert study(ward, received.study).row.priority == "critical"
        assert ward.work() == 0

    def test_what_expired_may_come_again(self, ward: Ward) -> None:
        ward.take(note(dicom(0), code="113039"))
        assert states(ward, ward.take(dicom(0)).study) == ["document", "stored"]

    @pytest.mark.parametrize(("code", "scheme"), [("113000", "DCM"), ("113001", "99LOCAL")])
    def test_other_key_objects_reject_nothing(self, ward: Ward, code: str, scheme: str) -> None:
        key = ward.take(dicom(0)).study
        ward.take(note(dicom(0), code=code, scheme=scheme))
        assert states(ward, key) == ["stored", "document"]

    def test_a_note_of_a_study_that_was_merged(self, ward: Ward, hand: Corrections) -> None:
        bad = dicom(1, PatientID="P0")
        first, second = ward.take(dicom(0)).study, ward.take(bad).study
        hand.merge(SITE, second, first, "one visit", "admin")
        ward.take(note(bad))
        assert sorted(states(ward, first)) == ["document", "rejected", "stored"]

    @pytest.mark.parametrize("first", ["note", "image"])
    def test_a_note_whose_sender_may_not_correct_is_kept_and_heeded_when_one_who_may_sends_it(
        self, ward: Ward, first: str
    ) -> None:
        bad = dicom(0)
        if first == "image":
            key = ward.take(bad).study
        held = ward.take(sent := note(bad), corrects=False, actor="modality")
        if first == "note":
            key = ward.take(bad).study
        assert held.quarantined
        assert sorted(states(ward, key)) == ["quarantined", "stored"]
        assert "instance.quarantined" in kinds(ward, held.study)
        if first == "image":
            assert any("a rejection note came whose sender may not correct" in c for c in study(ward, key).cautions)
        assert "image.rejected" not in deeds(ward)
        again = ward.take(sent, corrects=False)
        assert (again.new, again.quarantined) == (False, True)
        heeded = ward.take(sent)
        assert (heeded.new, heeded.quarantined) == (True, False)
        assert sorted(states(ward, key)) == ["document", "rejected"]
        assert ward.take(sent).new is False

    def test_a_note_whose_sender_may_not_correct_warns_of_every_image_that_it_names(self, ward: Ward) -> None:
        """Also where the note itself belongs to another study than the image."""
        key = ward.take(dicom(1)).study
        sent = pydicom.dcmread(BytesIO(note(dicom(0))))
        named = pydicom.dcmread(BytesIO(note(dicom(1)))).CurrentRequestedProcedureEvidenceSequence
        sent.CurrentRequestedProcedureEvidenceSequence.extend(named)
        sent.save_as(buffer := BytesIO())
        held = ward.take(buffer.getvalue(), corrects=False)
        assert held.study != key
        assert states(ward, key) == ["stored"]
        assert any("a rejection note came whose sender may not correct" in c for c in study(ward, key).cautions)

    def test_a_note_of_another_study_or_site_rejects_nothing(self, ward: Ward) -> None:
        key = ward.take(dicom(0)).study
        ward.take(note(dicom(0, StudyInstanceUID="1.2.99")))
        ward.intake.take(BytesIO(note(dicom(0))), "note", "elsewhere")
        assert states(ward, key) == ["stored"]

    @pytest.mark.parametrize("at", [300, 700, 1100])
    def test_a_broken_note_is_kept_and_does_nothing_else(self, ward: Ward, at: int) -> None:
        key = ward.take(dicom(0)).study
        ward.take(note(dicom(0))[:at])
        assert "stored" in states(ward, key)

    def test_a_signed_study_stays_signed(self, ward: Ward) -> None:
        key = ward.take(dicom(0)).study
        ward.work()
        reviews.save(ward.database, SITE, key, "dr", sign=True)
        ward.take(note(dicom(0)))
        found = study(ward, key).row
        assert (found.reading, found.image_count) == ("signed", 0)
        assert any("rejected" in caution for caution in found.cautions)


class TestPatients:
    def test_a_patient_is_corrected_by_hand(self, ward: Ward, hand: Corrections) -> None:
        key = ward.take(dicom(0, StudyDate="20240102", PatientAge="")).study
        values = {"patient_id": "4711", "patient_name": "Roe, Jane", "birth_date": "2014-01-02", "sex": "F"}
        assert hand.patient(SITE, key, values, "wrong worklist entry", "admin") == key
        found = study(ward, key)
        assert (found.row.patient_id, found.row.patient_name, found.birth_date) == ("4711", "Roe, Jane", "2014-01-02")
        assert found.row.age_years == 10.0
        assert "study.corrected" in kinds(ward, key)
        assert "study.corrected" in deeds(ward)

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"birth_date": "2014"}, "birth_date"),
            ({"sex": "X"}, "sex"),
            ({"accession": "1"}, "accession"),
            ({}, "nothing to correct"),
        ],
    )
    def test_bad_values_are_named(self, ward: Ward, hand: Corrections, values: dict, said: str) -> None:
        key = ward.take(dicom(0)).study
        with pytest.raises(ClinicError, match=said):
            hand.patient(SITE, key, values, "why", "admin")
        with pytest.raises(ClinicError, match="reason"):
            hand.patient(SITE, key, {"sex": "M"}, " ", "admin")

    def test_two_studies_become_one(self, ward: Ward, hand: Corrections) -> None:
        first = ward.take(dicom(0), "pneumothorax.dcm").study
        second = ward.take(dicom(1, PatientID="P0"), "nothing.dcm", requested="urgent").study
        ward.work()
        hand.merge(SITE, second, first, "one visit", "admin")
        assert listed(ward) == [first]
        found = study(ward, first)
        assert (found.row.image_count, found.row.priority) == (2, "critical")
        assert study(ward, second).merged_into == first
        assert {"study.merged"} <= set(kinds(ward, first)) & set(kinds(ward, second))
        assert ward.take(dicom(2, StudyInstanceUID="1.2.2.1", PatientID="P0")).study == first  # a late one
        with pytest.raises(ConflictError, match="was merged"):
            hand.merge(SITE, second, first, "again", "admin")

    def test_an_unread_study_merged_into_a_signed_one_opens_it(self, ward: Ward, hand: Corrections) -> None:
        signed, unread = ward.take(dicom(0)).study, ward.take(dicom(1, PatientID="P0")).study
        ward.work()
        reviews.save(ward.database, SITE, signed, "dr", sign=True)
        hand.merge(SITE, unread, signed, "one visit", "admin")
        assert listed(ward) == [signed]
        assert "new image since review" in study(ward, signed).row.cautions
        assert [review.state for review in study(ward, signed).reviews] == ["signed"]

    def test_a_signed_study_takes_its_review_along(self, ward: Ward, hand: Corrections) -> None:
        signed, unread = ward.take(dicom(0)).study, ward.take(dicom(1, PatientID="P0")).study
        ward.work()
        reviews.save(ward.database, SITE, signed, "dr", note="seen", sign=True)
        hand.merge(SITE, signed, unread, "one visit", "admin")
        found = study(ward, unread)
        assert (found.row.reading, [review.note for review in found.reviews]) == ("unread", ["seen"])

    def test_studies_of_two_patients_are_not_merged(self, ward: Ward, hand: Corrections) -> None:
        a, b = ward.take(dicom(0)).study, ward.take(dicom(1)).study
        with pytest.raises(ConflictError, match="another patient"):
            hand.merge(SITE, a, b, "why", "admin")
        with pytest.raises(ConflictError, match="itself"):
            hand.merge(SITE, a, a, "why", "admin")

    def test_a_correction_can_be_taken_back_after_a_merge(self, ward: Ward, hand: Corrections) -> None:
        a = ward.take(dicom(0, PatientID="A")).study
        b = ward.take(dicom(1, StudyInstanceUID="1.2.1.1", PatientID="B")).study
        assert hand.patient(SITE, a, {"patient_id": "B"}, "same person", "admin") == b
        assert hand.patient(SITE, b, {"patient_id": "A"}, "the other way round", "admin") == b
        assert ward.take(dicom(2, StudyInstanceUID="1.2.1.1", PatientID="A")).study == b
        assert ward.take(dicom(3, StudyInstanceUID="1.2.1.1", PatientID="B")).study == b

    def test_other_sites_are_out_of_reach(self, ward: Ward, hand: Corrections) -> None:
        received = ward.take(dicom(0))
        for deed in (
            lambda: hand.patient("elsewhere", received.study, {"sex": "M"}, "why", "admin"),
            lambda: hand.merge("elsewhere", received.study, received.study, "why", "admin"),
            lambda: hand.reject("elsewhere", received.image, "why", "dr"),
            lambda: hand.restore("elsewhere", received.image, "dr"),
        ):
            with pytest.raises(NotFoundError):
                deed()

    def test_duplicates_are_flagged_on_both(self, ward: Ward) -> None:
        one = {"PatientName": "Roe^Jane", "PatientBirthDate": "19600229"}
        a = ward.take(dicom(0, PatientID="1", **one)).study
        b = ward.take(dicom(1, PatientID="2", **one)).study
        c = ward.take(dicom(2, PatientID="1", PatientName="Doe^John", PatientBirthDate="19700101")).study
        again = "same name and birth date under another patient ID"
        other = "another study with this patient ID has another name, birth date"
        assert set(study(ward, a).row.cautions) == {again, other}
        assert study(ward, b).row.cautions == (again,)
        assert study(ward, c).row.cautions == (other,)

    def test_images_of_a_study_that_disagree_are_flagged(self, ward: Ward) -> None:
        key = ward.take(dicom(0, PatientName="Roe^Jane", AccessionNumber="1")).study
        second = dicom(1, StudyInstanceUID="1.2.1.1", PatientID="P0", PatientName="Doe^John", AccessionNumber="2")
        ward.take(second)
        assert study(ward, key).row.cautions == ("an image of the study says another name, accession number",)

    def test_missing_identifiers_are_flagged(self, ward: Ward) -> None:
        gone = {"StudyInstanceUID": "", "SeriesInstanceUID": "", "SOPInstanceUID": "", "PatientID": ""}
        key = ward.take(dicom(0, **gone)).study
        assert set(study(ward, key).row.cautions) == {
            "no Study Instance UID",
            "no Series Instance UID",
            "no SOP Instance UID",
            "no patient ID",
        }
        assert ward.take(dicom(0, **gone)).new is False

    def test_cautions_are_not_without_end(self, ward: Ward) -> None:
        key = ward.take(dicom(0)).study
        for number in range(60):
            ward.take(dicom(0, RequestedProcedurePriority=f"W{number}", SOPInstanceUID=f"1.9.{number}"))
        assert len(study(ward, key).row.cautions) <= 50


def test_the_image_s_reason_is_for_people(ward: Ward) -> None:
    key = ward.take(dicom(0)).study
    ward.take(dicom(1, SOPInstanceUID="1.2.1.3"))
    found: list[Image] = [image for image in study(ward, key).images if image.state == "quarantined"]
    assert found[0].reason == "other content under the identifier of a known image"


@pytest.mark.system
@pytest.mark.parametrize("may", [True, False])
def test_all_of_it_by_storescu(ward: Ward, tmp_path: Path, may: bool) -> None:
    """DCMTK sends an image, its corrected header, our report and picture of it, and a note that rejects it."""
    image = dicom(0, PatientName="Ro^J")
    ward.intake.max_bytes = 2**24
    line = "*@127.0.0.1+correct" if may else "*@127.0.0.1"
    with listening(ward, max_bytes=2**24, dicom_peers=[line]) as listener:

        def sent(name: str, content: bytes) -> None:
            (tmp_path / name).write_bytes(content)
            done = dcmtk("storescu", "-aec", "WETREAD", "127.0.0.1", str(listener.port), tmp_path / name)
            assert done.returncode == 0, done.stderr

        sent("image.dcm", image)
        ward.work()
        key = listed(ward)[0]
        reviews.save(ward.database, SITE, key, "dr", sign=True)
        about = statement.load(ward.database, ward.archive, key)
        sent("corrected.dcm", dicom(0, PatientName="Roe^Jane"))
        for number, made in enumerate((structured_report.build(about), *capture.build(about, ward.database))):
            buffer = BytesIO()
            made.save_as(buffer, enforce_file_format=True)
            sent(f"own {number}.dcm", buffer.getvalue())
        before = "superseded" if may else "quarantined"
        assert sorted(states(ward, key)) == sorted(["document", "document", "stored", before])
        found = study(ward, key)
        assert (found.row.patient_name, found.row.reading) == ("Roe, Jane" if may else "Ro, J", "signed")
        assert listed(ward) == []
        sent("note.dcm", note(image, code="113037"))
    after = ["document", "rejected", "superseded"] if may else ["quarantined", "quarantined", "stored"]
    assert sorted(states(ward, key)) == sorted(["document", "document", *after])
    assert worklist.page(ward.database, SITE, status="reviewed").rows[0].study == key


@pytest.mark.system
def test_corrections_and_completion_on_postgresql(postgresql: str, tmp_path: Path) -> None:
    ward = Ward(tmp_path, url=postgresql)
    hand = Corrections(ward.database, lambda connection, site: ward.ranking, lambda: list(ward.models))
    try:
        wrong = ward.take(dicom(0, PatientID="wrong", PatientName="Ro^J"), "edema.dcm").study
        right = ward.take(dicom(1, StudyInstanceUID="1.2.1.1", PatientID="right")).study
        ward.work()
        assert ward.take(dicom(0, PatientID="right", PatientName="Roe^Jane")).study == right
        ward.take(document(0, PatientID="wrong"))
        ward.take(note(dicom(1, StudyInstanceUID="1.2.1.1", PatientID="right")))
        ward.work()
        assert sorted(states(ward, right)) == ["document", "document", "rejected", "stored", "superseded"]
        assert listed(ward) == [right]
        assert study(ward, wrong).merged_into == right
        other = ward.take(dicom(5, PatientID="right")).study
        ward.work()
        hand.merge(SITE, other, right, "one visit", "admin")
        adt.answer(hand, "MSH|^~\\&|||||||ADT^A40|1|P|2.5\rPID|1||new||Doe^John\rMRG|right\r", SITE)
        assert study(ward, right).row.patient_id == "new"
        later = store.now() + timedelta(minutes=2)
        said = [
            completion.sweep(ward.database, list(ward.models), lambda *_: ward.ranking, later, timedelta(minutes=1))
            for _ in range(2)
        ]
        assert said == [[right], []]
        assert ward.take(dicom(6, StudyInstanceUID="1.2.1.1", PatientID="wrong")).study == right
        assert audit.verify(ward.database) is None
    finally:
        ward.database.close()

"""What happened to a study, told from audit, events and results."""

from __future__ import annotations

from datetime import timedelta

import pytest
import ward as wards
from ward import SITE

from wetread.clinic import audit, claims, reviews, store
from wetread.clinic.critical import Criticals
from wetread.clinic.history import HIDDEN, KINDS, history
from wetread.clinic.priority import Rules
from wetread.config import Settings
from wetread.errors import NotFoundError


@pytest.fixture
def read(ward):
    """Give a study that arrived, was analysed, claimed, answered twice and signed."""
    study = ward.take(wards.dicom(1), "edema.dcm", actor="CT1").study
    ward.work()
    claims.claim(ward.database, SITE, study, "Dr A")
    for note in ("s", "se"):
        reviews.save(ward.database, SITE, study, "Dr A", answers={"Edema": "agree"}, note=note)
    reviews.save(
        ward.database, SITE, study, "Dr A", answers={"Edema": "agree"}, verdict="right", note="seen", sign=True
    )
    return study


def told(ward, study, **more):
    return [(entry.kind, entry.who, entry.words) for entry in history(ward.database, SITE, study, **more)]


def test_a_study_from_its_arrival_to_its_signature(ward, read):
    model = next(iter(ward.models.values()))
    assert told(ward, read) == [
        ("arrival", "CT1", "edema.dcm arrived"),
        ("analysis", f"names 1 ({model.id[:12]})", "analysed edema.dcm: Edema likely"),
        ("reading", "Dr A", "claimed the study"),
        ("reading", "Dr A", "kept a draft"),
        ("reading", "Dr A", "signed: Edema agree, the model was right, with a note"),
    ]
    entries = history(ward.database, SITE, read)
    assert [entry.times for entry in entries] == [1, 1, 1, 2, 1]
    assert [entry.at for entry in entries] == sorted(entry.at for entry in entries)
    assert {entry.kind for entry in entries} <= set(KINDS)


def test_a_reader_who_reads_blind_is_not_told_what_the_model_said(ward):
    study = ward.take(wards.dicom(2), "edema.dcm").study
    ward.work()
    said = " ".join(words for _, _, words in told(ward, study, hide=True))
    assert HIDDEN in said
    assert "likely" not in said


def test_a_draft_is_told_and_what_is_in_it_is_not(ward):
    study = ward.take(wards.dicom(3), "edema.dcm").study
    ward.work()
    reviews.save(ward.database, SITE, study, "Dr A", added=["Hernia"], note="between us")
    said = str(told(ward, study))
    assert "kept a draft" in said
    assert "Hernia" not in said
    assert "between us" not in said


def test_what_the_model_refused_and_what_could_not_be_read(ward):
    study = ward.take(wards.png(4), "lateral.png").study
    ward.work()
    assert ("did not analyse lateral.png: lateral only") in {words for _, _, words in told(ward, study)}


def test_a_correction_says_which_fields_and_why(ward):
    from wetread.clinic.corrections import Corrections

    study = ward.take(wards.dicom(5), "plain.dcm").study
    corrections = Corrections(ward.database, lambda connection, site: ward.ranking, lambda: list(ward.models))
    corrections.patient(SITE, study, {"patient_name": "Roe, Jane"}, actor="Admin", reason="wrong form")
    found = [entry for entry in told(ward, study) if entry[0] == "correction"]
    assert found == [("correction", "Admin", "corrected patient name: wrong form")]


def test_a_deed_without_a_sentence_of_its_own_is_told_by_its_name(ward):
    study = ward.take(wards.dicom(6), "plain.dcm").study
    with ward.database.write() as connection:
        audit.record(connection, SITE, "Dr B", "film.hung_up", study)
        store.emit(connection, "film.fell_down", SITE, study)
    assert told(ward, study)[-2:] == [("other", "Dr B", "film hung up"), ("other", "", "film fell down")]


def test_deliveries_and_the_waiting_cap(ward):
    study = ward.take(wards.dicom(7), "plain.dcm").study
    with ward.database.write() as connection:
        store.emit(connection, "study.overdue", SITE, study, {"priority": "routine"})
        store.emit(connection, "delivery.failed", SITE, study, {"kind": "sr", "destination": "dicom://PACS", "try": 3})
        detail = {"kind": "sr", "destination": "dicom://PACS"}
        audit.record(connection, SITE, "outputs", "output.sent", study, detail)
        store.emit(connection, "delivery.sent", SITE, study, detail)
    assert told(ward, study)[-3:] == [
        ("reading", "", "reached its waiting cap: promoted, and an alarm raised"),
        ("sending", "", "the DICOM SR could not be delivered to dicom://PACS, try 3"),
        ("sending", "outputs", "sent the DICOM SR to dicom://PACS"),
    ]


def test_critical_findings_are_told_in_words(ward):
    room = Criticals(ward.database, Settings(critical_steps=[0.0]), Rules())
    study = ward.take(wards.png(8), "pneumothorax.png").study
    ward.work()
    room.step(store.now() + timedelta(minutes=16))
    room.acknowledge(SITE, study, "Dr A")
    room.step(store.now() + timedelta(minutes=61))
    room.tell(SITE, study, "Dr A", recipient="Sister M", how="phone", read_back=True, note="Roe is on her way")
    assert [entry[1:] for entry in told(ward, study) if "critical" in entry[2]] == [
        ("", "raised the critical finding Pneumothorax: somebody is to be told"),
        ("", "escalated the critical finding Pneumothorax: nobody had acknowledged it in time"),
        ("Dr A", "acknowledged the critical finding Pneumothorax"),
        ("", "escalated the critical finding Pneumothorax: it was acknowledged and not signed in time"),
        ("Dr A", "told Sister M of the critical finding Pneumothorax (phone, read back): Roe is on her way"),
    ]
    hidden = str(told(ward, study, hide=True))
    assert "Pneumothorax" not in hidden
    assert "Sister M" in hidden
    assert "Roe" not in str(told(ward, study, named=False))
    other = ward.take(wards.png(9), "pneumothorax.png").study
    ward.work()
    room.close(SITE, other, "Dr A", note="known")
    assert told(ward, other)[-1][2] == "closed the critical finding Pneumothorax: known"


def test_another_site_is_told_nothing(ward, read):
    with pytest.raises(NotFoundError):
        history(ward.database, "elsewhere", read)

"""Exports for learning: nobody can be told from them, and they say what the readers said."""

from __future__ import annotations

import csv
import json
import stat
import sys
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import cv2
import films
import numpy as np
import polars as pl
import pydicom
import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit
from ward import SITE, Ward, dicom, png

from wetread.clinic import audit, export, pseudonyms, reviews, store, worklist
from wetread.clinic.deidentify import deidentify
from wetread.clinic.pseudonyms import Pseudonyms
from wetread.dataset import sources
from wetread.errors import ConfigError, ReadError
from wetread.radiograph import isolated
from wetread.radiograph.read import Limits, read

SECRETS = ("Zebedee", "Quixote", "MRN-55512", "ACC-99871", "19610412", "1961", "Saint Elsewhere", "Strangelove")
NAMES = Pseudonyms(b"k" * 32, SITE)


def code(meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "R-10206", "SRT", meaning
    item.PersonName = "Zebedee^Quixote"
    return item


def patient(**more: object) -> Dataset:
    """A file whose every corner tells who the patient is."""
    film = films.dataset(films.scene(32, 40, bits=12), PatientName="Zebedee^Quixote", PatientID="MRN-55512", **more)
    film.AccessionNumber, film.StudyID = "ACC-99871", "ACC-99871"
    film.PatientBirthDate, film.StudyDate, film.StudyTime = "19610412", "20240117", "101112"
    film.AcquisitionDateTime = "20240117101112"
    film.InstitutionName, film.ReferringPhysicianName = "Saint Elsewhere", "Strangelove"
    film.StudyDescription = film.ImageComments = film.ProtocolName = "Zebedee, born 1961"
    film.PatientComments = film.AdditionalPatientHistory = "Quixote"
    film.PatientSize, film.PatientWeight, film.PatientAge = "1.73", "70", "063Y"
    film.OtherPatientIDsSequence = Sequence([code("MRN-55512")])
    film.ViewCodeSequence = Sequence([code("view of Zebedee")])
    film.RequestAttributesSequence = Sequence([code("Quixote")])
    film.ReferencedStudySequence = Sequence([Dataset()])
    film.ReferencedStudySequence[0].ReferencedSOPInstanceUID = film.StudyInstanceUID
    block = film.private_block(0x0009, "Zebedee private", create=True)
    block.add_new(1, "LO", "Quixote")
    film.add_new(0x60003000, "OW", b"Zebedee " * 20)
    film.add_new(0x60000022, "LO", "Zebedee")
    film.add_new(0x00080000 | 0x1060, "PN", "Strangelove")
    film.preamble = b"Zebedee".ljust(128, b"\0")
    film.file_meta.SourceApplicationEntityTitle = "Quixote"
    film.PixelData += b"Zebedee^Quixote "
    return film


def cleaned(film: Dataset, **more: object) -> bytes:
    options = {"patient": "p" * 32, "age_years": 62.8, "sex": "F"} | more
    return deidentify(films.to_bytes(film), NAMES, **options)  # type: ignore[arg-type]


def test_nothing_of_the_patient_is_left_in_a_file() -> None:
    film = patient()
    out = cleaned(film)
    for secret in SECRETS:
        assert secret.encode() not in out, secret
    for uid in (film.StudyInstanceUID, film.SeriesInstanceUID, film.SOPInstanceUID):
        assert f"{uid}\0".encode() not in out
    found = pydicom.dcmread(BytesIO(out))
    assert not [element for element in found.iterall() if element.tag.is_private]
    assert not [element for element in found.iterall() if element.VR in ("DT", "TM", "DA") and element.value]
    assert (found.PatientID, found.PatientAge, found.PatientSex) == ("p" * 32, "062Y", "F")
    assert (float(found.PatientSize), float(found.PatientWeight)) == (1.73, 70)
    assert found.PatientIdentityRemoved == "YES"
    assert [item.CodeValue for item in found.DeidentificationMethodCodeSequence] == ["113100", "113108"]
    assert found.ViewCodeSequence[0].CodeValue == "R-10206"
    assert (found.ViewPosition, found.Modality, found.BodyPartExamined) == ("PA", "CR", "CHEST")


def test_the_image_is_the_same() -> None:
    film = patient(WindowCenter="1800", WindowWidth="2000", PhotometricInterpretation="MONOCHROME1")
    before, after = read(films.to_bytes(film)), read(cleaned(film))
    np.testing.assert_array_equal(before.pixels, after.pixels)
    assert (after.view, after.age_years, after.sex) == ("PA", 62.0, "F")


@pytest.mark.parametrize("signed", [False, True])
def test_an_overlay_in_the_unused_bits_of_the_pixels_does_not_stay(signed: bool) -> None:
    film = patient(WindowCenter="1800", WindowWidth="2000")
    assert (film.BitsAllocated, film.BitsStored) == (16, 12)
    film.PixelRepresentation = int(signed)
    clean = np.frombuffer(film.PixelData[: 2 * 32 * 40], "<u2") & 0x07FF  # below the sign
    film.PixelData = (clean | 0x3000).astype("<u2").tobytes()
    found = pydicom.dcmread(BytesIO(cleaned(film)))
    np.testing.assert_array_equal(np.frombuffer(found.PixelData, "<u2"), clean)


def test_a_sign_is_kept() -> None:
    film = patient()
    film.PixelRepresentation = 1
    values = np.arange(-640, 640, dtype=np.int16)
    film.PixelData = (values & 0x0FFF).astype("<u2").tobytes()
    found = pydicom.dcmread(BytesIO(cleaned(film)))
    np.testing.assert_array_equal(found.pixel_array.ravel(), values)


def test_sex_is_a_letter_and_bulk_that_no_pixel_needs_goes() -> None:
    film = patient(PatientSex="QUIXOTE ANNA")
    film.ICCProfile = b"Zebedee "
    out = cleaned(film, sex=None)
    assert pydicom.dcmread(BytesIO(out)).PatientSex == ""
    assert b"Zebedee" not in out


def test_comments_inside_compressed_pixels_do_not_stay() -> None:
    picture = films.scene(32, 40, bits=8)
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    comment = b"Zebedee^Quixote"
    jpeg = jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]
    content = films.compressed(jpeg, picture, JPEGBaseline8Bit)
    assert b"Zebedee" in content
    out = deidentify(content, NAMES, patient="p", age_years=None, sex=None)
    assert b"Zebedee" not in out
    np.testing.assert_array_equal(read(out).pixels, read(content).pixels)


def test_uids_and_patients_are_replaced_alike_in_every_file_and_export() -> None:
    one, two = (pydicom.dcmread(BytesIO(cleaned(patient(SOPInstanceUID=uid)))) for uid in ("1.2.1", "1.2.2"))
    assert one.StudyInstanceUID == two.StudyInstanceUID == NAMES.uid("1.2.3.5")
    assert one.SOPInstanceUID != two.SOPInstanceUID
    assert one.SOPInstanceUID == NAMES.uid("1.2.1") == one.file_meta.MediaStorageSOPInstanceUID
    assert pydicom.uid.UID(one.SOPInstanceUID).is_valid
    assert NAMES.name("patient", "7") != Pseudonyms(b"k" * 32, "other").name("patient", "7")
    assert NAMES.name("patient", "7") != Pseudonyms(b"l" * 32, SITE).name("patient", "7")


def test_the_very_old_are_not_told_apart_and_small_children_have_months() -> None:
    for years, wanted in ((97.0, "090Y"), (0.6, "007M"), (1.99, "023M"), (2.0, "002Y"), (None, None)):
        found = pydicom.dcmread(BytesIO(cleaned(patient(), age_years=years)))
        assert found.get("PatientAge") == wanted


@pytest.mark.parametrize("content", [b"", b"DICM", b"\0" * 128 + b"DICM", b"x" * 400])
def test_what_cannot_be_de_identified_is_refused_without_quoting_it(content: bytes) -> None:
    with pytest.raises(ReadError, match="left out"):
        deidentify(content, NAMES, patient="p", age_years=None, sex=None)


def test_the_key_is_made_once_and_is_nobody_else_s(tmp_path: Path) -> None:
    first = pseudonyms.key(tmp_path)
    assert len(first) == 32
    assert stat.S_IMODE((tmp_path / pseudonyms.FILE).stat().st_mode) == 0o600
    assert pseudonyms.key(tmp_path) == first
    (tmp_path / pseudonyms.FILE).chmod(0o640)
    with pytest.raises(ConfigError, match="others may read it"):
        pseudonyms.key(tmp_path)
    (tmp_path / pseudonyms.FILE).chmod(0o600)
    (tmp_path / pseudonyms.FILE).write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes"):
        pseudonyms.key(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        pseudonyms.key(tmp_path / "nowhere")


def sign(ward: Ward, content: bytes, name: str = "edema.dcm", **review: object) -> str:
    received = ward.take(content, name)
    ward.work()
    reviews.save(ward.database, SITE, received.study, "reader", sign=True, **review)  # type: ignore[arg-type]
    return received.study


def run(ward: Ward, tmp_path: Path, name: str = "out", **more: object) -> tuple[export.Summary, list[dict[str, str]]]:
    found = export.run(ward.database, ward.archive, tmp_path, tmp_path / name, **more)  # type: ignore[arg-type]
    with (tmp_path / name / export.LABELS).open(encoding="utf-8") as file:
        return found, list(csv.DictReader(file))


@pytest.mark.system
def test_files_are_read_and_cleaned_in_a_process_apart(
    ward: Ward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files come out; and one that crashes a decoder is left out, with the others exported."""
    for seed in range(2):
        sign(ward, dicom(seed, PatientName="Roe^Jane"))
    sign(ward, png(1), "edema.png")
    _, here = run(ward, tmp_path, "here")
    limits = Limits(seconds=60.0)
    _, there = run(ward, tmp_path, "there", limits=limits)
    assert there == here
    for row in here:
        assert (tmp_path / "there" / row["image"]).read_bytes() == (tmp_path / "here" / row["image"]).read_bytes()

    def never(*_: object) -> None:
        raise AssertionError("in this process")

    isolated._close()
    code = "import os; from wetread.clinic import deidentify; from wetread.radiograph import isolated; "
    code += "deidentify._deidentified = lambda *_: os.abort(); isolated.serve()"
    with monkeypatch.context() as patched:
        patched.setattr(isolated, "_COMMAND", (sys.executable, "-P", "-c", code))
        patched.setattr("wetread.clinic.deidentify._deidentified", never)
        found, rows = run(ward, tmp_path, "crashed", limits=limits)
    isolated._close()
    assert found.refused == {"UNREADABLE": 2}
    assert [row["image"][-4:] for row in rows] == [".png"]


def test_the_last_word_counts_and_a_bare_note_takes_none_back(ward: Ward, tmp_path: Path) -> None:
    """What is taken back does not count; an answer stays one to the call that it was given to."""
    study = sign(ward, dicom(1), answers={"Edema": "agree"})
    [first] = [review.review for review in worklist.study(ward.database, SITE, study).reviews]
    with ward.database.write() as connection:  # as if the model called it otherwise by now
        for row in connection.execute(sa.select(store.image_result)).all():
            findings = [{**f, "call": "unlikely", "probability": 0.1} for f in row.findings]
            connection.execute(store.image_result.update().values(findings=findings))
    second = reviews.save(ward.database, SITE, study, "other", parent=first, note="as said", sign=True)
    assert [row["Edema"] for row in run(ward, tmp_path, "noted")[1]] == ["1"]
    reviews.save(ward.database, SITE, study, "reader", parent=second, answers={}, added=["Fracture"], sign=True)
    assert [(row.get("Edema"), row["Fracture"]) for row in run(ward, tmp_path, "changed")[1]] == [(None, "1")]
    reviews.withdraw(ward.database, SITE, study, "reader", within=timedelta(minutes=1))
    assert [row["Edema"] for row in run(ward, tmp_path, "withdrawn")[1]] == ["1"]


def test_labels_are_what_the_reader_said(ward: Ward, tmp_path: Path) -> None:
    # The model of the ward calls Edema likely, everything else unlikely.
    answers = {"Edema": "agree", "Pneumothorax": "disagree", "Cardiomegaly": "agree", "Support Devices": "unsure"}
    sign(ward, dicom(1), answers=answers, added=["Fracture", "as in Mueller 1921"], note="tell nobody")
    sign(ward, dicom(2), answers={"Edema": "disagree"})
    sign(ward, dicom(3), normal=True, answers={"Edema": "disagree"})
    ward.take(dicom(4), "edema.dcm")
    ward.work()
    summary, rows = run(ward, tmp_path)
    assert (summary.images, summary.studies, summary.patients) == (3, 3, 3)
    findings = ("No Finding", "Edema", "Pneumothorax", "Cardiomegaly", "Support Devices", "Fracture", "Lung Lesion")
    said = {tuple(row[finding] for finding in findings) for row in rows}
    assert said == {
        ("0", "1", "1", "0", "-1", "1", ""),
        ("", "0", "", "", "", "", ""),
        ("1", "0", "0", "0", "0", "0", "0"),
    }
    text = "".join(path.read_text() for path in (tmp_path / "out").glob("*.*"))
    assert "nobody" not in text
    assert "Mueller" not in text
    assert "reader" not in text


def test_where_the_model_is_unsure_the_reader_says_whether_it_is_there() -> None:
    answers = {"Edema": ("agree", "unsure"), "Fracture": ("disagree", "unsure"), "Pneumonia": ("unsure", "unsure")}
    found = export.labels_of({"normal": False, "answers": answers})
    assert {finding: found[finding] for finding in answers} == {"Edema": 1, "Fracture": 0, "Pneumonia": -1}


def test_an_export_can_be_packed_and_a_patient_stays_one_in_every_export(ward: Ward, tmp_path: Path) -> None:
    sign(ward, dicom(1, PatientID="A"), answers={"Edema": "agree"})
    middle = datetime.now(UTC)
    sign(ward, dicom(2, PatientID="A"), answers={"Edema": "agree"})
    sign(ward, dicom(3, PatientID="B"), answers={"Edema": "disagree"})
    _, rows = run(ward, tmp_path)
    assert len({row["patient"] for row in rows}) == 2
    later, some = run(ward, tmp_path, "later", since=middle)
    assert later.images == 2
    assert all(row in rows for row in [{k: r.get(k, "") for k in rows[0]} for r in some])
    assert run(ward, tmp_path, "none", since=datetime.now(UTC) + timedelta(days=1))[0].images == 0
    assert run(ward, tmp_path, "other", site="elsewhere")[0].images == 0
    collection = sources.collect("reviews", tmp_path / "out")
    assert collection.task.name == "chexpert"
    assert collection.rows["Edema"].to_list().count(1) == 2
    assert collection.rows["Fracture"].null_count() == 3
    assert set(collection.rows["image"]) == {row["image"] for row in rows}
    assert collection.rows["age_years"].to_list() == pytest.approx([34.0] * 3)
    assert collection.rows.schema["Edema"] == pl.Int8


def test_an_export_tells_nobody_s_name_and_is_audited(ward: Ward, tmp_path: Path) -> None:
    sign(ward, films.to_bytes(patient()), name="Zebedee Quixote edema.dcm", answers={"No Finding": "agree"})
    sign(ward, png(3), name="Zebedee.png", answers={"No Finding": "agree"})
    summary, rows = run(ward, tmp_path)
    assert summary.images == 2
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    for path in files:
        for secret in SECRETS:
            assert secret not in path.name
            assert secret.encode() not in path.read_bytes(), (path.name, secret)
    assert {Path(row["image"]).suffix for row in rows} == {".dcm", ".png"}
    with ward.database.read() as connection:
        row = connection.execute(sa.select(store.audit).where(store.audit.c.action == "learning.exported")).one()
    assert (row.actor, row.detail["images"]) == ("command line", 2)
    assert audit.verify(ward.database) is None


def test_pictures_with_writing_are_left_out_and_listed(ward: Ward, tmp_path: Path) -> None:
    film = np.full((512, 512), 40, np.uint8)
    cv2.putText(film, "ZEBEDEE QUIXOTE 1961", (60, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 2, cv2.LINE_AA)
    sign(ward, cv2.imencode(".png", film)[1].tobytes(), name="x.png", answers={"Edema": "agree"})
    sign(ward, dicom(2), answers={"Edema": "agree"})
    summary, _ = run(ward, tmp_path)
    assert (summary.images, summary.refused) == (1, {"BURNED_IN": 1})
    refused = (tmp_path / "out" / export.REFUSED).read_text(encoding="utf-8")
    assert "BURNED_IN: writing in the picture at" in refused
    assert json.loads((tmp_path / "out" / export.ABOUT).read_text())["refused"] == {"BURNED_IN": 1}


def test_a_folder_is_never_written_into_and_never_half(ward: Ward, tmp_path: Path, monkeypatch) -> None:
    sign(ward, dicom(1), answers={"Edema": "agree"})
    run(ward, tmp_path)
    with pytest.raises(ConfigError, match="exists"):
        run(ward, tmp_path)

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(export, "_table", broken)
    with pytest.raises(OSError, match="disk full"):
        run(ward, tmp_path, "half")
    assert not [path.name for path in tmp_path.iterdir() if "half" in path.name]

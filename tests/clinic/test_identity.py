"""What files say about themselves, hostile ones included."""

from __future__ import annotations

import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ward import dicom, png

from wetread.clinic import content as content_module
from wetread.clinic import identity


def of(tmp_path: Path, content: bytes) -> identity.Identity:
    path = tmp_path / "file"
    path.write_bytes(content)
    return identity.of(path, content[:4096])


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"PK\x03\x04", "zip"),
        (b"PK\x05\x06", "zip"),
        (b"\0" * 128 + b"DICM", "dicom"),
        (b"hello", "other"),
        (b"", "other"),
    ],
)
def test_format_is_told_by_content(head: bytes, wanted: str) -> None:
    assert identity.sniff(head) == wanted


@pytest.mark.parametrize(
    ("elements", "device", "station"),
    [
        (
            {"Manufacturer": "Acme  Corp", "ManufacturerModelName": "dr 1", "StationName": "room 3"},
            "ACME CORP DR 1",
            "ROOM 3",
        ),
        (
            {"Manufacturer": "A" * 60, "ManufacturerModelName": "B" * 9, "DeviceSerialNumber": "4711"},
            "A" * 60 + " BBB",
            "serial de650d61",
        ),
        ({"Manufacturer": "", "StationName": ""}, None, None),
        ({"Manufacturer": "\x00Acme\n", "StationName": "S\x07" * 8}, "ACME", "S " * 7 + "S"),
    ],
)
def test_what_took_an_image_is_told_in_one_spelling_and_a_serial_number_by_its_hash(
    tmp_path: Path, elements: dict[str, str | None], device: str | None, station: str | None
) -> None:
    said = of(tmp_path, dicom(4, **elements))
    assert (said.device, said.station) == (device, station)


def test_dicom_says_who_and_what(tmp_path: Path) -> None:
    said = of(
        tmp_path,
        dicom(
            4,
            PatientName="Roe^Jane^Q=x=y",
            PatientSex="F",
            PatientAge="063Y",
            PatientBirthDate="19600229",
            StudyDate="20240102",
            StudyTime="131415.5",
            AccessionNumber="A1",
            StudyDescription="Chest",
            RequestedProcedurePriority="STAT",
            ViewPosition="LL",
        ),
    )
    assert (said.study_uid, said.series_uid, said.sop_uid) == ("1.2.5.1", "1.2.5.2", "1.2.5.3")
    assert (said.patient_id, said.patient_name, said.sex, said.age_years) == ("P4", "Roe, Jane", "F", 63)
    assert (said.birth_date, said.acquired_at) == ("1960-02-29", "2024-01-02T13:14")
    assert (said.accession, said.description, said.priority, said.view) == ("A1", "Chest", "STAT", "LATERAL")
    assert said.cautions == ()


def test_a_picture_says_nothing(tmp_path: Path) -> None:
    assert of(tmp_path, png()) == identity.Identity("png")


@pytest.mark.parametrize(
    ("age", "born", "years"),
    [
        ("011M", None, 0.92),
        ("003W", None, 0.06),
        ("010D", None, 0.03),
        (None, "20140102", 10.0),
        (None, None, None),
        ("81", None, 81.0),
        ("000Y", None, None),
        ("000Y", "20140102", 10.0),
        ("999Y", None, None),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR AS")
def test_age(tmp_path: Path, age: str | None, born: str | None, years: float | None) -> None:
    said = of(tmp_path, dicom(PatientAge=age, PatientBirthDate=born or "", StudyDate="20240102"))
    assert said.age_years == years


def test_bad_uids_become_derived_ones(tmp_path: Path) -> None:
    content = dicom(StudyInstanceUID="1.2.3").replace(b"1.2.3", b"../..", 1)
    said = of(tmp_path, content)
    assert said.study_uid == identity.derive("StudyInstanceUID", "../..")
    assert said.study_uid.startswith("2.25.")
    assert len(said.study_uid) <= 64
    assert "StudyInstanceUID is not a valid UID" in said.cautions


def test_derived_uids_repeat_and_differ() -> None:
    assert identity.derive("a", "bc") == identity.derive("a", "bc")
    assert len({identity.derive("a", "bc"), identity.derive("ab", "c"), identity.derive("abc")}) == 3


@given(st.binary(max_size=600))
def test_nothing_that_follows_the_mark_raises(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    said = of(tmp_path_factory.mktemp("hostile"), b"\0" * 128 + b"DICM" + tail)
    assert said.format == "dicom"
    assert len(said.patient_id) <= 256


@given(st.integers(132, 900), st.binary(min_size=1, max_size=8))
def test_damaged_headers_do_not_raise(tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes) -> None:
    content = bytearray(dicom(PatientName="Roe^Jane"))
    content[at : at + len(junk)] = junk
    assert of(tmp_path_factory.mktemp("hostile"), bytes(content)).format == "dicom"


@given(st.text(max_size=400))
def test_clean_text_fits_any_database(text: str) -> None:
    cleaned = identity.clean(text)
    assert len(cleaned) <= 256
    assert cleaned.isprintable()
    cleaned.encode()


def deflated(content: bytes, extra: int = 0) -> bytes:
    """Return a DICOM file as a deflated one, with so many zeros in a private element before its pixels."""
    dataset = pydicom.dcmread(BytesIO(content))
    dataset.add_new(0x00091001, "OB", bytes(extra))
    plain = BytesIO()
    dataset.save_as(plain, enforce_file_format=True)
    start = content_module._start(plain)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body = packer.compress(plain.getvalue()[start:]) + packer.flush()
    head = BytesIO()
    pydicom.filewriter.write_file_meta_info(head, dataset.file_meta, enforce_standard=True)
    return b"\0" * 128 + b"DICM" + head.getvalue() + body


def test_a_deflated_header_is_read(tmp_path: Path) -> None:
    said, plain = of(tmp_path, deflated(dicom(4))), of(tmp_path, dicom(4))
    assert said == plain
    assert said.document is None


def test_a_deflated_bomb_takes_no_memory(tmp_path: Path) -> None:
    bomb = deflated(dicom(4), 64 * 2**20)
    assert len(bomb) < 2**17
    tracemalloc.start()
    said = of(tmp_path, bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * 2**20
    assert said.format == "dicom"
    assert said.sop_uid == "1.2.5.3"  # what stands before the bomb is known, and what is missing is said
    assert "no Study Instance UID" in said.cautions


@given(st.integers(132, 2000), st.binary(min_size=1, max_size=8))
def test_damaged_notes_and_pixels_do_not_raise(tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    for number, whole in enumerate((dicom(1), deflated(dicom(1)))):
        content = bytearray(whole)
        content[at : at + len(junk)] = junk
        path = folder / str(number)
        path.write_bytes(content)
        digest = content_module.pixels(path, 2**20)
        assert digest is None or len(digest) == 64

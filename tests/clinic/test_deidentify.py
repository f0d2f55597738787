"""A secret in any corner of a file: none of it is in what comes out, or nothing comes out."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import films
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian
from ward import SITE

from wetread.clinic.deidentify import deidentify
from wetread.clinic.pseudonyms import Pseudonyms
from wetread.errors import ReadError
from wetread.radiograph.read import read

NAMES = Pseudonyms(b"k" * 32, SITE)
SECRET = "ZEBEDEEQUIXOTE"
NUMBER = "5551234567"
LONG = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}
TEXT = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
SOUND = films.dataset(films.scene(24, 20, bits=12))
WHOLE = films.to_bytes(SOUND)
START = WHOLE.index(b"\x08\0\x16\0UI")
# Every public element of DICOM with the first of its representations, and those of overlays, curves and private ones.
PUBLIC = {tag: entry[0].split(" or ")[0] for tag, entry in DicomDictionary.items() if tag >> 16 not in (0, 2)}
REPEATING = {0x50003000: "OW", 0x50000022: "LO", 0x50022500: "LO", 0x60003000: "OW", 0x60020022: "LO", 0x60FE1500: "LO"}
PRIVATE = {0x00090010: "LO", 0x00091001: "LO", 0x00111002: "UN", 0x7FE10010: "LO", 0x7FE11001: "OB"}
TAGS = {
    tag: vr
    for tag, vr in (PUBLIC | REPEATING | PRIVATE).items()
    if len(vr) == 2 and vr != "NO" and tag & 0xFFFF0000 != 0xFFFE0000 and tag != 0x7FE00010
}


def value_of(vr: str) -> bytes:
    """Return the secret as a value of this representation, as far as a file can hold it there, sound or not."""
    secret = SECRET.encode()
    if vr in ("DA", "DT", "TM", "UI", "IS", "AS"):
        return {"UI": f"1.2.826.{NUMBER}".encode(), "IS": NUMBER.encode(), "AS": b"063Y"}.get(vr, secret)
    size = {"FD": 8, "OD": 8, "SV": 8, "UV": 8, "OV": 8, "FL": 4, "OF": 4, "UL": 4, "SL": 4, "OL": 4, "AT": 4}.get(
        vr, 2
    )
    return secret + b" " * (-len(secret) % size)


def element(tag: int, vr: str, value: bytes) -> bytes:
    value += (b"\0" if vr in ("UI", "OB", "UN") else b" ") * (len(value) % 2)
    length = struct.pack("<HI", 0, len(value)) if vr in LONG else struct.pack("<H", len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode() + length + value


def item(*elements: bytes) -> bytes:
    content = b"".join(elements)
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(content)) + content


def sound() -> dict[int, bytes]:
    """Return the elements of a sound file by tag."""
    found, at = {}, START
    while at < len(WHOLE):
        group, number = struct.unpack_from("<HH", WHOLE, at)
        vr = WHOLE[at + 4 : at + 6].decode()
        head, length = (12, struct.unpack_from("<I", WHOLE, at + 8)[0]) if vr in LONG else (
            8, struct.unpack_from("<H", WHOLE, at + 6)[0])  # fmt: skip
        found[group << 16 | number] = WHOLE[at : at + head + length]
        at += head + length
    return found


def planted(tags: list[int], inside: int | None = None) -> dict[int, bytes]:
    """Return elements that hold the secret; with `inside`, within an item of that sequence, and of one in it."""
    made = {}
    for tag in tags:
        vr = TAGS[tag]
        if vr == "SQ":
            nested = element(0x00081199, "SQ", item(element(0x00100010, "PN", SECRET.encode())))
            made[tag] = element(tag, vr, item(element(0x00080104, "LO", SECRET.encode()), nested))
        else:
            made[tag] = element(tag, vr, value_of(vr))
    if inside is not None:
        content = b"".join(each for _, each in sorted(made.items()))
        made = {inside: element(inside, "SQ", item(content) + item(element(0x00400275, "SQ", item(content))))}
    return made


def file(elements: dict[int, bytes], meta: bytes = b"", preamble: bytes = b"", after: bytes = b"") -> bytes:
    whole = sound() | elements
    head = WHOLE[128:START]
    if meta:  # the group's length is the first element of it
        length = struct.unpack_from("<I", head, 12)[0] + len(meta)
        head = head[:12] + struct.pack("<I", length) + head[16:] + meta
    return preamble.ljust(128, b"\0") + head + b"".join(each for _, each in sorted(whole.items())) + after


def leaked(out: bytes) -> bool:
    """Tell whether the secret is there: in any case, swapped, in wide letters."""
    plain = out.upper()
    swapped = plain[: len(plain) // 2 * 2]
    swapped = np.frombuffer(swapped, "<u2").byteswap().tobytes()
    wide = (SECRET.encode("utf-16-le"), SECRET.encode("utf-16-be"))
    return any(secret in form for secret in (SECRET.encode(), *wide, NUMBER.encode()) for form in (plain, swapped))


def clean(content: bytes) -> bytes | None:
    try:
        return deidentify(content, NAMES, patient="p" * 32, age_years=62.8, sex="F")
    except ReadError as error:
        said = str(error)
    assert not leaked(said.encode())
    return None


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    tags=st.lists(st.sampled_from(sorted(TAGS)), min_size=1, max_size=12, unique=True),
    inside=st.one_of(st.none(), st.sampled_from(sorted(tag for tag, vr in TAGS.items() if vr == "SQ"))),
    meta=st.booleans(),
)
@example(tags=[int(tag_for_keyword("BodyPartExamined") or 0)], inside=None, meta=False)
@example(tags=[int(tag_for_keyword("ImageType") or 0)], inside=None, meta=True)
@example(tags=[int(tag_for_keyword("PatientOrientation") or 0)], inside=None, meta=False)
@example(
    tags=[int(tag_for_keyword("Manufacturer") or 0)], inside=int(tag_for_keyword("ViewCodeSequence") or 0), meta=False
)
@example(tags=[int(tag_for_keyword("LUTData") or 0)], inside=int(tag_for_keyword("VOILUTSequence") or 0), meta=False)
def test_a_secret_anywhere_is_nowhere(tags: list[int], inside: int | None, meta: bool) -> None:
    private = element(0x00020016, "AE", SECRET.encode()) + element(0x00020102, "OB", SECRET.encode()) if meta else b""
    content = file(planted(tags, inside), private, SECRET.encode(), SECRET.encode() * 3 if meta else b"")
    assert leaked(content)
    out = clean(content)
    assert out is None or not leaked(out)


@pytest.mark.parametrize("nested", [False, True])
def test_all_text_of_a_film_at_once_and_it_is_still_a_film(nested: bool) -> None:
    needed = {"SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PhotometricInterpretation"}
    texts = [
        tag for tag, vr in TAGS.items() if vr in TEXT and keyword_for_tag(tag) not in needed | {"SpecificCharacterSet"}
    ]
    assert len(texts) > 1000
    content = file(planted(texts, int(tag_for_keyword("RequestAttributesSequence") or 0) if nested else None))
    out = clean(content)
    assert out is not None
    assert not leaked(out)
    np.testing.assert_array_equal(read(out).pixels, read(WHOLE).pixels)
    found = pydicom.dcmread(BytesIO(out))
    if not nested:
        assert not {"BodyPartExamined", "ViewPosition", "Modality", "Manufacturer", "ImageType"} & set(found.dir())


def test_the_rest_of_a_film_s_elements_one_kind_at_a_time() -> None:
    refused = []
    for vr in sorted(set(TAGS.values()) - TEXT):
        tags = [tag for tag, kind in TAGS.items() if kind == vr and tag not in sound()]
        out = clean(file(planted(tags)))
        if out is None:
            refused.append(vr)
        else:
            assert not leaked(out), vr
    assert set(refused) <= {"AS", "DA", "DS", "DT", "IS", "TM"}  # what is no number or date may be refused whole


def made(**elements: Any) -> Dataset | None:
    """Return what comes of a film with these elements."""
    out = clean(films.to_bytes(films.dataset(films.scene(24, 20, bits=12), **elements)))
    return None if out is None else pydicom.dcmread(BytesIO(out))


@pytest.mark.parametrize(
    ("keyword", "given_", "kept"),
    [
        ("BodyPartExamined", "CHEST", "CHEST"),
        ("BodyPartExamined", "MEIER CHEST", None),
        ("ViewPosition", "AP", "AP"),
        ("ViewPosition", "MEIER", None),
        ("ImageType", ["ORIGINAL", "PRIMARY", "", "MEIER", "OTHER"], ["ORIGINAL", "PRIMARY", "", "OTHER"]),
        ("ImageType", ["MEIER", "PRIMARY"], None),
        ("PatientOrientation", ["L", "F"], ["L", "F"]),
        ("PatientOrientation", ["LA", "FP"], ["LA", "FP"]),
        ("PatientOrientation", ["RALF", "F"], None),
        ("PatientOrientation", ["AA", "F"], None),
        ("Manufacturer", "GE Healthcare", "GE"),
        ("Manufacturer", "Siemens Healthineers, room of Dr Meier", "Siemens"),
        ("Manufacturer", "Meier Roentgen", None),
        ("PresentationIntentType", "FOR PRESENTATION", "FOR PRESENTATION"),
        ("KVP", "125", 125),
        ("KVP", "5551234567", None),
        ("ImagerPixelSpacing", ["0.143", "0.143"], [0.143, 0.143]),
        ("PatientWeight", "70", 70),
        ("PatientWeight", "5551234", None),
        ("ManufacturerModelName", "Room of Dr Meier", None),
        ("StationName", "MEIER", None),
        ("DeviceSerialNumber", "12345", None),
    ],
)  # fmt: skip
def test_what_a_value_becomes(keyword: str, given_: Any, kept: Any) -> None:
    found = made(**{keyword: given_})
    assert found is not None
    value = found.get(keyword)
    assert (list(value) if isinstance(kept, list) and value is not None else value) == kept


def coded(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def test_a_coded_view_keeps_the_standard_s_words() -> None:
    views = [
        coded("399348003", "SCT", "Meier"),
        coded("R-10214", "SRT", "Meier"),
        coded("MEIER", "SCT", "antero-posterior"),
    ]
    found = made(ViewCodeSequence=Sequence(views), ViewPosition=None)
    assert found is not None
    kept = [(item.CodeValue, item.CodeMeaning) for item in found.ViewCodeSequence]
    assert kept == [("399348003", "antero-posterior"), ("R-10214", "postero-anterior")]
    assert not any(
        set(item.dir()) - {"CodeValue", "CodingSchemeDesignator", "CodeMeaning"} for item in found.ViewCodeSequence
    )


def test_a_look_up_table_stays_unless_it_could_be_a_text() -> None:
    def table(values: np.ndarray) -> Sequence:
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [4096, 0, 16])
        item.add_new("LUTData", "OW", values.astype("<u2").tobytes() + SECRET.encode())
        item.LUTExplanation = SECRET
        return Sequence([item])

    rising = np.arange(4096) * 16
    film = films.dataset(films.scene(24, 20, bits=12))
    film.VOILUTSequence = table(rising)
    out = clean(films.to_bytes(film))
    assert out is not None
    assert not leaked(out)
    np.testing.assert_array_equal(read(out).pixels, read(films.to_bytes(film)).pixels)
    text = rising.copy()
    text[100:107] = np.frombuffer(SECRET.encode(), "<u2")
    film.VOILUTSequence = table(text)
    out = clean(films.to_bytes(film))
    assert out is not None
    assert not leaked(out)


@pytest.mark.parametrize("uid", ["1.2.826.5551234567", "1.2.840.10008.1.2", "1.2.840.10008.5.1.4.1.1.88.33"])
def test_a_class_that_is_no_image_of_dicom_is_left_out(uid: str) -> None:
    assert made(SOPClassUID=uid) is None


def test_bytes_in_the_other_order_are_the_same_image() -> None:
    film = films.dataset(films.scene(24, 20, bits=12))
    before = read(films.to_bytes(film)).pixels
    film.PixelData = np.frombuffer(film.PixelData, "<u2").byteswap().tobytes()
    film.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    film.save_as(buffer := BytesIO(), implicit_vr=False, little_endian=False, enforce_file_format=True)
    np.testing.assert_array_equal(read(buffer.getvalue()).pixels, before)
    out = clean(buffer.getvalue())
    assert out is not None
    np.testing.assert_array_equal(read(out).pixels, before)

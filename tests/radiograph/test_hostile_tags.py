"""Any value in any tag that is read: a radiograph or one coded sentence, from the reader and from intake alike."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import films
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR, tag_for_keyword

from wetread.clinic import identity
from wetread.errors import ReadError
from wetread.radiograph.read import Limits, Radiograph, read
from wetread.radiograph.suitability import suit

STORED = films.scene(64, 56)
READ = (
    "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PlanarConfiguration", "PhotometricInterpretation", "PresentationLUTShape",
    "PixelPaddingValue", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "VOILUTSequence", "ModalityLUTSequence", "ViewPosition", "ViewCodeSequence", "PixelSpacing", "ImagerPixelSpacing",
    "PatientAge", "PatientSex", "PatientBirthDate", "StudyDate", "StudyTime", "AcquisitionDate", "AcquisitionTime",
    "ContentDate", "SeriesDate", "TimezoneOffsetFromUTC", "Modality", "BodyPartExamined", "PresentationIntentType",
    "Manufacturer", "SpecificCharacterSet", "PatientName",
)  # fmt: skip
TAGS = sorted({*identity._TAGS, *READ})
_LONG = {"OB", "OW", "SQ", "UN", "UT", "OD", "OF", "OL", "UC", "UR"}
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


def element(keyword: str, vr: str, value: bytes) -> bytes:
    """Return an element in explicit little endian as it stands in a file, sound or not."""
    tag = int(tag_for_keyword(keyword) or 0)
    value = value + b"\0" * (len(value) % 2)
    length = struct.pack("<HI", 0, len(value)) if vr in _LONG else struct.pack("<H", len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode() + length + value


SOUND = films.dataset(STORED)
WHOLE = films.to_bytes(SOUND)
START = WHOLE.index(b"\x08\0\x16\0UI")


def elements() -> dict[int, bytes]:
    """Return the sound file's elements by tag, each as it stands in the file."""
    found, at = {}, START
    while at < len(WHOLE):
        group, number = struct.unpack_from("<HH", WHOLE, at)
        vr = WHOLE[at + 4 : at + 6].decode()
        if vr in _LONG:
            head, length = 12, struct.unpack_from("<I", WHOLE, at + 8)[0]
        else:
            head, length = 8, struct.unpack_from("<H", WHOLE, at + 6)[0]
        found[group << 16 | number] = WHOLE[at : at + head + length]
        at += head + length
    return found


ELEMENTS = elements()


def file(changes: dict[str, tuple[str, bytes]]) -> bytes:
    """Return the sound file with these elements, of any representation and value, in place of its own."""
    parts = ELEMENTS | {int(tag_for_keyword(k) or 0): element(k, vr, value) for k, (vr, value) in changes.items()}
    return WHOLE[:START] + b"".join(parts[tag] for tag in sorted(parts))


def survive(data: bytes, folder: Path) -> Radiograph | None:
    path = folder / "file.dcm"
    path.write_bytes(data)
    said = identity.of(path, data[:4096])
    for uid in (said.study_uid, said.series_uid, said.sop_uid):
        assert uid is None or (len(uid) <= 64 and _UID.fullmatch(uid))
    texts = [value for value in vars(said).values() if isinstance(value, str)]
    assert all(text.isprintable() and len(text) <= 256 for text in texts)
    try:
        film = read(data, name="film", limits=Limits(max_pixels=2**20))
    except ReadError as error:
        words = str(error)
        if not (words.startswith("film: ") and words.isprintable()):
            raise AssertionError(words) from None
        return None
    assert film.pixels.ndim == 2
    assert film.pixels.dtype in (np.uint8, np.uint16)
    assert film.age_years is None or 0 < film.age_years <= 121
    assert film.sex in ("M", "F", "O", None)
    for uid in (film.study, film.series, film.instance):
        assert uid is None or (len(uid) <= 64 and _UID.fullmatch(uid))
    assert all(
        value is None or value.isprintable()
        for value in (film.patient, film.modality, film.body_part, film.acquired_at)
    )
    answer = suit(film, population="adult")
    assert answer.suitable or (answer.code is not None and answer.reason.isprintable())
    return film


VALUES = st.one_of(
    st.binary(max_size=70),
    st.sampled_from([b"", b"\0", b" ", b"-1", b"0", b"1e400", b"nan", b"inf", b"1\\2", b"999999999999", b"\xff" * 16,
                     b"../../etc/passwd", b"\x1b[2J", b"2024-01-01", b"20240230", b"000Y", b"999Y", b"\\" * 40]),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.integers(0, 2**16 - 1).map(lambda n: struct.pack("<H", n)),
    st.integers(0, 2**64 - 1).map(lambda n: struct.pack("<Q", n)),
)  # fmt: skip
REPRESENTATIONS = "AE AS CS DA DS DT FD IS LO OB PN SH SQ SS TM UI UL UN US ZZ".split()  # noqa: SIM905


def change(keyword: str) -> st.SearchStrategy[tuple[str, bytes]]:
    own = dictionary_VR(keyword).split(" or ")[0]
    return st.tuples(st.one_of(st.just(own), st.just(own), st.sampled_from(REPRESENTATIONS)), VALUES)


def test_the_sound_file_is_put_together_again() -> None:
    assert file({}) == WHOLE
    assert file({"PatientSex": ("CS", b"F ")}) == WHOLE


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
def test_any_value_in_one_tag(tmp_path: Path, data: st.DataObject) -> None:
    keyword = data.draw(st.sampled_from(TAGS))
    survive(file({keyword: data.draw(change(keyword))}), tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.data())
def test_any_values_in_several_tags(tmp_path: Path, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(TAGS), min_size=2, max_size=6, unique=True))
    survive(file({keyword: data.draw(change(keyword)) for keyword in chosen}), tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(*[st.floats(width=32)] * 4)
@example(float("nan"), float("nan"), float("inf"), 0.0)
@example(-1.0, 1e38, 1e38, 1e-38)
@example(0.0, 0.0, 2048.0, 0.0)
def test_any_numbers_for_window_and_rescale(
    tmp_path: Path, slope: float, shift: float, centre: float, width: float
) -> None:
    values: dict[str, Any] = {
        "RescaleSlope": slope, "RescaleIntercept": shift, "WindowCenter": centre, "WindowWidth": width,
    }  # fmt: skip
    survive(file({key: ("DS", f"{value:.8g}".encode()) for key, value in values.items()}), tmp_path)


@pytest.mark.parametrize("keyword", TAGS)
def test_a_tag_that_is_absent_empty_or_nonsense(tmp_path: Path, keyword: str) -> None:
    own = dictionary_VR(keyword).split(" or ")[0]
    for value in (b"", b"\xff\xfe\0\x01\x80\x7f\r\n", b"\\\\\\"):
        survive(file({keyword: (own, value)}), tmp_path)
    parts = {tag: part for tag, part in ELEMENTS.items() if tag != int(tag_for_keyword(keyword) or 0)}
    survive(WHOLE[:START] + b"".join(parts.values()), tmp_path)

"""Everything that arrives in the wild: a right picture or one coded sentence, and nothing else."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import films
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openjpeg.utils import encode_array
from pydicom import Dataset
from pydicom.pixels import get_encoder
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from wetread.errors import Code, ReadError
from wetread.radiograph.read import Limits, read

STORED = films.scene(bits=12)
GREY8 = films.scene(bits=8)
JPEG = films.picture(GREY8, "JPEG", quality=95)


def refuse(data: bytes, code: Code, match: str | None = None, limits: Limits | None = None) -> None:
    with pytest.raises(ReadError, match=match) as caught:
        read(data, name="film", limits=limits)
    assert caught.value.code is code
    assert str(caught.value).startswith("film: ")
    assert "\n" not in str(caught.value)


def value_of(pixels: bytes, **elements: Any) -> bytes:
    """Return a native file whose pixel data are exactly `pixels`, written by hand where pydicom would refuse."""
    data = films.dicom(STORED, **elements)
    at = data.rindex(b"\xe0\x7f\x10\x00")
    return data[:at] + b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<I", len(pixels)) + pixels


# 1. native pixels


def test_truncated_native_pixels() -> None:
    refuse(value_of(STORED.tobytes()[:-100]), Code.UNREADABLE, "less than expected")


def test_file_cut_short() -> None:
    whole = films.dicom(STORED)
    for length in (140, 400, len(whole) - 1000):
        refuse(whole[:length], Code.UNREADABLE)


def test_excess_padding() -> None:
    film = read(value_of(STORED.tobytes() + b"\0" * 600))
    np.testing.assert_array_equal(film.pixels, read(films.dicom(STORED)).pixels)


def test_missing_pad_byte() -> None:
    odd = GREY8[:95, :79]
    ds = films.dataset(odd)
    data = films.to_bytes(ds)
    at = data.rindex(b"\xe0\x7f\x10\x00") + 8
    unpadded = data[:at] + struct.pack("<I", odd.size) + odd.tobytes()
    np.testing.assert_array_equal(read(unpadded).pixels, odd)


@pytest.mark.parametrize("pixels", [None, b""])
def test_pixel_data_absent_or_empty(pixels: bytes | None) -> None:
    refuse(films.dicom(STORED, PixelData=pixels), Code.UNREADABLE, "Pixel Data")


# 2. compressed pixels


def test_encapsulated_without_delimiter() -> None:
    whole = films.compressed(JPEG, GREY8)
    assert whole.endswith(b"\xfe\xff\xdd\xe0\0\0\0\0")
    np.testing.assert_array_equal(read(whole[:-8]).pixels, read(whole).pixels)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLSLossless, JPEG2000, RLELossless])
def test_truncated_compressed_frame(syntax: Any) -> None:
    if syntax == JPEGBaseline8Bit:
        frame, like = JPEG, GREY8
    elif syntax == JPEG2000:
        frame, like = encode_array(STORED, bits_stored=12), STORED
    else:
        frame, like = get_encoder(syntax).encode(films.dataset(STORED), index=0), STORED
    assert read(films.compressed(frame, like, syntax)).full_size == (96, 80)
    refuse(films.compressed(frame[: len(frame) // 2], like, syntax), Code.UNREADABLE)


@pytest.mark.parametrize("claimed", [JPEG2000, RLELossless, JPEGBaseline8Bit])
def test_a_transfer_syntax_that_lies_about_the_codec(claimed: Any) -> None:
    honest = read(films.compressed(JPEG, GREY8))
    np.testing.assert_array_equal(read(films.compressed(JPEG, GREY8, claimed)).pixels, honest.pixels)


def test_native_pixels_that_claim_to_be_compressed() -> None:
    data = films.dicom(STORED).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    np.testing.assert_array_equal(read(data).pixels, read(films.dicom(STORED)).pixels)


def test_implicit_elements_that_claim_to_be_explicit() -> None:
    ds = films.dataset(STORED)
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    honest = films.to_bytes(ds)
    meta = honest.replace(b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.1\0")
    length = meta.index(b"\x02\0\x10\0UI")
    lying = meta[: length + 6] + struct.pack("<H", 20) + meta[length + 8 :]
    np.testing.assert_array_equal(read(lying).pixels, read(honest).pixels)


@pytest.mark.parametrize("syntax", [HTJ2KLossless, "1.2.840.10008.1.2.4.100"])
def test_unsupported_codec(syntax: str) -> None:
    refuse(films.compressed(b"\0\0\1\xb3" + bytes(range(200)), GREY8, syntax), Code.UNREADABLE, "not supported")


def test_size_of_picture_and_header_disagree() -> None:
    refuse(films.compressed(JPEG, GREY8, Rows=95), Code.UNREADABLE, "its header says 80×95 pixels, its picture 80×96")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_no_preamble_and_no_meta_header(syntax: Any) -> None:
    ds = films.dataset(STORED)
    ds.file_meta.TransferSyntaxUID = syntax
    data = films.to_bytes(ds)
    start = data.index(b"\x08\0\x16\0")  # SOP Class UID, the first element of the data set
    for bare in (data[128 + 4 :], data[start:]):
        np.testing.assert_array_equal(read(bare).pixels, read(data).pixels)


# 3. frames and bits (signed values, Bits Stored and High Bit: test_dicom.py)


def test_several_frames() -> None:
    frames = np.stack([STORED, STORED])
    refuse(value_of(frames.tobytes(), NumberOfFrames=2), Code.NOT_RADIOGRAPH, "2 frames")
    np.testing.assert_array_equal(read(films.dicom(STORED, NumberOfFrames=1)).pixels, read(films.dicom(STORED)).pixels)


def test_pages_without_number_of_frames() -> None:
    refuse(value_of(np.stack([STORED] * 3).tobytes()), Code.NOT_RADIOGRAPH, "pages")


def test_compressed_pages_without_number_of_frames() -> None:
    from pydicom.encaps import encapsulate

    ds = films.dataset(GREY8, PixelData=encapsulate([JPEG, JPEG]))
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    refuse(films.to_bytes(ds), Code.NOT_RADIOGRAPH, "pages")


def test_several_pages_of_a_tiff_or_webp() -> None:
    from PIL import Image

    for kind in ("TIFF", "WEBP"):
        data = BytesIO()
        pages = [Image.fromarray(GREY8), Image.fromarray(255 - GREY8)]
        pages[0].save(data, kind, save_all=True, append_images=pages[1:])
        refuse(data.getvalue(), Code.NOT_RADIOGRAPH, "several pictures")


def test_thirty_two_bits() -> None:
    deep = STORED.astype(np.uint32) * 1_000_000
    refuse(films.dicom(deep, BitsStored=32, HighBit=31), Code.UNREADABLE, "more than 16 bits")


# 5. colour, and our own objects looping back


def test_a_coloured_secondary_capture() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    refuse(films.dicom(rgb), Code.NOT_RADIOGRAPH, "coloured")


@pytest.mark.parametrize("modality", ["SR", "PR", "KO", "DOC"])
def test_objects_that_are_no_pictures(modality: str) -> None:
    refuse(films.dicom(STORED, PixelData=None, Modality=modality), Code.NOT_RADIOGRAPH, f"{modality} object")


def test_floating_point_pixels() -> None:
    pixels = np.full((96, 80), np.nan, np.float32).tobytes()
    refuse(films.dicom(STORED, PixelData=None, FloatPixelData=pixels), Code.NOT_RADIOGRAPH, "floating-point")


@pytest.mark.parametrize("value", [0, 7, 4095])
def test_constant_pixels_are_read_as_one_grey(value: int) -> None:
    film = read(films.dicom(np.full((96, 80), value, np.uint16)))
    assert np.ptp(film.pixels) == 0


# 8. hostile tags


@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length")
@pytest.mark.parametrize("uid", ["../../etc/passwd", "", "1.2/3", "1" * 65, "1..2", "1.2\\3"])
def test_identifiers_that_are_no_uids(uid: str) -> None:
    film = read(films.dicom(STORED, StudyInstanceUID=uid))
    assert film.study is None
    assert film.instance == "1.2.3.4"


@pytest.mark.filterwarnings("ignore:The value length")
def test_control_characters_leave_the_patient_identifier() -> None:
    film = read(films.dicom(STORED, PatientID="P\x1b[31m\r\n1" + "x" * 500))
    assert film.patient is not None
    assert film.patient.startswith("P[31m1xx")
    assert len(film.patient) <= 256


def test_private_tags_and_broken_values_are_ignored() -> None:
    ds = films.dataset(STORED, WindowCenter=2048, WindowWidth=4096, PixelSpacing=[1, 2])
    ds.private_block(0x0009, "ACME", create=True).add_new(1, "UN", b"\xff" * 10)
    data = films.to_bytes(ds)
    honest = read(data).pixels
    assert data.count(b"2048") == 1
    spacing = data.index(b"\x28\0\x30\0DS") + 8
    broken = data[:spacing] + b"x" + data[spacing + 1 :]
    np.testing.assert_array_equal(read(broken).pixels, honest)
    assert read(broken).spacing_mm is None
    assert read(data.replace(b"2048", b"zero")).pixels.shape == honest.shape


def test_unknown_value_representation_and_character_set() -> None:
    data = films.dicom(STORED, SpecificCharacterSet="ISO_IR 100", PatientName="Müller")
    honest = read(data)
    for broken in (data.replace(b"ISO_IR 100", b"ISO_IR 999"), data.replace(b"\x10\0\x40\0CS", b"\x10\0\x40\0ZZ")):
        film = read(broken)
        np.testing.assert_array_equal(film.pixels, honest.pixels)
        assert film.patient == "P1"


def deep_sequence(depth: int) -> bytes:
    """Return a file with a sequence of undefined length nested `depth` times."""
    data = films.dicom(STORED)
    at = data.rindex(b"\x28\0\x02\0US")
    item = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    return data[:at] + item * depth + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" * depth + data[at:]


def test_sequences_without_end() -> None:
    np.testing.assert_array_equal(read(deep_sequence(3)).pixels, read(films.dicom(STORED)).pixels)
    refuse(deep_sequence(3000), Code.UNREADABLE)


# bombs: refused by their headers, before any memory is taken


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def jpeg_of(height: int, width: int) -> bytes:
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


BOMBS = {
    "png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)),
    "jpeg": jpeg_of(65000, 65000),
    "tiff": films.tiff({256: 60000, 257: 60000, 258: 8, 259: 1, 262: 1, 277: 1, 278: 60000, 279: 100}, b"\0" * 100),
    "webp": b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f" + struct.pack("<I", 16382 | 16382 << 14),
    "dicom": films.dicom(STORED, Rows=65000, Columns=65000),
    "dicom with jpeg": films.compressed(jpeg_of(65000, 65000), GREY8),
    "dicom with jpeg 2000": films.compressed(
        b"\xff\x4f\xff\x51" + struct.pack(">HH8IHBBB", 41, 0, 60000, 60000, 0, 0, 60000, 60000, 0, 0, 1, 7, 1, 1),
        GREY8,
        JPEG2000,
    ),
    "dicom with frames": films.dicom(STORED, NumberOfFrames=1_000_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_decompression_bombs(name: str) -> None:
    refuse(BOMBS[name], Code.TOO_LARGE, "more than the limit")


def test_deflated_bomb() -> None:
    ds = films.dataset(np.zeros((2000, 2000), np.uint16))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = films.to_bytes(ds)
    assert len(data) < 100_000
    assert read(data).full_size == (2000, 2000)
    refuse(data, Code.TOO_LARGE, "inflates", Limits(max_bytes=4_000_000))


@pytest.mark.parametrize(
    "entries",
    [{256: 0, 257: 5}, {256: 80, 257: 96, 339: 3}, {256: 80, 257: 96, 258: 64, 262: 1, 277: 1, 278: 96, 279: 61440}],
)
def test_pictures_that_cannot_be_radiographs(entries: dict[int, int]) -> None:
    refuse(films.tiff(entries, b"\0" * 8), Code.UNREADABLE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated_pictures(kind: str, share: float) -> None:
    data = films.picture(GREY8, kind)
    refuse(data[: int(len(data) * share)], Code.UNREADABLE)


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\xff\xd8\xff", b"%PDF-1.7 " * 50, b"PK\x03\x04" * 40, b"\0" * 128 + b"DICM"]
)
def test_what_is_no_picture(data: bytes) -> None:
    refuse(data, Code.UNREADABLE)


def test_nothing_is_written_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    for data in (
        films.picture(GREY8, "PNG")[:200], films.picture(GREY8, "TIFF")[:-900], JPEG[:300], JPEG[:-200] + b"\0" * 200,
        films.compressed(JPEG[:300], GREY8), films.compressed(b"\xff\x4f\xff\x51" + b"\0" * 60, GREY8, JPEG2000),
        value_of(STORED.tobytes() + b"\0" * 600), films.dicom(STORED)[:400],
    ):  # fmt: skip
        try:
            read(data)
        except ReadError:
            continue
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def survives(data: bytes) -> None:
    try:
        film = read(data, limits=Limits(max_pixels=2**20))
    except ReadError:
        return
    assert film.pixels.ndim == 2
    assert film.pixels.dtype in (np.uint8, np.uint16)
    assert film.pixels.size <= 2**20


@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    survives(data)
    survives(b"\0" * 128 + b"DICM" + data)


SEEDS = {
    "dicom": films.dicom(films.scene(12, 10), WindowCenter=2048, WindowWidth=4096),
    "dicom with jpeg": films.compressed(
        films.picture(films.scene(16, 16, bits=8), "JPEG"), films.scene(16, 16, bits=8)
    ),
    "jpeg": films.picture(films.scene(16, 16, bits=8), "JPEG"),
    "png": films.picture(films.scene(16, 16, bits=16), "PNG"),
    "webp": films.picture(films.scene(16, 16, bits=8), "WEBP"),
    "tiff": films.picture(films.scene(16, 16, bits=8), "TIFF"),
}


@pytest.mark.parametrize("kind", SEEDS)
@settings(max_examples=100)
@given(st.data())
def test_damaged_files(kind: str, data: st.DataObject) -> None:
    sound = bytearray(SEEDS[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(sound) - 1))
        sound[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(sound)))
    survives(bytes(sound[: cut or None]))


def test_a_dataset_without_elements_is_refused(tmp_path: Path) -> None:
    empty = Dataset()
    empty.file_meta = films.dataset(STORED).file_meta
    path = tmp_path / "empty.dcm"
    path.write_bytes(films.to_bytes(empty))
    with pytest.raises(ReadError, match=r"empty\.dcm: "):
        read(path)

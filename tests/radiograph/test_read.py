from __future__ import annotations

from io import BytesIO
from pathlib import Path

import cv2
import films
import numpy as np
import pytest
from PIL import Image

from wetread.errors import Code, ReadError
from wetread.radiograph.read import Limits, Radiograph, ramp, read, reduction, to_8_bit, write_png

GREY8 = films.scene(bits=8)
GREY16 = films.scene(bits=16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_lossless_pictures_are_read_as_they_are(kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    film = read(films.picture(np.dstack([GREY8] * 3) if kind == "WEBP" else GREY8, kind, **options))
    np.testing.assert_array_equal(film.pixels, GREY8)
    assert (film.bits, film.full_size, film.source) == (8, GREY8.shape, kind.lower())
    assert film.modality is film.view is film.age_years is film.patient is None


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_agrees_with_pillow(mode: str) -> None:
    data = BytesIO()
    Image.fromarray(GREY8).convert("RGB").convert(mode).save(data, "JPEG", quality=95)
    film = read(data.getvalue())
    reference = np.asarray(Image.open(data).convert("RGB").convert("L"), dtype=int)
    assert np.abs(film.pixels - reference).max() <= 2  # the two convert colours with different rounding


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_pictures_use_the_range_of_their_data(kind: str) -> None:
    shallow = (GREY16 >> 4) + 100  # 12 bits stored in 16
    film = read(films.picture(shallow, kind))
    assert film.bits == 16
    expected = np.rint((shallow - 100.0) * 65535 / (shallow.max() - 100))
    np.testing.assert_array_equal(film.pixels, expected)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA"])
def test_grey_in_other_guises(mode: str) -> None:
    image = Image.fromarray(GREY8).convert(mode)
    data = BytesIO()
    image.save(data, "PNG")
    reference = np.asarray(image.convert("RGB"))[..., 0].astype(int)
    assert np.abs(read(data.getvalue()).pixels - reference).max() <= 1


def test_a_tiff_of_white_zero_is_bright_where_it_is_small() -> None:
    fields = {256: 80, 257: 96, 258: 8, 259: 1, 277: 1, 278: 96, 279: GREY8.size}
    normal = read(films.tiff(fields | {262: 1}, GREY8.tobytes())).pixels
    inverted = read(films.tiff(fields | {262: 0}, GREY8.tobytes())).pixels
    np.testing.assert_array_equal(normal, GREY8)
    np.testing.assert_array_equal(inverted, 255 - GREY8)


def test_a_coloured_picture_is_no_radiograph() -> None:
    colour = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "WEBP"):
        with pytest.raises(ReadError, match="coloured") as caught:
            read(films.picture(colour, kind), name="holiday")
        assert caught.value.code is Code.NOT_RADIOGRAPH


def test_a_small_coloured_marker_is_allowed() -> None:
    marked = np.dstack([GREY8] * 3)
    marked[:10, :20] = (255, 0, 0)
    outside = read(films.picture(marked, "PNG")).pixels[10:]
    assert np.abs(outside.astype(int) - GREY8[10:]).max() <= 1


def test_exif_orientation_turns_the_picture_as_viewers_do() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    film = read(films.picture(GREY8, "JPEG", exif=exif, quality=95))
    assert film.full_size == (80, 96) == film.pixels.shape
    assert np.abs(film.pixels.astype(int) - np.rot90(GREY8, -1)).mean() < 2


@pytest.mark.parametrize(
    ("size", "reduce_to", "scale"),
    [((800, 640), None, 1), ((800, 640), 641, 1), ((800, 640), 320, 2), ((800, 640), 81, 4), ((800, 640), 80, 8)],
)
def test_jpeg_is_decoded_at_the_smallest_sufficient_scale(
    size: tuple[int, int], reduce_to: int | None, scale: int
) -> None:
    assert reduction(*size, reduce_to) == scale
    scene = films.scene(*size, bits=8)
    for pixels in (scene, np.dstack([scene] * 3)):
        film = read(films.picture(pixels, "JPEG", quality=95), reduce_to=reduce_to)
        assert film.pixels.shape == (size[0] // scale, size[1] // scale)
        assert film.full_size == size
        whole = cv2.resize(scene, film.pixels.shape[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(film.pixels.astype(int) - whole).mean() < 2


def test_format_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "film.dcm"
    path.write_bytes(films.picture(GREY8, "PNG"))
    assert read(path).source == "png"


def test_phantom_comment_is_recognised() -> None:
    assert read(films.picture(GREY8, "JPEG", comment=b"wetread-phantom seed 3")).source == "phantom"
    assert read(films.picture(GREY8, "JPEG", comment=b"made by hand")).source == "jpeg"
    late = films.picture(GREY8, "JPEG")
    at = late.index(b"\xff\xc4")  # a segment after the frame header counts too
    late = late[:at] + b"\xff\xfe\x00\x11wetread-phantom" + late[at:]
    assert read(late).source == "phantom"


def test_limits_hold_for_bytes_and_files(tmp_path: Path) -> None:
    data = films.picture(GREY8, "PNG")
    path = tmp_path / "film.png"
    path.write_bytes(data)
    for source in (data, path):
        assert read(source, limits=Limits(max_bytes=len(data), max_pixels=GREY8.size)).full_size == GREY8.shape
        for limits in (Limits(max_bytes=len(data) - 1), Limits(max_pixels=GREY8.size - 1)):
            with pytest.raises(ReadError, match="raise max_") as caught:
                read(source, limits=limits)
            assert caught.value.code is Code.TOO_LARGE


@pytest.mark.parametrize("make", [lambda p: p / "absent.png", lambda p: p])
def test_a_path_that_is_no_file(make: object, tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="no such file"):
        read(make(tmp_path))  # type: ignore[operator]


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "secret.png"
    path.write_bytes(b"x")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ReadError, match="cannot be opened: Permission denied"):
        read(path)


def test_messages_name_the_file() -> None:
    with pytest.raises(ReadError, match=r"^a\.jpg: ") as caught:
        read(b"GIF89a....", name="a.jpg")
    assert caught.value.code is Code.UNREADABLE
    with pytest.raises(ReadError, match="is empty"):
        read(b"")


def test_ramp() -> None:
    np.testing.assert_array_equal(ramp(np.array([-5, 0, 1, 2, 4, 9]), 0, 4, 8), [0, 0, 64, 128, 255, 255])
    np.testing.assert_array_equal(ramp(np.array([3, 3]), 3, 3, 16), [0, 0])
    assert ramp(np.array([3]), 3, 4, 16).dtype == np.uint16


def test_to_8_bit_rounds(tmp_path: Path) -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(to_8_bit(every), np.rint(every / 257))
    assert to_8_bit(GREY8) is GREY8
    write_png(tmp_path / "odd.name", GREY8)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "odd.name")), GREY8)


def test_real_files_in_every_format(shared: Path) -> None:
    jpeg = next((shared / "data/kermany224/train/NORMAL").iterdir())
    png = next((shared / "data/native/nih").iterdir())
    for path in (jpeg, png):
        film = read(path)
        assert isinstance(film, Radiograph)
        reference = np.asarray(Image.open(path).convert("L"), dtype=int)
        assert np.abs(film.pixels - reference).max() <= 2

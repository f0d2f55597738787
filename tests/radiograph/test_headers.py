from __future__ import annotations

from pathlib import Path

import films
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetread.radiograph import headers


@pytest.mark.parametrize("mode", ["grey", "colour"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@given(height=st.integers(1, 300), width=st.integers(1, 300))
def test_size_is_what_pillow_wrote(kind: str, mode: str, height: int, width: int) -> None:
    pixels = np.zeros((height, width) if mode == "grey" else (height, width, 3), np.uint8)
    data = films.picture(pixels, kind)
    assert headers.sniff(data) == kind.lower()
    found = headers.header(data, kind.lower())  # type: ignore[arg-type]
    assert (found.height, found.width, found.frames) == (height, width, 1)
    if kind != "WEBP":
        assert (found.samples, found.bits) == (pixels.ndim * 2 - 3, 8)


def test_lossless_and_progressive_and_extended_headers() -> None:
    pixels = np.zeros((70, 90), np.uint8)
    for kind, options in (("WEBP", {"lossless": True}), ("JPEG", {"progressive": True}), ("WEBP", {"exif": b"Exif"})):
        found = headers.header(films.picture(pixels, kind, **options), kind.lower())  # type: ignore[arg-type]
        assert (found.height, found.width) == (70, 90)


def test_animations_and_pages_count_as_several() -> None:
    from io import BytesIO

    from PIL import Image

    pages = [Image.fromarray(np.full((32, 32), value, np.uint8)) for value in (10, 200)]
    for kind in ("WEBP", "TIFF"):
        data = BytesIO()
        pages[0].save(data, kind, save_all=True, append_images=pages[1:])
        assert headers.header(data.getvalue(), kind.lower()).frames == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
@given(data=st.binary(max_size=200))
def test_any_bytes_give_a_header_or_a_value_error(kind: headers.Format, data: bytes) -> None:
    start = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "webp": b"RIFF0000WEBPVP8 ", "tiff": b"II*\0"}[kind]
    try:
        found = headers.header(start + data, kind)
    except ValueError:
        return
    assert found.height > 0
    assert found.width > 0


def test_jpeg_2000_header(shared: Path) -> None:
    data = (shared / "data/dicom/RG1_J2KI.dcm").read_bytes()
    found = headers.j2k(data[data.index(b"\xff\x4f\xff\x51") :])
    assert (found.height, found.width, found.samples, found.bits) == (1955, 1841, 1, 15)


def test_jpeg_2000_without_a_codestream() -> None:
    for data in (b"", b"\xff\x4f\xff\x51\0"):
        with pytest.raises(ValueError, match=r"^its? "):
            headers.j2k(data)

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import films
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wetread.errors import ModelError
from wetread.radiograph.pixels import Transform, lungs, plain
from wetread.radiograph.read import Radiograph, read

TEMPLATE = films.scene(224, 224, bits=8, seed=1)


def film(pixels: np.ndarray) -> Radiograph:
    return Radiograph(pixels, 8 * pixels.dtype.itemsize, pixels.shape)


def with_template_at(x: int, y: int) -> np.ndarray:
    whole = films.scene(256, 256, bits=8, seed=2)
    whole[y : y + 224, x : x + 224] = TEMPLATE
    return whole


def test_plain_shows_the_whole() -> None:
    scene = films.scene(600, 500, bits=8, smooth=12)
    seen = plain()(film(scene))
    assert seen.array.shape == (224, 224)
    assert seen.array.dtype == np.uint8
    assert seen.box == (0, 0, 1, 1)
    assert seen.match == 0
    reference = Image.fromarray(scene).resize((224, 224), Image.Resampling.BOX)
    assert np.abs(seen.array.astype(int) - np.asarray(reference)).mean() < 1


def test_plain_without_shrinking_is_the_identity() -> None:
    scene = films.scene(64, 64, bits=8)
    np.testing.assert_array_equal(plain(64, 64)(film(scene)).array, scene)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (32, 32), (7, 19)])
def test_lungs_are_found_wherever_they_are(x: int, y: int) -> None:
    seen = lungs(TEMPLATE)(film(with_template_at(x, y)))
    np.testing.assert_array_equal(seen.array, TEMPLATE)
    assert seen.match == pytest.approx(1, abs=1e-5)
    assert seen.box == (x / 256, y / 256, 224 / 256, 224 / 256)


@given(slope=st.floats(0.2, 1), offset=st.integers(0, 50))
def test_exposure_does_not_move_the_crop(slope: float, offset: int) -> None:
    whole = with_template_at(7, 19)
    other = np.rint(whole * (slope * 0.8) + offset).astype(np.uint8)
    seen = lungs(TEMPLATE)(film(other))
    assert seen.box[:2] == (7 / 256, 19 / 256)
    assert seen.match > 0.99


def test_the_box_leads_back_to_the_radiograph() -> None:
    whole = cv2.resize(with_template_at(7, 19), (512, 768), interpolation=cv2.INTER_NEAREST)
    seen = lungs(TEMPLATE)(film(whole))
    x, y, w, h = (round(v * s) for v, s in zip(seen.box, (512, 768) * 2, strict=True))
    shown = cv2.resize(whole[y : y + h, x : x + w], (224, 224), interpolation=cv2.INTER_AREA)
    assert np.abs(shown.astype(int) - seen.array).max() <= 1


def test_no_crop_when_nothing_matches() -> None:
    scene = 255 - with_template_at(7, 19)
    seen = lungs(TEMPLATE)(film(scene))
    assert seen.match < 0.5
    assert seen.box == (0, 0, 1, 1)
    np.testing.assert_array_equal(seen.array, plain()(film(scene)).array)


def test_a_constant_radiograph_matches_nothing() -> None:
    seen = lungs(TEMPLATE)(film(np.full((300, 300), 9, np.uint8)))
    assert seen.box == (0, 0, 1, 1)
    assert (seen.array == 9).all()


def test_sixteen_bits_give_what_their_upper_eight_give() -> None:
    deep = films.scene(600, 500, bits=16)
    seen = plain()(film(deep))
    shallow = plain()(film((deep / 257).round().astype(np.uint8)))
    assert np.abs(seen.array.astype(int) - shallow.array).max() <= 1


def test_the_same_bytes_always_give_the_same_array(tmp_path: Path) -> None:
    data = films.picture(films.scene(900, 700, bits=8), "JPEG")
    path = tmp_path / "film.jpg"
    path.write_bytes(data)
    transform = lungs(TEMPLATE, min_match=-1)
    packed = transform(transform.read(path))  # as in packing
    stored = io.BytesIO()
    transform.save(stored)
    served = Transform.load(stored.getvalue())  # as in a model package
    np.testing.assert_array_equal(packed.array, served(served.read(data)).array)


def test_reduced_scale_is_part_of_the_transform() -> None:
    data = films.picture(films.scene(1200, 1100, bits=8, smooth=24), "JPEG")
    reduced, full = plain(), Transform("plain", reduced=False)
    assert reduced.read(data).pixels.shape == (300, 275)
    assert full.read(data).pixels.shape == (1200, 1100)
    assert reduced != full
    difference = reduced(reduced.read(data)).array.astype(int) - full(full.read(data)).array
    assert np.abs(difference).mean() < 1


def test_equality_is_by_content() -> None:
    assert lungs(TEMPLATE) == lungs(TEMPLATE.copy())
    assert hash(lungs(TEMPLATE)) == hash(lungs(TEMPLATE.copy()))
    other = TEMPLATE.copy()
    other[0, 0] ^= 1
    different = [lungs(other), lungs(TEMPLATE, min_match=0.4), plain(), plain(64), "plain"]
    assert all(lungs(TEMPLATE) != transform for transform in different)


def test_parameters_are_json() -> None:
    for transform in (plain(), lungs(TEMPLATE)):
        assert json.loads(json.dumps(transform.parameters())) == transform.parameters()
    assert plain().parameters() == {
        "name": "plain", "source": 224, "size": 224, "template": None, "min_match": 0.5, "reduced": True,
    }  # fmt: skip


@pytest.mark.parametrize("transform", [plain(), plain(64, 64), lungs(TEMPLATE, min_match=0.3)])
def test_saved_and_loaded_it_is_the_same(transform: Transform, tmp_path: Path) -> None:
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    transform.save(first)
    transform.save(second)
    assert first.read_bytes() == second.read_bytes()
    assert Transform.load(first) == Transform.load(first.read_bytes()) == transform
    with np.load(first, allow_pickle=False) as arrays:
        assert set(arrays) <= {"parameters", "template"}


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def changed(**values: Any) -> bytes:
    parameters = plain().parameters() | values
    return npz(parameters=np.frombuffer(json.dumps(parameters).encode(), np.uint8))


def bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("parameters.npy", b"\0" * 50_000_000)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "not a transform"),
        (lambda: b"PK\x03\x04 rubbish", "not a transform"),
        (lambda: npz(template=TEMPLATE), "not a transform"),
        (lambda: npz(parameters=np.array([{"name": "plain"}], dtype=object)), "not a transform"),
        (lambda: npz(parameters=np.zeros(4)), "uint8"),
        (lambda: changed(size="224"), "wrong kind"),
        (lambda: changed(size=4000, source=4000), "must hold"),
        (lambda: changed(size=300), "must hold"),
        (lambda: changed(name="magic"), "unknown"),
        (lambda: changed(name="lungs"), "template belongs"),
        (lambda: changed(min_match=float("nan")), "min_match"),
        (lambda: changed(reduced=3), "wrong kind"),
        (lambda: changed(template="0" * 64), "not the one"),
        (bomb, "too large"),
    ],
)
def test_files_that_are_no_transform(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Transform.load(make())


@given(st.binary(max_size=300))
def test_any_bytes_give_a_model_error(data: bytes) -> None:
    with pytest.raises(ModelError):
        Transform.load(b"PK\x03\x04" + data)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.npz: cannot be opened"):
        Transform.load(tmp_path / "absent.npz")


def test_a_template_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ModelError, match="wetread template"):
        Transform("lungs", template=TEMPLATE[:100])


def test_real_films_of_native_size(shared: Path) -> None:
    path = max((shared / "data/native/kermany").rglob("*.jpeg"), key=lambda file: file.stat().st_size)
    transform, full = plain(), Transform("plain", reduced=False)
    difference = transform(transform.read(path)).array.astype(int) - full(read(path)).array
    assert np.abs(difference).mean() < 1.5

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

from wetread.train.augment import augment, move, placement  # noqa: E402
from wetread.train.recipe import AugmentRecipe  # noqa: E402

OFF = AugmentRecipe.model_validate({})
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 48)).astype(np.uint8)
CHANCES = ("flip", "equalise", "blur", "sharpen", "noise", "jpeg", "erase")
AMOUNTS = {"rotate": 15, "shift": 0.1, "zoom": 0.2, "stretch": 0.3, "gamma": 0.5, "contrast": 0.4, "brightness": 0.2}
ALL = AugmentRecipe.model_validate({**dict.fromkeys(CHANCES, 0.5), **AMOUNTS})


def test_with_everything_off_the_image_comes_back():
    np.testing.assert_array_equal(augment(IMAGE, OFF, np.random.default_rng(1)), IMAGE)


def test_a_sure_flip_mirrors():
    flipped = augment(IMAGE, OFF.model_copy(update={"flip": 1.0}), np.random.default_rng(1))
    np.testing.assert_array_equal(flipped, IMAGE[:, ::-1])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_shape_and_type_stay_the_input_stays_and_the_seed_decides(seed):
    before = IMAGE.copy()
    first = augment(IMAGE, ALL, np.random.default_rng(seed))
    again = augment(IMAGE, ALL, np.random.default_rng(seed))
    assert first.shape == IMAGE.shape
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(IMAGE, before)


ELSEWHERE = ("share", "flip", "mixup", "one_view")


@pytest.mark.parametrize("name", [n for n in AugmentRecipe.model_fields if n not in ELSEWHERE])
def test_every_kind_of_change_changes_something(name):
    strength = (
        20.0 if name == "rotate" else 0.4 if name in ("shift", "zoom", "stretch", "contrast", "brightness") else 1.0
    )
    recipe = OFF.model_copy(update={name: strength})
    assert any((augment(IMAGE, recipe, np.random.default_rng(s)) != IMAGE).any() for s in range(5))


def test_exposure_keeps_the_order_of_greys():
    recipe = OFF.model_copy(update={"gamma": 0.5, "contrast": 0.3, "brightness": 0.1})
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    for seed in range(10):
        assert (np.diff(augment(ramp, recipe, np.random.default_rng(seed)).astype(int), axis=1) >= 0).all()


def test_a_share_of_images_keeps_its_exposure_and_sharpness():
    recipe = ALL.model_copy(update={"share": 0.4, **dict.fromkeys(("flip", "rotate", "shift", "zoom", "stretch"), 0.0)})
    same = [np.array_equal(augment(IMAGE, recipe, np.random.default_rng(s)), IMAGE) for s in range(400)]
    assert 0.5 < np.mean(same) < 0.7


def test_zoom_keeps_the_centre():
    image = np.zeros((65, 65), np.uint8)
    image[31:34, 31:34] = 255
    for seed in range(10):
        seen = augment(image, OFF.model_copy(update={"zoom": 0.3, "rotate": 20.0}), np.random.default_rng(seed))
        ys, xs = np.nonzero(seen)
        assert abs(ys.mean() - 32) < 0.6
        assert abs(xs.mean() - 32) < 0.6


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_a_mask_of_another_size_moves_with_its_image(seed):
    recipe = OFF.model_copy(update={"rotate": 20.0, "shift": 0.1, "zoom": 0.2, "stretch": 0.2, "flip": 0.5})
    matrix = placement(recipe, np.random.default_rng(seed))
    image = np.zeros((96, 96), np.uint8)
    image[30:50, 20:36] = 255
    mask = cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA)
    moved = cv2.resize(move(image, matrix), (48, 48), interpolation=cv2.INTER_AREA).astype(float)
    assert np.abs(moved - move(mask, matrix)).sum() / 255 < 0.15 * (mask > 0).sum()

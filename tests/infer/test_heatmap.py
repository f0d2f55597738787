"""Heatmaps: geometry against SciPy and OpenCV, the crop's inverse, colours, PNG."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.interpolate import RegularGridInterpolator

from wetread.infer import heatmap

WHOLE = (0.0, 0.0, 1.0, 1.0)


def test_the_whole_image_is_opencvs_bilinear_resize() -> None:
    values = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    wanted = cv2.resize(values, (83, 120), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(heatmap.to_image(values, WHOLE, (120, 83)), wanted, atol=1e-5)


@given(
    seed=st.integers(0, 99),
    box=st.tuples(st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0.2, 0.6), st.floats(0.2, 0.6)),
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    cells=st.tuples(st.integers(2, 9), st.integers(2, 9)),
)
@settings(max_examples=60, deadline=None)
def test_a_crop_is_put_back_where_it_came_from(
    seed: int, box: heatmap.Box, shape: tuple[int, int], cells: tuple[int, int]
) -> None:
    values = np.random.default_rng(seed).normal(size=cells).astype(np.float32)
    got = heatmap.to_image(values, box, shape)
    # Cell centres as fractions of the image, then SciPy's interpolation between them.
    centres = [box[1 - axis] + box[3 - axis] * (np.arange(n) + 0.5) / n for axis, n in enumerate(cells)]
    interpolate = RegularGridInterpolator(centres, values.astype(np.float64))
    pixel = [(np.arange(n) + 0.5) / n for n in shape]
    lower, upper = (box[1], box[0]), (box[1] + box[3], box[0] + box[2])
    inside = [(p >= low) & (p <= high) for p, low, high in zip(pixel, lower, upper, strict=True)]
    on_edge = [
        (np.abs(p - low) < 1e-9) | (np.abs(p - high) < 1e-9) for p, low, high in zip(pixel, lower, upper, strict=True)
    ]
    within, edge = inside[0][:, None] & inside[1], on_edge[0][:, None] | on_edge[1]
    clipped = (np.clip(p, c[0], c[-1]) for p, c in zip(pixel, centres, strict=True))
    points = np.stack(np.meshgrid(*clipped, indexing="ij"), -1)
    agree = np.where(within, np.abs(got - interpolate(points)) < 1e-4, np.isnan(got))
    assert (agree | edge).all()


def test_no_value_outside_the_crop_and_the_peak_where_it_was() -> None:
    values = np.zeros((8, 8), np.float32)
    values[2, 5] = 1
    box = (0.25, 0.125, 0.5, 0.75)
    image = heatmap.to_image(values, box, (400, 320))
    rows, columns = np.where(np.isfinite(image))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (50, 349, 80, 239)
    peak = np.unravel_index(np.nanargmax(image), image.shape)
    assert peak == pytest.approx((400 * (0.125 + 0.75 * 2.5 / 8), 320 * (0.25 + 0.5 * 5.5 / 8)), abs=1)


def test_overlay_leaves_the_film_bare_without_evidence() -> None:
    film = np.random.default_rng(0).integers(0, 256, (30, 20), dtype=np.uint8)
    for values in (
        np.zeros((30, 20), np.float32),
        np.full((30, 20), -3, np.float32),
        np.full((30, 20), np.nan, np.float32),
    ):
        np.testing.assert_array_equal(heatmap.overlay(film, values), np.repeat(film[..., None], 3, 2))


def test_overlay_blends_the_strongest_place_with_the_given_opacity() -> None:
    film = np.full((2, 2), 100, np.uint8)
    values = np.array([[4, 2], [0, np.nan]], np.float32)
    top = heatmap.layer(values, opacity=1)
    np.testing.assert_array_equal(top[..., 3], [[255, 128], [0, 0]])
    np.testing.assert_array_equal(heatmap.overlay(film, values, opacity=1)[0, 0], top[0, 0, :3])
    half = heatmap.overlay(film, values, opacity=0.5)[0, 0].astype(int)
    assert np.abs(half - (100 + top[0, 0, :3].astype(int)) / 2).max() <= 1


def test_sixteen_bits_are_shown_like_eight() -> None:
    film = np.arange(256, dtype=np.uint8).reshape(16, 16)
    values = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    deep = film.astype(np.uint16) * np.uint16(257)
    np.testing.assert_array_equal(heatmap.overlay(film, values), heatmap.overlay(deep, values))


def test_colours_rise_evenly_in_lightness() -> None:
    """Perceptually uniform: CIELAB lightness, by OpenCV, is nearly linear in the value."""
    values = np.linspace(0, 1, 256, dtype=np.float32)[None]
    rgb = heatmap.layer(values)[..., :3].astype(np.float32) / 255
    lightness = cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab)[0, :, 0]
    assert (np.diff(lightness[::4]) > 0.5).all()  # every fourth: eight-bit colours round
    assert np.corrcoef(lightness, values[0])[0, 1] > 0.999


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_png_is_lossless_and_in_rgb_order(channels: tuple[int, ...]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, *channels), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(heatmap.png(picture)))), picture)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wetread.radiograph.anatomy import Solid, draw_body, inside, rib, vessel_tree
from wetread.radiograph.projection import Scene, capsule_path, cloud, ease, ellipsoid_path

PIXEL = 0.05
GRID = np.arange(-10, 10, PIXEL, dtype=np.float32)


def test_path_through_a_sphere_is_the_chord():
    path = ellipsoid_path(GRID[None], GRID[:, None], (1.0, -2.0), (3.0, 3.0, 3.0))
    distance = np.hypot(GRID[None] - 1, GRID[:, None] + 2)
    chord = 2 * np.sqrt(np.clip(9 - distance**2, 0, None))
    np.testing.assert_allclose(path, chord, atol=2e-3)
    assert path.max() == pytest.approx(6, abs=1e-2)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.floats(0.5, 5)] * 3), st.floats(-3, 3))
def test_an_ellipsoid_keeps_its_volume_however_it_is_turned(radii, tilt):
    path = ellipsoid_path(GRID[None], GRID[:, None], (0.3, 0.2), radii, tilt)
    assert path.sum() * PIXEL**2 == pytest.approx(4 / 3 * np.pi * np.prod(radii), rel=0.01)


def test_path_through_a_straight_rod_is_that_of_its_cylinder():
    path = capsule_path(GRID[None], GRID[:, None], (0.0, -8.0), (0.0, 8.0), (1.5, 1.5))
    middle = path[np.abs(GRID) < 5]
    expected = 2 * np.sqrt(np.clip(1.5**2 - GRID**2, 0, None))
    np.testing.assert_allclose(middle, np.broadcast_to(expected, middle.shape), atol=2e-3)


@pytest.mark.parametrize("view", ["PA", "LATERAL"])
def test_a_solid_keeps_its_volume_in_every_view(view):
    scene = Scene(draw_body(3), view, 256)
    path = scene.solid(Solid((2.0, 12.0, 1.0), (3.0, 2.0, 4.0), 0.5))
    assert path.sum() * scene.cm**2 == pytest.approx(4 / 3 * np.pi * 24, rel=0.02)


def test_the_lungs_hold_the_same_air_from_the_front_and_from_the_side():
    body = draw_body(5)
    volumes = []
    for view in ("PA", "LATERAL"):
        scene = Scene(body, view, 200)
        volumes.append([lung.sum() * scene.cm**2 for lung in scene.whole])
    np.testing.assert_allclose(volumes[0], volumes[1], rtol=0.03)
    assert 1500 < volumes[0][0] < 5000  # cm3; a lung of an adult


def test_pixels_and_centimetres_are_inverse():
    scene = Scene(draw_body(2), "PA", 128)
    points = np.array([[0.0, 10.0, 0.0], [8.0, 3.0, 0.0]])
    for (column, row), (x, y, _) in zip(np.round(scene.pixel(points)).astype(int), points, strict=True):
        assert scene.u[row, column] == pytest.approx(x, abs=scene.cm)
        assert scene.v[row, column] == pytest.approx(y, abs=scene.cm)


def test_a_stroke_thinner_than_a_pixel_is_fainter_by_as_much():
    scene = Scene(draw_body(2), "PA", 128)
    line = np.array([[-8.0, 10.0, 0.0], [8.0, 10.0, 0.0]])
    sums = []
    for radius in (0.02, 0.04):
        canvas = scene.canvas()
        scene.stroke(canvas, line, radius, 250)
        sums.append(scene.shrink(canvas, 1.0).sum())
    assert sums[1] / sums[0] == pytest.approx(2, rel=0.1)


def test_blur_keeps_the_mean_away_from_borders():
    scene = Scene(draw_body(2), "PA", 160)
    image = np.zeros((160, 160), np.float32)
    image[70:90, 70:90] = 1
    for width in (0.3, 2.0):
        assert scene.blur(image, width).sum() == pytest.approx(400, rel=0.05)


def test_ease_is_a_smooth_step():
    np.testing.assert_allclose(ease(np.array([-1, 0, 0.5, 1, 2], np.float32)), [0, 0, 0.5, 1, 1])


def test_cloud_is_standardised_and_smooth():
    texture = cloud(np.random.default_rng(0), 128, 6, 2)
    assert texture.std() == pytest.approx(1, abs=1e-3)
    assert np.abs(np.diff(texture, axis=1)).mean() < 0.3


def test_vessels_stay_in_the_lungs_and_obey_murray():
    body = draw_body(11)
    segments, radii = vessel_tree(body, np.random.default_rng(0))
    far = np.abs(segments[:, 1, 0]) > 6
    side = (segments[far, 1, 0] > 0).astype(int)
    assert inside(body, segments[far, 1], side).all()
    assert radii.min() >= 0.03
    assert radii.max() < 0.6


@pytest.mark.parametrize("index", [2, 5, 8])
def test_ribs_run_down_from_the_spine_round_the_chest(index):
    body = draw_body(4)
    line = rib(body, index, 1)
    assert line[0, 2] < 0 < line[-1, 2]  # from behind to the front
    assert line[-1, 1] > line[0, 1] + 3  # downwards
    assert line[:, 0].max() == pytest.approx(float(body.outer(line[:, 1].mean())), abs=1.5)
    np.testing.assert_allclose(rib(body, index, 0), line * [-1, 1, 1])

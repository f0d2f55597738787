import numpy as np
import pytest
from scipy import ndimage

from wetread.evaluate import changes


@pytest.fixture
def picture():
    """A smooth picture with a bright letter in the upper left corner and a bright disc in the middle."""
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.normal(0, 1, (96, 96)), 8)
    image = 80 + 60 * (image - image.min()) / np.ptp(image)
    image[30:60, 30:60] += 60
    image[6:12, 6:8] = image[10:12, 6:11] = 250
    return image.astype(np.uint8)


def test_a_shift_is_scipy_s(picture):
    moved = changes.shift(picture, right=3 / 96, down=-2 / 96)
    expected = ndimage.shift(picture.astype(float), (-2, 3), order=1, mode="nearest")
    assert np.abs(moved - expected).max() <= 1


def test_a_rotation_turns_around_the_middle_and_back(picture):
    turned = changes.rotate(picture, 90)
    assert np.abs(turned.astype(int) - np.rot90(picture)).max() <= 1
    smooth = ndimage.gaussian_filter(picture, 3)
    back = changes.rotate(changes.rotate(smooth, 3), -3)
    assert np.abs(back[12:-12, 12:-12].astype(int) - smooth[12:-12, 12:-12]).max() <= 6


def test_exposure_changes_by_what_is_said_and_stays_in_range(picture):
    assert changes.brighten(picture, 0.05).mean() == pytest.approx(picture.mean() + 12.75, abs=0.6)
    stretched = changes.stretch(picture, 1.1)
    assert stretched.std() == pytest.approx(1.1 * picture.std(), rel=0.02)
    assert stretched.mean() == pytest.approx(picture.mean(), abs=0.6)
    white = np.full((8, 8), 254, np.uint8)
    assert changes.brighten(white, 0.05).max() == 255


def test_a_marker_goes_and_the_chest_stays(picture):
    cleaned = changes.without_markers(picture)
    assert cleaned[6:12, 6:11].max() < 170
    assert (cleaned[24:72, 24:72] == picture[24:72, 24:72]).all()
    bare = picture.copy()
    bare[:20, :20] = 100
    assert (changes.without_markers(bare)[24:] == bare[24:]).all()


def test_a_border_goes_and_the_inside_stays(picture):
    framed = picture.copy()
    framed[:3] = framed[-3:] = 0
    cleaned = changes.without_border(framed, 0.04)
    assert (cleaned[4:-4, 4:-4] == framed[4:-4, 4:-4]).all()
    assert (cleaned[0, 4:-4] == framed[4, 4:-4]).all()


@pytest.mark.parametrize("name", changes.CHANGES)
def test_every_change_keeps_shape_and_type_and_its_input(picture, name):
    before = picture.copy()
    for change in changes.CHANGES[name]:
        result = change(picture)
        assert (result.shape, result.dtype) == (picture.shape, np.uint8)
        assert result is not picture
        assert not np.shares_memory(result, picture)
    assert (picture == before).all()

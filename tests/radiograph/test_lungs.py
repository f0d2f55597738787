from __future__ import annotations

from pathlib import Path

import cv2
import films
import numpy as np
import pytest

from wetread.errors import ReadError
from wetread.radiograph import phantom
from wetread.radiograph.lungs import average, from_file, locate, squash
from wetread.radiograph.pixels import lungs
from wetread.radiograph.read import Radiograph


@pytest.fixture(scope="module")
def template() -> np.ndarray:
    return average([squash(phantom.make(seed, size=256).radiograph, 256) for seed in range(12)])


def pearson(image: np.ndarray, template: np.ndarray, x: int, y: int) -> float:
    h, w = template.shape
    return float(np.corrcoef(image[y : y + h, x : x + w].ravel(), template.ravel())[0, 1])


def test_locate_is_the_largest_correlation_coefficient() -> None:
    image, part = films.scene(40, 44, bits=8), films.scene(33, 31, bits=8, seed=3)
    every = {(x, y): pearson(image, part, x, y) for x in range(44 - 31 + 1) for y in range(40 - 33 + 1)}
    x, y, match = locate(image, part)
    assert match == pytest.approx(max(every.values()), abs=1e-4)
    assert every[x, y] == pytest.approx(match, abs=1e-4)


@pytest.mark.parametrize("constant", ["image", "template"])
def test_what_is_constant_matches_nothing(constant: str) -> None:
    arrays = {"image": films.scene(40, 40, bits=8), "template": films.scene(30, 30, bits=8)}
    arrays[constant] = np.full_like(arrays[constant], 200)
    *_, match = locate(arrays["image"], arrays["template"])
    assert abs(match) < 0.05 or constant == "template"
    assert -1 <= match <= 1


def test_average_of_one_is_that_one_stretched() -> None:
    image = films.scene(256, 256, bits=8)
    region = image[24:248, 16:240].astype(float)
    expected = (region - region.min()) / np.ptp(region) * 255
    assert np.abs(average([image]) - expected).max() <= 1


def test_average_aligns_before_it_averages() -> None:
    inner = films.scene(224, 224, bits=8, seed=5)
    images = []
    for x, y in ((10, 20), (16, 24), (22, 28)):
        image = np.full((256, 256), 128, np.uint8)
        image[y : y + 224, x : x + 224] = inner
        images.append(image)
    aligned, blurred = (average(images, rounds=rounds) for rounds in (3, 0))
    correlation = [locate(inner, t)[2] for t in (aligned, blurred)]
    assert correlation[0] > correlation[1]
    assert correlation[0] > 0.99


def test_average_needs_large_enough_images() -> None:
    for images in ([], [films.scene(200, 256, bits=8)]):
        with pytest.raises(ValueError, match="at least one radiograph of 224×224"):
            average(images)


def test_a_template_cut_by_hand(tmp_path: Path) -> None:
    scene = films.scene(500, 400, bits=8)
    path = tmp_path / "clear.png"
    path.write_bytes(films.picture(scene, "PNG"))
    expected = cv2.resize(scene[20:470, 30:370], (224, 224), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(from_file(path, (30, 20, 340, 450)), expected)
    for box in ((30, 20, 371, 450), (30, 20, 340, 481), (-1, 0, 10, 10), (0, 0, 0, 10)):
        with pytest.raises(ReadError, match="does not lie within its 400×500 pixels"):
            from_file(path, box)


def test_squash_does_not_keep_the_aspect() -> None:
    assert squash(Radiograph(films.scene(300, 100, bits=16), 16), 64).shape == (64, 64)


def test_the_crop_keeps_the_lungs_of_phantoms(template: np.ndarray) -> None:
    """Lungs of other phantoms lose less than 0.5 % of their pixels, apices and costophrenic angles included."""
    transform = lungs(template)
    lost = []
    for seed in range(1000, 1020):
        film = phantom.make(seed, view="AP" if seed % 2 else "PA", size=256)
        x, y, w, h = (round(v * 256) for v in transform(film.radiograph).box)
        assert w == h == 224
        lost.append(1 - film.lungs[y : y + h, x : x + w].sum() / film.lungs.sum())
    assert max(lost) < 0.005


def test_real_lungs_are_found_with_a_phantom_template(shared: Path, template: np.ndarray) -> None:
    transform = lungs(template)
    files = sorted((shared / "data/nih64").rglob("*.png"))[:100]
    matches = [transform(transform.read(file)).match for file in files]
    assert np.mean(np.array(matches) >= transform.min_match) > 0.9

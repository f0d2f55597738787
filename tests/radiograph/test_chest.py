from __future__ import annotations

from pathlib import Path

import cv2
import films
import numpy as np
import pytest

from wetread.radiograph import chest, phantom
from wetread.radiograph.chest import Chests, describe, fit, from_bytes, settle, thumbnail, to_bytes, turns
from wetread.radiograph.read import Radiograph, read

THUMB = films.scene(64, 64, bits=8)


def test_description_ignores_exposure() -> None:
    scene = films.scene(64, 64, bits=7)
    brighter = (np.sqrt(scene / 127) * 200 + 20).round().astype(np.uint8)  # monotone, ties aside
    a, b = describe(scene), describe(brighter)
    assert a.shape == (768,)
    assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(a)
    assert np.linalg.norm(a - describe(255 - scene)) > 0.3 * np.linalg.norm(a)


def test_a_constant_picture_has_no_edges() -> None:
    assert (describe(np.full((64, 64), 9, np.uint8))[:512] == 0).all()


def test_edges_are_counted_by_direction() -> None:
    step = np.zeros((64, 64), np.uint8)
    step[:, 34:] = 255  # brighter to the right: direction 0 of 8, in the fifth column of cells
    edges = describe(step)[:512].reshape(8, 8, 8)
    assert np.argwhere(edges[3] > 0.1).tolist() == [[4, 0]]


def test_a_turned_picture_has_the_permuted_description() -> None:
    turned = [np.rot90(film, quarters) for film in (THUMB, THUMB[:, ::-1]) for quarters in (1, 2, 3)]
    expected = [describe(np.ascontiguousarray(film)) for film in turned]
    np.testing.assert_allclose(describe(THUMB)[turns()], expected, atol=1e-5)


def test_the_mahalanobis_distance_is_that_of_the_fitted_gaussian() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(3, 12))
    sample = rng.normal(size=(4000, 3)) @ mixing + rng.normal(size=(4000, 12)) * 0.1
    fitted = fit(sample, np.ones(len(sample)), axes=3)
    covariance = np.cov(sample.T)
    apart = sample[:50] - sample.mean(axis=0)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", apart, np.linalg.inv(covariance), apart))
    np.testing.assert_allclose(fitted.mahalanobis(sample[:50]), expected, rtol=0.05)


def test_weights_count_as_repetitions() -> None:
    rng = np.random.default_rng(1)
    sample = rng.normal(size=(60, 5))
    weights = rng.integers(1, 4, 60).astype(float)
    once = fit(sample, weights, axes=2)
    repeated = fit(np.repeat(sample, weights.astype(int), axis=0), np.ones(int(weights.sum())), axes=2)
    np.testing.assert_allclose(once.mahalanobis(sample), repeated.mahalanobis(sample), rtol=1e-2)


def test_what_is_as_far_turned_as_upright_gains_nothing_and_what_is_upright_does() -> None:
    rng = np.random.default_rng(3)
    sample = describe(THUMB) + rng.normal(size=(80, 768)) * 0.05
    fitted = fit(sample, np.ones(80), axes=4)
    flat = describe(np.full((64, 64), 9, np.uint8))[None]
    np.testing.assert_allclose(fitted.distance(flat), fitted.mahalanobis(flat))
    upright = sample[:1]
    turned = min(fitted.mahalanobis(upright[:, turn])[0] for turn in turns())
    own = fitted.mahalanobis(upright)[0]
    np.testing.assert_allclose(fitted.distance(upright), own - 2 * (turned - own))


def test_the_threshold_lies_half_way_and_films_come_first() -> None:
    rng = np.random.default_rng(4)
    sample = describe(np.full((64, 64), 9, np.uint8)) + rng.normal(size=(400, 768)) * 0.05
    fitted = fit(sample[:200], np.ones(200), axes=4)
    others = describe(THUMB)[None]
    two = [sample[200:300], sample[300:] + 0.02]
    settled = settle(fitted, two, others, share=0.9)
    assert min(np.mean(settled.distance(part) <= 1) for part in two) >= 0.9
    needed = max(np.quantile(settled.distance(part), 0.9) for part in two)
    assert (needed + settled.distance(others)[0]) / 2 == pytest.approx(1)
    close = settle(fitted, two, sample[:5], share=0.9)  # films, really
    assert min(np.mean(close.distance(part) <= 1) for part in two) == pytest.approx(0.9, abs=0.011)


def test_parameters_survive_their_file() -> None:
    rng = np.random.default_rng(2)
    sample = rng.normal(size=(50, 768))
    fitted = fit(sample, np.ones(50), axes=2)
    again = from_bytes(to_bytes(fitted))
    assert isinstance(again, Chests)
    np.testing.assert_array_equal(again.distance(sample), fitted.distance(sample))


def test_phantoms_look_like_chests_also_small_and_blurred() -> None:
    for seed in range(3):
        film = phantom.make(seed).radiograph.pixels
        variants = [film, cv2.resize(film, (64, 64), interpolation=cv2.INTER_AREA), cv2.GaussianBlur(film, (0, 0), 6)]
        assert max(chest.distance(Radiograph(pixels)) for pixels in variants) < 1


def test_noise_and_upended_phantoms_do_not() -> None:
    film = phantom.make(0).radiograph.pixels
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    turned = [np.rot90(film, quarters) for quarters in (1, 2, 3)]
    for pixels in (noise, films.scene(200, 200, bits=8), 255 - film, film[::-1], *turned):
        assert chest.distance(Radiograph(np.ascontiguousarray(pixels))) > 1


def passing(folder: Path, count: int) -> float:
    files = sorted(f for f in folder.rglob("*") if f.suffix in (".png", ".jpeg", ".jpg"))
    step = max(1, len(files) // count)
    return float(np.mean([chest.distance(read(file, reduce_to=128)) <= 1 for file in files[::step]]))


@pytest.mark.parametrize("name", ["kermany224", "nih1000", "nih64"])
def test_real_chests_pass(shared: Path, name: str) -> None:
    assert passing(shared / "data" / name, 200) >= 0.98


@pytest.mark.parametrize("name", ["AbdomenCT", "BreastMRI", "ChestCT", "Hand", "HeadCT"])
def test_what_is_no_chest_radiograph_does_not_pass(shared: Path, name: str) -> None:
    assert passing(shared / "data/ood" / name, 100) <= 0.01


def test_thumbnail_is_small() -> None:
    assert thumbnail(Radiograph(films.scene(300, 200, bits=16), 16)).shape == (64, 64)

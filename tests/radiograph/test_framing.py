from __future__ import annotations

import films
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from wetread.radiograph import chest, framing, phantom
from wetread.radiograph.lungs import squash
from wetread.radiograph.read import Radiograph


def test_the_estimate_is_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(300, 12))
    cut = sample @ rng.normal(size=(12, 4)) + rng.normal(size=(300, 4)) * 0.1
    weights = rng.uniform(0.5, 2, 300)
    fitted = framing.fit(sample, cut, weights, [sample], ridge=5.0, share=0.9)
    reference = Ridge(alpha=5.0).fit(sample, cut, weights * 300 / weights.sum())
    np.testing.assert_allclose(fitted.estimate(sample), reference.predict(sample), atol=0.02)
    beyond = (fitted.estimate(sample) > fitted.limits).mean(axis=0)
    np.testing.assert_allclose(beyond, 0.1, atol=0.005)


def test_the_limits_suit_every_collection() -> None:
    rng = np.random.default_rng(1)
    sample, cut = rng.normal(size=(200, 6)), rng.normal(size=(200, 4))
    one, two = (framing.fit(sample, cut, np.ones(200), [part]).limits for part in (sample[:100], sample[100:]))
    both = framing.fit(sample, cut, np.ones(200), [sample[:100], sample[100:]]).limits
    np.testing.assert_allclose(both, np.maximum(one, two))


def test_parameters_survive_their_file() -> None:
    rng = np.random.default_rng(2)
    sample = rng.normal(size=(50, 6))
    fitted = framing.fit(sample, rng.normal(size=(50, 4)), np.ones(50), [sample])
    again = framing.from_bytes(framing.to_bytes(fitted))
    np.testing.assert_array_equal(again.estimate(sample), fitted.estimate(sample))
    np.testing.assert_array_equal(again.limits, fitted.limits)


@pytest.mark.parametrize("side", framing.SIDES)
def test_the_side_that_is_cut_off_is_named(side: str) -> None:
    named = []
    for seed in range(4):
        pixels = phantom.make(seed).radiograph.pixels
        height, width = pixels.shape
        rows = {"top": slice(int(0.35 * height), None), "bottom": slice(None, int(0.65 * height))}
        columns = {"left": slice(int(0.3 * width), None), "right": slice(None, int(0.7 * width))}
        part = np.ascontiguousarray(pixels[rows.get(side, slice(None)), columns.get(side, slice(None))])
        named.append(framing.cut_off(chest.describe(chest.thumbnail(Radiograph(part)))))
        assert framing.cut_off(chest.describe(chest.thumbnail(Radiograph(pixels)))) == ()
    assert sum(side in cut for cut in named) >= 3


def test_exposure_looks_at_the_middle() -> None:
    thumb = squash(Radiograph(films.scene(200, 200, bits=8)), 64)
    assert framing.exposure(thumb) == ""
    edge = thumb.copy()
    edge[:10] = edge[-10:] = 0
    edge[:, :8] = edge[:, -8:] = 255
    assert framing.exposure(edge) == ""
    assert framing.exposure(np.full((64, 64), 130, np.uint8)) == "almost without contrast"
    assert framing.exposure((thumb // 8).astype(np.uint8)) == "too dark"
    assert framing.exposure((230 + thumb // 12).astype(np.uint8)) == "too bright"

"""What is kept of an image for drift."""

from __future__ import annotations

import dataclasses

import numpy as np
import sqlalchemy as sa
from ward import Ward, png

from wetread.clinic import store, traits
from wetread.infer.predict import Analysis
from wetread.radiograph.exposure import Exposure

EXPOSURE = Exposure(0.4, 0.2, 0.1, 0.05, 2000.0, 1600.0)


def analysis(features: np.ndarray | None) -> Analysis:
    return Analysis("m", "a" * 64, "screen", True, features=features, exposure=EXPOSURE)


def test_distances_survive_the_projection() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (40, 1024)).astype(np.float32)
    kept = np.stack([traits.project(one, "b" * 64) for one in images]).astype(np.float32)
    pairs = np.triu_indices(40, 1)
    before, after = (np.linalg.norm(x[pairs[0]] - x[pairs[1]], axis=1) for x in (images, kept))
    ratio = after / before
    # A distance in 64 random directions is spread by about sqrt(1 / 128) = 9 %.
    assert abs(ratio.mean() - 1) < 0.03
    assert ratio.std() < 0.13


def test_few_features_stay_as_they_are_and_huge_ones_stay_finite() -> None:
    few = np.array([0.5, -2, 3], np.float32)
    np.testing.assert_array_equal(traits.project(few, "m"), few)
    assert np.isfinite(traits.project(np.full(500, 3e38, np.float32), "m")).all()


def test_models_have_directions_of_their_own_and_always_the_same() -> None:
    features = np.random.default_rng(1).normal(0, 1, 200).astype(np.float32)
    one, same, other = (traits.project(features, name * 64) for name in "aab")
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_a_row_comes_back_as_it_was() -> None:
    row = traits.row("i", "m", analysis(np.array([1, 2.5], np.float32)), store.now())
    assert row is not None
    assert row["exposure"] == dataclasses.asdict(EXPOSURE)
    np.testing.assert_array_equal(traits.unpack(row["features"]), [1, 2.5])
    assert traits.row("i", "m", dataclasses.replace(analysis(None), exposure=None), store.now()) is None
    unseen = traits.row("i", "m", analysis(None), store.now())
    assert unseen is not None
    assert unseen["features"] is None


def test_an_image_that_nothing_was_measured_of_has_no_row(ward: Ward) -> None:
    ward.take(png(), "edema.png")  # the ward's model is a function of the name
    ward.work()
    with ward.database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(store.image_trait)).scalar() == 0
        assert connection.execute(sa.select(sa.func.count()).select_from(store.image_result)).scalar() == 1

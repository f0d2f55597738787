"""Two samples compared, against SciPy, closed forms, and what chance alone gives."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wetread.evaluate import shift
from wetread.evaluate.shift import Channel

EVERY = 200


def channel(effect: shift.Effect, n: int, limit: float = 0.1, name: str = "x") -> Channel:
    return Channel("pixels", name, effect, limit, np.ones(n, bool))


def memberships(n: int, times: int = 5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(n) < n // 3 for _ in range(times)])


@given(arrays(np.float64, st.integers(6, 40), elements=st.sampled_from([0.0, 0.5, 1.0, 2.5, 7.0])))
def test_distance_is_scipys_also_with_ties(values: np.ndarray) -> None:
    new = memberships(len(values))
    wanted = [scipy.stats.ks_2samp(values[one], values[~one]).statistic for one in new]
    np.testing.assert_allclose(shift.distance(values)(new), wanted, atol=1e-12)


def test_what_is_not_known_does_not_count() -> None:
    values = np.random.default_rng(1).normal(size=60)
    values[::4] = np.nan
    known = ~np.isnan(values)
    for one in memberships(60):
        ours = [effect(values)(one[None])[0] for effect in (shift.distance, shift.difference)]
        a, b = values[one & known], values[~one & known]
        assert ours == pytest.approx([scipy.stats.ks_2samp(a, b).statistic, abs(a.mean() - b.mean())])


def test_mix_is_the_share_that_would_have_to_change() -> None:
    names = np.array(["a"] * 6 + ["b"] * 4 + ["a"] * 3 + ["c"] * 7)
    new = np.arange(20)[None] >= 10
    assert shift.mix(names)(new)[0] == pytest.approx(0.7)  # 6 a, 4 b before; 3 a, 7 c after
    assert shift.mix(names)(np.arange(20)[None] % 2 == 0)[0] < 0.3


def test_discrepancy_is_the_estimate_as_it_is_written() -> None:
    rng = np.random.default_rng(2)
    rows = np.concatenate([rng.normal(0, 1, (15, 3)), rng.normal(1, 1, (12, 3))])
    new = np.arange(27) >= 15
    apart = scipy.spatial.distance.cdist(rows, rows, "sqeuclidean")
    kernel = np.exp(-apart / np.median(apart[np.triu_indices(27, 1)]))
    x, y, xy = kernel[~new][:, ~new], kernel[new][:, new], kernel[~new][:, new]
    squared = (
        (x.sum() - np.trace(x)) / (15 * 14) + (y.sum() - np.trace(y)) / (12 * 11) - 2 * xy.mean()
    )  # Gretton et al. 2012, equation 3
    assert shift.discrepancy(rows)(new[None])[0] == pytest.approx(np.sqrt(squared), rel=1e-4)
    unknown = np.concatenate([rows, np.full((1, 3), np.nan)])
    assert shift.discrepancy(unknown)(np.append(new, True)[None])[0] == pytest.approx(np.sqrt(squared), rel=1e-4)


def test_one_channel_has_the_p_of_its_own_permutations() -> None:
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(0, 1, 60), rng.normal(0.55, 1, 60)])
    new = np.arange(120) >= 60
    found = shift.compare([channel(shift.difference(values), 120)], new, resamples=1999)[0]
    wanted = scipy.stats.permutation_test(
        (values[new], values[~new]), lambda a, b: abs(a.mean() - b.mean()), alternative="greater",
        n_resamples=1999, rng=np.random.default_rng(0),
    )  # fmt: skip
    assert found.p == pytest.approx(wanted.pvalue, abs=0.012)
    assert (found.before, found.after) == (60, 60)


def test_no_channel_at_all_alarms_more_often_than_alpha_when_nothing_changed() -> None:
    alarms, rng = 0, np.random.default_rng(4)
    for trial in range(EVERY):
        base = rng.normal(size=80)
        values = [base + rng.normal(size=80) * 0.5 for _ in range(4)] + [rng.normal(size=80) for _ in range(4)]
        channels = [channel(shift.distance(one), 80, limit=0.0, name=str(n)) for n, one in enumerate(values)]
        found = shift.compare(channels, np.arange(80) >= 40, resamples=99, seed=trial)
        alarms += any(change.alarms(0.05) for change in found)
    assert alarms <= scipy.stats.binom.isf(1e-3, EVERY, 0.05)  # unadjusted, eight channels give about 55


def test_a_change_is_found_and_only_where_it_is() -> None:
    rng = np.random.default_rng(5)
    new = np.arange(400) >= 200
    channels = [
        channel(shift.distance(rng.normal(size=400) + new), 400, name="moved"),
        channel(shift.distance(rng.normal(size=400)), 400, name="same"),
    ]
    moved, same = shift.compare(channels, new)
    assert moved.alarms(0.01)
    assert moved.effect > moved.usual
    assert not same.alarms(0.01)


def test_a_tiny_change_that_many_images_prove_is_no_alarm() -> None:
    rng = np.random.default_rng(6)
    new = np.arange(20_000) >= 10_000
    found = shift.compare([channel(shift.distance(rng.normal(size=20_000) + 0.1 * new), 20_000)], new, resamples=99)[0]
    assert found.p <= 0.01
    assert not found.alarms(0.01)


def test_too_few_images_are_left_out() -> None:
    known = np.arange(50) < 30
    few = Channel("labels", "x", shift.difference(np.where(known, 1.0, np.nan)), 0.1, known)
    assert shift.compare([few], np.arange(50) >= 25, least=10) == []
    assert len(shift.compare([few], np.arange(50) >= 25, least=5, resamples=9)) == 1

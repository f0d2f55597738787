import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from wetread.errors import WetreadError
from wetread.evaluate import intervals, metrics


def delong_error(labels, scores):
    """Standard error of the AUROC from its structural components (DeLong 1988, equation 4)."""
    wins = np.subtract.outer(scores[labels == 1], scores[labels == 0])
    kernel = (wins > 0) + 0.5 * (wins == 0)
    by_positive, by_negative = kernel.mean(axis=1), kernel.mean(axis=0)
    return np.sqrt(by_positive.var(ddof=1) / len(by_positive) + by_negative.var(ddof=1) / len(by_negative))


def draw(seed, images):
    rng = np.random.default_rng(seed)
    labels = (rng.random(images) < 0.3).astype(float)
    return labels, rng.normal(1.2 * labels, 1)


def all_weights(groups, count, seed=0):
    return np.concatenate(list(intervals.resamples(groups, count, seed)))


def test_interval_of_the_auroc_agrees_with_delong():
    labels, scores = draw(0, 600)
    found = intervals.auroc(labels, scores, np.arange(600), count=2000)
    error = delong_error(labels, scores)
    assert found.value == pytest.approx(roc_auc_score(labels, scores))
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.25 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.25 * error)


def test_paired_difference_agrees_with_delong():
    """The variance of a difference is that of the structural components' difference."""
    labels, scores = draw(1, 600)
    other = scores + np.random.default_rng(2).normal(0, 0.7, 600)
    found = intervals.difference(metrics.Counts.auroc, labels, scores, other, np.arange(600), count=2000)

    def components(s):
        wins = np.subtract.outer(s[labels == 1], s[labels == 0])
        kernel = (wins > 0) + 0.5 * (wins == 0)
        return kernel.mean(axis=1), kernel.mean(axis=0)

    variance = sum(np.var(a - b, ddof=1) / len(a) for a, b in zip(components(scores), components(other), strict=True))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.sqrt(variance), rel=0.15)
    assert found.low > 0  # the noisier score is worse, and the pairing shows it


def test_a_model_does_not_differ_from_itself():
    labels, scores = draw(3, 80)
    found = intervals.difference(metrics.Counts.auroc, labels, scores, scores.copy(), np.arange(80), count=50)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    truth, hits = stats.norm.cdf(1.2 / np.sqrt(2)), 0
    for seed in range(100):
        labels, scores = draw(100 + seed, 150)
        found = intervals.auroc(labels, scores, np.arange(150), count=200, seed=seed)
        hits += found.low <= truth <= found.high
    assert hits >= 87  # 95 expected; 86 or fewer has a chance below 0.1 %


def test_images_of_a_patient_stay_together_and_widen_the_interval():
    labels, scores = draw(4, 200)
    groups = np.tile([f"patient {i}" for i in range(200)], 4)
    weights = all_weights(groups, 20)
    assert (weights.reshape(20, 4, 200) == weights.reshape(20, 4, 200)[:, :1]).all()
    four = (np.tile(labels, 4), np.tile(scores, 4))
    by_patient = intervals.auroc(*four, groups, count=500)
    by_image = intervals.auroc(*four, np.arange(800), count=500)
    once = intervals.auroc(labels, scores, np.arange(200), count=500)
    assert by_patient.high - by_patient.low == pytest.approx(once.high - once.low, rel=0.15)
    assert by_patient.high - by_patient.low > 1.5 * (by_image.high - by_image.low)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 9), st.integers(0, 2**32))
def test_every_resample_draws_as_many_patients_as_there_are(groups, count, seed):
    weights = all_weights(groups, count, seed)
    _, first = np.unique(groups, return_index=True)
    assert weights.shape == (count, len(groups))
    assert (weights[:, first].sum(axis=1) == len(first)).all()
    assert (weights == all_weights(groups, count, seed)).all()


def test_names_of_patients_do_not_matter():
    groups = np.array([0, 0, 1, 2, 2, 2])
    assert (all_weights(groups, 10) == all_weights(np.array(["a", "a", "b", "c", "c", "c"]), 10)).all()
    assert (all_weights(groups, 10, 0) != all_weights(groups, 10, 1)).any()


def test_block_size_does_not_matter(monkeypatch):
    whole = all_weights(np.arange(50), 40)
    monkeypatch.setattr(intervals, "_BLOCK", 175)
    assert (all_weights(np.arange(50), 40) == whole).all()


def test_what_has_no_value_has_no_interval():
    found = intervals.auroc(np.zeros(10), np.arange(10), np.arange(10), count=10)
    assert np.isnan([found.value, found.low, found.high]).all()
    assert found.defined == 0
    rare = np.eye(1, 30)[0]  # one positive: a third of the resamples lack it
    found = intervals.auroc(rare, np.arange(30.0), np.arange(30), count=600)
    assert found.defined == pytest.approx(1 - np.exp(-1), abs=0.06)


def test_where_resampling_is_blind_a_share_gets_its_wilson_interval_and_an_area_none():
    perfect = intervals.auroc([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], np.arange(4), count=100)
    assert perfect.value == 1
    assert np.isnan([perfect.low, perfect.high]).all()
    share = intervals.interval(1.0, np.ones(100), trials=50)
    assert (share.low, share.high) == pytest.approx(stats.binomtest(50, 50).proportion_ci(method="wilson"))


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 20), (3, 20), (20, 20), (480, 500)])
def test_wilson_equals_scipy(k, n):
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert intervals.wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_of_nothing_is_nan():
    assert np.isnan(intervals.wilson([0, 0], [0, 0])).all()


@pytest.mark.parametrize(("groups", "count"), [([], 10), ([1, 2], 0)])
def test_nothing_to_draw_is_an_error(groups, count):
    with pytest.raises(WetreadError, match="bootstrap"):
        next(intervals.resamples(groups, count))

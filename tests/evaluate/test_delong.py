import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from wetread.errors import WetreadError
from wetread.evaluate import delong, intervals, metrics

# Albumin, total protein, K-G score and benefit of surgery in 43 patients: the example of DeLong et al. 1988, as the
# SAS/STAT manual prints it (PROC LOGISTIC, "Comparing Receiver Operating Characteristic Curves") with its results.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""

# Few distinct scores, so that ties are the rule.
CASES = st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 5)), min_size=5, max_size=40).filter(
    lambda rows: 2 <= sum(y for y, *_ in rows) <= len(rows) - 2
)


def brute(labels, scores):
    """Areas and covariance by all pairs, equations 3 to 6 of DeLong et al. 1988."""
    wins = np.stack([np.subtract.outer(s[labels == 1], s[labels == 0]) for s in scores])
    kernel = (wins > 0) + 0.5 * (wins == 0)
    area, n1, n0 = kernel.mean(axis=(1, 2)), kernel.shape[1], kernel.shape[2]
    v10, v01 = kernel.mean(axis=2) - area[:, None], kernel.mean(axis=1) - area[:, None]
    return area, v10 @ v10.T / (n1 - 1) / n1 + v01 @ v01.T / (n0 - 1) / n0


def draw(seed, images=300):
    rng = np.random.default_rng(seed)
    labels = (rng.random(images) < 0.3).astype(float)
    base = rng.normal(labels, 1)
    return labels, np.round(np.stack([base, base + rng.normal(0, 0.5, images), rng.normal(labels, 1)]), 1)


def test_areas_and_errors_of_the_published_example():
    table = np.array(OVARIAN.split(), dtype=float).reshape(43, 4)
    found = delong.areas(table[:, 3], np.stack([10 - table[:, 2], table[:, 1]]))
    assert found.value == pytest.approx([0.7258, 0.6478], abs=5e-5)
    assert np.sqrt(np.diag(found.covariance)) == pytest.approx([0.1028, 0.1000], abs=5e-5)


def test_covariance_equals_that_of_all_pairs():
    labels, scores = draw(0)
    found = delong.areas(labels, scores)
    area, covariance = brute(labels, scores)
    assert found.value == pytest.approx([roc_auc_score(labels, s) for s in scores])
    assert found.value == pytest.approx(area)
    assert found.covariance == pytest.approx(covariance, rel=1e-9)


@given(CASES)
def test_covariance_equals_that_of_all_pairs_whatever_the_ties(rows):
    labels, *scores = np.array(rows, dtype=float).T
    found = delong.areas(labels, scores)
    area, covariance = brute(labels, np.array(scores))
    assert found.value == pytest.approx(area)
    assert found.covariance == pytest.approx(covariance, abs=1e-12)


def test_intervals_and_differences_are_those_of_the_normal_distribution():
    labels, scores = draw(1)
    area, covariance = brute(labels, scores)
    found = delong.auroc(labels, scores[0])
    assert (found.low, found.high) == pytest.approx(norm(area[0], np.sqrt(covariance[0, 0])).interval(0.95))
    pair = delong.difference(labels, scores[0], scores[1])
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert pair.value == pytest.approx(area[0] - area[1])
    assert (pair.low, pair.high) == pytest.approx(norm(pair.value, error).interval(0.95))
    assert pair.p == pytest.approx(2 * norm.sf(abs(pair.value) / error))


def test_paired_scores_are_compared_more_sharply_than_apart():
    labels, scores = draw(2)
    found = delong.areas(labels, scores)
    noisy, other = delong.contrast(found, 0, 1), delong.contrast(found, 0, 2)
    assert noisy.high - noisy.low < 0.7 * (other.high - other.low)


def test_the_bootstrap_over_images_agrees():
    labels, scores = draw(3, 600)
    boot = intervals.difference(metrics.Counts.auroc, labels, *scores[:2], np.arange(600), count=1000)
    pair = delong.difference(labels, *scores[:2])
    assert (boot.high - boot.low) == pytest.approx(pair.high - pair.low, rel=0.15)


def test_a_true_null_hypothesis_is_rejected_as_often_as_it_should_be():
    """Two equally noisy copies of one signal: p below 5 % in about one draw of twenty."""
    rejected = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = (rng.random(150) < 0.4).astype(float)
        signal = rng.normal(labels, 1)
        first, second = signal + rng.normal(0, 0.7, (2, 150))
        rejected += delong.difference(labels, first, second).p < 0.05
    assert rejected <= 21  # 10 expected; more has a chance below 0.1 %
    assert rejected >= 2


def test_what_has_no_variance_has_no_limits():
    perfect = delong.auroc([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    assert perfect.value == 1
    assert np.isnan([perfect.low, perfect.high]).all()
    single = delong.auroc([0, 0, 1], [0.1, 0.4, 0.3])
    assert single.value == 0.5
    assert np.isnan([single.low, single.high]).all()
    for labels in (np.zeros(4), np.ones(4), np.full(4, np.nan)):
        none = delong.difference(labels, np.arange(4.0), np.arange(4.0))
        assert np.isnan([none.value, none.low, none.high, none.p]).all()
        assert np.isnan(delong.auroc(labels, np.arange(4.0)).value)


def test_the_same_order_is_no_difference():
    labels, scores = draw(4)
    same = delong.difference(labels, scores[0], np.exp(scores[0]))
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    opposite = delong.difference([0, 0, 1, 1], [1.0, 2, 3, 4], [4.0, 3, 2, 1])
    assert opposite.value == 1
    assert np.isnan([opposite.low, opposite.high, opposite.p]).all()


def test_uncertain_and_missing_labels_are_left_out():
    labels, scores = draw(5, 60)
    wider = np.concatenate([labels, [-1, np.nan]])
    padded = np.concatenate([scores, np.full((3, 2), 9.0)], axis=1)
    assert delong.areas(wider, padded).covariance == pytest.approx(delong.areas(labels, scores).covariance)


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([0, 1], [0.1, 0.2], "one row of scores for each model"),
        ([0, 1], np.zeros((0, 2)), "one row of scores for each model"),
        ([0, 1], [[0.1, np.nan]], "row 1 is nan"),
        ([0, 3], [[0.1, 0.2]], "3 is no label"),
    ],
)
def test_bad_input_is_named(labels, scores, words):
    with pytest.raises(WetreadError, match=words):
        delong.areas(labels, scores)

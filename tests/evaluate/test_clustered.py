import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control
from sklearn.metrics import roc_auc_score

from wetread.evaluate import clustered, delong, intervals
from wetread.evaluate.metrics import Ranking


def scored(images=400, patients=150, seed=0):
    """Labels, scores and patients whose images resemble each other."""
    rng = np.random.default_rng(seed)
    patient = np.sort(rng.integers(0, patients, images))
    patient = np.unique(patient, return_inverse=True)[1]
    mood = rng.normal(0, 1, patients)[patient]
    positive = rng.random(images) < 0.4
    return positive, positive + mood + rng.normal(0, 0.7, images), patient


def test_area_is_scikit_learn_s_on_the_chosen_images_only():
    positive, score, patient = scored()
    chosen = np.arange(400) % 3 != 0
    found = clustered.area(positive, score, chosen, patient)
    assert found.value == pytest.approx(roc_auc_score(positive[chosen], score[chosen]))
    assert (found.influence[~chosen] == 0).all()
    assert found.influence.sum() == pytest.approx(0, abs=1e-12)


def test_with_one_image_a_patient_the_error_is_delong_s():
    positive, score, _ = scored()
    found = clustered.area(positive, score, np.ones(400, bool), np.arange(400))
    variance = delong.areas(positive.astype(float), score[None]).covariance[0, 0]
    assert clustered.standard_error(found.influence, np.arange(400)) == pytest.approx(np.sqrt(variance), rel=5e-3)


def test_with_clusters_the_error_is_that_of_the_bootstrap_over_patients():
    positive, score, patient = scored()
    chosen = np.ones(400, bool)
    ranking = Ranking(positive.astype(float), score)
    _, sample = intervals.bootstrap(lambda w: ranking.counts(w).auroc(), patient, count=3000)
    area = clustered.area(positive, score, chosen, patient)
    assert clustered.standard_error(area.influence, patient) == pytest.approx(sample.std(), rel=0.06)
    naive = clustered.standard_error(area.influence, np.arange(400))
    assert naive < 0.95 * sample.std()  # what the clusters cost
    hit = score > 0.5
    share = clustered.share(hit, positive, patient)
    _, sample = intervals.bootstrap(lambda w: (w @ (hit & positive)) / (w @ positive), patient, count=3000)
    assert clustered.standard_error(share.influence, patient) == pytest.approx(sample.std(), rel=0.06)


def test_a_difference_within_patients_counts_what_they_share():
    positive, score, patient = scored()
    first = np.arange(400) % 2 == 0
    one, other = (clustered.area(positive, score, rows, patient) for rows in (first, ~first))
    rankings = [Ranking(np.where(rows, positive, np.nan), score) for rows in (first, ~first)]
    _, sample = intervals.bootstrap(
        lambda w: rankings[0].counts(w).auroc() - rankings[1].counts(w).auroc(), patient, count=3000
    )
    found = clustered.contrast(one, other, patient)
    assert found.value == pytest.approx(one.value - other.value)
    assert (found.high - found.low) / 2 / intervals.Z == pytest.approx(sample.std(), rel=0.07)
    assert clustered.contrast(one, one, patient).value == 0


def test_a_share_of_independent_images_has_wilson_s_interval():
    hit = np.arange(50) < 40
    found = clustered.share(hit, np.ones(50, bool), np.arange(50))
    low, high = intervals.wilson(40, 50)
    assert (found.interval.low, found.interval.high) == pytest.approx((float(low), float(high)), abs=0.004)


def test_where_all_are_right_patients_are_the_trials():
    patient = np.arange(60) // 3
    found = clustered.share(np.ones(60, bool), np.ones(60, bool), patient)
    assert found.interval.low == pytest.approx(float(intervals.wilson(20, 20)[0]))
    assert found.interval.high == 1


def test_two_perfect_groups_of_few_do_not_seem_certain():
    patient = np.arange(20)
    halves = [clustered.share(np.ones(20, bool), rows, patient) for rows in (patient < 10, patient >= 10)]
    found = clustered.contrast(*halves, patient)
    assert found.low < -0.1 < 0.1 < found.high
    assert found.p == 1


def judged(images=120, seed=3):
    """Two judges who are mostly right in the same images."""
    rng = np.random.default_rng(seed)
    easy = rng.random(images)
    return easy < 0.8, (easy < 0.8) ^ (rng.random(images) < 0.06)


def test_two_judges_of_the_same_images_differ_as_bonett_and_price_have_it():
    one, other = judged()
    every, patient = np.ones(one.size, bool), np.arange(one.size)
    found = clustered.paired(one, other, every, patient)
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    n = one.size
    p12, p21 = (only_one + 1) / (n + 2), (only_other + 1) / (n + 2)
    error = np.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    assert found.value == pytest.approx((only_one - only_other) / n)
    assert (found.high - found.low) / 2 / intervals.Z == pytest.approx(error, rel=0.02)
    groups = clustered.contrast(*(clustered.share(hit, every, patient) for hit in (one, other)), patient)
    assert found.high - found.low < 0.7 * (groups.high - groups.low)


def test_the_interval_of_two_judges_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(11)
    held = []
    for _ in range(600):
        drawn = rng.choice(4, 30, p=[0.6, 0.2, 0.1, 0.1])  # both, the one, the other, none
        found = clustered.paired(drawn % 2 == 0, np.isin(drawn, (0, 1)), np.ones(30, bool), np.arange(30))
        held.append(found.low <= -0.1 <= found.high)
    assert 0.93 < np.mean(held) <= 0.99


def test_two_judges_of_patients_with_several_images_vary_as_the_bootstrap_over_patients():
    rng = np.random.default_rng(4)
    patient = np.repeat(np.arange(150), 3)
    hard = np.repeat(rng.random(150), 3)
    one, other = (rng.random((2, 450)) * 0.4 + 0.6 * hard) > np.array([[0.5], [0.55]])
    _, sample = intervals.bootstrap(lambda w: (w @ one - w @ other.astype(float)) / w.sum(-1), patient, count=3000)
    found = clustered.paired(one, other, np.ones(450, bool), patient)
    assert (found.high - found.low) / 2 / intervals.Z == pytest.approx(sample.std(), rel=0.12)


def test_judges_who_agree_on_few_are_not_certain_and_no_images_are_undefined():
    every, patient = np.ones(20, bool), np.arange(20)
    found = clustered.paired(every, every, every, patient)
    assert found.value == 0
    assert found.high == pytest.approx(intervals.Z * np.sqrt(2) / 22)
    assert np.isnan(clustered.paired(every, every, ~every, patient).value)


def test_nothing_to_measure_is_undefined_and_never_a_crash():
    none, patient = np.zeros(5, bool), np.arange(5)
    assert np.isnan(clustered.area(none, np.zeros(5), ~none, patient).value)
    assert np.isnan(clustered.share(none, none, patient).value)
    assert np.isnan(
        clustered.contrast(clustered.share(none, none, patient), clustered.share(none, ~none, patient), patient).p
    )
    assert np.isnan(clustered.area(patient > 2, np.arange(5.0), ~none, patient).interval.low)  # all told apart


P = st.lists(st.floats(0, 1), min_size=1, max_size=20).map(np.array)


@given(P)
def test_benjamini_and_hochberg_as_scipy_has_them(p):
    assert clustered.benjamini_hochberg(p) == pytest.approx(false_discovery_control(p))


@given(P)
def test_holm_lies_between_the_single_test_and_bonferroni_and_keeps_the_order(p):
    adjusted = clustered.holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(p * p.size, 1) + 1e-12).all()
    assert adjusted[p.argmin()] == pytest.approx(min(p.min() * p.size, 1))
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-12).all()
    assert (clustered.benjamini_hochberg(p) <= adjusted + 1e-12).all()


def test_holm_by_hand_and_without_the_tests_that_were_none():
    assert clustered.holm(np.array([0.01, np.nan, 0.04, 0.03])) == pytest.approx(
        [0.03, np.nan, 0.06, 0.06], nan_ok=True
    )

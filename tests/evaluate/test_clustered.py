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

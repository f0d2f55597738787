import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, norm
from sklearn import metrics as sk

from wetread.errors import WetreadError
from wetread.evaluate import metrics

# Few distinct values, so that ties are the rule.
CASES = st.lists(st.tuples(st.sampled_from([0.0, 1.0, -1.0, np.nan]), st.integers(0, 8)), min_size=2, max_size=30).map(
    lambda rows: (np.array([y for y, _ in rows]), np.array([s / 8 for _, s in rows]))
)
THRESHOLD = {
    "sensitivity": lambda y, flag: sk.recall_score(y, flag),
    "specificity": lambda y, flag: sk.recall_score(1 - y, ~flag),
    "ppv": lambda y, flag: sk.precision_score(y, flag),
    "npv": lambda y, flag: sk.precision_score(1 - y, ~flag),
    "f1": sk.f1_score,
    "accuracy": sk.accuracy_score,
    "balanced_accuracy": sk.balanced_accuracy_score,
    "mcc": sk.matthews_corrcoef,
}


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.3).astype(float)
    scores = np.round(1 / (1 + np.exp(-rng.normal(labels, 1))), 2)  # rounding makes ties
    return labels, scores


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (metrics.auroc, sk.roc_auc_score),
        (metrics.average_precision, sk.average_precision_score),
        (metrics.brier, sk.brier_score_loss),
    ],
)
def test_ranking_metrics_equal_scikit_learn(sample, ours, theirs):
    assert ours(*sample) == pytest.approx(theirs(*sample), abs=1e-12)


@pytest.mark.parametrize("name", THRESHOLD)
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.77])
def test_rates_equal_scikit_learn(sample, name, threshold):
    labels, scores = sample
    expected = THRESHOLD[name](labels.astype(int), scores >= threshold)
    assert getattr(metrics, name)(labels, scores, threshold) == pytest.approx(expected, abs=1e-12)


def test_weights_equal_scikit_learn_s_sample_weights(sample):
    labels, scores = sample
    weights = np.random.default_rng(1).integers(0, 4, (3, labels.size)).astype(float)
    counts = metrics.Ranking(labels, scores).counts(weights)
    for row, weight in enumerate(weights):
        assert counts.auroc()[row] == pytest.approx(sk.roc_auc_score(labels, scores, sample_weight=weight))
        expected = sk.average_precision_score(labels, scores, sample_weight=weight)
        assert counts.average_precision()[row] == pytest.approx(expected)
        expected = sk.f1_score(labels, scores >= 0.5, sample_weight=weight)
        assert counts.at(0.5).f1[row] == pytest.approx(expected)


@given(CASES, st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1))
def test_merged_thresholds_change_no_area_precision_rate_or_curve(case, seed, first, second):
    labels, scores = case
    weights = np.random.default_rng(seed).integers(0, 3, (4, labels.size)).astype(float)
    ranking = metrics.Ranking(labels, scores)
    whole, merged = ranking.counts(weights), ranking.merged(first, second).counts(weights)
    assert merged.auroc() == pytest.approx(whole.auroc(), nan_ok=True)
    assert merged.average_precision() == pytest.approx(whole.average_precision(), nan_ok=True)
    for threshold in (first, second):
        assert merged.at(threshold).tp.tolist() == whole.at(threshold).tp.tolist()
        assert merged.at(threshold).fp.tolist() == whole.at(threshold).fp.tolist()
    # What is left out lies on a straight line between what is left.
    for row in range(4):
        for tp in np.unique(whole.tp[row]):
            assert merged.fp[row][merged.tp[row] == tp].max() == whole.fp[row][whole.tp[row] == tp].max()
            assert merged.fp[row][merged.tp[row] == tp].min() == whole.fp[row][whole.tp[row] == tp].min()


def test_merging_leaves_about_two_thresholds_for_each_positive():
    labels = np.zeros(1000)
    labels[[100, 500]] = 1
    assert metrics.Ranking(labels, np.arange(1000.0)).merged().thresholds.size <= 1 + 2 * 2 + 1


def test_curves_equal_scikit_learn(sample):
    fpr, tpr, thresholds = metrics.roc_curve(*sample)
    for ours, theirs in zip((fpr, tpr, thresholds), sk.roc_curve(*sample, drop_intermediate=False), strict=True):
        assert ours == pytest.approx(theirs)
    precision, recall, thresholds = metrics.precision_recall_curve(*sample)
    expected = sk.precision_recall_curve(*sample)
    assert precision == pytest.approx(expected[0][:-1][::-1])  # scikit-learn adds the point (1, 0), lowest first
    assert recall == pytest.approx(expected[1][:-1][::-1])
    assert thresholds == pytest.approx(expected[2][::-1])


def test_auroc_is_the_mann_whitney_statistic(sample):
    labels, scores = sample
    u = mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic
    assert metrics.auroc(labels, scores) == pytest.approx(u / ((labels == 1).sum() * (labels == 0).sum()))


def test_auroc_of_two_normal_distributions_has_its_closed_form():
    quantiles = norm.ppf((np.arange(2000) + 0.5) / 2000)
    labels = np.repeat([0.0, 1.0], 2000)
    scores = np.concatenate([quantiles, 1.5 + 0.7 * quantiles])
    assert metrics.auroc(labels, scores) == pytest.approx(norm.cdf(1.5 / np.hypot(1, 0.7)), abs=2e-4)


def test_limiting_scores():
    labels = np.array([0.0, 0, 0, 1])
    assert metrics.auroc(labels, labels) == 1
    assert metrics.auroc(labels, 1 - labels) == 0
    assert metrics.auroc(labels, np.full(4, 0.3)) == 0.5
    assert metrics.average_precision(labels, np.full(4, 0.3)) == 0.25
    assert metrics.brier(labels, labels) == 0
    assert metrics.brier(labels, np.full(4, 0.25)) == pytest.approx(0.25 * 0.75)
    assert metrics.ece(labels, np.full(4, 0.25)) == 0
    assert metrics.ece(labels, np.full(4, 0.75)) == 0.5


def test_a_score_at_the_threshold_is_flagged():
    table = metrics.confusion([1, 0, 1, 0], [0.5, 0.5, 0.4, 0.4], 0.5)
    assert [float(v[0]) for v in (table.tp, table.fp, table.fn, table.tn)] == [1, 1, 1, 1]
    assert metrics.sensitivity([1, 0], [0.5, 0.4], np.nextafter(0.5, 1)) == 0


def test_what_has_no_answer_is_nan():
    none, all_ = np.zeros(3), np.ones(3)
    scores = np.array([0.1, 0.5, 0.9])
    for labels in (none, all_, np.full(3, np.nan), np.full(3, -1.0), np.zeros(0)):
        assert np.isnan(metrics.auroc(labels, scores[: labels.size]))
    assert np.isnan(metrics.average_precision(none, scores))
    assert metrics.average_precision(all_, scores) == 1
    assert np.isnan(metrics.sensitivity(none, scores, 0.5))
    assert np.isnan(metrics.f1(none, scores, 0.5))
    assert metrics.f1(all_, scores, 0.95) == 0
    assert np.isnan(metrics.specificity(all_, scores, 0.5))
    assert np.isnan(metrics.ppv(all_, scores, 0.95))
    assert np.isnan([metrics.mcc(none, scores, 0.5), metrics.balanced_accuracy(all_, scores, 0.5)]).all()
    assert metrics.mcc([0, 1, 1], scores, 0.05) == 0
    assert np.isnan(metrics.npv(all_, scores, 0.05))
    unknown = np.full(3, np.nan)
    assert np.isnan([f(unknown, scores) for f in (metrics.brier, metrics.ece)]).all()
    assert np.isnan(metrics.accuracy(unknown, scores, 0.5))
    assert np.isnan(metrics.mean_auroc(np.zeros((3, 2)), np.zeros((3, 2))))


@given(CASES, st.floats(0, 1))
def test_masked_labels_count_as_rows_that_are_not_there(case, threshold):
    labels, scores = case
    known = np.isin(labels, (0, 1))
    # A score that does not count may be anything.
    scores = np.where(known, scores, np.nan)
    for metric in (metrics.auroc, metrics.average_precision, metrics.brier, metrics.ece):
        assert metric(labels, scores) == pytest.approx(metric(labels[known], scores[known]), nan_ok=True)
    for name in THRESHOLD:
        rate = getattr(metrics, name)
        assert rate(labels, scores, threshold) == pytest.approx(
            rate(labels[known], scores[known], threshold), nan_ok=True
        )


@given(CASES)
def test_ranking_metrics_ignore_monotone_transforms_and_mirror(case):
    labels, scores = case
    for metric in (metrics.auroc, metrics.average_precision):
        assert metric(labels, np.exp(3 * scores) - 7) == pytest.approx(metric(labels, scores), nan_ok=True)
    swapped = np.where(labels >= 0, 1 - labels, labels)
    assert metrics.auroc(swapped, -scores) == pytest.approx(metrics.auroc(labels, scores), nan_ok=True)
    assert metrics.auroc(labels, -scores) == pytest.approx(1 - metrics.auroc(labels, scores), nan_ok=True)


@given(CASES, st.integers(1, 20))
def test_calibration_error_lies_between_overall_gap_and_mean_gap(case, bins):
    labels, probability = case
    known = np.isin(labels, (0, 1))
    if known.any():
        gap = probability[known] - labels[known]
        for equal_mass in (False, True):
            error = metrics.ece(labels, probability, bins=bins, equal_mass=equal_mass)
            assert abs(gap.mean()) - 1e-12 <= error <= np.abs(gap).mean() + 1e-12


def test_equal_mass_bins_hold_equally_many():
    probability = np.random.default_rng(0).random(1000) ** 6
    assert np.bincount(metrics.bin_index(probability, 10, equal_mass=True)).tolist() == [100] * 10
    assert np.bincount(metrics.bin_index(np.array([0, 0.1, 0.95, 1.0]), 10)).tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 2]


@pytest.mark.train
@pytest.mark.parametrize("bins", [5, 15])
def test_calibration_error_equals_torchmetrics(sample, bins):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    labels, scores = sample
    expected = functional.binary_calibration_error(
        torch.tensor(scores), torch.tensor(labels).long(), n_bins=bins, norm="l1"
    )
    assert metrics.ece(labels, scores, bins=bins) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [([1, 0, -1], ""), ([1, 1, np.nan], "never absent"), ([0, 0], "never present"), ([-1, np.nan], "no certain label")],
)
def test_an_undefined_area_has_its_reason(labels, reason):
    assert metrics.why_undefined(labels) == reason
    assert np.isnan(metrics.auroc(labels, np.zeros(len(labels)))) == bool(reason)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.auroc([1, 2], [0.1, 0.2]), "labels: 2 is no label"),
        (lambda: metrics.auroc([1, 0], [0.1]), "one label and one score"),
        (lambda: metrics.auroc([[1, 0]], [[0.1, 0.2]]), "one label and one score"),
        (lambda: metrics.auroc([-1, 1, 0], [0.1, np.nan, 0.2]), "scores: row 1 is nan"),
        (lambda: metrics.auroc([1, 0], [np.inf, 0]), "scores: row 0 is inf"),
        (lambda: metrics.brier([1, 0], [0.1, 1.5]), "row 1 is 1.5; expected a probability"),
        (lambda: metrics.ece([1, 0], [-0.1, 0.5]), "row 0 is -0.1"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(WetreadError, match=words):
        call()

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from wetread.errors import WetreadError
from wetread.evaluate import calibration, metrics
from wetread.findings import CHEXPERT, COVID, PNEUMONIA


def draw(images, slope, intercept, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 2, images)
    return x, (rng.random(images) < expit(slope * x + intercept)).astype(float)


def test_platt_finds_the_slope_and_intercept_that_made_the_labels():
    x, y = draw(40000, 0.6, -1.3)
    assert calibration.fit_platt(x, y) == pytest.approx((0.6, -1.3), abs=0.05)


def test_platt_minimises_its_loss():
    """The same minimum as a general optimiser finds on Platt's loss, written out anew."""
    x, y = draw(80, 1.5, 0.5)
    n1, n0 = y.sum(), (1 - y).sum()
    target = np.where(y == 1, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))

    def loss(at):
        p = expit(at[0] * x + at[1])
        return -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum() + 0.5 * (at[0] - 1) ** 2

    assert calibration.fit_platt(x, y) == pytest.approx(minimize(loss, [1, 0], tol=1e-12).x, abs=1e-4)


def test_platt_of_many_images_is_logistic_regression():
    x, y = draw(20000, 0.8, 1.0)
    fitted = LogisticRegression(C=np.inf, tol=1e-8).fit(x[:, None], y)
    expected = (fitted.coef_[0, 0], fitted.intercept_[0])
    assert calibration.fit_platt(x, y) == pytest.approx(expected, abs=2e-3)


@given(
    st.lists(st.tuples(st.floats(-40, 40), st.booleans()), min_size=1, max_size=60),
    st.integers(0, 30),
)
def test_platt_keeps_the_order_and_mirrors(rows, extra):
    x = np.array([v for v, _ in rows] + [0.0] * extra)
    y = np.array([float(b) for _, b in rows] + [float(i % 2) for i in range(extra)])
    slope, intercept = calibration.fit_platt(x, y)
    assert slope >= calibration.MIN_SLOPE
    assert np.isfinite(intercept)
    mirrored = calibration.fit_platt(-x, 1 - y)
    assert mirrored == pytest.approx((slope, -intercept), abs=1e-3, rel=1e-3)


def test_platt_leaves_small_sets_and_uncertain_labels_alone():
    x, y = draw(200, 2, 0)
    few = np.where(np.cumsum(y) <= calibration.MIN_IMAGES - 1, y, 0)
    assert calibration.fit_platt(x, few) == (1.0, 0.0)
    assert calibration.fit_platt(x, 1 - few) == (1.0, 0.0)
    unknown = np.concatenate([y, [-1, np.nan]])
    assert calibration.fit_platt(np.concatenate([x, [50, np.nan]]), unknown) == calibration.fit_platt(x, y)


def test_scores_that_say_nothing_or_the_opposite_become_the_frequency():
    x, y = draw(2000, -1, -1)
    slope, intercept = calibration.fit_platt(x, y)
    assert slope == calibration.MIN_SLOPE
    assert expit(slope * x + intercept).mean() == pytest.approx(y.mean(), abs=0.01)


def test_separable_scores_stay_finite():
    x = np.concatenate([np.full(50, -25.0), np.full(50, 25.0)])
    slope, intercept = calibration.fit_platt(x, np.repeat([0.0, 1.0], 50))
    p = expit(slope * x + intercept)
    assert 0.9 < p.max() < 1  # Platt's targets: 51/52, not 1
    assert intercept == pytest.approx(0, abs=1e-6)


def test_log_odds_and_back():
    p = np.array([0, 1e-9, 0.2, 0.5, 1 - 1e-9, 1])
    assert calibration.sigmoid(calibration.logit(p)) == pytest.approx(p, abs=1e-12)
    assert calibration.logit([0, 1]).tolist() == [-30, 30]
    assert calibration.sigmoid([-1000, 1000]).tolist() == [0, 1]


def test_two_exclusive_findings_share_slope_and_sum_to_one():
    rng = np.random.default_rng(0)
    sick = (rng.random(600) < 0.7).astype(float)
    p = expit(3 * rng.normal(2 * sick, 1.5))
    fitted = calibration.fit(PNEUMONIA, np.stack([1 - p, p], 1), np.stack([1 - sick, sick], 1))
    assert fitted.slope[0] == fitted.slope[1]
    assert fitted.intercept[0] == -fitted.intercept[1]
    after = fitted.apply(np.stack([1 - p, p], 1))
    assert after.sum(axis=1) == pytest.approx(np.ones(600), abs=1e-12)
    assert after[:, 1] == pytest.approx(expit(fitted.slope[1] * calibration.logit(p) + fitted.intercept[1]))
    assert metrics.brier(sick, after[:, 1]) < metrics.brier(sick, p) - 0.005


def test_four_exclusive_findings_sum_to_one_and_improve():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 800)
    logits = rng.normal(0, 1, (800, 4)) + 1.5 * np.eye(4)[truth]
    sharp = np.exp(4 * logits) / np.exp(4 * logits).sum(axis=1, keepdims=True)
    after = calibration.fit(COVID, sharp, np.eye(4)[truth]).apply(sharp)
    assert after.sum(axis=1) == pytest.approx(np.ones(800))
    loss = [-np.log(np.maximum(p[np.arange(800), truth], 1e-12)).mean() for p in (sharp, after)]
    assert loss[1] < loss[0] - 0.3


def test_a_tree_holds_after_calibration_and_order_within_a_root_stays():
    rng = np.random.default_rng(0)
    p = rng.random((300, 14))
    labels = (rng.random((300, 14)) < p).astype(float)
    labels[:, 3] = np.nan  # Lung Opacity cannot be calibrated
    fitted = calibration.fit(CHEXPERT, p, labels)
    assert (fitted.slope[3], fitted.intercept[3]) == (1, 0)
    after = fitted.apply(p)
    for child, parent in enumerate(CHEXPERT.parent_index()):
        if parent >= 0:
            assert (after[:, child] <= after[:, parent]).all()
        else:
            assert (np.argsort(after[:, child]) == np.argsort(p[:, child])).all()
    path = [CHEXPERT.findings.index(f) for f in ("Lung Opacity", "Consolidation", "Pneumonia")]
    alone = calibration.sigmoid(fitted.slope * calibration.logit(p) + fitted.intercept)
    assert after[:, path[-1]] == pytest.approx(alone[:, path].min(axis=1))


def test_reliability_equals_scikit_learn_and_has_wilson_bars():
    x, y = draw(1000, 1, 0)
    found = calibration.reliability(y, expit(x))
    observed, predicted = calibration_curve(y, expit(x), n_bins=10, strategy="quantile")
    assert found.observed == pytest.approx(observed)
    assert found.predicted == pytest.approx(predicted)
    assert found.count.tolist() == [100] * 10
    assert ((found.low <= found.observed) & (found.observed <= found.high)).all()
    assert calibration.reliability(y, np.full(1000, 0.3)).count.tolist() == [1000]
    assert calibration.reliability([np.nan], [0.5]).count.size == 0


def test_wrong_shapes_are_named():
    with pytest.raises(WetreadError, match=r"task pneumonia needs \[images, 2\]"):
        calibration.fit(PNEUMONIA, np.zeros((5, 3)), np.zeros((5, 3)))

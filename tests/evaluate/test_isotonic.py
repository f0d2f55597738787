import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from wetread.errors import WetreadError
from wetread.evaluate import calibration, isotonic, metrics
from wetread.findings import CHEXPERT, COVID, PNEUMONIA

MANY = calibration.MIN_IMAGES


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60))
def test_the_curve_equals_scikit_learn_s(rows):
    rows = [*rows, *[(True, 6)] * MANY, *[(False, 5)] * MANY]
    labels, scores = np.array(rows, dtype=float).T
    found = isotonic.fit_steps(labels, scores)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, labels)
    at = np.linspace(-1, 14, 151)
    assert found(at) == pytest.approx(theirs.predict(at), abs=1e-9)


def draw(images, seed=0):
    """Chances, and labels whose frequency is a step that no slope and intercept can follow."""
    rng = np.random.default_rng(seed)
    p = rng.random(images)
    return p, (rng.random(images) < np.where(p < 0.5, 0.1, 0.6)).astype(float)


def test_steps_follow_what_platt_scaling_cannot():
    p, labels = draw(4000)
    new, truth = draw(4000, 1)
    curve = isotonic.fit_steps(labels, p)
    slope, intercept = calibration.fit_platt(calibration.logit(p), labels)
    platt = calibration.sigmoid(slope * calibration.logit(new) + intercept)
    assert metrics.ece(truth, curve(new)) < 0.5 * metrics.ece(truth, platt)
    assert metrics.brier(truth, curve(new)) < metrics.brier(truth, platt)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=50))
def test_the_curve_is_monotone_and_keeps_the_mean(rows):
    labels = np.array([float(y) for y, _ in rows] + [0.0, 1.0] * MANY)
    p = np.array([s for _, s in rows] + [0.3, 0.6] * MANY)
    curve = isotonic.fit_steps(labels, p)
    after = curve(np.sort(p))
    assert (np.diff(after) >= -1e-12).all()
    assert curve(p).mean() == pytest.approx(labels.mean())  # least squares over monotone curves keeps it
    assert (np.diff(curve.score) > 0).all()


def test_few_images_and_uncertain_labels_are_left_alone():
    p, labels = draw(300)
    few = np.where(np.cumsum(labels) < MANY, labels, 0)
    assert isotonic.fit_steps(few, p) is None
    assert isotonic.fit_steps(1 - few, p) is None
    unknown = isotonic.fit_steps([*labels, -1, np.nan], [*p, 0.5, np.nan])
    assert unknown(p).tolist() == isotonic.fit_steps(labels, p)(p).tolist()


def test_a_task_settles_afterwards():
    rng = np.random.default_rng(0)
    p = rng.random((400, 14))
    labels = (rng.random((400, 14)) < p).astype(float)
    labels[:, 3] = np.nan  # Lung Opacity stays as it is
    fitted = isotonic.fit(CHEXPERT, p, labels)
    assert fitted.steps[3] is None
    after = fitted.apply(p)
    for child, parent in enumerate(CHEXPERT.parent_index()):
        assert parent < 0 or (after[:, child] <= after[:, parent]).all()
    assert after[:, 3] == pytest.approx(p[:, 3])
    four = rng.dirichlet(np.ones(4), 400)
    truth = np.array([rng.choice(4, p=row) for row in four])
    assert isotonic.fit(COVID, four, np.eye(4)[truth]).apply(four).sum(axis=1) == pytest.approx(np.ones(400))


def test_two_exclusive_findings_are_mirror_images():
    p, labels = draw(500)
    fitted = isotonic.fit(PNEUMONIA, np.stack([1 - p, p], 1), np.stack([1 - labels, labels], 1))
    after = fitted.apply(np.stack([1 - p, p], 1))
    assert after.sum(axis=1) == pytest.approx(np.ones(500))
    assert after[:, 1] == pytest.approx(isotonic.fit_steps(labels, p)(p))


def test_where_every_class_is_ruled_out_all_are_as_likely():
    assert calibration.settle(COVID, np.zeros((2, 4))).tolist() == [[0.25] * 4] * 2


def test_its_steps_lose_the_order_that_platt_scaling_keeps():
    """Why packages do not use it: most probabilities coincide."""
    rng = np.random.default_rng(0)
    labels = (rng.random(1000) < 0.3).astype(float)
    p = expit(rng.normal(2 * labels - 1, 1))
    assert len(np.unique(np.round(isotonic.fit_steps(labels, p)(p), 9))) < 200 < len(np.unique(p))


def test_wrong_shapes_are_named():
    with pytest.raises(WetreadError, match=r"task pneumonia needs \[images, 2\]"):
        isotonic.fit(PNEUMONIA, np.zeros((5, 3)), np.zeros((5, 3)))

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binom, binomtest

from wetread.errors import WetreadError
from wetread.evaluate import conformal
from wetread.findings import COVID, PNEUMONIA, Task

ONE, TWO = Task("one", ("Edema",)), Task("two", ("Edema", "Fracture"))
ALPHAS = st.sampled_from([0.05, 0.1, 0.2, 0.5])


def draw(images, seed, width=1):
    rng = np.random.default_rng(seed)
    labels = (rng.random((images, width)) < 0.3).astype(float)
    return expit(rng.normal(1.5 * labels - 1, 1)), labels


@given(st.lists(st.floats(0.001, 0.999), min_size=2, max_size=40, unique=True), st.booleans(), ALPHAS)
def test_each_image_left_out_in_turn_is_covered_as_often_as_promised(values, present, alpha):
    """Exchangeability, without chance: of n + 1 images of a class, at least ceil((n + 1)(1 - alpha)) are covered."""
    p, label = np.array(values)[:, None], np.full((len(values), 1), float(present))
    covered = 0
    for out in range(len(p)):
        rest = np.arange(len(p)) != out
        fitted = conformal.fit(ONE, p[rest], label[rest], alpha=alpha)
        covered += fitted.sets(p[[out]])[0, 0, int(present)]
    promised = int(np.ceil(len(p) * (1 - alpha) - 1e-9))
    assert covered >= promised
    gaps = np.diff(np.sort(values))
    if gaps.min() > 1e-9:  # without ties not one more is covered
        assert covered == promised


@given(st.lists(st.tuples(st.integers(0, 10), st.booleans()), min_size=2, max_size=30), ALPHAS)
def test_over_both_classes_together_the_promise_holds_too(rows, alpha):
    p = np.array([[v / 10] for v, _ in rows])
    labels = np.array([[float(y)] for _, y in rows])
    covered = 0
    for out in range(len(p)):
        rest = np.arange(len(p)) != out
        fitted = conformal.fit(ONE, p[rest], labels[rest], alpha=alpha, by_class=False)
        covered += fitted.sets(p[[out]])[0, 0, int(labels[out, 0])]
    assert covered >= np.ceil(len(p) * (1 - alpha) - 1e-9)


def test_coverage_on_new_images_follows_the_beta_binomial_law():
    """Mean coverage over draws of the fit is ceil((n + 1)(1 - alpha)) / (n + 1), in each class."""
    hits, trials = np.zeros(2), np.zeros(2)
    for seed in range(300):
        p, labels = draw(120, seed)
        fitted = conformal.fit(ONE, p, labels, alpha=0.1)
        new, truth = draw(1, 10_000 + seed)  # one image each: draws are independent
        y = int(truth[0, 0])
        hits[y] += fitted.sets(new)[0, 0, y]
        trials[y] += 1
    for k, n in zip(hits, trials, strict=True):
        assert binom.cdf(k, n, 0.9) > 0.001  # at least 90 %
        assert binom.sf(k - 1, n, 0.95) > 0.001  # and not far above


def test_a_rare_finding_keeps_its_promise_only_by_class():
    rng = np.random.default_rng(0)
    labels = (rng.random((4000, 1)) < 0.05).astype(float)
    p = expit(rng.normal(1.0 * labels - 3, 1))
    fit, new = slice(0, 2000), slice(2000, 4000)
    by_class = conformal.coverage(conformal.fit(ONE, p[fit], labels[fit]), p[new], labels[new])[0]
    pooled = conformal.coverage(conformal.fit(ONE, p[fit], labels[fit], by_class=False), p[new], labels[new])[0]
    assert by_class.present.high > 0.9
    assert by_class.absent.high > 0.9
    assert pooled.present.value < 0.5  # nine of ten answers are right, and the findings are among the tenth


def test_an_exclusive_task_has_sets_of_classes():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 4000)
    logits = rng.normal(0, 1, (4000, 4)) + 1.5 * np.eye(4)[truth]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.eye(4)[truth]
    fit, new = slice(0, 2000), slice(2000, 4000)
    for by_class in (True, False):
        fitted = conformal.fit(COVID, p[fit], labels[fit], alpha=0.1, by_class=by_class)
        choice = conformal.exclusive_coverage(fitted, p[new], labels[new])
        held, size = choice.held, choice.size
        assert 0.87 < held.value < 0.93  # three standard errors, of fit and measurement together
        assert held.low < held.value < held.high
        assert 1 < size < 3
        chosen = fitted.sets(p[new])[:, :, 1]
        assert held.value == pytest.approx(chosen[np.arange(2000), truth[new]].mean())
        assert size == pytest.approx(chosen.sum(axis=1).mean())
    assert len(set(fitted.present)) == 1


def test_a_useless_model_pays_with_sets_that_decide_nothing():
    rng = np.random.default_rng(0)
    labels = (rng.random((2000, 1)) < 0.5).astype(float)
    noise = rng.random((2000, 1))
    useless = conformal.coverage(conformal.fit(ONE, noise[:1000], labels[:1000]), noise[1000:], labels[1000:])[0]
    sharp = expit(8 * labels - 4 + rng.normal(0, 1, (2000, 1)))
    good = conformal.coverage(conformal.fit(ONE, sharp[:1000], labels[:1000]), sharp[1000:], labels[1000:])[0]
    assert useless.undecided > 0.7
    assert good.decided > 0.85
    assert good.undecided == 0


def test_shares_and_limits_are_counted_by_hand():
    fitted = conformal.Conformal(ONE, 0.1, np.array([0.4]), np.array([0.6]))
    p = np.array([[0.1], [0.3], [0.5], [0.5], [0.9], [0.2], [0.7]])
    labels = np.array([[0.0], [1], [1], [0], [1], [np.nan], [-1]])
    found = conformal.coverage(fitted, p, labels, groups=[1, 2, 2, 3, 3, 4, 5])[0]
    assert found.present.value == pytest.approx(2 / 3)
    assert found.absent.value == 1
    assert (found.decided, found.undecided, found.empty) == pytest.approx((3 / 5, 2 / 5, 0))
    wanted = binomtest(2, 2).proportion_ci(method="wilson")  # two patients without the finding
    assert (found.absent.low, found.absent.high) == pytest.approx((wanted.low, wanted.high))
    empty = conformal.Conformal(ONE, 0.1, np.array([0.8]), np.array([0.2]))
    assert conformal.coverage(empty, p, labels)[0].empty == pytest.approx(3 / 5)


def test_too_few_images_rule_nothing_out():
    p, labels = draw(60, 0)
    labels[:] = 0
    labels[:8] = 1  # fewer than 1 / 0.1 - 1 = 9
    fitted = conformal.fit(ONE, p, labels, alpha=0.1)
    assert fitted.present[0] == 0
    assert fitted.sets(np.array([[0.0], [1.0]]))[:, 0, 1].all()
    none = conformal.fit(ONE, p, np.full((60, 1), np.nan))
    assert (none.present[0], none.absent[0]) == (0, 1)
    found = conformal.coverage(none, p, np.full((60, 1), np.nan))[0]
    assert np.isnan([found.present.value, found.absent.value, found.decided]).all()


def test_sets_survive_the_way_through_json():
    p, labels = draw(200, 1, 2)
    fitted = conformal.fit(TWO, p, labels, alpha=0.2)
    again = conformal.Conformal.from_dict(TWO, json.loads(json.dumps(fitted.to_dict())))
    assert again.alpha == 0.2
    assert (again.sets(p) == fitted.sets(p)).all()


def test_a_smaller_error_rate_never_gives_smaller_sets():
    p, labels = draw(300, 2, 2)
    wide, narrow = (conformal.fit(TWO, p, labels, alpha=a).sets(p) for a in (0.05, 0.3))
    assert (wide >= narrow).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, y: conformal.fit(ONE, p, y, alpha=1), "alpha: 1 is no error rate"),
        (lambda p, y: conformal.fit(PNEUMONIA, p, y), r"task pneumonia needs \[images, 2\]"),
        (lambda p, y: conformal.fit(ONE, p[1:], y), "one row of both"),
        (lambda p, y: conformal.fit(ONE, p + 2, y), "expected a probability"),
        (lambda p, y: conformal.coverage(conformal.fit(ONE, p, y), p, y, groups=[1]), "one row for each image"),
        (lambda p, y: conformal.Conformal.from_dict(ONE, {"alpha": 0.1, "findings": {}}), "'Edema' is missing"),
        (lambda p, y: conformal.Conformal.from_dict(ONE, {"findings": {"Edema": 3}}), "no number"),
        (
            lambda p, y: conformal.Conformal.from_dict(
                ONE, {"alpha": 0.1, "findings": {"Edema": {"present": 2, "absent": 0}}}
            ),
            "not between 0 and 1",
        ),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(WetreadError, match=words):
        call(*draw(20, 0))

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import binomtest, norm

from wetread.errors import WetreadError
from wetread.evaluate import metrics, thresholds


def draw(positives, negatives, distance, seed=0):
    """Labels and chances: normal scores a distance apart, the middle between them at one half."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([1.0, 0.0], [positives, negatives])
    return labels, expit(rng.normal(distance * labels - distance / 2, 1))


def proved(misses, positives):
    return binomtest(positives - misses, positives, alternative="greater").proportion_ci(0.95, method="exact").low


@pytest.mark.parametrize("positives", [5, 148, 149, 235, 236, 800])
@pytest.mark.parametrize("sensitivity", [0.9, 0.98])
def test_allowed_misses_are_the_most_that_clopper_and_pearson_allow(positives, sensitivity):
    allowed = thresholds.allowed_misses(positives, sensitivity)
    assert thresholds.proved_sensitivity(allowed, positives) == pytest.approx(proved(allowed, positives), abs=1e-9)
    assert proved(allowed + 1, positives) < sensitivity
    assert proved(allowed, positives) >= sensitivity or allowed == 0
    assert thresholds.proved_sensitivity(positives, positives) == 0


@pytest.mark.parametrize("target", [0.8, 0.9, 0.98])
def test_a_sensitivity_is_proved_by_its_lower_limit_and_no_more_is_given_away(target):
    labels, p = draw(400, 600, 3)
    found = thresholds.for_sensitivity(labels, p, target)
    missed = int((p[labels == 1] < found.value).sum())
    assert found.sensitivity == 1 - missed / 400 == metrics.sensitivity(labels, p, found.value)
    assert found.specificity == metrics.specificity(labels, p, found.value)
    assert found.proved == pytest.approx(proved(missed, 400), abs=1e-9)
    assert found.proved >= target > proved(missed + 1, 400)


def test_what_few_positives_cannot_prove_misses_none_and_says_what_is_shown():
    labels, p = draw(20, 200, 3)
    found = thresholds.for_sensitivity(labels, p, 0.98)
    assert found.sensitivity == 1
    assert found.proved == pytest.approx(0.05 ** (1 / 20))


def test_youden_comes_near_its_closed_form():
    at = [logit(thresholds.youden(*draw(1000, 1000, 2, seed)).value) for seed in range(20)]
    assert np.mean(at) == pytest.approx(0, abs=0.1)  # two normal curves of one width cross half-way


@pytest.mark.parametrize("cost", [0.2, 1, 5])
@pytest.mark.parametrize("prevalence", [None, 0.05])
def test_costs_move_the_threshold_to_where_errors_cost_least(cost, prevalence):
    """For scores x with densities N(±1, 1) errors cost least where log density ratio = 2x = log((1 - π) / (π cost))."""
    share = 0.5 if prevalence is None else prevalence
    best = np.log((1 - share) / (share * cost)) / 2

    def paid(x):
        return share * cost * norm.cdf(x - 1) + (1 - share) * norm.sf(x + 1)

    spent = [
        paid(logit(thresholds.at_cost(*draw(2000, 2000, 2, seed), cost, prevalence=prevalence).value))
        for seed in range(10)
    ]
    assert np.mean(spent) <= 1.03 * paid(best)
    assert np.mean(spent) < 0.97 * min(paid(0) if abs(best) > 0.5 else 1, share * cost, 1 - share)


def test_calibrated_chances_are_cut_where_the_costs_say():
    rng = np.random.default_rng(0)
    p = rng.random(40_000)
    labels = (rng.random(40_000) < p).astype(float)
    for cost in (0.25, 1, 4, 19):
        assert thresholds.at_cost(labels, p, cost).value == pytest.approx(1 / (1 + cost), abs=0.04)


def test_equal_costs_at_equal_prevalence_are_youden_s_index():
    labels, p = draw(200, 500, 1.5)
    assert thresholds.at_cost(labels, p, 1, prevalence=0.5).value == thresholds.youden(labels, p).value


@given(st.integers(0, 2**32), st.integers(2, 40), st.integers(2, 40), st.floats(0.01, 100))
def test_dearer_misses_never_raise_the_sensitivity_that_is_given_up(seed, positives, negatives, cost):
    labels, p = draw(positives, negatives, 1, seed)
    found = thresholds.at_cost(labels, p, cost)
    assert 0 < found.value < 1
    assert 0 < (p >= found.value).sum() < p.size or p.size == 2  # neither nothing nor everything
    assert 0 <= found.proved <= found.sensitivity


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: thresholds.for_sensitivity([1, 0], [0.6, 0.4], 1.0), "1 cannot be proved"),
        (lambda: thresholds.at_cost([1, 0], [0.6, 0.4], 0), "cost: 0 is none"),
        (lambda: thresholds.at_cost([1, 0], [0.6, 0.4], np.inf), "cost: inf is none"),
        (lambda: thresholds.at_cost([1, 0], [0.6, 0.4], 1, prevalence=1), "prevalence: 1 is none"),
        (lambda: thresholds.youden([1, 1], [0.6, 0.4]), "2 images with the finding, 0 without"),
        (lambda: thresholds.youden([1, 0], [0.4, 0.4]), "1 distinct"),
        (lambda: thresholds.youden([1, 0], [1.4, 0.4]), "row 0 is 1.4"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(WetreadError, match=words):
        call()

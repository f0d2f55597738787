import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import norm

from wetread.errors import WetreadError
from wetread.evaluate import metrics, operating_points, thresholds
from wetread.findings import CHEXPERT, COVID, PNEUMONIA, Task

ONE = Task("one", ("Edema",))


def draw(positives, negatives, distance, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat([1.0, 0.0], [positives, negatives])
    return expit(rng.normal(distance * labels - distance / 2, 1))[:, None], labels[:, None]


def test_screen_keeps_its_promise_on_new_patients():
    """At 95 % confidence, not more than about one fit in twenty falls short of 98 % in truth."""
    short = 0
    for seed in range(60):
        points = operating_points.fit(ONE, *draw(400, 400, 4, seed))
        short += norm.sf(logit(points.screen["Edema"]) - 2) < 0.98
    assert short <= 9  # chance of more: below 0.1 %


def test_screen_misses_what_it_may_and_no_more():
    p, labels = draw(400, 400, 4)
    points = operating_points.fit(ONE, p, labels)
    missed = (p[labels == 1] < points.screen["Edema"]).sum()
    assert missed == thresholds.allowed_misses(400, 0.98) == 3
    assert points.shown["Edema"] >= 0.98
    assert points.cutoffs["Edema"][0] == points.screen["Edema"]


def test_screen_of_few_positives_misses_none_and_says_what_it_shows():
    p, labels = draw(20, 300, 3)
    points = operating_points.fit(ONE, p, labels)
    lowest = p[labels == 1].min()
    assert lowest >= points.cutoffs["Edema"][0] > p[p < lowest].max()
    assert lowest >= points.screen["Edema"]
    assert points.shown["Edema"] == pytest.approx(0.05 ** (1 / 20))


def test_screen_of_a_weak_finding_leaves_half_of_the_others_alone():
    p, labels = draw(300, 300, 0.8)
    points = operating_points.fit(ONE, p, labels)
    assert metrics.specificity(labels[:, 0], p[:, 0], points.screen["Edema"]) == pytest.approx(0.5, abs=0.01)
    assert points.shown["Edema"] < 0.98
    # Unlikely stays safe all the same.
    assert metrics.sensitivity(labels[:, 0], p[:, 0], points.cutoffs["Edema"][0]) >= 0.98


def test_balanced_comes_near_the_true_optimum():
    """Two normal distributions of equal width: the best threshold lies half-way, at log-odds 0."""
    regret = []
    for seed in range(30):
        at = logit(operating_points.fit(ONE, *draw(100, 300, 2, seed)).balanced["Edema"])
        regret.append(2 * norm.cdf(1) - norm.cdf(1 - at) - norm.cdf(1 + at))
    assert np.mean(regret) < 0.008  # the top itself loses .012


def test_balanced_takes_the_middle_of_a_gap_in_log_odds():
    p = expit(np.array([-5.0, -4.5, -4, -3.5, -3, 1, 1.5, 2, 2.5, 3]))
    points = operating_points.fit(ONE, p[:, None], np.repeat([0.0, 1.0], 5)[:, None])
    assert logit(points.balanced["Edema"]) == pytest.approx((-3 + 1) / 2)


def test_likely_is_specific_and_more_often_right_than_wrong():
    p, labels = draw(60, 3000, 2)
    points = operating_points.fit(ONE, p, labels)
    high = points.cutoffs["Edema"][1]
    assert metrics.ppv(labels[:, 0], p[:, 0], high) > 0.5
    assert metrics.specificity(labels[:, 0], p[:, 0], high) > 0.98  # PPV, not specificity, decides when rare
    common, labels = draw(3000, 60, 2)
    high = operating_points.fit(ONE, common, labels).cutoffs["Edema"][1]
    assert metrics.specificity(labels[:, 0], common[:, 0], high) == pytest.approx(0.95, abs=0.01)


def test_a_finding_that_is_never_likely_has_the_cut_off_one():
    rng = np.random.default_rng(0)
    labels = np.repeat([1.0, 0.0], [10, 990])[:, None]
    p = np.concatenate([expit(rng.normal(0, 0.5, 10)), expit(rng.normal(0, 1, 990))])[:, None]
    assert operating_points.fit(ONE, p, labels).cutoffs["Edema"][1] == 1


def test_two_exclusive_findings_are_mirror_images():
    p, labels = draw(375, 125, 4)
    points = operating_points.fit(PNEUMONIA, np.hstack([1 - p, p]), np.hstack([1 - labels, labels]))
    for point in (points.screen, points.balanced):
        assert point["Normal"] == pytest.approx(1 - point["Pneumonia"])
        # Each image is flagged as one of them, never as both or none.
        assert ((p >= point["Pneumonia"]) != (1 - p >= point["Normal"])).all()
    low, high = points.cutoffs["Pneumonia"]
    assert points.cutoffs["Normal"] == pytest.approx((1 - high, 1 - low))


def test_findings_that_validation_lacks_get_the_defaults():
    p, labels = draw(50, 50, 2)
    for rare in (np.zeros((100, 1)), np.ones((100, 1)), np.full((100, 1), np.nan), np.eye(100)[:, :1]):
        points = operating_points.fit(ONE, p, rare)
        assert points.defaults == ["Edema"]
        assert (points.screen, points.balanced) == ({"Edema": 0.5}, {"Edema": 0.5})
        assert points.cutoffs == {"Edema": (0.1, 0.9)}
        assert not points.shown
    assert operating_points.fit(ONE, np.full((100, 1), 0.3), labels).defaults == ["Edema"]


def test_each_point_follows_the_rule_that_is_chosen():
    p, labels = draw(300, 600, 2)
    column = (labels[:, 0], p[:, 0])
    points = operating_points.fit(ONE, p, labels, screen="cost", balanced="sensitivity", sensitivity=0.8, cost=20)
    assert points.screen["Edema"] == thresholds.at_cost(*column, 20).value
    assert points.balanced["Edema"] == thresholds.for_sensitivity(*column, 0.8).value
    assert points.cutoffs["Edema"][0] == points.screen["Edema"]  # lower than what is safe
    assert points.shown["Edema"] == thresholds.at_cost(*column, 20).proved
    other = operating_points.fit(ONE, p, labels, screen="youden", balanced="cost", cost=0.1)
    assert other.screen["Edema"] == thresholds.youden(*column).value
    assert other.balanced["Edema"] == thresholds.at_cost(*column, 0.1).value
    # A screen that would come to lie above balanced stops there.
    swapped = operating_points.fit(ONE, p, labels, screen="cost", balanced="youden", cost=0.1)
    assert swapped.screen["Edema"] == swapped.balanced["Edema"] == thresholds.youden(*column).value


def test_rules_are_told_in_words():
    assert "lower 95 % limit of 98.0%" in operating_points.describe({}, "screen")
    assert "sensitivity + specificity" in operating_points.describe({}, "balanced")
    rules = {"screen": "cost", "cost": 20.0, "balanced": "sensitivity", "sensitivity": 0.9}
    assert "a miss worth 20 false alarms" in operating_points.describe(rules, "screen")
    assert "90.0%" in operating_points.describe(rules, "balanced")


RULES = st.sampled_from(["sensitivity", "youden", "cost"])


@given(
    st.integers(0, 2**32),
    st.sampled_from([CHEXPERT, COVID, PNEUMONIA]),
    st.integers(10, 120),
    st.floats(-1, 4),
    RULES,
    RULES,
    st.floats(0.01, 100),
)
def test_low_screen_balanced_high_are_in_order(seed, task, images, distance, first, second, cost):
    rng = np.random.default_rng(seed)
    width = len(task.findings)
    labels = rng.choice([0.0, 1.0, -1.0, np.nan], (images, width), p=[0.5, 0.3, 0.1, 0.1])
    p = np.round(expit(rng.normal(0, 2, (images, width)) + distance * (labels == 1)), 2)
    points = operating_points.fit(task, p, labels, screen=first, balanced=second, cost=cost)
    for finding in task.findings:
        low, high = points.cutoffs[finding]
        screen, balanced = points.screen[finding], points.balanced[finding]
        ordered = [low, balanced, screen, high] if finding == task.normal else [low, screen, balanced, high]
        assert ordered == sorted(ordered)
        assert ordered[0] >= 0
        assert ordered[-1] <= 1
        assert (finding in points.defaults) != (finding in points.shown)


def test_a_threshold_keeps_its_distance_from_every_score():
    p, labels = draw(200, 200, 2)
    points = operating_points.fit(ONE, p, labels)
    for threshold in (points.screen["Edema"], points.balanced["Edema"], *points.cutoffs["Edema"]):
        gaps = np.sort(logit(p[:, 0]) - logit(threshold))
        assert (
            -gaps[gaps < 0].max() == pytest.approx(gaps[gaps >= 0].min(), rel=0.5)
            or threshold == points.balanced["Edema"]
        )
        assert np.abs(gaps).min() > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((ONE, np.zeros((3, 2)), np.zeros((3, 2))), "task one needs"),
        ((ONE, np.full((3, 1), 2.0), np.zeros((3, 1))), "row 0 is 2"),
        ((ONE, np.full((9, 1), np.nan), np.ones((9, 1))), "row 0 is nan"),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(WetreadError, match=words):
        operating_points.fit(*arguments)
    with pytest.raises(WetreadError, match="sensitivity: 1 cannot be proved"):
        operating_points.fit(ONE, *draw(20, 20, 1), sensitivity=1)
    with pytest.raises(WetreadError, match="cost: -1 is none"):
        operating_points.fit(ONE, *draw(20, 20, 1), screen="cost", cost=-1)
    with pytest.raises(WetreadError, match="balanced: no rule 'best'; use sensitivity, youden, cost"):
        operating_points.fit(ONE, *draw(20, 20, 1), balanced="best")

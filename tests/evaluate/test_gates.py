import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from wetread.errors import ConfigError, WetreadError
from wetread.evaluate import gates, metrics
from wetread.evaluate.behaviour import Behaviour, Check
from wetread.evaluate.gates import HardScores
from wetread.evaluate.intervals import Interval
from wetread.findings import Task

TASK = Task("t", ("Pneumothorax", "Edema"))
HALF = dict.fromkeys(TASK.findings, 0.5)


def scored(images=2000, seed=0, strength=3.0):
    rng = np.random.default_rng(seed)
    y = (rng.random((images, 2)) < 0.4).astype(float)
    return y, expit(rng.normal(strength * (2 * y - 1), 1.5))


def judge(values, y, candidate, champion=None, **options):
    options = {
        "groups": np.arange(len(y)),
        "candidate_points": HALF,
        "champion_points": None if champion is None else HALF,
    } | options
    return gates.judge(gates.parse({"resamples": 300} | values), TASK, y, candidate, champion, **options)


def lower(p, y, share, seed=1):
    """Miss a share of the first finding's positives that were flagged."""
    rng = np.random.default_rng(seed)
    hidden = p.copy()
    hidden[(y[:, 0] == 1) & (rng.random(len(y)) < share), 0] = 0.01
    return hidden


def test_the_same_scores_pass_every_comparison():
    y, p = scored()
    edema = {"auroc": 0.01, "specificity": 0.02, "brier": 0.01}
    values = {"critical": {"Pneumothorax": 0.02}, "margin": {"Edema": edema, "mean": {"auroc": 0.01}}}
    found = judge(values, y, p, p)
    assert found.verdict == "pass"
    assert {gate.verdict for gate in found.gates} == {"pass"}
    assert len(found.gates) == 5


def test_a_critical_finding_fails_when_its_sensitivity_may_have_dropped_by_more_than_the_margin():
    y, p = scored()
    worse = lower(p, y, 0.02)
    (gate,) = judge({"critical": {"Pneumothorax": 0.02}}, y, worse, p).gates
    drop = metrics.sensitivity(y[:, 0], p[:, 0], 0.5) - metrics.sensitivity(y[:, 0], worse[:, 0], 0.5)
    assert gate.value.value == pytest.approx(-drop)
    assert 0 < drop < 0.03
    assert gate.value.low < -0.02  # it may be more, and that is enough
    assert gate.verdict == "fail"
    assert "may have dropped" in gate.reason
    (wide,) = judge({"critical": {"Pneumothorax": 0.10}}, y, worse, p).gates
    assert wide.verdict == "pass"
    # an ordinary margin needs proof that more was lost
    (plain,) = judge({"margin": {"Pneumothorax": {"sensitivity": 0.02}}}, y, worse, p).gates
    assert plain.verdict == "inconclusive"
    (plain,) = judge({"margin": {"Pneumothorax": {"sensitivity": 0.02}}}, y, lower(p, y, 0.3), p).gates
    assert plain.verdict == "fail"


def test_another_finding_s_drop_does_not_fail_a_critical_one():
    y, p = scored()
    found = judge({"critical": {"Edema": 0.02}}, y, lower(p, y, 0.5), p)
    assert found.verdict == "pass"


@given(st.integers(2, 60), st.integers(0, 10**6))
def test_too_few_samples_are_never_a_pass(images, seed):
    rng = np.random.default_rng(seed)
    y = (rng.random((images, 2)) < 0.4).astype(float)
    p = np.where(y == 1, 0.9, 0.1)
    values = {
        "resamples": 100,
        "critical": {"Pneumothorax": 0.2},
        "floor": {
            "Pneumothorax": {"auroc": 0.5, "sensitivity": 0.1, "specificity": 0.1, "ppv": 0.1},
            "mean": {"auroc": 0.1},
        },
        "ceiling": {"Edema": {"brier": 0.9}},
        "margin": {"Edema": {"auroc": 0.9, "sensitivity": 0.9}},
        "min_positives": 61,
        "min_negatives": 61,
    }
    assert "pass" not in {gate.verdict for gate in judge(values, y, p, p).gates}


def test_a_margin_that_so_few_could_never_show_is_inconclusive_and_says_so():
    y, p = scored(200)
    (gate,) = judge({"critical": {"Pneumothorax": 0.005}}, y, p, p).gates
    assert gate.verdict == "inconclusive"
    assert "cannot exclude a drop of 0.005" in gate.reason
    (gate,) = judge({"critical": {"Pneumothorax": 0.005}}, y, lower(p, y, 0.2), p).gates
    assert gate.verdict == "fail"  # what is seen is worse than the margin


def test_patients_count_and_not_images():
    y, p = scored(50)
    y, p, patient = np.repeat(y, 20, 0), np.repeat(p, 20, 0), np.repeat(np.arange(50), 20)
    (gate,) = judge({"floor": {"Edema": {"sensitivity": 0.1}}}, y, p, groups=patient).gates
    assert gate.verdict == "inconclusive"
    assert gate.samples < 30


def test_floors_and_ceilings_by_the_whole_interval():
    y, p = scored(400)
    area = metrics.auroc(y[:, 0], p[:, 0])
    for limit, verdict in ((area - 0.1, "pass"), (area, "inconclusive"), (min(area + 0.05, 1), "fail")):
        (gate,) = judge({"floor": {"Pneumothorax": {"auroc": limit}}}, y, p).gates
        assert gate.verdict == verdict
        assert gate.candidate == pytest.approx(area)
        assert gate.champion is None
    brier = metrics.brier(y[:, 0], p[:, 0])
    for limit, verdict in ((brier + 0.05, "pass"), (brier, "inconclusive"), (brier / 2, "fail")):
        (gate,) = judge({"ceiling": {"Pneumothorax": {"brier": limit}}}, y, p).gates
        assert (gate.verdict, gate.candidate) == (verdict, pytest.approx(brier))


def test_each_model_is_judged_at_its_own_threshold():
    y, p = scored()
    shifted = p**2  # the same order, another scale
    (gate,) = judge({"critical": {"Pneumothorax": 0.02}}, y, shifted, p,
                    candidate_points={"Pneumothorax": 0.25, "Edema": 0.25}).gates  # fmt: skip
    assert gate.value.value == 0
    assert gate.verdict == "pass"


def test_a_lower_brier_score_is_a_gain():
    y, p = scored()
    blurred = 0.5 + (p - 0.5) / 3
    assert judge({"margin": {"Edema": {"brier": 0.01}}}, y, p, blurred).verdict == "pass"
    assert judge({"margin": {"Edema": {"brier": 0.01}}}, y, blurred, p).verdict == "fail"


def test_without_a_champion_comparisons_are_inconclusive():
    y, p = scored()
    found = judge(
        {"critical": {"Edema": 0.1}, "margin": {"Edema": {"auroc": 0.1}}, "floor": {"Edema": {"auroc": 0.5}}}, y, p
    )
    assert [gate.verdict for gate in found.gates] == ["inconclusive", "pass", "inconclusive"]
    assert found.verdict == "inconclusive"
    assert "no champion" in found.gates[0].reason


def test_uncertain_and_missing_labels_are_left_out():
    y, p = scored(600)
    holes = y.copy()
    holes[:100, 0], holes[100:200, 0] = -1, np.nan
    (gate,) = judge({"floor": {"Pneumothorax": {"auroc": 0.5}}}, holes, p).gates
    assert gate.candidate == pytest.approx(metrics.auroc(y[200:, 0], p[200:, 0]))
    none = np.full_like(y, np.nan)
    assert judge({"floor": {"mean": {"auroc": 0.5}, "Edema": {"auroc": 0.5, "sensitivity": 0.5}},
                  "critical": {"Edema": 0.1}}, none, p, p).verdict == "inconclusive"  # fmt: skip


def test_hard_batches():
    y, p = scored(200)
    hard = {"night": HardScores(np.r_[np.ones(80), np.zeros(20)], np.arange(100), np.r_[np.ones(60), np.zeros(40)])}
    found = judge({"hard": {"night": {"floor": 0.6, "margin": 0.05}}}, y, p, p, hard=hard)
    assert [(g.candidate, g.champion, g.verdict) for g in found.gates] == [(0.8, None, "pass"), (0.8, 0.6, "pass")]
    few = {"night": HardScores(np.ones(10), np.arange(10), np.ones(10))}
    assert judge({"hard": {"night": {"floor": 0.1}}}, y, p, p, hard=few).verdict == "inconclusive"
    with pytest.raises(ConfigError, match="hard batch 'night' was not scored"):
        judge({"hard": {"night": {"floor": 0.6}}}, y, p)


def test_behaviour_counts_as_it_was_judged():
    y, p = scored(200)
    rate = Interval(0.5, 0.4, 0.6)
    checks = tuple(
        Check("invariance", "shift", f, 50, rate, 0.1, 0.0, v) for f, v in zip(HALF, ("pass", "fail"), strict=True)
    )
    found = judge({"behaviour": {}}, y, p, behaviour=Behaviour("balanced", checks))
    assert [gate.verdict for gate in found.gates] == ["pass", "fail"]
    assert judge({"behaviour": {}}, y, p).verdict == "inconclusive"


def test_what_is_not_there_is_named():
    y, p = scored(100)
    with pytest.raises(ConfigError, match="'Fracture' is no finding"):
        judge({"critical": {"Fracture": 0.1}}, y, p, p)
    with pytest.raises(ConfigError, match="'mean' is no finding"):
        judge({"critical": {"mean": 0.1}}, y, p, p)
    with pytest.raises(WetreadError, match="champion"):
        judge({"critical": {"Edema": 0.1}}, y, p, p[:50])
    with pytest.raises(WetreadError, match="no threshold for 'Edema'"):
        judge({"critical": {"Edema": 0.1}}, y, p, candidate_points={"Pneumothorax": 0.5})
    with pytest.raises(WetreadError, match="groups"):
        judge({"critical": {"Edema": 0.1}}, y, p, groups=np.arange(3))


def test_the_interval_of_a_difference_covers_the_truth():
    """Champion and candidate of equal sensitivity: the interval of the difference holds 0 nearly always."""
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y = np.ones((120, 2))
        y[100:] = 0
        first, second = (np.where(rng.random((120, 2)) < 0.9, 0.9, 0.1) for _ in range(2))
        (gate,) = judge({"resamples": 200, "margin": {"Edema": {"sensitivity": 0.1}}}, y, first, second).gates
        held += gate.value.low <= 0 <= gate.value.high
    assert held >= 51  # 57 expected; fewer than 51 have a chance of 0.6 %

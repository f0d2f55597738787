import numpy as np
import pytest

from wetread.evaluate import costs

Y = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0, -1, np.nan])
P = np.array([0.9, 0.8, 0.4, 0.1, 0.7, 0.3, 0.2, 0.1, 0.1, 0.05, 0.9, 0.9])


def test_costs_by_hand():
    found = costs.evaluate("A", Y, P, {"balanced": 0.5}, ratios=(1, 10))
    assert found.missed == {"balanced": 200}  # 2 of 10
    assert found.alarms == {"balanced": 100}
    assert found.cost["balanced"].tolist() == [300, 2100]
    assert found.cost["flag all"].tolist() == [600, 600]
    assert found.cost["flag none"].tolist() == [400, 4000]
    assert found.cheapest(1) == ("balanced", 300)
    assert found.cheapest(10) == ("flag all", 600)


def test_prevalence_of_another_place_weighs_the_same_rates():
    found = costs.evaluate("A", Y, P, {"balanced": 0.5}, prevalence=0.01)
    assert found.missed["balanced"] == pytest.approx(1000 * 0.01 * 0.5)
    assert found.alarms["balanced"] == pytest.approx(1000 * 0.99 / 6)


def test_with_calibrated_chances_the_threshold_of_the_ratio_is_the_best():
    rng = np.random.default_rng(0)
    p = rng.beta(0.5, 1.5, 200_000)
    y = (rng.random(p.size) < p).astype(float)
    points = {f"{t:.2f}": t for t in np.arange(0.02, 1, 0.02)}
    found = costs.evaluate("A", y, p, points)
    for place in range(found.ratios.size):
        best = min(values[place] for name, values in found.cost.items() if name != "by ratio")
        assert found.cost["by ratio"][place] <= best * 1.01


def test_without_a_positive_or_a_negative_there_is_no_cost():
    assert costs.evaluate("A", np.zeros(4), P[:4], {}) is None
    assert costs.evaluate("A", np.ones(4), P[:4], {}) is None

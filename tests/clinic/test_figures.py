"""Intervals against SciPy; shares and spreads of few values are what they may say."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetread.clinic.figures import Period, Rate, Share, Spread, by_step

stats = pytest.importorskip("scipy.stats", reason="needs SciPy, of the extra dev")


@given(st.integers(1, 3000), st.floats(0, 1))
def test_a_share_has_the_interval_of_wilson(whole: int, part: float) -> None:
    share = Share(round(part * whole), whole)
    expected = stats.binomtest(share.part, whole).proportion_ci(0.95, method="wilson")
    assert share.value == share.part / whole
    assert share.interval == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_share_of_nothing_is_undefined() -> None:
    assert (Share(0, 0).value, Share(0, 0).interval) == (None, None)


@given(st.integers(0, 2000), st.integers(1, 400))
def test_a_rate_has_the_exact_interval_of_poisson_to_a_few_percent(count: int, days: int) -> None:
    exact = (stats.chi2.ppf(0.025, 2 * count) / 2 if count else 0.0, stats.chi2.ppf(0.975, 2 * count + 2) / 2)
    low, high = Rate(count, days).interval
    # Byar's lower limit of one event is half of the exact one, to the safe side; from three on it is within 3 %.
    assert low * days == pytest.approx(exact[0], rel={1: 0.5, 2: 0.08}.get(count, 0.03), abs=1e-12)
    assert low * days <= exact[0] * 1.001
    assert high * days == pytest.approx(exact[1], rel=0.007)


@given(st.lists(st.floats(0, 1e6), max_size=400))
def test_a_spread_is_that_of_numpy_with_the_interval_of_order_statistics(values: list[float]) -> None:
    found, n = Spread.of(iter(values)), len(values)
    assert found.count == n
    assert found.median == (pytest.approx(np.median(values)) if n else None)
    assert found.p95 == (pytest.approx(np.quantile(values, 0.95)) if n >= 20 else None)
    below = [k for k in range(n) if stats.binom.cdf(k, n, 0.5) <= 0.025]
    ordered = sorted(values)
    assert found.interval == ((ordered[below[-1]], ordered[n - 1 - below[-1]]) if below else None)
    assert (found.interval is None) == (n < 6)


def test_a_long_list_has_an_interval_without_underflow() -> None:
    interval = Spread.of(range(50_000)).interval
    assert interval is not None
    half = (interval[1] - interval[0]) / 2
    assert half == pytest.approx(1.96 * math.sqrt(50_000) / 2, rel=0.02)


def test_steps_cover_a_period_and_count_what_is_in_each() -> None:
    hour, until = timedelta(hours=1), datetime(2026, 3, 1, 5, 30, tzinfo=UTC)
    steps = Period(until - 2 * hour, until).steps(hour)
    assert [step.hour for step in steps] == [3, 4, 5]
    whole = Period(until.replace(minute=0) - 2 * hour, until.replace(minute=0))
    assert [step.hour for step in whole.steps(hour)] == [3, 4]
    found = [(int(steps[1].timestamp()), 7), (int(steps[0].timestamp()) - 3600, 9)]
    assert by_step(found, Period(until - 2 * hour, until), hour) == [0, 7, 0]

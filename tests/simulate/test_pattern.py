"""When patients come: counts, shares of hours and days, bursts, and files that say so."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from wetread.errors import ConfigError
from wetread.simulate.pattern import DAY, DAY_S, FLAT, NAMED, Burst, Pattern, burst, read, times

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)


@given(st.integers(0, 300), st.floats(0.1, 40), st.integers(0, 6), st.integers(0, 86_399), st.sampled_from(list(NAMED)))
def test_the_pattern_gives_just_as_many_as_are_asked_for_within_the_time(count, days, weekday, second, name):
    start = datetime.fromtimestamp(MONDAY.timestamp() + weekday * DAY_S + second, UTC)
    found = times(NAMED[name], count, days, start=start, seed=count)
    assert len(found) == count
    assert np.all(np.diff(found) >= 0)
    assert np.all((found >= 0) & (found <= days * DAY_S))


@pytest.mark.parametrize("start", [MONDAY, datetime(2026, 3, 5, 14, 37, 11, tzinfo=UTC)])
def test_each_hour_of_the_week_gets_its_share(start):
    found = start.timestamp() + times(DAY, 60_000, 28, start=start, seed=1)
    hour = ((found - MONDAY.timestamp()) // 3600).astype(int) % 168
    expected = np.outer(DAY.days, DAY.hours).ravel()
    expected *= len(found) / expected.sum()
    assert stats.chisquare(np.bincount(hour, minlength=168), expected).pvalue > 0.001


def test_nobody_comes_in_an_hour_of_weight_zero():
    night = Pattern(tuple(0.0 if hour < 8 else 1.0 for hour in range(24)), (1, 1, 1, 1, 1, 0, 0))
    found = times(night, 5000, 7, start=MONDAY, seed=2)
    assert np.all((found // 3600 % 24 >= 8) & (found // DAY_S < 5))


def test_a_flat_pattern_is_uniform_and_the_seed_decides():
    found = times(FLAT, 4000, 3, start=MONDAY, seed=3)
    assert stats.kstest(found / (3 * DAY_S), stats.uniform.cdf).pvalue > 0.01
    assert np.array_equal(found, times(FLAT, 4000, 3, start=MONDAY, seed=3))
    assert not np.array_equal(found, times(FLAT, 4000, 3, start=MONDAY, seed=4))


def test_a_burst_comes_besides_within_its_minutes():
    quiet = times(DAY, 100, 2, start=MONDAY, seed=5)
    busy = times(DAY, 100, 2, start=MONDAY, seed=5, bursts=[burst("30@0.5/10")])
    assert len(busy) == 130
    extra = np.setdiff1d(busy, quiet)
    assert len(extra) == 30
    assert np.all((extra >= DAY_S) & (extra <= DAY_S + 600))


@pytest.mark.parametrize("text", ["", "5", "5@2", "-1@0.5", "5@0.5/", "x@0.1"])
def test_what_is_no_burst_is_refused(text):
    with pytest.raises(ConfigError, match="COUNT@FRACTION"):
        burst(text)


def test_bursts_are_read():
    assert burst("20@0.25") == Burst(20, 0.25, 1.0)


def test_patterns_are_read_from_names_numbers_and_files(tmp_path):
    assert read("day") is DAY
    assert read(",".join(["1"] * 23 + ["2.5"])).hours[-1] == 2.5
    (tmp_path / "a.toml").write_text(f"hours = {[float(h) for h in range(24)]}\ndays = [1, 1, 1, 1, 1, 0, 0]\n")
    (tmp_path / "a.csv").write_text("hour,weight\n" + "\n".join(f"{h},{h}" for h in range(1, 24)))
    assert read(str(tmp_path / "a.toml")) == Pattern(tuple(map(float, range(24))), (1, 1, 1, 1, 1, 0, 0))
    assert read(str(tmp_path / "a.csv")).hours == tuple(map(float, range(24)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "hours = [1, 2]"),
        ("a.toml", "hours = 3"),
        ("a.toml", "minutes = [1]"),
        ("a.toml", "hours = ["),
        ("a.csv", "hour,weight\n24,1"),
        ("a.csv", "stunde,gewicht\n1,1"),
        ("a.csv", "hour,weight\n1,-1"),
    ],
)
def test_a_file_that_is_no_pattern_is_refused_by_name(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=r"a\.(toml|csv)|pattern"):
        read(str(tmp_path / name))


@pytest.mark.parametrize("text", ["night", "1,2", "1;2"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(ConfigError, match="pattern"):
        read(text)


@pytest.mark.parametrize("days", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(days):
    with pytest.raises(ConfigError, match="days"):
        times(FLAT, 1, days, start=MONDAY, seed=0)


def test_a_time_in_which_nobody_can_come_is_refused():
    weekend = Pattern(days=(1, 1, 1, 1, 1, 0, 0))
    with pytest.raises(ConfigError, match="nobody comes"):
        times(weekend, 5, 1, start=datetime(2026, 3, 7, tzinfo=UTC), seed=0)

"""Which arrival comes when: simulated time, real gaps, and the moment of a drift."""

import math
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from wetread.errors import ConfigError
from wetread.simulate.pattern import DAY, burst
from wetread.simulate.schedule import Schedule, patients
from wetread.simulate.truth import Clock

START, BEGAN = datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC)


def test_a_month_takes_minutes_and_its_drift_begins_in_the_middle_of_it():
    schedule = Schedule(Clock(START, BEGAN, 4320), 1, DAY, 600, 30, bursts=[burst("20@0.8")], drift_at=0.5)
    found = list(schedule.arrivals())
    assert [arrival.number for arrival, _ in found] == list(range(1, 621))
    assert sum(gap for _, gap in found) == pytest.approx((found[-1][0].at - START).total_seconds() / 4320, abs=1e-6)
    middle = START + timedelta(days=15)
    assert all((arrival.phase == "after") == (arrival.at >= middle) for arrival, _ in found)
    assert {arrival.phase for arrival, _ in found} == {"before", "after"}


def test_at_a_rate_the_drift_begins_at_that_part_of_the_count():
    found = [a.phase for a, _ in Schedule(Clock(START, BEGAN), 1, number=10, rate=60, drift_at=0.3).arrivals()]
    assert found == ["before"] * 3 + ["after"] * 7


def test_without_an_end_it_goes_on_and_speed_shortens_the_gaps():
    slow = list(islice(Schedule(Clock(START, BEGAN, 1), 2).arrivals(), 50))
    fast = list(islice(Schedule(Clock(START, BEGAN, 100), 2).arrivals(), 50))
    assert [arrival for arrival, _ in slow] == [arrival for arrival, _ in fast]
    assert [gap / 100 for _, gap in slow] == pytest.approx([gap for _, gap in fast])


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"days": 3.0}, "--count or --per-day"),
        ({"bursts": [burst("3@0.5")]}, "--days"),
        ({"drift_at": 0.5}, "--count"),
        ({"clock": Clock(START, BEGAN, 0)}, "speed"),
        ({"clock": Clock(START, BEGAN, 1e-300)}, "speed"),
        ({"clock": Clock(START.replace(year=9999), BEGAN)}, "start"),
        ({"number": 3, "days": math.inf}, "days"),
        ({"number": 3, "days": math.nan}, "days"),
        ({"number": 10**12}, "count"),
        ({"rate": 1e-300}, "rate"),
        ({"rate": math.inf}, "rate"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(values, match):
    with pytest.raises(ConfigError, match=match):
        Schedule(**{"clock": Clock(START, BEGAN), "seed": 0} | values)


@pytest.mark.parametrize(
    ("per_day", "days", "match"),
    [(3, math.inf, "days"), (3, math.nan, "days"), (-3, 1, "per-day"), (math.nan, 1, "per-day"), (1e9, 10, "per-day")],
)
def test_so_many_a_day_that_nobody_could_count_them_are_refused(per_day, days, match):
    with pytest.raises(ConfigError, match=match):
        patients(per_day, days)


def test_simulated_time_and_real_time_are_one_line():
    clock = Clock(START, BEGAN, 60)
    assert clock.at(BEGAN + timedelta(seconds=30)) == START + timedelta(minutes=30)
    assert clock.lasts(3) == pytest.approx(3.0)
    assert clock.minutes(timedelta(seconds=3)) == pytest.approx(3.0)

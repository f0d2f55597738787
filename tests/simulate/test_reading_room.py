"""The simulation: wait by wait against SimPy and against the clinic's own order, and its means against the forms."""

import math
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import simpy
from scipy import stats

from wetread.clinic import priority
from wetread.clinic.priority import Priority
from wetread.errors import ConfigError
from wetread.simulate import queueing
from wetread.simulate.pattern import DAY, Pattern
from wetread.simulate.reading_room import Room, arrivals, enough, simulate, student, two_classes, waits

NEVER = (math.inf,) * 3
Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw(count: int, readers: int, seed: int = 3) -> Drawn:
    """Patients of three ranks at a load of .9: when they come, how long they are read, their rank."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.exponential(10 / readers / 0.9, count)), rng.exponential(10, count), rng.integers(0, 3, count)


@pytest.mark.parametrize("preemptive", [False, True])
@pytest.mark.parametrize("readers", [1, 2, 5])
def test_every_wait_is_that_of_simpy(readers: int, preemptive: bool) -> None:
    arrival, service, rank = draw(1200, readers)
    world = simpy.Environment()
    room = simpy.PreemptiveResource(world, readers)
    left = np.zeros(len(arrival))

    def patient(number: int) -> Generator[Any, Any, None]:
        yield world.timeout(arrival[number])
        todo = service[number]
        while todo > 0:
            place: Any = (rank[number], number)
            with room.request(priority=place, preempt=preemptive) as asked:
                yield asked
                begun = world.now
                try:
                    yield world.timeout(todo)
                    todo = 0
                except simpy.Interrupt:
                    todo -= world.now - begun
        left[number] = world.now

    for number in range(len(arrival)):
        world.process(patient(number))
    world.run()
    found = waits(arrival, service, rank, readers=readers, preemptive=preemptive, caps=NEVER)
    np.testing.assert_allclose(found, left - arrival - service, atol=1e-6)
    assert (found > 1).mean() > 0.2


def test_caps_promote_as_the_clinic_does() -> None:
    """The reader takes the study that the clinic's own rule puts first, looked up anew among all that wait."""
    arrival, service, rank = draw(1500, 1)
    caps, classes = (30.0, 60.0, 120.0), list(Priority)
    now, expected, waiting, following = 0.0, np.zeros(len(arrival)), set[int](), 0
    while following < len(arrival) or waiting:
        now = max(now, arrival[following]) if not waiting else now
        while following < len(arrival) and arrival[following] <= now:
            waiting.add(following)
            following += 1
        _, taken = min((priority.rank(classes[rank[n]], now - arrival[n] >= caps[rank[n]]), n) for n in waiting)
        waiting.remove(taken)
        expected[taken] = now - arrival[taken]
        now += service[taken]
    np.testing.assert_allclose(waits(arrival, service, rank, caps=caps, above=1), expected, atol=1e-6)
    assert (expected > np.array(caps)[rank]).any()


@pytest.mark.parametrize("readers", [1, 3])
def test_every_order_has_the_same_mean(readers: int) -> None:
    """Readings of one length: then it is the same for the very patients, not only on average."""
    arrival, _, rank = draw(2000, readers)
    service = np.full(len(arrival), 10.0)
    by_arrival = waits(arrival, service, np.zeros_like(rank), readers=readers, caps=(math.inf,))
    for caps, above in ((NEVER, 0), ((200.0,) * 3, 0), ((20.0, 60.0, 200.0), 1)):
        found = waits(arrival, service, rank, readers=readers, caps=caps, above=above)
        assert found.mean() == pytest.approx(by_arrival.mean())
        assert not np.allclose(found, by_arrival)


@pytest.mark.parametrize("preemptive", [False, True])
def test_a_cap_of_nothing_is_first_come_first_served(preemptive: bool) -> None:
    arrival, service, rank = draw(1000, 2)
    found = waits(arrival, service, rank, readers=2, preemptive=preemptive, caps=(0.0,) * 3)
    by_arrival = waits(arrival, service, np.zeros_like(rank), readers=2, caps=(math.inf,))
    np.testing.assert_allclose(found, by_arrival, atol=1e-6)


@pytest.mark.parametrize(
    "room",
    [
        Room(two_classes(), readers=2),
        Room(two_classes(), preemptive=False),
        Room(two_classes(minutes=5, diseased=10, false_alarm=8)),
    ],
    ids=["two readers", "not preemptive", "unequal"],
)
def test_means_are_those_of_the_closed_forms(room: Room) -> None:
    outcome, exact = simulate(room, 40_000, 10, seed=1), queueing.means(room)
    found = {"fifo": outcome.fifo.mean} | {label: line.mean for label, line in outcome.lines.items()}
    assert list(found) == list(exact)
    for label, value in exact.items():
        error = found[label].high - found[label].value
        assert abs(found[label].value - value) < 1.5 * error < 0.4 * value, label
    everyone = outcome.everyone.saved  # the same patients in another order
    same = abs(everyone.value) < 2 * (everyone.high - everyone.value)
    assert same == (len({kind.minutes for kind in room.kinds}) == 1)


def test_a_waiting_cap_costs_the_urgent_little_until_it_is_low() -> None:
    """The diseased wait 12.6 min without a cap, 13.9 with 240 min, 29.4 with 60 min, and 38.4 by arrival."""
    found = {
        cap: simulate(Room(two_classes(), preemptive=False, caps=(cap, cap)), 20_000, 10, seed=2)
        for cap in (math.inf, 240.0, 60.0)
    }
    fifo = found[math.inf].fifo
    share = {cap: outcome.lines["diseased"].mean.value / fifo.mean.value for cap, outcome in found.items()}
    assert share[math.inf] == pytest.approx(12.6 / 38.4, rel=0.1)
    assert share[240] == pytest.approx(13.9 / 38.4, rel=0.1)
    assert share[60] == pytest.approx(29.4 / 38.4, rel=0.1)
    assert share[math.inf] < share[240] < share[60] < 1
    low = found[60.0].everyone
    assert low.p99 == pytest.approx(fifo.p99)  # whom the cap promotes, it promotes in the order of arrival
    for cap in (60.0, 240.0):  # FIFO's worst case is restored
        assert found[cap].everyone.longest == pytest.approx(fifo.longest)
    assert found[math.inf].everyone.longest > 1.1 * fifo.longest
    assert found[60.0].fifo.over == pytest.approx(math.exp(-0.02 * 60) * 0.8, abs=0.03)  # of M/M/1


def test_a_busy_room_takes_many_patients_to_settle() -> None:
    assert enough(Room(two_classes())) < 400_000 < enough(Room(two_classes(), load=0.95))
    few = simulate(Room(two_classes(), load=0.99), 10_000, 20).fifo.mean
    assert few.high < 0.5 * queueing.fifo(Room(two_classes(), load=0.99))  # which is why it has to be said


def test_rare_patients_have_a_wait_where_they_came() -> None:
    outcome = simulate(Room(two_classes(prevalence=0.0005, fpf=0)), 6000, 6)
    assert not math.isnan(outcome.lines["diseased"].mean.value)
    nobody = simulate(Room(two_classes(prevalence=0, fpf=0)), 600, 6).lines["ai_positive"]
    assert math.isnan(nobody.mean.value)
    assert math.isnan(nobody.p99)


def test_arrivals_follow_the_hours() -> None:
    times = arrivals(Room(two_classes(), pattern=DAY), 50_000, np.random.default_rng(0))
    assert np.all(np.diff(times) >= 0)
    assert len(times) / times[-1] == pytest.approx(0.08, rel=0.03)
    whole = times[times < 168 * 60 * (times[-1] // (168 * 60))]
    counts = np.bincount((whole // 60).astype(int) % 168, minlength=168)
    expected = np.outer(DAY.days, DAY.hours).ravel()
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3
    nights = arrivals(Room(two_classes(), pattern=Pattern((0.0,) * 8 + (1.0,) * 16)), 5000, np.random.default_rng(0))
    assert (nights % 1440 >= 8 * 60 - 1e-6).all()


def test_quantiles_are_students() -> None:
    for freedom in (4, 9, 19, 200):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=5e-3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"load": 1.0}, "load = 1"),
        ({"load": math.nan}, "load = nan"),
        ({"readers": 0}, "readers = 0"),
        ({"caps": (-1.0, 5.0)}, "cap = -1"),
        ({"caps": (5.0, math.nan)}, "cap = nan"),
    ],
)
def test_a_room_that_cannot_be_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        Room(two_classes(), **values)


def test_shares_outside_0_to_1_and_too_few_patients_are_refused() -> None:
    for name in ("prevalence", "sensitivity", "fpf"):
        for value in (-0.1, 1.1, math.nan):
            with pytest.raises(ConfigError, match=f"^{name} = "):
                two_classes(**{name: value})
    with pytest.raises(ConfigError, match=r"^reading time of diseased = 0"):
        Room(two_classes(diseased=0))
    for patients, replications in ((99 * 5, 5), (1000, 4), (0, 0)):
        with pytest.raises(ConfigError, match=r"^patients = "):
            simulate(Room(two_classes()), patients, replications)

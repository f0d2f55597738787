"""Closed forms: the published tables, the formulas as they stand in textbooks, and laws that every order keeps."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetread.errors import ConfigError
from wetread.simulate import queueing
from wetread.simulate.pattern import DAY
from wetread.simulate.reading_room import Kind, Room, two_classes

TABLE = {  # FIFO, AI+, AI−, diseased, healthy: rows 1 and 2 of the FDA's QuCAD; row 3 from the forms below
    (1, True): (40, 1.682, 48.411, 6.355, 43.738),
    (2, True): (17.778, 0.212, 21.634, 2.354, 19.492),
    (1, False): (40, 9.346, 46.729, 13.084, 42.991),
}
SHARE = st.floats(0.01, 0.99)


@pytest.mark.parametrize(("readers", "preemptive"), TABLE)
def test_the_published_table(readers: int, preemptive: bool) -> None:
    found = queueing.means(Room(two_classes(), readers=readers, preemptive=preemptive))
    assert list(found) == ["fifo", "ai_positive", "ai_negative", "diseased", "healthy"]
    assert list(found.values()) == pytest.approx(TABLE[readers, preemptive], abs=6e-4)


@given(load=SHARE, prevalence=SHARE, se=SHARE, fpf=SHARE, minutes=st.floats(0.1, 100), readers=st.integers(1, 12))
def test_equal_reading_times_follow_the_three_forms(
    load: float, prevalence: float, se: float, fpf: float, minutes: float, readers: int
) -> None:
    kinds = two_classes(prevalence, se, fpf, minutes)
    positive = prevalence * se + (1 - prevalence) * fpf
    upper = load * positive
    by_arrival = _erlang_c(readers, readers * load) * minutes / readers / (1 - load)

    resumed = queueing.means(Room(kinds, readers=readers, load=load))
    first = _erlang_c(readers, readers * upper) * minutes / readers / (1 - upper)
    assert resumed["fifo"] == pytest.approx(by_arrival)
    assert resumed["ai_positive"] == pytest.approx(first)
    assert resumed["ai_negative"] == pytest.approx((by_arrival - positive * first) / (1 - positive))
    if readers == 1:
        assert resumed["ai_positive"] == pytest.approx(upper * minutes / (1 - upper))
        assert resumed["ai_negative"] == pytest.approx(minutes / (1 - upper) / (1 - load) - minutes)

    waiting = queueing.means(Room(kinds, readers=readers, load=load, preemptive=False))
    assert waiting["ai_positive"] == pytest.approx(by_arrival * (1 - load) / (1 - upper))
    assert waiting["ai_negative"] == pytest.approx(waiting["ai_positive"] / (1 - load))
    for found in (resumed, waiting):
        assert found["diseased"] == pytest.approx(se * found["ai_positive"] + (1 - se) * found["ai_negative"])
        assert found["healthy"] == pytest.approx(fpf * found["ai_positive"] + (1 - fpf) * found["ai_negative"])
        assert prevalence * found["diseased"] + (1 - prevalence) * found["healthy"] == pytest.approx(by_arrival)


def test_unequal_reading_times_follow_pollaczek_and_khinchine() -> None:
    """QuCAD takes the mean of the reading times for an exponential one's, which gives 22.0."""
    found = queueing.fifo(Room(two_classes(minutes=5, diseased=10)))
    assert found == pytest.approx(0.8 / 5.5 * 2 * (0.1 * 10**2 + 0.9 * 5**2) / (2 * 0.2))
    assert found == pytest.approx(23.64, abs=5e-3)


@given(load=SHARE, shares=st.lists(SHARE, min_size=3, max_size=6), data=st.data())
def test_unequal_reading_times_keep_the_conservation_law(load: float, shares: list[float], data: st.DataObject) -> None:
    """Without interruption the waits, weighted by load, add up to the same in every order (Kleinrock 1965)."""
    minutes = [data.draw(st.floats(0.5, 50)) for _ in shares]
    kinds = tuple(
        Kind((str(n),), share / sum(shares), each, n % 3)
        for n, (share, each) in enumerate(zip(shares, minutes, strict=True))
    )
    room = Room(kinds, load=load, preemptive=False, caps=(float("inf"),) * 3)
    found = queueing.means(room)
    work = sum(kind.share * kind.minutes * found[str(n)] for n, kind in enumerate(kinds))
    assert work == pytest.approx(room.minutes * found["fifo"])
    # Whom a better rank interrupts does not see the worse: alone, it is a room of its own.
    first = [kind for kind in kinds if kind.rank == 0]
    part = sum(kind.share for kind in first)
    alone = Room(
        tuple(replace(kind, share=kind.share / part) for kind in first),
        load=load * sum(kind.share * kind.minutes for kind in first) / room.minutes,
    )
    assert queueing.means(replace(room, preemptive=True))["0"] == pytest.approx(queueing.fifo(alone))


@pytest.mark.parametrize("readers", [1, 3])
def test_who_is_not_there_has_no_wait(readers: int) -> None:
    found = queueing.means(Room(two_classes(prevalence=0, fpf=0), readers=readers))
    assert found["ai_negative"] == pytest.approx(found["healthy"]) == pytest.approx(found["fifo"])
    assert found["diseased"] != found["diseased"]
    assert found["ai_positive"] != found["ai_positive"]


@pytest.mark.parametrize(
    ("room", "said"),
    [
        (Room(two_classes(), caps=(60, 60)), "cap"),
        (Room(two_classes(), pattern=DAY), "arrivals"),
        (Room(two_classes(diseased=20), readers=2), "reading times differ"),
    ],
)
def test_what_has_no_closed_form_says_so(room: Room, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}.*leave out --analytic$"):
        queueing.means(room)


def _erlang_c(readers: int, offered: float) -> float:
    """Erlang's C as a sum, term by term."""
    terms = [1.0]
    for count in range(1, readers + 1):
        terms.append(terms[-1] * offered / count)
    last = terms.pop() / (1 - offered / readers)
    return last / (sum(terms) + last)

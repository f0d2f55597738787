"""What another rule would have done: against hand-made days, and a plain queue."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from ward import SITE, Ward, png

from wetread.clinic import dry_run, keys, priority, reviews, store, worklist
from wetread.clinic.dry_run import Arrival
from wetread.clinic.priority import Class, Priority, Rule, Scored

START = datetime(2026, 3, 1, tzinfo=UTC)
NOW = START + timedelta(hours=12)
FINDINGS = ["Pneumothorax", "Edema", "Fracture", None]


def at(minute: float) -> datetime:
    return START + timedelta(minutes=minute)


def arrival(study: str, minute: float, finding: str | None, signed: float | None, floor: str = "routine") -> Arrival:
    scored = tuple(Scored("m", f, 0.9 if f == finding else 0.1, f == finding, "likely") for f in FINDINGS if f)
    return Arrival(study, "Chest", at(minute), Priority(floor), scored, None, None if signed is None else at(signed))


DAY = [  # read first come, first served, ten minutes apart
    arrival("a", 0, None, 10),
    arrival("b", 1, None, 20),
    arrival("c", 2, "Edema", 30),
    arrival("d", 3, "Pneumothorax", 40),
    arrival("e", 35, "Fracture", None),
]


def order(found: dict[str, dry_run.Place]) -> str:
    return "".join(sorted(found, key=lambda study: found[study].position))


def test_the_same_times_in_the_order_of_the_rule() -> None:
    found = dry_run.replay(DAY, Rule(), NOW)
    assert order(found) == "dcabe"
    assert [found[s].read_at for s in "dcabe"] == [at(10), at(20), at(30), at(40), None]
    assert found["d"].wait == timedelta(minutes=7)
    assert found["e"].wait == NOW - at(35)
    assert [found[s].over_cap for s in "dcabe"] == [False, False, False, False, True]


def test_who_moves_and_how_long_each_class_waits() -> None:
    other = Rule(critical=Class(findings=("Edema",), cap_minutes=30), urgent=Class(findings=(), cap_minutes=120))
    found = dry_run.compare(DAY, Rule(), other, START, NOW)
    assert {(m.arrival.study, m.by) for m in found.up} == {("a", 1), ("b", 1), ("c", 1)}
    assert [(m.arrival.study, m.by) for m in found.down] == [("d", -3)]
    assert (found.studies, found.signed, found.other_class) == (5, 4, 2)
    assert found.before[Priority.CRITICAL].longest == timedelta(minutes=7)
    assert found.after[Priority.CRITICAL].longest == timedelta(minutes=8)
    assert Priority.URGENT not in found.after
    assert found.before[None].count == found.after[None].count == 5
    assert found.before[None].over_cap == 1


def test_a_cap_promotes_in_the_replay() -> None:
    day = [arrival("old", 0, None, 300), *(arrival(f"n{n}", 200 + n, "Edema", 250 + n) for n in range(3))]
    assert order(dry_run.replay(day, Rule(), NOW)) == "oldn0n1n2"  # 240 min come before the first is read
    patient = Rule(routine=Class(cap_minutes=1000))
    assert order(dry_run.replay(day, patient, NOW)) == "n0n1n2old"


DAYS = st.lists(
    st.tuples(st.integers(0, 600), st.sampled_from(FINDINGS), st.none() | st.integers(1, 60)), min_size=1, max_size=40
)
RULES = st.builds(
    Rule,
    ratio=st.none() | st.sampled_from([1.0, 2.0, 5.0]),
    weights=st.just({}) | st.just({"Edema": 45.0}),
    points=st.just({}) | st.just({"Edema": 0.95}),
)


@given(DAYS, RULES)
def test_every_time_is_used_once_and_nobody_is_read_before_they_came(
    drawn: list[tuple[int, str | None, int | None]], rule: Rule
) -> None:
    day = [
        arrival(f"s{n:03d}", minute, finding, None if wait is None else minute + wait)
        for n, (minute, finding, wait) in enumerate(drawn)
    ]
    found = dry_run.replay(day, rule, NOW)
    came = {a.study: a.received_at for a in day}
    assert sorted(p.position for p in found.values()) == list(range(1, len(day) + 1))
    assert sorted(p.read_at for p in found.values() if p.read_at) == sorted(a.signed_at for a in day if a.signed_at)
    assert all(place.read_at >= came[study] for study, place in found.items() if place.read_at)


@given(DAYS, st.sampled_from([{}, {"Edema": 45.0}]))
def test_without_turns_it_is_the_list_sorted_anew_each_time(
    drawn: list[tuple[int, str | None, int | None]], weights: dict[str, float]
) -> None:
    rule = Rule(weights=weights)
    day = [
        arrival(f"s{n:03d}", minute, finding, None if wait is None else minute + wait)
        for n, (minute, finding, wait) in enumerate(drawn)
    ]
    made = {a.study: priority.decide(rule, a.floor, a.scored) for a in day}
    wanted, left = [], list(day)
    for moment in sorted(a.signed_at for a in day if a.signed_at):

        def place(a: Arrival, moment: datetime = moment) -> tuple[int, float, str]:
            overdue = priority.overdue_at(rule, made[a.study].priority, a.received_at) <= moment
            return rule.rank(made[a.study].priority, overdue), keys.place(a.received_at - made[a.study].ahead), a.study

        first = min((a for a in left if a.received_at <= moment), key=place)
        left.remove(first)
        wanted.append(first.study)
    found = dry_run.replay(day, rule, NOW)
    assert sorted((s for s in found if found[s].read_at), key=lambda s: found[s].position) == wanted


def test_the_arrivals_of_a_clinic_are_told_as_they_came(ward: Ward) -> None:
    since = store.now() - timedelta(minutes=1)
    names = ["nothing.png", "edema.png", "lateral.png", "pneumothorax.png"]
    studies = [ward.take(png(n), name, requested="urgent" if n == 0 else None).study for n, name in enumerate(names)]
    ward.work()
    reviews.save(ward.database, SITE, studies[1], "dr", sign=True)
    with ward.database.read() as connection:
        before = connection.execute(sa.select(store.study)).all()
        found = {a.study: a for a in dry_run.arrivals(connection, SITE, since)}
        assert dry_run.arrivals(connection, "elsewhere", since) == []
        assert dry_run.arrivals(connection, SITE, store.now() + timedelta(minutes=1)) == []
    assert set(found) == set(studies)
    assert [found[s].floor for s in studies] == ["urgent", "routine", "routine", "routine"]
    assert [s.finding for s in found[studies[1]].scored if s.flagged] == ["Edema"]
    assert found[studies[1]].signed_at is not None
    assert found[studies[0]].signed_at is None
    assert (found[studies[2]].scored, found[studies[2]].refusal) == ((), "lateral only")
    now = store.now()
    compared = dry_run.compare(list(found.values()), Rule(), Rule(points={"Pneumothorax": 0.95}), since, now)
    assert [move.arrival.study for move in compared.down] == [studies[3]]
    assert compared.other_class == 1
    with ward.database.read() as connection:
        assert connection.execute(sa.select(store.study)).all() == before  # nothing was changed
    classes = {row.study: row.priority for row in worklist.page(ward.database, SITE).rows}
    replayed = dry_run.replay(list(found.values()), Rule(), now)
    assert {s: str(replayed[s].decision.priority) for s in classes} == classes

"""Taking turns: what a ratio promises, against a count of who was read."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from ward import SITE, Ward, png

from wetread.clinic import reviews, store, triage, turns, worklist
from wetread.clinic.priority import Priority, Rule, Rules
from wetread.clinic.triage import Policy

URGENT, ROUTINE = turns.CLASSES


class Queue:
    """A list in memory, by places."""

    def __init__(self, ratio: float) -> None:
        self.ratio, self.waiting, self.had, self.count = (
            ratio,
            list[tuple[float, int, Priority]](),
            dict[Priority, float](),
            0,
        )

    def add(self, cls: Priority) -> None:
        heads = {
            c: min(p for p, _, k in self.waiting if k is c)
            for c in turns.CLASSES
            if any(k is c for *_, k in self.waiting)
        }
        place, self.had = turns.take(self.ratio, cls, heads, self.had)
        self.count += 1
        self.waiting.append((place, self.count, cls))

    def take(self) -> Priority:
        self.waiting.sort()
        return self.waiting.pop(0)[2]


def word(found: list[Priority]) -> str:
    return "".join("U" if cls is URGENT else "r" for cls in found)


def test_while_both_wait_one_routine_follows_so_many_urgent_ones() -> None:
    queue = Queue(3)
    for cls in [ROUTINE] * 4 + [URGENT] * 9:
        queue.add(cls)
    assert word([queue.take() for _ in range(13)]) == "UUUrUUUrUUUrr"


def test_urgent_ones_that_come_one_by_one_starve_nobody() -> None:
    queue = Queue(2)
    for _ in range(5):
        queue.add(ROUTINE)
    read = []
    for _ in range(12):
        queue.add(URGENT)
        read.append(queue.take())
    assert word(read) == "UUr" * 4


def test_who_waited_alone_has_no_debt() -> None:
    queue = Queue(3)
    for _ in range(30):  # a quiet night: routine ones only
        queue.add(ROUTINE)
        assert queue.take() is ROUTINE
    for cls in [ROUTINE] * 2 + [URGENT] * 6:
        queue.add(cls)
    assert word([queue.take() for _ in range(8)]) == "UUUrUUUr"


@given(st.integers(1, 6), st.lists(st.sampled_from(turns.CLASSES), min_size=1, max_size=80))
def test_within_a_class_first_come_first_served(ratio: int, coming: list[Priority]) -> None:
    queue = Queue(ratio)
    for cls in coming:
        queue.add(cls)
    order = sorted(queue.waiting)
    for cls in turns.CLASSES:
        nth = [number for _, number, c in order if c is cls]
        assert nth == sorted(nth)


@given(st.integers(1, 6), st.integers(0, 40), st.integers(0, 40), st.randoms(use_true_random=False))
def test_shares_hold_however_they_come(ratio: int, urgent: int, routine: int, random: object) -> None:
    coming = [URGENT] * urgent + [ROUTINE] * routine
    random.shuffle(coming)  # type: ignore[attr-defined]
    queue = Queue(ratio)
    for cls in coming:
        queue.add(cls)
    read, left = [], urgent
    while queue.waiting and left and any(c is ROUTINE for *_, c in queue.waiting):
        read.append(queue.take())
        left -= read[-1] is URGENT
    taken = sum(cls is ROUTINE for cls in read)
    assert abs(taken - len(read) / (ratio + 1)) <= 1


def order(ward: Ward) -> str:
    rows = worklist.page(ward.database, SITE, limit=100).rows
    return "".join({"critical": "C", "urgent": "U", "routine": "r"}[row.priority] for row in rows)


def test_the_list_of_a_clinic_takes_turns(ward: Ward) -> None:
    ward.ranking = Policy(Rule(ratio=2))
    for n, name in enumerate(["nothing"] * 3 + ["edema"] * 5 + ["pneumothorax"]):
        ward.take(png(n), f"{name}.png")
    ward.work()
    assert order(ward) == "CUUrUUrUr"
    for wanted in ("UUrUUrUr", "UrUUrUr", "rUUrUr"):
        first = worklist.page(ward.database, SITE).rows[0].study
        reviews.save(ward.database, SITE, first, "dr", sign=True)
        assert order(ward) == wanted
    ward.take(png(50), "edema.png")  # one more urgent study does not come before a routine one whose turn it is
    ward.work()
    assert order(ward)[0] == "r"
    with ward.database.write() as connection:  # looked at again, nobody loses their turn
        for row in worklist.page(ward.database, SITE).rows:
            triage.refresh(connection, row.study, ward.ranking, store.now())
    before = order(ward)
    assert triage.rerank(ward.database, Policy(), SITE) == 7
    assert order(ward) == "UUUUrrr"
    assert triage.rerank(ward.database, ward.ranking, SITE) == 7
    assert sorted(order(ward)) == sorted(before)
    assert order(ward).startswith("UUr")


def test_a_cap_ends_the_turns(ward: Ward) -> None:
    ward.ranking = Policy(Rule(ratio=2))
    for n, name in enumerate(["edema"] * 4 + ["nothing"] * 2):
        ward.take(png(n), f"{name}.png")
    ward.work()
    assert order(ward) == "UUrUUr"
    last = worklist.page(ward.database, SITE).rows[-1]
    with ward.database.write() as connection:
        late = store.study.update().where(store.study.c.id == last.study)
        connection.execute(late.values(overdue_at=store.now() - timedelta(seconds=1)))
        assert triage.sweep(connection, Rules(ward.ranking.rule), store.now()) == [last.study]
    assert order(ward) == "rUUrUU"
    assert worklist.page(ward.database, SITE).rows[0].study == last.study


def test_a_finding_with_weight_stands_as_if_it_had_come_before(ward: Ward) -> None:
    ward.ranking = Policy(Rule(weights={"Edema": 30.0}))
    plain, heavy = ward.take(png(0), "nothing.png", requested="urgent").study, ward.take(png(1), "edema.png").study
    ward.work()
    assert [row.study for row in worklist.page(ward.database, SITE).rows] == [heavy, plain]
    with ward.database.write() as connection:
        older = store.study.update().where(store.study.c.id == plain)
        connection.execute(older.values(received_at=store.now() - timedelta(minutes=31)))
        triage.refresh(connection, plain, ward.ranking, store.now())
    assert [row.study for row in worklist.page(ward.database, SITE).rows] == [plain, heavy]
    with ward.database.read() as connection:
        assert connection.execute(sa.select(store.study.c.overdue)).scalars().all() == [False, False]

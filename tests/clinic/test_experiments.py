"""Blocks of site and shift: half of them in either order, nobody knows the next, and a study keeps its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from ward import SITE, Ward, png

from wetread.clinic import experiments, store, triage, worklist
from wetread.clinic.experiments import AI, ARRIVAL, Experiment
from wetread.clinic.triage import Policy

START = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
SHIFTS = {"shifts": ["07:00", "15:00", "23:00"], "zone": "Europe/Berlin", "block_minutes": 0, "blocks": 9999}
SHORT = {"shifts": [], "zone": "UTC", "block_minutes": 10, "blocks": 9999}


def made(plan: dict[str, Any], salt: str = "s", start: datetime = START) -> Experiment:
    return Experiment("e", SITE, plan, salt, "dr", start, None, None, "")


def begin(ward: Ward, plan: dict[str, Any], salt: str, start: datetime) -> None:
    with ward.database.write() as connection:
        store.ensure_site(connection, SITE)
        connection.execute(store.experiment.insert().values(
            id="e", site=SITE, plan=plan, salt=salt, actor="dr", started_at=start, reason=""))  # fmt: skip


def test_shifts_begin_by_the_clocks_of_the_site() -> None:
    found = made(SHIFTS)
    first = found.block(START)
    assert (first.number, first.since) == (0, datetime(2026, 3, 2, 6, tzinfo=UTC))  # 07:00 in Berlin, in winter
    assert found.block(START + timedelta(hours=5)).number == 1
    night = found.block(datetime(2026, 3, 3, 3, tzinfo=UTC))
    assert (night.number, night.since) == (2, datetime(2026, 3, 2, 22, tzinfo=UTC))
    summer = found.block(datetime(2026, 4, 1, 8, tzinfo=UTC))
    assert (summer.number, summer.since) == (90, datetime(2026, 4, 1, 5, tzinfo=UTC))


QUARTER = timedelta(minutes=15)
AROUND = timedelta(days=3)


def clock(zone: str, year: int) -> dict[datetime, datetime]:
    """Return when a clock shows what first, by looking at it every quarter of an hour of a year and the days about it.

    What it skips it would have shown as long after the skip as that lies after its beginning.
    """
    first: dict[datetime, datetime] = {}
    at, due = datetime(year - 1, 12, 27, tzinfo=UTC), None
    while at < datetime(year + 1, 1, 5, tzinfo=UTC):
        shown = at.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        for skipped in range((shown - (due or shown)) // QUARTER):
            first.setdefault((due or shown) + skipped * QUARTER, at + skipped * QUARTER)
        first.setdefault(shown, at)
        at, due = at + QUARTER, shown + QUARTER
    return first


@pytest.mark.parametrize(
    ("zone", "year"),
    [("Europe/Berlin", 2026), ("Australia/Lord_Howe", 2026), ("America/Sao_Paulo", 2018), ("Pacific/Apia", 2011),
     ("Asia/Kathmandu", 2026)],
)  # fmt: skip
def test_blocks_share_out_the_year_whatever_the_clocks_do(zone: str, year: int) -> None:
    first = clock(zone, year)
    for shifts in (("06:00", "14:00", "22:00"), ("00:15", "02:30", "23:45"), ("02:15",)):
        starts = [first[shown] for shown in sorted(first) if f"{shown:%H:%M}" in shifts]
        found = made({"shifts": [*reversed(shifts)], "zone": zone, "block_minutes": 0, "blocks": 9999}, start=starts[9])
        offsets = [[(at + by).astimezone(ZoneInfo(zone)).utcoffset() for by in (-AROUND, AROUND)] for at in starts]
        for n, start in enumerate(starts[9:-9], 9):
            if offsets[n][0] == offsets[n][1] and n % 29:
                continue  # like its neighbours
            for at in (
                start - timedelta(microseconds=1),
                start,
                start + timedelta(hours=1),
                start + timedelta(hours=5),
            ):
                wanted = max(m for m in range(n - 9, n + 9) if starts[m] <= at)
                block = found.block(at)
                assert (block.number, block.since) == (wanted - 9, starts[wanted])


@given(st.text(max_size=8), st.sampled_from([SHIFTS, SHORT]), st.integers(0, 500))
def test_of_two_blocks_one_is_in_either_order(salt: str, plan: dict[str, Any], pair: int) -> None:
    found = made(plan, salt)
    moments = [found.block(START).since + timedelta(hours=8 * n + 1) for n in (2 * pair, 2 * pair + 1)]
    if plan is SHORT:
        moments = [START + timedelta(minutes=10 * n + 1) for n in (2 * pair, 2 * pair + 1)]
    blocks = [found.block(at) for at in moments]
    assert [block.number for block in blocks] == [2 * pair, 2 * pair + 1]
    assert {block.arm for block in blocks} == {AI, ARRIVAL}


def test_which_comes_first_is_left_to_chance() -> None:
    found = made(SHORT, "any")
    first = [found.block(START + timedelta(minutes=20 * n)).arm for n in range(400)]
    assert 160 < first.count(AI) < 240  # four standard deviations of a fair coin


def salt(arm: str) -> str:
    return next(one for one in map(str, range(99)) if made(SHORT, one).block(START).arm == arm)


@pytest.mark.parametrize("arm", [AI, ARRIVAL])
def test_a_study_belongs_to_the_block_in_which_it_came(ward: Ward, arm: str) -> None:
    begin(ward, SHORT, salt(arm), store.now() - timedelta(minutes=1))
    key = ward.take(png(), "edema.png").study
    with ward.database.read() as connection:
        row = connection.execute(sa.select(store.assignment).where(store.assignment.c.study == key)).one()
        assert experiments.by_arrival(connection, SITE, store.now()) is (arm == ARRIVAL)
        assert not experiments.by_arrival(connection, "elsewhere", store.now())
    assert (row.kind, row.unit, row.arm, row.block) == ("experiment", "e", arm, "000000")


def test_by_arrival_what_ai_says_is_shown_and_told_and_ranks_nothing(ward: Ward) -> None:
    ward.ranking = Policy(by_arrival=True)
    plain = ward.take(png(0), "nothing.png").study
    ill = ward.take(png(1), "pneumothorax.png").study
    ward.work()
    found = worklist.study(ward.database, SITE, ill)
    assert (found.row.priority, found.row.reason) == ("routine", triage.BY_ARRIVAL)
    assert any(f.finding == "Pneumothorax" and f.flagged for f in found.findings)
    with ward.database.read() as connection:
        order = connection.execute(sa.select(store.study.c.id).order_by(store.study.c.rank, store.study.c.place))
        assert list(order.scalars()) == [plain, ill]
        assert connection.execute(sa.select(store.alert.c.study)).scalars().all() == [ill]
    triage.rerank(ward.database, Policy(), SITE)
    assert worklist.study(ward.database, SITE, ill).row.priority == "critical"


def test_a_list_is_to_be_ordered_anew_when_a_block_ends(ward: Ward) -> None:
    start = store.now() - timedelta(minutes=1)
    begin(ward, SHORT, "s", start)
    with ward.database.read() as connection:
        seen = [experiments.latest(connection, start + timedelta(minutes=m)) for m in (1, 9, 11)]
    assert seen == [("e 0",), ("e 0",), ("e 1",)]
    with ward.database.write() as connection:
        connection.execute(store.experiment.update().values(ended_at=store.now()))
        assert experiments.latest(connection, store.now()) == ()
        assert experiments.running(connection, SITE) is None


def test_after_the_planned_blocks_the_list_is_as_before(ward: Ward) -> None:
    start = store.now() - timedelta(minutes=21)
    begin(ward, SHORT | {"blocks": 2}, "s", start)
    key = ward.take(png(), "edema.png").study
    with ward.database.read() as connection:
        arms = [experiments.by_arrival(connection, SITE, start + timedelta(minutes=m)) for m in (1, 11, 21, 31, 41)]
        assert not connection.execute(sa.select(store.assignment).where(store.assignment.c.study == key)).first()
        assert experiments.latest(connection, store.now()) == ("e over",)
    assert sorted(arms[:2]) == [False, True]
    assert arms[2:] == [False, False, False]

"""The list: complete, in its order, page after page, and quick because an index holds the order."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from ward import SITE, Ward, png

from wetread.clinic import listing, priority, reviews, store, worklist
from wetread.clinic.priority import Priority
from wetread.errors import ClinicError, NotFoundError


def fill(ward: Ward, count: int, seed: int = 0) -> list[str]:
    """Insert studies of random class and time; return their ids in the order that a full sort gives."""
    rng, now = np.random.default_rng(seed), store.now()
    rows = []
    for number in range(count):
        cls = Priority(rng.choice(["critical", "urgent", "routine"], p=[0.05, 0.2, 0.75]))
        overdue = bool(rng.random() < 0.1)
        rows.append(
            {
                "id": f"{number:08d}-0000-4000-8000-000000000000",
                "site": SITE, "study_uid": f"1.{number}", "patient_id": str(number), "patient_name": "",
                "views": "PA", "images": 1, "cautions": [],
                "received_at": now - timedelta(seconds=int(rng.integers(0, 900))),  # many ties
                "analysis": str(rng.choice(["received", "analysed", "not_analysed"])),
                "reading": "signed" if rng.random() < 0.2 else "unread",
                "floor": "routine", "priority": str(cls), "reason": "r", "overdue": overdue,
                "overdue_at": now, "rank": priority.rank(cls, overdue),
            }
        )  # fmt: skip
    with ward.database.write() as connection:
        store.ensure_site(connection, SITE)
        connection.execute(store.study.insert(), rows)
    unread = [row for row in rows if row["reading"] != "signed"]
    return [row["id"] for row in sorted(unread, key=lambda r: (r["rank"], r["received_at"], r["id"]))]


def walk(ward: Ward, **query: object) -> list[worklist.Row]:
    found, after = [], None
    while True:
        page = worklist.page(ward.database, SITE, after=after, **query)  # type: ignore[arg-type]
        found += page.rows
        after = page.next
        if after is None:
            return found


@pytest.mark.parametrize("limit", [1, 7, 50, 500])
def test_pages_together_are_the_sorted_list(ward: Ward, limit: int) -> None:
    wanted = fill(ward, 120)
    assert [row.study for row in walk(ward, limit=limit)] == wanted


def test_filters_part_the_list(ward: Ward) -> None:
    wanted = fill(ward, 150)
    by_class = [row.study for cls in ("critical", "urgent", "routine") for row in walk(ward, priority=cls)]
    by_status = [row.study for s in ("received", "analysed", "not_analysed", "claimed") for row in walk(ward, status=s)]
    assert sorted(by_class) == sorted(wanted) == sorted(by_status)
    read = walk(ward, status="reviewed", limit=9)
    assert len(read) == 150 - len(wanted)
    assert [(r.received_at, r.study) for r in read] == sorted(((r.received_at, r.study) for r in read), reverse=True)


def test_counts_are_those_of_the_rows(ward: Ward) -> None:
    fill(ward, 150)
    rows, counts = walk(ward), worklist.page(ward.database, SITE).counts
    assert counts.unread == len(rows)
    for cls in ("critical", "urgent", "routine"):
        assert getattr(counts, cls) == sum(row.priority == cls for row in rows)
    assert counts.overdue == sum(row.overdue for row in rows)
    assert counts.received == sum(row.analysis == "received" for row in rows)
    assert counts.not_analysed == sum(row.analysis == "not_analysed" for row in rows)
    assert counts.oldest == min(row.received_at for row in rows)


def test_an_empty_list(ward: Ward) -> None:
    page = worklist.page(ward.database, SITE)
    assert (page.rows, page.next, page.counts.unread, page.counts.oldest) == ((), None, 0, None)


def test_a_page_walks_the_index_and_sorts_nothing(ward: Ward) -> None:
    fill(ward, 50)
    statements: list[tuple[str, object]] = []

    def note(conn: object, cursor: object, statement: str, parameters: object, *rest: object) -> None:
        statements.append((statement, parameters))

    sa.event.listen(ward.database.engine, "before_cursor_execute", note)
    first = worklist.page(ward.database, SITE, limit=10)
    worklist.page(ward.database, SITE, limit=10, after=first.next)
    sa.event.remove(ward.database.engine, "before_cursor_execute", note)
    pages = [(s, p) for s, p in statements if "ORDER BY study.rank" in s]
    assert len(pages) == 2
    with ward.database.read() as connection:
        for statement, parameters in pages:
            plan = " | ".join(
                str(row[-1]) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            )
            assert "USING COVERING INDEX ix_study_unread_priority" in plan
            assert "TEMP B-TREE" not in plan.split("SCAN page")[0]


@pytest.mark.parametrize("after", ["", "x", "!!!", "W10=", "WzEsMiwzXQ==", "eyJhIjoxfQ=="])
def test_a_broken_place_in_the_list_is_named(ward: Ward, after: str) -> None:
    with pytest.raises(ClinicError, match="after"):
        worklist.page(ward.database, SITE, after=after)


@pytest.mark.parametrize("query", [{"status": "lost"}, {"priority": "now"}])
def test_unknown_filters_are_named(ward: Ward, query: dict[str, str]) -> None:
    with pytest.raises(ClinicError, match="not one of"):
        worklist.page(ward.database, SITE, **query)  # type: ignore[arg-type]


def test_claims_run_out_by_themselves(ward: Ward) -> None:
    key = ward.take(png()).study
    until = reviews.claim(ward.database, SITE, key, "dr")
    assert [row.claimed_by for row in walk(ward, status="claimed")] == ["dr"]
    assert walk(ward, status="received") == []
    later = worklist.page(ward.database, SITE, now=until + timedelta(seconds=1)).rows[0]
    assert (later.status, later.claimed_by) == ("received", None)


def test_no_such_study(ward: Ward) -> None:
    with pytest.raises(NotFoundError):
        worklist.study(ward.database, SITE, "nothing")
    with pytest.raises(NotFoundError):
        worklist.row(ward.database, SITE, "nothing")


def test_a_big_list_is_paged_in_bounded_steps(tmp_path: Path) -> None:
    """What a page costs does not grow with the list: the same number of SQLite's steps, give or take the tree."""
    steps = []
    for count in (500, 5000):
        ward = Ward(tmp_path / str(count))
        fill(ward, count)
        with ward.database.read() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None
            seen = 0

            def tick() -> int:
                nonlocal seen
                seen += 1
                return 0

            driver.set_progress_handler(tick, 100)
            (way,) = listing.stretches(worklist.Query())
            wanted = listing.statement(way, SITE, None, 50, store.now(), shared=False)
            assert len(connection.execute(wanted).all()) == 50
            driver.set_progress_handler(None, 0)
        steps.append(seen)
        ward.database.close()
    assert steps[1] <= steps[0] + 2

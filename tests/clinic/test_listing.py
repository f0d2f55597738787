"""The worklist in any order: what a plain sort of all rows gives, page after page, on both databases."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from wetread.clinic import keys, listing, priority, store
from wetread.clinic.listing import Query
from wetread.clinic.priority import Priority
from wetread.clinic.store import Store
from wetread.errors import ClinicError

SITE, ELSEWHERE = "here", "elsewhere"
NOW = store.now()
NAMES = [
    "Müller, Jörg",
    "Muller, Ann",
    "MÜLLER, Zoë",
    "O'Neil, Pat",
    "van der Berg, Li",
    "山田, 太郎",
    "",
    "Ärzt, Ö",
    "Zed, A",
]
READERS = ["ann", "bob"]
STATUSES = ["received", "analysed", "not_analysed", "claimed"]


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Draw studies with many ties, empty values and every state."""
    rng = random.Random(seed)
    found: list[dict[str, Any]] = []
    for n in range(count):
        cls, overdue = Priority(rng.choice(list(Priority))), rng.random() < 0.2
        at = NOW - timedelta(minutes=rng.randrange(0, 60))
        analysis = rng.choice(["received", "analysed", "analysed", "not_analysed"])
        description = rng.choice([None, "Thorax p.a.", "thorax AP", "Chest"])
        found.append(
            {
                "id": f"{rng.randrange(16**8):08x}-{n:04d}", "site": rng.choice([SITE, SITE, SITE, ELSEWHERE]),
                "study_uid": f"1.{n}", "patient_id": rng.choice(["47-11 A", "4711b", f"P{n}", ""]),
                "patient_name": rng.choice(NAMES), "accession": rng.choice([None, "A-1", f"a1{n}"]),
                "description": description, "title": description or "CHEST",
                "views": rng.choice(["PA", "AP", "PA+LAT", ""]),
                "age_years": rng.choice([None, 0.4, 9.9, 10.0, 63.5, 89.0]), "images": 1, "cautions": [],
                "received_at": at, "analysis": analysis, "reading": rng.choice(["unread", "unread", "draft", "signed"]),
                "floor": "routine", "priority": str(cls), "finding": rng.choice([None, "Edema", "Fracture"]),
                "reason": "r", "overdue": overdue, "overdue_at": at + timedelta(minutes=rng.randrange(5)),
                "rank": priority.rank(cls, overdue), "listed": rng.random() < 0.95,
            }
        )  # fmt: skip
    return found


def fill(database: Store, count: int, seed: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Put drawn studies into a database; return them, and who holds which."""
    drawn, rng = rows(count, seed), random.Random(seed)
    held = {row["id"]: rng.choice(READERS) for row in drawn if row["reading"] != "signed" and rng.random() < 0.2}
    gone = [row["id"] for row in drawn if row["id"] not in held and rng.random() < 0.1]
    later, before = NOW + timedelta(hours=1), NOW - timedelta(seconds=1)
    with database.write() as connection:
        for site in (SITE, ELSEWHERE):
            store.ensure_site(connection, site)
        connection.execute(store.study.insert(), drawn)
        claims = [{"study": k, "reader": r, "at": NOW, "expires_at": later} for k, r in held.items()]
        claims += [{"study": k, "reader": "ann", "at": NOW, "expires_at": before} for k in gone]  # ran out
        connection.execute(store.claim.insert(), claims)
    return drawn, held


def expected(drawn: list[dict[str, Any]], held: dict[str, str], query: Query) -> list[str]:
    """Filter and sort all rows, as somebody would who never heard of SQL."""

    def fits(row: dict[str, Any]) -> bool:
        if row["site"] != SITE or not row["listed"] or (row["reading"] == "signed") != query.read:
            return False
        reader, age = held.get(row["id"]), row["age_years"]
        name, search = plain(row["patient_name"]), plain(query.search)
        numbers = [plain(row["patient_id"]).replace(" ", ""), plain(row["accession"] or "").replace(" ", "")]
        parts = search.split(" ", 1)
        swapped = " ".join(parts[::-1])
        digits = any(c.isdigit() for c in search)
        return all(
            (
                query.status not in ("received", "analysed", "not_analysed")
                or (row["analysis"] == query.status and reader is None),
                query.status != "claimed" or reader is not None,
                query.reader is None or reader == query.reader,
                query.priority is None or row["priority"] == query.priority,
                query.finding is None or row["finding"] == query.finding,
                query.view is None or row["views"] == ("" if query.view == "unknown" else query.view),
                not query.overdue or row["overdue"],
                query.age_from is None or (age is not None and age >= query.age_from),
                query.age_to is None or (age is not None and int(age) <= query.age_to),
                query.since is None or row["received_at"] >= query.since,
                query.until is None or row["received_at"] < query.until,
                not query.search.strip()
                or (search != "" and name.startswith((search, swapped)))
                or (digits and any(n.startswith(search.replace(" ", "")) for n in numbers)),
            )
        )

    ways: dict[str, Any] = {
        "priority": lambda r: (r["rank"], r["received_at"]),
        "due": lambda r: (r["overdue_at"],),
        "arrived": lambda r: (r["received_at"],),
        "patient": lambda r: (plain(r["patient_name"]), r["received_at"]),
        "age": lambda r: (999 if r["age_years"] is None else r["age_years"], r["received_at"]),
        "study": lambda r: (plain(r["title"]), r["received_at"]),
        "view": lambda r: (r["views"], r["received_at"]),
    }
    order = query.sort or ("arrived" if query.read else "priority")
    down = query.read if query.sort is None and query.descending is None else bool(query.descending)
    fitting = [r for r in drawn if fits(r)]
    if order in ("why", "status", "reader"):
        # In groups, those without a finding or reader last; by status the groups turn round, not what is in them.
        groups: dict[str, Any] = {
            "why": lambda r: r["finding"],
            "status": lambda r: STATUSES.index("claimed" if r["id"] in held else r["analysis"]),
            "reader": lambda r: held.get(r["id"]),
        }
        fitting.sort(key=lambda r: (*ways["priority"](r), r["id"]), reverse=down and order != "status")
        some = sorted((r for r in fitting if groups[order](r) is not None), key=groups[order])
        if down:  # turned round as a whole, and within each group back again for `status`
            some = sorted(some, key=groups[order], reverse=True)
        none = [r for r in fitting if groups[order](r) is None]
        return [r["id"] for r in (*some, *(none[::-1] if down and order != "status" else none))]
    found = sorted(fitting, key=lambda r: (*ways[order](r), r["id"]), reverse=down)
    return [row["id"] for row in found]


def plain(text: str) -> str:
    """Fold a text by hand: the names of this test have no other marks."""
    folded = text.casefold().translate(str.maketrans("äöüë", "aoue"))
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def walk(database: Store, query: Query, limit: int) -> list[str]:
    """Page through a list to its end."""
    found: list[str] = []
    after = None
    while True:
        page = listing.page(database, SITE, query, after=after, limit=limit, now=NOW)
        found += [row.study for row in page.rows]
        assert len(page.rows) == limit or page.next is None
        after = page.next
        if after is None:
            return found


QUERIES = st.builds(
    Query,
    status=st.none() | st.sampled_from(listing.STATUSES),
    priority=st.none() | st.sampled_from([str(p) for p in Priority]),
    overdue=st.booleans(),
    finding=st.none() | st.sampled_from(["Edema", "Fracture", "Hernia"]),
    view=st.none() | st.sampled_from(listing.VIEWS),
    reader=st.none() | st.sampled_from([*READERS, "nobody"]),
    age_from=st.none() | st.sampled_from([0.0, 9.9, 10.0, 64.0]),
    age_to=st.none() | st.sampled_from([0.0, 9.0, 63.0, 120.0]),
    since=st.none() | st.integers(0, 60).map(lambda m: NOW - timedelta(minutes=m)),
    until=st.none() | st.integers(0, 60).map(lambda m: NOW - timedelta(minutes=m)),
    search=st.sampled_from(
        ["", "", "", "mull", "Müller, J", "jorg mu", "47", "4711", "a1", "o neil", "山", "  ", "-", "van der b"]
    ),
    sort=st.none(),
    descending=st.none() | st.booleans(),
)  # fmt: skip


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, list[dict[str, Any]], dict[str, str]]]:
    database = Store.open(tmp_path_factory.mktemp("list"))
    yield database, *fill(database, 240, seed=1)
    database.close()


def alike(filled: tuple[Store, list[dict[str, Any]], dict[str, str]], query: Query, limit: int) -> None:
    database, drawn, held = filled
    assert walk(database, query, limit) == expected(drawn, held, query)


@pytest.mark.parametrize("descending", [None, False, True])
@pytest.mark.parametrize("sort", [None, *listing.SORTS])
def test_each_order_is_a_plain_sort_of_all_rows(filled: Any, sort: str | None, descending: bool | None) -> None:
    for limit in (1, 7, 500):
        alike(filled, Query(sort=sort, descending=descending), limit)
    if sort in (None, *store.READ_ORDERS):
        alike(filled, Query(status="reviewed", sort=sort, descending=descending), 9)


@given(QUERIES, st.none() | st.sampled_from(listing.SORTS), st.integers(1, 60))
def test_any_filter_in_any_order_is_a_plain_sort_of_what_fits(
    filled: Any, query: Query, sort: str | None, limit: int
) -> None:
    allowed = store.READ_ORDERS if query.read else listing.SORTS
    alike(filled, replace(query, sort=sort if sort in allowed else None), limit)


def test_no_page_skips_or_repeats_a_row_while_others_come_and_go(tmp_path: Path) -> None:
    """What is there from beginning to end is seen exactly once, whatever happens in between."""
    database = Store.open(tmp_path)
    drawn, _ = fill(database, 200, seed=2)
    rng, table = random.Random(3), store.study
    for query in (
        Query(), Query(sort="patient"), Query(sort="due", descending=True), Query(sort="why"), Query(sort="status"),
        Query(sort="reader"),
    ):  # fmt: skip
        stay = set(walk(database, query, 500))
        seen: list[str] = []
        after, extra = None, 0
        while True:
            page = listing.page(database, SITE, query, after=after, limit=7, now=NOW)
            seen += [row.study for row in page.rows]
            after = page.next
            if after is None:
                break
            gone = rng.choice(sorted(stay - set(seen)) or [""])  # somebody reads a study further down …
            new = {**rng.choice(drawn), "id": f"new-{query.order}-{extra}", "study_uid": f"9.{query.order}.{extra}"}
            extra += 1
            with database.write() as connection:
                connection.execute(table.update().where(table.c.id == gone).values(reading="signed"))
                connection.execute(table.insert().values(new))  # … and another one comes
            stay.discard(gone)
        assert len(seen) == len(set(seen))
        assert stay <= set(seen)
    database.close()


def test_a_page_never_sorts_nor_looks_at_rows_that_it_does_not_show(filled: Any) -> None:
    """Every order and filter is a walk along an index that covers it; only the page's own rows are looked up."""
    database: Store = filled[0]
    narrow: list[dict[str, Any]] = [
        {}, {"priority": "urgent"}, {"finding": "Edema"}, {"view": "PA"}, {"overdue": True}, {"status": "analysed"},
        {"age_from": 3.0, "age_to": 70.0}, {"since": NOW, "until": NOW},
        {"finding": "Edema", "view": "AP", "age_to": 9.0},
    ]  # fmt: skip
    for more in narrow:
        for sort in listing.SORTS:
            queries = [Query(**more, sort=sort), Query(**more, sort=sort, descending=True)]
            if sort in store.READ_ORDERS and not more.get("status"):
                queries.append(Query(**more, sort=sort, status="reviewed"))
            for query, way in ((asked, way) for asked in queries for way in listing.stretches(asked)):
                walked = plan(database, way).split("SCAN page")[0]
                if way.held:  # few, found by who holds them
                    assert "SCAN claim " in walked, (query, walked)
                    assert "SEARCH study USING INDEX sqlite_autoindex_study_1" in walked, (query, walked)
                    continue
                assert "TEMP B-TREE" not in walked, (query, walked)
                alone = way.query.order == "priority" and (
                    any(x in more for x in ("priority", "finding")) or way.query.status in STATUSES
                )
                covered = f"COVERING INDEX ix_study_{'read' if query.read else 'unread'}_{way.query.order} "
                assert covered in walked or alone, (query, walked)


def plan(database: Store, way: listing.Stretch) -> str:
    statements: list[tuple[str, Any]] = []
    wanted = listing.statement(way, SITE, None, 51, NOW, shared=False)

    def note(conn: object, cursor: object, statement: str, parameters: object, *rest: object) -> None:
        statements.append((statement, parameters))

    with database.read() as connection:
        sa.event.listen(database.engine, "before_cursor_execute", note)
        connection.execute(wanted).all()
        sa.event.remove(database.engine, "before_cursor_execute", note)
        statement, parameters = statements[-1]
        explained = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        return " | ".join(str(row[-1]) for row in explained)


def test_an_address_of_a_page_tells_no_name(filled: Any) -> None:
    database = filled[0]
    after = listing.page(database, SITE, Query(sort="patient", search="mull"), limit=1, now=NOW).next
    assert after is not None
    said = base64.urlsafe_b64decode(after).decode().casefold()
    assert not any(word in said for word in ("mull", "müll", "jorg", "jörg", "zo", "ann"))


@pytest.mark.parametrize(
    "after",
    ['["arrived","2026-01-01T00:00:00+00:00","x"]', '["patient",null,"2026-01-01T00:00:00+00:00","no such study"]',
     '["patient",null,"2026-01-01T00:00:00","x"]', '["patient",null,"0001-01-01T00:00:00+14:00","x"]',
     '["patient"]', "[]", "{}", "null"],
)  # fmt: skip
def test_a_place_of_another_list_or_a_made_up_one_is_refused(filled: Any, after: str) -> None:
    with pytest.raises(ClinicError, match="after"):
        listing.page(filled[0], SITE, Query(sort="patient"), after=base64.urlsafe_b64encode(after.encode()).decode())


@pytest.mark.parametrize(
    "more",
    [{"status": "lost"}, {"priority": "now"}, {"view": "OBLIQUE"}, {"sort": "shoe size"}, {"age_from": -1.0},
     {"age_to": float("nan")}, {"search": "x" * 129}, {"finding": "a\0b"}, {"status": "reviewed", "sort": "due"}],
)  # fmt: skip
def test_a_query_that_cannot_be_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ClinicError):
        Query(**more)


@given(st.text(max_size=40), st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)))
def test_keys_are_folded_once_and_for_all(text: str, moment: datetime) -> None:
    once = keys.words(text)
    assert keys.words(once) == once
    assert keys.number(text) == keys.words(text).replace(" ", "")
    assert all(c.isalnum() or c == " " for c in once)


@given(st.text(min_size=1, max_size=5), st.text(max_size=5))
def test_what_begins_with_a_text_lies_between_it_and_what_is_beyond(text: str, other: str) -> None:
    assert (text <= other < keys.beyond(text)) == other.startswith(text)
    assert text <= text + other < keys.beyond(text)


@pytest.mark.system
def test_postgresql_gives_the_same_lists(postgresql: str) -> None:
    database = Store(postgresql)
    filled = database, *fill(database, 240, seed=1)
    for sort in (None, *listing.SORTS):
        for descending in (False, True):
            alike(filled, Query(sort=sort, descending=descending), 7)
            if sort in (None, *store.READ_ORDERS):
                alike(filled, Query(status="reviewed", sort=sort, descending=descending), 50)
    some: list[dict[str, Any]] = [
        {"priority": "urgent"}, {"finding": "Edema"}, {"view": "unknown"}, {"overdue": True}, {"reader": "ann"},
        {"status": "analysed"}, {"status": "claimed"}, {"age_from": 10.0, "age_to": 63.0}, {"age_to": 9.0},
        {"since": NOW - timedelta(minutes=30), "until": NOW - timedelta(minutes=10)}, {"search": "jorg mull"},
        {"search": "47-11"}, {"search": "山"}, {"search": "a1", "status": "reviewed"}, {"search": "m"},
    ]  # fmt: skip
    for more in some:
        for sort in (None, "patient", "age"):
            alike(filled, Query(**more, sort=sort), 7)
    after = listing.page(database, SITE, Query(sort="patient"), limit=1, now=NOW).next
    assert after is not None
    listing.page(database, SITE, Query(sort="patient"), after=after, now=NOW)
    database.close()

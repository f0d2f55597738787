"""The worklist of a department with a long history: server time of every order, filter, search and depth.

A clinic's database is filled with synthetic studies (most of them read, as in life), and the function that the page
calls, `wetread.clinic.listing.page`, is timed from call to rows. Each call takes another value or another place.
"""

from __future__ import annotations

import argparse
import itertools
import random
import signal
import sqlite3
import sys
import tempfile
import time
from bisect import bisect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from tests.peers import postgresql
from wetread.clinic import keys, listing, priority, store
from wetread.clinic.listing import Query
from wetread.clinic.priority import Priority
from wetread.clinic.store import Store
from wetread.findings import CHEXPERT

SITE = "default"
NOW = datetime.now(UTC)
YEARS = 3.0  # of history
FINDINGS = [f for f in CHEXPERT.findings if f not in ("No Finding", "Support Devices")]
TITLES, VIEWS = ("Thorax p.a.", "Chest 2 views", "THORAX", "Bedside chest"), ("PA", "PA+LAT", "AP", "LAT", "")
SHARES = np.array([0.5**n for n in range(len(FINDINGS))]) / sum(0.5**n for n in range(len(FINDINGS)))
RULE = priority.Rule()


def names(rng: random.Random, count: int) -> list[str]:
    """Return family names of two to four syllables: 30,000 or so, the commonest a hundred times as frequent."""
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "el", "er", "in", "ott")]
    known = ["".join(rng.choices(syllables, k=rng.choice((2, 2, 3, 4)))).title() for _ in range(30_000)]
    weights = [1 / (10 + place) for place in range(len(known))]
    return rng.choices(known, weights, k=count)


def studies(count: int, unread: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Make the rows of studies, newest last: `count - unread` read ones over three years, the rest of 36 hours."""
    rng, draw = random.Random(seed), np.random.default_rng(seed)
    families, givens = names(rng, count), names(rng, count)
    found = draw.choice(FINDINGS, count, p=SHARES).tolist()
    chance, years = draw.random((count, 6)).tolist(), draw.gamma(9, 6.5, count).round(1).tolist()
    fold, read = cache(keys.words), count - unread
    for n, (family, given, c) in enumerate(zip(families, givens, chance, strict=True)):
        new = n >= read
        at = NOW - (
            timedelta(hours=36) * ((count - n) / unread) if new else timedelta(days=365 * YEARS) * (1 - n / read)
        )
        analysis = "not_analysed" if c[0] < 0.04 else "received" if new and c[0] > 0.999 else "analysed"
        finding = found[n] if c[1] < 0.4 and analysis == "analysed" else None
        cls = (RULE.of(finding) if finding else None) or Priority.ROUTINE
        due, patient, accession = priority.overdue_at(RULE, cls, at), f"P{n * 7919 % 10**7:07d}", f"A{n:08d}"
        overdue, title, age = new and due <= NOW, TITLES[int(c[2] * 4)], None if c[3] > 0.99 else years[n]
        yield {
            "id": f"{n * 2654435761 % 2**32:08x}-0000-4000-8000-{n:012x}",
            "site": SITE, "study_uid": f"1.2.840.{n}", "patient_id": patient, "patient_name": f"{family}, {given}",
            "birth_date": "1960-01-01", "sex": "MF"[int(c[3] * 2)], "age_years": age, "accession": accession,
            "description": title, "title": title, "acquired_at": at.isoformat()[:19],
            "views": VIEWS[bisect((0.45, 0.75, 0.95, 0.99), c[4])], "images": 1, "cautions": "[]", "received_at": at,
            "analysis": analysis, "code": "LATERAL_ONLY" if analysis == "not_analysed" else None,
            "reading": ("draft" if c[5] < 0.01 else "unread") if new else "signed",
            "floor": "routine", "priority": str(cls), "finding": finding, "model": "bench 1" if finding else None,
            "reason": f"{finding} likely (bench 1)" if finding else "no finding flagged (bench 1)",
            "overdue": overdue, "overdue_at": due, "rank": priority.rank(cls, overdue), "listed": True,
            "name_key": f"{fold(family)} {fold(given)}", "id_key": patient.lower(), "accession_key": accession.lower(),
            "title_key": fold(title), "age_key": keys.age(age), "place": keys.place(at),
        }  # fmt: skip


def fill(database: Store, count: int, unread: int) -> None:
    """Put the studies in, in bulk and without indexes, which are made afterwards; and claims on some of them."""
    columns = list(next(studies(1, 1)))
    assert all(row == keys.keyed(row) for row in studies(1000, 20))
    rows = (tuple(row.values()) for row in studies(count, unread))
    with database.engine.begin() as connection:
        store.ensure_site(connection, SITE)
    for index in store.study.indexes:
        index.drop(database.engine)
    raw = database.engine.raw_connection()
    listed, driver = ", ".join(columns), raw.driver_connection
    if isinstance(driver, sqlite3.Connection):
        driver.execute("BEGIN IMMEDIATE")
        text = lambda v: f"{v:%Y-%m-%d %H:%M:%S.%f}" if isinstance(v, datetime) else v  # noqa: E731
        driver.executemany(
            f"INSERT INTO study ({listed}) VALUES ({', '.join('?' * len(columns))})",
            (tuple(map(text, r)) for r in rows),
        )
    else:
        with driver.cursor() as cursor, cursor.copy(f"COPY study ({listed}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
    raw.commit()
    raw.close()
    for index in store.study.indexes:
        index.create(database.engine)
    with database.write() as connection:
        some = (
            sa.select(store.study.c.id)
            .where(sa.text("reading != 'signed'"))
            .order_by(store.study.c.id.desc())
            .limit(40)
        )
        held = [{"study": key, "reader": f"reader {n % 8}", "at": NOW, "expires_at": NOW + timedelta(days=1)}
                for n, key in enumerate(connection.execute(some).scalars())]  # fmt: skip
        connection.execute(store.claim.insert(), held)
    if database.shared:  # what PostgreSQL does by itself within a minute
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE study")


def cases(rng: random.Random, unread: int, history: int) -> dict[str, Callable[[], Query]]:
    """Return what is asked: name → maker of one query after another."""
    made: dict[str, Callable[[], Query]] = {}
    some = lambda values: lambda: rng.choice(values)  # noqa: E731
    finding, view, cls = some(FINDINGS), some(listing.VIEWS), some([str(p) for p in Priority])
    age, day = (lambda: float(rng.randrange(0, 90, 10))), (lambda: NOW - timedelta(hours=rng.randrange(1, 36)))
    long_ago = lambda: NOW - timedelta(days=rng.randrange(1, int(365 * YEARS)))  # noqa: E731
    family = [name.lower() for name in dict.fromkeys(names(random.Random(0), 5000))]
    for order, back in itertools.product(listing.SORTS, (False, True)):
        made[f"unread by {order}{' backwards' if back else ''}"] = lambda o=order, b=back: Query(sort=o, descending=b)
        if order in store.READ_ORDERS:
            made[f"read by {order}{' backwards' if back else ''}"] = lambda o=order, b=back: Query(
                status="reviewed", sort=o, descending=b
            )
    filters: dict[str, Callable[[], dict[str, Any]]] = {
        "class": lambda: {"priority": cls()},
        "finding": lambda: {"finding": finding()},
        "view": lambda: {"view": view()},
        "age": lambda: {"age_from": (a := age()), "age_to": a + 9},
        "date": lambda: {"since": (d := day()), "until": d + timedelta(hours=1)},
        "overdue": lambda: {"overdue": True},
        "not analysed": lambda: {"status": "not_analysed"},
        "unclaimed": lambda: {"status": "analysed"},
        "claimed": lambda: {"status": "claimed"},
        "mine": lambda: {"reader": f"reader {rng.randrange(8)}"},
        "name": lambda: {"search": rng.choice(family)},
        "two letters": lambda: {"search": rng.choice(family)[:2]},
        "patient ID": lambda: {"search": f"P{rng.randrange(unread + history) * 7919 % 10**7:07d}"},
        "accession": lambda: {"search": f"A{rng.randrange(unread + history):08d}"},
        "finding and view": lambda: {"finding": finding(), "view": view()},
        "finding, class and age": lambda: {"finding": finding(), "priority": cls(), "age_from": 40.0, "age_to": age()},
        "view, age and date": lambda: {"view": view(), "age_to": 9.0, "since": day()},
        "nothing fits": lambda: {"view": "LAT", "age_from": 190.0, "finding": "Edema"},
    }  # fmt: skip
    for (name, make), order in itertools.product(filters.items(), listing.SORTS):
        made[f"unread, {name}, by {order}"] = lambda m=make, o=order: Query(**m(), sort=o)
    past: dict[str, Callable[[], dict[str, Any]]] = filters | {
        "date": lambda: {"since": (d := long_ago()), "until": d + timedelta(days=1)},
        "view, age and date": lambda: {"view": view(), "age_to": 9.0, "since": long_ago()},
    }
    for gone in ("overdue", "not analysed", "unclaimed", "claimed", "mine"):
        del past[gone]
    for (name, make), order in itertools.product(past.items(), store.READ_ORDERS):
        made[f"read, {name}, by {order}"] = lambda m=make, o=order: Query(**m(), status="reviewed", sort=o)
    return made


def timed(call: Callable[..., Any], *arguments: Any, **more: Any) -> float:
    """Return how long a call takes, in ms."""
    start = time.perf_counter()
    call(*arguments, **more)
    return (time.perf_counter() - start) * 1000


def measure(database: Store, repeats: int, unread: int, history: int, only: str) -> dict[str, list[float]]:
    """Time every case, in ms: a first page of each query; and deep pages of a few orders."""
    found: dict[str, list[float]] = {}
    for name, make in cases(random.Random(1), unread, history).items():
        if only in name:
            listing.page(database, SITE, make())
            found[name] = [timed(listing.page, database, SITE, make()) for _ in range(repeats)]
    for query in (Query(), Query(sort="patient"), Query(status="reviewed"), Query(status="reviewed", sort="patient")):
        name = f"{'read' if query.read else 'unread'} by {query.order}, deep"
        if only in name:
            found[name] = list(_deep(database, query, repeats))
    if only in "counts":
        found["counts, when something happened"] = []
        for _ in range(repeats):
            database.memo.clear()
            found["counts, when something happened"].append(timed(listing.page, database, SITE))
    return found


def _deep(database: Store, query: Query, repeats: int) -> Iterator[float]:
    """Walk with pages of 500, which nobody shows, and time a page of 50 after each few of them."""
    after: str | None = None
    for _ in range(repeats):
        for _ in range(4):
            page = listing.page(database, SITE, query, after=after, limit=500)
            after = page.next or after
        yield timed(listing.page, database, SITE, query, after=after)


def report(title: str, found: dict[str, list[float]], full: bool) -> None:
    """Print p50 and p95 of each kind of question: the slowest case of each group, or every case."""
    print(f"\n{title}\n\n| what is asked | cases | p50 ms | p95 ms | slowest case |\n|---|---|---|---|---|")
    groups: dict[str, list[str]] = {}
    for name in found:
        scope, _, rest = name.partition(", ") if ", " in name else (name.split(" by ")[0], "", "any order")
        kind = rest.rpartition(", by ")[0] or rest
        groups.setdefault(name if full else f"{scope.split(' by ')[0]}: {kind}", []).append(name)
    for group, members in groups.items():
        every = np.concatenate([found[name] for name in members])
        worst = max(members, key=lambda name: np.percentile(found[name], 95))
        print(f"| {group} | {len(members)} | {np.percentile(every, 50):.1f} | {np.percentile(every, 95):.1f} "
              f"| {worst}: p95 {np.percentile(found[worst], 95):.1f} |")  # fmt: skip
    every = np.concatenate(list(found.values()))
    over = [name for name in found if np.percentile(found[name], 95) >= 50]
    print(f"| all | {len(found)} | {np.percentile(every, 50):.1f} | {np.percentile(every, 95):.1f} | |")
    print(f"\nCases with p95 of 50 ms or more: {', '.join(over) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), nargs="+", default=["sqlite", "postgresql"])
    parser.add_argument("--studies", type=int, help="default: 100,000 on SQLite, 1,000,000 on PostgreSQL")
    parser.add_argument("--unread", type=float, default=0.02, help="share of them that is unread")
    parser.add_argument("--url", help="a PostgreSQL of your own, filled when it is empty; to measure in pieces")
    parser.add_argument("--repeats", type=int, default=20, help="of each case")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--full", action="store_true", help="print every case")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that PostgreSQL ends with us
    for kind in arguments.database:
        count = arguments.studies or (100_000 if kind == "sqlite" else 1_000_000)
        unread = int(count * arguments.unread)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wetread-worklist-")))
            url = f"sqlite:///{folder}/clinic.db" if kind == "sqlite" else arguments.url
            database = Store(url or stack.enter_context(postgresql()))
            stack.callback(database.close)
            with database.read() as connection:
                there = connection.execute(sa.select(sa.func.count()).select_from(store.study)).scalar_one()
            seconds = 0.0 if there else timed(fill, database, count, unread) / 1000
            found = measure(database, arguments.repeats, unread, count - unread, arguments.only)
            with database.read() as connection:
                version = connection.exec_driver_sql(
                    "SELECT version()" if database.shared else "SELECT 'SQLite ' || sqlite_version()"
                ).scalar_one()
            size = f"{count:,} studies, {unread:,} of them unread; {_size(database, folder)}"
            filled = f"filled in {seconds:.0f} s" if seconds else "filled before"
            title = f"{version.split(' on ')[0]}: {size}; {filled}"
            report(title, found, arguments.full)


def _size(database: Store, folder: Path) -> str:
    if not database.shared:
        return f"{(folder / 'clinic.db').stat().st_size / 2**20:.0f} MiB"
    with database.read() as connection:
        table, indexes = connection.exec_driver_sql(
            "SELECT pg_table_size('study') / 1048576, pg_indexes_size('study') / 1048576"
        ).one()
    return f"table {table} MiB, indexes {indexes} MiB"


if __name__ == "__main__":
    main()

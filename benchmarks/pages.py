"""The pages of figures in a department with a long history: server time of operations, quality and a model's page.

On top of the studies of `benchmarks.worklist` come an image, its result and, for what is read, a signed review with
answers and the event of its opening: of the newest days in full, and reviews of all the years. What is timed is what
the pages call, from the call to the figures.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from prometheus_client import CollectorRegistry

from benchmarks.worklist import SITE, fill, timed
from tests.peers import postgresql
from wetread.clinic import accuracy, load, model_figures, quality, store
from wetread.clinic.figures import Period
from wetread.clinic.store import Store
from wetread.findings import CHEXPERT
from wetread.web import gauges

DAYS = 100  # of which there are images, results and events; reviews are of all the years
MODEL = "b" * 64
TABLES = ("series", "instance", "job", "image_result", "study_result", "review", "review_finding", "event")
Rows = Iterator[tuple[str, dict[str, Any]]]


def rows(studies: Iterator[Any], now: datetime, model: str, name: str, seed: int = 0) -> Rows:
    """Give table and row of all that belongs to studies, read or not."""
    rng = random.Random(seed)
    dumps, recent = json.dumps, now - timedelta(days=DAYS)
    for n, study in enumerate(studies):
        at, key = study.received_at, study.id
        opened = at + timedelta(
            minutes=rng.lognormvariate({"critical": 1, "urgent": 2.5, "routine": 4}[study.priority], 1)
        )
        signed = opened + timedelta(minutes=rng.lognormvariate(0.7, 0.6))
        # Of what is long ago nothing is looked at; one answer each makes the table as large as it would be.
        said = {f: rng.random() ** 3 for f in (CHEXPERT.findings if at > recent else CHEXPERT.findings[:1])}
        if study.finding:
            said[study.finding] = 0.6 + 0.4 * rng.random()
        calls = {f: "likely" if p > 0.5 else "unsure" if p > 0.3 else "unlikely" for f, p in said.items()}
        if at > recent:
            yield "series", {"id": f"s{key[1:]}", "study": key, "series_uid": f"1.2.{n}"}
            yield "instance", {
                "id": key, "site": SITE, "study": key, "series": f"s{key[1:]}", "sop_uid": f"1.3.{n}",
                "sha256": f"{n:064x}", "bytes": 12_000_000, "format": "dicom", "name": "", "state": "stored",
                "received_at": at,
            }  # fmt: skip
            yield "job", {
                "instance": key, "model": model, "floor": 2, "tries": 1, "due_at": at,
                "state": "queued" if study.analysis == "received" else "done",
            }  # fmt: skip
            refused = study.analysis == "not_analysed"
            if study.analysis == "analysed":
                yield "study_result", {
                    "id": f"t{key[1:]}", "study": key, "images": "", "model": model, "model_name": name, "at": at,
                    "findings": dumps([{"finding": f, "probability": p, "flagged": p > 0.5} for f, p in said.items()]),
                }  # fmt: skip
            found = [
                {"finding": f, "probability": p, "threshold": 0.5, "flagged": p > 0.5, "call": calls[f]}
                for f, p in said.items()
            ]
            if study.analysis != "received":
                yield "image_result", {
                    "id": f"r{key[1:]}", "instance": key, "model": model, "model_name": name, "version": "1",
                    "suitable": not refused, "code": rng.choice(("LATERAL_ONLY", "NOT_CHEST")) if refused else None,
                    "reason": "", "cautions": "[]", "point": "screen", "findings": "[]" if refused else dumps(found),
                    "seconds": rng.lognormvariate(-1.2, 0.4), "at": at + timedelta(seconds=rng.lognormvariate(1, 0.7)),
                }  # fmt: skip
        if study.reading != "signed" or signed > now:
            continue
        reader = f"reader {n % 8}"
        normal = not study.finding and rng.random() < 0.6
        if at > recent:
            yield (
                "event",
                {
                    "at": opened,
                    "site": SITE,
                    "kind": "study.claimed",
                    "study": key,
                    "payload": dumps({"reader": reader}),
                },
            )
        yield "review", {
            "id": f"v{key[1:]}", "study": key, "reader": reader, "state": "signed", "normal": normal, "note": "",
            "models": dumps([model]), "created_at": opened, "signed_at": signed, "anchored": n % 5 > 0,
        }  # fmt: skip
        for finding, call in calls.items():
            if not normal and (finding == study.finding or rng.random() < 0.2):
                right = {"likely": 0.88, "unsure": 0.6, "unlikely": 0.96}[call]
                answer = "unsure" if rng.random() < 0.05 else "agree" if rng.random() < right else "disagree"
                yield "review_finding", {
                    "review": f"v{key[1:]}", "finding": finding, "answer": answer, "call": call,
                    "probability": said[finding], "model": model,
                }  # fmt: skip


def more(database: Store, now: datetime, model: str = MODEL, name: str = "bench") -> dict[str, int]:
    """Put these rows in, in bulk; return how many of each table."""
    with database.read() as connection:
        columns = [store.study.c[c] for c in ("id", "received_at", "analysis", "reading", "priority", "finding")]
        studies = connection.execute(sa.select(*columns)).all()
    tables: dict[str, list[tuple[Any, ...]]] = {table: [] for table in TABLES}
    heads: dict[str, list[str]] = {}
    for table, row in rows(iter(studies), now, model, name):
        heads.setdefault(table, list(row))
        tables[table].append(tuple(row.values()))
    raw = database.engine.raw_connection()
    driver: Any = raw.driver_connection
    for table, values in tables.items():
        listed = ", ".join(heads[table])
        if isinstance(driver, sqlite3.Connection):
            text = lambda v: f"{v:%Y-%m-%d %H:%M:%S.%f}" if isinstance(v, datetime) else v  # noqa: E731
            driver.execute("BEGIN IMMEDIATE")
            driver.executemany(
                f"INSERT INTO {table} ({listed}) VALUES ({', '.join('?' * len(heads[table]))})",
                (tuple(map(text, row)) for row in values),
            )
            driver.execute("COMMIT")
        else:
            with driver.cursor() as cursor, cursor.copy(f"COPY {table} ({listed}) FROM STDIN") as copy:
                for row in values:
                    copy.write_row(row)
            raw.commit()
    raw.close()
    if database.shared:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table in TABLES:
                connection.exec_driver_sql(f"VACUUM ANALYZE {table}")
    return {table: len(values) for table, values in tables.items()}


def measure(database: Store, now: datetime, repeats: int) -> dict[str, list[float]]:
    """Time what each page calls, in ms."""

    known = gauges.Gauges(CollectorRegistry())

    def call(which: Any, *arguments: Any) -> None:
        with database.read() as connection:
            which(connection, SITE, *arguments)

    week = Period(now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=167), now)
    cases: dict[str, tuple[Any, ...]] = {
        "operations: queues": (load.queues, now),
        "operations: deliveries": (load.owed,),
        "operations: bytes of 7 days": (load.taken_in, Period.last(7, now)),
        "operations: throughput and latency of 7 days": (load.flow, week, load.HOUR),
        **{f"quality: {days} days": (quality.quality, Period.last(days, now)) for days in (7, 28, 90)},
        "models: list of 4 weeks": (model_figures.seen, Period.last(28, now)),
        "models: one, 4 weeks": (model_figures.numbers, MODEL, Period.last(28, now)),
    }
    of_right = Period.last(28, now)
    cases |= {
        "quality: how right, 28 days, any finding by week": (
            partial(accuracy.accuracy, finding=accuracy.ANY),
            of_right,
        ),
        "models: how right one was, 4 weeks": (partial(accuracy.accuracy, model=MODEL), of_right),
        "metrics: what the database knows": (lambda connection, _: known.measure(connection, now),),
    }
    kept: quality.Kept = {}
    found = {"quality: 90 days, the first time, at the start": [timed(quality.ahead, database, kept, now)]}
    cases |= {
        f"quality: {days} days, days that are over kept": (quality.quality, Period.last(days, now), kept)
        for days in (7, 28, 90)
    }
    for name, arguments in cases.items():
        call(*arguments)
        found[name] = [timed(call, *arguments) for _ in range(repeats)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), nargs="+", default=["sqlite", "postgresql"])
    parser.add_argument("--studies", type=int, help="default: 100,000 on SQLite, 1,000,000 on PostgreSQL")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    now = store.now()
    for kind in arguments.database:
        count = arguments.studies or (100_000 if kind == "sqlite" else 1_000_000)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wetread-pages-")))
            url = stack.enter_context(postgresql()) if kind == "postgresql" else f"sqlite:///{folder}/clinic.db"
            database = Store(url)
            stack.callback(database.close)
            fill(database, count, count // 50)
            sizes = more(database, now)
            print(f"\n{kind}: {count:,} studies; {', '.join(f'{n:,} {table}' for table, n in sizes.items())}")
            print("\n| what is asked | p50 ms | p95 ms |\n|---|---|---|")
            for name, times in measure(database, now, arguments.repeats).items():
                print(f"| {name} | {np.percentile(times, 50):.0f} | {np.percentile(times, 95):.0f} |")


if __name__ == "__main__":
    main()

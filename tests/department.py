"""A drawn department for the tests of figures: rows of every table, with all states, two sites and two models."""

from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import sqlalchemy as sa

from wetread.clinic import store, triage
from wetread.clinic.store import Store

HERE, ELSEWHERE = "here", "elsewhere"
NOW = datetime(2026, 3, 14, 15, 9, 26, 535897, tzinfo=UTC)
DAYS = 40
MODELS = {"a" * 64: "one", "b" * 64: "two"}
FINDINGS = ("Edema", "Fracture", "Pneumothorax", "No Finding")
ROUTINE = "routine"

Tables = dict[str, list[dict[str, Any]]]


def draw(count: int, seed: int = 0) -> Tables:
    """Draw studies and what belongs to them."""
    rng = random.Random(seed)
    tables: Tables = {name: [] for name in ORDER}
    for n in range(count):
        key, site = f"study-{n}", rng.choice((HERE, HERE, HERE, ELSEWHERE))
        at = NOW - timedelta(days=DAYS * rng.random() ** 2)
        signed = rng.random() < 0.8
        finding = rng.choice((None, *FINDINGS))
        priority = rng.choice(("critical", "urgent", "routine"))
        tables["study"].append({
            "id": key, "site": site, "study_uid": f"1.{n}", "patient_id": f"P{n}", "patient_name": "", "views": "PA",
            "images": 1, "cautions": [], "received_at": at, "analysis": "analysed", "overdue": False,
            "reading": "signed" if signed else "unread", "floor": rng.choice((priority, ROUTINE)), "priority": priority,
            "finding": finding, "overdue_at": at, "rank": 0,
            "reason": f"AI {triage.FIRST_COME}" if rng.random() < 0.3 else "why",
        })  # fmt: skip
        tables["series"].append({"id": f"series-{n}", "study": key, "series_uid": f"2.{n}"})
        for m in range(rng.choice((1, 1, 2))):
            _image(tables, rng, n, m, site, at)
        if signed:
            _review(tables, rng, n, at, finding)
        if rng.random() < 0.3:
            tables["delivery"].append({
                "id": f"delivery-{n}", "study": key, "kind": rng.choice(("sr", "fhir")), "destination": "there",
                "cause": "c", "detail": {}, "state": rng.choice(("queued", "failed", "given_up", "sent", "nothing")),
                "tries": 1, "due_at": at, "created_at": at,
            })  # fmt: skip
    return tables


def _image(tables: Tables, rng: random.Random, n: int, m: int, site: str, at: datetime) -> None:
    image, came = (
        str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        min(NOW - timedelta(seconds=1), at + timedelta(seconds=m)),
    )
    tables["instance"].append({
        "id": image, "site": site, "study": f"study-{n}", "series": f"series-{n}", "sop_uid": f"3.{n}.{m}",
        "sha256": f"{n:060x}{m:04x}", "bytes": rng.randrange(10**6), "format": "dicom", "name": "",
        "state": rng.choice(("stored", "stored", "stored", "quarantined", "document")), "received_at": came,
    })  # fmt: skip
    for model, name in MODELS.items():
        state = rng.choice(("done", "done", "done", "queued", "running"))
        tables["job"].append({
            "instance": image, "model": model, "floor": 0, "state": state, "tries": 0, "due_at": came,
        })  # fmt: skip
        if state != "done":
            continue
        suitable = rng.random() < 0.8
        said = [
            {"finding": f, "probability": (p := rng.random()), "threshold": 0.5, "flagged": p > 0.5, "call": "unsure"}
            for f in FINDINGS
        ]
        tables["image_result"].append({
            "id": f"{name}-{n}-{m}", "instance": image, "model": model, "model_name": name, "version": "1",
            "suitable": suitable, "code": None if suitable else rng.choice(("LATERAL_ONLY", "NOT_CHEST")), "reason": "",
            "cautions": [], "caution_codes": [], "point": "screen", "findings": said if suitable else [],
            "seconds": rng.random(), "at": came + timedelta(seconds=rng.expovariate(0.1)),
        })  # fmt: skip


def _review(tables: Tables, rng: random.Random, n: int, at: datetime, finding: str | None) -> None:
    key, reader = f"study-{n}", rng.choice(("ann", "bob"))
    opened = at + (NOW - at) * rng.random() * 0.5
    done = opened + (NOW - opened) * rng.random() * 0.5
    for other, when in (
        (reader, opened),
        (reader, opened + (done - opened) / 2),
        (reader, done + timedelta(1)),
        ("zoe", at),
    ):
        if rng.random() < 0.8:
            tables["event"].append({
                "at": when, "site": HERE, "study": key, "payload": {"reader": other},
                "kind": "study.claimed" if rng.random() < 0.8 else "study.released",
            })  # fmt: skip
    states = [
        ("signed", None),
        *rng.choice(([], [("withdrawn", None)], [("draft", None)], [("signed", f"review-{n}-0")])),
    ]
    for m, (state, parent) in enumerate(states):
        review, normal = f"review-{n}-{m}", rng.random() < 0.3
        tables["review"].append({
            "id": review, "study": key, "reader": reader, "state": state, "parent": parent, "normal": normal,
            "note": "", "models": list(MODELS), "created_at": opened, "signed_at": done,
            "anchored": rng.random() < 0.7,
        })  # fmt: skip
        for f in (*FINDINGS, "Something else"):
            if rng.random() < 0.6:
                call = rng.choice(("likely", "unsure", "unlikely", None)) if f in FINDINGS else None
                answer = rng.choice(("agree", "disagree", "unsure", "added")) if call else "added"
                model = rng.choice((*MODELS, None)) if call else None
                tables["review_finding"].append(
                    {"review": review, "finding": f, "answer": answer, "call": call, "model": model}
                )


ORDER = (
    *("study", "series", "instance", "job", "image_result", "image_trait", "study_result"),
    *("review", "review_finding", "event", "delivery", "draw"),
)


def put(database: Store, tables: Tables) -> None:
    """Put the rows into a database."""
    with database.write() as connection:
        for site in (HERE, ELSEWHERE):
            store.ensure_site(connection, site)
        for name in ORDER:
            if tables.get(name):
                connection.execute(sa.insert(store.metadata.tables[name]), tables[name])


def frame(tables: Tables, name: str) -> pl.DataFrame:
    """Return the rows of a table for polars."""
    return pl.DataFrame(tables[name], infer_schema_length=None)

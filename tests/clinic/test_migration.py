"""A full database of the version before comes to this one with nothing lost, and the clinic runs on it."""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from ward import FINDINGS, SITE, NameReader, png

import wetread.clinic
from wetread.clinic import access, audit, destinations, jobs, reviews, store, verify, worklist
from wetread.clinic.archive import Archive
from wetread.clinic.service import Clinic
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import ClinicError

SECRET = "wr_of_a_modality"
THEN = datetime(2025, 3, 1, 8, 30, 15, 123456, tzinfo=UTC)


def key(number: int) -> str:
    return str(uuid.UUID(int=number + 1))


def at_version(url: str, revision: str) -> sa.Engine:
    """Make the tables of a version by its own migrations."""
    engine, config = store._engine(sa.make_url(url)), Config()
    config.set_main_option("script_location", str(Path(wetread.clinic.__file__).parent / "migrations"))
    with engine.connect().execution_options(wetread_write=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    return engine


def chained(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Chain audit rows as version 1 did."""
    before = "0" * 64
    for row in rows:
        names = ("site", "actor", "action", "object", "detail")
        content = {name: row[name] for name in names} | {"prev_hash": before, "at": row["at"].isoformat()}
        row["prev_hash"] = before
        row["hash"] = before = hashlib.sha256(
            json.dumps(content, sort_keys=True, ensure_ascii=False).encode()
        ).hexdigest()
    return rows


def rows_of_version_1(archive: Archive, model: str) -> dict[str, list[dict[str, Any]]]:
    """Return what a clinic holds after a while: every table, every state, every column that may be empty both ways."""
    files = [archive.put(BytesIO(png(number)), limit=10**6) for number in range(6)]
    sites = [
        {"name": site, "ai": site == SITE, "policy": "p" * 64 if site == SITE else "", "created_at": THEN}
        for site in (SITE, "north")
    ]
    study = {
        "site": SITE, "patient_id": "P", "patient_name": "Müller^Ægir=山田", "birth_date": "1960-02-29", "sex": "M",
        "age_years": 65.0, "accession": "A1", "description": "Thorax p.a.", "acquired_at": "2025-03-01T08:29:00",
        "views": "PA", "images": 1, "cautions": ["age unknown"], "received_at": THEN, "code": None, "floor": "routine",
        "finding": "Edema", "model": "names 1", "reason": "Edema likely (names 1)", "overdue": False,
        "overdue_at": THEN + timedelta(hours=2), "rank": 4,
    }  # fmt: skip
    bare = dict.fromkeys(
        ("birth_date", "sex", "age_years", "accession", "description", "acquired_at", "finding", "model")
    )
    states = [  # analysis, reading, priority, what else
        ("analysed", "unread", "urgent", {}),
        ("analysed", "signed", "urgent", {}),
        ("not_analysed", "draft", "routine", bare | {"code": "MODEL_FAILED", "reason": "the model failed 3 times"}),
        ("received", "unread", "critical", bare | {"patient_name": "", "patient_id": "", "floor": "critical"}),
        ("analysed", "unread", "urgent", {"overdue": True, "site": "north"}),
        (
            "not_analysed",
            "unread",
            "routine",
            bare | {"code": "MODEL_FAILED", "reason": "it broke off 3 times"},
        ),
    ]
    studies = [
        study | {"id": key(n), "study_uid": f"1.2.{n}", "analysis": analysis, "reading": reading, "priority": priority}
        | more
        for n, (analysis, reading, priority, more) in enumerate(states)
    ]  # fmt: skip
    series = [
        {"id": key(100 + n), "study": key(n), "series_uid": f"1.2.{n}.1", "modality": "DX" if n else None,
         "body_part": "CHEST" if n else None, "description": "p.a. ñ" if n else None}
        for n in range(6)
    ]  # fmt: skip
    instances = [
        {"id": key(200 + n), "site": studies[n]["site"], "study": key(n), "series": key(100 + n),
         "sop_uid": f"1.2.{n}.1.1", "sha256": file.sha256, "bytes": file.size, "format": "png",
         "name": ("edema.png", "edema 1.png", "poison.png", "pneumothorax.png", "edema 4.png", "deadly.png")[n],
         "view": "PA" if n else None, "state": "stored", "received_at": THEN}
        for n, file in enumerate(files)
    ]  # fmt: skip
    findings = [
        {"finding": f, "probability": 0.9 if f == "Edema" else 0.1, "threshold": 0.5, "flagged": f == "Edema",
         "call": "likely" if f == "Edema" else "unlikely"}
        for f in FINDINGS
    ]  # fmt: skip
    result = {
        "model": model, "model_name": "names", "version": "1", "suitable": True, "code": None, "reason": "",
        "cautions": ["age unknown"], "view": "PA", "abnormal": 0.9, "point": "screen", "findings": findings,
        "box": [0.1, 0.2, 0.5, 0.6], "maps": bytes(range(256)), "seconds": 0.25, "at": THEN,
    }  # fmt: skip
    failed = {
        "suitable": False, "code": "MODEL_FAILED", "reason": "the model failed 3 times", "cautions": [], "view": None,
        "abnormal": None, "findings": [], "box": None, "maps": None,
    }  # fmt: skip
    kinds: dict[int, Mapping[str, Any]] = {0: {}, 1: {}, 2: failed, 4: {}, 5: failed}
    job = {
        "model": model, "floor": 2, "state": "done", "tries": 1, "due_at": THEN, "lease_until": None,
        "worker": "host:/data", "error": None,
    }  # fmt: skip
    told = {2: {"tries": 3, "error": "RuntimeError: the runtime broke"}, 5: {"tries": 4},
            3: {"state": "running", "lease_until": THEN, "floor": 0}}  # fmt: skip
    review = {"reader": "dr", "model_verdict": None, "normal": False, "note": "", "models": [], "signed_at": None}
    return {
        "site": sites,
        "account": [
            {"id": key(1), "site": SITE, "name": "dr", "role": "radiologist", "created_at": THEN, "disabled_at": None},
            {"id": key(2), "site": "north", "name": "dr", "role": "engineer", "created_at": THEN, "disabled_at": THEN},
        ],
        "token": [
            {"id": key(1), "site": SITE, "kind": "api", "name": "modality", "role": "service",
             "hash": hashlib.sha256(SECRET.encode()).hexdigest(), "created_at": THEN, "expires_at": None,
             "revoked_at": None},
            {"id": key(2), "site": SITE, "kind": "session", "name": "operator", "role": "administrator",
             "hash": "a" * 64, "created_at": THEN, "expires_at": THEN + timedelta(hours=12), "revoked_at": THEN},
        ],
        "study": studies,
        "series": series,
        "instance": instances,
        "image_result": [
            {"id": key(300 + n), "instance": key(200 + n)} | result | more for n, more in kinds.items()
        ],
        "study_result": [
            {"id": key(400 + n), "study": key(n), "model": model, "model_name": "names", "abnormal": 0.9,
             "images": hashlib.sha256(key(200 + n).encode()).hexdigest(),
             "findings": [f | {"image": key(200 + n)} for f in findings], "at": THEN}
            for n in (0, 1, 4)
        ],
        "job": [{"id": n + 1, "instance": key(200 + n)} | job | told.get(n, {}) for n in range(6)],
        "claim": [{"study": key(0), "reader": "dr", "at": THEN, "expires_at": THEN + timedelta(minutes=15)}],
        "review": [
            {"id": key(500), "study": key(1), "state": "signed", "created_at": THEN} | review
            | {"model_verdict": "right", "note": "ödematös", "models": [model], "signed_at": THEN},
            {"id": key(501), "study": key(2), "state": "draft", "created_at": THEN} | review | {"normal": True},
        ],
        "review_finding": [
            {"review": key(500), "finding": "Edema", "answer": "agree", "call": "likely", "probability": 0.9},
            {"review": key(500), "finding": "Hernia", "answer": "added", "call": None, "probability": None},
        ],
        "event": [
            {"seq": n + 1, "at": THEN, "site": SITE, "kind": "instance.stored", "study": key(n) if n else None,
             "payload": {"image": key(200 + n)}}
            for n in range(6)
        ],
        "audit": chained([
            {"seq": n + 1, "at": THEN + timedelta(seconds=n), "site": SITE, "actor": "dr", "action": "study.viewed",
             "object": key(n), "detail": {"ä": n}}
            for n in range(6)
        ]),
    }  # fmt: skip


def fill(engine: sa.Engine, rows: Mapping[str, list[dict[str, Any]]]) -> None:
    tables, naive = sa.MetaData(), engine.dialect.name == "sqlite"
    tables.reflect(engine)
    assert set(rows) == set(tables.tables) - {"alembic_version"}
    with engine.connect().execution_options(wetread_write=True) as connection, connection.begin():
        for name, table in tables.tables.items():
            assert all(set(row) == set(table.c.keys()) for row in rows.get(name, [])), name
        for name, found in rows.items():  # as version 1 kept them: on SQLite without a zone
            connection.execute(
                tables.tables[name].insert(),
                [
                    {k: v.replace(tzinfo=None) if naive and isinstance(v, datetime) else v for k, v in row.items()}
                    for row in found
                ],
            )
        if not naive:
            for name, column in (("job", "id"), ("event", "seq"), ("audit", "seq")):
                connection.exec_driver_sql(f"SELECT setval(pg_get_serial_sequence('{name}', '{column}'), 6)")


def survive(url: str, data: Path, settings: Settings) -> None:
    """Take a full database of version 1 to this version, compare every value, and run a clinic on it."""
    model, archive = NameReader(), Archive(data / "archive")
    rows = rows_of_version_1(archive, model.id)
    engine = at_version(url, "0001")
    fill(engine, rows)
    engine.dispose()
    with pytest.raises(ClinicError, match="not of this version"):
        Store(url, migrate=False)

    database = Store(url)
    with database.read() as connection:
        for name, before in rows.items():
            table = store.metadata.tables[name]
            columns = [table.c[column] for column in before[0]]
            after = [
                dict(row) for row in connection.execute(sa.select(*columns).order_by(*table.primary_key)).mappings()
            ]
            wanted = sorted(before, key=lambda row: tuple(row[c.name] for c in table.primary_key))
            if name == "job":
                wanted[5] = wanted[5] | {"error": "the analysis broke off"}
            assert after == wanted, name
    assert audit.verify(database) is None
    assert verify.verify(database, archive, grace_s=0.0).whole
    caller = access.identify(database, SECRET, kind="api")
    assert caller is not None
    assert (caller.name, caller.role, caller.site) == ("modality", "service", SITE)
    Store(url, migrate=False).close()
    database.close()

    model.heal = True
    clinic = Clinic(data, settings, models=[model])
    clinic.start()
    try:
        wait_for(lambda: worklist.row(clinic.database, SITE, key(3)).analysis == "analysed")  # was left running
        for image in (202, 205):
            assert list(jobs.retry(clinic.database, SITE, key(image), "dr", clinic.policy)) == [model.id]
        wait_for(lambda: all(worklist.row(clinic.database, SITE, key(n)).analysis == "analysed" for n in (2, 5)))
        page = worklist.page(clinic.database, SITE)
        assert page.rows[0].study == key(3)
        assert page.counts.unread == 4
        found = worklist.study(clinic.database, SITE, key(1))
        assert (found.row.status, found.reviews[0].note) == ("reviewed", "ödematös")
        taken = clinic.intake.take(BytesIO(png(99)), "edema.png", SITE)
        wait_for(lambda: worklist.row(clinic.database, SITE, taken.study).analysis == "analysed")
        reviews.save(clinic.database, SITE, taken.study, "dr", answers={"Edema": "agree"}, verdict="right", sign=True)
        assert audit.verify(clinic.database) is None
        report = verify.verify(clinic.database, clinic.archive, grace_s=0.0)
        assert report.whole, list(report.lines())
    finally:
        clinic.stop()


def wait_for(condition: Any) -> None:
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("it did not happen")


def test_a_full_database_of_version_1_comes_along(tmp_path: Path) -> None:
    survive(f"sqlite:///{tmp_path}/clinic.db", tmp_path, Settings())


@pytest.mark.system
def test_a_full_postgresql_of_version_1_comes_along(postgresql: str, tmp_path: Path) -> None:
    survive(postgresql, tmp_path, Settings(database=postgresql))


def hooks(url: str, data: Path) -> None:
    """Take deliveries of version 2 along: a webhook's address, which may be a secret, is in clear no longer."""
    engine = at_version(url, "0001")
    fill(engine, rows_of_version_1(Archive(data / "archive"), NameReader().id))
    engine.dispose()
    engine = at_version(url, "0002")
    tables = sa.MetaData()
    tables.reflect(engine)
    then = THEN.replace(tzinfo=None) if engine.dialect.name == "sqlite" else THEN
    hook, fhir = "https://chat.example:8443/services/T0PSECRET?key=T0PSECRET", "fhir+https://host/fhir"
    owed = {"detail": {"for": "critical"}, "state": "failed", "tries": 1, "due_at": then, "created_at": then}
    with engine.connect().execution_options(wetread_write=True) as connection, connection.begin():
        for number, (kind, name) in enumerate((("webhook", hook), ("webhook", hook + "&b"), ("fhir", fhir))):
            row = {"id": key(900 + number), "study": key(0), "kind": kind, "destination": name, "cause": "Edema"}
            connection.execute(tables.tables["delivery"].insert().values(**row, **owed, error=f"{name}: answered 503"))
            payload = {"delivery": row["id"], "kind": kind, "destination": name}
            said = {"at": then, "site": SITE, "kind": "delivery.failed", "study": key(0), "payload": payload}
            connection.execute(tables.tables["event"].insert().values(seq=100 + number, **said))
    engine.dispose()
    database = Store(url)
    with database.read() as connection:
        table = store.delivery.c
        wanted = sa.select(table.destination, table.error).order_by(table.id)
        one, two, three = connection.execute(wanted).all()
        told = connection.execute(
            sa.select(store.event.c.payload).where(store.event.c.seq >= 100).order_by(store.event.c.seq)
        ).scalars()
        assert [payload["destination"] for payload in told] == [one.destination, two.destination, fhir]
    assert one.destination == destinations.label(hook)  # the one that this version looks for
    assert one.destination.startswith("https://chat.example:8443/#")
    assert one.destination != two.destination
    for row in (one, two):
        assert "T0PSECRET" not in str(row)
        assert row.error == f"{row.destination}: answered 503"
    assert tuple(three) == (fhir, f"{fhir}: answered 503")
    database.close()


def test_webhooks_of_version_2_are_hidden(tmp_path: Path) -> None:
    hooks(f"sqlite:///{tmp_path}/clinic.db", tmp_path)


@pytest.mark.system
def test_webhooks_of_version_2_are_hidden_on_postgresql(postgresql: str, tmp_path: Path) -> None:
    engine = sa.create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE hooks")
    engine.dispose()
    hooks(sa.make_url(postgresql).set(database="hooks").render_as_string(hide_password=False), tmp_path)


def test_a_database_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    engine = at_version(f"sqlite:///{tmp_path}/clinic.db", "head")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    for open_it in (Store.open, Store.existing):
        with pytest.raises(ClinicError, match="not of this version"):
            open_it(tmp_path)

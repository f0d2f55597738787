"""The audit: rows can only be added, and a chain that somebody tampered with shows it, on both databases."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from ward import SITE

from wetread.clinic import audit, store
from wetread.clinic.store import Store

_GUARDS = ("audit_keeps_rows", "audit_keeps_contents", "audit_replaces_nothing", "audit_keeps_all")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path)
    fill(opened)
    yield opened
    opened.close()


def fill(database: Store, count: int = 6) -> None:
    with database.write() as connection:
        for number in range(count):
            audit.record(connection, SITE, "dr", "study.viewed", str(number), {"n": number, "ü": [1.5, None, "x"]})


def tamper(database: Store, *statements: str) -> None:
    """Do what the owner of the database can do: take the triggers away first."""
    on_sqlite = database.url.get_backend_name() == "sqlite"
    with database.write() as connection:
        for name in _GUARDS:
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}" + ("" if on_sqlite else " ON audit"))
        for statement in statements:
            connection.exec_driver_sql(statement)


CHANGES = {
    "changed": (["UPDATE audit SET actor = 'x' WHERE seq = 3"], 3),
    "changed detail": (["UPDATE audit SET detail = '{}' WHERE seq = 3"], 3),
    "backdated": (["UPDATE audit SET at = '2020-01-01 00:00:00+00' WHERE seq = 3"], 3),
    "removed": (["DELETE FROM audit WHERE seq = 3"], 4),
    "removed at the beginning": (["DELETE FROM audit WHERE seq = 1"], 2),
    "reordered": (
        [
            "UPDATE audit SET seq = 99 WHERE seq = 3",
            "UPDATE audit SET seq = 3 WHERE seq = 4",
            "UPDATE audit SET seq = 4 WHERE seq = 99",
        ],
        3,
    ),
    "put in": (
        [
            "INSERT INTO audit (seq, at, site, actor, action, object, detail, prev_hash, hash) "
            "SELECT 99, at, site, actor, action, object, detail, prev_hash, hash FROM audit WHERE seq = 3"
        ],
        99,
    ),
}


@pytest.mark.parametrize("how", CHANGES)
def test_tampering_shows_where(database: Store, how: str) -> None:
    statements, where = CHANGES[how]
    assert audit.verify(database) is None
    tamper(database, *statements)
    assert audit.verify(database) == where
    assert not audit.examine(database).whole


def test_a_chain_cut_short_shows_by_the_head_that_was_kept(database: Store) -> None:
    kept = audit.examine(database)
    assert (kept.rows, kept.head, kept.whole) == (6, audit.head(database), True)
    fill(database, 2)
    assert audit.examine(database, kept.head.upper()).whole  # the chain went on
    tamper(database, "DELETE FROM audit WHERE seq > 5")
    short = audit.examine(database)
    assert (short.whole, short.rows) == (True, 5)  # by itself it does not show
    cut = audit.examine(database, kept.head)
    assert (cut.whole, cut.broken, cut.missing) == (False, None, True)
    fill(database, 3)
    assert not audit.examine(database, kept.head).whole  # nor does growing it again help


def test_a_rewritten_chain_shows_by_the_head_that_was_kept(database: Store) -> None:
    kept = audit.head(database)
    tamper(database, "DELETE FROM audit")
    fill(database)
    assert audit.examine(database).whole
    assert audit.examine(database, kept).missing


def test_an_empty_chain_is_whole(tmp_path: Path) -> None:
    database = Store.open(tmp_path)
    assert audit.examine(database) == audit.Verdict(0, audit.FIRST, None, False)
    assert audit.head(database) == audit.FIRST
    database.close()


REFUSED = [
    "UPDATE audit SET actor = 'x' WHERE seq = 3",
    "UPDATE audit SET hash = hash",
    "DELETE FROM audit WHERE seq = 6",
    "DELETE FROM audit",
]
_COPY = "audit (seq, at, site, actor, action, object, detail, prev_hash, hash) "
_FROM = "SELECT 3, at, site, 'x', action, object, detail, prev_hash, hash FROM audit WHERE seq = 3"


@pytest.mark.parametrize(
    "statement",
    [*REFUSED, f"INSERT OR REPLACE INTO {_COPY} {_FROM}", f"REPLACE INTO {_COPY} {_FROM}",
     f"INSERT INTO {_COPY} {_FROM} ON CONFLICT (seq) DO UPDATE SET actor = 'x'"],
)  # fmt: skip
def test_sqlite_refuses_to_change_or_remove(database: Store, statement: str) -> None:
    with pytest.raises(sa.exc.DatabaseError, match="rows can only be added"), database.write() as connection:
        connection.exec_driver_sql(statement)
    assert audit.examine(database).rows == 6
    assert audit.examine(database).whole


def test_rows_are_chosen(database: Store) -> None:
    with database.write() as connection:
        audit.record(connection, SITE, "admin", "account.created", "k", {"role": "engineer"})
        audit.record(connection, SITE, "admin", "accounts", "k")
    assert [row["seq"] for row in audit.rows(database)] == list(range(1, 9))
    assert [row["action"] for row in audit.rows(database, actor="admin")] == ["account.created", "accounts"]
    assert [row["seq"] for row in audit.rows(database, action="account.")] == [7]
    assert [row["seq"] for row in audit.rows(database, action="study.viewed", last=2)] == [5, 6]
    assert [row["seq"] for row in audit.rows(database, what="4")] == [5]
    assert list(audit.rows(database, since=store.now() + timedelta(hours=1))) == []
    assert next(audit.rows(database))["detail"] == {"n": 0, "ü": [1.5, None, "x"]}


def test_looks_at_the_same_thing_are_one(database: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = audit.Looks(size=3)
    for what in ("a", "a", "b", "a"):
        looks.note(database, SITE, "dr", "token", "study.viewed", what)
    looks.note(database, SITE, "dr", "another token", "study.viewed", "a")
    assert audit.examine(database).rows == 6 + 3
    for what in "cdefg":
        looks.note(database, SITE, "dr", "token", "study.viewed", what)
    assert len(looks._noted) == 3
    monkeypatch.setattr(audit, "LOOK_S", 0.0)
    looks.note(database, SITE, "dr", "token", "study.viewed", "g")
    assert audit.examine(database).rows == 6 + 3 + 5 + 1


def test_a_look_that_cannot_be_noted_is_not_taken_for_noted(database: Store) -> None:
    looks = audit.Looks()
    tamper(database, "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    for _ in range(2):
        with pytest.raises(sa.exc.DatabaseError, match="disk full"):
            looks.note(database, SITE, "dr", "token", "study.viewed", "a")


def _write(url: str, count: int) -> None:
    database = Store(url)
    for number in range(count):
        with database.write() as connection:
            audit.record(connection, SITE, "a", "x", str(number))
    database.close()


@pytest.mark.system
def test_postgresql_refuses_and_several_processes_make_one_chain(postgresql: str) -> None:
    database = Store(postgresql)
    before = audit.examine(database).rows
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(postgresql, 50)) for _ in range(3)]
    for writer in writers:
        writer.start()
    fill(database, 50)
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    found = audit.examine(database)
    assert (found.whole, found.rows) == (True, before + 200)
    statements = [
        *REFUSED,
        "TRUNCATE audit",
        f"INSERT INTO {_COPY} {_FROM} ON CONFLICT (seq) DO UPDATE SET actor = 'x'",
    ]
    for statement in statements:
        with pytest.raises(sa.exc.DatabaseError, match="rows can only be added"), database.write() as connection:
            connection.exec_driver_sql(statement)
    assert audit.examine(database) == found
    tamper(database, "UPDATE audit SET actor = 'x' WHERE seq = 100")
    assert audit.verify(database) == 100
    database.close()

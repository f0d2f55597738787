"""The database: its promises on SQLite, and the same clinic on a real PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import alembic.autogenerate
import alembic.migration
import pytest
import sqlalchemy as sa
from ward import SITE, NameReader, Ward, dicom, png

from wetread.clinic import access, audit, reviews, store, triage, worklist
from wetread.clinic.priority import Rules
from wetread.clinic.store import Store
from wetread.clinic.triage import Policy
from wetread.errors import ClinicError, ConfigError, FullError


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path)
    yield opened
    opened.close()


def test_sqlite_is_set_as_promised(database: Store) -> None:
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": store.BUSY_TIMEOUT_MS}
    with database.read() as connection:
        assert {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in wanted} == wanted


def test_migrations_give_the_tables_of_this_version(database: Store) -> None:
    with database.write() as connection:
        context = alembic.migration.MigrationContext.configure(connection)
        assert alembic.autogenerate.compare_metadata(context, store.metadata) == []


def test_opening_again_keeps_what_is_there(database: Store, tmp_path: Path) -> None:
    with database.write() as connection:
        store.ensure_site(connection, "a")
    again = Store.open(tmp_path)
    with again.read() as connection:
        assert list(connection.execute(sa.select(store.site.c.name)).scalars()) == ["a"]
    again.close()


def test_a_failed_transaction_leaves_nothing(database: Store) -> None:
    def fail() -> None:
        with database.write() as connection:
            store.ensure_site(connection, "a")
            store.emit(connection, "x", "a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.read() as connection:
        assert connection.execute(sa.select(store.site)).all() == []


def test_a_full_disk_is_one_error_and_leaves_nothing(database: Store) -> None:
    def fill(connection: sa.Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        for _ in range(1000):
            store.emit(connection, "x", SITE, payload={"long": "x" * 4000})

    with pytest.raises(FullError, match="disk is full"), database.write() as connection:
        fill(connection)
    with database.read() as connection:
        assert connection.execute(sa.select(store.event)).all() == []


def test_foreign_keys_hold(database: Store) -> None:
    row = {"id": "1", "site": "none", "name": "n", "role": "r", "created_at": store.now()}
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        connection.execute(store.account.insert().values(row))


def test_writers_take_turns_and_readers_do_not_wait(database: Store, tmp_path: Path) -> None:
    """Two stores on one file, as the service and a command: no writer fails, no event number is lost."""
    other = Store.open(tmp_path)

    def write(which: Store) -> None:
        for _ in range(20):
            with which.write() as connection:
                store.emit(connection, "x", SITE)

    threads = [threading.Thread(target=write, args=(which,)) for which in (database, other, database, other)]
    with database.write() as writing:
        store.emit(writing, "x", SITE)
        with other.read() as reading:
            assert reading.execute(sa.select(sa.func.count()).select_from(store.event)).scalar() == 0
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        seqs = list(connection.execute(sa.select(store.event.c.seq).order_by(store.event.c.seq)).scalars())
    assert seqs == list(range(1, 82))
    other.close()


def test_times_need_a_zone(database: Store) -> None:
    moment = store.Moment()
    dialect = database.engine.dialect
    with pytest.raises(ValueError, match="zone"):
        moment.process_bind_param(datetime(2024, 1, 1), dialect)
    assert moment.process_result_value(datetime(2024, 1, 1), dialect) == datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("url", ["nonsense", "martian://x/y", "sqlite:////nowhere/at/all.db"])
def test_a_bad_url_is_named(url: str) -> None:
    with pytest.raises((ConfigError, ClinicError), match="database"):
        Store(url)


def test_a_database_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "clinic.db").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(ClinicError, match="cannot be opened"):
        Store.open(tmp_path)


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        Store.open(tmp_path / "file" / "data")


@pytest.mark.system
def test_the_clinic_runs_on_postgresql(postgresql: str, tmp_path: Path) -> None:
    ward = Ward(tmp_path, [NameReader()], postgresql)
    database = ward.database
    keys = [ward.take(png(i), f"{name}.png").study for i, name in enumerate(["nothing", "edema", "pneumothorax"])]
    ward.take(dicom(0, PatientName="Roe^Jane"))
    assert ward.take(dicom(1, SOPInstanceUID="1.2.1.3")).quarantined
    assert ward.work() == 4
    page = worklist.page(database, SITE, limit=2)
    rest = worklist.page(database, SITE, limit=2, after=page.next)
    assert [row.study for row in (*page.rows, *rest.rows)][:3] == keys[::-1]
    assert (page.counts.unread, page.counts.critical, page.counts.urgent) == (4, 1, 1)
    reviews.save(database, SITE, keys[2], "dr", answers={"Pneumothorax": "agree"}, verdict="right", sign=True)
    assert worklist.study(database, SITE, keys[2]).row.status == "reviewed"
    assert worklist.page(database, SITE, status="reviewed").rows[0].study == keys[2]
    assert triage.rerank(database, Policy(ai=False), SITE) == 3
    with database.write() as connection:
        assert triage.sweep(connection, Rules(), store.now()) == []
    secret = access.create(database, "a", "service", SITE)
    assert access.identify(database, secret, kind="api") is not None
    assert audit.verify(database) is None
    with database.write() as connection:
        context = alembic.migration.MigrationContext.configure(connection)
        assert alembic.autogenerate.compare_metadata(context, store.metadata) == []

    def write() -> None:
        for _ in range(25):
            with database.write() as connection:
                store.emit(connection, "x", SITE)
                audit.record(connection, SITE, "a", "x", "y")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert audit.verify(database) is None
    database.close()


@pytest.mark.system
def test_without_its_driver_postgresql_is_a_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from wetread.clinic.store import Store\n"
        "from wetread.errors import ConfigError\n"
        "try:\n    Store('postgresql+psycopg://u@127.0.0.1:1/x')\n"
        "except ConfigError as error:\n    print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert said.stdout.startswith("database: ")
    assert said.stdout.count("\n") == 1

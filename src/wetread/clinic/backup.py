"""`wetread backup` and `wetread restore`: a clinic, whole, in a folder, taken while it works.

The backup is itself a data folder: ``clinic.db`` (SQLite, whatever the clinic's database is), ``archive/``, and what
else lies in the data folder (models, keys). First the files are linked or copied that the backup does not have yet,
then the database in one consistent picture, then the files that came in between; so every row has its bytes. Files
that no row of the new picture needs go last. A backup that is broken off leaves the database of the one before.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread import __version__
from wetread.clinic import store, verify
from wetread.clinic.archive import Archive, open_archive
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import ClinicError, ConfigError
from wetread.whole import flush

_OWN = ("clinic.db", "clinic.db-wal", "clinic.db-shm", "clinic.db.new", "archive", "cache", "tmp", "backup.json")
_BATCH = 500
_COPIED = 64  # files between two flushes of the disk


@dataclass(frozen=True)
class Done:
    """What a backup or a restore did: rows and files there now, and files that had to be copied."""

    rows: int
    files: int
    copied: int


def backup(data: Path, settings: Settings, target: Path) -> Done:
    """Bring the backup in the folder `target` up to date, or make it.

    Raises
    ------
    ConfigError
        When there is no clinic, or the folder cannot be used.
    ClinicError
        When the backup is not whole.
    """
    _apart(data, target)
    source = Store.existing(data, settings.database)
    try:
        archive = open_archive(data, settings)
        with _locked(target):
            kept = Archive(target / "archive")
            there = set(kept.names())
            copied = _copy(archive, kept, set(archive.names()) - there)
            _dump(source, target / "clinic.db.new")
            (target / "clinic.db.new").replace(target / "clinic.db")
            flush(target)
            picture = Store.existing(target)
            try:
                wanted, rows = _files(picture), _count(picture)
                copied += _copy(archive, kept, wanted - set(kept.names()))
                for name in set(kept.names()) - wanted:
                    kept.remove(name)
                _others(data, target)
                said = {"wetread": __version__, "at": store.now().isoformat(), "rows": rows, "files": len(wanted)}
                _write(target / "backup.json", json.dumps(said, indent=2) + "\n")
                _whole(verify.verify(picture, kept, quick=True, grace_s=0.0), f"backup {target}")
            finally:
                picture.close()
    finally:
        source.close()
    return Done(sum(rows.values()), len(wanted), copied)


def restore(source: Path, data: Path, settings: Settings) -> Done:
    """Make a clinic of a backup, in a data folder (and database) that has none yet; then verify every byte.

    Raises
    ------
    ConfigError
        When `source` is no backup, or there is a clinic already.
    ClinicError
        When the backup, or what became of it, is not whole.
    """
    _apart(data, source)
    try:
        said = json.loads((source / "backup.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"{source}: is no backup; name a folder that `wetread backup` made") from None
    if (data / "clinic.db").exists():
        raise ConfigError(f"--data {data}: there is a clinic already; name an empty folder")
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(data, "serve.lock"):
        shutil.copyfile(source / "clinic.db", data / "clinic.db.new")
        picture = Store(f"sqlite:///{(data / 'clinic.db.new').resolve()}")  # of an older version: brought up to date
        try:
            wanted = _files(picture)
            archive, kept = open_archive(data, settings), Archive(source / "archive")
            copied = _fill(archive, kept, wanted - set(archive.names()), settings.max_bytes)
            _others(source, data)
            if settings.database:
                _load(picture, settings.database)
            else:
                _dump(picture, data / "clinic.db")
        finally:
            picture.close()
            for left in data.glob("clinic.db.new*"):
                left.unlink()
        database = Store.existing(data, settings.database)
        try:
            rows = _count(database)
            if short := [name for name, number in said["rows"].items() if rows.get(name, 0) < number]:
                raise ClinicError(f"restore: rows of {', '.join(short)} are missing; take another backup")
            _whole(verify.verify(database, archive, grace_s=0.0), "restore")
        finally:
            database.close()
    return Done(sum(rows.values()), len(wanted), copied)


def _apart(data: Path, other: Path) -> None:
    a, b = data.resolve(), other.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise ConfigError(f"{other}: one of backup and data folder lies within the other; name one apart")


@contextmanager
def _locked(folder: Path, name: str = "backup.lock") -> Iterator[None]:
    """Keep others out of a folder, which is made when missing, for nobody else to read."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = (folder / name).open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror}); name a folder you may write") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ClinicError(f"{folder}: another process uses it; wait for it, or name another folder") from None
        yield


def _copy(source: Archive, target: Archive, names: set[str]) -> int:
    """Export files of one archive to another folder, whole or not at all."""
    for number, name in enumerate(sorted(names), 1):
        path = target.path(name)
        half = target.root / "incoming" / name
        half.unlink(missing_ok=True)
        try:
            source.export(name, half)
        except FileNotFoundError:  # it was removed with its row
            continue
        with half.open("rb") as file:  # a link is the file itself, a copy is checked
            if half.stat().st_nlink == 1 and hashlib.file_digest(file, "sha256").hexdigest() != name:
                raise ClinicError(
                    f"archive: file {name} was changed; run `wetread verify`, and restore it from a backup"
                )
            os.fsync(file.fileno())
        half.replace(path)
        flush(path.parent)
        if number % _COPIED == 0:
            flush(target.root)
    return len(names)


def _fill(archive: Archive, kept: Archive, names: set[str], limit: int) -> int:
    """Put files of a backup into a clinic's archive, which checks each as it did when it came first."""
    for name in sorted(names):
        try:
            with kept.open(name) as file:
                stored = archive.put(file, limit=max(limit, kept.size(name) or 0))
        except FileNotFoundError:
            raise ClinicError(f"backup {kept.root.parent}: file {name} is missing; take another backup") from None
        if stored.sha256 != name:
            archive.remove(stored.sha256)
            raise ClinicError(f"backup {kept.root.parent}: file {name} has other bytes; take another backup")
    return len(names)


def _dump(source: Store, target: Path) -> None:
    """Write the whole database into one SQLite file, as it is at this moment."""
    for left in (target, *(target.with_name(f"{target.name}{end}") for end in ("-wal", "-shm", "-journal"))):
        left.unlink(missing_ok=True)
    if source.url.get_backend_name() == "sqlite":
        with source.engine.connect() as connection, sqlite3.connect(target) as copy:
            connection.connection.dbapi_connection.backup(copy)  # type: ignore[union-attr]
        copy.close()
    else:
        made = Store(f"sqlite:///{target.resolve()}")
        try:
            picture = source.engine.connect().execution_options(isolation_level="REPEATABLE READ")
            with picture as connection, connection.begin(), made.write() as writing:
                _rows(connection, writing)
        finally:
            made.close()
    with sqlite3.connect(target) as copy:
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, nothing beside it
    copy.close()
    flush(target)


def _load(picture: Store, url: str) -> None:
    """Write all rows of a backup into an empty database."""
    made = Store(url)
    try:
        if filled := [name for name, number in _count(made).items() if number]:
            raise ConfigError(f"database: not empty (table {filled[0]}); name one that is")
        with picture.read() as connection, made.write() as writing:
            _rows(connection, writing)
            if made.shared:
                for table in store.metadata.sorted_tables:
                    for column in table.primary_key:
                        if isinstance(column.type, sa.BigInteger):
                            _count_on(writing, table, column)
    finally:
        made.close()


def _count_on(connection: Connection, table: sa.Table, column: sa.Column[int]) -> None:
    """Let PostgreSQL number new rows after those that came with their numbers."""
    last = connection.execute(sa.select(sa.func.max(column))).scalar()
    if last is not None:
        sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
        connection.execute(sa.select(sa.func.setval(sequence, last)))


def _rows(source: Connection, target: Connection) -> None:
    for table in store.metadata.sorted_tables:
        if table is store.process:  # those are alive elsewhere, or gone
            continue
        found = source.execution_options(yield_per=_BATCH).execute(sa.select(table).order_by(*table.primary_key))
        for batch in found.mappings().partitions(_BATCH):
            target.execute(table.insert(), [dict(row) for row in batch])


def _count(database: Store) -> dict[str, int]:
    with database.read() as connection:
        return {
            table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in store.metadata.sorted_tables
            if table is not store.process
        }


def _files(database: Store) -> set[str]:
    with database.read() as connection:
        return set(connection.execute(sa.select(store.instance.c.sha256)).scalars())


def _others(source: Path, target: Path) -> None:
    """Copy what else lies in a data folder: models, keys. Links are not followed."""
    for path in sorted(source.iterdir()):
        if path.name in _OWN or path.name.endswith(".lock") or path.is_symlink():
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name, symlinks=True, dirs_exist_ok=True)
        elif path.is_file():
            shutil.copy2(path, target / path.name)
    os.sync()


def _whole(report: verify.Report, what: str) -> None:
    if not report.whole:
        first = next(line for line in list(report.lines())[1:])
        raise ClinicError(f"{what}: not whole: {first}")


def _write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")
    flush(path)

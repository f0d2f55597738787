"""A backup holds everything, brings itself up to date, and becomes a clinic again, on either database."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from io import BytesIO
from pathlib import Path

import pytest
import sqlalchemy as sa
from ward import SITE, NameReader, Ward, dicom, png

from wetread.clinic import audit, backup, reviews, store, verify, worklist
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import ClinicError, ConfigError


def busy(data: Path, url: str = "") -> Ward:
    """Return a clinic in which something has happened, with a model and a key beside it."""
    ward = Ward(data, [NameReader()], url)
    keys = [ward.take(png(i), f"{name}.png").study for i, name in enumerate(["nothing", "edema", "pneumothorax"])]
    named = dicom(0, SpecificCharacterSet="ISO_IR 192", PatientName="Müller^Ægir=山田^太郎")
    ward.take(named, "a.dcm")
    ward.work()
    reviews.save(ward.database, SITE, keys[1], "dr", answers={"Edema": "agree"}, verdict="right", sign=True)
    (data / "models" / "m").mkdir(parents=True)
    (data / "models" / "m" / "model.json").write_text("{}")
    (data / "secret.key").write_text("key")
    (data / "secret.key").chmod(0o600)
    return ward


def contents(database: Store) -> dict[str, list[dict]]:
    with database.read() as connection:
        return {
            table.name: [
                dict(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key)).mappings()
            ]
            for table in store.metadata.sorted_tables
        }


def test_there_and_back_again(tmp_path: Path) -> None:
    ward = busy(tmp_path / "clinic")
    done = backup.backup(tmp_path / "clinic", Settings(), tmp_path / "backup")
    assert (done.files, done.copied) == (4, 4)
    assert verify.run(tmp_path / "backup", Settings(database="postgresql://not.asked")).whole
    back = backup.restore(tmp_path / "backup", tmp_path / "again", Settings())
    assert back.rows == done.rows
    again = Store.existing(tmp_path / "again")
    assert contents(again) == contents(ward.database)
    assert audit.verify(again) is None
    for path in (tmp_path / "clinic" / "archive").glob("??/*"):
        assert (tmp_path / "again" / "archive" / path.parent.name / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "again" / "models" / "m" / "model.json").read_text() == "{}"
    assert (tmp_path / "again" / "secret.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0
    again.close()
    reopened = Ward(tmp_path / "again", [NameReader()])
    reopened.take(png(9), "edema.png")
    assert reopened.work() == 1
    assert worklist.page(reopened.database, SITE).counts.urgent == 1
    reopened.database.close()
    ward.database.close()


def test_the_second_time_only_what_is_new_is_copied_and_what_is_gone_goes(tmp_path: Path) -> None:
    ward = busy(tmp_path / "clinic")
    backup.backup(tmp_path / "clinic", Settings(), tmp_path / "backup")
    (tmp_path / "backup" / "archive" / "00" / ("0" * 64)).write_bytes(b"no row needs it")
    ward.take(png(7), "7.png")
    done = backup.backup(tmp_path / "clinic", Settings(), tmp_path / "backup")
    assert (done.files, done.copied) == (5, 1)
    assert verify.run(tmp_path / "backup", Settings()).whole
    ward.database.close()


def test_on_another_disk_files_are_copied_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def link(source: object, target: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", link)
    ward = busy(tmp_path / "clinic")
    backup.backup(tmp_path / "clinic", Settings(), tmp_path / "backup")
    [first, *_] = sorted((tmp_path / "backup" / "archive").glob("??/*"))
    assert first.stat().st_nlink == 1
    [victim, *_] = sorted((tmp_path / "clinic" / "archive").glob("??/*"))
    victim.write_bytes(b"x" * victim.stat().st_size)
    with pytest.raises(ClinicError, match="was changed"):
        backup.backup(tmp_path / "clinic", Settings(), tmp_path / "other")
    ward.database.close()


def test_while_studies_come_in_every_row_has_its_bytes(tmp_path: Path) -> None:
    ward, stop = Ward(tmp_path / "clinic"), threading.Event()

    def feed() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            ward.take(png(number), f"{number}.png")

    sender = threading.Thread(target=feed)
    sender.start()
    try:
        counts = [backup.backup(tmp_path / "clinic", Settings(), tmp_path / "backup").files for _ in range(4)]
    finally:
        stop.set()
        sender.join()
    assert counts == sorted(counts)
    assert verify.run(tmp_path / "backup", Settings()).whole
    ward.database.close()


def test_what_is_wrong_is_said_before_anything_is_written(tmp_path: Path) -> None:
    ward = busy(tmp_path / "clinic")
    clinic, target = tmp_path / "clinic", tmp_path / "backup"
    with pytest.raises(ConfigError, match="within the other"):
        backup.backup(clinic, Settings(), clinic / "backup")
    with pytest.raises(ConfigError, match=r"no clinic\.db"):
        backup.backup(tmp_path / "none", Settings(), target)
    with pytest.raises(ConfigError, match="is no backup"):
        backup.restore(tmp_path / "none", tmp_path / "again", Settings())
    backup.backup(clinic, Settings(), target)
    with pytest.raises(ConfigError, match="a clinic already"):
        backup.restore(target, clinic, Settings())
    with backup._locked(target), pytest.raises(ClinicError, match="another process"):
        backup.backup(clinic, Settings(), target)
    ward.database.close()


def test_a_damaged_backup_is_not_restored(tmp_path: Path) -> None:
    ward = busy(tmp_path / "clinic")
    backup.backup(tmp_path / "clinic", Settings(), tmp_path / "backup")
    ward.database.close()
    [victim, *_] = sorted((tmp_path / "backup" / "archive").glob("??/*"))
    content = victim.read_bytes()
    victim.unlink()
    with pytest.raises(ClinicError, match="is missing"):
        backup.restore(tmp_path / "backup", tmp_path / "again", Settings())
    assert not (tmp_path / "again" / "clinic.db").exists()
    victim.write_bytes(b"x" + content[1:])
    with pytest.raises(ClinicError, match="has other bytes"):
        backup.restore(tmp_path / "backup", tmp_path / "again", Settings())
    victim.write_bytes(content)
    backup.restore(tmp_path / "backup", tmp_path / "again", Settings())  # what was there already is taken on
    assert verify.run(tmp_path / "again", Settings()).whole


def test_an_object_that_is_no_file_of_ours_is_left_out(tmp_path: Path) -> None:
    ward = busy(tmp_path / "clinic")
    (tmp_path / "clinic" / "link").symlink_to("/etc/passwd")
    ward.archive.put(BytesIO(b"not acknowledged"), limit=100)
    backup.backup(tmp_path / "clinic", Settings(), tmp_path / "backup")
    assert not (tmp_path / "backup" / "link").exists()
    assert verify.run(tmp_path / "backup", Settings()).whole
    ward.database.close()


@pytest.mark.system
def test_from_postgresql_to_sqlite_and_back(postgresql: str, tmp_path: Path) -> None:
    ward = busy(tmp_path / "clinic", postgresql)
    settings = Settings(database=postgresql)
    backup.backup(tmp_path / "clinic", settings, tmp_path / "backup")
    backup.restore(tmp_path / "backup", tmp_path / "sqlite", Settings())
    small = Store.existing(tmp_path / "sqlite")
    assert contents(small) == contents(ward.database)
    small.close()
    with pytest.raises(ConfigError, match="not empty"):
        backup.restore(tmp_path / "backup", tmp_path / "elsewhere", settings)
    with ward.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("CREATE DATABASE another")
    other = postgresql.rsplit("/", 1)[0] + "/another"
    backup.restore(tmp_path / "backup", tmp_path / "again", Settings(database=other))
    again = Ward(tmp_path / "again", [NameReader()], other)
    assert contents(again.database) == contents(ward.database)
    again.take(png(9), "edema.png")  # new rows are numbered after the old ones
    assert again.work() == 1
    assert audit.verify(again.database) is None
    again.database.close()
    ward.database.close()


@pytest.mark.system
def test_the_commands(tmp_path: Path) -> None:
    def wetread(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WETREAD_")} | {
            "WETREAD_RETAIN_DAYS": "1"
        }
        return subprocess.run(
            [sys.executable, "-m", "wetread", *words], capture_output=True, text=True, cwd=tmp_path, env=environment,
            check=False,
        )  # fmt: skip

    ward = busy(tmp_path / "clinic")
    ward.database.close()
    said = wetread("backup", "copy", "--data", "clinic")
    assert (said.returncode, said.stdout) == (0, said.stdout)
    assert said.stdout.startswith("copy: 4 files, 4 of them new")
    assert wetread("restore", "copy", "--data", "again").returncode == 0
    found = wetread("verify", "--data", "again", "--json")
    assert (found.returncode, json.loads(found.stdout)["whole"], found.stderr) == (0, True, "")
    [victim, *_] = sorted((tmp_path / "again" / "archive").glob("??/*"))
    victim.unlink()
    found = wetread("verify", "--data", "again")
    assert found.returncode == 1
    assert "its file is missing" in found.stdout
    assert wetread("verify", "--data", "nowhere").returncode == 2
    assert wetread("retain", "--dry-run", "--data", "clinic").stdout == ""
    with sqlite3.connect(tmp_path / "clinic" / "clinic.db") as connection:
        [(study,)] = connection.execute("SELECT study FROM review").fetchall()
        connection.execute("UPDATE review SET signed_at = '2020-01-01 00:00:00.000000'")
    connection.close()
    for words in (("--dry-run",), (), ()):
        said = wetread("retain", *words, "--data", "clinic")
        assert said.returncode == 0, said.stderr
        assert said.stdout == (f"{study}\n" if words or not (tmp_path / "gone").exists() else "")
        if not words:
            (tmp_path / "gone").touch()
    assert wetread("verify", "--data", "clinic").returncode == 0
    assert len(list((tmp_path / "clinic" / "archive").glob("??/*"))) == 3

"""Every row has its bytes and every byte its row: each way to break that is found, and nothing else."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pytest
import sqlalchemy as sa
from ward import Ward, dicom, png

from wetread.clinic import store, verify
from wetread.config import Settings
from wetread.errors import ConfigError


def look(ward: Ward, **more: object) -> verify.Report:
    return verify.verify(ward.database, ward.archive, grace_s=0.0, **more)  # type: ignore[arg-type]


def test_a_working_clinic_is_whole(ward: Ward) -> None:
    for number in range(3):
        ward.take(png(number), f"{number}.png")
    ward.take(dicom(5), "a.dcm")
    ward.take(dicom(6, SOPInstanceUID="1.2.6.3"), "other bytes.dcm")
    ward.work()
    report = look(ward)
    assert report.whole
    assert (report.images, report.files) == (5, 5)
    assert report.bytes == sum(f.stat().st_size for f in (ward.archive.root).glob("??/*"))
    assert list(report.lines())[-1] == "whole"
    assert json.loads(json.dumps(report.to_dict()))["whole"] is True


def test_an_empty_clinic_is_whole(ward: Ward) -> None:
    assert look(ward).whole


def test_missing_changed_cut_and_unknown_files_are_told_apart(ward: Ward) -> None:
    taken = [ward.take(png(number), f"{number}.png") for number in range(4)]
    with ward.database.read() as connection:
        sha = dict(connection.execute(sa.select(store.instance.c.id, store.instance.c.sha256)).all())
    gone, flipped, cut, _ = (ward.archive.path(sha[image.image]) for image in taken)
    gone.unlink()
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-1])
    stray = ward.archive.put(BytesIO(b"nobody's"), limit=100)
    report = look(ward)
    assert not report.whole
    assert report.missing == [taken[0].image]
    assert sorted(report.changed) == sorted([taken[1].image, taken[2].image])
    assert report.unknown == [stray.sha256]
    quick = look(ward, quick=True)
    assert (quick.missing, quick.changed, quick.bytes) == ([taken[0].image], [taken[2].image], 0)
    said = "\n".join(report.lines())
    assert taken[0].image in said
    assert said.endswith("NOT whole")


def test_what_wetread_never_put_into_the_archive_is_told(ward: Ward) -> None:
    ward.take(png(0), "0.png")
    (ward.archive.root / "notes.txt").write_text("mine")
    (ward.archive.root / "00" / "copy.dcm").write_bytes(b"whose?")
    report = look(ward)
    assert report.strays == ["00/copy.dcm", "notes.txt"]
    assert not report.whole
    assert "notes.txt" in "\n".join(report.lines())


def test_what_is_settled_meanwhile_is_not_said(ward: Ward) -> None:
    """A file whose row was being written, and a row that was being removed, when the first look was taken."""
    ward.take(png(0), "0.png")
    late = png(1)
    stored = ward.archive.put(BytesIO(late), limit=10**6)
    report = verify.Report(unknown=[stored.sha256], missing=["no such image any more"])
    ward.take(late, "1.png")
    verify._again(ward.database, ward.archive, report)
    assert report.whole


def test_a_broken_chain_and_a_broken_database_are_said(ward: Ward) -> None:
    ward.take(png(0), "0.png")
    with ward.database.write() as connection:
        for trigger in ("audit_keeps_rows", "audit_keeps_contents", "audit_replaces_nothing"):
            connection.exec_driver_sql(f"DROP TRIGGER {trigger}")
        connection.execute(store.audit.update().values(actor="somebody else"))
    raw = ward.database.engine.raw_connection()
    raw.execute("PRAGMA foreign_keys=OFF")
    raw.execute("DELETE FROM series")
    raw.close()
    report = look(ward)
    assert report.audit == 1
    assert any("table instance" in line for line in report.database)
    assert any("audit: row 1" in line for line in report.lines())


def test_the_command_looks_at_a_folder_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no clinic\.db"):
        verify.run(tmp_path / "none", Settings())
    assert not (tmp_path / "none").exists()
    ward = Ward(tmp_path / "clinic")
    ward.take(png(0), "0.png")
    ward.database.close()
    assert verify.run(tmp_path / "clinic", Settings()).whole

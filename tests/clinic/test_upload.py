"""Many files at once, and archives that mean harm."""

from __future__ import annotations

import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ward import SITE, Ward, archive, dicom, png

from wetread.clinic import upload, worklist
from wetread.clinic.archive import TooLargeError
from wetread.clinic.upload import Receipt


def take(ward: Ward, *files: tuple[str, bytes], max_files: int = 50, max_total: int = 2**22) -> Receipt:
    streams = [(name, BytesIO(content)) for name, content in files]
    return upload.take(ward.intake, streams, SITE, actor="test", max_files=max_files, max_total=max_total)


def unread(ward: Ward) -> int:
    return worklist.page(ward.database, SITE).counts.unread


def test_files_and_archives_together(ward: Ward) -> None:
    packed = archive({"a/1.png": png(1), "b/2.dcm": dicom(2), "DICOMDIR": b"x", "__MACOSX/._1.png": b"x", "d/": b""})
    receipt = take(ward, ("0.png", png(0)), ("all.zip", packed))
    assert [r.name for r in receipt.received] == ["0.png", "all.zip/a/1.png", "all.zip/b/2.dcm"]
    assert receipt.skipped == ["all.zip/DICOMDIR", "all.zip/__MACOSX/._1.png"]
    assert receipt.refused == []
    assert unread(ward) == 3


def test_members_that_are_no_radiographs_stay_in_the_list(ward: Ward) -> None:
    take(ward, ("all.zip", archive({"1.png": png(1), "readme.txt": b"hello"})))
    ward.work()
    assert sorted(row.status for row in worklist.page(ward.database, SITE).rows) == ["analysed", "not_analysed"]


def test_names_are_never_paths(ward: Ward, tmp_path: Path) -> None:
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    evil = ["../../evil.png", "/etc/evil.png", "a\\..\\evil.png", "C:evil.png", "e\nvil.png"]
    receipt = take(ward, ("../evil.zip", archive({name: png(i) for i, name in enumerate(evil)})))
    assert len(receipt.received) == len(evil)
    new = {p for p in tmp_path.rglob("*") if p.is_file()} - before
    assert all(p.is_relative_to(tmp_path / "archive") or p.name.startswith("clinic.db") for p in new)
    assert all(r.name.isprintable() for r in receipt.received)


def test_an_archive_in_an_archive_is_not_opened(ward: Ward) -> None:
    receipt = take(ward, ("outer.zip", archive({"inner.zip": archive({"1.png": png()})})))
    ward.work()
    rows = worklist.page(ward.database, SITE).rows
    assert len(receipt.received) == len(rows) == 1
    assert (rows[0].status, rows[0].code) == ("not_analysed", "UNREADABLE")


def test_a_document_that_is_a_zip_is_one_file(ward: Ward) -> None:
    take(ward, ("report.docx", archive({"[Content_Types].xml": b"<x/>", "word/document.xml": b"<x/>"})))
    assert unread(ward) == 1


def test_a_damaged_archive_stays_in_the_list(ward: Ward) -> None:
    whole = archive({"1.png": png()})
    take(ward, ("cut.zip", whole[:-30]), ("short.zip", b"PK\x03\x04"), ("empty.zip", archive({})[:10]))
    assert unread(ward) == 3


def test_a_bomb_is_refused_before_it_is_opened(ward: Ward) -> None:
    receipt = take(ward, ("bomb.zip", archive({"1.dcm": bytes(70 * 2**20)})), max_total=2**30)
    assert receipt.received == []
    assert "times its size" in receipt.refused[0].detail
    assert isinstance(receipt.error, TooLargeError)


def test_too_much_in_all_is_refused(ward: Ward) -> None:
    members = {f"{i}.png": png(i) for i in range(4)}
    assert "at most 3 are accepted" in take(ward, ("many.zip", archive(members)), max_files=3).refused[0].detail
    assert "unpacked" in take(ward, ("big.zip", archive(members)), max_total=100).refused[0].detail
    assert unread(ward) == 0


def test_one_member_too_large_does_not_refuse_the_rest(ward: Ward) -> None:
    noise = b"".join(zlib.compress(bytes([i % 251] * i)) for i in range(1, 9000)) * 8
    receipt = take(ward, ("mixed.zip", archive({"big.dcm": noise[: 2**20 + 1], "1.png": png()})), max_total=2**23)
    assert [r.file for r in receipt.refused] == ["mixed.zip/big.dcm"]
    assert [r.name for r in receipt.received] == ["mixed.zip/1.png"]


def test_a_member_that_lies_about_its_size_is_refused(ward: Ward) -> None:
    content = archive({"1.dcm": b"a" * 10_000})
    at = content.rfind(b"PK\x01\x02")
    lying = content[: at + 24] + struct.pack("<L", 10) + content[at + 28 :]
    receipt = take(ward, ("lying.zip", lying))
    assert len(receipt.received) + len(receipt.refused) == 1
    if receipt.received:  # it was cut at the size that it claimed
        assert worklist.study(ward.database, SITE, receipt.received[0].study).images[0].bytes == 10


def test_an_encrypted_member_is_refused_by_name(ward: Ward) -> None:
    content = bytearray(archive({"1.png": png(1), "2.png": png(2)}, zipfile.ZIP_STORED))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(mark) + offset] |= 1
    receipt = take(ward, ("locked.zip", bytes(content)))
    assert [(r.file, "encrypted" in r.detail) for r in receipt.refused] == [("locked.zip/1.png", True)]
    assert [r.name for r in receipt.received] == ["locked.zip/2.png"]


def test_a_huge_directory_is_refused_unread(ward: Ward) -> None:
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 2**31, 0, 0)
    assert "send it in parts" in take(ward, ("wide.zip", b"PK\x03\x04" + end)).refused[0].detail
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**8, 10**8, 2**40, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 4, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 46, 0, 0)
    assert "send it in parts" in take(ward, ("64.zip", b"PK\x03\x04" + record + locator + end)).refused[0].detail


@pytest.mark.system  # takes long
@settings(max_examples=12)
@given(st.data())
def test_damaged_archives_never_raise(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(archive({"1.png": png(1), "2.txt": b"hello" * 50}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    ward = Ward(tmp_path_factory.mktemp("fuzz"))
    receipt = take(ward, ("fuzz.zip", bytes(content)))
    assert len(receipt.received) + len(receipt.refused) + len(receipt.skipped) >= 1
    ward.database.close()

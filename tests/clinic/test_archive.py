"""The archive keeps bytes under their SHA-256, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wetread.clinic.archive import Archive, ArchiveError, TooLargeError, room
from wetread.errors import ClinicError, ConfigError, FullError


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


def incoming(archive: Archive) -> list[Path]:
    return list((archive.root / "incoming").iterdir())


def test_bytes_come_back(archive: Archive) -> None:
    content = bytes(range(256)) * 9000  # more than two pieces
    stored = archive.put(BytesIO(content), limit=len(content))
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    assert (stored.size, stored.head) == (len(content), content[:4096])
    assert archive.path(stored.sha256).read_bytes() == content
    assert list(archive.names()) == [stored.sha256]
    assert incoming(archive) == []


@settings(max_examples=8)
@given(st.lists(st.binary(max_size=50), max_size=5))
def test_the_same_bytes_are_kept_once(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]) -> None:
    archive = Archive(tmp_path_factory.mktemp("archive"))
    for content in [*contents, *contents]:
        archive.put(BytesIO(content), limit=50)
    assert sorted(archive.names()) == sorted({hashlib.sha256(c).hexdigest() for c in contents})


def test_too_large_leaves_nothing(archive: Archive) -> None:
    with pytest.raises(TooLargeError, match="max_bytes"):
        archive.put(BytesIO(b"12345"), limit=4)
    assert incoming(archive) == []
    assert list(archive.names()) == []


def test_a_full_disk_leaves_nothing(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FullError, match="disk full"):
        archive.put(BytesIO(b"1"), limit=4)
    assert incoming(archive) == []
    assert list(archive.names()) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_a_broken_disk_is_no_full_one_but_refuses_too(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def broken(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(ArchiveError, match="not accepted"):
        archive.put(BytesIO(b"1"), limit=4)
    assert list(archive.names()) == []


@pytest.mark.parametrize("reserve", [1.0 - 1e-9, 2**70])
def test_at_the_reserve_nothing_is_written(tmp_path: Path, reserve: float) -> None:
    archive = Archive(tmp_path / "archive", reserve)
    assert archive.free() < 0
    with pytest.raises(FullError, match="disk_reserve"):
        archive.put(BytesIO(b"1"), limit=4)
    assert incoming(archive) == []
    assert list(archive.names()) == []


def test_a_reserve_is_a_share_or_bytes(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    assert room(tmp_path, 0.5) < room(tmp_path, 0)
    assert room(tmp_path, 0) - room(tmp_path, 2**20) == pytest.approx(2**20, abs=2**28)
    assert room(tmp_path, 0.25) == pytest.approx(
        disk.f_bavail * disk.f_frsize - disk.f_blocks * disk.f_frsize / 4, abs=2**28
    )


def test_file_then_folder_are_flushed_before_it_returns(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    real = os.fsync

    def note(handle: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        real(handle)

    monkeypatch.setattr(os, "fsync", note)
    stored = archive.put(BytesIO(b"1"), limit=4)
    assert [Path(name).parent.name for name in flushed[:1]] == ["incoming"]
    assert flushed[1] == str(archive.path(stored.sha256).parent)


def test_a_note_is_flushed_before_its_file_has_a_name_and_goes_with_it(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    flush, move = os.fsync, Path.replace

    def flushing(handle: int) -> None:
        done.append("flush " + Path(f"/proc/self/fd/{handle}").readlink().suffix)
        flush(handle)

    def moving(self: Path, target: Path) -> Path:
        done.append("move " + Path(target).suffix)
        return move(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", flushing)
        patch.setattr(Path, "replace", moving)
        sha256 = archive.put(BytesIO(b"1"), limit=4, origin="nørth").sha256
    assert done == ["flush ", "flush .from", "move .from", "move ", "flush "]
    assert (archive.origin(sha256), list(archive.noted()), incoming(archive)) == ("nørth", [sha256], [])
    assert list(archive.names()) == [sha256]
    archive.settle(sha256)
    assert (archive.origin(sha256), list(archive.noted())) == ("", [])
    archive.put(BytesIO(b"1"), limit=4, origin="south")
    archive.remove(sha256)
    assert list(archive.noted()) == []


def test_clean_removes_half_copies_only(archive: Archive) -> None:
    stored = archive.put(BytesIO(b"1"), limit=4)
    (archive.root / "incoming" / "half").write_bytes(b"x")
    archive.clean()
    assert incoming(archive) == []
    assert archive.path(stored.sha256).exists()


def test_what_others_are_writing_is_left_alone(archive: Archive) -> None:
    old, new = archive.root / "incoming" / "old", archive.root / "incoming" / "new"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    archive.clean(older_than_s=3600)
    assert incoming(archive) == [new]


def test_a_file_goes_and_comes_by_name(archive: Archive, tmp_path: Path) -> None:
    stored = archive.put(BytesIO(b"1"), limit=4)
    assert archive.size(stored.sha256) == 1
    assert 0 <= archive.age_s(stored.sha256) < 60
    archive.export(stored.sha256, tmp_path / "other")
    archive.remove(stored.sha256)
    archive.remove(stored.sha256)
    assert archive.size(stored.sha256) is None
    assert archive.age_s(stored.sha256) == float("inf")
    assert (tmp_path / "other").read_bytes() == b"1"


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "a" * 63, "A" * 64, "0" * 64 + "\n"])
def test_only_a_hash_is_a_path(archive: Archive, name: str) -> None:
    with pytest.raises(ClinicError, match="no SHA-256"):
        archive.path(name)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "archive").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        Archive(tmp_path / "archive")

"""A file that is written anew is the old one or the new one, and on the disk before it has its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wetread import whole


@pytest.mark.parametrize("draft", ["", ".half"])
def test_the_name_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draft: str) -> None:
    """What a switched-off machine finds: the content lasts before the name, and then the name."""
    file, seen = tmp_path / "a.json", []
    file.write_bytes(b"old")

    def fsync(handle: int) -> None:
        place = Path(f"/proc/self/fd/{handle}").readlink()
        seen.append((place.name, None if place.is_dir() else place.read_bytes(), file.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    with whole.opened(file, draft) as stream:
        stream.write(b"new")
    (half, *written), names = seen
    assert (half != file.name, written) == (True, [b"new", b"old"])
    assert names == (tmp_path.name, None, b"new")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("fails", ["os.fsync", "pathlib.Path.replace"])
def test_a_failure_leaves_the_older_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    whole.write(tmp_path / "a.json", b"old")
    monkeypatch.setattr(fails, full)
    with pytest.raises(OSError, match="No space"):
        whole.write(tmp_path / "a.json", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.json": b"old"}


def test_two_may_write_at_once(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    with whole.opened(file) as one, whole.opened(file) as other:
        one.write(b"one")
        other.write(b"other")
    assert (file.read_bytes(), list(tmp_path.iterdir())) == (b"one", [file])  # who ends last


def test_what_a_killed_process_left_of_a_large_file_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".half").write_bytes(b"a longer piece of something")
    with whole.opened(tmp_path / "a", ".half") as stream:
        stream.write(b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new"}

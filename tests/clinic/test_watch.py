"""The watched folder: taken in once it is whole, and put where its fate can be seen."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from ward import SITE, Ward, archive, dicom, png

from wetread.clinic import worklist
from wetread.clinic.watch import Watch
from wetread.config import Settings
from wetread.errors import ConfigError


@pytest.fixture
def watch(ward: Ward, tmp_path: Path) -> Watch:
    return Watch(tmp_path / "watched", ward.intake, Settings.model_validate({"max_bytes": 2**20, "max_files": 5}))


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() or p.is_symlink())


def test_good_files_go_to_done_and_others_to_failed(watch: Watch, ward: Ward) -> None:
    (watch.incoming / "sub").mkdir()
    (watch.incoming / "a.png").write_bytes(png(1))
    (watch.incoming / "sub" / "b.dcm").write_bytes(dicom(2))
    (watch.incoming / "note.txt").write_bytes(b"hello")
    (watch.incoming / "big.dcm").write_bytes(bytes(2**20 + 1))
    (watch.incoming / "all.zip").write_bytes(archive({"c.png": png(3)}))
    (watch.incoming / "many.zip").write_bytes(archive({f"{i}.png": png(i) for i in range(6)}, zipfile.ZIP_STORED))
    assert watch.look() == 0
    assert watch.look() == 6
    assert names(watch.incoming) == []
    assert names(watch.done) == ["a.png", "all.zip", "sub/b.dcm"]
    assert names(watch.failed) == ["big.dcm", "many.zip", "note.txt"]
    assert worklist.page(ward.database, SITE).counts.unread == 4  # the note is shown, not analysed


def test_a_file_that_still_grows_waits(watch: Watch, ward: Ward) -> None:
    path = watch.incoming / "a.png"
    content = png(1)
    for end in range(10, len(content), 40):
        path.write_bytes(content[:end])
        assert watch.look() == 0
    path.write_bytes(content)
    watch.look()
    assert watch.look() == 1
    assert ward.take(content).new is False


@pytest.mark.parametrize("name", [".hidden.png", "a.png.part", "a.png.TMP"])
def test_unfinished_names_are_left_alone(watch: Watch, name: str) -> None:
    (watch.incoming / name).write_bytes(png())
    assert watch.look() == watch.look() == 0
    assert names(watch.incoming) == [name]


def test_links_are_not_followed(watch: Watch, ward: Ward, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(png())
    (watch.incoming / "link.png").symlink_to(tmp_path / "secret")
    (watch.incoming / "folder").symlink_to(tmp_path)
    assert watch.look() == watch.look() == 0
    assert worklist.page(ward.database, SITE).rows == ()


def test_nothing_in_done_is_overwritten(watch: Watch) -> None:
    for seed in (1, 2, 1):
        (watch.incoming / "a.png").write_bytes(png(seed))
        watch.look()
        assert watch.look() == 1
    assert names(watch.done) == ["a.1.png", "a.2.png", "a.png"]


def test_taken_in_but_not_moved_is_taken_again_without_harm(watch: Watch, ward: Ward) -> None:
    (watch.incoming / "a.png").write_bytes(png(1))
    ward.take(png(1), "a.png")  # killed before the file was moved
    watch.look()
    assert watch.look() == 1
    assert names(watch.done) == ["a.png"]
    assert worklist.page(ward.database, SITE).counts.unread == 1


def test_a_folder_that_cannot_be_is_named(ward: Ward, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="watch"):
        Watch(tmp_path / "file", ward.intake, Settings.model_validate({}))

"""Listing and reading collections in folders and zip archives."""

import os
import zipfile
from pathlib import Path

import pytest

from wetread.dataset import files
from wetread.errors import DatasetError


@pytest.fixture(autouse=True)
def closed():
    yield
    files.close()


def test_folders_and_archives_are_listed_alike(make_folders, tmp_path):
    contents = {"a/1.jpg": b"one", "a/2.jpg": b"two!", "b.csv": b"x"}
    root = make_folders(contents)
    archived = tmp_path / "archived"
    archived.mkdir()
    with zipfile.ZipFile(archived / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in contents.items():
            archive.writestr(path, data)
    for place in (root, archived, archived / "all.zip"):
        listed, refused = files.index(place)
        assert not refused
        assert listed["path"].to_list() == sorted(contents)
        assert listed["bytes"].to_list() == [3, 4, 1]
        read = {path: files.read(file, member) for path, file, member, _ in listed.iter_rows()}
        assert read == contents


def test_what_file_browsers_leave_is_passed_over(make_folders):
    root = make_folders({"a.jpg": b"1", ".DS_Store": b"2", "__MACOSX/._a.jpg": b"3", ".git/config": b"4"})
    assert files.index(root)[0]["path"].to_list() == ["a.jpg"]


def test_linked_folders_are_followed_once(make_folders, tmp_path):
    root = make_folders({"images/a.jpg": b"1"})
    (root / "again").symlink_to(root / "images")
    (root / "images" / "loop").symlink_to(root)
    other = make_folders({"b.jpg": b"2"}, "elsewhere")
    (root / "linked").symlink_to(other)
    found = {path.rsplit("/", 1)[-1] for path in files.index(root)[0]["path"]}
    assert found == {"a.jpg", "b.jpg"}
    assert files.index(root)[0].height == 2


def test_a_file_name_that_is_not_text_is_refused_not_fatal(tmp_path):
    (tmp_path / "good.jpg").write_bytes(b"1")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.jpg")).touch()
    listed, refused = files.index(tmp_path)
    assert listed["path"].to_list() == ["good.jpg"]
    assert [entry["reason"].split(":")[0] for entry in refused] == ["file name"]


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 not an archive", b"PK\x05\x06" + bytes(18)])
def test_an_archive_that_is_none_is_refused_or_empty(tmp_path, data):
    (tmp_path / "broken.zip").write_bytes(data)
    listed, refused = files.index(tmp_path)
    assert listed.is_empty()
    assert [entry["image"] for entry in refused] == ([] if data.startswith(b"PK\x05") else ["broken.zip"])


@pytest.mark.parametrize("name", ["missing", "file.txt"])
def test_a_root_that_is_no_collection_is_an_error(tmp_path, name):
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(DatasetError, match=name):
        files.index(tmp_path / name)


def test_a_damaged_member_is_an_error_that_names_it(tmp_path):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.jpg", b"0123456789")
    file.write_bytes(file.read_bytes().replace(b"0123456789", b"0123456780"))
    with pytest.raises(DatasetError, match=r"a\.zip:x\.jpg: .*CRC"):
        files.read(str(file), "x.jpg")


@pytest.mark.parametrize("member", [None, "x.jpg"])
def test_no_more_is_read_than_the_limit(tmp_path, member):
    file = tmp_path / ("a.zip" if member else "x.jpg")
    if member:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, bytes(10_000))
    else:
        file.write_bytes(bytes(10_000))
    assert len(files.read(str(file), member, 10_000)) == 10_000
    with pytest.raises(DatasetError, match="larger than 9999 bytes"):
        files.read(str(file), member, 9_999)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match=r"gone\.jpg"):
        files.read(str(tmp_path / "gone.jpg"), None)

"""The watched folder: taken in once it is whole, and put where its fate can be seen."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from random import Random

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


def broken(method: int) -> bytes:
    """Return a zip archive whose one member cannot be unpacked."""
    whole = bytearray(archive({"a.png": png(8)}, method))
    start = whole.index(b"a.png") + 5 + 4  # what the methods begin with stays
    whole[start : start + 40] = b"\xff" * 40
    return bytes(whole)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_a_broken_archive_holds_up_nobody(watch: Watch, ward: Ward, method: int) -> None:
    (watch.incoming / "a.zip").write_bytes(broken(method))
    (watch.incoming / "b.png").write_bytes(png(1))
    watch.look()
    assert watch.look() == 2
    assert (names(watch.failed), names(watch.done)) == (["a.zip"], ["b.png"])


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


_CHILD = """
import os, signal, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ward import Ward
from wetread.clinic import archive, intake, watch
from wetread.config import Settings

folder, point, number = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
places = {
    "bytes": (archive.Archive, "_keep"),
    "row": (intake.Intake, "_register"),
    "move": (watch, "_free"),
}
if point in places:
    owner, name = places[point]
    whole, count = getattr(owner, name), 0
    def deadly(*args, **more):
        global count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **more)
    setattr(owner, name, deadly)
ward = Ward(folder / "data", [])
ward.intake.adopt("default")
watched = watch.Watch(folder / "watched", ward.intake, Settings.model_validate({}))
print("ready", flush=True)
pause = threading.Event()
while not (point == "finish" and not any(watched.incoming.iterdir())):
    watched.look()
    pause.wait(0.01)
ward.database.close()
"""


@pytest.mark.system
@pytest.mark.parametrize("point", ["bytes", "row", "move", "anywhere"])
def test_killed_in_the_middle_every_file_arrives_once(tmp_path: Path, point: str) -> None:
    """Killed before the bytes are kept, between bytes and row, between row and move, anywhere; then started again."""
    incoming, files = tmp_path / "watched" / "incoming", {f"{n}.dcm": dicom(n) for n in range(20)}
    files |= {f"{n}.png": png(n) for n in range(5)} | {"all.zip": archive({f"{n}.png": png(n) for n in range(5, 10)})}
    incoming.mkdir(parents=True)
    for name, content in files.items():
        (incoming / name).write_bytes(content)

    def child(point: str, number: int = 0) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _CHILD, str(Path(__file__).parents[1]), str(tmp_path), point, str(number)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    random = Random(7)
    for number in (1, 6):
        with child(point, number) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            if point == "anywhere":
                threading.Event().wait(random.uniform(0, 0.1))
                process.kill()
            assert process.wait(60) == -signal.SIGKILL
    with child("finish") as process:
        assert process.wait(60) == 0
    assert names(tmp_path / "watched" / "incoming") == []
    assert names(tmp_path / "watched" / "failed") == []
    moved = tmp_path / "watched" / "done"
    assert {p.name: p.read_bytes() for p in moved.iterdir()} == files
    ward = Ward(tmp_path / "data", [])
    try:
        page = worklist.page(ward.database, SITE, limit=500)
        images = [i for row in page.rows for i in worklist.study(ward.database, SITE, row.study).images]
        wanted = {hashlib.sha256(content).hexdigest() for name, content in files.items() if name != "all.zip"}
        wanted |= {hashlib.sha256(png(n)).hexdigest() for n in range(5, 10)}
        assert sorted(image.sha256 for image in images) == sorted(wanted)
        assert {ward.archive.size(sha256) for sha256 in wanted} == {image.bytes for image in images}
        assert set(ward.archive.names()) == wanted
    finally:
        ward.database.close()


def test_without_room_files_stay_and_are_tried_again(watch: Watch, ward: Ward) -> None:
    (watch.incoming / "a.png").write_bytes(png(1))
    (watch.incoming / "b.png").write_bytes(png(2))
    ward.archive.reserve = 2**62
    assert [watch.look() for _ in range(3)] == [0, 0, 0]
    assert names(watch.incoming) == ["a.png", "b.png"]
    assert names(watch.failed) == []
    ward.archive.reserve = 0
    assert sum(watch.look() for _ in range(3)) == 2
    assert names(watch.done) == ["a.png", "b.png"]

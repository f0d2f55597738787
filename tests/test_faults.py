"""Faults done for real to a running service, see `faults.py`; `make faults` does the first fifty times."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import faults
import peers
import pydicom
import pytest
import sqlalchemy as sa
import tiny_package
from faults import Load, Service, by_dicom, drained, examine, films

from wetread.clinic import store
from wetread.findings import CHEXPERT

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def finish(service: Service, load: Load) -> dict[str, int]:
    """Wait until everything was acknowledged and analysed, end the service, and examine what it left."""
    peers.wait(load.done, "everything is acknowledged", 300)
    peers.wait(lambda: drained(service), "everything is analysed", 300)
    load.stop()
    service.stop()
    return examine(service, load.acknowledged)


def test_killed_five_times_under_load_it_loses_and_doubles_nothing(tmp_path):
    figures = faults.kills(tmp_path / "room", number=5, studies=120, seed=0)
    assert figures["acknowledged"] == figures["instances"] == 132


def test_it_works_on_once_a_killed_database_is_back(tmp_path):
    database = faults.PostgreSQL()
    database.start()
    files = tmp_path / "films"
    files.mkdir()
    service = Service(tmp_path / "room", database=database.url)
    try:
        service.start()
        load = Load(service, films(files, 60), pause=0.2)
        for _ in range(2):
            got = len(load.acknowledged)
            peers.wait(lambda got=got: len(load.acknowledged) > got + 5, "some are acknowledged")
            database.kill()
            peers.wait(lambda: service.api.get("/healthz").status_code < 600, "the service still answers")
            database.start()
        assert finish(service, load)["acknowledged"] == 66
    finally:
        service.close()
        database.stop()


def test_a_full_disk_refuses_and_keeps_what_was_acknowledged(tmp_path):
    files = tmp_path / "films"
    files.mkdir()
    paths = films(files, 100)
    try:
        with faults.full_disk(tmp_path / "disk", 24) as disk:
            service = Service(disk, disk_reserve=0).start()
            try:
                ballast = disk / "ballast"
                with ballast.open("wb") as file, suppress(OSError):
                    for _ in range(18):
                        file.write(bytes(2**20))
                        file.flush()
                load = Load(service, paths)
                peers.wait(lambda: load.refused > 4, "senders are refused")
                assert not load.done()
                assert service.process.poll() is None, "a full disk must not end the service"
                ballast.unlink()
                # What did not fit at all stays with its sender; with the ballast gone, it has room.
                shutil.rmtree(disk / "tiny", ignore_errors=True)
                peers.wait(load.done, "everything is acknowledged", 300)
                assert finish(service, load)["lost"] == 0
            finally:
                service.close()
    except PermissionError as error:
        pytest.xfail(f"this machine does not permit to mount a file system: {error}")


def test_slow_and_aborted_associations_cost_the_others_nothing(tmp_path):
    files = tmp_path / "films"
    files.mkdir()
    service = Service(tmp_path / "room", dicom_timeout_s=3, dicom_idle_s=3, dicom_associations=8)
    try:
        service.start()
        address = ("127.0.0.1", service.dicom_port)
        silent = [socket.create_connection(address) for _ in range(6)]
        torn = socket.create_connection(address)
        torn.sendall(b"\x01\x00\x00\x00\x10\x00" + bytes(40))  # the beginning of an A-ASSOCIATE-RQ, and then nothing
        load = Load(service, films(files, 30))
        for number, path in enumerate(
            [path for path in load.files if by_dicom(path)][:8]
        ):  # senders that are killed in the middle of an association
            command = [peers.dcmtk_path("storescu"), "-aec", faults.AE, address[0], str(address[1]), str(path)]
            with subprocess.Popen(command, env=peers.environment(), stderr=subprocess.DEVNULL) as sender:
                time.sleep(0.02 * number)
                sender.kill()
        figures = finish(service, load)
        assert figures["acknowledged"] == 33
        assert figures["instances"] == 33  # what the killed senders sent was sent by the others too
        for connection in (*silent, torn):
            connection.close()
    finally:
        service.close()


def test_a_jumping_clock_changes_no_result(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler: apt-get install -y gcc libc6-dev")
    library, clock, files = tmp_path / "clock.so", tmp_path / "offset", tmp_path / "films"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)

    def jump(seconds: int) -> None:
        new = tmp_path / "new"
        new.write_text(str(seconds))
        new.rename(clock)  # at once: no reader finds half of it

    jump(0)
    files.mkdir()
    service = Service(tmp_path / "room")
    service.environment |= {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(clock)}
    try:
        service.start()
        load = Load(service, films(files, 40), pause=0.2)
        day = 86_400
        for seconds in (day, -day, 0):
            got = len(load.acknowledged)
            peers.wait(lambda got=got: len(load.acknowledged) >= got + 10, "senders are heard")
            jump(seconds)
        peers.wait(load.done, "everything is acknowledged", 300)
        seen = {row["received_at"][:10] for row in service.api.get("/api/v1/worklist?limit=100").json()["studies"]}
        assert len(seen) > 1, "the clock did not jump"
        assert finish(service, load)["acknowledged"] == 44
    finally:
        service.close()


def test_an_image_that_kills_its_worker_is_set_aside(tmp_path):
    """The service is killed each time it has begun with one image; after some tries it leaves that image alone."""
    files = tmp_path / "films"
    files.mkdir()
    deadly, *others = films(files, 4)
    big = pydicom.dcmread(deadly)
    side = 3000
    big.Rows = big.Columns = side
    big.PixelData = os.urandom(2 * side) * side
    big.BitsAllocated, big.BitsStored, big.HighBit = 16, 16, 15
    big.compress(pydicom.uid.JPEG2000Lossless)  # slow to decode, so that the kill comes in time
    big.save_as(deadly, enforce_file_format=True)
    service = Service(tmp_path / "room")
    try:
        service.start()
        assert peers.wait(lambda: service.stow(deadly.read_bytes()), "the deadly image is acknowledged")
        database = service.open()

        def running() -> bool:
            with database.read() as connection:
                row = connection.execute(sa.select(store.job.c.state, store.job.c.tries)).first()
                done.append(row.state == "done")
                return done[-1] or (row.state == "running" and row.tries > tries)

        done: list[bool] = []
        for tries in range(20):
            peers.wait(running, f"try {tries + 1}")
            if done[-1]:
                break
            service.kill()
            service.start()
        assert done[-1], "it was never set aside"
        database.close()
        load = Load(service, others)
        finish_figures = finish(service, load)
        assert finish_figures["acknowledged"] == len(others)
        database = service.open()
        with database.read() as connection:
            codes = connection.execute(sa.select(store.image_result.c.code)).scalars().all()
        database.close()
        assert codes.count("MODEL_FAILED") == 1
    finally:
        service.close()


def test_a_package_swapped_while_serving_changes_nothing_until_the_next_start(tmp_path):
    files = tmp_path / "films"
    files.mkdir()
    paths = films(files, 20)
    service = Service(tmp_path / "room")
    try:
        service.start()
        first = Load(service, paths[:11])
        peers.wait(first.done, "the first half is acknowledged")
        other = tiny_package.write(tmp_path / "other", CHEXPERT, population="phantom", seed=3)
        assert other.id != service.package.id
        shutil.rmtree(service.package.path)
        shutil.copytree(other.path, service.package.path)
        second = Load(service, paths[11:])
        peers.wait(second.done, "the second half is acknowledged")
        peers.wait(lambda: drained(service), "everything is analysed")
        assert models(service) == {service.package.id}
        service.stop()
        service.start()
        peers.wait(lambda: other.id in models(service) and drained(service), "the new model has seen the list")
        service.stop()
        assert examine(service, first.acknowledged | second.acknowledged)["acknowledged"] == len(paths)
    finally:
        service.close()


def models(service: Service) -> set[str]:
    """Return the models that have results."""
    database = service.open()
    with database.read() as connection:
        found = set(connection.execute(sa.select(store.image_result.c.model)).scalars())
    database.close()
    return found


@pytest.mark.parametrize("way", ["STOW", "C-STORE"])
def test_file_folder_and_log_are_flushed_before_the_acknowledgement(tmp_path, way):
    """kill -9 cannot show a missing flush, since the kernel keeps what was written: the system calls do."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt-get install -y strace")
    trace = tmp_path / "trace"
    service = Service(tmp_path / "room")
    wanted = "trace=fsync,fdatasync,rename,renameat,renameat2,link,linkat,sendto,sendmsg,write"
    service.prefix = ["strace", "-f", "-yy", "-s", "64", "--seccomp-bpf", "-e", wanted, "-o", str(trace)]
    files = tmp_path / "films"
    files.mkdir()
    path = films(files, 2)[-1]
    try:
        try:
            service.start()
        except AssertionError:
            if "ptrace" in service.log.read_text(errors="replace"):
                pytest.xfail("this machine does not permit tracing")
            raise
        assert service.stow(path.read_bytes()) if way == "STOW" else service.storescu(path)
        service.stop()
    finally:
        service.close()
    done = faults.calls(trace)
    (kept,) = (each for each in (service.data / "archive").rglob("*") if each.is_file())
    port = service.port if way == "STOW" else service.dicom_port
    # The first bytes of the answer: HTTP's status line, or a P-DATA-TF PDU (type 4), which holds C-STORE-RSP.
    begins = '"HTTP/1.1 200' if way == "STOW" else '"\\4\\0'
    moved = next(i for i, (name, rest) in enumerate(done) if name in _MOVES and f'"{kept}"' in rest)
    answers = [
        i for i, (name, rest) in enumerate(done)
        if name in ("sendto", "sendmsg", "write") and f":{port}->" in rest and begins in rest and i > moved
    ]  # fmt: skip
    before = done[: answers[0]]
    file_flushed = [
        i
        for i, (name, rest) in enumerate(before[:moved])
        if name in _FLUSHES and "/archive/" in rest and ".from>" not in rest
    ]
    folder_flushed = [i for i, (name, rest) in enumerate(before) if name in _FLUSHES and f"<{kept.parent}>" in rest]
    log_flushed = [i for i, (name, rest) in enumerate(before) if name in _FLUSHES and "clinic.db-wal>" in rest]
    noted = next(i for i, (name, rest) in enumerate(before[:moved]) if name in _MOVES and f'"{kept}.from"' in rest)
    note_flushed = [i for i, (name, rest) in enumerate(before[:noted]) if name in _FLUSHES and ".from>" in rest]
    assert note_flushed, "whose file it is was not on disk before the file"
    assert file_flushed, "the file was moved into its place before its bytes were on disk"
    assert any(i > moved for i in folder_flushed), "the folder's new entry was not on disk at the acknowledgement"
    assert any(i > max(folder_flushed) for i in log_flushed), "the row was not on disk at the acknowledgement"


_MOVES = ("rename", "renameat", "renameat2", "link", "linkat")
_FLUSHES = ("fsync", "fdatasync")

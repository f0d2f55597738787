"""`wetread serve` as a process: killed, restarted, in the way of another, and fed with what arrives in the wild."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import films
import httpx
import numpy as np
import psutil
import pytest
import tiny_package
from serving import Server, serving
from ward import archive, dicom, png

from wetread.clinic import accounts, audit
from wetread.clinic.store import Store
from wetread.findings import CHEXPERT

pytestmark = pytest.mark.system


def analysed(server: Server, count: int) -> list[dict[str, Any]]:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        rows = server.worklist()
        if len(rows) == count and not any(row["analysis"] == "received" for row in rows):
            return rows
        time.sleep(0.2)
    raise AssertionError(f"not analysed: {server.worklist()}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_package.write(tmp_path_factory.mktemp("model") / "tiny", CHEXPERT).path)


def test_killed_between_store_and_analysis_nothing_is_lost(tmp_path: Path, model: str) -> None:
    """Acknowledged studies survive kill −9 at any moment; what was not acknowledged may be sent again."""
    data, seed, acknowledged = tmp_path / "clinic", 0, set()
    for _ in range(3):
        with serving(data, WETREAD_MODELS=model) as server:
            done = threading.Event()

            def feed(server: Server = server, done: threading.Event = done) -> None:
                nonlocal seed
                with contextlib.suppress(httpx.HTTPError, AssertionError):
                    while not done.is_set():
                        seed += 1
                        acknowledged.update(i["image"] for i in server.send((f"{seed}.png", png(seed, 200)))["images"])

            before = len(acknowledged)
            sender = threading.Thread(target=feed)
            sender.start()
            while len(acknowledged) < before + 5:
                time.sleep(0.01)
            server.process.kill()
            server.process.wait()
            done.set()
            sender.join()
    with serving(data, WETREAD_MODELS=model) as server:
        assert len(acknowledged) >= 15
        # The last one of each round may be there although its sender was not told.
        rows = server.worklist()
        assert len(acknowledged) <= len(rows) <= len(acknowledged) + 3
        analysed(server, len(rows))
        for image in acknowledged:
            assert server.http.get(f"/api/v1/images/{image}").json()["rows"] == 200
        again = server.send(("1.png", png(1, 200)))
        assert again["studies"][0]["new"] is False
        assert server.stop() == 0


def test_one_line_and_code_two(tmp_path: Path) -> None:
    with serving(tmp_path / "clinic") as server, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (tmp_path / "file").write_text("")
        commands = {
            (
                "serve",
                "--port",
                str(taken.getsockname()[1]),
                "--data",
                str(tmp_path / "other"),
            ): "Address already in use",
            ("serve", "--port", "0", "--host", "no.such.host.invalid", "--data", str(tmp_path / "o")): "cannot listen",
            ("serve", "--port", "0", "--data", str(tmp_path / "clinic")): "another `wetread serve`",
            ("serve", "--port", "0", "--data", str(tmp_path / "file")): "name a folder you may write",
            ("serve", "--port", "70000", "--data", str(tmp_path / "o")): "--port",
            ("token", "create", "a", "--role", "king", "--data", str(tmp_path / "clinic")): "'king'",
            ("token", "revoke", "a", "--data", str(tmp_path / "clinic")): "none in force",
        }
        for command, named in commands.items():
            said = subprocess.run(
                [sys.executable, "-m", "wetread", *command],
                capture_output=True, text=True, env=server.environment, cwd=tmp_path, timeout=120, check=False,
            )  # fmt: skip
            assert said.returncode == 2, (command, said)
            assert named in said.stderr
            assert said.stderr.count("\n") == 1
            assert said.stdout == ""


def test_a_login_link_is_printed_while_nobody_administers_and_never_logged(tmp_path: Path) -> None:
    with serving(tmp_path / "clinic") as server:
        base, code = server.link.split("/login?code=")
        with contextlib.closing(Store.existing(server.data)) as database, httpx.Client(base_url=base) as browser:
            accounts.create(database, "Admin", "administrator", "default", "correct horse battery")
            assert browser.post("/login", data={"code": code}, timeout=60).status_code == 403  # there is somebody now
            said = list(audit.rows(database, action="login."))
        assert [(row["action"], row["actor"]) for row in said] == [
            ("login.link", "serve"),
            ("login.failed", "operator"),
        ]
        assert code not in str(said) + server.log.read_text()
    with serving(tmp_path / "clinic") as server:
        assert server.link.endswith("/login")


def test_a_token_is_printed_and_nothing_else(tmp_path: Path) -> None:
    with serving(tmp_path / "clinic") as server:
        said = server.wetread("token", "create", "modality", "--role", "service")
        assert said.stderr == ""
        secret = said.stdout.strip()
        assert said.stdout == secret + "\n"
        headers = {"Authorization": f"Bearer {secret}"}
        assert server.http.get("/api/v1/worklist", headers=headers).status_code == 200
        listed = server.wetread("token", "list").stdout
        assert "modality\tservice" in listed
        assert secret not in listed
        server.wetread("token", "revoke", "modality")
        assert server.http.get("/api/v1/worklist", headers=headers).status_code == 401


def test_it_stops_in_order_while_somebody_follows_events(tmp_path: Path) -> None:
    with serving(tmp_path / "clinic") as server:
        lines: list[str] = []

        def follow() -> None:
            with contextlib.suppress(httpx.HTTPError), server.http.stream("GET", "/events?after=0") as stream:
                lines.extend(stream.iter_lines())

        follower = threading.Thread(target=follow)
        follower.start()
        server.send(("a.png", png()))
        until = time.monotonic() + 20
        while not any("instance.stored" in line for line in lines) and time.monotonic() < until:
            time.sleep(0.05)
        process = server.process
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        follower.join(30)
        assert any(line == "event: instance.stored" for line in lines)


def wild() -> dict[str, bytes]:
    """What arrives in the wild by file: damaged, odd, foreign and hostile."""
    good = [dicom(500 + number) for number in range(4)]
    film = films.scene(96, 80, bits=12, seed=1)
    rgb = np.dstack([films.scene(64, 64, bits=8, seed=s) for s in (1, 2, 3)])
    return {
        "empty": b"",
        "text": b"hello",
        "truncated": good[0][: len(good[0]) // 2],
        "header only": good[1][:140],
        "no preamble": good[2][132:],
        "excess": good[3] + bytes(1001),
        "no pixels": films.dicom(film, PixelData=None, SOPInstanceUID="1.9.1"),
        "huge": films.dicom(film, Rows=65535, Columns=65535, SOPInstanceUID="1.9.2"),
        "frames": films.dicom(film, NumberOfFrames="2", SOPInstanceUID="1.9.3"),
        "signed": films.dicom(film.astype(np.int16) - 2000, SOPInstanceUID="1.9.4"),
        "high bit": films.dicom(film, HighBit=3, SOPInstanceUID="1.9.5"),
        "mono1": films.dicom(film, PhotometricInterpretation="MONOCHROME1", SOPInstanceUID="1.9.6"),
        "window 0": films.dicom(film, WindowWidth="0", WindowCenter="0", SOPInstanceUID="1.9.7"),
        "slope": films.dicom(film, RescaleSlope="-1", RescaleIntercept="0", SOPInstanceUID="1.9.8"),
        "rgb": films.dicom(rgb, SOPInstanceUID="1.9.9"),
        "hand": films.dicom(film, BodyPartExamined="HAND", SOPInstanceUID="1.9.10"),
        "ct": films.dicom(film, Modality="CT", SOPInstanceUID="1.9.11"),
        "lateral": films.dicom(film, ViewPosition="LL", SOPInstanceUID="1.9.12"),
        "child": films.dicom(film, PatientAge="003Y", SOPInstanceUID="1.9.13"),
        "no study": films.dicom(film, StudyInstanceUID="", SOPInstanceUID="1.9.14"),
        "flat": films.dicom(np.zeros_like(film) + 7, SOPInstanceUID="1.9.15"),
        "path uid": films.dicom(film, SOPInstanceUID="1.9.16666").replace(b"1.9.16666", b"../../../"),
        "nul": films.dicom(film, PatientName="A\\B", SOPInstanceUID="1.9.17").replace(b"A\\B", b"A\0B"),
        "jpeg cut": b"\xff\xd8\xff\xe0" + bytes(100),
        "png bomb": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\0\0\0\0" + bytes(50),
        "zip cut": archive({"a.png": png(1)})[:-20],
    }


def test_bad_input_neither_stops_the_service_nor_disappears(tmp_path: Path, model: str) -> None:
    files = wild()
    with serving(tmp_path / "clinic", WETREAD_MODELS=model) as server:
        images: dict[str, str] = {}
        for name, content in files.items():
            receipt = server.send((name, content))
            assert [i["file"] for i in receipt["images"]] == [name]
            images[name] = receipt["images"][0]["study"]
        analysed(server, len(set(images.values())))
        listed = {row["study"]: row for row in server.worklist()}
        for name, study in images.items():
            found = server.http.get(f"/api/v1/studies/{study}").json()
            assert study in listed, name
            results = [r for i in found["images"] if i["name"] == name for r in i["results"]]
            assert results, name
            assert all(r["suitable"] or (r["code"] and r["reason"]) for r in results), name
            assert not any(r["code"] == "MODEL_FAILED" for r in results), (name, results)
        for name in (
            "empty",
            "text",
            "truncated",
            "header only",
            "jpeg cut",
            "png bomb",
            "zip cut",
            "no pixels",
            "huge",
        ):
            assert listed[images[name]]["status"] == "not_analysed" or listed[images[name]]["image_count"] > 1, name
        assert server.http.get("/readyz").status_code == 200
        assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


def test_a_watched_folder_is_served(tmp_path: Path) -> None:
    with serving(tmp_path / "clinic", WETREAD_WATCH=str(tmp_path / "watched")) as server:
        (tmp_path / "watched" / "incoming" / "a.dcm").write_bytes(dicom(1))
        until = time.monotonic() + 60
        while not (tmp_path / "watched" / "done" / "a.dcm").exists() and time.monotonic() < until:
            time.sleep(0.1)
        assert [row["patient_id"] for row in server.worklist()] == ["P1"]


def test_memory_stays_bounded_under_many_uploads(tmp_path: Path, model: str) -> None:
    with serving(tmp_path / "clinic", WETREAD_MODELS=model) as server:
        big = [films.dicom(films.scene(1500, 1500, bits=12, seed=s), SOPInstanceUID=f"1.8.{s}") for s in range(3)]
        noise = os.urandom(40 * 2**20)
        for content in big:
            server.send(("big.dcm", content), wait=20)
        server.send(("noise.bin", noise), wait=20)
        rss = psutil.Process(server.process.pid).memory_full_info()
        anonymous = rss.rss - rss.shared
        assert anonymous < 2**30

"""Measure how fast studies come in: C-STORE and STOW, flushed to disk, beside Orthanc; and how soon they are ranked.

The systems run on this machine at once, on the same disk, and get the same new files in turn (DCMTK's `storescu`, or
HTTP with one instance a request). Wetread answers after file, folder and database are flushed. It runs twice: with `ai`
off, where each file is only opened once to see whether it can be read (by processes of their own, in the last column),
and with a model; what goes on after the acknowledgement is counted to its end. The second table counts from the last
byte that the sender wrote to the moment at which the study's row is ranked by its result.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pydicom
import sqlalchemy as sa
from pydicom.uid import generate_uid
from pynetdicom import AE, build_context, evt

from benchmarks.serve import processor_s
from wetread.clinic import access, store
from wetread.clinic.store import Store
from wetread.radiograph import phantom

SITE = "default"
# DCMTK's: pynetdicom puts a program of the same name into an active virtual environment.
STORESCU = shutil.which("storescu", path="/usr/bin:/usr/local/bin") or "storescu"
PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Films:
    """New studies of one image each: a few phantoms, every one with UIDs of its own."""

    def __init__(self, folder: Path, size: int) -> None:
        phantom.write_dicom(folder / "phantoms", 4, 0, size=size, laterals=0.0, workers=1)
        self._base = [pydicom.dcmread(path) for path in sorted((folder / "phantoms").rglob("*.dcm"))]
        self._numbers = itertools.count()

    def write(self, folder: Path, count: int) -> list[Path]:
        folder.mkdir(parents=True)
        paths = []
        for number in itertools.islice(self._numbers, count):
            film = self._base[number % len(self._base)]
            film.StudyInstanceUID, film.SeriesInstanceUID, film.SOPInstanceUID = (generate_uid() for _ in range(3))
            film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID
            film.PatientID, film.PatientName = f"P{number}", f"Phantom^{number}"  # namesakes would be flagged
            film.save_as(folder / f"{number}.dcm", enforce_file_format=True)
            paths.append(folder / f"{number}.dcm")
        return paths


class System:
    """One receiver: its DICOM address, its STOW address, its process."""

    def __init__(self, name: str, ae: str, dicom: int, stow: str, pid: int, headers: dict[str, str]) -> None:
        self.name, self.ae, self.dicom, self.stow, self.pid, self.headers = name, ae, dicom, stow, pid, headers
        self.metrics = ""

    def is_idle(self) -> bool:
        """Tell whether no analysis is left to be done."""
        if not self.metrics:
            return True
        text = httpx.get(self.metrics, trust_env=False).text
        return all(f'wetread_jobs{{state="{state}"}} 0.0' in text for state in ("queued", "running"))


def wait(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"{what}: not within 60 s")
        time.sleep(0.05)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code < 500
    except httpx.HTTPError:
        return False


@contextmanager
def wetread(folder: Path, ai: bool) -> Iterator[System]:
    dicom, data = free_port(), folder / "clinic"
    database = Store.open(data)
    secret = access.create(database, "benchmark", "administrator", SITE)
    database.close()
    environment = os.environ | {
        "WETREAD_DICOM_PEERS": "*@127.0.0.1",
        "WETREAD_DICOM_HOST": "127.0.0.1",
        "WETREAD_AI": str(ai).lower(),
        "WETREAD_MODELS": "phantom",
    }
    command = [sys.executable, "-m", "wetread", "serve", "--data", str(data), "--port", "0", "--dicom-port", str(dicom)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True, cwd=folder
    ) as server:
        assert server.stdout is not None
        base = server.stdout.readline().split("/login")[0]
        headers = {"Authorization": f"Bearer {secret}"}
        try:
            name = f"Wetread, AI {'on' if ai else 'off'}"
            system = System(name, "WETREAD", dicom, f"{base}/dicomweb/studies", server.pid, headers)
            system.metrics = f"{base}/metrics"
            yield system
        finally:
            server.terminate()


@contextmanager
def orthanc(folder: Path) -> Iterator[System]:
    http, dicom = free_port(), free_port()
    configuration = {
        "StorageDirectory": str(folder / "orthanc"), "IndexDirectory": str(folder / "orthanc"), "Plugins": [PLUGIN],
        "HttpPort": http, "DicomPort": dicom, "DicomAlwaysAllowStore": True, "AuthenticationEnabled": False,
        "SyncStorageArea": True, "StorageCompression": False,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with subprocess.Popen(
        [shutil.which("Orthanc") or "/usr/sbin/Orthanc", str(folder / "orthanc.json")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as server:  # fmt: skip
        wait(lambda: answers(f"http://127.0.0.1:{http}/system"), "Orthanc")
        try:
            yield System("Orthanc", "ORTHANC", dicom, f"http://127.0.0.1:{http}/dicom-web/studies", server.pid, {})
        finally:
            server.terminate()


def by_store(system: System, folders: list[Path]) -> None:
    """Send folders at once, one association each."""
    command = [STORESCU, "-aec", system.ae, "+sd", "127.0.0.1", str(system.dicom)]
    environment = os.environ | {"TCP_NODELAY": "1"}
    running = [subprocess.Popen([*command, str(folder)], env=environment) for folder in folders]
    if any(process.wait() for process in running):
        sys.exit(f"{system.name}: storescu failed")


def multipart(content: bytes) -> tuple[bytes, dict[str, str]]:
    body = b"--xx\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--xx--\r\n"
    accept = {"Accept": "application/dicom+json"}
    return body, accept | {"Content-Type": 'multipart/related; type="application/dicom"; boundary=xx'}


def by_stow(system: System, folders: list[Path]) -> None:
    """Send folders at once, one client each."""

    def client(folder: Path) -> None:
        with httpx.Client(headers=system.headers, timeout=60, trust_env=False) as http:
            for path in sorted(folder.iterdir()):
                body, headers = multipart(path.read_bytes())
                answer = http.post(system.stow, content=body, headers=headers)
                if answer.status_code not in (200, 202):
                    failed.append(f"{answer.status_code} {answer.text[:200]}")

    failed: list[str] = []
    threads = [threading.Thread(target=client, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        sys.exit(f"{system.name}: STOW failed: {failed[0]}")


def used(system: System) -> tuple[float, float]:
    """Return the processor time of a system in s: of all its processes, and of those that only read files."""
    whole = processor_s(system.pid)
    own = psutil.Process(system.pid).cpu_times()
    return whole, whole - own.user - own.system


def throughput(films: Films, folder: Path, systems: list[System], rounds: int, count: int, senders: list[int]) -> None:
    ways = {"C-STORE": by_store, "STOW": by_stow}
    taken: dict[tuple[str, int, str], list[tuple[float, ...]]] = {}
    for turn in range(-1, rounds):  # the first is for warming up
        for (way, send), at_once in itertools.product(ways.items(), senders):
            folders = [folder / f"{turn}-{way}-{at_once}-{n}" for n in range(at_once)]
            size = sum(p.stat().st_size for f in folders for p in films.write(f, max(count // at_once, 1)))
            os.sync()  # the writing of the files themselves is not what is measured
            for system in systems if turn % 2 else systems[::-1]:
                before, begun = used(system), time.perf_counter()
                send(system, folders)
                seconds = time.perf_counter() - begun
                wait(system.is_idle, f"{system.name}: its analyses")
                cpu = [after - then for after, then in zip(used(system), before, strict=True)]
                number = at_once * max(count // at_once, 1)
                if turn >= 0:
                    taken.setdefault((way, at_once, system.name), []).append(
                        (number / seconds, size / seconds / 1e6, *(1000 * each / number for each in cpu))
                    )
            for folder_of_one in folders:
                shutil.rmtree(folder_of_one)
    print("| way | senders | system | instances/s | MB/s | CPU ms each | of it reading files |")
    print("|---|---|---|---|---|---|---|")
    for (way, at_once, name), values in sorted(taken.items()):
        rate, megabytes, cpu, reading = np.median(np.array(values), axis=0)
        print(f"| {way} | {at_once} | {name} | {rate:.1f} | {megabytes:.0f} | {cpu:.1f} | {reading:.1f} |")


Sent = dict[str, tuple[float, float]]  # Study Instance UID → moment of the last byte, wait for the acknowledgement in s


def one_by_one_store(system: System, paths: list[Path], every_s: float) -> Sent:
    sent: Sent = {}
    last = [0.0]

    def written(event: evt.Event) -> None:
        last[0] = time.time()

    films = [pydicom.dcmread(path) for path in paths]
    contexts = [build_context(c, films[0].file_meta.TransferSyntaxUID) for c in sorted({f.SOPClassUID for f in films})]
    link = AE("BENCH").associate(
        "127.0.0.1", system.dicom, contexts, system.ae, evt_handlers=[(evt.EVT_DATA_SENT, written)]
    )
    for film in films:
        status = link.send_c_store(film)
        assert status.Status == 0, status
        sent[film.StudyInstanceUID] = (last[0], time.time() - last[0])
        time.sleep(every_s)
    link.release()
    return sent


def one_by_one_stow(system: System, paths: list[Path], every_s: float) -> Sent:
    sent: Sent = {}
    with httpx.Client(headers=system.headers, timeout=60, trust_env=False) as http:
        for path in paths:
            body, headers = multipart(path.read_bytes())
            end = [0.0]

            def pieces(body: bytes = body, end: list[float] = end) -> Iterator[bytes]:
                for start in range(0, len(body), 65536):
                    yield body[start : start + 65536]
                end[0] = time.time()

            http.post(
                system.stow, content=pieces(), headers=headers | {"Content-Length": str(len(body))}
            ).raise_for_status()
            uid = pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID
            sent[uid] = (end[0], time.time() - end[0])
            time.sleep(every_s)
    return sent


def ranked(database: Store, sent: Sent) -> dict[str, float]:
    """Return when each study was ranked by its result, for those that were."""
    with database.read() as connection:
        rows = connection.execute(
            sa.select(store.study.c.study_uid, sa.func.min(store.event.c.at))
            .join(store.event, store.event.c.study == store.study.c.id)
            .where(store.event.c.kind.in_(["study.analysed", "study.refused"]))
            .group_by(store.study.c.study_uid)
        ).all()
    return {uid: at.timestamp() for uid, at in rows if uid in sent}


def latency(films: Films, folder: Path, system: System, count: int, every_s: float) -> None:
    """Send one study after the other and see when each is ranked."""
    database = Store.open(folder / "clinic")
    print("\n| last byte to ranked row, by | p50 ms | p95 ms | to the acknowledgement, p50 ms |\n|---|---|---|---|")
    for way, send in (("C-STORE", one_by_one_store), ("STOW", one_by_one_stow)):
        send(system, films.write(folder / f"warm-{way}", 3), every_s)
        sent = send(system, films.write(folder / f"latency-{way}", count), every_s)
        wait(lambda sent=sent: len(ranked(database, sent)) == len(sent), "analysis")
        found = ranked(database, sent)
        p50, p95 = np.percentile([1000 * (found[uid] - at) for uid, (at, _) in sent.items()], [50, 95])
        print(f"| {way} | {p50:.0f} | {p95:.0f} | {1000 * np.median([ack for _, ack in sent.values()]):.0f} |")
    database.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60, help="instances a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=1024, help="side of the images, in pixels")
    parser.add_argument("--senders", type=int, nargs="+", default=[1, 4], help="associations or clients at once")
    parser.add_argument("--latency", type=int, default=40, help="studies of the second table")
    parser.add_argument("--every", type=float, default=0.2, help="pause between two of them, in s")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: the temporary folder")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name, ExitStack() as running:
        folder = Path(name)
        films = Films(folder, chosen.size)
        print(f"load before {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
        systems = []
        for name, ai in (("off", False), ("on", True)):
            (folder / name).mkdir()
            systems.append(running.enter_context(wetread(folder / name, ai=ai)))
        systems.append(running.enter_context(orthanc(folder)))
        throughput(films, folder, systems, chosen.rounds, chosen.count, chosen.senders)
        running.close()
        (folder / "alone").mkdir()
        with wetread(folder / "alone", ai=True) as system:
            latency(films, folder / "alone", system, chosen.latency, chosen.every)


if __name__ == "__main__":
    main()

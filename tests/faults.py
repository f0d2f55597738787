"""What breaks in a hospital, done to a running `wetread serve` under load, and what must be true afterwards.

``python tests/faults.py --kills 50 --studies 400 --seed 0`` (`make faults`) kills the whole service at moments that the
seed chooses, while storescu and STOW send; ``tests/test_faults.py`` does it five times, and the other faults once each.
A sender sends each instance again until it is acknowledged, as a modality does. Afterwards each acknowledged instance
must be in the archive byte for byte, with exactly one result per (image, model) and per (image set, model), and no
file may be without row nor row without file.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import peers
import psutil
import pydicom
import pytest
import sqlalchemy as sa
import tiny_package
from pydicom.uid import generate_uid

from wetread.clinic import access, store, triage, verify
from wetread.clinic.archive import Archive
from wetread.config import Settings
from wetread.findings import CHEXPERT
from wetread.radiograph import phantom

WETREAD = [sys.executable, "-m", "wetread"]
SIDE = 96
LIMIT_S = 120
AE = "WETREAD"


def films(folder: Path, studies: int, seed: int = 0) -> list[Path]:
    """Write DICOM files, one a study, every tenth of two images; few bodies, but identifiers of their own."""
    rng = random.Random(seed)
    bodies = [pydicom.dcmread(io.BytesIO(phantom.dicom(phantom.make(i, size=SIDE)))) for i in range(6)]
    paths = []
    for number in range(studies):
        study, patient = generate_uid(entropy_srcs=[f"{seed} study {number}"]), f"FAULT{seed}-{number}"
        for image in range(2 if number % 10 == 0 else 1):
            film = bodies[rng.randrange(len(bodies))]
            film.StudyInstanceUID, film.PatientID, film.PatientName = study, patient, f"Fault^{number}"
            film.SeriesInstanceUID = generate_uid(entropy_srcs=[f"{seed} series {number}"])
            film.SOPInstanceUID = generate_uid(entropy_srcs=[f"{seed} image {number} {image}"])
            film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID
            paths.append(folder / f"{number:05}-{image}.dcm")
            film.save_as(paths[-1], enforce_file_format=True)
    return paths


def by_dicom(path: Path) -> bool:
    """Tell which way a file goes: always the same, by its number, so that a repetition has the same bytes."""
    return int(path.name[:5]) % 2 == 1


class Service:
    """A `wetread serve` process that can be killed and started again on the same ports and data."""

    def __init__(self, folder: Path, *, database: str = "", **settings: Any) -> None:
        self.folder, self.data, self.database = folder, folder / "data", database
        self.data.mkdir(parents=True, exist_ok=True)
        self.log = folder / "serve.log"
        self.package = tiny_package.write(folder / "tiny", CHEXPERT, population="phantom")
        self.port, self.dicom_port = peers.free_port(), peers.free_port()
        given = {
            "models": str(self.package.path),
            "threads": 1,
            "dicom_port": self.dicom_port,
            "dicom_host": "127.0.0.1",
            "dicom_peers": "STORESCU@127.0.0.1=default",
            "complete_after_s": 1,
            "database": database,
            **settings,
        }
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("WETREAD_")}
        self.environment |= {f"WETREAD_{k.upper()}": str(v) for k, v in given.items()}
        opened = self.open()
        token = access.create(opened, "modality", "administrator", "default")
        opened.close()
        self.api = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers={"Authorization": f"Bearer {token}"}, timeout=30
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.prefix: list[str] = []

    def start(self) -> Service:
        """Start it and return once it is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *WETREAD, "serve", "--data", str(self.data), "--port", str(self.port)],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        peers.wait(self.ready, "wetread serve is ready", LIMIT_S)
        return self

    def ready(self) -> bool:
        """Tell whether it answers and takes files; fail when the process ended."""
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
        with suppress(httpx.HTTPError):
            return self.api.get("/readyz").status_code == 200
        return False

    def kill(self) -> None:
        """Kill -9 the process and its children."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Kill it for good."""
        if self.process is not None:
            self.kill()
        self.api.close()

    def stop(self) -> None:
        """End it in an orderly way."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)  # strace, where it stands in front, passes nothing on
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def open(self) -> store.Store:
        """Open its database from outside."""
        return store.Store.open(self.data, self.database)

    def stow(self, content: bytes) -> bool:
        """Send by STOW-RS; return whether it was acknowledged."""
        boundary = "wetread-fault"
        body = b"".join(
            (
                f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(),
                content,
                f"\r\n--{boundary}--\r\n".encode(),
            )
        )
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        headers = {"Content-Type": kind, "Accept": "application/dicom+json", **self.api.headers}
        with suppress(httpx.HTTPError):
            answer = httpx.post(f"{self.api.base_url}/dicomweb/studies", content=body, headers=headers, timeout=30)
            return answer.status_code == 200
        return False

    def storescu(self, path: Path) -> bool:
        """Send by DCMTK's storescu; return whether it was acknowledged."""
        arguments = ("-aec", AE, "-to", "20", "-ta", "20", "-td", "20", "127.0.0.1", str(self.dicom_port), str(path))
        return peers.dcmtk("storescu", *arguments).returncode == 0


@dataclass
class Load:
    """Senders that send each file until it is acknowledged; half by storescu, half by STOW.

    `acknowledged` is each file's moment of acknowledgement, `refused` counts what was answered with a no or not at all.
    """

    service: Service
    files: list[Path]
    senders: int = 4
    pause: float = 0.0
    acknowledged: dict[Path, float] = field(default_factory=dict)
    refused: int = 0

    def __post_init__(self) -> None:
        self._queue: queue.Queue[Path] = queue.Queue()
        for path in self.files:
            self._queue.put(path)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(self.senders)]
        self.error: BaseException | None = None
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._stop.is_set() and len(self.acknowledged) < len(self.files):
            try:
                path = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                if self.service.storescu(path) if by_dicom(path) else self.service.stow(path.read_bytes()):
                    self.acknowledged[path] = time.monotonic()
                    self._stop.wait(self.pause)
                    continue
            except BaseException as error:
                self.error = error
                return
            self.refused += 1
            self._queue.put(path)
            self._stop.wait(0.1)

    def done(self) -> bool:
        """Tell whether everything was acknowledged."""
        assert self.error is None, f"a sender failed: {self.error!r}"
        return len(self.acknowledged) == len(self.files)

    def stop(self) -> None:
        """End the senders, whatever is left."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


def drained(service: Service) -> bool:
    """Tell whether no job is left and every study has its place."""
    database = service.open()
    try:
        with database.read() as connection:
            jobs = connection.execute(sa.select(sa.func.count()).where(store.job.c.state != "done")).scalar_one()
            waiting = sa.select(sa.func.count()).where(store.study.c.analysis == "received")
            return jobs == 0 and connection.execute(waiting).scalar_one() == 0
    finally:
        database.close()


def dataset(content: bytes) -> bytes:
    """Return what follows the file meta information."""
    length = int.from_bytes(content[140:144], "little")
    return content[144 + length :]


def examine(service: Service, acknowledged: dict[Path, float]) -> dict[str, int]:
    """Check, on a service that has ended, all that must be true; return the figures.

    Raises
    ------
    AssertionError
        Naming what was lost, doubled or orphaned.
    """
    database, archive = service.open(), Archive(service.data / "archive")
    with database.read() as connection:
        instances = connection.execute(sa.select(store.instance)).all()
        results = connection.execute(sa.select(store.image_result.c.instance, store.image_result.c.model)).all()
        sets = connection.execute(
            sa.select(store.study_result.c.study, store.study_result.c.images, store.study_result.c.model)
        ).all()
        images: dict[str, list[str]] = {}
        for row in instances:
            images.setdefault(row.study, []).append(row.id)
        judged = set(
            connection.execute(sa.select(store.image_result.c.instance).where(store.image_result.c.suitable)).scalars()
        )
        whole = {(study, triage.image_set(connection, study, ids)) for study, ids in images.items() if judged & {*ids}}
    database.close()
    report = verify.run(service.data, Settings(database=service.database))
    assert report.whole, list(report.lines())
    by_uid = {row.sop_uid: row for row in instances}
    lost = changed = 0
    for path in acknowledged:
        sent = path.read_bytes()
        row = by_uid.get(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)
        if row is None:
            lost += 1
            continue
        kept = archive.path(row.sha256).read_bytes()
        same = dataset(kept) == dataset(sent) if by_dicom(path) else kept == sent  # DICOM sends no file meta
        changed += not same or hashlib.sha256(kept).hexdigest() != row.sha256
    per_image, per_set = Counter(tuple(row) for row in results), Counter(tuple(row) for row in sets)
    models = {model for _, model in per_image}
    files, rows = set(archive.names()), {row.sha256 for row in instances}
    figures = {
        "acknowledged": len(acknowledged),
        "lost": lost,
        "changed": changed,
        "instances": len(instances),
        "doubled instances": len(instances) - len(by_uid),
        "images without a result": sum((row.id, model) not in per_image for row in instances for model in models),
        "studies without a result": len(whole - {(study, names) for study, names, _ in sets}),
        "refused images": len(instances) - len(judged),
        "doubled results": sum(n - 1 for n in per_image.values()) + sum(n - 1 for n in per_set.values()),
        "files without a row": len(files - rows),
        "rows without a file": len(rows - files),
    }
    wrong = {k: v for k, v in figures.items() if v and k not in ("acknowledged", "instances", "refused images")}
    assert not wrong, f"{wrong} of {figures}"
    assert models, "no result at all"
    return figures


def kills(folder: Path, *, number: int, studies: int, seed: int, say: Any = print) -> dict[str, int]:
    """Kill the service `number` times under load, at moments that the seed chooses; return the figures."""
    (folder / "films").mkdir(parents=True)
    files, rng = films(folder / "films", studies, seed), random.Random(seed)
    service = Service(folder, job_tries=100).start()  # the kills are not the images' fault: none is set aside for them
    # The pause makes the load last as long as the kills.
    load = Load(service, files, pause=max(0.0, 4 * (number * 2.5 - 0.05 * studies) / studies))
    try:
        for count in range(number):
            wait = rng.uniform(0.05, 2.0)
            time.sleep(wait)
            service.kill()
            got = len(load.acknowledged)
            service.start()
            say(f"kill {count + 1} of {number} after {wait:.2f} s: {got} of {len(files)} acknowledged")
        peers.wait(load.done, "everything is acknowledged", 600)
        peers.wait(lambda: drained(service), "everything is analysed", 600)
        service.stop()
    finally:
        load.stop()
        service.close()
    figures = examine(service, load.acknowledged)
    assert not figures["refused images"], figures
    return figures | {"kills": number, "unanswered": load.refused}


class PostgreSQL:
    """A cluster of our own that can be killed; it refuses to run as root, so the account postgres runs it then."""

    def __init__(self) -> None:
        self._pg_ctl, initdb = peers.binary("pg_ctl"), peers.binary("initdb")
        if self._pg_ctl is None or initdb is None:
            pytest.skip("needs PostgreSQL: apt-get install -y postgresql")
        self._user = "postgres" if os.getuid() == 0 else None
        # Not in pytest's folder, which every session closes to other accounts.
        self._home, self._port = Path(tempfile.mkdtemp(prefix="wetread-postgresql-")), peers.free_port()
        if self._user:
            shutil.chown(self._home, self._user)
        self._run(initdb, "-D", str(self._home / "cluster"), "-U", "wetread", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.url = f"postgresql+psycopg://wetread@127.0.0.1:{self._port}/postgres"

    def _run(self, *command: str) -> None:
        environment = {"PATH": os.environ["PATH"]}
        subprocess.run(command, check=True, user=self._user, cwd="/", stdout=subprocess.DEVNULL, env=environment)

    def start(self) -> None:
        """Start it, after a crash too."""
        options = f"-p {self._port} -k {self._home} -c listen_addresses=127.0.0.1"
        log = str(self._home / "log")
        self._run(self._pg_ctl, "-D", str(self._home / "cluster"), "-w", "-l", log, "-o", options, "start")

    def kill(self) -> None:
        """Kill -9 the postmaster and what it started."""
        pid = int((self._home / "cluster" / "postmaster.pid").read_text().splitlines()[0])
        family = psutil.Process(pid)
        for process in [family, *family.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs([family])

    def stop(self) -> None:
        """End it at once."""
        with suppress(subprocess.CalledProcessError):
            self._run(self._pg_ctl, "-D", str(self._home / "cluster"), "-m", "immediate", "stop")
        shutil.rmtree(self._home)


@contextmanager
def full_disk(folder: Path, megabytes: int):
    """Mount a small tmpfs at a folder; EPERM is said by PermissionError."""
    folder.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        raise PermissionError(made.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def calls(trace: Path) -> list[tuple[str, str]]:
    """Return the system calls of an ``strace -f -y`` log in order of completion: name and arguments with result."""
    pending: dict[tuple[str, str], str] = {}
    found = []
    for line in trace.read_text(errors="replace").splitlines():
        pid, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if match := re.match(r"<\.\.\. (\w+) resumed>(.*)", rest):
            found.append((match[1], pending.pop((pid, match[1]), "") + match[2]))
        elif match := re.match(r"(\w+)\((.*)", rest):
            if rest.endswith("<unfinished ...>"):
                # An acknowledgement counts from when it begins, a flush only once it has returned.
                if match[1] in ("sendto", "sendmsg", "write"):
                    found.append((match[1], match[2]))
                else:
                    pending[pid, match[1]] = match[2].removesuffix("<unfinished ...>")
            else:
                found.append((match[1], match[2]))
    return found


def main() -> None:
    """Kill it many times and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        figures = kills(Path(folder) / "room", number=given.kills, studies=given.studies, seed=given.seed)
    print(f"seed {given.seed}, {time.monotonic() - start:.0f} s")
    for name, value in figures.items():
        print(f"{name:26}{value:8}")


if __name__ == "__main__":
    main()

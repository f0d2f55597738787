"""Real peers for the tests: Orthanc with its DICOMweb plugin, and the programs of DCMTK, on free loopback ports."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
LIMIT_S = 60


def free_port() -> int:
    """Return a port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait(condition: Callable[[], Any], what: str, limit: float = LIMIT_S) -> Any:
    """Wait until a condition holds and return what it gave; fail after `limit` seconds, saying what did not come."""
    end = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {limit} s"
        time.sleep(0.02)
    return found


def binary(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


@contextmanager
def postgresql() -> Iterator[str]:
    """Start a PostgreSQL cluster of our own and give its URL; it refuses to run as root, so somebody else does."""
    initdb, pg_ctl = binary("initdb"), binary("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("needs PostgreSQL: apt-get install -y postgresql")
    pytest.importorskip("psycopg", reason="needs psycopg, of the extra postgres")
    home = Path(tempfile.mkdtemp(prefix="wetread-postgresql-"))  # pytest's folders are closed to others
    user: str | None = None
    if os.getuid() == 0:
        with suppress(KeyError):
            user = pwd.getpwnam("postgres").pw_name
        if user is None:
            pytest.skip("needs the account `postgres`, since PostgreSQL does not run as root")
        shutil.chown(home, user)
    port = free_port()

    def run(*command: str) -> None:
        environment = {"PATH": os.environ["PATH"]}
        subprocess.run(command, check=True, user=user, cwd="/", stdout=subprocess.DEVNULL, env=environment)

    cluster = str(home / "cluster")
    run(initdb, "-D", cluster, "-U", "wetread", "-A", "trust", "-E", "UTF8", "--no-sync")
    options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off"
    run(pg_ctl, "-D", cluster, "-w", "-l", str(home / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg://wetread@127.0.0.1:{port}/postgres"
    finally:
        run(pg_ctl, "-D", cluster, "-m", "immediate", "stop")
        shutil.rmtree(home)


class Orthanc:
    """A running Orthanc: `ae`, `dicom_port`, `url` of its REST interface, `dicomweb` of its DICOMweb root."""

    def __init__(self, ae: str, http_port: int, dicom_port: int) -> None:
        self.ae, self.http_port, self.dicom_port = ae, http_port, dicom_port
        self.url = f"http://127.0.0.1:{http_port}"
        self.dicomweb = f"{self.url}/dicom-web"
        self.peer = f"{ae}@127.0.0.1:{dicom_port}"
        self.rest = httpx.Client(base_url=self.url, timeout=LIMIT_S)

    def upload(self, content: bytes) -> str:
        """Store a DICOM file; return Orthanc's id of the instance."""
        answer = self.rest.post("/instances", content=content).raise_for_status().json()
        return str(answer["ID"])

    def instances(self) -> list[str]:
        """Return Orthanc's ids of all instances."""
        return list(self.rest.get("/instances").raise_for_status().json())

    def file(self, instance: str) -> bytes:
        """Return the DICOM file of an instance."""
        return self.rest.get(f"/instances/{instance}/file").raise_for_status().content

    def add_modality(self, name: str, ae: str, port: int, **more: Any) -> None:
        """Tell it of a DICOM peer on the loopback."""
        body = {"AET": ae, "Host": "127.0.0.1", "Port": port, **more}
        self.rest.put(f"/modalities/{name}", json=body).raise_for_status()

    def empty(self) -> None:
        """Delete everything that it holds."""
        for patient in self.rest.get("/patients").json():
            self.rest.delete(f"/patients/{patient}")


@contextmanager
def orthanc(folder: Path, ae: str = "ORTHANC", **settings: Any) -> Iterator[Orthanc]:
    """Run an Orthanc of our own; skips the test where it is not installed.

    Parameters
    ----------
    folder : Path
        Gets its database and log.
    ae : str
    **settings
        Of its configuration, over ours.
    """
    binary = shutil.which("Orthanc") or ("/usr/sbin/Orthanc" if Path("/usr/sbin/Orthanc").exists() else None)
    if binary is None or not PLUGIN.exists():
        pytest.skip("needs Orthanc: apt-get install -y orthanc orthanc-dicomweb")
    folder.mkdir(parents=True, exist_ok=True)
    peer = Orthanc(ae, free_port(), free_port())
    configuration = {
        "Name": ae,
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": peer.http_port,
        "DicomPort": peer.dicom_port,
        "DicomAet": ae,
        "DicomModalitiesInDatabase": True,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "UnknownSopClassAccepted": True,
        "AuthenticationEnabled": False,
        "HttpThreadsCount": 4,
        "DicomThreadsCount": 2,
        "JobsHistorySize": 100,
        "DicomScuTimeout": 20,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        **settings,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration), encoding="utf-8")
    with (
        (folder / "orthanc.log").open("wb") as log,
        subprocess.Popen([binary, str(folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:

            def answers() -> bool:
                assert process.poll() is None, (folder / "orthanc.log").read_text(errors="replace")[-2000:]
                with suppress(httpx.HTTPError):
                    return peer.rest.get("/system").status_code == 200
                return False

            wait(answers, "Orthanc")
            yield peer
        finally:
            peer.rest.close()
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def dcmtk(program: str, *arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a program of DCMTK to its end; skips the test where it is not installed."""
    return subprocess.run(
        [dcmtk_path(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env=environment(),
        **more,
    )


def dcmtk_path(program: str) -> str:
    """Return where a program of DCMTK is; skips the test where it is not installed."""
    # pynetdicom puts programs of the same names into an active virtual environment.
    path = shutil.which(program, path="/usr/bin:/usr/local/bin:/opt/homebrew/bin") or shutil.which(program)
    if path is None:
        pytest.skip("needs DCMTK: apt-get install -y dcmtk")
    return path


def environment() -> Mapping[str, str]:
    """Return the environment in which DCMTK's programs run."""
    return {k: v for k, v in os.environ.items() if not k.startswith("WETREAD_")} | {"TCP_NODELAY": "1"}


def certificates(folder: Path) -> dict[str, Path]:
    """Make certificates of an authority, a server and a client for 127.0.0.1, and a stranger; return PEM files."""

    def openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=LIMIT_S)

    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Path] = {}
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost", encoding="utf-8")
    for name, issuer in (("ca", None), ("server", "ca"), ("client", "ca"), ("stranger", None)):
        made[f"{name}_key"], made[name] = folder / f"{name}.key", folder / f"{name}.pem"
        key, subject = ("-newkey", "rsa:2048", "-nodes", "-keyout", made[f"{name}_key"]), ("-subj", f"/CN={name}")
        if issuer is None:
            openssl("req", "-x509", "-days", "2", *key, *subject, "-out", made[name])
            continue
        openssl("req", *key, *subject, "-out", folder / f"{name}.csr")
        signed_by = ("-CA", made[issuer], "-CAkey", made[f"{issuer}_key"], "-set_serial", str(len(made)))
        request = ("-in", folder / f"{name}.csr", "-extfile", folder / "names", "-days", "2")
        openssl("x509", "-req", *request, *signed_by, "-out", made[name])
    return made


class Gate:
    """A TCP connection's middleman that lets through only so many bytes from the caller, until `open` is called."""

    def __init__(self, port: int, allow: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.passed, self._target, self._allow = 0, port, allow
        self._opened, self._links = threading.Event(), list[socket.socket]()
        threading.Thread(target=self._run, daemon=True).start()

    def open(self) -> None:
        """Let everything through."""
        self._opened.set()

    def close(self) -> None:
        """Cut both sides."""
        for link in [self.listener, *self._links]:
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()
        self._opened.set()

    def _run(self) -> None:
        with suppress(OSError):
            caller, _ = self.listener.accept()
            called = socket.create_connection(("127.0.0.1", self._target))
            self._links += [caller, called]
            threading.Thread(target=self._back, args=(called, caller), daemon=True).start()
            while piece := caller.recv(4096):
                called.sendall(piece)
                self.passed += len(piece)
                if self.passed >= self._allow:
                    self._opened.wait(LIMIT_S)
            called.shutdown(socket.SHUT_WR)

    @staticmethod
    def _back(called: socket.socket, caller: socket.socket) -> None:
        with suppress(OSError):
            while piece := called.recv(65536):
                caller.sendall(piece)
            caller.shutdown(socket.SHUT_RDWR)

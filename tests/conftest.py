"""What all tests share."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

import peers
import pytest
from hypothesis import HealthCheck, settings
from peers import Orthanc

# A busy machine makes no test wrong: no deadlines.
settings.register_profile("wetread", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wetread")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Give the folder of real radiographs beside the repository; skip the test where it is absent."""
    folder = Path(os.environ.get("WETREAD_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the real radiographs in {folder}/data")
    return folder


def _binary(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


@pytest.fixture(scope="module")
def postgresql() -> Generator[str, None, None]:
    """Start a PostgreSQL cluster of our own and give its URL; it refuses to run as root, so somebody else does."""
    initdb, pg_ctl = _binary("initdb"), _binary("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("needs PostgreSQL: apt-get install -y postgresql")
    pytest.importorskip("psycopg", reason="needs psycopg, of the extra postgres")
    home = Path(tempfile.mkdtemp(prefix="wetread-postgresql-"))  # pytest's folders are closed to others
    user: str | None = None
    if os.getuid() == 0:
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam("postgres").pw_name
        if user is None:
            pytest.skip("needs the account `postgres`, since PostgreSQL does not run as root")
        shutil.chown(home, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

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


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Generator[Orthanc, None, None]:
    """Run one Orthanc with DICOMweb for all tests of this worker; a test that needs it empty calls ``empty()``."""
    with peers.orthanc(tmp_path_factory.mktemp("orthanc")) as peer:
        yield peer


def _required(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure when WETREAD_REQUIRE=all: nothing may go untested unnoticed."""
    if report.skipped and os.environ.get("WETREAD_REQUIRE") == "all" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped although WETREAD_REQUIRE=all: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Look at the skips of tests and fixtures."""
    report = yield
    _required(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Look at the skips of whole modules."""
    report = yield
    _required(report)
    return report

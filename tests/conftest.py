"""What all tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import browser
import peers
import pytest
from hypothesis import HealthCheck, settings
from peers import Orthanc

from wetread.clinic.store import Store

# A busy machine makes no test wrong: no deadlines.
settings.register_profile("wetread", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wetread")


@pytest.fixture(scope="session", autouse=True)
def _migrated(tmp_path_factory: pytest.TempPathFactory) -> Generator[None, None, None]:
    """Let a new SQLite database begin as a copy of one that was migrated, which takes a third of a second each time."""
    made = tmp_path_factory.mktemp("migrated") / "clinic.db"
    Store(f"sqlite:///{made}").close()
    migrate = Store._migrate

    def copied(self: Store, *, change: bool) -> None:
        file = Path(self.url.database or "")
        if change and not self.shared and file.suffix == ".db" and not file.exists() and file.parent.is_dir():
            shutil.copyfile(made, file)
        migrate(self, change=change)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "_migrate", copied)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Give the folder of real radiographs beside the repository; skip the test where it is absent."""
    folder = Path(os.environ.get("WETREAD_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the real radiographs in {folder}/data")
    return folder


@pytest.fixture(scope="module")
def postgresql() -> Generator[str, None, None]:
    """Start a PostgreSQL cluster of our own and give its URL."""
    with peers.postgresql() as url:
        yield url


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Generator[Orthanc, None, None]:
    """Run one Orthanc with DICOMweb for all tests of this worker; a test that needs it empty calls ``empty()``."""
    with peers.orthanc(tmp_path_factory.mktemp("orthanc")) as peer:
        yield peer


@pytest.fixture(scope="module")
def chromium() -> Generator[Any, None, None]:
    """Run the system's Chromium; for a module only, as Playwright's event loop stands in the way of any other."""
    with browser.chromium() as running:
        yield running


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the closed loop, which takes longest: the others go on beside it."""
    items.sort(key=lambda item: item.path != Path(__file__).parent / "test_loop.py")

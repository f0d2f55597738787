"""Shared by the tests of the clinic."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import department
import pytest
from ward import Ward

from wetread.clinic.store import Store

MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Give a folder in memory where there is one: the clinic flushes each step to disk, thousands of times in all."""
    place = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    opened = Ward(tmp_path)
    yield opened
    opened.database.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.system)], scope="module")
def connection(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Open a database that holds the department `TABLES` of the test's module, on either engine."""
    folder: Path = tmp_path_factory.mktemp("figures")
    shared = request.param == "postgresql"
    database = Store(request.getfixturevalue("postgresql") if shared else f"sqlite:///{folder}/clinic.db")
    department.put(database, request.module.TABLES)
    with database.read() as opened:
        yield opened
    database.close()

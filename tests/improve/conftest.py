"""Shared by the tests of the closed loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ward import Ward


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    opened = Ward(tmp_path)
    yield opened
    opened.database.close()

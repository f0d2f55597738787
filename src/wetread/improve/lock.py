"""One command of a kind at a time on a folder; the lock goes with the process."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wetread.errors import ConfigError


@contextmanager
def alone(folder: Path, command: str) -> Iterator[None]:
    """Hold a folder, which is made, for one command; raises `ConfigError` when another of its kind is at work there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder}: another `wetread {command}` is at work; wait for it") from None
        yield

"""Files that are there whole or not at all, whatever stops the program or the machine while they are written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def opened(path: Path, draft: str = "") -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name, and the place of an older one, when all is on the disk.

    Parameters
    ----------
    draft : str
        Its name until then, in the same folder; by default a new one each time, so that two may write at once. One
        that stays the same is for large files of one writer: what a killed process left is written over.

    Raises
    ------
    OSError
        When it cannot be written; an older file stays as it is.
    """
    half = path.with_name(draft or f".{path.name}.{secrets.token_hex(4)}")
    try:
        with half.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write(path: Path, content: bytes) -> None:
    """Write a file."""
    with opened(path) as file:
        file.write(content)


def flush(path: Path) -> None:
    """Make a file's content, or the names in a folder, last."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

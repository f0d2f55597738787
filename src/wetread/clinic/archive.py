"""The archive: bytes on disk, named by their SHA-256, never changed once they are there.

`Archive.put` returns only after the file *and* its folder have been flushed (``fsync``); the caller then
commits the row and only then acknowledges. A crash in between leaves a file without a row, which
`unknown` finds at the next start.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from wetread.errors import ClinicError, ConfigError

CHUNK = 2**20
_NAME = re.compile(r"[0-9a-f]{64}")


class TooLargeError(ClinicError):
    """A file is larger than the setting `max_bytes` allows."""


class ArchiveError(ClinicError):
    """The disk refuses: full, read-only or broken."""


@dataclass(frozen=True)
class Stored:
    """One file of the archive: its SHA-256 (hexadecimal), its size in bytes, and its first 4 KiB."""

    sha256: str
    size: int
    head: bytes


class Archive:
    """A folder of files named by content.

    Parameters
    ----------
    root : Path
        The folder; made when missing.

    Raises
    ------
    ConfigError
        When the folder cannot be made or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._incoming = root / "incoming"
        try:
            self._incoming.mkdir(parents=True, exist_ok=True)
            for number in range(256):
                (root / f"{number:02x}").mkdir(exist_ok=True)
            _flush(root)
        except OSError as error:
            raise ConfigError(f"archive {root}: cannot be written ({error.strerror}); name another --data") from None

    def path(self, sha256: str) -> Path:
        """Return where the file with this SHA-256 lies, whether or not it is there."""
        if not _NAME.fullmatch(sha256):
            raise ClinicError(f"archive: {sha256[:80]!r} is no SHA-256")
        return self.root / sha256[:2] / sha256

    def clean(self) -> None:
        """Remove what a crash left half-copied: it was never acknowledged. Only for the one service, at its start."""
        for left in self._incoming.iterdir():
            left.unlink(missing_ok=True)

    def put(self, source: BinaryIO, *, limit: int, check: Callable[[], None] | None = None) -> Stored:
        """Copy a stream to disk and make it last.

        Parameters
        ----------
        source : binary file
            Read to its end, in pieces.
        limit : int
            Most bytes.
        check : callable, optional
            Called after each piece; may raise, to give up.

        Raises
        ------
        TooLargeError
            When the stream is longer than `limit`.
        ArchiveError
            When the disk is full or cannot be written. Nothing is left behind.
        """
        digest, size, head = hashlib.sha256(), 0, b""
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(dir=self._incoming)
            with os.fdopen(handle, "wb") as target:
                while piece := source.read(CHUNK):
                    head = head or piece[:4096]
                    size += len(piece)
                    if size > limit:
                        raise TooLargeError(
                            f"file of more than {limit} bytes; raise the setting max_bytes to accept it"
                        )
                    digest.update(piece)
                    target.write(piece)
                    if check is not None:
                        check()
                target.flush()
                os.fsync(target.fileno())
            sha256 = digest.hexdigest()
            target_path = self.path(sha256)
            Path(temporary).replace(target_path)
            _flush(target_path.parent)
            return Stored(sha256, size, head)
        except OSError as error:
            reason = "disk full" if error.errno == errno.ENOSPC else error.strerror or str(error)
            raise ArchiveError(
                f"archive {self.root}: {reason}; the file was not accepted, send it again later"
            ) from None
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        """Yield the SHA-256 of every file in the archive."""
        for file in self.root.glob("??/*"):
            if _NAME.fullmatch(file.name) and file.is_file():
                yield file.name


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

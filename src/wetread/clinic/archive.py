"""The archive: bytes on disk, named by their SHA-256, never changed once they are there.

`Archive.put` returns only after the file *and* its folder have been flushed (``fsync``); the caller then
commits the row and only then acknowledges. A crash in between leaves a file without a row, which
`Intake.adopt` finds later, with a note beside it that says for whom it came. Before the disk is full, at the
reserve, nothing more is taken.
`wetread.clinic.bucket` keeps the same promises in S3.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from wetread.config import Settings
from wetread.errors import ClinicError, ConfigError, FullError
from wetread.whole import flush

CHUNK = 2**20
_NAME = re.compile(r"[0-9a-f]{64}")
_NOTE = ".from"


class TooLargeError(ClinicError):
    """A file is larger than the setting `max_bytes` allows."""


class ArchiveError(FullError):
    """The disk refuses for another reason than being full: read-only, or broken."""


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
    reserve : float
        Room that stays free: below 1 a share of the disk, else bytes.

    Raises
    ------
    ConfigError
        When the folder cannot be made or written.
    """

    def __init__(self, root: Path, reserve: float = 0.0) -> None:
        self.root, self.reserve = root, reserve
        self._incoming = root / "incoming"
        try:
            self._incoming.mkdir(parents=True, exist_ok=True)
            for number in range(256):
                (root / f"{number:02x}").mkdir(exist_ok=True)
            flush(root)
        except OSError as error:
            raise ConfigError(f"archive {root}: cannot be written ({error.strerror}); name another --data") from None

    def path(self, sha256: str) -> Path:
        """Return a path at which the file with this SHA-256 can be read; whether it is there, reading shows."""
        if not _NAME.fullmatch(sha256):
            raise ClinicError(f"archive: {sha256[:80]!r} is no SHA-256")
        return self.root / sha256[:2] / sha256

    def size(self, sha256: str) -> int | None:
        """Return how many bytes the file with this SHA-256 has, None when it is not there."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def age_s(self, sha256: str) -> float:
        """Return for how long the file has been there, in s; infinite when nobody knows."""
        try:
            return time.time() - self.path(sha256).stat().st_mtime
        except FileNotFoundError:
            return float("inf")

    def remove(self, sha256: str) -> None:
        """Remove a file that no row needs; see `wetread.clinic.retention`, which alone may say so."""
        path = self.path(sha256)
        path.unlink(missing_ok=True)
        self.settle(sha256)
        flush(path.parent)

    def export(self, sha256: str, target: Path) -> None:
        """Make `target` another name of a file (hard link), or a copy where the disk is another one."""
        try:
            os.link(self.path(sha256), target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                raise
            shutil.copyfile(self.path(sha256), target)

    def open(self, sha256: str) -> BinaryIO:
        """Open a file to read it once from beginning to end; raises `FileNotFoundError` when it is not there."""
        return self.path(sha256).open("rb")

    def free(self) -> float:
        """Return how many bytes may still be taken: what is free, less the reserve."""
        return room(self.root, self.reserve)

    def clean(self, older_than_s: float = 0.0) -> None:
        """Remove what a crash left half-copied: it was never acknowledged.

        Parameters
        ----------
        older_than_s : float
            Leave alone what was written to since, where other processes may be at work.
        """
        for left in self._incoming.iterdir():
            with suppress(FileNotFoundError):
                if not older_than_s or left.stat().st_mtime < time.time() - older_than_s:
                    left.unlink()

    def put(self, source: BinaryIO, *, limit: int, check: Callable[[], None] | None = None, origin: str = "") -> Stored:
        """Copy a stream to disk and make it last.

        Parameters
        ----------
        source : binary file
            Read to its end, in pieces.
        limit : int
            Most bytes.
        check : callable, optional
            Called after each piece; may raise, to give up.
        origin : str
            What the method `origin` says of the file until `settle`, also after a crash; at most 1 KiB of UTF-8.

        Raises
        ------
        TooLargeError
            When the stream is longer than `limit`.
        FullError
            When the disk is full, has only its reserve left, or cannot be written. Nothing is left behind.
        ClinicError
            When the stream itself cannot be read.
        """
        digest, size, head = hashlib.sha256(), 0, b""
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(dir=self._incoming)
            with os.fdopen(handle, "wb") as target:
                while piece := _read(source):
                    if self.free() < len(piece):
                        raise self._full("the disk has only its reserve left (setting disk_reserve)")
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
            self._keep(Path(temporary), sha256, origin)
            return Stored(sha256, size, head)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._full("disk full") from None
            reason = error.strerror or str(error)
            raise ArchiveError(
                f"archive {self.root}: {reason}; the file was not accepted, send it again later"
            ) from None
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    def _keep(self, temporary: Path, sha256: str, origin: str) -> None:
        """Give a flushed file its name, after its note has one, and flush both names."""
        target = Archive.path(self, sha256)
        if origin:
            note = temporary.with_name(f"{temporary.name}{_NOTE}")
            try:
                with note.open("w", encoding="utf-8") as file:
                    file.write(origin)
                    file.flush()
                    os.fsync(file.fileno())
                note.replace(target.with_name(f"{sha256}{_NOTE}"))
            finally:
                note.unlink(missing_ok=True)
        temporary.replace(target)
        flush(target.parent)

    def origin(self, sha256: str) -> str:
        """Return the note that came with a file whose row was never made; empty when there is none."""
        try:
            return self._note(sha256).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def settle(self, sha256: str) -> None:
        """Drop the note of a file: a row says now whose it is, or the file goes."""
        self._note(sha256).unlink(missing_ok=True)

    def noted(self) -> Iterator[str]:
        """Yield the SHA-256 of every file with a note."""
        for file in self.root.glob(f"??/*{_NOTE}"):
            if _NAME.fullmatch(file.stem):
                yield file.stem

    def _note(self, sha256: str) -> Path:
        path = Archive.path(self, sha256)
        return path.with_name(f"{path.name}{_NOTE}")

    def _full(self, why: str) -> FullError:
        return FullError(f"archive {self.root}: {why}; the file was not accepted, make room and send it again")

    def names(self) -> Iterator[str]:
        """Yield the SHA-256 of every file in the archive."""
        for file in self.root.glob("??/*"):
            if _NAME.fullmatch(file.name) and file.is_file():
                yield file.name

    def strays(self) -> Iterator[str]:
        """Yield the path, within the archive, of every file that Wetread never put there."""
        for file in self.root.rglob("*"):
            folder, name = file.parent, file.name.removesuffix(_NOTE)
            ours = folder == self._incoming or (_NAME.fullmatch(name) and folder == self.root / name[:2])
            if not ours and not file.is_dir():
                yield str(file.relative_to(self.root))


def open_archive(data: Path, settings: Settings) -> Archive:
    """Open the archive that the settings name: in the data folder, or in S3.

    Raises
    ------
    ConfigError
        When it cannot be used.
    """
    if not settings.archive:
        return Archive(data / "archive", settings.disk_reserve)
    from wetread.clinic.bucket import Bucket  # brings s3fs, which only this needs

    return Bucket(
        settings.archive,
        data / "cache",
        endpoint=settings.archive_endpoint,
        cache_bytes=settings.archive_cache_bytes,
        reserve=settings.disk_reserve,
    )


def _read(source: BinaryIO) -> bytes:
    """Read a piece; that a source is broken is no fault of the archive's disk."""
    try:
        return source.read(CHUNK)
    except OSError as error:
        raise ClinicError(f"file cannot be read ({error.strerror or error}); make it again and send it") from None


def room(folder: Path, reserve: float) -> float:
    """Return how many bytes may still be written to the disk of `folder`: what is free, less the reserve."""
    disk = os.statvfs(folder)
    keep = reserve * disk.f_blocks * disk.f_frsize if reserve < 1 else reserve
    return disk.f_bavail * disk.f_frsize - keep

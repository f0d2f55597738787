"""Files as they are sent: single, many, or zip archives, each an answer of its own.

A zip archive is hostile until shown otherwise: its directory is measured before it is read, its members are
counted and their claimed sizes added up before one is unpacked, names are never used as paths, and archives
within archives are not opened.
"""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO

from wetread.clinic import identity
from wetread.clinic.archive import TooLargeError
from wetread.clinic.intake import Intake, Received
from wetread.errors import ClinicError

MAX_RATIO = 200  # radiographs compress two- to threefold; beyond this, above MAX_EASY bytes, it is a bomb
MAX_EASY = 64 * 2**20
_UNPACKING = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError,
)  # fmt: skip
_JUNK = frozenset({"DICOMDIR", ".DS_Store", "Thumbs.db", "desktop.ini"})


@dataclass(frozen=True)
class Refused:
    """One file that was not accepted, and why; the sender still has it."""

    file: str
    detail: str


@dataclass
class Receipt:
    """What became of an upload: every file is either received, refused, or skipped as no content (a DICOMDIR)."""

    received: list[Received] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    error: ClinicError | None = None  # the first refusal


def take(
    intake: Intake,
    files: Iterable[tuple[str, BinaryIO]],
    site: str,
    *,
    actor: str,
    corrects: bool = False,
    study: str | None = None,
    requested: str | None = None,
    max_files: int,
    max_total: int,
) -> Receipt:
    """Take in files and the members of zip archives.

    Parameters
    ----------
    files : iterable of (str, binary file)
        Seekable.
    site, actor, corrects, study, requested
        As `Intake.take` has them.
    max_files : int
        Most members of one archive.
    max_total : int
        Most bytes that one archive may unpack to.
    """
    receipt = Receipt()
    into = partial(intake.take, site=site, actor=actor, corrects=corrects, study=study, requested=requested)
    for name, file in files:
        head = file.read(4096)
        file.seek(0)
        try:
            if identity.sniff(head) == "zip" and (archive := _open(file, max_files, max_total)) is not None:
                with archive:
                    for member, stream in _members(name, archive, receipt):
                        _one(into, receipt, member, stream)
                continue
            file.seek(0)
        except ClinicError as error:
            _refuse(receipt, name, error)
            continue
        _one(into, receipt, name, file)
    return receipt


def _one(into: Callable[[BinaryIO, str], Received], receipt: Receipt, name: str, file: BinaryIO) -> None:
    try:
        receipt.received.append(into(file, name))
    except ClinicError as error:
        _refuse(receipt, name, error)
    except _UNPACKING as error:
        _refuse(receipt, name, ClinicError(f"cannot be unpacked ({error}); make the archive again"))
    except OSError as error:
        _refuse(receipt, name, ClinicError(f"cannot be taken in ({error.strerror or error}); send it again"))


def _refuse(receipt: Receipt, name: str, error: ClinicError) -> None:
    receipt.error = receipt.error or error
    receipt.refused.append(Refused(identity.clean(name), str(error)))


def _open(file: BinaryIO, max_files: int, max_total: int) -> zipfile.ZipFile | None:
    """Open a zip archive of files; None when it is damaged, or a document that only happens to be one."""
    if _directory_size(file) > max_files * 512:
        raise TooLargeError(f"zip archive with more than {max_files} files; send it in parts")
    file.seek(0)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error):
        return None
    members = archive.infolist()
    if any(member.filename in ("[Content_Types].xml", "mimetype") for member in members):
        return None
    total = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if len(members) > max_files:
        raise TooLargeError(f"zip archive with {len(members)} files; at most {max_files} are accepted at once")
    if total > max_total:
        raise TooLargeError(f"zip archive of {total} bytes unpacked; at most {max_total} are accepted at once")
    if total > MAX_EASY and total > MAX_RATIO * max(packed, 1):
        raise TooLargeError(
            f"zip archive that unpacks to {total // max(packed, 1)} times its size; send the files plain"
        )
    return archive


def _directory_size(file: BinaryIO) -> int:
    """Return the claimed size of a zip archive's directory, in bytes; 0 without one (APPNOTE 4.3.14 to 4.3.16)."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 65_557 - 20))
    tail = file.read(65_557 + 20)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        return 0
    (claimed,) = struct.unpack_from("<L", tail, at + 12)
    if at >= 20 and tail[at - 20 : at - 16] == b"PK\x06\x07":
        (where,) = struct.unpack_from("<Q", tail, at - 12)
        file.seek(min(where, size))
        record = file.read(56)
        # An archive with bytes before it has its record elsewhere; zipfile finds it right before the locator.
        if record[:4] != b"PK\x06\x06":
            file.seek(max(0, size - len(tail) + at - 20 - 56))
            record = file.read(56)
        if record[:4] == b"PK\x06\x06":
            return max(int(struct.unpack_from("<Q", record, 40)[0]), 0)
    return int(claimed)


def _members(name: str, archive: zipfile.ZipFile, receipt: Receipt) -> Iterator[tuple[str, BinaryIO]]:
    """Yield each member that may be a radiograph, called ``archive/member``."""
    for member in archive.infolist():
        path = PurePosixPath(member.filename)
        full = f"{name}/{member.filename}"
        if member.is_dir():
            continue
        if path.name in _JUNK or path.parts[:1] == ("__MACOSX",):
            receipt.skipped.append(identity.clean(full))
            continue
        if member.flag_bits & 1:
            _refuse(receipt, full, ClinicError("encrypted; send the archive without a password"))
            continue
        try:
            with archive.open(member) as stream:
                yield full, stream  # type: ignore[misc]  # IO[bytes] is what BinaryIO is
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OSError) as error:
            _refuse(receipt, full, ClinicError(f"cannot be unpacked ({error}); make the archive again"))

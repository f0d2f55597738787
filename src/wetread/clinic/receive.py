"""Taking in what arrives by C-STORE, whoever opened the association, and what the sender is answered.

The bytes are kept as they came, under a file meta header that depends on nothing but SOP class, SOP instance and
transfer syntax, so that the same instance sent again is the same file.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from enum import IntEnum
from io import BytesIO
from typing import IO, Any, BinaryIO, cast

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID
from pynetdicom.dsutils import encode_file_meta
from pynetdicom.events import Event
from sqlalchemy.exc import SQLAlchemyError

from wetread.clinic import content
from wetread.clinic.archive import TooLargeError
from wetread.clinic.intake import Intake
from wetread.clinic.peers import IMPLEMENTATION_UID
from wetread.errors import BusyError, ClinicError
from wetread.radiograph.dicom import quiet

log = logging.getLogger(__name__)

SPOOL_BYTES = 16 * 2**20  # a data set above this size waits on disk, not in memory


class Status(IntEnum):
    """What a sender is answered (DICOM PS3.4 B.2.3, PS3.7 C)."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    OUT_OF_RESOURCES = 0xA700
    TOO_LARGE = 0xA701
    MISMATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000


STATUS_MEANS: Mapping[Status, str] = {
    Status.SUCCESS: "the instance is on disk and in the database; also for the same bytes again, and for other bytes "
    "under a known SOP Instance UID, and for corrections by a peer that may not correct, which are kept apart with an "
    "event and a caution",
    Status.PROCESSING_FAILURE: "an unforeseen fault; nothing was kept, send again later",
    Status.OUT_OF_RESOURCES: "no room on disk, or the database is away; nothing was kept, send again later",
    Status.TOO_LARGE: "the data set is larger than the setting `max_bytes`; nothing was kept",
    Status.MISMATCH: "SOP class or SOP instance of the data set are not those of the request; nothing was kept",
    Status.CANNOT_UNDERSTAND: "the data set cannot be parsed; nothing was kept",
}


class Body(BytesIO):
    """A DICOM file on its way in: in memory while small, on disk when larger, dropped when there is no room for it.

    Parameters
    ----------
    header : bytes
        What stands before the data set.
    limit : int
        Most bytes of the data set.
    """

    def __init__(self, header: bytes, limit: int) -> None:
        super().__init__()
        self.limit, self.size, self.full = limit, 0, False
        self.file: IO[bytes] = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115
        self.file.write(header)

    def write(self, piece: Any, /) -> int:
        """Keep a piece of the data set, as long as there is room."""
        self.size += len(piece)
        if self.size <= self.limit and not self.full:
            try:
                self.file.write(piece)
            except OSError:
                self.full = True
        elif not self.file.closed:
            self.file.close()
        return len(piece)

    def close(self) -> None:
        """Drop everything."""
        self.file.close()
        super().close()


def file_header(sop_class: str, sop_uid: str, syntax: str) -> bytes:
    """Return preamble and file meta information (DICOM PS3.10 7.1) for a data set that came without one."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = UID(sop_uid)
    meta.TransferSyntaxUID = UID(syntax)
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    return bytes(128) + b"DICM" + encode_file_meta(meta)


class Receiver:
    """Takes instances that arrive by C-STORE, whoever opened the association.

    Parameters
    ----------
    intake : Intake
    """

    def __init__(self, intake: Intake) -> None:
        self.intake = intake

    def store(self, event: Event, ae: str, site: str, *, corrects: bool = False) -> Dataset:
        """Take the instance of a C-STORE request; return the answer, with a comment when it is no success.

        `corrects` as `Intake.take` has it.
        """
        request = cast(Any, event.request)
        body = request.DataSet
        try:
            status, comment = self._store(request, body, str(event.context.transfer_syntax), ae, site, corrects)
        finally:
            body.close()
        self.intake.tally.stores.labels(f"0x{status:04X}").inc()
        if status != Status.SUCCESS:
            log.warning("DICOM: instance from %s refused with 0x%04X: %s", ae, status, comment)
        return answer(status, comment)

    def _store(
        self, request: Any, body: BytesIO, syntax: str, ae: str, site: str, corrects: bool
    ) -> tuple[Status, str]:
        sop_class, sop_uid = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
        if isinstance(body, Body):
            if body.size > body.limit:
                return Status.TOO_LARGE, f"more than {body.limit} bytes"
            if body.full:
                return Status.OUT_OF_RESOURCES, "no room; send again later"
            file = cast(BinaryIO, body.file)
        else:
            file = BytesIO(file_header(sop_class, sop_uid, syntax) + body.getvalue())
        if refused := _mismatch(file, sop_class, sop_uid):
            return refused
        file.seek(0)
        try:
            self.intake.take(file, f"{sop_uid}.dcm", site, actor=f"AE {ae}", corrects=corrects)
        except TooLargeError:
            return Status.TOO_LARGE, "larger than this system accepts"
        except (ClinicError, BusyError):  # no room, or the disk refuses
            return Status.OUT_OF_RESOURCES, "no room; send again later"
        except SQLAlchemyError as error:
            log.error("DICOM: the database is not available: %s", type(error).__name__)
            return Status.OUT_OF_RESOURCES, "database not available; send again later"
        except Exception as error:
            log.error("DICOM: an instance could not be kept: %s", type(error).__name__)
            return Status.PROCESSING_FAILURE, "internal fault"
        return Status.SUCCESS, ""


def answer(status: Status, comment: str) -> Dataset:
    """Return the status elements of a response."""
    response = Dataset()
    response.Status = int(status)
    if comment:
        response.ErrorComment = comment[:64]
    return response


def _mismatch(file: BinaryIO, sop_class: str, sop_uid: str) -> tuple[Status, str] | None:
    """Compare a data set with its request; None when they agree, or when the data set does not say."""
    try:
        with quiet():
            said, _ = content.header_of(file, ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"))
            its_class, its_uid = str(said.get("SOPClassUID") or ""), str(said.get("SOPInstanceUID") or "")
    except Exception:  # pydicom raises nearly anything on hostile bytes
        return Status.CANNOT_UNDERSTAND, "data set cannot be parsed"
    if not its_class and not its_uid and "StudyInstanceUID" not in said:
        return Status.CANNOT_UNDERSTAND, "no SOP Class, SOP Instance or Study Instance UID"
    if its_class and its_class != sop_class:
        return Status.MISMATCH, "SOP Class UID is not that of the request"
    if its_uid and its_uid != sop_uid:
        return Status.MISMATCH, "SOP Instance UID is not that of the request"
    return None

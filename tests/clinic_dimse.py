"""Shared by the tests of DICOM networking: a listener over the intake of a ward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import pydicom
import sqlalchemy as sa
from ward import Ward, dicom

from wetread.clinic import peers, store
from wetread.clinic.dimse import Listener
from wetread.clinic.peers import Caller, Peer, Sent
from wetread.config import Settings

US = Caller("MODALITY", timeout_s=20)


class Listening(Listener):
    """A listener with `us`: how to call it."""

    us: Peer


@contextmanager
def listening(ward: Ward, **settings: Any) -> Iterator[Listening]:
    """Listen with the intake of a ward."""
    given = {"dicom_peers": ["*@127.0.0.1"], "dicom_host": "127.0.0.1", "dicom_timeout_s": 20.0, "max_bytes": 2**20}
    listener = Listening(ward.intake, Settings(**{**given, **settings}))
    listener.bind(0)
    listener.start()
    listener.us = Peer("WETREAD", "127.0.0.1", listener.port, bool(settings.get("dicom_tls")))
    try:
        yield listener
    finally:
        listener.stop()


def rows(ward: Ward) -> list[Any]:
    """Return every instance, oldest first."""
    with ward.database.read() as connection:
        return list(connection.execute(sa.select(store.instance).order_by(store.instance.c.received_at)))


def body(content: bytes) -> bytes:
    """Return a file's data set as it is encoded, without preamble and file meta information."""
    stream = BytesIO(content)
    stream.seek(132)
    meta = pydicom.filereader._read_file_meta_info(stream)
    return content[132 + 12 + meta.FileMetaInformationGroupLength :]


def dataset(seed: int = 0, **elements: Any) -> pydicom.Dataset:
    """Return the data set that `ward.dicom` writes."""
    return pydicom.dcmread(BytesIO(dicom(seed, **elements)))


def send(listener: Listening, *items: Any, caller: Caller = US) -> list[Sent]:
    """Send to the listener."""
    return peers.store(listener.us, items, caller)

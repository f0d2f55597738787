"""DICOM application entities beyond this one: how they are named, and how something is sent to them.

A peer is one line, ``AE@host:port``, with ``+tls`` at the end when the connection is to be encrypted:
``PACS@10.0.0.7:11112``, ``ARCHIVE@[fd00::7]:2762+tls``. Nothing is re-encoded on its way: a file goes out with the
bytes that it has on disk, in the transfer syntax in which it is stored.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, AllTransferSyntaxes, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import AssociationSocket

from wetread import __version__
from wetread.clinic import identity, listening_tls
from wetread.config import Settings
from wetread.errors import ClinicError, ConfigError

# A file is sent as it lies on disk, piece by piece, instead of being decoded and encoded again.
_config.STORE_SEND_CHUNKED_DATASET = True
# The handlers of this level print identifiers of patients.
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False


def _close(self: AssociationSocket) -> None:
    """Close a connection; pynetdicom's own leaves one that never came about to the garbage collector."""
    if isinstance(self.socket, socket.socket):
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


AssociationSocket._shutdown_socket = _close  # type: ignore[method-assign]

IMPLEMENTATION_UID = UID(identity.derive("implementation"))
IMPLEMENTATION_VERSION = f"WETREAD_{__version__}"[:16]
NO_CONTEXT = 0x0122  # SOP class not supported, DICOM PS3.7 C.5.6
_CONTEXTS = 128  # most presentation contexts of one association, DICOM PS3.8 9.3.2.2
_UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


class PeerError(ClinicError):
    """A peer cannot be reached, or refuses the association."""


@dataclass(frozen=True)
class Peer:
    """Where an application entity listens: its title, host and port, and whether it wants TLS."""

    ae: str
    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.ae}@{host}:{self.port}{'+tls' if self.tls else ''}"


@dataclass(frozen=True)
class Caller:
    """How this application entity calls others.

    Attributes
    ----------
    ae : str
        Its own title.
    tls : ssl.SSLContext, optional
        For peers that want TLS.
    timeout_s : float
        Longest wait to connect, to be accepted, and for each answer, in s.
    """

    ae: str = "WETREAD"
    tls: ssl.SSLContext | None = None
    timeout_s: float = 30.0

    @classmethod
    def of(cls, settings: Settings) -> Caller:
        """Make the caller that the settings describe; raises ConfigError for unusable certificates."""
        return cls(settings.dicom_ae_title, client_tls(settings), settings.dicom_timeout_s)


@dataclass(frozen=True)
class Sent:
    """What the peer answered for one instance.

    Attributes
    ----------
    sop_uid : str
        SOP Instance UID.
    status : int or None
        DIMSE status; None when the association ended before the answer.
    reason : str
        In words; empty for success.
    """

    sop_uid: str
    status: int | None
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether the peer has it: success, or success with a warning (Bxxx, DICOM PS3.4 B.2.3)."""
        return self.status is not None and (self.status == 0 or self.status >> 12 == 0xB)


def parse(text: str) -> Peer:
    """Read ``AE@host:port``, with ``+tls`` at the end for TLS.

    Raises
    ------
    ConfigError
        When it is written otherwise, naming what is wrong.
    """
    line, tls = (text.strip().removesuffix("+tls"), text.strip().endswith("+tls"))
    ae, at, address = line.partition("@")
    host, colon, port = address.rpartition(":")
    if not (at and colon and host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f"DICOM peer {text[:120]!r}: write AE@host:port, e.g. PACS@10.0.0.7:11112")
    return Peer(ae_title(ae), host.removeprefix("[").removesuffix("]"), int(port), tls)


def ae_title(text: str) -> str:
    """Return an application entity title without its padding (DICOM PS3.5 6.2, VR AE).

    Raises
    ------
    ConfigError
        When it is empty, longer than 16 characters, or has others than printable ASCII without backslash.
    """
    title = text.strip()
    if not 0 < len(title) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
        raise ConfigError(f"AE title {text[:40]!r}: must be 1 to 16 printable ASCII characters without backslash")
    return title


def client_tls(settings: Settings) -> ssl.SSLContext | None:
    """Make the TLS context by which peers are called; None when no certificate or CA is set.

    With a CA of one's own (`dicom_tls_ca`), the chain is what is verified: devices' certificates rarely name their
    host. Without one, the system's authorities and the host name are.

    Raises
    ------
    ConfigError
        When a file of the settings is missing or no certificate.
    """
    if not (settings.dicom_tls_certificate or settings.dicom_tls_ca):
        return None
    context = ssl.create_default_context(cafile=listening_tls.file("dicom_tls_ca", settings.dicom_tls_ca))
    context.check_hostname = not settings.dicom_tls_ca
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    listening_tls.load_certificate(context, settings, "dicom")
    return context


def echo(peer: Peer, caller: Caller | None = None) -> None:
    """Send a C-ECHO.

    Raises
    ------
    PeerError
        When it is not answered with success.
    """
    with association(peer, [build_context(Verification)], caller or Caller()) as link:
        status = link.send_c_echo().get("Status")
    if status != 0:
        raise PeerError(f"{peer}: C-ECHO answered {_hex(status)}; look into its log")


def store(peer: Peer, items: Iterable[Path | Dataset], caller: Caller | None = None) -> list[Sent]:
    """Send instances by C-STORE, over as few associations as they need.

    Parameters
    ----------
    peer : Peer
    items : iterable of Path or Dataset
        DICOM files, sent byte for byte in their own transfer syntax; or data sets with ``file_meta``, encoded in the
        transfer syntax named there. Uncompressed ones are converted when the peer takes only another byte order or
        VR; compressed ones never are.
    caller : Caller, optional

    Returns
    -------
    list of Sent
        One for each instance, in order.

    Raises
    ------
    PeerError
        When not even the first association comes about: nothing was sent.
    ClinicError
        When an item is no DICOM file with file meta information.
    """
    todo = [_Item.of(item) for item in items]
    done: list[Sent] = []
    for batch in _batches(todo):
        wanted = {(i.sop_class, i.syntax) for i in batch}
        wanted |= {(c, ImplicitVRLittleEndian) for c, s in wanted if s in _UNCOMPRESSED}
        contexts = [build_context(c, s) for c, s in sorted(wanted)]
        try:
            with association(peer, contexts, caller or Caller()) as link:
                done += [_send(link, item) for item in batch]
        except PeerError as error:
            if not done:
                raise
            done += [Sent(item.sop_uid, None, str(error)) for item in batch]
    return done


@contextmanager
def association(
    peer: Peer, contexts: Sequence[PresentationContext], caller: Caller, **more: Any
) -> Iterator[Association]:
    """Open an association; released at the end, aborted by an exception.

    Parameters
    ----------
    peer : Peer
    contexts : sequence of PresentationContext
        At most 128.
    caller : Caller
    **more
        For `pynetdicom.AE.associate`: ``ext_neg``, ``evt_handlers``.

    Raises
    ------
    PeerError
        When the peer cannot be reached, speaks no TLS, or refuses, with its reason.
    """
    entity = AE(caller.ae)
    entity.implementation_class_uid, entity.implementation_version_name = IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = caller.timeout_s
    entity.connection_timeout = caller.timeout_s
    tls = None
    if peer.tls:
        if caller.tls is None:
            raise PeerError(f"{peer}: wants TLS; set dicom_tls_ca, and dicom_tls_certificate if it asks for one")
        tls = (caller.tls, peer.host)
    handlers = [(evt.EVT_CONN_OPEN, _hurry), *more.pop("evt_handlers", [])]
    try:
        link = entity.associate(
            peer.host, peer.port, list(contexts), peer.ae, max_pdu=131072, tls_args=tls, evt_handlers=handlers, **more
        )
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a host name that nothing resolves
        raise PeerError(f"{peer}: cannot be reached ({error})") from None
    if not link.is_established:
        raise PeerError(f"{peer}: {_refusal(link)}")
    try:
        yield link
    except BaseException:
        link.abort()
        raise
    if link.is_established:
        link.release()


def _hurry(event: evt.Event) -> None:
    """Let small messages go at once, instead of waiting for the acknowledgement of what went before."""
    connection = event.assoc.dul.socket
    if connection is not None and connection.socket is not None:
        with suppress(OSError):
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@dataclass(frozen=True)
class _Item:
    """One instance to send: where it is, what it is."""

    content: Path | Dataset
    sop_class: UID
    sop_uid: str
    syntax: UID

    @classmethod
    def of(cls, item: Path | Dataset) -> _Item:
        try:
            if isinstance(item, Dataset):
                return cls(item, item.SOPClassUID, str(item.SOPInstanceUID), item.file_meta.TransferSyntaxUID)
            meta = read_file_meta_info(item)
            return cls(item, meta.MediaStorageSOPClassUID, str(meta.MediaStorageSOPInstanceUID), meta.TransferSyntaxUID)
        except Exception:  # pydicom raises nearly anything on a file that is none
            name = item.name if isinstance(item, Path) else "data set"
            raise ClinicError(f"{name}: no DICOM file with file meta information; it cannot be sent") from None


def _batches(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    """Split items so that each batch needs no more presentation contexts than one association has."""
    batch: list[_Item] = []
    kinds: set[tuple[UID, UID]] = set()
    for item in items:
        kind = (item.sop_class, item.syntax)
        if len(kinds | {kind}) * 2 > _CONTEXTS:
            yield batch
            batch, kinds = [], set()
        batch.append(item)
        kinds.add(kind)
    if batch:
        yield batch


def _send(link: Association, item: _Item) -> Sent:
    if not link.is_established:
        return Sent(item.sop_uid, None, "the association ended before it was sent")
    taken = {cx.transfer_syntax[0] for cx in link.accepted_contexts if cx.abstract_syntax == item.sop_class}
    content = item.content
    if item.syntax not in taken:
        if item.syntax not in _UNCOMPRESSED or not taken & set(_UNCOMPRESSED):
            name = item.syntax.name if item.syntax in AllTransferSyntaxes else str(item.syntax)
            return Sent(item.sop_uid, NO_CONTEXT, f"the peer does not take {item.sop_class.name} as {name}")
        if isinstance(content, Path):
            from pydicom import dcmread

            content = dcmread(content)
    try:
        answer = link.send_c_store(content)
    except (RuntimeError, ValueError, AttributeError, OSError) as error:
        return Sent(item.sop_uid, None, f"cannot be sent ({type(error).__name__})")
    status = answer.get("Status")
    if status is None:
        return Sent(item.sop_uid, None, "the association ended before the answer")
    return Sent(item.sop_uid, status, "" if status == 0 else f"the peer answered {_hex(status)}")


def _refusal(link: Association) -> str:
    answer = link.acceptor.primitive
    if link.is_rejected and answer is not None:
        return f"refused the association: {answer.result_str}, {answer.reason_str}"
    if link.is_aborted:
        return "cannot be reached, or ended the association at once; check host, port and TLS"
    return "no answer to the association request; check host and port"


def _hex(status: int | None) -> str:
    return "nothing" if status is None else f"0x{status:04X}"

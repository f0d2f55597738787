"""Receiving by DICOM: C-ECHO, C-STORE and storage commitment, on a port of its own.

Who may call is a list (`Senders`); whose AE title it is decides the site. An instance is answered with success only
after `Intake.take` has returned: its bytes are on disk and its row is committed. The bytes are kept as they came,
under a file meta header that depends on nothing but SOP class, SOP instance and transfer syntax, so that the same
instance sent again is the same file.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from io import BytesIO
from threading import Thread
from typing import IO, Any, BinaryIO, cast
from weakref import WeakKeyDictionary

from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dsutils import encode_file_meta
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE, SOPClassCommonExtendedNegotiation
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    _STORAGE_CLASSES,
    StorageCommitmentPushModel,
    Verification,
)
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer
from sqlalchemy.exc import SQLAlchemyError

from wetread.clinic import identity
from wetread.clinic.archive import CHUNK, TooLargeError
from wetread.clinic.commitment import Commitments
from wetread.clinic.intake import Intake, Received
from wetread.clinic.peers import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION, Caller, Peer, ae_title, load_certificate
from wetread.config import Settings
from wetread.errors import BusyError, ClinicError, ConfigError
from wetread.radiograph.dicom import quiet

log = logging.getLogger(__name__)

STORAGE_CLASSES: Mapping[str, str] = {uid: word for word, uid in _STORAGE_CLASSES.items()}
TRANSFER_SYNTAXES: Sequence[UID] = tuple(AllTransferSyntaxes)
_STORAGE_SERVICE = UID("1.2.840.10008.4.2")
_SPOOL_BYTES = 16 * 2**20  # a data set above this size waits on disk, not in memory
_ASSOCIATE_BYTES = 2**20  # largest A-ASSOCIATE-RQ; 128 presentation contexts need about 100 KiB
_CONNECTIONS = 4  # connections for each allowed association, before even the refusal is refused


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
    "under a known SOP Instance UID, which are kept apart with an event and a caution",
    Status.PROCESSING_FAILURE: "an unforeseen fault; nothing was kept, send again later",
    Status.OUT_OF_RESOURCES: "no room on disk, or the database is away; nothing was kept, send again later",
    Status.TOO_LARGE: "the data set is larger than the setting `max_bytes`; nothing was kept",
    Status.MISMATCH: "SOP class or SOP instance of the data set are not those of the request; nothing was kept",
    Status.CANNOT_UNDERSTAND: "the data set cannot be parsed; nothing was kept",
}


@dataclass(frozen=True)
class Sender:
    """One line of the setting `dicom_peers`: who may call from where, for which site.

    Attributes
    ----------
    ae : str
        AE title, or ``*`` for any.
    network : ip_network, str or None
        Address or network; a host name, looked up for each association; None for any.
    port : int or None
        Where it listens, for reports of storage commitment.
    tls : bool
        Whether it listens by TLS.
    site : str
        Empty for the site of the settings.
    """

    ae: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | str | None
    port: int | None
    tls: bool
    site: str

    @classmethod
    def parse(cls, text: str) -> Sender:
        """Read ``AE@host[:port][+tls][=site]``; raises ConfigError when it is written otherwise."""
        body, _, site = text.strip().partition("=")
        body, tls = body.removesuffix("+tls"), body.endswith("+tls")
        ae, at, address = body.partition("@")
        host, port = address, ""
        if address.startswith("["):
            host, _, port = address[1:].partition("]")
            port = port.removeprefix(":")
        elif address.count(":") == 1:
            host, _, port = address.partition(":")
        if not (at and host) or (port and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536)):
            raise ConfigError(
                f"dicom_peers = {text[:120]!r}: write AE@host, AE@host:port or AE@host=site, with * for any AE or host"
            )
        network: ipaddress.IPv4Network | ipaddress.IPv6Network | str | None = None
        if host != "*":
            try:
                network = ipaddress.ip_network(host, strict=False)
            except ValueError:
                network = host
        if port and (ae == "*" or host == "*" or "/" in host):
            raise ConfigError(f"dicom_peers = {text[:120]!r}: a port needs one AE title and one host")
        return cls(ae if ae == "*" else ae_title(ae), network, int(port) if port else None, tls, site.strip())

    def allows(self, ae: str, address: str) -> bool:
        """Return whether this line lets that AE title call from that address."""
        if self.ae not in ("*", ae):
            return False
        if self.network is None:
            return True
        if isinstance(self.network, str):
            with suppress(OSError):
                return address in {str(found[4][0]) for found in socket.getaddrinfo(self.network, None)}
            return False
        caller = ipaddress.ip_address(address)
        caller = getattr(caller, "ipv4_mapped", None) or caller
        return caller in self.network

    @property
    def peer(self) -> Peer | None:
        """Where it can be called, if the line says so."""
        if self.port is None:
            return None
        host = self.network if isinstance(self.network, str) else str(cast(Any, self.network).network_address)
        return Peer(self.ae, host, self.port, self.tls)


class Senders:
    """The allow-list of the setting `dicom_peers`."""

    def __init__(self, settings: Settings) -> None:
        self.lines = [Sender.parse(text) for text in settings.dicom_peers]

    def find(self, ae: str, address: str) -> Sender | None:
        """Return the line that lets that AE title call from that address: one that names it before one with ``*``."""
        found = [line for line in self.lines if line.allows(ae, address)]
        return min(found, key=lambda line: (line.ae == "*", line.network is None), default=None)

    def peer(self, ae: str) -> Peer | None:
        """Return where an AE title listens, if the list says so."""
        return next((line.peer for line in self.lines if line.ae == ae and line.peer), None)


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
        self.file: IO[bytes] = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115
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
    took : callable, optional
        Called with what was taken in.
    """

    def __init__(self, intake: Intake, took: Callable[[Received], None] = lambda received: None) -> None:
        self.intake, self._took = intake, took

    def store(self, event: Event, ae: str, site: str) -> Dataset:
        """Take the instance of a C-STORE request; return the answer, with a comment when it is no success."""
        request = cast(Any, event.request)
        body = request.DataSet
        try:
            status, comment = self._store(request, body, str(event.context.transfer_syntax), ae, site)
        finally:
            body.close()
        if status != Status.SUCCESS:
            log.warning("DICOM: instance from %s refused with 0x%04X: %s", ae, status, comment)
        return answer(status, comment)

    def _store(self, request: Any, body: BytesIO, syntax: str, ae: str, site: str) -> tuple[Status, str]:
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
            received = self.intake.take(file, f"{sop_uid}.dcm", site, actor=f"AE {ae}")
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
        self._took(received)
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
    file.seek(0)
    try:
        with quiet():
            said = dcmread(
                file, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"]
            )
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


@dataclass(frozen=True)
class _Guest:
    """What is known of one association: who calls, and for which site."""

    ae: str
    site: str


class Listener:
    """The application entity of a clinic that others call.

    Parameters
    ----------
    intake : Intake
        Where instances go; its database and archive are what is committed.
    settings : Settings
        Those that begin with `dicom_`.

    Raises
    ------
    ConfigError
        For a bad line of `dicom_peers` or unusable certificates.
    """

    def __init__(self, intake: Intake, settings: Settings) -> None:
        self.intake, self.settings = intake, settings
        self.senders = Senders(settings)
        caller = Caller.of(settings)
        self.commitments = Commitments(intake.database, intake.archive, self.senders.peer, caller)
        self._tls = server_tls(settings)
        self._receiver = Receiver(intake)
        self._title = ae_title(settings.dicom_ae_title)
        self._guests: WeakKeyDictionary[Association, _Guest] = WeakKeyDictionary()
        self._busy: set[Association] = set()
        self._server: _Server | None = None

    @property
    def port(self) -> int:
        """The port on which it listens; 0 before `start`."""
        return self._server.server_address[1] if self._server else 0

    def bind(self, port: int | None = None) -> None:
        """Take the port, so that nobody else can; who connects waits until `start`.

        Raises
        ------
        ConfigError
            When the address is taken or cannot be.
        """
        settings = self.settings
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # it quotes what it receives
        entity = AE(self._title)
        entity.implementation_class_uid, entity.implementation_version_name = (
            IMPLEMENTATION_UID,
            IMPLEMENTATION_VERSION,
        )
        entity.maximum_associations = settings.dicom_associations
        entity.maximum_pdu_size = settings.dicom_pdu_bytes
        entity.require_called_aet = settings.dicom_check_called
        entity.acse_timeout = entity.dimse_timeout = settings.dicom_timeout_s
        entity.network_timeout = settings.dicom_idle_s
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_SOP_COMMON, self._services),
            (evt.EVT_PDU_RECV, self._arriving),
            (evt.EVT_C_ECHO, lambda event: int(Status.SUCCESS)),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_ACTION, self._commit),
        ]
        port = settings.dicom_port if port is None else port
        try:
            server = _Server(
                entity, (settings.dicom_host, port), self._title, [build_context(Verification)],
                evt_handlers=handlers, request_handler=_Handler,
            )  # fmt: skip
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"dicom_host {settings.dicom_host}, dicom_port {port}: cannot listen there ({reason}); choose another"
            ) from None
        server.tls = self._tls
        entity._servers.append(server)
        self._server = server

    def start(self) -> None:
        """Receive, until `stop`."""
        if self._server is None:
            self.bind()
        server = cast(_Server, self._server)
        Thread(target=server.serve_forever, args=(0.2,), name="dicom", daemon=True).start()
        if not self.senders.lines:
            log.warning("DICOM: nobody may send; name senders in the setting dicom_peers")
        log.info("DICOM: %s listens on port %d%s", self._title, self.port, " by TLS" if self._tls else "")

    def stop(self, grace_s: float = 5.0) -> None:
        """Take no more associations, let those under way finish for a while, then abort them."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        end = time.monotonic() + grace_s
        while links := [link for link in server.active_associations if link.is_established]:
            for link in links:
                working = link in self._busy or link.dimse.message is not None or not link.dimse.msg_queue.empty()
                if not working or time.monotonic() > end:
                    link.abort()
            time.sleep(0.02)
        for link in server.active_associations:  # connected, and no more
            link.kill()

    def _requested(self, event: Event) -> None:
        """Decide whether an association comes about, and for what."""
        link = event.assoc
        request = cast(A_ASSOCIATE, link.requestor.primitive)
        ae, address = (request.calling_ae_title or "").strip(), str(link.requestor.address)
        line = self.senders.find(ae, address)
        if line is None:
            log.warning("DICOM: %s at %s is not in dicom_peers and was refused", identity.clean(ae), address)
            return _reject(link, 0x01, 0x01, 0x03)  # permanent, by the user: calling AE title not recognised
        if self.intake.archive.free() < CHUNK:
            log.error("DICOM: no room on disk; %s was told to come later", ae)
            return _reject(link, 0x02, 0x03, 0x01)  # transient, presentation: temporary congestion
        self._guests[link] = _Guest(ae, line.site or self.settings.site)
        link.acceptor.supported_contexts = self._contexts(request.presentation_context_definition_list or [])
        return None

    def _contexts(self, proposed: Sequence[PresentationContext]) -> list[PresentationContext]:
        """Return what we support of what is proposed; transfer syntaxes in the order that the sender prefers."""
        wanted: dict[UID, list[str | UID]] = {}
        for context in proposed:
            abstract = cast(UID, context.abstract_syntax)
            if abstract in (Verification, StorageCommitmentPushModel) or self._is_storage(abstract):
                known = [s for s in context.transfer_syntax if self.settings.dicom_private or s in TRANSFER_SYNTAXES]
                wanted.setdefault(abstract, []).extend(s for s in known if s not in wanted.get(abstract, []))
        return [build_context(abstract, syntaxes) for abstract, syntaxes in wanted.items() if syntaxes]

    def _is_storage(self, abstract: UID) -> bool:
        """Return whether a SOP class is one that we store: a standard one, or any that nobody knows when asked to."""
        if str(abstract) in STORAGE_CLASSES:
            return True
        return self.settings.dicom_private and (abstract.is_private or abstract.name == str(abstract))

    def _services(self, event: Event) -> dict[UID, SOPClassCommonExtendedNegotiation]:
        """Say that private SOP classes belong to the storage service, which pynetdicom cannot know."""
        items = {}
        for context in event.assoc.acceptor.supported_contexts:
            abstract = cast(UID, context.abstract_syntax)
            if str(abstract) not in STORAGE_CLASSES and self._is_storage(abstract):
                item = SOPClassCommonExtendedNegotiation()
                item.sop_class_uid, item.service_class_uid = abstract, _STORAGE_SERVICE
                items[abstract] = item
        return items

    def _arriving(self, event: Event) -> None:
        """Give a message under way a place for its data set that cannot fill the memory."""
        message = event.assoc.dimse.message
        if message is None or type(message.data_set) is not BytesIO:
            return
        if isinstance(message, C_STORE_RQ):
            said = message.command_set
            syntax = next(
                c.transfer_syntax[0] for c in event.assoc.accepted_contexts if c.context_id == message.context_id
            )
            header = file_header(said.AffectedSOPClassUID, said.AffectedSOPInstanceUID, syntax)
            body = Body(header, self.settings.max_bytes)
            body.write(message.data_set.getvalue())
            message.data_set = body
        elif message.data_set.tell() > _SPOOL_BYTES:
            event.assoc.abort()

    def _store(self, event: Event) -> Dataset:
        guest = self._guests[event.assoc]
        self._busy.add(event.assoc)
        try:
            return self._receiver.store(event, guest.ae, guest.site)
        finally:
            self._busy.discard(event.assoc)

    def _commit(self, event: Event) -> tuple[int, None]:
        guest = self._guests[event.assoc]
        return self.commitments.request(event, guest.ae, guest.site), None


def server_tls(settings: Settings) -> ssl.SSLContext | None:
    """Make the TLS context with which we listen; None when the setting `dicom_tls` is off.

    Raises
    ------
    ConfigError
        When there is no certificate, or a file cannot be used.
    """
    if not settings.dicom_tls:
        return None
    if not settings.dicom_tls_certificate:
        raise ConfigError("dicom_tls is on, but dicom_tls_certificate names none; name our certificate and key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_certificate(context, settings)
    if settings.dicom_tls_ca:
        try:
            context.load_verify_locations(settings.dicom_tls_ca)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"dicom_tls_ca = {settings.dicom_tls_ca!r}: not usable ({error})") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _reject(link: Association, *reason: int) -> None:
    link.acse.send_reject(*reason)
    link.kill()


def _receive(connection: AssociationSocket, limit: int, patience_s: float, count: int) -> bytearray:
    """Read so many bytes; raises OSError when a peer announces more than agreed, or does not send them in time."""
    if count > limit:
        raise OSError("PDU larger than agreed")
    data, got, end = bytearray(count), 0, time.monotonic() + patience_s
    view = memoryview(data)
    while got < count:
        if time.monotonic() > end:
            raise TimeoutError("PDU not complete in time")
        arrived = cast(socket.socket, connection.socket).recv_into(view[got:])
        if not arrived:
            return data[:got]
        got += arrived
    return data


class _Handler(RequestHandler):
    """Greets one connection in its own thread."""

    server: _Server

    def handle(self) -> None:
        """Agree on TLS if need be, then wait for the association."""
        self.request.settimeout(self.server.ae.network_timeout)
        if self.server.tls is not None:
            try:
                self.request = self.server.tls.wrap_socket(self.request, server_side=True)
            except (OSError, ValueError) as error:
                log.warning("DICOM: no TLS with %s (%s)", self.client_address[0], type(error).__name__)
                self.request.close()
                return
        super().handle()

    def _create_association(self) -> Association:
        link = super()._create_association()
        entity, connection = self.server.ae, cast(AssociationSocket, link.dul.socket)
        limit = max(_ASSOCIATE_BYTES, entity.maximum_pdu_size + 64)
        # pynetdicom itself believes any length that a peer announces, and waits for it for ever.
        connection.recv = partial(_receive, connection, limit, entity.network_timeout or 60.0)  # type: ignore[method-assign]
        return link


class _Server(ThreadedAssociationServer):
    """Accepts connections; TLS is agreed on in the connection's own thread, so that nobody holds up the others."""

    request_queue_size = 128
    tls: ssl.SSLContext | None = None

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Refuse connections that are far too many even to be refused politely."""
        return len(self.active_associations) < _CONNECTIONS * self.ae.maximum_associations

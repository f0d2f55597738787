"""Receiving by DICOM: C-ECHO, C-STORE and storage commitment, on a port of its own.

Who may call is a list (`Senders`); whose AE title it is decides the site. An instance is answered with success only
after `Intake.take` has returned: its bytes are on disk and its row is committed.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from threading import Lock, Thread
from typing import Any, cast
from weakref import WeakKeyDictionary

from pydicom import Dataset
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE, SOPClassCommonExtendedNegotiation
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    _STORAGE_CLASSES,
    StorageCommitmentPushModel,
    Verification,
)
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from wetread.clinic import identity, listening_tls
from wetread.clinic.archive import CHUNK
from wetread.clinic.commitment import Commitments
from wetread.clinic.intake import Intake
from wetread.clinic.peers import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION, Caller, ae_title
from wetread.clinic.receive import SPOOL_BYTES, Body, Receiver, Status, file_header
from wetread.clinic.senders import Senders
from wetread.config import Settings
from wetread.errors import ConfigError

log = logging.getLogger(__name__)

STORAGE_CLASSES: Mapping[str, str] = {uid: word for word, uid in _STORAGE_CLASSES.items()}
TRANSFER_SYNTAXES: Sequence[UID] = tuple(AllTransferSyntaxes)
# Result, source and reason of A-ASSOCIATE-RJ (DICOM PS3.8 9.3.4).
_STRANGER, _NOT_OURS, _NO_ROOM, _TOO_MANY = (1, 1, 3), (1, 1, 7), (2, 3, 1), (2, 3, 2)
REJECTIONS: Mapping[tuple[int, int, int], str] = {
    _STRANGER: "the calling AE title is not in `dicom_peers`, or calls from another address",
    _NOT_OURS: "the called AE title is not ours (unless `dicom_check_called` is off)",
    _NO_ROOM: "the disk has only its reserve left: come again later",
    _TOO_MANY: "as many associations as `dicom_associations` allows are open: come again later",
}
_WORDS = {_STRANGER: "unknown sender", _NOT_OURS: "called AE title", _NO_ROOM: "no room", _TOO_MANY: "too many"}
_STORAGE_SERVICE = UID("1.2.840.10008.4.2")
_ASSOCIATE_BYTES = 2**20  # largest A-ASSOCIATE-RQ; 128 presentation contexts need about 100 KiB
_COMMAND_BYTES = 2**16  # largest command set; one has a few hundred
_CONNECTIONS = 8  # connections for each allowed association, before even the refusal is refused


@dataclass(frozen=True)
class _Guest:
    """What is known of one association: who calls, for which site, and whether what it sends may correct."""

    ae: str
    site: str
    corrects: bool


class Listener:
    """The application entity of a clinic that others call.

    Parameters
    ----------
    intake : Intake
        Where instances go; its database and archive are what is committed.
    settings : Settings
        Those that begin with `dicom_`.
    has_room : callable, optional
        Whether anything more may be taken in; if not, new associations are refused. By default the archive says.

    Raises
    ------
    ConfigError
        For a bad line of `dicom_peers` or unusable certificates.
    """

    def __init__(self, intake: Intake, settings: Settings, has_room: Callable[[], bool] | None = None) -> None:
        self.intake, self.settings = intake, settings
        self._has_room = has_room or (lambda: intake.archive.free() >= CHUNK)
        self.senders = Senders(settings)
        caller = Caller.of(settings)
        self.commitments = Commitments(intake.database, intake.archive, self.senders.peer, caller)
        self._tls = listening_tls.server(settings, "dicom")
        self._receiver = Receiver(intake)
        self._title = ae_title(settings.dicom_ae_title)
        self._guests: WeakKeyDictionary[Association, _Guest] = WeakKeyDictionary()
        self._counting = Lock()
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
        # We count ourselves: pynetdicom also counts connections that have ended, or were never associations.
        entity.maximum_associations = _CONNECTIONS * settings.dicom_associations
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
            (evt.EVT_CONN_CLOSE, _gone),
            (evt.EVT_ACCEPTED, self._accepted),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_ABORTED, self._aborted),
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
            if link.dul.socket is not None:
                link.dul.socket.close()

    def _requested(self, event: Event) -> None:
        """Decide whether an association comes about, and for what."""
        link = event.assoc
        request = cast(A_ASSOCIATE, link.requestor.primitive)
        ae, address = (request.calling_ae_title or "").strip(), str(link.requestor.address)
        line, who = self.senders.find(ae, address), f"{identity.clean(ae)} at {address}"
        if line is None:
            log.warning("DICOM: %s is not in dicom_peers and was refused", who)
            return self._reject(link, _STRANGER)
        if not self._has_room():
            log.error("DICOM: no room on disk; %s was told to come later", who)
            return self._reject(link, _NO_ROOM)
        with self._counting:
            if sum(other.is_alive() for other in list(self._guests)) >= self.settings.dicom_associations:
                log.warning("DICOM: too many associations (dicom_associations); %s was told to come later", who)
                return self._reject(link, _TOO_MANY)
            self._guests[link] = _Guest(ae, line.site or self.settings.site, line.corrects)
        link.acceptor.supported_contexts = self._contexts(request.presentation_context_definition_list or [])
        return None

    def _reject(self, link: Association, reason: tuple[int, int, int]) -> None:
        link.acse.send_reject(*reason)
        link.kill()
        self.intake.tally.associations.labels("refused", _WORDS[reason]).inc()

    def _accepted(self, event: Event) -> None:
        self.intake.tally.associations.labels("accepted", "").inc()

    def _rejected(self, event: Event) -> None:
        """Tell of what pynetdicom refuses by itself: above all another called AE title than ours."""
        request = cast(A_ASSOCIATE, event.assoc.requestor.primitive)
        called = request.called_ae_title or ""
        ours = not self.settings.dicom_check_called or called.strip() == self._title.strip()
        log.warning(
            "DICOM: %s at %s called %s and was refused; we are %s",
            *(identity.clean(request.calling_ae_title or ""), event.assoc.requestor.address),
            *(identity.clean(called), self._title),
        )
        self.intake.tally.associations.labels("refused", "other" if ours else _WORDS[_NOT_OURS]).inc()

    def _aborted(self, event: Event) -> None:
        if event.assoc in self._guests:
            self.intake.tally.associations.labels("aborted", "").inc()

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
        """Abort the association of a message that cannot be kept from filling the memory."""
        try:
            self._place(event)
        except Exception as error:  # pynetdicom would go on receiving
            log.warning("DICOM: a message that makes no sense was ended: %s", type(error).__name__)
            event.assoc.abort()

    def _place(self, event: Event) -> None:
        """Give a message under way a place for its data set that cannot fill the memory."""
        message = event.assoc.dimse.message
        if message is None:
            return
        if message.encoded_command_set.tell() > _COMMAND_BYTES:
            raise ValueError("command set too large")
        if type(message.data_set) is not BytesIO:
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
        elif message.data_set.tell() > SPOOL_BYTES:
            event.assoc.abort()

    def _store(self, event: Event) -> Dataset:
        guest = self._guests[event.assoc]
        self._busy.add(event.assoc)
        try:
            return self._receiver.store(event, guest.ae, guest.site, corrects=guest.corrects)
        finally:
            self._busy.discard(event.assoc)

    def _commit(self, event: Event) -> tuple[int, None]:
        guest = self._guests[event.assoc]
        return self.commitments.request(event, guest.ae, guest.site), None


def _gone(event: Event) -> None:
    """Let the thread of a connection end that closed before it asked for an association."""
    if event.assoc.requestor.primitive is None:
        cast(Any, event.assoc.dul.to_user_queue).put(None)


def _contain(link: Association, run: Callable[[], None]) -> None:
    """Run the lower half of an association; what a broken peer brings about there ends it, and nothing else."""
    try:
        run()
    except Exception as error:
        log.warning("DICOM: a connection was ended: %s", type(error).__name__)
        if link.dul.socket is not None:
            link.dul.socket.close()


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
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
        link.dul.run = partial(_contain, link, link.dul.run)  # type: ignore[method-assign]
        return link


class _Server(ThreadedAssociationServer):
    """Accepts connections; TLS is agreed on in the connection's own thread, so that nobody holds up the others."""

    request_queue_size = 128
    tls: ssl.SSLContext | None = None

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Refuse connections that are far too many even to be refused politely."""
        return len(self.active_associations) < self.ae.maximum_associations

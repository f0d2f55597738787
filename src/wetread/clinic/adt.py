"""HL7 version 2 messages about patients: ADT^A08 corrects one, ADT^A40 makes two identifiers one.

They come over MLLP, from peers that are named, one acknowledgement for each: AA when it is done (or nothing here is
concerned), AE when it cannot be done, AR when it is no message for us. Size, time and connections are limited. A
message that comes twice changes nothing the second time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import hl7
import hl7.mllp

from wetread.clinic import listening_tls
from wetread.clinic.corrections import Corrections
from wetread.clinic.identity import clean
from wetread.config import Settings
from wetread.errors import ClinicError, ConfigError

log = logging.getLogger(__name__)

MAX_BYTES = 256 * 1024  # an ADT message has a few thousand
CONNECTIONS = 16
IDLE_S = 3600.0  # MLLP connections are kept
MESSAGE_S = 30.0  # from its first byte to its last
HANDSHAKE_S = 10.0  # of TLS
_START, _END = b"\x0b", b"\x1c\r"
_ENCODINGS = {"UNICODE UTF-8": "utf-8", "UNICODE": "utf-8", "ASCII": "ascii"} | {
    f"8859/{number}": f"iso8859-{number}" for number in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15)
}


class _NotForUsError(ClinicError):
    """A message that we do not take."""


@dataclass(frozen=True)
class Answer:
    """What became of a message: AA, AE or AR, a line for its sender, and the acknowledgement."""

    code: str
    text: str
    message: str


def answer(corrections: Corrections, message: str, site: str, *, authority: str = "", peer: str = "hl7") -> Answer:
    """Do what a message says.

    Parameters
    ----------
    corrections : Corrections
    message : str
        Segments end with a carriage return.
    site : str
        Whose patients.
    authority : str
        The assigning authority of our patient identifiers (CX.4); empty takes the first identifier.
    peer : str
        Who sent it; for the audit.
    """
    try:
        parsed = hl7.parse(message.replace("\r\n", "\r").replace("\n", "\r"))
        parsed.segment("MSH")
    except Exception:  # the parser raises nearly anything on what is none
        text = "not an HL7 version 2 message"
        return Answer("AR", text, f"MSH|^~\\&|WETREAD||||||ACK||P|2.5\rMSA|AR||{text}\r")
    try:
        done = _do(corrections, parsed, site, authority, peer)
        return _acknowledge(parsed, "AA", f"{len(done)} studies changed")
    except _NotForUsError as error:
        return _acknowledge(parsed, "AR", str(error))
    except ClinicError as error:
        return _acknowledge(parsed, "AE", str(error))


def _do(corrections: Corrections, message: Any, site: str, authority: str, peer: str) -> list[str]:
    kind, event = _text(message, "MSH", 9, 1), _text(message, "MSH", 9, 2)
    if kind != "ADT" or event not in ("A08", "A40"):
        raise _NotForUsError(f"{clean(kind, 8)}^{clean(event, 8)}: only ADT^A08 and ADT^A40 are taken")
    ids = _identifiers(message, "PID", 3, authority)
    if not ids:
        raise ClinicError("PID-3: no patient identifier of ours; see the setting hl7_authority")
    values = _patient(message)
    actor = f"hl7 {peer}"[:64]
    if event == "A08":
        return corrections.update(site, ids, values, actor) if values else []
    old = _identifiers(message, "MRG", 1, authority)
    if not old:
        raise ClinicError("MRG-1: no prior patient identifier of ours; see the setting hl7_authority")
    return corrections.merge_patients(site, old[:1], ids[0], values, actor)


def _patient(message: Any) -> dict[str, str | None]:
    """Return what PID says about a patient: an empty field says nothing, two quotes say that there is none."""
    name = ", ".join(part for part in (_text(message, "PID", 5, 1), _text(message, "PID", 5, 2)) if part)
    born, sex = _text(message, "PID", 7, 1), _text(message, "PID", 8, 1).upper()
    said: dict[str, str | None] = {}
    if name:
        said["patient_name"] = "" if name == '""' else name
    if born == '""':
        said["birth_date"] = None
    elif day := _day(born):
        said["birth_date"] = day
    if sex in ("M", "F", "O", '""'):
        said["sex"] = None if sex == '""' else sex
    return said


def _day(text: str) -> str | None:
    """Return the day of an HL7 time as YYYY-MM-DD; None for one that says only a year or month, or is none."""
    if not re.match("[0-9]{8}", text):
        return None
    with suppress(ValueError):
        return datetime.strptime(text[:8], "%Y%m%d").date().isoformat()
    return None


def _identifiers(message: Any, segment: str, field: int, authority: str) -> list[str]:
    try:
        count = len(message.segment(segment)(field))
    except (KeyError, IndexError):
        return []
    found = [
        _text(message, segment, field, 1, repeat)
        for repeat in range(1, min(count, 50) + 1)
        if not authority or _text(message, segment, field, 4, repeat) == authority
    ]
    found = [value for value in found if value and value != '""']
    return found if authority else found[:1]


def _text(message: Any, segment: str, field: int, component: int, repeat: int = 1) -> str:
    try:
        return clean(str(message.segment(segment).extract_field(1, field, repeat, component)))
    except (KeyError, IndexError, LookupError, AttributeError, ValueError):
        return ""


def _acknowledge(message: Any, code: str, text: str) -> Answer:
    try:
        # The library's own `create_ack` fails on a header without a trigger event.
        separator, marks = str(message.segment("MSH")(1)), str(message.segment("MSH")(2))
    except (KeyError, IndexError):
        separator, marks = "|", "^~\\&"

    def field(number: int, limit: int = 200) -> str:
        try:
            return clean(str(message.segment("MSH")(number)), limit)
        except (KeyError, IndexError):
            return ""

    plain = "".join(" " if c in separator + marks else c for c in clean(text, 300))
    kind = marks[:1].join(filter(None, ("ACK", _text(message, "MSH", 9, 2))))
    head = ["MSH", marks, "WETREAD", field(6), field(3), field(4), "", "", kind, field(10), field(11) or "P"]
    rows = [[*head, field(12) or "2.5"], ["MSA", code, field(10), plain]]
    return Answer(code, text, "".join(separator.join(row) + "\r" for row in rows))


class Listener:
    """The MLLP server of a clinic.

    Parameters
    ----------
    corrections : Corrections
    settings : Settings
        `hl7_host`, `hl7_port`, `hl7_peers`, `hl7_authority`, `hl7_tls…` and `site`.

    Raises
    ------
    ConfigError
        When a peer is no address or network, or a certificate cannot be used.
    """

    def __init__(self, corrections: Corrections, settings: Settings) -> None:
        self.corrections, self.settings = corrections, settings
        try:
            self._peers = [ipaddress.ip_network(peer, strict=False) for peer in settings.hl7_peers]
        except ValueError as error:
            raise ConfigError(f"hl7_peers: {error}; write addresses or networks such as 10.1.0.0/16") from None
        self._tls = listening_tls.server(settings, "hl7")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hl7", daemon=True)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port, also when 0 asked for any."""
        if self._server is None:
            return self.settings.hl7_port
        return int(self._server.sockets[0].getsockname()[1])

    def start(self) -> None:
        """Listen.

        Raises
        ------
        ConfigError
            When the address or the port cannot be had.
        """
        self._thread.start()
        try:
            self._run(self._open())
        except OSError as error:
            self.stop()
            where = f"{self.settings.hl7_host}:{self.settings.hl7_port}"
            raise ConfigError(f"hl7_port: {where} cannot be had ({error.strerror}); choose another") from None

    def stop(self) -> None:
        """End every connection and stop listening; messages at hand are finished."""
        if self._thread.is_alive():
            self._run(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        if not self._loop.is_closed():
            self._loop.close()

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> None:
        self._server = await hl7.mllp.start_hl7_server(
            self._begin, self.settings.hl7_host, self.settings.hl7_port, limit=MAX_BYTES
        )

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
        await self._loop.shutdown_default_executor()

    def _begin(self, reader: Any, writer: Any) -> None:
        peer = str((writer.get_extra_info("peername") or ("",))[0])
        if len(self._tasks) >= CONNECTIONS or not self._knows(peer):
            log.warning("hl7: a connection was refused: %s", "too many" if self._knows(peer) else "not in hl7_peers")
            writer.transport.abort()
            return
        if self._tls is not None:  # what comes now is for TLS, which begins only with who may send
            writer.transport.pause_reading()
        task = self._loop.create_task(self._serve(reader, writer, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _knows(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._peers)

    async def _serve(self, reader: Any, writer: Any, peer: str) -> None:
        try:
            if self._tls is not None:
                await writer.start_tls(self._tls, ssl_handshake_timeout=HANDSHAKE_S)
            while first := await asyncio.wait_for(reader.read(1), IDLE_S):
                if first in b"\r\n":
                    continue
                if first != _START:
                    log.warning("hl7: a connection was ended: no MLLP block")
                    break
                try:
                    block = await asyncio.wait_for(reader.readuntil(_END), MESSAGE_S)
                except asyncio.LimitOverrunError:
                    text = f"more than {MAX_BYTES} bytes"
                    writer.writeblock(f"MSH|^~\\&|WETREAD||||||ACK||P|2.5\rMSA|AR||{text}\r".encode())
                    await asyncio.wait_for(writer.drain(), MESSAGE_S)
                    break
                reply = await asyncio.shield(self._loop.run_in_executor(None, self._answer, block[:-2], peer))
                writer.writeblock(reply)
                await asyncio.wait_for(writer.drain(), MESSAGE_S)
        except ssl.SSLError:
            log.warning("hl7: a connection was refused: no TLS, or no certificate of hl7_tls_ca")
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            log.info("hl7: a connection ended in the middle of a message, or was idle")
        finally:
            writer.close()
            with suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), 5.0)

    def _answer(self, block: bytes, peer: str) -> bytes:
        encoding = _encoding(block)
        try:
            text = block.decode(encoding)
        except UnicodeDecodeError:
            return f"MSH|^~\\&|WETREAD||||||ACK||P|2.5\rMSA|AR||not {encoding}, as MSH-18 says\r".encode()
        try:
            done = answer(self.corrections, text, self.settings.site, authority=self.settings.hl7_authority, peer=peer)
        except Exception as error:  # the database is gone: the sender tries again
            log.error("hl7: a message was not done: %s", type(error).__name__)
            done = _acknowledge(hl7.parse(text), "AE", "not done now; send it again later")
        log.info("hl7: %s", done.code)
        return done.message.encode(encoding, "replace")


def _encoding(block: bytes) -> str:
    """Return how a message is encoded, by MSH-18; UTF-8 when it does not say."""
    fields = block.split(b"\r", 1)[0].split(block[3:4] or b"|")
    said = fields[17].split(b"~")[0].decode("ascii", "replace").strip().upper() if len(fields) > 17 else ""
    return _ENCODINGS.get(said, "utf-8")

"""Where outputs go: an address with its way of sending, and the sending itself.

======================================  =============  ==========================================
address                                 takes          by
======================================  =============  ==========================================
``dicomweb+https://host/dicom-web``     sr, sc         STOW-RS
``dicom://AE@host:port``                sr, sc         C-STORE (``+tls`` at the end for TLS)
``fhir+https://host/fhir``              fhir           a transaction of FHIR R4
``mllp://host:port``, ``mllps://…``     hl7            HL7 v2 over MLLP, ``mllps`` with TLS
``https://host/path``                   webhook        POST of JSON, signed
======================================  =============  ==========================================

`` =site`` at the end, after a space, binds an address to one site; without it, it is for every site.

Secrets stand in files, which the part after ``#`` names: ``token-file`` (a bearer token), ``basic-file``
(``user:password``), ``secret-file`` (of a webhook's signature), ``ca-file`` (PEM, an authority of one's own).
They are read when something is sent, so that they can be changed, and are kept nowhere else. Certificates are verified.
``http`` in the place of ``https`` is for the same machine or a network that is closed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import hl7
import httpx
from pydicom.dataset import Dataset

from wetread.clinic import peers
from wetread.config import Settings
from wetread.errors import ClinicError, ConfigError, hide

TIMEOUT_S = 30.0
_ANSWER = 2**20  # most bytes of an answer that are read
_HTTP = ("https", "http")
_SCHEMES = {
    "sr": ("dicomweb+https", "dicomweb+http", "dicom"),
    "sc": ("dicomweb+https", "dicomweb+http", "dicom"),
    "fhir": ("fhir+https", "fhir+http"),
    "hl7": ("mllp", "mllps"),
    "webhook": _HTTP,
}
_OPTIONS = {
    "dicomweb": {"token-file", "basic-file", "ca-file"},
    "fhir": {"token-file", "basic-file", "ca-file"},
    "https": {"token-file", "basic-file", "ca-file", "secret-file"},
    "http": {"token-file", "basic-file", "secret-file"},
    "mllps": {"ca-file"},
}
KINDS = tuple(_SCHEMES)


class SendError(ClinicError):
    """A destination cannot be reached, or did not take what was sent."""


@dataclass(frozen=True)
class Destination:
    """One address for one kind of output.

    Attributes
    ----------
    kind : str
        sr, sc, fhir, hl7 or webhook.
    name : str
        Names it in the database and in messages: the address without its options; of a webhook, whose path and query
        may be secrets, only scheme, host, port and a digest.
    scheme : str
    options : mapping
        Files of secrets.
    site : str
        Whose outputs go there; empty for every site's.
    address : str
        The address without its options, when `name` is not that.
    """

    kind: str
    name: str
    scheme: str
    options: Mapping[str, str]
    site: str = ""
    address: str = field(default="", repr=False)

    def takes(self, site: str) -> bool:
        """Tell whether a site's outputs go there."""
        return self.site in ("", site)

    @property
    def url(self) -> str:
        """The address as HTTP knows it."""
        return self.address or self.name.removeprefix("dicomweb+").removeprefix("fhir+")


def of(settings: Settings) -> tuple[Destination, ...]:
    """Return the destinations that the settings `outputs_sr`, `outputs_sc` and so on name.

    Raises
    ------
    ConfigError
        For an address that cannot be, or that would get something twice, naming the setting and it.
    """
    found = [parse(kind, text) for kind in KINDS for text in getattr(settings, f"outputs_{kind}")]
    for number, one in enumerate(found):
        for other in found[:number]:
            if (one.kind, one.name) == (other.kind, other.name) and (one.takes(other.site) or other.takes(one.site)):
                raise ConfigError(f"outputs_{one.kind}: {one.name} stands there twice; remove one, or name two sites")
    return tuple(found)


def parse(kind: str, text: str) -> Destination:
    """Read an address.

    Raises
    ------
    ConfigError
        When it cannot be one of this kind, or carries a secret.
    """
    address, _, site = text.strip().partition(" =")
    name, _, fragment = address.rstrip().partition("#")
    open_ = kind != "webhook" and (name.startswith("dicom://") or not set("?@") & set(address))
    where = f"outputs_{kind} = {(name if open_ else hide(address))[:200]!r}"
    scheme, site = name.partition("://")[0], site.strip()
    if " =" in text and not site:
        raise ConfigError(f"{where}: names no site; write the address and then ' =site', or only the address")
    if scheme not in _SCHEMES[kind]:
        raise ConfigError(f"{where}: must begin with {' or '.join(f'{s}://' for s in _SCHEMES[kind])}")
    try:
        options = dict(parse_qsl(fragment, strict_parsing=True)) if fragment else {}
    except ValueError:
        raise ConfigError(f"{where}: after # write options as token-file=/path&ca-file=/path") from None
    allowed = _OPTIONS.get(scheme.partition("+")[0], set())
    if unknown := sorted(set(options) - allowed):
        known = ", ".join(sorted(allowed)) or "none"
        raise ConfigError(f"{where}: unknown option {unknown[0]!r}; known: {known}")
    for option, path in options.items():
        if not Path(path).is_file():
            raise ConfigError(f"{where}: {option}={path}: no such file")
    if scheme == "dicom":
        try:
            peers.parse(name.removeprefix("dicom://"))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        return Destination(kind, name, scheme, options, site)
    try:
        parts = urlsplit(name)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{where}: not an address; write {scheme}://host:port") from None
    if not parts.hostname or (scheme.startswith("mllp") and not port):
        raise ConfigError(f"{where}: has no {'port' if parts.hostname else 'host'}")
    if "@" in parts.netloc:
        raise ConfigError(f"{where}: a password does not belong here; put it into a file and name that as basic-file")
    if parts.query and kind != "webhook":
        raise ConfigError(f"{where}: a query does not belong here; put a token into a file and name that as token-file")
    if kind == "webhook" and "secret-file" not in options:
        raise ConfigError(f"{where}: needs #secret-file=/path, a file with the secret that signs what is sent")
    if kind == "webhook":
        return Destination(kind, label(name), scheme, options, site, name)
    return Destination(kind, name.rstrip("/"), scheme, options, site)


def label(address: str) -> str:
    """Return what stands for an address that may be a secret: scheme, host, port, and a digest to tell two apart."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}/#{hashlib.sha256(address.encode()).hexdigest()[:8]}"


def send_dicom(destination: Destination, objects: Sequence[Dataset], settings: Settings) -> None:
    """Send DICOM objects by STOW-RS or C-STORE; raises SendError unless all were taken."""
    if destination.scheme != "dicom":
        _stow(destination, objects)
        return
    peer = peers.parse(destination.name.removeprefix("dicom://"))
    try:
        sent = peers.store(peer, objects, peers.Caller.of(settings))
    except ClinicError as error:
        raise SendError(str(error)) from None
    if refused := [answer.reason for answer in sent if not answer.ok]:
        raise SendError(f"{peer}: {len(refused)} of {len(sent)} not taken: {refused[0]}")


def _stow(destination: Destination, objects: Sequence[Dataset]) -> None:
    boundary = "wetread-" + hashlib.sha256("".join(o.SOPInstanceUID for o in objects).encode()).hexdigest()[:32]
    body = BytesIO()
    for item in objects:
        body.write(f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode())
        item.save_as(part := BytesIO(), enforce_file_format=True)
        body.write(part.getvalue() + b"\r\n")
    body.write(f"--{boundary}--\r\n".encode())
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Accept": "application/dicom+json",
    }
    answer = _post(destination, f"{destination.url}/studies", body.getvalue(), headers)
    with suppress(ValueError, KeyError, IndexError, TypeError, AttributeError):
        failed = json.loads(answer)["00081198"]["Value"]  # Failed SOP Sequence, DICOM PS3.18 10.5.3
        reason = failed[0].get("00081197", {}).get("Value", ["no reason"])[0]
        said = f"0x{reason:04X}" if isinstance(reason, int) else str(reason)[:40]
        raise SendError(f"{destination.name}: {len(failed)} of {len(objects)} not taken: {said}")


def send_fhir(destination: Destination, bundle: Mapping[str, Any]) -> list[str]:
    """Send a transaction; return the status of each entry; raises SendError unless every one was taken."""
    headers = {"Content-Type": "application/fhir+json", "Accept": "application/fhir+json"}
    answer = _post(destination, destination.url, json.dumps(bundle).encode(), headers)
    try:
        statuses = [str(entry["response"]["status"]) for entry in json.loads(answer)["entry"]]
    except (ValueError, KeyError, TypeError):
        raise SendError(f"{destination.name}: answered no Bundle of a transaction") from None
    if bad := [status[:40] for status in statuses if not status.startswith("2")]:
        raise SendError(f"{destination.name}: an entry was not taken: {bad[0]}")
    if len(statuses) != len(bundle["entry"]):
        raise SendError(f"{destination.name}: answered {len(statuses)} of {len(bundle['entry'])} entries")
    return statuses


def send_webhook(destination: Destination, content: Mapping[str, Any], delivery: str) -> None:
    """Send JSON, signed: ``Wetread-Signature: t=<unix time>,v1=<HMAC-SHA256 of "t.body">``; raises SendError."""
    body = json.dumps(content, ensure_ascii=False, sort_keys=True).encode()
    at = int(time.time())
    headers = {
        "Content-Type": "application/json",
        "Wetread-Delivery": delivery,
        "Wetread-Signature": f"t={at},v1={sign(_secret(destination, 'secret-file'), at, body)}",
    }
    _post(destination, destination.url, body, headers)


def sign(secret: bytes, at: int, body: bytes) -> str:
    """Return the signature of a webhook's body at a Unix time."""
    return hmac.new(secret, b"%d.%s" % (at, body), hashlib.sha256).hexdigest()


def send_hl7(destination: Destination, message: str) -> None:
    """Send a message by MLLP and wait for its acknowledgement; raises SendError unless that is AA or CA."""
    parts = urlsplit(destination.name)
    address = (parts.hostname or "", parts.port or 0)
    try:
        with ExitStack() as stack:
            link = stack.enter_context(socket.create_connection(address, timeout=TIMEOUT_S))
            if destination.scheme == "mllps":
                trust = _trust(destination)
                link = stack.enter_context(trust.wrap_socket(link, server_hostname=parts.hostname))
            link.sendall(b"\x0b" + message.encode() + b"\x1c\r")
            answer = _frame(link)
    except OSError as error:
        raise SendError(f"{destination.name}: {_reason(error)}") from None
    control = hl7.parse(message).segment("MSH")[10][0]
    try:
        acknowledged = hl7.parse(answer.decode("utf-8", "replace"))
        segment = acknowledged.segment("MSA")
        code, about = str(segment[1]), str(segment[2])
    except Exception:  # the parser raises nearly anything on what is no message
        raise SendError(f"{destination.name}: answered no HL7 acknowledgement") from None
    if code not in ("AA", "CA"):
        text = re.sub(r"\s+", " ", " ".join(str(s) for s in (segment[3:4] or [])) + _err(acknowledged)).strip()
        raise SendError(f"{destination.name}: answered {code[:8]}{f' ({text[:200]})' if text else ''}")
    if about != control:
        raise SendError(f"{destination.name}: acknowledged another message")


def _err(message: Any) -> str:
    try:
        return " " + str(message.segment("ERR"))
    except KeyError:
        return ""


def _frame(link: socket.socket) -> bytes:
    """Read one MLLP frame."""
    data = b""
    until = time.monotonic() + TIMEOUT_S
    while b"\x1c\r" not in data:
        piece = link.recv(4096)
        if not piece:
            raise ConnectionError("closed before it answered")
        data += piece
        if len(data) > _ANSWER or time.monotonic() > until:
            raise ConnectionError("an answer without end")
    return data.partition(b"\x1c\r")[0].lstrip(b"\x0b")


def _post(destination: Destination, url: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Send a body and return the answer's; raises SendError unless the answer is 2xx."""
    headers = dict(headers)
    auth: httpx.BasicAuth | None = None
    if "token-file" in destination.options:
        headers["Authorization"] = f"Bearer {_secret(destination, 'token-file').decode()}"
    if "basic-file" in destination.options:
        user, _, password = _secret(destination, "basic-file").decode().partition(":")
        auth = httpx.BasicAuth(user, password)
    verify = _trust(destination) if url.startswith("https") else False
    until = time.monotonic() + 2 * TIMEOUT_S
    try:
        with (
            httpx.Client(verify=verify, timeout=TIMEOUT_S, trust_env=False) as client,
            client.stream("POST", url, content=body, headers=headers, auth=auth) as answer,
        ):
            got = b""
            for piece in answer.iter_bytes():
                got += piece
                if len(got) > _ANSWER or time.monotonic() > until:
                    raise SendError(f"{destination.name}: an answer without end")
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise SendError(f"{destination.name}: {_reason(error)}") from None
    if not answer.is_success:
        raise SendError(f"{destination.name}: answered {answer.status_code} {answer.reason_phrase}")
    return got


def _trust(destination: Destination) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=destination.options.get("ca-file"))
    except (OSError, ssl.SSLError) as error:
        raise SendError(f"{destination.name}: ca-file cannot be used ({error})") from None


def _secret(destination: Destination, option: str) -> bytes:
    try:
        return Path(destination.options[option]).read_bytes().strip()
    except OSError as error:
        raise SendError(f"{destination.name}: {option} cannot be read ({error.strerror})") from None


def _reason(error: Exception) -> str:
    if isinstance(error, (TimeoutError, httpx.TimeoutException)):
        return f"no answer within {TIMEOUT_S:g} s"
    return f"cannot be reached ({' '.join(hide(str(error)).split())[:160] or type(error).__name__})"

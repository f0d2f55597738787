"""Who may send by DICOM: the allow-list of the setting `dicom_peers`."""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from wetread.clinic.peers import Peer, ae_title
from wetread.config import Settings
from wetread.errors import ConfigError

# A host name (RFC 1123) that is no mistyped address: its last label is not all digits.
_NAME = re.compile(
    r"(?=.{1,253}\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})\.)*(?!\d+\.?\Z)[A-Za-z0-9_][A-Za-z0-9_-]{0,62}\.?"
)


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
    corrects : bool
        Whether its rejection notes and corrected headers are heeded.
    site : str
        Empty for the site of the settings.
    """

    ae: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | str | None
    port: int | None
    tls: bool
    corrects: bool
    site: str

    @classmethod
    def parse(cls, text: str) -> Sender:
        """Read ``AE@host[:port][+tls][+correct][=site]``; raises ConfigError when it is written otherwise."""
        body, _, site = text.strip().partition("=")
        body, corrects = body.removesuffix("+correct"), body.endswith("+correct")
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
                if not _NAME.fullmatch(host):
                    raise ConfigError(
                        f"dicom_peers = {text[:120]!r}: {host[:80]!r} is no address, network or host name"
                    ) from None
                network = host
        if port and (ae == "*" or host == "*" or "/" in host):
            raise ConfigError(f"dicom_peers = {text[:120]!r}: a port needs one AE title and one host")
        return cls(ae if ae == "*" else ae_title(ae), network, int(port) if port else None, tls, corrects, site.strip())

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
        self._site = settings.site
        self.lines = [Sender.parse(text) for text in settings.dicom_peers]

    def find(self, ae: str, address: str) -> Sender | None:
        """Return the line that lets that AE title call from that address: one that names it before one with ``*``."""
        found = [line for line in self.lines if line.allows(ae, address)]
        return min(found, key=lambda line: (line.ae == "*", line.network is None), default=None)

    def peer(self, ae: str, site: str) -> Peer | None:
        """Return where a site's AE title listens, if the list says so; other sites may have one of the same name."""
        mine = [line for line in self.lines if line.ae == ae and (line.site or self._site) == site]
        return next((line.peer for line in mine if line.peer), None)

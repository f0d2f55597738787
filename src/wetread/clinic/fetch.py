"""Fetching a radiograph from an address that somebody typed in, without being led where we should not go.

The name is resolved here, every address it has must be public, and the connection goes to one of the very
addresses that were checked: an answer that changes between check and use changes nothing. Redirects are followed
one by one under the same rule. When the time is over, the connection is cut, however slowly a server drips.
"""

from __future__ import annotations

import ipaddress
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

import httpx

from wetread import __version__
from wetread.clinic.archive import TooLargeError
from wetread.errors import BusyError, ClinicError

REDIRECTS = 5
AT_ONCE = 4
# No connection serves twice: it was made, and its certificate checked, for one name.
_ONCE = httpx.Limits(max_keepalive_connections=0)
_PATIENCE_S = 10.0  # longest wait for one answer of the other side
TYPES = ("image/", "application/dicom", "application/zip", "application/x-zip", "application/octet-stream", "binary/")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Addresses that carry an IPv4 address inside, which may be private: 6to4, Teredo, NAT64 (RFC 6890, 6052, 8215).
_TUNNELS = tuple(
    ipaddress.IPv6Network(net) for net in ("2002::/16", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48", "::/96")
)
_slots = threading.BoundedSemaphore(AT_ONCE)


def public(address: Address) -> bool:
    """Tell whether an address is one of the public Internet: not private, loopback, link-local, multicast, reserved."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return False
        if any(address in net for net in _TUNNELS) or address.is_site_local or address.scope_id:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def resolve(host: str, port: int) -> list[Address]:
    """Return the addresses of a name, as the system knows them.

    Raises
    ------
    ClinicError
        When it has none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ClinicError(f"url: {host[:100]} is not known; check the address") from None
    return [ipaddress.ip_address(entry[4][0]) for entry in found]


@contextmanager
def get(
    url: str,
    *,
    max_bytes: int,
    timeout_s: float,
    resolver: Callable[[str, int], Sequence[Address]] = resolve,
    allow: Callable[[Address], bool] = public,
    transport: httpx.BaseTransport | None = None,
) -> Iterator[tuple[str, BinaryIO]]:
    """Fetch a file; give its name and its contents, which are gone at the end of the context.

    Parameters
    ----------
    url : str
        ``http`` or ``https``, without user name.
    max_bytes : int
        Largest body.
    timeout_s : float
        Longest time for everything, in s; only the system's own look-up of a name may take longer.
    resolver : callable, optional
        Name and port → addresses.
    allow : callable, optional
        Whether an address may be connected to.
    transport : httpx.BaseTransport, optional
        By default a new one without proxy or environment.

    Raises
    ------
    ClinicError
        When the address is not allowed, does not answer in time, or does not answer with a radiograph.
    TooLargeError
        When it sends more than `max_bytes`.
    BusyError
        When enough others are fetching.
    """
    if not _slots.acquire(blocking=False):
        raise BusyError(f"{AT_ONCE} addresses are being fetched already; try again later")
    try:
        until = time.monotonic() + timeout_s
        with (
            tempfile.TemporaryFile() as file,
            httpx.Client(transport=transport, trust_env=False, limits=_ONCE) as client,
            _Deadline(until) as deadline,
        ):
            name = _download(client, url, file, max_bytes, deadline, resolver, allow)
            file.seek(0)
            yield name, file
    finally:
        _slots.release()


class _Deadline:
    """Cuts the connection of a fetch when its time is over.

    Limits of single reads do not help against a server that sends a byte of its header now and then.
    """

    def __init__(self, until: float) -> None:
        self.until, self.over = until, False
        self._lock, self._link = threading.Lock(), cast("socket.socket | None", None)
        self._timer = threading.Timer(max(self.left, 0.0), self._cut)
        self._timer.daemon = True

    @property
    def left(self) -> float:
        """The time that is left, in s."""
        return self.until - time.monotonic()

    def check(self) -> None:
        """Raise ClinicError when the time is over."""
        if self.over or self.left <= 0:
            raise ClinicError("url: takes too long; send the file itself")

    def watch(self, event: str, info: Mapping[str, Any]) -> None:
        """Follow what httpcore does, to know the connection (extension ``trace``)."""
        if event == "connection.connect_tcp.complete":
            link = info["return_value"].get_extra_info("socket")
            with self._lock:
                self._close()
                # A handle of our own: TLS takes the connection over into another object.
                self._link = link.dup() if link is not None else None
                if self.over:
                    self._shut()

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._close()

    def _cut(self) -> None:
        with self._lock:
            self.over = True
            self._shut()

    def _shut(self) -> None:
        if self._link is not None:
            with suppress(OSError):
                self._link.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None


def _download(
    client: httpx.Client,
    url: str,
    file: BinaryIO,
    max_bytes: int,
    deadline: _Deadline,
    resolver: Callable[[str, int], Sequence[Address]],
    allow: Callable[[Address], bool],
) -> str:
    try:
        target = httpx.URL(url.strip())
        for _ in range(REDIRECTS + 1):
            request = _request(client, target, resolver, allow)
            deadline.check()
            timeout = httpx.Timeout(min(_PATIENCE_S, max(deadline.left, 0.01)))
            request.extensions |= {"trace": deadline.watch, "timeout": timeout.as_dict()}
            response = client.send(request, stream=True)
            try:
                if response.has_redirect_location:
                    target = target.join(response.headers["location"])
                    continue
                _check(response, max_bytes)
                _copy(response, file, max_bytes, deadline)
                return unquote(target.path.rsplit("/", 1)[-1]) or target.host
            finally:
                response.close()
    except httpx.InvalidURL as error:
        raise ClinicError(f"url: {error}; give one like https://example.org/chest.dcm") from None
    except httpx.TimeoutException:
        deadline.check()
        raise ClinicError("url: no answer in time; try again later, or send the file itself") from None
    except httpx.HTTPError as error:
        deadline.check()
        raise ClinicError(f"url: cannot be fetched ({type(error).__name__}); send the file itself") from None
    raise ClinicError(f"url: more than {REDIRECTS} redirects; give the final address")


def _request(
    client: httpx.Client,
    target: httpx.URL,
    resolver: Callable[[str, int], Sequence[Address]],
    allow: Callable[[Address], bool],
) -> httpx.Request:
    """Return a request to an address that was checked, which calls itself by the name that was asked for."""
    if target.scheme not in ("http", "https") or not target.host:
        raise ClinicError(f"url: scheme {target.scheme[:20]!r}: only http and https addresses are fetched")
    if target.userinfo:
        raise ClinicError("url: carries a user name; send the file itself")
    port = target.port or {"http": 80, "https": 443}[target.scheme]
    addresses = resolver(target.raw_host.decode("ascii"), port)
    if not addresses or not all(allow(address) for address in addresses):
        raise ClinicError("url: does not lead to a public address; send the file itself")
    host = target.raw_host.decode("ascii")
    return client.build_request(
        "GET",
        target.copy_with(host=str(addresses[0]), fragment=None),
        headers={
            "Host": target.netloc.decode("ascii"),
            "Accept-Encoding": "identity",
            "User-Agent": f"wetread/{__version__}",
        },
        extensions={"sni_hostname": host},
    )


def _check(response: httpx.Response, max_bytes: int) -> None:
    if response.status_code != 200:
        raise ClinicError(f"url: the server answered {response.status_code}; check the address")
    kind = response.headers.get("content-type", "application/octet-stream").strip().lower()
    if not kind.startswith(TYPES) or kind.startswith("image/svg"):
        raise ClinicError(
            f"url: holds {kind.split(';')[0][:60]!r}, not a radiograph; give the address of the file itself"
        )
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise ClinicError("url: the server sends the file packed; send the file itself")
    length = response.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > max_bytes:
        raise TooLargeError(f"url: {length} bytes; at most {max_bytes} are accepted")


def _copy(response: httpx.Response, file: BinaryIO, max_bytes: int, deadline: _Deadline) -> None:
    size = 0
    for piece in response.iter_raw():  # as it comes: pieces of a given size would be waited for, past all time limits
        size += len(piece)
        if size > max_bytes:
            raise TooLargeError(f"url: more than {max_bytes} bytes")
        deadline.check()
        file.write(piece)
    deadline.check()  # a body without a length ends when the connection does

"""Fetching by URL: only public addresses, whatever names, redirects and answers try."""

from __future__ import annotations

import ipaddress
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from certificates import Authority

from wetread.clinic import fetch
from wetread.clinic.archive import TooLargeError
from wetread.clinic.fetch import Address
from wetread.errors import BusyError, ClinicError

PUBLIC = [ipaddress.ip_address("93.184.216.34")]
BODY = b"\xff\xd8\xff" + bytes(1000)

FORBIDDEN = [
    "127.0.0.1",
    "127.8.9.1",
    "0.0.0.0",
    "10.0.0.1",
    "10.255.255.255",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd12:3456::1",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:8.8.8.8",
    "::127.0.0.1",
    "::8.8.8.8",
    "2002:7f00:1::",
    "2002:a00:1::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "64:ff9b::7f00:1",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::1",
    "100::1",
]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not fetch.public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001::1"])
def test_addresses_that_are(address: str) -> None:
    assert fetch.public(ipaddress.ip_address(address))


class Net(httpx.BaseTransport):
    """A network that notes every connection and answers by a function."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response]) -> None:
        self.answer, self.requests = answer, list[httpx.Request]()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answer(request)


class Body(httpx.SyncByteStream):
    """A body as it comes over a wire, piece by piece."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces


def jpeg(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, stream=Body([BODY[:10], BODY[10:]]), headers={"Content-Type": "image/jpeg"})


def get(
    url: str,
    net: Net | None = None,
    resolver: Callable[[str, int], list[Address]] = lambda host, port: PUBLIC,
    **more: object,
) -> tuple[str, bytes]:
    with fetch.get(
        url, max_bytes=10_000, timeout_s=5.0, resolver=resolver, transport=net or Net(jpeg), **more  # type: ignore[arg-type]
    ) as (name, file):  # fmt: skip
        return name, file.read()


def test_a_file_comes_with_its_name() -> None:
    assert get("https://example.org/a/chest%20film.jpg?x=1") == ("chest film.jpg", BODY)
    assert get("http://example.org") == ("example.org", BODY)


def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    net = Net(jpeg)
    get("https://example.org:8443/x", net)
    request = net.requests[0]
    assert request.url.host == "93.184.216.34"
    assert request.url.port == 8443
    assert request.headers["host"] == "example.org:8443"
    assert request.extensions["sni_hostname"] == "example.org"


def test_a_name_is_resolved_once_for_each_connection() -> None:
    """A name that turns to another address after the check (DNS rebinding) gains nothing."""
    answers = [PUBLIC, [ipaddress.ip_address("127.0.0.1")]]
    net = Net(jpeg)
    get("http://rebind.example/x", net, lambda host, port: answers.pop(0))
    assert [request.url.host for request in net.requests] == ["93.184.216.34"]
    assert len(answers) == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1"])
def test_one_forbidden_address_among_good_ones_is_enough(address: str) -> None:
    net = Net(jpeg)
    with pytest.raises(ClinicError, match="public address"):
        get("http://mixed.example/x", net, lambda host, port: [*PUBLIC, ipaddress.ip_address(address)])
    assert net.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x",
        "http://localhost/x",
        "http://[::1]/x",
        "http://[::ffff:7f00:1]/x",
        "http://2130706433/x",
        "http://0x7f.1/x",
        "http://127.1/x",
        "http://0/x",
        "http://[fe80::1%25lo]/x",
        "http://[",
    ],
)
def test_spellings_of_this_machine(url: str) -> None:
    net = Net(jpeg)
    with pytest.raises(ClinicError):
        get(url, net, fetch.resolve)
    assert net.requests == []


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://example.org/x", "gopher://x", "//example.org", "x", "", "http://", "\0"],
)
def test_other_schemes_and_no_addresses(url: str) -> None:
    net = Net(jpeg)
    with pytest.raises(ClinicError, match="url"):
        get(url, net)
    assert net.requests == []


def test_no_user_name_is_sent() -> None:
    with pytest.raises(ClinicError, match="user name"):
        get("http://user:secret@example.org/x")


@pytest.mark.parametrize(
    "location", ["http://127.0.0.1/x", "http://internal.example/x", "file:///etc/passwd", "//[::1]/x"]
)
def test_redirects_are_checked_like_the_first_address(location: str) -> None:
    net = Net(lambda request: httpx.Response(302, headers={"Location": location}))

    def resolver(host: str, port: int) -> list[Address]:
        inner = {"127.0.0.1": "127.0.0.1", "internal.example": "10.1.2.3", "::1": "::1"}
        return [ipaddress.ip_address(inner[host])] if host in inner else PUBLIC

    with pytest.raises(ClinicError, match=r"public address|only http"):
        get("http://example.org/x", net, resolver)
    assert len(net.requests) == 1


def test_redirects_are_followed_and_counted() -> None:
    def hop(request: httpx.Request) -> httpx.Response:
        number = int(request.url.path.strip("/") or 0)
        return jpeg(request) if number == 3 else httpx.Response(301, headers={"Location": f"/{number + 1}"})

    net = Net(hop)
    assert get("http://example.org/0", net)[1] == BODY
    assert [r.headers["host"] for r in net.requests] == ["example.org"] * 4
    with pytest.raises(ClinicError, match="more than 5 redirects"):
        get("http://example.org/4", Net(lambda request: httpx.Response(302, headers={"Location": "/4"})))


@pytest.mark.parametrize(
    ("headers", "status", "named"),
    [
        ({"Content-Type": "text/html"}, 200, "'text/html', not a radiograph"),
        ({"Content-Type": "image/svg+xml"}, 200, "not a radiograph"),
        ({"Content-Type": "image/png", "Content-Encoding": "gzip"}, 200, "packed"),
        ({}, 404, "answered 404"),
        ({}, 500, "answered 500"),
        ({}, 206, "answered 206"),
        ({}, 302, "answered 302"),
        ({}, 304, "answered 304"),
    ],
)
def test_answers_that_are_no_radiograph(headers: dict[str, str], status: int, named: str) -> None:
    with pytest.raises(ClinicError, match=named):
        get("http://example.org/x", Net(lambda request: httpx.Response(status, headers=headers, stream=Body([BODY]))))


def test_too_much_is_refused_announced_or_not() -> None:
    def announced(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Length": "10001"}, stream=Body([]))

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1000)

    with pytest.raises(TooLargeError, match="10001 bytes"):
        get("http://example.org/x", Net(announced))
    with pytest.raises(TooLargeError, match="more than"):
        get("http://example.org/x", Net(lambda request: httpx.Response(200, stream=Body(endless()))))


def test_a_slow_answer_ends_in_time() -> None:
    pause = threading.Event()

    def drip() -> Iterator[bytes]:
        while True:
            pause.wait(0.02)
            yield b"x"

    net = Net(lambda request: httpx.Response(200, stream=Body(drip())))
    with (
        pytest.raises(ClinicError, match="takes too long"),
        fetch.get("http://example.org/x", max_bytes=10_000, timeout_s=0.2, resolver=lambda h, p: PUBLIC, transport=net),
    ):
        pass


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ReadTimeout, httpx.RemoteProtocolError, httpx.ReadError])
def test_a_network_that_fails_is_a_line(error: type[httpx.TransportError]) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error("no")

    with pytest.raises(ClinicError, match=r"^url: "):
        get("http://example.org/x", Net(fail))


def test_a_name_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **more: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ClinicError, match="not known"):
        get("http://nowhere.example/x", resolver=fetch.resolve)


def test_only_a_few_at_once() -> None:
    fetching = [
        fetch.get(
            "http://example.org/x", max_bytes=9999, timeout_s=5, resolver=lambda h, p: PUBLIC, transport=Net(jpeg)
        )
        for _ in range(fetch.AT_ONCE)
    ]
    for each in fetching:
        each.__enter__()
    with pytest.raises(BusyError):
        get("http://example.org/x")
    for each in fetching:
        each.__exit__(None, None, None)
    assert get("http://example.org/x")[1] == BODY


@contextmanager
def listening() -> Iterator[tuple[int, list[str]]]:
    """A real HTTP server on this machine; gives its port and the Host headers that it gets."""
    hosts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hosts.append(self.headers["Host"])
            self.send_response(200)
            self.send_header("Content-Type", "application/dicom")
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1], hosts
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def dripping(pieces: Callable[[], Iterator[bytes]], tls: ssl.SSLContext | None) -> Iterator[int]:
    """A server that sends a piece every 20 ms, whatever it is asked; gives its port."""
    done = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), tls.wrap_socket(self.request, True) if tls else nullcontext(self.request) as link:
                link.recv(4096)
                for piece in pieces():
                    link.sendall(piece)
                    if done.wait(0.02):
                        break

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        done.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _header() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"
    yield from (b"X: y\r\n" for _ in range(1000))
    yield b"\r\n" + BODY


def _length() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\n"
    yield from (b"x" for _ in range(1000))


def _end() -> Iterator[bytes]:
    yield b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n\r\n"
    yield from (b"x" for _ in range(1000))


@pytest.mark.parametrize("pieces", [_header, _length, _end])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_server_that_drips_is_cut_off(pieces: Callable[[], Iterator[bytes]], tls: bool, tmp_path: Path) -> None:
    """Each of these would be done after some 20 s, and no single wait is long."""
    ours, trust = None, None
    if tls:
        authority = Authority(tmp_path)
        ours, trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=authority.certificate)
        ours.load_cert_chain(*authority.issue("server"))
    with (
        dripping(pieces, ours) as port,
        httpx.HTTPTransport(verify=trust or False) as transport,
        pytest.raises(ClinicError, match="takes too long"),
        fetch.get(
            f"http{'s' if tls else ''}://localhost:{port}/x.jpg",
            max_bytes=9999,
            timeout_s=0.7,
            resolver=lambda host, port: [ipaddress.ip_address("127.0.0.1")],
            allow=lambda address: True,
            transport=transport,
        ),
    ):
        pass


def test_a_server_that_never_answers_and_redirects_without_haste_share_one_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time is that of all redirects together, not of each."""
    clock = [0.0]
    monkeypatch.setattr(fetch.time, "monotonic", lambda: clock[0])

    def hop(request: httpx.Request) -> httpx.Response:
        assert max(request.extensions["timeout"].values()) <= 5.0 - clock[0]
        clock[0] += 2.0
        return httpx.Response(302, headers={"Location": "/again"})

    net = Net(hop)
    with pytest.raises(ClinicError, match="takes too long"):
        get("http://example.org/x", net)
    assert len(net.requests) == 3


def test_no_connection_serves_two_names() -> None:
    """Two names of one address: what was proved by certificate for the first is not taken for the second."""
    links: list[object] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            links.append(self.client_address)
            self.send_response(302 if len(links) < 3 else 200)
            self.send_header("Location", f"http://other{len(links)}.example:{self.server.server_address[1]}/x")
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", "0" if len(links) < 3 else str(len(BODY)))
            self.end_headers()
            if len(links) == 3:
                self.wfile.write(BODY)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with fetch.get(
            f"http://one.example:{server.server_address[1]}/x",
            max_bytes=9999,
            timeout_s=30,
            resolver=lambda host, port: [ipaddress.ip_address("127.0.0.1")],
            allow=lambda address: True,
        ) as (_, file):
            assert file.read() == BODY
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert len(set(links)) == 3


def test_over_a_real_connection() -> None:
    """The wire as it is: refused on this machine's own address, fetched when a test allows that address."""
    with listening() as (port, hosts):
        with pytest.raises(ClinicError, match="public address"):
            get(f"http://localhost:{port}/x", resolver=fetch.resolve)
        assert hosts == []
        with fetch.get(
            f"http://scan.example:{port}/x.dcm",
            max_bytes=9999,
            timeout_s=5,
            resolver=lambda host, port: [ipaddress.ip_address("127.0.0.1")],
            allow=lambda address: True,
        ) as (name, file):
            assert (name, file.read()) == ("x.dcm", BODY)
        assert hosts == [f"scan.example:{port}"]

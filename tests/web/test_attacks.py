"""Hostile requests over real connections: the service says no, keeps nothing, and goes on serving."""

from __future__ import annotations

import errno
import io
import socket
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serving import Server, serving
from ward import archive, dicom, png

pytestmark = pytest.mark.system

LIMIT_S = 60
MAX_UPLOAD = 64 * 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("attacks") / "clinic"
    with serving(folder, WETREAD_MAX_UPLOAD_BYTES=str(MAX_UPLOAD), WETREAD_MAX_BYTES=str(8 * 2**20)) as running:
        yield running


def studies(server: Server) -> int:
    return int(server.http.get("/api/v1/worklist").json()["counts"]["unread"])


def raw(server: Server, *pieces: bytes, more: bool = False) -> bytes:
    """Send bytes as they are, close our side unless there might be `more`, and return all of the answer."""
    host, port = server.http.base_url.host, server.http.base_url.port
    with socket.create_connection((host, port or 80), timeout=LIMIT_S) as connection:
        answer = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            if not more:
                connection.shutdown(socket.SHUT_WR)
            while found := connection.recv(65536):
                answer += found
        except OSError as error:  # it hung up on us: an answer too
            if not isinstance(error, ConnectionError) and error.errno != errno.ENOTCONN:
                raise
        return answer


def head(server: Server, path: str, *lines: str) -> bytes:
    token = server.http.headers["Authorization"]
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: {token}", *lines, "", ""]).encode()


def part(content: bytes, boundary: str = "x") -> bytes:
    return f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + content + b"\r\n"


FORM = "Content-Type: multipart/form-data; boundary=x"
RELATED = 'Content-Type: multipart/related; type="application/dicom"; boundary=x'
UPLOADS = [("/api/v1/studies", FORM), ("/dicomweb/studies", RELATED)]


@pytest.mark.parametrize(("path", "kind"), UPLOADS)
def test_a_content_length_that_lies(server: Server, path: str, kind: str) -> None:
    """More is announced than comes, less than comes, nonsense, two of them, and one beside chunks."""
    before = studies(server)
    disposition = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.dcm"\r\n\r\n'
    content = (disposition if kind == FORM else b"--x\r\n\r\n") + dicom(1) + b"\r\n--x--\r\n"
    size = len(content)
    assert b" 200 " not in raw(server, head(server, path, kind, f"Content-Length: {size + 1000}"), content)[:20]
    assert b" 200 " not in raw(server, head(server, path, kind, f"Content-Length: {size - 500}"), content)[:20]
    for lie in ("-1", "1e3", "0x10", "9" * 30, "9" * 5000, str(2**63)):
        answer = raw(server, head(server, path, kind, f"Content-Length: {lie}"), content)
        assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413"), lie
    twice = head(server, path, kind, "Content-Length: 10", f"Content-Length: {size}")
    assert raw(server, twice, content).startswith(b"HTTP/1.1 400")
    smuggled = head(server, path, kind, f"Content-Length: {size}", "Transfer-Encoding: chunked")
    assert b" 200 " not in raw(server, smuggled, content)[:20]
    assert studies(server) == before


@pytest.mark.parametrize(("path", "kind"), UPLOADS)
def test_a_body_without_end_is_cut_and_leaves_no_file(server: Server, path: str, kind: str) -> None:
    piece = b"0" * 2**16
    chunk = f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
    start = head(server, path, kind, "Transfer-Encoding: chunked")
    answer = raw(server, start, *[chunk] * (MAX_UPLOAD // len(piece) + 20))
    assert answer.startswith((b"HTTP/1.1 413", b"HTTP/1.1 400")) or not answer
    assert server.http.get("/healthz").status_code == 200
    until = time.monotonic() + LIMIT_S
    while left := [file for file in (server.data / "tmp").rglob("*") if file.is_file()]:
        assert time.monotonic() < until, left
        time.sleep(0.05)


def test_heads_that_are_too_much(server: Server) -> None:
    for lines in (
        ["X-Long: " + "a" * 100_000],
        [f"X-{number}: {'b' * 100}" for number in range(5000)],
        ["Cookie: " + "; ".join(f"c{number}={'d' * 50}" for number in range(3000))],
    ):
        answer = raw(server, head(server, "/dicomweb/studies", *lines))
        assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431") or not answer
    long_path = f"/dicomweb/studies/{'1' * 100_000}"
    answer = raw(server, head(server, long_path))
    assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 414") or not answer
    huge_part = b"--x\r\nX-Long: " + b"a" * 2**20 + b"\r\n\r\n\r\n--x--"
    for path, kind in UPLOADS:
        answer = raw(server, head(server, path, kind, f"Content-Length: {len(huge_part)}"), huge_part)
        assert answer.startswith(b"HTTP/1.1 400"), answer[:200]
    assert server.http.get("/healthz").status_code == 200


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(20):
            file.writestr(f"{number}.dcm", bytes(8 * 2**20))
    return buffer.getvalue()


def deflated(size: int) -> bytes:
    """Return a DICOM file of deflated transfer syntax that inflates to `size` bytes."""
    plain = dicom(900)
    syntax = b"1.2.840.10008.1.2.1.99"
    start = plain.index(b"\x02\x00\x10\x00UI")
    length = int.from_bytes(plain[start + 6 : start + 8], "little")
    meta = plain[132:start] + b"\x02\x00\x10\x00UI" + len(syntax).to_bytes(2, "little") + syntax
    rest = plain[start + 8 + length :]
    body = rest.index(b"\x08\x00")
    meta += rest[:body]
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    long = b"\x10\x00\x00\x40LT\xff\xff" + b"a" * 0xFFFF
    data = squeeze.compress(rest[body:])
    for _ in range(size // len(long)):
        data += squeeze.compress(long)
    return plain[:132] + meta + data + squeeze.flush()


def test_bombs_are_not_unpacked(server: Server) -> None:
    """Zip in zip, zip of zeros, and a deflated DICOM file: memory stays where it was."""
    process = psutil.Process(server.process.pid)
    server.send(("warm.dcm", dicom(901)))
    before = process.memory_info().rss
    zeros = bomb()
    refused = server.http.post("/api/v1/studies", files=[("files", ("bomb.zip", zeros))])
    assert refused.status_code == 413, refused.text
    nested = archive({"inner.zip": zeros})
    assert server.http.post("/api/v1/studies", files=[("files", ("nested.zip", nested))]).status_code == 201
    evil = deflated(2**28)
    assert len(evil) < 8 * 2**20
    assert server.http.post("/api/v1/studies", files=[("files", ("deflated.dcm", evil))]).status_code == 201
    body = part(evil) + b"--x--\r\n"
    headers = {"Content-Type": RELATED.split(": ")[1]}
    assert server.http.post("/dicomweb/studies", content=body, headers=headers).status_code in (200, 202)
    assert process.memory_info().rss - before < 128 * 2**20
    assert server.http.get("/dicomweb/studies").status_code == 200


def test_names_are_never_paths(server: Server, tmp_path: Path) -> None:
    names = [
        "../../../../tmp/evil.dcm",
        "/etc/cron.d/evil",
        "..\\..\\evil.dcm",
        "x" * 3000,
        "con",
        "%2e%2e%2f",
    ]
    known = {file for file in server.data.parent.rglob("*") if file.is_file()}
    members = archive({name: png(910 + index) for index, name in enumerate(names)})
    server.send(*((name, png(920 + index)) for index, name in enumerate(names)), ("names.zip", members))
    odd = server.http.post("/api/v1/studies", files=[("files", ("a\0b.dcm", png(930)))])
    assert odd.status_code in (201, 400)
    new = {file for file in server.data.parent.rglob("*") if file.is_file()} - known
    inside = [server.data / "archive", server.data / "tmp"]
    assert all(any(file.is_relative_to(folder) for folder in inside) for file in new if "clinic.db" not in file.name), (
        new
    )
    assert not Path("/tmp/evil.dcm").exists()
    assert not Path("/etc/cron.d/evil").exists()
    codes = (b"404", b"405", b"422")
    for path in (
        "/static/../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/etc/passwd",
        "/dicomweb/studies/..%2f..%2fetc/metadata",
    ):
        assert (
            raw(server, head(server, path, "Connection: close").replace(b"POST", b"GET", 1), more=True)[9:12] in codes
        )


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/metrics",
        "http://localhost:{port}/metrics",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f.1:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/",
        "http://user@127.0.0.1:{port}/",
    ],
)
def test_addresses_inside_are_not_fetched(server: Server, url: str) -> None:
    before = studies(server)
    address = url.format(port=server.http.base_url.port)
    answers = [
        server.http.post("/api/v1/studies", json={"url": address}),
        server.http.post("/api/v1/studies", data={"url": address}),
    ]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert studies(server) == before


def test_a_large_stow_is_streamed(server: Server) -> None:
    """Sixty megabytes in one request; what it takes in memory is far less, and every part is there."""
    process = psutil.Process(server.process.pid)
    before, peak = process.memory_info().rss, 0
    big = [dicom(1000 + number) + bytes(4 * 2**20) for number in range(14)]

    def stream() -> Iterator[bytes]:
        nonlocal peak
        for content in big:
            yield part(content)
            peak = max(peak, process.memory_info().rss)
        yield b"--x--\r\n"

    headers: dict[str, Any] = {"Content-Type": RELATED.split(": ")[1]}
    answer = server.http.post("/dicomweb/studies", content=stream(), headers=headers)
    assert answer.status_code == 200
    assert len(answer.json()["00081199"]["Value"]) == 14
    assert peak - before < 40 * 2**20


def test_many_at_once_that_say_nothing(server: Server) -> None:
    host, port = server.http.base_url.host, server.http.base_url.port
    crowd = [socket.create_connection((host, port or 80), timeout=LIMIT_S) for _ in range(300)]
    try:
        for number, connection in enumerate(crowd):
            path, kind = UPLOADS[number % 2]
            connection.sendall(head(server, path, kind, "Content-Length: 100000") + b"--x\r\n")
        with httpx.Client(base_url=server.http.base_url, timeout=LIMIT_S) as other:
            assert other.get("/healthz").status_code == 200
        assert server.send(("b.dcm", dicom(990)))["studies"]
    finally:
        for connection in crowd:
            connection.close()
    assert server.http.get("/healthz").status_code == 200
    assert "Traceback" not in server.log.read_text()
    assert "ClientDisconnect" not in server.log.read_text()

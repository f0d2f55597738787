"""Senders that are slow, or stop: given up after a while, while the others are served."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.exceptions import HTTPException

from wetread.web import patience
from wetread.web.patience import Body, Protocol

LIMIT_S = 60


async def app(scope: dict, receive, send) -> None:
    """Answer with the number of bytes of the body."""
    if scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(str(size)))]})
    await send({"type": "http.response.body", "body": str(size).encode()})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(patience, "HEAD_S", 0.3)
    server = uvicorn.Server(
        uvicorn.Config(app, http=Protocol, log_level="error", lifespan="off", timeout_keep_alive=60)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = server.force_exit = True
        thread.join(LIMIT_S)


def said(connection: socket.socket) -> bytes:
    """Return everything until the server closes."""
    found = b""
    while piece := connection.recv(4096):
        found += piece
    return found


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"G"])
def test_a_head_without_end_is_given_up(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as slow:
        slow.sendall(sent)
        assert said(slow).startswith(b"HTTP/1.1 408 ")


def test_so_is_the_second_one_on_a_connection(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        first = b""
        while not first.endswith(b"\r\n\r\n0"):
            first += slow.recv(4096)
        assert first.startswith(b"HTTP/1.1 200 ")
        slow.sendall(b"GET / HTTP/1.1\r\n")
        assert said(slow).startswith(b"HTTP/1.1 408 ")


def test_a_body_may_take_longer_than_a_head(port: int) -> None:
    """A hundred connections without end do not stop one that is slow, but within its body."""
    crowd = [socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) for _ in range(100)]
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 6\r\n\r\nabc")
        for other in crowd:
            assert said(other).startswith(b"HTTP/1.1 408 ")
            other.close()
        slow.sendall(b"def")
        assert said(slow).endswith(b"\r\n\r\n6")


def test_a_body_that_stops_or_crawls_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "SILENCE_S", 0.05)
    too_large = HTTPException(413)

    async def never() -> dict:
        await asyncio.Event().wait()
        return {}

    async def crawling() -> dict:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def whole() -> dict:
        return {"type": "http.request", "body": b"x" * 10}

    async def drain(body: Body) -> None:
        while not body.ended:
            await body()

    with pytest.raises(HTTPException, match="nothing came"):
        asyncio.run(drain(Body(never, 10, too_large)))
    asyncio.run(drain(Body(whole, 10, too_large)))
    with pytest.raises(HTTPException) as error:
        asyncio.run(drain(Body(whole, 9, too_large)))
    assert error.value is too_large
    monkeypatch.setattr(patience, "GRACE_S", 0.05)
    monkeypatch.setattr(patience, "SILENCE_S", 60)
    with pytest.raises(HTTPException, match="slower than 1024") as error:
        asyncio.run(drain(Body(crawling, 2**40, too_large)))
    assert error.value.status_code == 408

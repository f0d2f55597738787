"""How long the server waits for somebody who sends slowly: a thousand half-sent requests must not stop the others.

uvicorn bounds only the pause between two requests. Here the head of a request has a time limit, and its body a longest
silence and a least speed.
"""

from __future__ import annotations

import asyncio
import time

import h11
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0  # longest time from the first byte of a connection, or of its next request, to the end of the head
SILENCE_S = 30.0  # longest pause within a body
GRACE_S = 60.0  # time waited for a body after which its speed counts
SLOWEST = 1024  # bytes/s
_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Protocol(H11Protocol):
    """HTTP/1.1 that gives up who does not come to the end of a request's head."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Go on waiting while a head is incomplete."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        super().connection_lost(exc)
        if self._head is not None:
            self._head.cancel()

    def _wait(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            if self._head is not None:
                self._head.cancel()
                self._head = None
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_S, self._late)

    def _late(self) -> None:
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.write(_LATE)
            self.transport.close()


class Body:
    """A body as it comes in, with a limit of size, silence and slowness.

    Parameters
    ----------
    receive : ASGI callable
    limit : int
        Most bytes.
    too_large : HTTPException
        Raised above it.
    """

    def __init__(self, receive: Receive, limit: int, too_large: HTTPException) -> None:
        self.receive, self.limit, self.too_large = receive, limit, too_large
        self.got, self.waited, self.ended = 0, 0.0, False

    async def __call__(self) -> Message:
        """Return the next piece, or after the last one what happens to the connection.

        Raises
        ------
        HTTPException
            413 or 408.
        """
        if self.ended:
            return await self.receive()
        since = time.monotonic()
        try:
            async with asyncio.timeout(SILENCE_S):
                message = await self.receive()
        except TimeoutError:
            raise _late(f"nothing came for {SILENCE_S:g} s") from None
        self.waited += time.monotonic() - since
        self.got += len(message.get("body", b""))
        self.ended = not message.get("more_body", False)
        if self.got > self.limit:
            raise self.too_large
        if not self.ended and self.waited > GRACE_S and self.got < SLOWEST * self.waited:
            raise _late(f"slower than {SLOWEST} bytes/s")
        return message


def _late(why: str) -> HTTPException:
    return HTTPException(408, f"{why}; send again", {"Connection": "close"})

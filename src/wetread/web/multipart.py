"""Multipart bodies (RFC 2387), in pieces: read from a request part by part into files, and written from pieces."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import IO, NamedTuple

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

_BUFFER = 2**20
_SLICE = 2**13  # bytes that are split at a time: each part of them is an open file until it is taken


class Piece(NamedTuple):
    """One part of a body that is written: its content type, its content in pieces, and where it can be had alone."""

    media: str
    content: Iterable[bytes]
    location: str = ""


class Part:
    """One part of a body that is read: its content type, and its content in a file on disk."""

    def __init__(self) -> None:
        self.media = ""
        self.file: IO[bytes] = tempfile.NamedTemporaryFile(prefix="part-", buffering=_BUFFER)  # noqa: SIM115

    def close(self) -> None:
        """Remove the file."""
        self.file.close()


class _Splitter:
    """Feeds the parser and gathers the parts that are complete."""

    def __init__(self, boundary: bytes) -> None:
        self.done: list[Part] = []
        self.open: Part | None = None
        self.ended = False
        self._name = self._value = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._field,
                "on_header_value": self._content,
                "on_header_end": self._header,
                "on_part_data": self._data,
                "on_part_end": self._close,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        self._parser.write(data)

    def _begin(self) -> None:
        self.open = Part()

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _content(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header(self) -> None:
        if self.open is not None and self._name.lower() == b"content-type":
            self.open.media = parse_options_header(self._value)[0].decode("latin-1").lower()
        self._name = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self.open is not None:
            self.open.file.write(data[start:end])

    def _close(self) -> None:
        if self.open is not None:
            self.open.file.flush()
            self.done.append(self.open)
        self.open = None

    def _end(self) -> None:
        self.ended = True


async def parts(request: Request, boundary: bytes, *, max_parts: int) -> AsyncGenerator[Part]:
    """Yield the parts of a body as they become complete, never more than one piece of it in memory.

    Parameters
    ----------
    request : Request
    boundary : bytes
    max_parts : int

    Raises
    ------
    HTTPException
        400 when the body is no multipart, or ends before its last boundary; 413 for too many parts.
    """
    splitter, count = _Splitter(boundary), 0
    try:
        async for piece in request.stream():
            for start in range(0, len(piece), _SLICE):
                try:
                    splitter.feed(piece[start : start + _SLICE])
                except MultipartParseError:
                    raise HTTPException(400, "the body is no multipart with the boundary of its Content-Type") from None
                while splitter.done:
                    part, count = splitter.done.pop(0), count + 1
                    if count > max_parts:
                        part.close()
                        raise HTTPException(413, f"more than {max_parts} parts; send less at a time")
                    try:
                        yield part
                    finally:
                        part.close()
        if not splitter.ended:
            raise HTTPException(
                400, "the body ends before its closing boundary; what came whole was kept, sending it again is safe"
            )
    finally:
        for part in (*splitter.done, *([splitter.open] if splitter.open else [])):
            part.close()


def write(pieces: Iterable[Piece], boundary: str) -> Iterator[bytes]:
    """Yield the bytes of a multipart body."""
    for piece in pieces:
        place = f"Content-Location: {piece.location}\r\n" if piece.location else ""
        yield f"--{boundary}\r\nContent-Type: {piece.media}\r\n{place}\r\n".encode()
        yield from piece.content
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def new_boundary() -> str:
    """Return a boundary that no content holds."""
    return f"wetread-{secrets.token_hex(16)}"

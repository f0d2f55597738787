"""Bodies in parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psutil
import pytest
from starlette.exceptions import HTTPException

from wetread.web import multipart


class Body:
    """A request that has nothing but a body."""

    def __init__(self, content: bytes, piece: int) -> None:
        self.content, self.piece = content, piece

    async def stream(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.content), self.piece):
            yield self.content[start : start + self.piece]


def body(count: int) -> bytes:
    return b"".join(b"--a\r\n\r\n%d\r\n" % number for number in range(count)) + b"--a--\r\n"


@pytest.mark.parametrize("piece", [7, 8192, 2**20])
def test_thousands_of_tiny_parts_never_open_as_many_files(piece: int) -> None:
    before, most = psutil.Process().num_fds(), 0

    async def take() -> list[bytes]:
        nonlocal most
        found = []
        async for part in multipart.parts(Body(body(4000), piece), b"a", max_parts=5000):  # type: ignore[arg-type]
            most = max(most, psutil.Process().num_fds())
            part.file.seek(0)
            found.append(part.file.read())
        return found

    assert asyncio.run(take()) == [b"%d" % number for number in range(4000)]
    assert most - before < 700


def test_too_many_parts_are_refused() -> None:
    async def take() -> None:
        async for _ in multipart.parts(Body(body(50), 2**20), b"a", max_parts=10):  # type: ignore[arg-type]
            pass

    with pytest.raises(HTTPException) as refused:
        asyncio.run(take())
    assert refused.value.status_code == 413

"""Decoding in a process apart, for codecs that hostile or damaged bytes can crash or keep busy for ever.

Fuzzing broke them: CharLS with a loop, the RLE decoder with a panic. A child process decodes
instead, one for each thread that needs one at the time; it is kept for the next frame, and replaced when it dies or
takes too long. Run as a module, this file is that child.
"""

from __future__ import annotations

import atexit
import json
import os
import struct
import subprocess
import sys
import threading
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

SECONDS = 30.0  # a 64-megapixel JPEG 2000 frame takes about 10
_MEMORY = 8 * 2**30
_LENGTHS = struct.Struct("<QQ")

_idle: list[subprocess.Popen[bytes]] = []
_owner = os.getpid()


class DecodeError(Exception):
    """A frame could not be decoded; the text says why."""


def decode(frame: bytes, options: dict[str, Any], *, seconds: float = SECONDS) -> NDArray[Any]:
    """Decode one compressed frame.

    Parameters
    ----------
    frame : bytes
        As encapsulated in DICOM.
    options : dict
        JSON-ready: ``"syntax"`` (transfer syntax UID), ``"plugin"``, and under ``"image"`` the keyword arguments of
        pydicom's decoder (rows, columns, bits_stored, …).
    seconds : float
        Longest time.

    Returns
    -------
    integer array, shape [H, W] or [H, W, 3]

    Raises
    ------
    DecodeError
        When the bytes are broken, crash the decoder, or take longer.
    """
    child = _take()
    late = threading.Event()

    def stop() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        _send(child.stdin, json.dumps(options).encode(), frame)
        head, body = _receive(child.stdout)
    except (OSError, EOFError):
        child.kill()
        child.communicate()
        why = f"takes longer than {seconds:g} s" if late.is_set() else "crashes the decoder"
        raise DecodeError(f"its compressed picture {why}") from None
    finally:
        timer.cancel()
    _idle.append(child)
    reply = json.loads(head)
    if "error" in reply:
        raise DecodeError(reply["error"])
    return np.frombuffer(body, np.dtype(reply["dtype"])).reshape(reply["shape"])


def _take() -> subprocess.Popen[bytes]:
    """Return a running child that no other thread uses."""
    global _owner
    if _owner != os.getpid():  # forked: the children are the parent's
        _owner = os.getpid()
        _idle.clear()
    while True:
        try:
            child = _idle.pop()
        except IndexError:
            command = [sys.executable, "-m", __name__]
            return subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        if child.poll() is None:
            return child
        child.communicate()


@atexit.register
def _close() -> None:
    if _owner == os.getpid():
        for child in _idle:
            child.communicate()  # the end of its input ends it
        _idle.clear()


def _send(stream: IO[bytes], head: bytes, body: bytes | memoryview) -> None:
    stream.write(_LENGTHS.pack(len(head), len(body)))
    stream.write(head)
    stream.write(body)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[bytes, bytes]:
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        raise EOFError
    head, body = (stream.read(length) for length in _LENGTHS.unpack(lengths))
    if len(body) < _LENGTHS.unpack(lengths)[1]:
        raise EOFError
    return head, body


def _serve() -> None:
    """Decode what comes on standard input until it ends."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder  # type: ignore[attr-defined]

    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):  # not on this system
        pass
    source, target = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a decoder prints must not mix with the replies
    while True:
        try:
            head, frame = _receive(source)
        except EOFError:
            return
        options = json.loads(head)
        try:
            array, _ = get_decoder(options["syntax"]).as_array(
                encapsulate([frame]), index=0, decoding_plugin=options["plugin"], **options["image"]
            )
        except Exception as error:  # hostile bytes can raise anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            _send(target, json.dumps({"error": reason}).encode(), b"")
        else:
            array = np.ascontiguousarray(array)
            _send(target, json.dumps({"dtype": array.dtype.str, "shape": array.shape}).encode(), array.tobytes())


if __name__ == "__main__":
    _serve()

"""Reading and decoding in a process apart, for bytes that crash a decoder, keep it busy for ever or eat the memory.

Fuzzing broke them: CharLS with a loop, the RLE decoder with a panic. A child process reads whole files for the clinic
(`read`), and single frames for everybody else (`decode`), within limits of time and memory. There are no more children
than processors; one is kept for the next file, and replaced when it dies, takes too long, or has read many. When its
parent is killed, the end of its input ends an idle child, and the limit of processor time a busy one.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import struct
import subprocess
import sys
import threading
from dataclasses import asdict, fields
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wetread.errors import Code, ReadError

if TYPE_CHECKING:
    from wetread.radiograph.read import Limits, Radiograph

SECONDS = 30.0  # a 64-megapixel JPEG 2000 frame takes about 10
_MEMORY = 8 * 2**30
_USES = 1000  # decoders leak
_LENGTHS = struct.Struct("<QQ")
_COMMAND = (sys.executable, "-P", "-c", f"from {__name__} import serve; serve()")

_idle: list[_Child] = []
_room = threading.BoundedSemaphore(max(2, os.cpu_count() or 2))
_owner = os.getpid()
_apart = False  # whether this is the child


class DecodeError(Exception):
    """A file or frame could not be decoded; the text says why."""


class _Child(subprocess.Popen[bytes]):
    def __init__(self) -> None:
        super().__init__(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.uses = 0


def decode(frame: bytes, options: dict[str, Any], *, seconds: float = SECONDS) -> NDArray[Any]:
    """Decode one compressed frame; in the child itself, at once.

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
    if _apart:
        return _decode(frame, options)
    reply, body = _ask({"frame": options, "seconds": seconds, "memory": _MEMORY}, frame, seconds, "picture", "decoder")
    if "error" in reply:
        raise DecodeError(reply["error"])
    return np.frombuffer(body, np.dtype(reply["dtype"])).reshape(reply["shape"])


def read(data: bytes, name: str, limits: Limits, reduce_to: int | None) -> Radiograph:
    """Read a file as `wetread.radiograph.read.read` does, within the limits of time and memory.

    Raises
    ------
    ReadError
        As that does; also (UNREADABLE) when the bytes crash the reader or take longer than `limits.seconds`, and
        (TOO_LARGE) when they take more memory than `limits.memory`.
    """
    from wetread.radiograph.read import Radiograph

    reply, body = _read("read", data, name, limits, {"reduce_to": reduce_to})
    pixels = np.frombuffer(body, np.dtype(reply["dtype"])).reshape(reply["shape"])
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in reply["values"].items()
    }
    return Radiograph(pixels=pixels, **values)


def present(data: bytes, name: str, limits: Limits) -> tuple[dict[str, Any], bytearray]:
    """Read a file as `wetread.radiograph.presentation.present` does, within the limits of time and memory.

    Raises
    ------
    ReadError
        As `read`.
    """
    reply, body = _read("present", data, name, limits, {})
    return reply["values"], body


def call(function: str, data: bytes, name: str, limits: Limits, options: dict[str, Any]) -> bytes:
    """Have the child call a function of ours that makes bytes of a file's, within the limits of time and memory.

    Parameters
    ----------
    function : str
        ``module:name``; takes the bytes and `options`, which are JSON-ready, as keywords.

    Raises
    ------
    ReadError
        As the function does, and as `read`.
    """
    _, body = _read("call", data, name, limits, {"function": function, "options": options})
    return bytes(body)


def _read(what: str, data: bytes, name: str, limits: Limits, more: dict[str, Any]) -> tuple[dict[str, Any], bytearray]:
    seconds = limits.seconds or SECONDS
    asked = {what: {"name": name, "limits": asdict(limits), **more}, "seconds": seconds, "memory": limits.memory}
    try:
        reply, body = _ask(asked, data, seconds, "file", "reader")
    except DecodeError as error:
        raise ReadError(f"{name}: {error}; export it again") from None
    if "error" in reply:
        raise ReadError(reply["error"], Code(reply["code"]))
    return reply, body


def _ask(asked: dict[str, Any], data: bytes, seconds: float, what: str, whom: str) -> tuple[dict[str, Any], bytearray]:
    """Have a child answer; raise DecodeError when it dies or is too slow."""
    _own()
    with _room:
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
            _send(child.stdin, json.dumps(asked).encode(), data)
            head, body = _receive(child.stdout)
        except BaseException as error:  # an interruption too leaves it half-way through an answer
            timer.cancel()
            _end(child, kill=True)
            if not isinstance(error, (OSError, EOFError)):
                raise
            why = f"takes longer than {seconds:g} s" if late.is_set() else f"crashes the {whom}"
            raise DecodeError(f"its {what} {why}") from None
        timer.cancel()
        child.uses += 1
        reply: dict[str, Any] = json.loads(head)
        if late.is_set() or reply.get("spent") or child.uses >= _USES:
            _end(child)
        else:
            _idle.append(child)
        return reply, body


def _own() -> None:
    """Forget the children of the process that this one was forked from."""
    global _owner, _room
    if _owner != os.getpid():
        _owner = os.getpid()
        _room = threading.BoundedSemaphore(max(2, os.cpu_count() or 2))
        _idle.clear()


def _take() -> _Child:
    """Return a running child that no other thread uses."""
    while True:
        try:
            child = _idle.pop()
        except IndexError:
            return _Child()
        if child.poll() is None:
            return child
        _end(child)


def _end(child: _Child, *, kill: bool = False) -> None:
    """End a child, by the end of its input or at once, and leave no zombie."""
    if kill:
        child.kill()
    with contextlib.suppress(OSError, ValueError):  # its pipes may be broken
        child.communicate()
    child.wait()


@atexit.register
def _close() -> None:
    if _owner == os.getpid():
        while _idle:
            _end(_idle.pop())


def _send(stream: IO[bytes], head: bytes, body: bytes | memoryview) -> None:
    stream.write(_LENGTHS.pack(len(head), len(body)))
    stream.write(head)
    stream.write(body)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[bytes, bytearray]:
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        raise EOFError
    head_length, body_length = _LENGTHS.unpack(lengths)
    head, body = stream.read(head_length), bytearray(body_length)
    view, at = memoryview(body), 0
    while at < body_length:
        count = stream.readinto(view[at:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        at += count
    if len(head) < head_length:
        raise EOFError
    return head, body


def _decode(frame: bytes, options: dict[str, Any]) -> NDArray[Any]:
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder  # type: ignore[attr-defined]

    try:
        array, _ = get_decoder(options["syntax"]).as_array(
            encapsulate([frame]), index=0, decoding_plugin=options["plugin"], **options["image"]
        )
    except MemoryError:
        raise
    except Exception as error:  # hostile bytes can raise anything
        raise DecodeError(" ".join(str(error).split())[:200] or type(error).__name__) from None
    return np.ascontiguousarray(array)


def _answer(asked: dict[str, Any], data: bytes) -> tuple[dict[str, Any], NDArray[Any] | None]:
    """Do what the parent asks for."""
    from wetread.radiograph import read as reader

    try:
        if "frame" in asked:
            array = _decode(data, asked["frame"])
            return {}, array
        if "call" in asked:
            module, _, function = asked["call"]["function"].partition(":")
            made = getattr(importlib.import_module(module), function)(data, **asked["call"]["options"])
            return {}, np.frombuffer(made, np.uint8)
        wanted = asked.get("read") or asked["present"]
        limits = reader.Limits(**wanted["limits"] | {"seconds": None})
        if "present" in asked:
            from wetread.radiograph import presentation

            about, body = presentation.present(data, name=wanted["name"], limits=limits)
            return {"values": about}, body
        radiograph = reader.read(data, name=wanted["name"], limits=limits, reduce_to=wanted["reduce_to"])
        values = {f.name: getattr(radiograph, f.name) for f in fields(radiograph) if f.name != "pixels"}
        return {"values": values}, np.ascontiguousarray(radiograph.pixels)
    except ReadError as error:
        return {"error": str(error), "code": error.code.value}, None
    except DecodeError as error:
        return {"error": str(error)}, None
    except MemoryError:
        return {"error": "it needs too much memory", "code": Code.TOO_LARGE.value, "spent": True}, None


def _limit(seconds: float, memory: int) -> None:
    """Limit what the next answer may take: memory, and processor time beyond what was used so far."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on this system
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        processor = int(used.ru_utime + used.ru_stime + seconds) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (processor, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY))


def serve() -> None:
    """Answer what comes on standard input until it ends: the child's whole life."""
    global _apart
    _apart = True
    import cv2

    cv2.setNumThreads(1)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, target = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a decoder prints must not mix with the replies
    while True:
        try:
            head, data = _receive(source)
        except EOFError:
            return
        asked = json.loads(head)
        _limit(asked["seconds"], asked["memory"])
        reply, array = _answer(asked, bytes(data))
        if array is None:
            _send(target, json.dumps(reply).encode(), b"")
        else:
            about = {**reply, "dtype": array.dtype.str, "shape": array.shape}
            _send(target, json.dumps(about).encode(), array.data.cast("B"))

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import films
import numpy as np
import psutil
import pytest
from pydicom.pixels import get_encoder
from pydicom.uid import RLELossless

from wetread.errors import Code, ReadError
from wetread.radiograph import isolated
from wetread.radiograph.read import Limits, Radiograph, read

STORED = films.scene(bits=12)
FRAME = get_encoder(RLELossless).encode(films.dataset(STORED), index=0, encoding_plugin="pydicom")
OPTIONS = {
    "syntax": str(RLELossless),
    "plugin": "pydicom",
    "image": {
        "rows": 96, "columns": 80, "samples_per_pixel": 1, "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": 16, "bits_stored": 12, "pixel_representation": 0, "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    },
}  # fmt: skip


def test_a_frame_is_decoded_by_a_child_that_is_kept() -> None:
    np.testing.assert_array_equal(isolated.decode(FRAME, OPTIONS), STORED)
    child = isolated._idle[-1].pid
    np.testing.assert_array_equal(isolated.decode(FRAME, OPTIONS), STORED)
    assert isolated._idle[-1].pid == child != os.getpid()


def test_what_a_decoder_refuses_is_said() -> None:
    with pytest.raises(isolated.DecodeError, match="segment"):
        isolated.decode(FRAME[:70], OPTIONS)
    np.testing.assert_array_equal(isolated.decode(FRAME, OPTIONS), STORED)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs POSIX signals")
def test_a_child_that_takes_too_long_is_replaced() -> None:
    isolated.decode(FRAME, OPTIONS)
    os.kill(isolated._idle[-1].pid, signal.SIGSTOP)
    with pytest.raises(isolated.DecodeError, match=r"takes longer than 0\.2 s"):
        isolated.decode(FRAME, OPTIONS, seconds=0.2)
    np.testing.assert_array_equal(isolated.decode(FRAME, OPTIONS), STORED)


def test_a_child_that_died_is_replaced() -> None:
    isolated.decode(FRAME, OPTIONS)
    isolated._idle[-1].kill()
    isolated._idle[-1].wait()
    np.testing.assert_array_equal(isolated.decode(FRAME, OPTIONS), STORED)


def test_a_frame_that_kills_its_decoder_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(*_: object) -> None:
        raise BrokenPipeError

    data = films.compressed(FRAME, STORED, RLELossless)
    assert read(data).bits == 16
    monkeypatch.setattr(isolated, "_send", dying)
    with pytest.raises(ReadError, match="crashes the decoder") as caught:
        read(data)
    assert caught.value.code is Code.UNREADABLE


def test_threads_decode_side_by_side() -> None:
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(isolated.decode(FRAME, OPTIONS))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert all((result == STORED).all() for result in results)


# whole files


@pytest.fixture
def fresh() -> Iterator[None]:
    """Start without children, and leave none that this test changed."""
    isolated._close()
    yield
    isolated._close()


def read_apart(data: bytes, **limits: Any) -> Radiograph:
    return read(data, name="film", limits=Limits(**{"seconds": 60.0} | limits))


@pytest.mark.parametrize("kind", ["dicom", "rle", "jpeg", "png", "webp", "tiff"])
def test_a_file_read_apart_is_the_file_read_here(kind: str) -> None:
    grey = films.scene(bits=8)
    data = {"dicom": lambda: films.dicom(STORED, PixelSpacing=[0.2, 0.3], StudyDate="20240102"),
            "rle": lambda: films.compressed(FRAME, STORED, RLELossless)}.get(
                kind, lambda: films.picture(grey, kind.upper()))()  # fmt: skip
    here, apart = read(data), read_apart(data)
    np.testing.assert_array_equal(apart.pixels, here.pixels)
    assert apart.pixels.dtype == here.pixels.dtype
    for field in dataclasses.fields(here):
        if field.name != "pixels":
            assert getattr(apart, field.name) == getattr(here, field.name), field.name


def test_a_refusal_keeps_its_words_and_code() -> None:
    for data, code in ((b"nonsense", Code.UNREADABLE), (films.dicom(STORED, Modality="SR", PixelData=None), None)):
        with pytest.raises(ReadError) as here:
            read(data, name="film")
        with pytest.raises(ReadError) as apart:
            read_apart(data)
        assert str(apart.value) == str(here.value)
        assert apart.value.code is (code or Code.NOT_RADIOGRAPH)


def serving(monkeypatch: pytest.MonkeyPatch, sabotage: str) -> None:
    """Let the next children run `sabotage` whenever they are to read."""
    bad = f"def bad(*_, **__):\n    {sabotage}\n"
    code = f"from wetread.radiograph import isolated, read\n{bad}read.read = bad\nisolated.serve()"
    monkeypatch.setattr(isolated, "_COMMAND", (sys.executable, "-P", "-c", code))


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("sabotage", "limits", "code", "words"),
    [
        ("import os; os.abort()", {}, Code.UNREADABLE, "crashes the reader"),
        ("import time; time.sleep(600)", {"seconds": 1.0}, Code.UNREADABLE, "takes longer than 1 s"),
        ("return bytearray(2**34)", {"memory": 2**30}, Code.TOO_LARGE, "memory"),
        ("import os; os.write(2, b'x' * 10**6); os._exit(0)", {}, Code.UNREADABLE, "crashes the reader"),
    ],
)
def test_what_goes_wrong_in_the_child_is_a_coded_refusal(
    monkeypatch: pytest.MonkeyPatch, sabotage: str, limits: dict[str, Any], code: Code, words: str
) -> None:
    with monkeypatch.context() as patched:
        serving(patched, sabotage)
        with pytest.raises(ReadError, match=words) as caught:
            read_apart(films.dicom(STORED), **limits)
    assert caught.value.code is code
    assert not children()
    assert read_apart(films.dicom(STORED)).bits == 16  # the next file finds a new child


@pytest.mark.system  # takes long
@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of processor time, as Linux has them")
def test_an_orphan_that_is_busy_ends_by_its_limit_of_processor_time() -> None:
    code = "from wetread.radiograph import isolated; isolated._limit(0.0, 2**40)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert -done.returncode == signal.SIGXCPU


def children() -> list[psutil.Process]:
    """Return what this process started and did not end, zombies included."""
    return [child for child in psutil.Process().children() if "serve" in " ".join(_command(child))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() or ["serve"]  # a zombie has none
    except psutil.Error:
        return []


@pytest.mark.usefixtures("fresh")
def test_there_are_never_more_children_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_room", threading.BoundedSemaphore(2))
    data, sizes = films.dicom(STORED), []

    def work(_: int) -> None:
        assert read_apart(data).full_size == STORED.shape
        sizes.append(len(children()))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(24)))
    assert max(sizes) <= 2
    assert len(isolated._idle) <= 2


@pytest.mark.usefixtures("fresh")
def test_a_child_that_read_many_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_USES", 2)
    data = films.dicom(STORED)
    read_apart(data)
    first = isolated._idle[-1].pid
    read_apart(data)
    assert not isolated._idle
    assert not children()
    read_apart(data)
    assert isolated._idle[-1].pid != first

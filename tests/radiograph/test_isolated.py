from __future__ import annotations

import os
import signal
import threading

import films
import numpy as np
import pytest
from pydicom.pixels import get_encoder
from pydicom.uid import RLELossless

from wetread.errors import Code, ReadError
from wetread.radiograph import isolated
from wetread.radiograph.read import read

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

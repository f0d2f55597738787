"""The figures of a picture against the same figures of pixels that are known."""

from __future__ import annotations

import numpy as np
import pytest

from wetread.radiograph import phantom
from wetread.radiograph.exposure import Exposure
from wetread.radiograph.read import Radiograph


@pytest.mark.parametrize("bits", [8, 16])
def test_half_black_half_white(bits: int) -> None:
    top = 2**bits - 1
    pixels = np.zeros((80, 64), np.uint8 if bits == 8 else np.uint16)
    pixels[40:] = top
    found = Exposure.of(Radiograph(pixels, bits=bits, full_size=(160, 128)))
    assert (found.mean, found.spread, found.black, found.white) == (0.5, 0.5, 0.5, 0.5)
    assert (found.rows, found.columns) == (160, 128)


def test_a_darker_picture_has_a_lower_mean_and_the_same_size() -> None:
    made = phantom.make(3, size=128).radiograph
    darker = Radiograph((made.pixels * 0.7).astype(made.pixels.dtype), bits=made.bits)
    before, after = Exposure.of(made), Exposure.of(darker)
    assert after.mean == pytest.approx(0.7 * before.mean, rel=0.02)
    assert (after.rows, after.columns) == made.pixels.shape

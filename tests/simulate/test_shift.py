"""What a drift does to files and to the mix of patients, measured in the files by other programs."""

from datetime import datetime
from io import BytesIO

import numpy as np
import pydicom
import pytest

from wetread.errors import ConfigError
from wetread.radiograph import phantom
from wetread.radiograph.read import read
from wetread.simulate.patients import Arrival, Phantoms, arriving
from wetread.simulate.shift import Shift

PLAIN = phantom.dicom(phantom.make(5, size=128))


def film(content):
    return pydicom.dcmread(BytesIO(content))


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("size", [1.0, -1.0, 0.5])
def test_exposure_is_the_power_that_its_size_says_and_nothing_else_changes(size, inverted):
    content = phantom.dicom(phantom.make(5, size=128), inverted=inverted)
    before, after = film(content), film(Shift("exposure", size=size).file(content, "a", seed=0))
    dense = [(4095 - f.pixel_array if inverted else f.pixel_array) / 4095 for f in (before, after)]
    assert np.abs(dense[1] - dense[0] ** (2**size)).max() < 1 / 4095
    assert (dense[1].mean() < dense[0].mean()) == (size > 0)
    del before.PixelData, after.PixelData
    assert before == after


@pytest.mark.parametrize(("size", "side"), [(1.0, 91), (-1.0, 181)])
def test_a_new_scanner_has_other_pixels_noise_and_tags_and_is_still_a_phantom(size, side):
    after = film(Shift("scanner", size=size).file(PLAIN, "a", seed=0))
    before = film(PLAIN)
    assert (after.Rows, after.Columns) == (side, side)
    assert after.pixel_array.shape == (side, side)
    assert float(after.PixelSpacing[0]) * side == pytest.approx(float(before.PixelSpacing[0]) * 128, rel=1e-3)
    assert after.ManufacturerModelName != before.ManufacturerModelName
    stream = BytesIO()
    after.save_as(stream, enforce_file_format=True)
    assert read(stream.getvalue(), name="a").source == "phantom"


def test_the_noise_of_a_new_scanner_is_that_of_its_size():
    flat = film(PLAIN)
    flat.PixelData = np.full((128, 128), 2000, np.uint16).tobytes()
    stream = BytesIO()
    flat.save_as(stream, enforce_file_format=True)
    noisy = film(Shift("scanner", size=1.0).file(stream.getvalue(), "a", seed=1)).pixel_array / 4095
    assert noisy.std() == pytest.approx(0.02, rel=0.05)
    assert noisy.mean() == pytest.approx(2000 / 4095, abs=0.001)


def test_the_seed_decides_the_noise():
    shift = Shift("scanner")
    assert shift.file(PLAIN, "a", seed=1) == shift.file(PLAIN, "a", seed=1) != shift.file(PLAIN, "a", seed=2)


@pytest.mark.parametrize("size", [1.0, -2.0])
def test_prevalence_multiplies_the_odds(size):
    after = Shift("prevalence", size=size).prevalence(0.2)
    assert after / (1 - after) == pytest.approx(0.25 * 2**size)
    assert Shift("prevalence").prevalence(1.0) == 1.0
    assert Shift("exposure").prevalence(0.2) == 0.2
    assert Shift("prevalence").file(b"any", "a", seed=0) == b"any"


def compressed():
    from pydicom.uid import RLELossless

    dataset = film(PLAIN)
    dataset.compress(RLELossless)
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.mark.parametrize("content", [b"", b"no picture", compressed()], ids=["empty", "text", "compressed"])
def test_a_file_whose_pixels_cannot_be_changed_is_refused_by_name(content):
    with pytest.raises(ConfigError, match=r"^x\.dcm: .*uncompressed DICOM"):
        Shift("exposure").file(content, "x.dcm", seed=0)


@pytest.mark.parametrize("values", [("fog",), ("exposure", 2.0), ("exposure", 0.5, 0.0), ("exposure", 0.5, np.nan)])
def test_a_drift_that_is_none_is_refused(values):
    with pytest.raises(ConfigError, match="drift"):
        Shift(*values)


def test_a_drift_changes_what_comes_after_it_only():
    now = datetime(2026, 3, 4)
    arrivals = [Arrival(1, now, "before"), Arrival(2, now, "after")]
    source = Phantoms(3, size=64, laterals=0.0)
    plain = list(arriving(source, arrivals, seed=3))
    shifted = list(arriving(source, arrivals, seed=3, shifts=[Shift("exposure"), Shift("scanner")]))
    assert plain[0] == shifted[0]
    assert film(shifted[1].files[0][1]).Rows == 64  # 45 would be too small for a radiograph
    assert film(shifted[1].files[0][1]).pixel_array.mean() < film(plain[1].files[0][1]).pixel_array.mean()
    assert shifted[1].findings == plain[1].findings

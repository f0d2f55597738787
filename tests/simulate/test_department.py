"""Arrivals are a Poisson process: checked against the distributions that it must have."""

from datetime import datetime
from io import BytesIO
from itertools import accumulate, islice, takewhile

import numpy as np
import pydicom
import pytest
from scipy import stats

from wetread.errors import ConfigError
from wetread.simulate.department import folder, gaps, phantoms, weights


def test_waits_of_a_constant_rate_are_exponential():
    waits = list(islice(gaps(3.0, seed=1), 4000))
    assert stats.kstest(waits, stats.expon(scale=20.0).cdf).pvalue > 0.01


def test_counts_in_equal_intervals_are_poisson_their_variance_is_their_mean():
    times = np.array(list(takewhile(lambda t: t < 60 * 2000, accumulate(gaps(5.0, seed=2)))))
    counts = np.bincount((times // 60).astype(int), minlength=2000)
    index_of_dispersion = counts.var(ddof=1) / counts.mean()
    low, high = stats.chi2(1999).interval(0.99)
    assert low < 1999 * index_of_dispersion < high
    assert counts.mean() == pytest.approx(5.0, abs=4 * np.sqrt(5 / 2000))


def test_an_hourly_pattern_gives_each_hour_its_share_and_keeps_the_daily_mean():
    hourly = [0.0] * 6 + [1.0] * 6 + [3.0] * 6 + [0.5] * 6
    days = 40
    times = np.array(
        list(takewhile(lambda t: t < days * 86400, accumulate(gaps(1.0, seed=3, hourly=hourly, start_hour=0))))
    )
    counts = np.bincount((times // 3600).astype(int) % 24, minlength=24)
    expected = np.array(hourly) / np.mean(hourly) * 60 * days
    assert not counts[:6].any()
    assert stats.chisquare(counts[6:], expected[6:] / expected.sum() * counts.sum()).pvalue > 0.01
    assert counts.sum() == pytest.approx(1440 * days, abs=4 * np.sqrt(1440 * days))


def test_an_hourly_pattern_begins_at_the_given_hour():
    only_noon = [0.0] * 12 + [1.0] + [0.0] * 11
    assert 3600 < next(gaps(60.0, seed=4, hourly=only_noon, start_hour=11)) < 3600 + 600


def test_a_flat_pattern_is_the_constant_rate():
    assert list(islice(gaps(2.0, seed=5, hourly=[7.0] * 24), 50)) == pytest.approx(list(islice(gaps(2.0, seed=5), 50)))


def test_the_seed_decides_the_times():
    assert list(islice(gaps(2.0, seed=6), 20)) == list(islice(gaps(2.0, seed=6), 20))
    assert list(islice(gaps(2.0, seed=6), 20)) != list(islice(gaps(2.0, seed=7), 20))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ConfigError, match="more than 0"):
        gaps(rate, seed=0)


@pytest.mark.parametrize("hourly", [[1.0] * 23, [0.0] * 24, [-1.0] + [1.0] * 23, [float("nan")] * 24])
def test_a_pattern_that_is_none_is_refused(hourly):
    with pytest.raises(ConfigError, match="24 weights"):
        gaps(1.0, seed=0, hourly=hourly)


def studies(seed, patients, clock, **options):
    """The studies of the first patients, as another program reads them."""
    sent = islice(phantoms(seed, size=64, clock=clock, **options), patients)
    return [[pydicom.dcmread(BytesIO(data)) for _, data in patient.files] for patient in sent]


def test_phantoms_are_dicom_studies_of_patients_of_their_own():
    images = [image for [image] in studies(1, 9, lambda: datetime(2026, 3, 4, 5, 6, 7), laterals=0.0)]
    for key in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert len({image[key].value for image in images}) == 9
    assert {(image.StudyDate, image.StudyTime) for image in images} == {("20260304", "050607")}
    assert {image.ViewPosition for image in images} == {"PA", "AP"}


def test_a_lateral_view_belongs_to_the_study_of_its_frontal_one():
    for frontal, lateral in studies(2, 3, lambda: datetime(2026, 3, 4), laterals=1.0):
        assert (frontal.StudyInstanceUID, frontal.PatientID) == (lateral.StudyInstanceUID, lateral.PatientID)
        assert frontal.SOPInstanceUID != lateral.SOPInstanceUID
        assert lateral.ViewPosition in ("LL", "RL")


def test_the_seed_decides_the_patients_and_the_time_the_study():
    [[first]], [[again]] = (studies(3, 1, lambda: datetime(2026, 3, 4), laterals=0.0) for _ in range(2))
    [[later]] = studies(3, 1, lambda: datetime(2026, 3, 5), laterals=0.0)
    assert first == again
    assert first.PatientID == later.PatientID
    assert first.PixelData == later.PixelData
    assert first.StudyInstanceUID != later.StudyInstanceUID


def test_weights_are_numbers_between_commas():
    assert weights("0, 1.5,2") == [0.0, 1.5, 2.0]
    with pytest.raises(ConfigError, match="'1;2'"):
        weights("1;2")


def test_a_folder_is_sent_in_order_and_over_again(tmp_path):
    for name in ("b.jpg", "a.dcm", ".hidden"):
        (tmp_path / name).write_bytes(name.encode())
    sent = [patient.files for patient in islice(folder(tmp_path), 3)]
    assert sent == [(("a.dcm", b"a.dcm"),), (("b.jpg", b"b.jpg"),), (("a.dcm", b"a.dcm"),)]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no files"):
        folder(tmp_path)

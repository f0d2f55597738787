from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import cv2
import films
import gdcm
import numpy as np
import pytest
from openjpeg.utils import encode_array
from pydicom import Dataset, dcmread
from pydicom.pixels import get_encoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from wetread.radiograph.dicom import age_years, view
from wetread.radiograph.read import Radiograph, read

STORED = films.scene(bits=12)


def lut(first: int, entries: list[int], bits: int = 16) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = entries
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return item


def linear_window(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1 with an output from 0 to 1."""
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def close(film: Radiograph, expected: np.ndarray) -> None:
    """Compare with grey values from 0 to 1, up to rounding."""
    top = 2**film.bits - 1
    np.testing.assert_allclose(film.pixels / top, expected, rtol=0, atol=0.51 / top + 1e-9)


def test_metadata() -> None:
    film = read(
        films.dicom(
            STORED,
            PixelSpacing=[0.2, 0.3],
            StudyDate="20240131",
            StudyTime="070809.5",
            TimezoneOffsetFromUTC="+0200",
            PresentationIntentType="FOR PRESENTATION",
        )
    )
    assert (film.modality, film.body_part, film.view, film.sex, film.age_years) == ("CR", "CHEST", "PA", "F", 34.0)
    assert (film.patient, film.study, film.series, film.instance) == ("P1", "1.2.3.5", "1.2.3.6", "1.2.3.4")
    assert film.spacing_mm == (0.2, 0.3)
    assert film.acquired_at == "2024-01-31T07:08:09+02:00"
    assert film.presentation == "FOR PRESENTATION"
    assert (film.full_size, film.source) == (STORED.shape, "dicom")


def test_eight_bits_are_shown_as_they_are() -> None:
    stored = films.scene(bits=8) // 2
    film = read(films.dicom(stored))
    np.testing.assert_array_equal(film.pixels, stored)
    assert film.bits == 8


def test_deeper_data_without_window_use_their_range() -> None:
    film = read(films.dicom(STORED + 7))
    close(film, (STORED - 0.0) / 4095)
    assert film.bits == 16


def test_window() -> None:
    close(read(films.dicom(STORED, WindowCenter=1500, WindowWidth=1000)), linear_window(STORED, 1500, 1000))


def test_first_of_several_windows() -> None:
    film = read(films.dicom(STORED, WindowCenter=[1500, 2], WindowWidth=[1000, 3]))
    close(film, linear_window(STORED, 1500, 1000))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_functions_agree_with_pydicom(function: str) -> None:
    ds = films.dataset(STORED, WindowCenter=1500, WindowWidth=1000, VOILUTFunction=function)
    close(read(films.to_bytes(ds)), apply_voi_lut(STORED, ds) / 4095)


def test_rescale_comes_before_the_window() -> None:
    data = films.dicom(STORED, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3000, WindowWidth=4001)
    close(read(data), linear_window(STORED * 2.0 - 1000, 3000, 4001))


def test_rescale_and_window_agree_with_pydicom() -> None:
    ds = films.dataset(STORED, RescaleSlope=0.5, RescaleIntercept=10, WindowCenter=900, WindowWidth=700)
    shown = apply_voi_lut(apply_modality_lut(STORED, ds), ds)
    close(read(films.to_bytes(ds)), (shown - 10) / (4095 * 0.5))


def test_negative_slope_turns_dark_into_bright() -> None:
    film = read(films.dicom(STORED, RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=2048, WindowWidth=4096))
    close(film, linear_window(4095.0 - STORED, 2048, 4096))


def test_modality_table() -> None:
    entries = [(7 * i) % 4001 for i in range(4096)]
    ds = films.dataset(STORED, ModalityLUTSequence=[lut(0, entries)])
    ds.ModalityLUTSequence[0].ModalityLUTType = "US"
    shown = np.array(entries)[STORED].astype(float)
    close(read(films.to_bytes(ds)), (shown - shown.min()) / np.ptp(shown))


@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_voi_table_wins_over_the_window_and_precedes_inversion(polarity: str) -> None:
    entries = [int(4095 * (i / 1000) ** 2) for i in range(1001)]
    ds = films.dataset(
        STORED,
        VOILUTSequence=[lut(500, entries, 12)],
        WindowCenter=1,
        WindowWidth=2,
        PhotometricInterpretation=polarity,
    )
    expected = np.array(entries)[np.clip(STORED.astype(int) - 500, 0, 1000)] / 4095
    np.testing.assert_array_equal(apply_voi_lut(STORED, ds) / 4095, expected)  # pydicom says the same
    close(read(films.to_bytes(ds)), 1 - expected if polarity == "MONOCHROME1" else expected)


@pytest.mark.parametrize("shape", [None, "IDENTITY", "INVERSE"])
@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 900, "WindowWidth": 1200}])
def test_polarity(polarity: str, shape: str | None, window: dict[str, int]) -> None:
    extra = {"PresentationLUTShape": shape} if shape else {}
    film = read(films.dicom(STORED, PhotometricInterpretation=polarity, **extra, **window))
    upright = linear_window(STORED, 900, 1200) if window else STORED / 4095
    inverted = polarity == "MONOCHROME1" or shape == "INVERSE"  # both together invert once
    close(film, 1 - upright if inverted else upright)


@pytest.mark.parametrize(
    "window",
    [{"WindowCenter": 40, "WindowWidth": 0}, {"WindowWidth": 100}, {"WindowCenter": 40, "WindowWidth": -5},
     {"WindowCenter": 40, "WindowWidth": 40, "VOILUTFunction": "CURLY"}],
)  # fmt: skip
def test_a_window_that_makes_no_sense_counts_as_none(window: dict[str, Any]) -> None:
    close(read(films.dicom(STORED, **window)), STORED / 4095)


def test_a_slope_of_zero_counts_as_none() -> None:
    close(read(films.dicom(STORED, RescaleSlope=0, RescaleIntercept=5)), STORED / 4095)


def test_signed_values() -> None:
    signed = STORED.astype(np.int16) - 2000
    close(read(films.dicom(signed)), STORED / 4095)
    close(read(films.dicom(signed, WindowCenter=-100, WindowWidth=900)), linear_window(signed, -100, 900))


def test_padding_does_not_stretch_the_range() -> None:
    stored = STORED.copy()
    stored[stored < 1000] = 1000
    stored[:5] = 0
    film = read(films.dicom(stored, PixelPaddingValue=0))
    close(film, np.clip((stored - 1000.0) / (stored.max() - 1000), 0, 1))


def test_high_bit_is_believed_when_the_bits_below_are_empty() -> None:
    shifted = films.dicom((STORED << 4).astype(np.uint16), BitsStored=12, HighBit=15)
    close(read(shifted), STORED / 4095)
    lying = films.dicom(STORED, BitsStored=12, HighBit=15)
    close(read(lying), STORED / 4095)
    low = films.dicom(STORED, BitsStored=12, HighBit=7)
    close(read(low), STORED / 4095)


def test_bits_above_bits_stored_are_ignored() -> None:
    dirty = STORED | 0xA000  # e.g. an overlay
    close(read(films.dicom(dirty, BitsStored=12, HighBit=11)), STORED / 4095)


def test_big_endian_and_implicit_files() -> None:
    for implicit, little in ((True, True), (False, False)):
        ds = films.dataset(STORED)
        if not little:
            ds.PixelData = STORED.astype(">u2").tobytes()
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.2"
        close(read(films.to_bytes(ds)), STORED / 4095)


def colour(stored: np.ndarray, photometric: str) -> bytes:
    rgb = np.dstack([stored] * 3)
    if photometric == "RGB":
        return films.dicom(rgb)
    if photometric == "planes":
        return films.dicom(rgb, PixelData=np.moveaxis(rgb, 2, 0).tobytes(), PlanarConfiguration=1)
    if photometric == "YBR_FULL":
        grey = np.dstack([stored, np.full_like(stored, 128), np.full_like(stored, 128)])
        return films.dicom(grey, PhotometricInterpretation=photometric)
    table = np.arange(256, dtype=np.uint16) * 257
    tables = {}
    for name in ("Red", "Green", "Blue"):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tables[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    return films.dicom(stored, PhotometricInterpretation="PALETTE COLOR", **tables)


@pytest.mark.parametrize("photometric", ["RGB", "planes", "YBR_FULL", "PALETTE COLOR"])
def test_grey_content_in_colour_is_read(photometric: str) -> None:
    stored = films.scene(bits=8)
    film = read(colour(stored, photometric))
    top = 2**film.bits - 1
    assert np.abs(film.pixels / top - stored / 255).max() < 2 / 255


def encoded(stored: np.ndarray, syntax: Any) -> bytes:
    """Encode losslessly with another library than the one that decodes, where there are two."""
    if syntax == JPEG2000Lossless:
        return encode_array(stored, bits_stored=12)
    if syntax == JPEGLosslessSV1:
        return _gdcm(stored, gdcm.TransferSyntax.JPEGLosslessProcess14_1)
    return get_encoder(syntax).encode(films.dataset(stored), index=0)


def _gdcm(stored: np.ndarray, syntax: int) -> bytes:
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((stored.shape[1], stored.shape[0], 1))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, 0))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetByteStringValue(stored.tobytes())
    image.SetDataElement(element)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(image)
    image.thisown = False  # GDCM counts references and frees it; freed twice, it takes the process along
    assert change.Change()
    output = change.GetOutput()  # each object must outlive those that it lends
    element = output.GetDataElement()
    fragments = element.GetSequenceOfFragments()
    fragment = fragments.GetFragment(0)
    value = fragment.GetByteValue().GetBuffer()
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1, RLELossless])
def test_lossless_codecs_give_the_stored_values(syntax: Any) -> None:
    data = films.compressed(encoded(STORED, syntax), STORED, syntax, WindowCenter=2048, WindowWidth=4096)
    close(read(data), linear_window(STORED, 2048, 4096))


def test_jpeg_baseline_is_decoded_at_reduced_scale() -> None:
    stored = films.scene(800, 640, bits=8)
    data = films.compressed(films.picture(stored, "JPEG", quality=95), stored)
    whole = read(data)
    assert np.abs(whole.pixels.astype(int) - stored).mean() < 2
    film = read(data, reduce_to=200)
    assert film.pixels.shape == (400, 320)
    assert film.full_size == (800, 640)
    half = cv2.resize(stored, (320, 400), interpolation=cv2.INTER_AREA)
    assert np.abs(film.pixels.astype(int) - half).mean() < 2


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"ViewPosition": "PA"}, "PA"),
        ({"ViewPosition": "ap "}, "AP"),
        ({"ViewPosition": "LL"}, "LATERAL"),
        ({"ViewPosition": "LATERAL"}, "LATERAL"),
        ({"ViewPosition": "", "code": ("272479007", "")}, "PA"),
        ({"ViewPosition": None, "code": ("R-10206", "")}, "AP"),
        ({"ViewPosition": None, "code": ("399173006", "left lateral")}, "LATERAL"),
        ({"ViewPosition": None, "code": ("X", "postero-anterior")}, "PA"),
        ({"ViewPosition": None, "SeriesDescription": "view: PA"}, "PA"),
        ({"ViewPosition": None, "SeriesDescription": "Thorax lat."}, "LATERAL"),
        ({"ViewPosition": None, "SeriesDescription": "AP/LAT chest"}, None),
        ({"ViewPosition": None, "SeriesDescription": "PAIN, CAPTAIN"}, None),
        ({"ViewPosition": "RAO"}, None),
    ],
)
def test_view(elements: dict[str, Any], expected: str | None) -> None:
    elements = dict(elements)
    code = elements.pop("code", None)
    ds = films.dataset(STORED, **elements)
    if code:
        item = Dataset()
        item.CodeValue, item.CodeMeaning = code
        ds.ViewCodeSequence = [item]
    assert view(ds) == expected
    assert read(films.to_bytes(ds)).view == expected


@pytest.mark.filterwarnings("ignore:Invalid value for VR AS")
@pytest.mark.parametrize(
    ("age", "expected"),
    [("034Y", 34), ("006M", 0.5), ("014D", 14 / 365.25), ("010W", 10 / 52.18), ("62", 62), ("", None), ("ABC", None),
     ("000Y", None), ("180Y", None), ("-01Y", None), ("034y", 34)],
)  # fmt: skip
def test_age(age: str, expected: float | None) -> None:
    found = age_years(films.dataset(STORED, PatientAge=age))
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("born", "seen", "expected"),
    [
        ("20000101", "20300101", 30.0),
        ("20300101", "20000101", None),
        ("", "20300101", None),
        ("18000101", "20300101", None),
    ],
)
def test_age_from_dates(born: str, seen: str, expected: float | None) -> None:
    ds = films.dataset(STORED, PatientAge=None, PatientBirthDate=born, StudyDate=seen)
    assert age_years(ds) == (None if expected is None else pytest.approx(expected, abs=0.01))


def test_imager_spacing_stands_in_for_pixel_spacing() -> None:
    assert read(films.dicom(STORED, ImagerPixelSpacing=[0.1, 0.1])).spacing_mm == (0.1, 0.1)
    assert read(films.dicom(STORED, PixelSpacing=[0, 0], ImagerPixelSpacing=[0.1, 0.1])).spacing_mm == (0.1, 0.1)
    assert read(films.dicom(STORED)).spacing_mm is None


def test_phantom_manufacturer_is_recognised() -> None:
    assert read(films.dicom(STORED, Manufacturer="Wetread phantom")).source == "phantom"


def test_threads_leave_the_warning_filters_alone() -> None:
    data = films.dicom(STORED) + b"\0" * 3  # something to warn about
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [read(data) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


@pytest.mark.parametrize("name", ["RG1_J2KI", "RG1_JLSN", "RG2_RLE", "RG3_JPLL", "nih_dx", "rsna"])
def test_real_files_agree_with_pydicom(shared: Path, name: str) -> None:
    path = shared / f"data/dicom/{name}.dcm"
    ds = dcmread(path)
    stored = ds.pixel_array
    shown = apply_voi_lut(apply_modality_lut(stored, ds), ds) if "WindowWidth" in ds else stored
    expected = shown / (2**ds.BitsStored - 1)
    film = read(path)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        expected = 1 - expected
    worst = 3 / 255 if name == "rsna" else 1e-4  # two JPEG decoders may round differently
    assert np.abs(film.pixels / (2**film.bits - 1) - expected).max() < worst


def test_monochrome1_is_the_negative(shared: Path) -> None:
    positive, negative = (read(shared / f"data/dicom/{name}.dcm") for name in ("rsna", "rsna_mono1"))
    np.testing.assert_array_equal(negative.pixels, 255 - positive.pixels)
    assert positive.view == negative.view == "PA"


def test_public_copies_without_tags(shared: Path) -> None:
    film = read(shared / "data/dicom/nih_dx.dcm")
    assert (film.modality, film.view, film.body_part, film.age_years, film.sex) == ("DX", None, None, 81.0, "M")

"""Values and windows as a viewer gets them, against pydicom's own way from stored values to grey."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import films
import numpy as np
import pytest
from films import scene
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_voi_lut, apply_windowing

from wetread.errors import ReadError
from wetread.radiograph import presentation
from wetread.radiograph.presentation import Presentation, Tone
from wetread.radiograph.read import Limits

LIMITS = Limits()


def table(values: NDArray[Any], first: int = 0, bits: int = 16, signed: bool = False, **more: str) -> Dataset:
    """Return an item of a LUT sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [len(values) % 65536, first, bits])
    item.add_new("LUTData", "US", [int(value) for value in values])
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return item


def curve(count: int, bits: int = 16) -> NDArray[Any]:
    """Return a rising table that is nowhere straight."""
    return np.rint((2**bits - 1) * np.linspace(0, 1, count) ** 1.7).astype(np.int64)


def modality_table(count: int) -> Dataset:
    item = table(np.rint(4095 * np.linspace(0, 1, count) ** 0.6).astype(np.int64))
    item.ModalityLUTType = "US"
    return item


TWELVE = scene(bits=12)
SIXTEEN = scene(bits=16)
SIGNED = (scene(bits=12).astype(np.int32) - 1500).astype(np.int16)
WINDOW = {"WindowCenter": "1800", "WindowWidth": "1500"}
FILES: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
    "window": (TWELVE, WINDOW),
    "window, 16 bits": (SIXTEEN, {"WindowCenter": "30000", "WindowWidth": "21001"}),
    "two windows": (
        TWELVE,
        {
            "WindowCenter": ["2048", "900"],
            "WindowWidth": ["4096", "800"],
            "WindowCenterWidthExplanation": ["NORMAL", "LUNG"],
        },
    ),
    "exact window": (TWELVE, WINDOW | {"VOILUTFunction": "LINEAR_EXACT"}),
    "sigmoid window": (TWELVE, WINDOW | {"VOILUTFunction": "SIGMOID"}),
    "window of one value": (TWELVE, {"WindowCenter": "1800", "WindowWidth": "1"}),
    "rescaled": (TWELVE, WINDOW | {"RescaleSlope": "0.73", "RescaleIntercept": "-88.5", "WindowCenter": "1000"}),
    "falling": (TWELVE, WINDOW | {"RescaleSlope": "-1", "RescaleIntercept": "4095"}),
    "signed": (SIGNED, {"WindowCenter": "100", "WindowWidth": "1700"}),
    "signed, rescaled": (SIGNED, WINDOW | {"RescaleSlope": "2", "RescaleIntercept": "1000"}),
    "table": (TWELVE, {"VOILUTSequence": [table(curve(4096))]}),
    "short table": (TWELVE, {"VOILUTSequence": [table(curve(1000, 12), first=1200, bits=12, LUTExplanation="BONE")]}),
    "two tables and a window": (
        TWELVE,
        WINDOW | {"VOILUTSequence": [table(curve(4096)), table(curve(4096)[::-1], LUTExplanation="FALLING")]},
    ),
    "table of signed values": (SIGNED, {"VOILUTSequence": [table(curve(3000), first=-1200, signed=True)]}),
    "modality table": (TWELVE, {"ModalityLUTSequence": [modality_table(4096)], **WINDOW}),
    "modality and other table": (
        TWELVE,
        {"ModalityLUTSequence": [modality_table(4096)], "VOILUTSequence": [table(curve(4096))]},
    ),
    "neither": (TWELVE, {}),
    "neither, signed": (SIGNED, {}),
    "neither, 8 bits": (scene(bits=8) // 2 + 20, {}),
    "window, 8 bits": (scene(bits=8), {"WindowCenter": "100", "WindowWidth": "90"}),
}
POLARITIES = {
    "MONOCHROME2": {},
    "MONOCHROME1": {"PhotometricInterpretation": "MONOCHROME1"},
    "INVERSE": {"PresentationLUTShape": "INVERSE"},
    "MONOCHROME1, INVERSE": {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
}


def grey(found: Presentation, tone: Tone) -> NDArray[np.float64]:
    """Return what a viewer shows, 0 to 255: a rising ramp, or the tone's table."""
    if tone.table is not None:
        return tone.table[found.values] / 257.0
    shown: NDArray[np.float64] = 255 * (found.values.astype(float) - tone.lower) / (tone.upper - tone.lower)
    return np.clip(shown, 0, 255)


def expected(content: bytes, index: int) -> NDArray[np.float64]:
    """Return pydicom's grey, 0 to 255, by the VOI LUT or window `index`, with PS3.3's inversion last."""
    film = dcmread(io.BytesIO(content))
    stored = film.pixel_array
    inner = apply_modality_lut(stored, film)
    tables = len(film.get("VOILUTSequence") or ())
    if index < tables:
        shown = np.asarray(apply_voi(inner.astype(np.int64), film, index), float)
        top = 2.0 ** film.VOILUTSequence[index].LUTDescriptor[2] - 1
        shown = 255 * shown / top
    elif "WindowCenter" in film:
        plain = Dataset()  # pydicom's range of output follows the header of the file; an unsigned one has none below 0
        plain.PhotometricInterpretation, plain.PixelRepresentation, plain.BitsStored = "MONOCHROME2", 0, 16
        for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
            if keyword in film:
                plain[keyword] = film[keyword]
        shown = apply_windowing(inner, plain, index - tables) * 255 / 65535
    else:
        low, high = (0.0, 255.0) if film.BitsStored == 8 else (float(inner.min()), float(inner.max()))
        shown = 255 * (inner - low) / (high - low)
    inverse = film.PhotometricInterpretation == "MONOCHROME1" or film.get("PresentationLUTShape") == "INVERSE"
    return 255 - shown if inverse else shown


@pytest.mark.parametrize("polarity", POLARITIES)
@pytest.mark.parametrize("name", FILES)
def test_every_tone_gives_the_grey_that_pydicom_gives(name: str, polarity: str) -> None:
    stored, elements = FILES[name]
    content = films.dicom(stored, **elements | POLARITIES[polarity])
    found = presentation.of(content, "film", LIMITS)
    windows = np.size(elements.get("WindowCenter", ())) if "WindowCenter" in elements else 0
    assert len(found.tones) == max(1, len(elements.get("VOILUTSequence", ())) + windows)
    for index, tone in enumerate(found.tones):
        assert np.abs(grey(found, tone) - expected(content, index)).max() < 0.51, f"tone {index}"


@pytest.mark.parametrize("name", ["window", "rescaled", "falling", "signed, rescaled", "modality table"])
@pytest.mark.parametrize("polarity", POLARITIES)
def test_values_keep_the_names_that_the_file_gives_them(name: str, polarity: str) -> None:
    stored, elements = FILES[name]
    content = films.dicom(stored, **elements | POLARITIES[polarity])
    film, found = dcmread(io.BytesIO(content)), presentation.of(content, "film", LIMITS)
    named = found.values.astype(float) * found.slope + found.intercept
    assert np.allclose(named, apply_modality_lut(film.pixel_array, film), rtol=0, atol=1e-6)
    assert found.values.min() == 0
    assert len(np.unique(found.values)) == len(np.unique(named.round(6)))  # nothing is lost


def test_a_window_hides_no_value() -> None:
    narrow = presentation.of(films.dicom(TWELVE, WindowCenter="2000", WindowWidth="10"), "film", LIMITS)
    assert len(np.unique(narrow.values)) == len(np.unique(TWELVE))


def test_tones_have_the_senders_names() -> None:
    def names(name: str) -> list[str]:
        stored, elements = FILES[name]
        return [tone.name for tone in presentation.of(films.dicom(stored, **elements), "film", LIMITS).tones]

    assert names("two windows") == ["NORMAL", "LUNG"]
    assert names("two tables and a window") == ["", "FALLING", ""]


def test_a_broken_window_or_table_leaves_the_whole_range() -> None:
    broken = Dataset()
    broken.LUTExplanation = "nothing else"
    for elements in ({"WindowCenter": "100", "WindowWidth": "0"}, {"VOILUTSequence": [broken]}):
        (tone,) = presentation.of(films.dicom(TWELVE, **elements), "film", LIMITS).tones
        assert (tone.lower, tone.upper) == (0, int(TWELVE.max()) - int(TWELVE.min()))


def test_padding_does_not_stretch_the_whole_range() -> None:
    stored = TWELVE.clip(1000, 3000)
    stored[:4] = 0
    (tone,) = presentation.of(films.dicom(stored, PixelPaddingValue=0), "film", LIMITS).tones
    assert (tone.lower, tone.upper) == (1000, int(stored.max()))


@pytest.mark.parametrize(
    ("elements", "spacing", "kind"),
    [
        ({}, None, None),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, (0.2, 0.1), "detector"),
        ({"ImagerPixelSpacing": [0.2, 0.1], "PixelSpacing": [0.2, 0.1]}, (0.2, 0.1), "detector"),
        ({"ImagerPixelSpacing": [0.2, 0.1], "PixelSpacing": [0.18, 0.09]}, (0.18, 0.09), "calibrated"),
        ({"PixelSpacing": [0.2, 0.1], "PixelSpacingCalibrationType": "FIDUCIAL"}, (0.2, 0.1), "calibrated"),
        ({"PixelSpacing": [0.2, 0.1]}, (0.2, 0.1), "stated"),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.2, 0.1]}, (0.2, 0.1), "detector"),
        ({"PixelSpacing": [-1, 900]}, None, None),
    ],
)
def test_a_spacing_says_what_it_is_and_is_never_guessed(
    elements: dict[str, Any], spacing: tuple[float, float] | None, kind: str | None
) -> None:
    found = presentation.of(films.dicom(TWELVE, **elements), "film", LIMITS)
    assert (found.spacing_mm, found.spacing_kind) == (spacing, kind)


def test_sides_are_those_of_the_header_or_unknown() -> None:
    known = presentation.of(films.dicom(TWELVE, PatientOrientation=["L", "F"], ImageLaterality="U"), "film", LIMITS)
    assert (known.orientation, known.laterality, known.view) == (("L", "F"), "U", "PA")
    for odd in (["X", "F"], ["L"], ["L", "F", "H"]):
        assert presentation.of(films.dicom(TWELVE, PatientOrientation=odd), "film", LIMITS).orientation is None


def test_pictures_are_shown_as_they_are() -> None:
    picture = scene(bits=8)
    found = presentation.of(films.picture(picture, "PNG"), "picture", LIMITS)
    assert np.array_equal(found.values, picture)
    assert [(tone.lower, tone.upper) for tone in found.tones] == [(0, 255)]
    assert found.spacing_mm is None


@pytest.mark.parametrize("apart", [False, True])
def test_about_and_body_hold_it_all(apart: bool, tmp_path: Path) -> None:
    stored, elements = FILES["two tables and a window"]
    file = tmp_path / "film.dcm"
    file.write_bytes(films.dicom(stored, **elements))
    found = presentation.of(file.read_bytes(), "film", LIMITS)
    about, body = presentation.present(file, limits=Limits(seconds=30) if apart else LIMITS)
    content, entries = bytes(body), about["entries"]
    assert (about["rows"], about["columns"], about["bits"]) == (*stored.shape, 16)
    assert [tone.get("table") for tone in about["tones"]] == [0, 1, None]
    tables = np.frombuffer(content[: 4 * entries], "<u2").reshape(2, entries)
    falling = found.tones[1].table
    assert falling is not None
    assert np.array_equal(tables[1], falling)
    assert np.array_equal(np.frombuffer(content[4 * entries :], "<u2").reshape(stored.shape), found.values)


def test_hostile_bytes_are_refused_in_words() -> None:
    content = films.dicom(TWELVE)
    for broken in (b"", b"DICM", content[:200], content[:-100]):
        with pytest.raises(ReadError):
            presentation.of(broken, "film", LIMITS)
    wide = films.dicom(TWELVE, RescaleSlope="1e300", RescaleIntercept="1e300")
    assert presentation.of(wide, "film", LIMITS).values.shape == TWELVE.shape


def test_pydicom_and_the_first_tone_agree_on_the_default() -> None:
    for name in ("window", "table", "two tables and a window"):
        stored, elements = FILES[name]
        content = films.dicom(stored, **elements)
        film = dcmread(io.BytesIO(content))
        shown = apply_voi_lut(apply_modality_lut(film.pixel_array, film), film)
        found = presentation.of(content, "film", LIMITS)
        assert np.corrcoef(shown.ravel(), grey(found, found.tones[0]).ravel())[0, 1] > 0.99999

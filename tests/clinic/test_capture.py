"""The Secondary Capture: what its tags say, and that nobody can take it for the radiograph."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pydicom
import pytest
from ward import Ward, dicom, png

from wetread.clinic import capture, evidence, statement
from wetread.clinic.statement import Said, Statement

AMBER = (255, 176, 0)


def said(ward: Ward, content: bytes, name: str) -> Statement:
    got = ward.take(content, name)
    ward.work()
    return statement.load(ward.database, ward.archive, got.study)


def one(finding: str, *, flagged: bool, probability: float = 0.9) -> Said:
    return Said("names", "0" * 64, "1", "screen", finding, probability, 0.5, flagged, "likely", "i")


def test_its_tags_say_what_it_is(ward: Ward) -> None:
    about = said(ward, dicom(1, PatientName="Doe^Jane", PatientOrientation=["R", "F"]), "pneumothorax.dcm")
    [made] = capture.build(about, ward.database)
    buffer = BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    again = pydicom.dcmread(BytesIO(buffer.getvalue()))
    assert again.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert list(again.ImageType) == ["DERIVED", "SECONDARY"]
    assert (again.ConversionType, again.BurnedInAnnotation, again.Manufacturer) == ("WSD", "YES", "Wetread")
    assert (again.StudyInstanceUID, str(again.PatientName), again.PatientID) == ("1.2.2.1", "Doe^Jane", "P1")
    assert again.SeriesInstanceUID != "1.2.2.2"
    assert "NOT THE ORIGINAL" in again.SeriesDescription
    assert "research use only" in again.ImageComments
    assert "names 1" in again.DerivationDescription
    [source] = again.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == "1.2.2.3"
    assert not again.PatientOrientation  # the original may be mirrored; text and two panels have none
    assert again.pixel_array.shape[2] == 3
    second = BytesIO()
    capture.build(about, ward.database)[0].save_as(second, enforce_file_format=True)
    assert second.getvalue() == buffer.getvalue()


def test_one_for_each_image(ward: Ward) -> None:
    said(ward, dicom(1), "pneumothorax.dcm")
    about = said(ward, dicom(1, SOPInstanceUID="1.2.2.4"), "edema.dcm")
    made = capture.build(about, ward.database)
    assert [sc.InstanceNumber for sc in made] == [1, 2]
    assert len({sc.SOPInstanceUID for sc in made}) == 2
    assert len({sc.SeriesInstanceUID for sc in made}) == 1
    assert {sc.SourceImageSequence[0].ReferencedSOPInstanceUID for sc in made} == {"1.2.2.3", "1.2.2.4"}


def test_a_picture_has_none(ward: Ward) -> None:
    with pytest.raises(evidence.NotDicomError):
        capture.build(said(ward, png(1), "edema.png"), ward.database)


@pytest.mark.parametrize("shape", [(400, 300), (300, 500), (2000, 40), (40, 2000), (1, 1)])
def test_no_part_of_it_looks_like_the_radiograph_alone(shape: tuple[int, int]) -> None:
    """Bars above and below, a frame and two badges in a colour that no radiograph has, whatever its shape."""
    pixels = np.full(shape, 128, np.uint8)
    maps = np.zeros((1, 4, 4), np.float32)
    maps[0, 1, 1] = 1
    drawn = capture.draw(pixels, [one("Edema", flagged=True)], maps, (0.0, 0.0, 1.0, 1.0))
    amber = (drawn == AMBER).all(axis=2)
    assert amber[0].all()
    assert amber[-1].all()
    assert amber[2].all()
    framed = amber[60:-60]
    assert (framed.any(axis=0).sum()) > 8  # sides of both frames
    assert framed.any(axis=1).mean() > 0.3


def test_the_colour_is_where_the_map_is_and_only_on_the_overlay() -> None:
    pixels = np.full((400, 400), 128, np.uint8)
    maps = np.zeros((1, 4, 4), np.float32)
    maps[0, 0, 0] = 1  # upper left
    drawn = capture.draw(pixels, [one("Edema", flagged=True)], maps, (0.0, 0.0, 1.0, 1.0))
    colour = np.ptp(drawn.astype(int), axis=2) > 30
    colour &= ~(drawn == AMBER).all(axis=2)
    half = drawn.shape[1] // 2
    body = colour[120:560]
    assert not body[:, 40 : half - 20].any()
    overlay = body[:, half + 20 : -40]
    assert overlay[:200, :200].any()
    assert not overlay[250:, 400:].any()


@pytest.mark.parametrize(
    ("findings", "shown"),
    [
        ([("Edema", True, 0.6), ("Pneumothorax", True, 0.8)], "Pneumothorax"),
        ([("Edema", False, 0.6), ("Pneumothorax", False, 0.4)], None),
        ([("No Finding", True, 0.9), ("Support Devices", True, 0.99)], None),
    ],
)
def test_what_is_drawn_is_flagged_and_abnormal(findings: list[tuple[str, bool, float]], shown: str | None) -> None:
    said = [one(name, flagged=flagged, probability=p) for name, flagged, p in findings]
    chosen = capture.chosen(said)
    assert (chosen.finding if chosen else None) == shown
    maps = np.ones((len(said), 4, 4), np.float32)
    drawn = capture.draw(np.full((300, 300), 128, np.uint8), said, maps, (0.0, 0.0, 1.0, 1.0))
    grey = np.ptp(drawn[150:400].astype(int), axis=2) < 12
    assert grey.mean() > (0.9 if shown is None else 0.3)

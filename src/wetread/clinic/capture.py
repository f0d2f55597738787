"""A DICOM Secondary Capture that shows a radiologist where a model looked: original beside overlay, for any viewer.

It must not be taken for the radiograph, nor for a report: both panels are small, framed and badged in amber, which no
radiograph is; bars above and below say what it is, and so do the tags (derived, secondary, burned-in annotation, a new
series beside the original, which stays as it is). Nothing in the picture names the patient.
"""

from __future__ import annotations

from typing import Any

import cv2
import highdicom as hd
import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as dicom_codes
from pydicom.uid import ExplicitVRLittleEndian

from wetread import __version__
from wetread.clinic import evidence, identity, store
from wetread.clinic.statement import NOTICE, UNRESTRICTED, Said, Statement
from wetread.clinic.store import Store
from wetread.clinic.worker import unpack
from wetread.findings import HARMLESS
from wetread.infer import heatmap
from wetread.radiograph.dicom import quiet
from wetread.radiograph.read import Limits, read, to_8_bit

SERIES = 9002
TITLE = "AI triage overlay, NOT THE ORIGINAL"
_PANEL = 760  # most pixels of a panel's longer side
_GAP, _BAR, _LINE = 16, 44, 28
_AMBER, _BLACK, _WHITE = (255, 176, 0), (0, 0, 0), (235, 235, 235)
Canvas = NDArray[np.uint8]


def build(statement: Statement, database: Store, limits: Limits | None = None) -> list[hd.sc.SCImage]:
    """Build a Secondary Capture for each image and model that has a map; the same statement gives the same bytes.

    Parameters
    ----------
    statement : Statement
    database : Store
        Where the maps are.
    limits : Limits, optional
        For reading the images.

    Raises
    ------
    NotDicomError
        When the study has no DICOM image to refer to.
    """
    made: list[hd.sc.SCImage] = []
    references = {reference.picture.id: reference for reference in evidence.references(statement)}
    for row in _maps(database, statement):
        if (reference := references.get(row["instance"])) is None:
            continue
        said = [Said(
            model=row["model_name"], model_id=row["model"], version=row["version"], point=row["point"],
            image=row["instance"],
            **{n: f[n] for n in ("finding", "probability", "threshold", "flagged", "call")},
        ) for f in row["findings"]]  # fmt: skip
        radiograph = read(reference.picture.path, name="image", limits=limits or Limits())
        picture = draw(
            to_8_bit(radiograph.pixels),
            said,
            unpack(row["maps"]),
            tuple(row["box"]),
            research_only=statement.research_only,
        )
        made.append(_capture(statement, reference.header, said[0], picture, len(made) + 1))
    if not made:
        raise evidence.NotDicomError(f"study {statement.study}: no map of a DICOM image; there is nothing to show")
    return made


def _maps(database: Store, statement: Statement) -> list[dict[str, Any]]:
    table = store.image_result
    with database.read() as connection:
        rows = connection.execute(
            sa.select(table)
            .where(table.c.id.in_(list(statement.results)), table.c.maps.is_not(None), table.c.box.is_not(None))
            .order_by(table.c.instance, table.c.model)
        )
        return [dict(row) for row in rows.mappings()]


def chosen(said: list[Said]) -> Said | None:
    """Return the finding whose map is drawn: the most probable one that is flagged and abnormal, if any."""
    flagged = [s for s in said if s.flagged and s.finding not in HARMLESS]
    return max(flagged, key=lambda s: (s.probability, s.finding), default=None)


def draw(
    pixels: NDArray[np.uint8],
    said: list[Said],
    maps: NDArray[np.float32],
    box: tuple[float, float, float, float],
    *,
    research_only: bool = True,
) -> Canvas:
    """Draw original and overlay side by side.

    Parameters
    ----------
    pixels : uint8 array, shape [H, W]
        The radiograph, dense tissue bright.
    said : list of Said
        What one model said about it, in the order of `maps`.
    maps : float32 array, shape [F, h, w]
    box : (x, y, w, h)
        The part of the image that the maps cover, as fractions of it.
    research_only : bool
        Whether it says so.

    Returns
    -------
    uint8 array, shape [H', W', 3]
        RGB.
    """
    scale = _PANEL / max(pixels.shape)
    size = (max(64, round(pixels.shape[1] * scale)), max(64, round(pixels.shape[0] * scale)))
    small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    shown = chosen(said)
    plain = np.repeat(small[..., None], 3, axis=2)
    overlay = plain.copy()
    if shown is not None:
        values = maps[[s.finding for s in said].index(shown.finding)]
        overlay = heatmap.overlay(small, heatmap.to_image(values, box, (size[1], size[0])), 0.6)
    _badge(plain, "COPY")
    _badge(overlay, "AI")
    head = f"AI overlay: {_words(shown)}" if shown else "AI: no finding flagged"
    panels = [_panel(plain, "Copy of the original, reduced", _AMBER), _panel(overlay, head, _AMBER)]
    body = np.hstack([_space(panels[0].shape[0], _GAP), panels[0], _space(panels[0].shape[0], _GAP), panels[1]])
    body = np.hstack([body, _space(body.shape[0], _GAP)])
    width = max(body.shape[1], 1000)
    body = np.pad(body, ((_GAP, _GAP), (0, width - body.shape[1]), (0, 0)))
    bars = [
        _bar(width, f"AI TRIAGE RESULT - NOT THE ORIGINAL IMAGE{' - RESEARCH USE ONLY' if research_only else ''}"),
        body,
        _text(width, said, shown, research_only),
        _bar(width, "NOT FOR DIAGNOSIS. READ THE ORIGINAL IMAGES."),
    ]
    return np.ascontiguousarray(np.vstack(bars))


def _words(said: Said) -> str:
    return f"{said.finding} {said.call}"


def _panel(picture: Canvas, title: str, colour: tuple[int, int, int]) -> Canvas:
    """Frame a picture and put its title above it."""
    framed = np.pad(picture, ((_LINE + 8, 4), (4, 4), (0, 0)))
    cv2.rectangle(framed, (1, _LINE + 5), (framed.shape[1] - 2, framed.shape[0] - 2), colour, 3)
    _write(framed, title, (4, _LINE - 8), colour, limit=framed.shape[1] - 8)
    return framed


def _badge(picture: Canvas, word: str) -> None:
    """Mark both lower corners: whoever zooms into a panel still sees that it is not the radiograph."""
    height, width = picture.shape[:2]
    wide, high = 20 + 17 * len(word), 34
    for left in (0, width - wide):
        picture[height - high :, left : left + wide] = _AMBER
        _write(picture, word, (left + 9, height - 10), _BLACK, scale=0.8, limit=wide - 16)


def _bar(width: int, words: str) -> Canvas:
    bar = np.full((_BAR, width, 3), _AMBER, np.uint8)
    _write(bar, words, (_GAP, _BAR - 14), _BLACK, scale=0.8, limit=width - 2 * _GAP)
    return bar


def _text(width: int, said: list[Said], shown: Said | None, research_only: bool) -> Canvas:
    """Return the lines below the panels: legend, findings, model, what this is."""
    ranked = sorted(said, key=lambda s: (not s.flagged, -s.probability))
    flagged = [f"{s.finding} {s.call} ({s.probability:.2f})" for s in ranked if s.flagged]
    lines = [
        f"Flagged at operating point {said[0].point}: {', '.join(flagged) or 'nothing'}",
        f"Model {said[0].model} {said[0].version}, package {said[0].model_id[:12]}. Wetread {__version__}.",
        NOTICE if research_only else UNRESTRICTED,
    ]
    rows = (1 if shown else 0) + len(lines)
    area = np.zeros((rows * _LINE + _GAP, width, 3), np.uint8)
    y = _LINE - 6
    if shown is not None:
        ramp = (np.linspace(0, 1, 200, dtype=np.float32)[None, :]).repeat(14, axis=0)
        colours = heatmap.overlay(np.full((14, 200), 90, np.uint8), ramp, 1.0)
        words = f"Colour: evidence for {shown.finding}, weak"
        _write(area, words, (_GAP, y), _WHITE)
        (w, _), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_DUPLEX, 0.55, 1)
        left = min(_GAP + w + 10, width - 300)
        area[y - 13 : y + 1, left : left + 200] = colours
        _write(area, "strong (relative to this image)", (left + 210, y), _WHITE)
        y += _LINE
    for line in lines:
        _write(area, line, (_GAP, y), _WHITE, limit=width - 2 * _GAP)
        y += _LINE
    return area


def _write(
    canvas: Canvas,
    words: str,
    at: tuple[int, int],
    colour: tuple[int, int, int],
    *,
    scale: float = 0.55,
    limit: int | None = None,
) -> None:
    """Write a line of ASCII, made smaller when it is longer than `limit` pixels."""
    words = words.encode("ascii", "replace").decode()
    width = cv2.getTextSize(words, cv2.FONT_HERSHEY_DUPLEX, scale, 1)[0][0]
    if limit is not None and width > limit:
        scale *= limit / width
    cv2.putText(canvas, words, at, cv2.FONT_HERSHEY_DUPLEX, scale, colour, 1, cv2.LINE_AA)


def _space(height: int, width: int) -> Canvas:
    return np.zeros((height, width, 3), np.uint8)


def _capture(statement: Statement, header: Dataset, said: Said, picture: Canvas, number: int) -> hd.sc.SCImage:
    """Wrap a picture as a Secondary Capture of the same study, in a series of its own."""
    with quiet():
        made = hd.sc.SCImage(
            pixel_array=picture,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),
            study_instance_uid=header.StudyInstanceUID,
            series_instance_uid=identity.derive("sc series", statement.study, statement.cause),
            series_number=SERIES,
            sop_instance_uid=identity.derive("sc", statement.study, statement.cause, said.image, said.model_id),
            instance_number=number,
            manufacturer=evidence.MANUFACTURER,
            patient_id=header.PatientID,
            patient_name=header.PatientName,
            patient_birth_date=header.PatientBirthDate,
            patient_sex=header.PatientSex or None,
            accession_number=header.AccessionNumber,
            study_id=header.StudyID,
            study_date=header.StudyDate or None,
            study_time=header.StudyTime or None,
            referring_physician_name=header.ReferringPhysicianName,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            specific_character_set="ISO_IR 192",
            manufacturer_model_name="Wetread",
            software_versions=__version__,
            device_serial_number=__version__,
            series_description=TITLE + (", research use only" if statement.research_only else ""),
        )
    # Two panels and text have no patient orientation; the radiograph's own may well be a mirrored one.
    made["PatientOrientation"].value = None
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.ConversionType = "WSD"
    made.BurnedInAnnotation = "YES"
    made.RecognizableVisualFeatures = "NO"
    made.DerivationDescription = f"Heatmap of model {said.model} {said.version} ({said.model_id[:12]}) beside a copy"
    made.ImageComments = statement.notice + (" Told anew of a corrected patient." if statement.revision else "")
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    purpose = hd.sr.CodedConcept.from_code(dicom_codes.DCM.SourceImageForImageProcessingOperation)
    source.PurposeOfReferenceCodeSequence = [purpose]
    made.SourceImageSequence = [source]
    evidence.date_it(made, statement.told_at)
    return made

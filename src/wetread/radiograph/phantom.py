"""Chest phantoms, and phantoms as files: a collection in CheXpert's layout, and DICOM.

`make` gives one view of one phantom; how it comes about stands in `synthesis`.
"""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
)

from wetread.errors import WetreadError
from wetread.findings import CHEXPERT
from wetread.radiograph import labeller
from wetread.radiograph.read import View
from wetread.radiograph.synthesis import PREVALENCE, Phantom, make

__all__ = ["PREVALENCE", "Phantom", "dicom", "jpeg", "make", "patient_seed", "write_chexpert", "write_dicom"]

Job = TypeVar("Job")
Result = TypeVar("Result")

COLLECTION = "CheXpert-v1.0-small"
MARK = b"wetread-phantom"
MANUFACTURER = "Wetread phantom"
_UID_SPACE = uuid.UUID("b0f2f0c7-6f0e-5d2c-9a55-7c1f5b1d2a4e")


@dataclass(frozen=True)
class _View:
    """One image of the plan: which patient, which of the studies, which view, and where it goes."""

    patient: int
    study: int
    number: int
    view: View
    split: str

    @property
    def path(self) -> str:
        kind = "lateral" if self.view == "LATERAL" else "frontal"
        return f"{COLLECTION}/{self.split}/patient{self.patient:05d}/study{self.study}/view{self.number}_{kind}.jpg"


def patient_seed(seed: int, patient: int) -> int:
    """Return the seed of a patient's body in the collection drawn with `seed`."""
    return int(np.random.SeedSequence([seed, patient]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _plan(count: int, seed: int, start: int, valid: float, test: float, laterals: float) -> Iterator[_View]:
    patient, planned = start, 0
    while planned < count:
        patient += 1
        rng = np.random.default_rng([seed, patient])
        place = rng.random()
        split = "test" if place < test else "valid" if place < test + valid else "train"
        for study in range(1, 1 + (1 if rng.random() < 0.75 else int(rng.integers(2, 4)))):
            frontal: View = "PA" if rng.random() < 0.45 else "AP"
            both = rng.random() < laterals
            for number, view in enumerate((frontal, "LATERAL") if both else (frontal,), 1):
                if planned < count:
                    planned += 1
                    yield _View(patient, study, number, view, split)


def write_chexpert(
    folder: Path,
    count: int,
    seed: int,
    *,
    size: int = 320,
    label_noise: bool = False,
    workers: int = 1,
    start: int = 0,
    valid: float = 0.1,
    test: float = 0.0,
    laterals: float = 0.15,
    masks: bool = False,
    quality: int = 92,
    progress: Callable[[], object] | None = None,
) -> Path:
    """Write a collection of phantoms in CheXpert's layout.

    `CheXpert-v1.0-small/{train,valid,test}.csv` with the published columns, and JPEG images that carry the
    comment ``wetread-phantom``. Splits are by patient; a quarter of the patients has two or three studies.

    Parameters
    ----------
    folder : Path
        Made when absent; files of an earlier run are replaced.
    count : int
        Number of images.
    seed, start : int
        The same pair gives the same files, whatever `workers`. Patients are numbered from `start` + 1.
    size : int
        Side in pixels.
    label_noise : bool
        Labels of train as a report labeller would give them; those of valid and test are the truth.
    workers : int
        Processes; each computes on one thread.
    valid, test : float
        Share of the patients.
    laterals : float
        Share of the studies that have a lateral view too.
    masks : bool
        Also write ``<image>.<finding>.png`` (0 or 255) for each finding present, and ``<image>.lungs.png``.
    quality : int
        JPEG quality, 1 to 100.
    progress : callable, optional
        Called after each image.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    WetreadError
        For a number out of range.
    """
    _check(count=(count, 1, 10**7), workers=(workers, 1, 256), seed=(seed, 0, 2**63), start=(start, 0, 10**7))
    _check(
        size=(size, 64, 2048),
        quality=(quality, 1, 100),
        valid=(valid, 0, 1),
        test=(test, 0, 1 - valid),
        laterals=(laterals, 0, 1),
    )
    plan = list(_plan(count, seed, start, valid, test, laterals))
    jobs = [(folder, view, seed, size, label_noise and view.split == "train", masks, quality) for view in plan]
    rows = _each(_write_view, jobs, workers, progress)
    for split in ("train", "valid", "test"):
        chosen = [row for row, view in zip(rows, plan, strict=True) if view.split == split]
        if chosen:
            target = folder / COLLECTION / f"{split}.csv"
            with target.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerow(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT.findings])
                writer.writerows(chosen)
    return folder


def _check(**limits: tuple[float, float, float]) -> None:
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise WetreadError(f"phantom: {name} = {value}: must be {low} to {high}")


def _each(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, progress: Callable[[], object] | None
) -> list[Result]:
    """Return the results of `work` on each job, in order, from one or several processes."""
    results = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        for result in map(work, jobs) if workers == 1 else pool.map(work, jobs, chunksize=8):
            results.append(result)
            if progress:
                progress()
    return results


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _write_view(job: tuple[Path, _View, int, int, bool, bool, int]) -> list[str]:
    folder, view, seed, size, noisy, with_masks, quality = job
    phantom = make(patient_seed(seed, view.patient), view=view.view, size=size, study=view.study - 1)
    target = folder / view.path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(jpeg(phantom, quality))
    if with_masks:
        shown = {finding: mask for finding, mask in phantom.masks.items() if mask.any()}
        for name, mask in {**shown, "lungs": phantom.lungs}.items():
            _, png = cv2.imencode(".png", mask.astype(np.uint8) * 255)
            target.with_suffix(f".{name.lower().replace(' ', '_')}.png").write_bytes(png.tobytes())
    labels: dict[str, int | None] = dict(phantom.labels)
    if noisy:
        labels = labeller.report(phantom.labels, np.random.default_rng([seed, view.patient, view.study]))
    radiograph = phantom.radiograph
    return [
        view.path,
        "Female" if radiograph.sex == "F" else "Male",
        str(int(radiograph.age_years or 0)),
        "Lateral" if view.view == "LATERAL" else "Frontal",
        "" if view.view == "LATERAL" else view.view,
        *("" if labels[f] is None else f"{labels[f]:.1f}" for f in CHEXPERT.findings),
    ]


def jpeg(phantom: Phantom, quality: int = 92) -> bytes:
    """Return a phantom as JPEG with the comment ``wetread-phantom``, by which readers know it."""
    ok, encoded = cv2.imencode(".jpg", phantom.radiograph.pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise WetreadError("phantom: the JPEG encoder failed; check the installation of OpenCV")
    data = encoded.tobytes()
    return data[:2] + b"\xff\xfe" + (len(MARK) + 2).to_bytes(2, "big") + MARK + data[2:]


def _uid(*parts: object) -> UID:
    return UID(f"2.25.{uuid.uuid5(_UID_SPACE, '/'.join(map(str, parts))).int}")


def dicom(
    phantom: Phantom,
    *,
    patient: str | None = None,
    study: str = "1",
    number: int = 1,
    inverted: bool = False,
    acquired_at: str = "20260101120000",
) -> bytes:
    """Return a phantom as a DICOM file, 12 bits, explicit little endian.

    Parameters
    ----------
    phantom : Phantom
    patient : str, optional
        Patient ID; by default the phantom's.
    study : str
        Distinguishes a patient's studies; UIDs (2.25) follow from patient, study and number, and so repeat.
    number : int
        Instance number.
    inverted : bool
        Store as MONOCHROME1: the values inverted, so that a correct reader shows the same picture.
    acquired_at : str
        ``YYYYMMDDHHMMSS``.
    """
    radiograph = phantom.radiograph
    patient = patient or radiograph.patient or "phantom"
    portable = radiograph.view == "AP"
    storage = ComputedRadiographyImageStorage if portable else DigitalXRayImageStorageForPresentation
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = storage
    meta.MediaStorageSOPInstanceUID = _uid(patient, study, number, "instance")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("implementation")
    stream = io.BytesIO()
    ds = FileDataset(stream, {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", ""] if portable else ["DERIVED", "PRIMARY", ""]
    ds.SOPClassUID, ds.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID = _uid(patient, study, "study")
    ds.SeriesInstanceUID = _uid(patient, study, number, "series")
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = acquired_at[:8]
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = acquired_at[8:14]
    ds.AccessionNumber = uuid.uuid5(_UID_SPACE, f"{patient}/{study}").hex[:12].upper()
    ds.Modality = "CR" if portable else "DX"
    ds.Manufacturer = MANUFACTURER
    ds.ManufacturerModelName = "phantom"
    ds.InstitutionName = "Synthetic"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "Chest radiograph (phantom)"
    ds.SeriesDescription = f"Chest {radiograph.view}"
    ds.PatientName = f"Phantom^{patient}"
    ds.PatientID = patient
    ds.PatientSex = radiograph.sex
    age = int(radiograph.age_years or 0)
    ds.PatientBirthDate = f"{int(acquired_at[:4]) - age}0101"
    ds.PatientAge = f"{age:03d}Y"
    ds.BodyPartExamined = "CHEST"
    ds.ViewPosition = "LL" if radiograph.view == "LATERAL" else radiograph.view
    ds.PatientOrientation = ["P", "F"] if radiograph.view == "LATERAL" else ["L", "F"]
    chest = Dataset()
    chest.CodeValue, chest.CodingSchemeDesignator, chest.CodeMeaning = "51185008", "SCT", "Chest"
    ds.AnatomicRegionSequence, ds.AcquisitionContextSequence = [chest], []
    ds.ImageLaterality, ds.DetectorType, ds.LossyImageCompression = "U", "", "00"
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.BurnedInAnnotation = "NO"
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "1", number, number
    spacing = [f"{step:.5f}" for step in radiograph.spacing_mm or (1.0, 1.0)]
    ds.PixelSpacing = ds.ImagerPixelSpacing = spacing
    pixels = radiograph.pixels.astype(np.uint16) * 16 + 8
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    ds.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.WindowCenter, ds.WindowWidth = "2048", "4096"
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", 1 if inverted else -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.PixelData = ((4095 - pixels) if inverted else pixels).astype("<u2").tobytes()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


def write_dicom(
    folder: Path,
    count: int,
    seed: int,
    *,
    size: int = 320,
    start: int = 0,
    laterals: float = 0.15,
    workers: int = 1,
    progress: Callable[[], object] | None = None,
) -> list[Path]:
    """Write phantoms as DICOM files `patient00001_study1_view1.dcm` …; every fifth is MONOCHROME1.

    Parameters
    ----------
    folder : Path
        Made when absent.
    count : int
        Number of images.
    size, seed, start, laterals, workers, progress
        As for `write_chexpert`: the same patients as in that collection.

    Returns
    -------
    list of Path

    Raises
    ------
    WetreadError
        For a number out of range.
    """
    _check(count=(count, 1, 10**7), workers=(workers, 1, 256), seed=(seed, 0, 2**63), start=(start, 0, 10**7))
    _check(size=(size, 64, 2048), laterals=(laterals, 0, 1))
    folder.mkdir(parents=True, exist_ok=True)
    plan = enumerate(_plan(count, seed, start, 0.0, 0.0, laterals))
    jobs = [(folder, view, seed, size, index % 5 == 4) for index, view in plan]
    return _each(_write_dicom, jobs, workers, progress)


def _write_dicom(job: tuple[Path, _View, int, int, bool]) -> Path:
    folder, view, seed, size, inverted = job
    phantom = make(patient_seed(seed, view.patient), view=view.view, size=size, study=view.study - 1)
    path = folder / f"patient{view.patient:05d}_study{view.study}_view{view.number}.dcm"
    patient = f"P{seed}-{view.patient:05d}"
    path.write_bytes(dicom(phantom, patient=patient, study=str(view.study), number=view.number, inverted=inverted))
    return path

"""A synthetic department: who arrives, and when.

Arrivals are a Poisson process, as in the queueing model of a reading room; its rate may follow the
hour of the day. Patients are phantoms, or the files of a folder.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from wetread.errors import ConfigError
from wetread.findings import CHEXPERT
from wetread.radiograph import phantom
from wetread.radiograph.read import View
from wetread.radiograph.synthesis import draw_findings


@dataclass(frozen=True)
class Patient:
    """One arrival: the files of one study, as a modality would send them.

    Attributes
    ----------
    name : str
        What to call the arrival in messages.
    files : tuple of (str, bytes)
        File names and contents.
    study_uid : str
        Study Instance UID; empty where the files have none.
    abnormal : int or None
        What is true of the study, 1 or 0; None where it is not known.
    findings : dict of str to int
        The same of each finding; empty where only `abnormal` is known.
    boxes : dict of str to (x, y, width, height)
        Where findings are in the first file, as fractions.
    at : datetime or None
        When the patient comes, in the time of the simulation.
    phase : {"", "before", "after"}
        Before or after a drift.
    """

    name: str
    files: tuple[tuple[str, bytes], ...]
    study_uid: str = ""
    abnormal: int | None = None
    findings: Mapping[str, int] = field(default_factory=dict)
    boxes: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)
    at: datetime | None = None
    phase: str = ""


def gaps(
    per_minute: float, *, seed: int, hourly: Sequence[float] | None = None, start_hour: float = 0.0
) -> Iterator[float]:
    """Yield the waiting times of a Poisson process, in s.

    Parameters
    ----------
    per_minute : float
        Mean rate over a day, > 0.
    seed : int
        The same seed gives the same times.
    hourly : sequence of 24 floats, optional
        Relative rate in each hour of the day, >= 0 and not all 0. By default the rate is constant.
    start_hour : float
        Hour of the day at which the first wait begins, 0 to 24.

    Raises
    ------
    ConfigError
        For a rate that is not positive, or weights that are not 24 numbers >= 0.

    Notes
    -----
    Rates that change are drawn by thinning (Lewis and Shedler 1979): arrivals at the highest rate,
    each kept with the probability that its hour has.
    """
    if not (np.isfinite(per_minute) and per_minute > 0):
        raise ConfigError(f"rate = {per_minute}: arrivals per minute must be more than 0")
    share = np.asarray([1.0] * 24 if hourly is None else hourly, dtype=float)
    if share.shape != (24,) or not np.all(np.isfinite(share)) or share.min() < 0 or share.max() == 0:
        raise ConfigError(f"hourly: 24 weights >= 0 that are not all 0 are needed, got {share.tolist()}")
    keep = share / share.max()
    fastest = per_minute / 60 / share.mean() * share.max()
    return _thinned(np.random.default_rng(seed), fastest, keep, start_hour * 3600)


def weights(text: str) -> list[float]:
    """Read the weights of the hours from numbers separated by commas.

    Raises
    ------
    ConfigError
        When one is not a number.
    """
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise ConfigError(f"hourly = {text!r}: 24 numbers separated by commas are needed") from None


def _thinned(rng: np.random.Generator, fastest: float, keep: np.ndarray, now: float) -> Iterator[float]:
    last = now
    while True:
        now += rng.exponential(1 / fastest)
        if rng.random() < keep[int(now // 3600) % 24]:
            yield now - last
            last = now


def phantoms(
    seed: int, *, size: int = 512, laterals: float = 0.2, clock: Callable[[], datetime] = datetime.now
) -> Iterator[Patient]:
    """Yield phantom patients as DICOM studies, without end.

    Parameters
    ----------
    seed : int
        Not negative. The same seed gives the same patients in the same order.
    size : int
        Side of the radiographs in pixels, 64 to 2048.
    laterals : float
        Share of patients with a lateral view beside the frontal one, 0 to 1.
    clock : callable
        Tells when a radiograph is acquired; a patient seen at another time has another study.
    """
    for number in count(1):
        yield phantom_patient(seed, number, clock(), size=size, laterals=laterals)


def phantom_patient(
    seed: int,
    number: int,
    time: datetime,
    *,
    size: int = 512,
    laterals: float = 0.2,
    abnormal: bool | None = None,
) -> Patient:
    """Return one phantom patient with what is true of them.

    Parameters
    ----------
    seed, size, laterals
        As `phantoms`.
    number : int
        Which patient of the seed, from 1.
    time : datetime
        When the radiographs are acquired.
    abnormal : bool, optional
        Whether the study has an abnormality; by default as the patient was drawn. The body is the same.
    """
    rng = np.random.default_rng([seed, number])
    frontal: View = "PA" if rng.random() < 0.6 else "AP"
    views: tuple[View, ...] = (frontal, "LATERAL") if rng.random() < laterals else (frontal,)
    body, name = phantom.patient_seed(seed, number), f"P{seed}-{number:05d}"
    drawn = (examination for examination in count() if abnormal in (None, _ill(body, examination)))
    examination = next(drawn)
    made = [phantom.make(body, view=view, size=size, study=examination) for view in views]
    files = [
        phantom.dicom(one, patient=name, study=time.isoformat(), number=index, acquired_at=f"{time:%Y%m%d%H%M%S}")
        for index, one in enumerate(made, 1)
    ]
    labels = made[0].labels
    return Patient(
        name,
        tuple((f"{name}-{index}.dcm", file) for index, file in enumerate(files, 1)),
        study_uid=study_uid(files[0]),
        abnormal=1 - labels["No Finding"],
        findings=labels,
        boxes={finding: box(mask) for finding, mask in made[0].masks.items() if mask.any()},
        at=time,
    )


def _ill(body: int, examination: int) -> bool:
    return bool(draw_findings(body, examination) - CHEXPERT.neutral)


def study_uid(content: bytes) -> str:
    """Return the Study Instance UID of a DICOM file; empty for anything else."""
    try:
        header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=["StudyInstanceUID"])
        return str(header.get("StudyInstanceUID", ""))
    except Exception:  # pydicom raises nearly anything on a file that is none
        return ""


def box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Return x, y, width and height of what a mask [H, W] shows, as fractions of it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    x, y, w, h = left / width, top / height, (right - left) / width, (bottom - top) / height
    return round(float(x), 4), round(float(y), 4), round(float(w), 4), round(float(h), 4)


def folder(path: Path) -> Iterator[Patient]:
    """Yield one patient a file, in order of name, over and over.

    Raises
    ------
    ConfigError
        When the folder holds no file.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    if not files:
        raise ConfigError(f"{path}: no files in this folder; give one that holds radiographs")
    return _repeated(files)


def _repeated(files: list[Path]) -> Iterator[Patient]:
    while True:
        for file in files:
            yield Patient(file.name, ((file.name, file.read_bytes()),))

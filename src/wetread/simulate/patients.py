"""Who arrives, with what is true of them: phantoms, or the files of a folder with a table of the truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

import numpy as np

from wetread.errors import ConfigError
from wetread.evaluate import tables
from wetread.radiograph.synthesis import NORMAL
from wetread.simulate import truth
from wetread.simulate.department import Patient, folder, phantom_patient, study_uid
from wetread.simulate.shift import Shift

KEY = "file"


@dataclass(frozen=True)
class Arrival:
    """One arrival: its number from 1, when it is in the time of the simulation, and whether a drift is over."""

    number: int
    at: datetime
    phase: str = ""


class Source(Protocol):
    """Gives the patient of an arrival."""

    @property
    def prevalence(self) -> float:
        """Share of abnormal studies when nothing else is asked for."""

    def patient(self, arrival: Arrival, abnormal: bool | None) -> Patient:
        """Return the patient; `abnormal` asks for one with an abnormality, or without, None for the next one."""


@dataclass(frozen=True)
class Phantoms:
    """Phantom patients, without end; attributes as the parameters of `department.phantom_patient`."""

    seed: int
    size: int = 512
    laterals: float = 0.2
    prevalence: float = 1 - NORMAL

    def patient(self, arrival: Arrival, abnormal: bool | None) -> Patient:
        """Return the patient of a number."""
        return phantom_patient(
            self.seed, arrival.number, arrival.at, size=self.size, laterals=self.laterals, abnormal=abnormal
        )


class Folder:
    """The studies of a folder, each once, in order of name; DICOM files of one study together.

    Parameters
    ----------
    path : Path
    table : Path
        CSV: a column `file` (the path below the folder), and either columns of findings or one called `abnormal`; 1
        is present, 0 absent, anything else unknown.

    Raises
    ------
    ConfigError, DatasetError
        When the folder holds no file, the table is none, or a file is not in it.
    """

    def __init__(self, path: Path, table: Path) -> None:
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        files = [file for file in files if file.resolve() != table.resolve()]
        if not files:
            raise ConfigError(f"{path}: no files in this folder; give one that holds radiographs")
        rows = tables.read(table, KEY)
        studies: dict[str, list[Path]] = defaultdict(list)
        for file in files:
            name = file.relative_to(path).as_posix()
            if name not in rows.rows:
                raise ConfigError(f"{table}: no row whose {KEY} is {name!r}; every file of the folder needs one")
            studies[study_uid(file.read_bytes()) or name].append(file)
        self._waiting: dict[bool, list[tuple[str, list[Path]]]] = {True: [], False: []}
        self._truth: dict[str, tuple[int, dict[str, int]]] = {}
        self._order: list[str] = []
        for key, members in studies.items():
            found = [_labels(rows, member.relative_to(path).as_posix()) for member in members]
            ill = max(one for one, _ in found)
            merged = {finding: max(one.get(finding, 0) for _, one in found) for _, one in found for finding in one}
            self._truth[key] = ill, merged
            self._waiting[bool(ill)].append((key, members))
            self._order.append(key)
        self.count = len(studies)
        self.prevalence = len(self._waiting[True]) / self.count

    def patient(self, arrival: Arrival, abnormal: bool | None) -> Patient:
        """Return the next study; raise `ConfigError` when there is none of the kind left."""
        left = {key: ill for ill, waiting in self._waiting.items() for key, _ in waiting}
        if abnormal is None:
            first = next((key for key in self._order if key in left), None)
            abnormal = left[first] if first is not None else False
        if not self._waiting[abnormal]:
            kind = "abnormal" if abnormal else "normal"
            raise ConfigError(
                f"the folder has no {kind if left else 'further'} study left for arrival {arrival.number};"
                " send fewer with --count, or give more files"
            )
        key, members = self._waiting[abnormal].pop(0)
        ill, findings = self._truth[key]
        files = tuple((member.name, member.read_bytes()) for member in members)
        return Patient(members[0].name, files, study_uid(files[0][1]), ill, findings, at=arrival.at)


class Files:
    """The files of a folder one by one, over and over, of which nothing is known; see `department.folder`."""

    prevalence = 0.0

    def __init__(self, path: Path) -> None:
        self._patients = folder(path)

    def patient(self, arrival: Arrival, abnormal: bool | None) -> Patient:
        """Return the next file; raise `ConfigError` when an abnormal or a normal one is asked for."""
        if abnormal is not None:
            raise ConfigError("prevalence: what is true of the folder's files is not known; give --table")
        patient = next(self._patients)
        return replace(patient, study_uid=study_uid(patient.files[0][1]), at=arrival.at)


def _labels(rows: tables.Table, name: str) -> tuple[int, dict[str, int]]:
    cells = dict(zip(rows.columns, rows.rows[name], strict=True))
    known = {column: int(float(cell)) for column, cell in cells.items() if cell in ("0", "1", "0.0", "1.0")}
    if truth.ABNORMAL in known:
        return known.pop(truth.ABNORMAL), known
    if not known:
        raise ConfigError(
            f"{rows.path}: {KEY} {name}: says 0 or 1 in no column; a column {truth.ABNORMAL}, or of findings, is needed"
        )
    return truth.abnormal(known), known


def arriving(
    source: Source,
    arrivals: Iterable[Arrival],
    *,
    seed: int,
    prevalence: float | None = None,
    shifts: Sequence[Shift] = (),
) -> Iterator[Patient]:
    """Yield the patient of each arrival, shifted from the moment of a drift on.

    Parameters
    ----------
    source : Source
    arrivals : iterable of Arrival
        Their phase "after" says that the shifts are in force.
    seed : int
        Of who is ill, and of the noise of another scanner.
    prevalence : float, optional
        Share of abnormal studies before a drift; by default that of the source.
    shifts : sequence of Shift

    Raises
    ------
    ConfigError
        For a prevalence that is none; while it is taken from, for a file that cannot be shifted.
    """
    if prevalence is not None and not 0 <= prevalence <= 1:
        raise ConfigError(f"prevalence = {prevalence}: must be 0 to 1")
    chosen = prevalence is not None or any(shift.kind == "prevalence" for shift in shifts)
    for arrival in arrivals:
        share, over = source.prevalence if prevalence is None else prevalence, arrival.phase == "after"
        for shift in shifts if over else ():
            share = shift.prevalence(share)
        ill = bool(np.random.default_rng([seed, arrival.number, 5]).random() < share) if chosen else None
        patient = source.patient(arrival, ill)
        files = patient.files
        for shift in shifts if over else ():
            files = tuple((name, shift.file(content, name, seed=seed + arrival.number)) for name, content in files)
        yield replace(patient, files=files, phase=arrival.phase)

"""What is true of each study that was sent, one line of JSON each: what a simulation is scored by.

The first line says how time runs; each study has one line, written once the server has answered or was given up; a
last line says that all were sent. Whoever follows the file while it grows reads whole lines only; as long as somebody
writes it, it is locked, so that whoever follows a file without its last line knows whether more may come.
"""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from wetread.errors import ConfigError
from wetread.findings import HARMLESS
from wetread.simulate.department import Patient
from wetread.simulate.ways import Answer

ABNORMAL = "abnormal"
"""The question that every truth answers, also one that names no finding."""


@dataclass(frozen=True)
class Case:
    """One study that was sent.

    Attributes
    ----------
    study_uid : str
        Study Instance UID; empty for pictures, which have none before the server makes one.
    study : str
        The server's own id, where its answer named it.
    patient : str
        What the arrival is called.
    at : str
        When it came, in the time of the simulation; ISO 8601, UTC.
    sent_at : str
        When the server answered, in real time.
    phase : {"", "before", "after"}
        Before or after the drift; empty without one.
    outcome : str
        "accepted", or the reason of the failure.
    abnormal : int
        1 or 0.
    findings : dict of str to int
        1 or 0; empty when only `abnormal` is known.
    boxes : dict of str to list of float
        Where each finding is in the first image: x, y, width, height as fractions.
    """

    study_uid: str
    study: str
    patient: str
    at: str
    sent_at: str
    phase: str
    outcome: str
    abnormal: int
    findings: dict[str, int] = field(default_factory=dict)
    boxes: dict[str, list[float]] = field(default_factory=dict)


def abnormal(findings: Mapping[str, int]) -> int:
    """Return 1 when a finding is there that is an abnormality, else 0."""
    return int(any(value == 1 and finding not in HARMLESS for finding, value in findings.items()))


@dataclass(frozen=True)
class Clock:
    """How the time of a simulation runs: `speed` seconds in a real one, from `start` at the moment `began`."""

    start: datetime
    began: datetime
    speed: float = 1.0

    def at(self, moment: datetime) -> datetime:
        """Return the simulated time at a real moment."""
        return self.start + (moment - self.began) * self.speed

    def lasts(self, minutes: float) -> float:
        """Return how long so many simulated minutes take, in real seconds."""
        return minutes * 60 / self.speed

    def minutes(self, real: timedelta) -> float:
        """Return how many simulated minutes passed in a real time."""
        return real.total_seconds() * self.speed / 60


class Writer:
    """Writes a truth file, a whole line at a time; safe in several threads. Use it in a `with` statement."""

    def __init__(self, path: Path, clock: Clock, **more: Any) -> None:
        self._lock = threading.Lock()
        try:
            self._file = path.open("x", encoding="utf-8")
        except FileExistsError:
            raise ConfigError(f"{path}: exists already; name a new truth file, or remove it") from None
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(self._file, fcntl.LOCK_EX)
        told = {"start": clock.start.isoformat(), "began": clock.began.isoformat(), "speed": clock.speed}
        self._line({"simulation": told | more})

    def write(self, case: Case) -> None:
        """Add a study."""
        self._line(asdict(case))

    def end(self, **summary: Any) -> None:
        """Say that all was sent."""
        self._line({"ended": summary})

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _line(self, value: Mapping[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps(value) + "\n")
            self._file.flush()


@dataclass(frozen=True)
class Truth:
    """A truth file: how time runs, the studies in the order of the answers, and whether all were sent."""

    clock: Clock
    cases: Sequence[Case]
    ended: bool

    def by_key(self) -> dict[str, Case]:
        """Return the accepted studies by Study Instance UID and by the server's id."""
        taken = [case for case in self.cases if case.outcome == "accepted"]
        return {key: case for case in taken for key in (case.study_uid, case.study) if key}


def read(path: Path) -> Truth:
    """Read a truth file; one that is still being written as far as it goes.

    Raises
    ------
    ConfigError
        When it is none, naming the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a truth file ({error})") from None
    cases, clock, ended = [], None, False
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            value = json.loads(line)
            if "simulation" in value:
                told = value["simulation"]
                clock = Clock(
                    datetime.fromisoformat(told["start"]), datetime.fromisoformat(told["began"]), float(told["speed"])
                )
            elif "ended" in value:
                ended = True
            else:
                cases.append(Case(**value))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: line {number}: not of a truth file ({error}); see docs/simulate.md") from None
    if clock is None:
        raise ConfigError(f"{path}: no first line; `wetread simulate arrivals --truth` writes a truth file")
    return Truth(clock, cases, ended)


def written(path: Path) -> bool:
    """Return whether somebody is writing a truth file."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        return False


def case(patient: Patient, answer: Answer) -> Case:
    """Return the line of a patient whose files were answered so."""
    return Case(
        study_uid=patient.study_uid,
        study=answer.study,
        patient=patient.name,
        at=patient.at.isoformat() if patient.at else "",
        sent_at=datetime.now(UTC).isoformat(),
        phase=patient.phase,
        outcome=answer.outcome,
        abnormal=int(patient.abnormal or 0),
        findings=dict(patient.findings),
        boxes={finding: list(box) for finding, box in patient.boxes.items()},
    )

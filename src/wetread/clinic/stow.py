"""STOW-RS: what is said about each instance that was sent (PS3.18 10.5 and table I.2-2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from wetread.clinic import content, identity, store
from wetread.clinic.archive import TooLargeError
from wetread.clinic.dicomweb import Json
from wetread.clinic.intake import Intake
from wetread.errors import ClinicError, FullError
from wetread.radiograph.dicom import quiet

NO_ROOM = 0xA700
TOO_LARGE = 0xA701
MISMATCH = 0xA900  # the data set does not match: another study than the address says
CANNOT_UNDERSTAND = 0xC000
PROCESSING = 0x0110
COERCED = 0xB000  # an identifier was derived, or other bytes have it already and these are kept apart


@dataclass(frozen=True)
class Failure:
    """An instance that was not stored."""

    sop_class: str
    sop_uid: str
    reason: int


@dataclass(frozen=True)
class Success:
    """An instance that is stored; one that is kept apart has no series, as nobody can retrieve it."""

    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str
    warning: int = 0


@dataclass
class Result:
    """What became of one request."""

    stored: list[Success] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Return 200 when all is stored, 202 when not all or with a warning, else what the failures have in common."""
        if self.stored:
            return 202 if self.failed or any(one.warning for one in self.stored) else 200
        reasons = {one.reason for one in self.failed}
        return 507 if reasons == {NO_ROOM} else 413 if reasons == {TOO_LARGE} else 409

    def as_json(self, root: str) -> Json:
        """Return the data set of the answer; `root` is the address of ``/dicomweb``."""
        studies = {one.study_uid for one in self.stored}
        answer: Json = {}
        if self.failed:
            answer["00081198"] = _sequence(_reference(one) | _reason("00081197", one.reason) for one in self.failed)
        if self.stored:
            answer["00081199"] = _sequence(
                _reference(one)
                | ({"00081190": {"vr": "UR", "Value": [f"{root}{_place(one)}"]}} if one.series_uid else {})
                | (_reason("00081196", one.warning) if one.warning else {})
                for one in self.stored
            )
        if len(studies) == 1:
            answer["00081190"] = {"vr": "UR", "Value": [f"{root}/studies/{studies.pop()}"]}
        return dict(sorted(answer.items()))


def take(
    intake: Intake, path: Path, site: str, actor: str, study_uid: str | None, result: Result, *, corrects: bool = False
) -> None:
    """Take in one part of a request and add what became of it to `result`.

    Parameters
    ----------
    intake : Intake
    path : Path
        The part's bytes.
    site, actor : str
    study_uid : str or None
        The study that the address names; an instance of another one is refused.
    result : Result
    corrects : bool
        As `Intake.take` has it.
    """
    stored, failed = len(result.stored), len(result.failed)
    _take(intake, path, site, actor, study_uid, result, corrects)
    for one in result.stored[stored:]:
        warning = f"0x{one.warning:04X}" if one.warning else ""
        intake.tally.stow.labels("warning" if warning else "stored", warning).inc()
    for lost in result.failed[failed:]:
        intake.tally.stow.labels("failed", f"0x{lost.reason:04X}").inc()


def _take(
    intake: Intake, path: Path, site: str, actor: str, study_uid: str | None, result: Result, corrects: bool
) -> None:
    said = _uids(path)
    if said is None:
        result.failed.append(Failure("", "", CANNOT_UNDERSTAND))
        return
    sop_class, sop_uid, own_study = said
    if study_uid is not None and own_study != study_uid:
        result.failed.append(Failure(sop_class, sop_uid, MISMATCH))
        return
    try:
        with path.open("rb") as file:
            received = intake.take(file, "instance.dcm", site, actor=actor, corrects=corrects)
    except FullError:
        result.failed.append(Failure(sop_class, sop_uid, NO_ROOM))
        return
    except TooLargeError:
        result.failed.append(Failure(sop_class, sop_uid, TOO_LARGE))
        return
    except ClinicError:
        result.failed.append(Failure(sop_class, sop_uid, PROCESSING))
        return
    if received.quarantined:
        result.stored.append(Success(sop_class, sop_uid, own_study, "", COERCED))
        return
    instance, study, series = store.instance.c, store.study.c, store.series.c
    with intake.database.read() as connection:
        row = connection.execute(
            sa.select(instance.sop_uid, study.study_uid, series.series_uid)
            .join(store.study, study.id == instance.study)
            .join(store.series, series.id == instance.series)
            .where(instance.id == received.image)
        ).one()
    known = row.sop_uid == sop_uid and row.study_uid == own_study
    result.stored.append(Success(sop_class, row.sop_uid, row.study_uid, row.series_uid, 0 if known else COERCED))


def _uids(path: Path) -> tuple[str, str, str] | None:
    """Return class, instance and study UID as the file has them; None for what is no DICOM."""
    with path.open("rb") as file:
        if identity.sniff(file.read(4096)) != "dicom":
            return None
    try:
        with quiet():
            dataset, _ = content.header(path, ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"))
            found = [
                identity.clean(str(dataset.get(k) or ""), 64)
                for k in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID")
            ]
    except Exception:  # hostile bytes raise nearly anything
        return None
    return (found[0], found[1], found[2]) if any(found) else None


def _reference(one: Success | Failure) -> Json:
    found = (("00081150", one.sop_class), ("00081155", one.sop_uid))
    return {tag: {"vr": "UI", "Value": [uid]} for tag, uid in found if uid}


def _reason(tag: str, code: int) -> Json:
    return {tag: {"vr": "US", "Value": [code]}}


def _place(one: Success) -> str:
    return f"/studies/{one.study_uid}/series/{one.series_uid}/instances/{one.sop_uid}"


def _sequence(items: Any) -> Json:
    return {"vr": "SQ", "Value": list(items)}

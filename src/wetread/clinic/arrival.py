"""Where a file belongs that just came in: its study, its series, and what a known image's new header changes.

All of it happens inside the transaction that takes the file in.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from wetread.clinic import audit, claims, completion, corrections, experiments, identity, keys, sample, store
from wetread.clinic.archive import Stored
from wetread.clinic.corrections import NEW_IMAGE
from wetread.clinic.identity import Identity
from wetread.clinic.priority import ORDER, Priority

IN_FORCE = ("stored", "rejected", "document")  # of all files under one SOP Instance UID, one is
_PATIENT = ("patient_id", "patient_name", "birth_date", "sex")
_OF_ID = sa.select(store.study).where(store.study.c.id == sa.bindparam("key"))
_OF_UID = (
    sa.select(store.study)
    .where(store.study.c.site == sa.bindparam("site"), store.study.c.study_uid == sa.bindparam("study_uid"))
    .order_by(store.study.c.received_at)
)
_HEADER = ("age_years", "patient_issuer", "accession", "description", "acquired_at", "study_date", "study_time")


@dataclass(frozen=True)
class Place:
    """Where a file goes: what the key of its study is, what the sender asked for, and when."""

    site: str
    study_uid: str
    patient_id: str
    floor: Priority
    now: datetime
    complete_after: timedelta
    sample_share: float = 0.0  # of the random-audit sample


def named_study(connection: Connection, site: str, study: str) -> Row[Any] | None:
    """Return the study that the sender named by id; None when it named one by a label."""
    try:
        key = str(uuid.UUID(study))
    except ValueError:
        return None
    return corrections.follow(connection, claims.find(connection, site, key))


def of_id(connection: Connection, study: str) -> Row[Any]:
    """Return the row of a study."""
    return connection.execute(_OF_ID, {"key": study}).one()


def find_or_add(connection: Connection, said: Identity, place: Place, cautions: list[str]) -> Row[Any]:
    """Return the study of these UIDs and this patient.

    Two patients under one Study Instance UID stay two studies, each with a caution: to mix them up would be worse. Only
    what holds no picture goes to the study of its UID whatever patient it names.
    """
    table = store.study
    same_uid = connection.execute(_OF_UID, {"site": place.site, "study_uid": place.study_uid}).all()
    patient = corrections.known_as(connection, place.site, place.study_uid, place.patient_id)
    if patient != place.patient_id:
        cautions.append("an image came under a patient ID that was corrected since")
    if found := next((row for row in same_uid if row.patient_id == patient), None):
        return corrections.follow(connection, found)
    if said.document and same_uid:
        if not said.own:
            cautions.append(f"a document of the study names another patient ({said.document})")
        return corrections.follow(connection, same_uid[0])
    conflict = "another patient's images carry the same Study Instance UID"
    for row in same_uid:
        corrections.caution(connection, row.id, conflict)
    study = store.new_id()
    connection.execute(
        table.insert().values(
            id=study,
            site=place.site,
            study_uid=place.study_uid,
            patient_id=patient,
            patient_issuer=said.patient_issuer,
            patient_name=said.patient_name,
            birth_date=said.birth_date,
            sex=said.sex,
            age_years=said.age_years,
            accession=said.accession,
            description=said.description,
            title=said.description or said.body_part or "",
            acquired_at=said.acquired_at,
            study_date=said.study_date,
            study_time=said.study_time,
            views="",
            images=0,
            cautions=[conflict] if same_uid else [],
            received_at=place.now,
            analysis="received",
            reading="unread",
            floor=str(place.floor),
            priority=str(place.floor),
            reason="",
            overdue=False,
            overdue_at=place.now,
            rank=0,
            listed=not said.document,
        )
    )
    sample.draw(connection, place.site, study, patient, place.sample_share, place.now)
    experiments.assign(connection, place.site, study, place.now)
    added = of_id(connection, study)
    if not said.document:
        _duplicates(connection, added)
    return added


def _duplicates(connection: Connection, study: Row[Any]) -> None:
    """Flag a patient ID that stands for two people, and one person who has two patient IDs."""
    table = store.study.c
    elsewhere = sa.and_(table.site == study.site, table.id != study.id, table.merged_into.is_(None))
    found: list[tuple[Row[Any], str]] = []
    if study.patient_id:
        same_id = sa.select(store.study).where(elsewhere, table.patient_id == study.patient_id).limit(20)
        found += [
            (row, f"another study with this patient ID has another {', '.join(words)}")
            for row in connection.execute(same_id)
            if (words := differences(row, study, ("patient_name", "birth_date", "sex")))
        ]
    if study.patient_name and study.birth_date:
        same_name = sa.select(store.study).where(
            elsewhere,
            table.patient_name == study.patient_name,
            table.birth_date == study.birth_date,
            table.patient_id != study.patient_id,
        )
        again = "same name and birth date under another patient ID"
        found += [(row, again) for row in connection.execute(same_name.limit(20))]
    for text in dict.fromkeys(text for _, text in found):
        corrections.caution(connection, study.id, text)
    for other, text in found:
        if text not in other.cautions:
            corrections.caution(connection, other.id, text)


def differences(one: Any, other: Any, fields: Sequence[str]) -> list[str]:
    """Return in words the fields in which two differ, where both say something."""
    words = {"patient_name": "name", "birth_date": "birth date", "accession": "accession number"}
    return [
        words.get(field, field)
        for field in fields
        if getattr(one, field)
        and getattr(other, field)
        and str(getattr(one, field)).casefold() != str(getattr(other, field)).casefold()
    ]


def series(connection: Connection, study: str, said: Identity, study_uid: str) -> str:
    """Return the series that a file says it belongs to; made when it is new."""
    table = store.series
    series_uid = said.series_uid or identity.derive("series", study_uid)
    found = connection.execute(
        sa.select(table.c.id).where(table.c.study == study, table.c.series_uid == series_uid)
    ).scalar()
    if found is not None:
        return str(found)
    key = store.new_id()
    connection.execute(
        table.insert().values(
            id=key,
            study=study,
            series_uid=series_uid,
            modality=said.modality,
            body_part=said.body_part,
            description=said.series_description,
        )
    )
    return key


def add_to(
    connection: Connection, row: Row[Any], said: Identity, place: Place, cautions: Sequence[str], state: str
) -> None:
    """Let a study take over what its new file adds; one that was signed goes back to the reader for a new image."""
    values: dict[str, Any] = {}
    added = [*cautions]
    if not said.document:
        values |= {
            "floor": str(min(Priority(row.floor), place.floor, key=ORDER.__getitem__)),
            "sex": row.sex or said.sex,
            "age_years": row.age_years if row.age_years is not None else said.age_years,
            "title": row.title or said.description or said.body_part or "",
            "patient_issuer": row.patient_issuer or said.patient_issuer,
            "acquired_at": row.acquired_at or said.acquired_at,
            "study_date": row.study_date or said.study_date,
            "study_time": row.study_time or said.study_time,
        }
        if words := differences(row, said, ("patient_name", "birth_date", "sex", "accession")):
            added.append(f"an image of the study says another {', '.join(words)}")
        if not row.listed:  # so far there were only documents, and nothing to read
            values |= {"listed": True, "received_at": place.now}
    if state == "stored":
        values["complete_at"] = place.now + place.complete_after
        if row.reading == "signed":
            values |= {"reading": "unread", "received_at": place.now}
            added.append(NEW_IMAGE)
            store.emit(connection, "study.reopened", row.site, row.id)
    if values:
        connection.execute(store.study.update().where(store.study.c.id == row.id).values(keys.keyed(values)))
    for text in dict.fromkeys(added):
        corrections.caution(connection, row.id, text)


def correct_header(
    connection: Connection,
    current: Row[Any],
    stored: Stored,
    before: Identity,
    said: Identity,
    place: Place,
    digest: str,
    models: Collection[str],
    actor: str,
) -> str:
    """Put a new header around the pixels of a known image in force; return the study, another one after a merge.

    The image keeps its id and its results, until they are renewed; the file before becomes *superseded* and is kept.
    What the new header says otherwise than the old one goes to the study; what was corrected here meanwhile stays.
    """
    images, results, studies = store.instance, store.image_result, store.study
    row = of_id(connection, current.study)
    mine = images.c.id == current.id
    connection.execute(
        results.update().where(results.c.instance == current.id, results.c.basis.is_(None)).values(basis=current.sha256)
    )
    connection.execute(
        images.update()
        .where(mine)
        .values(
            sha256=stored.sha256,
            bytes=stored.size,
            view=said.view or current.view,
            series=series(connection, row.id, said, place.study_uid),
            sop_class=said.sop_class,
            device=said.device,
            station=said.station,
            pixels_sha256=digest,
        )
    )
    old = {column.name: current._mapping[column] for column in images.c} | {
        "id": store.new_id(),
        "state": "superseded",
        "reason": "a later header of the same image is in force",
        "pixels_sha256": digest,
    }
    connection.execute(images.insert().values(old))
    changed = {f: getattr(said, f) for f in (*_PATIENT, *_HEADER) if getattr(said, f) != getattr(before, f)}
    if rest := {name: value for name, value in changed.items() if name in _HEADER}:
        if "description" in rest:
            rest["title"] = said.description or said.body_part or ""
        connection.execute(studies.update().where(studies.c.id == row.id).values(keys.keyed(rest)))
    corrections.caution(connection, row.id, "the header of an image was corrected after it came")
    study = row.id
    if patient := {name: value for name, value in changed.items() if name in _PATIENT}:
        reason = "corrected header"
        now = of_id(connection, row.id)
        study = corrections.set_patient(connection, now, patient, actor, reason, issuer=said.patient_issuer)
    detail = {"image": current.id, "fields": sorted(changed), "before": current.sha256, "now": stored.sha256}
    store.emit(connection, "instance.corrected", row.site, study, {"image": current.id, "fields": sorted(changed)})
    audit.record(connection, row.site, actor, "image.corrected", study, detail)
    due = place.now + place.complete_after
    connection.execute(studies.update().where(studies.c.id == study).values(complete_at=due))
    completion.renew(connection, study, models, place.now)
    return str(study)

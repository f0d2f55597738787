"""Setting right what came in wrong: the patient of a study, two studies that are one, images that should not count.

By hand, with a reason, or by message: a rejection note (IHE IOCM) in `Intake`, ADT messages in `wetread.clinic.adt`.
Nothing is deleted: a rejected image leaves display and ranking and stays listed with its reason, a study that was
merged names the one that took its images, and every deed has an event and an audit row. An unread study that lost its
last image stays in the worklist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from wetread.clinic import audit, claims, completion, critical, deployments, identity, keys, store, triage
from wetread.clinic.content import REASONS, Note
from wetread.clinic.jobs import READ_ONLY, enqueue
from wetread.clinic.priority import ORDER, Priority
from wetread.clinic.store import Store
from wetread.clinic.triage import Policy
from wetread.errors import ClinicError, ConflictError, NotFoundError

BY_HAND = "BY_HAND"  # the code of a rejection that no note gave
NEW_IMAGE = "new image since review"
_PATIENT = {
    "patient_id": "patient ID",
    "patient_name": "patient name",
    "birth_date": "birth date",
    "sex": "sex",
}
_EXPIRED = "113039"  # says nothing about images that come later


class Corrections:
    """Corrections from outside, each in a transaction of its own.

    Parameters
    ----------
    database : Store
    policy : callable
        Takes a connection and a site, gives the ranking policy in force.
    models : callable
        Gives the ids of the models in service, which look again at what changed; without, that waits until the study
        is complete.
    """

    def __init__(
        self,
        database: Store,
        policy: Callable[[Connection, str], Policy],
        models: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self.database, self._policy, self._models = database, policy, models

    def patient(self, site: str, study: str, values: Mapping[str, str | None], reason: str, actor: str) -> str:
        """Correct a study's patient.

        Parameters
        ----------
        values : mapping
            Any of ``patient_id``, ``patient_name``, ``birth_date`` (YYYY-MM-DD) and ``sex`` (M, F, O).

        Returns
        -------
        str
            The study: another one when the new patient has a study of this UID, into which it was merged.

        Raises
        ------
        NotFoundError
            When the site has no such study.
        ClinicError
            For a bad value or no reason.
        """
        checked, said = check(values), _reason(reason)
        with self.database.write() as connection:
            row = _open(connection, site, study)
            key = set_patient(connection, row, checked, actor, said)
            self._refresh(connection, site, {study, key})
        return key

    def merge(self, site: str, study: str, into: str, reason: str, actor: str) -> None:
        """Let `into` take over the images, reviews and waiting time of `study`, which leaves the worklist.

        Raises
        ------
        NotFoundError
            When the site has no such studies.
        ConflictError
            When they are of two patients, or one and the same.
        """
        said = _reason(reason)
        with self.database.write() as connection:
            source, target = _open(connection, site, study), _open(connection, site, into)
            if source.id == target.id:
                raise ConflictError(f"study {study}: cannot be merged into itself; name two studies")
            if source.patient_id != target.patient_id:
                raise ConflictError(
                    f"study {study}: another patient's than study {into}; correct the patient first, then merge"
                )
            merge(connection, source, target, actor, said)
            self._refresh(connection, site, {source.id, target.id})

    def reject(self, site: str, image: str, reason: str, actor: str, code: str = BY_HAND) -> str:
        """Take an image out of display and ranking; return its study.

        Raises
        ------
        NotFoundError
            When the site has no such image.
        ConflictError
            When it is not displayed.
        """
        said = _reason(reason)
        if code not in (BY_HAND, *REASONS):
            raise ClinicError(f"code {code[:80]!r}: not one of {', '.join((BY_HAND, *REASONS))}")
        with self.database.write() as connection:
            row = _image(connection, site, image)
            if row.state != "stored":
                raise ConflictError(f"image {image}: is {row.state}; only an image that is displayed can be rejected")
            _remember(connection, site, row.sop_uid, _study_uid(connection, row.study), code, said)
            _withdraw(connection, row, code, said, actor)
            self._refresh(connection, site, {row.study})
        return str(row.study)

    def restore(self, site: str, image: str, actor: str, reason: str = "") -> str:
        """Take a rejection back; return the study.

        Raises
        ------
        NotFoundError
            When the site has no such image.
        ConflictError
            When it is not rejected.
        """
        with self.database.write() as connection:
            row = _image(connection, site, image)
            if row.state != "rejected":
                raise ConflictError(f"image {image}: is {row.state}, not rejected")
            table = store.rejection
            connection.execute(table.delete().where(table.c.site == site, table.c.sop_uid == row.sop_uid))
            connection.execute(
                store.instance.update().where(store.instance.c.id == image).values(state="stored", reason=None)
            )
            store.emit(connection, "instance.restored", site, row.study, {"image": image})
            detail = {"image": image, "reason": identity.clean(reason, 500)}
            audit.record(connection, site, actor, "image.restored", row.study, detail)
            reopen(connection, row.study)
            touch(connection, row.study)
            # One that came rejected was seen by nobody.
            floor = connection.execute(sa.select(store.study.c.floor).where(store.study.c.id == row.study)).scalar_one()
            rows = deployments.history(connection, site)
            enqueue(connection, image, self._models() or [READ_ONLY], Priority(floor), store.now(), rows)
            self._refresh(connection, site, {row.study})
        return str(row.study)

    def update(self, site: str, ids: Sequence[str], values: Mapping[str, str | None], actor: str) -> list[str]:
        """Set name, birth date and sex in every study of a patient (ADT^A08); return the studies that changed."""
        checked = {name: value for name, value in check(values).items() if name != "patient_id"}
        changed = []
        with self.database.write() as connection:
            for row in _of_patient(connection, site, ids):
                if any(getattr(row, name) != value for name, value in checked.items()):
                    set_patient(connection, row, checked, actor, "ADT message")
                    changed.append(str(row.id))
        return changed

    def merge_patients(
        self,
        site: str,
        old: Sequence[str],
        new: str,
        values: Mapping[str, str | None],
        actor: str,
        reason: str = "ADT message",
    ) -> list[str]:
        """Give every study of the patient `old`, present and future, to the patient `new` (ADT^A40)."""
        said, old = _reason(reason), [each for each in old if each and each != new]
        checked = check({**values, "patient_id": new})
        changed: set[str] = set()
        with self.database.write() as connection:
            store.ensure_site(connection, site)
            for each in old:
                remember_alias(connection, site, "", each, new)
            for row in _of_patient(connection, site, old):
                changed |= {str(row.id), set_patient(connection, row, checked, actor, said)}
            self._refresh(connection, site, changed)
            audit.record(connection, site, actor, "patient.merged", site, {"studies": len(changed), "reason": said})
        return sorted(changed)

    def _refresh(self, connection: Connection, site: str, studies: set[str]) -> None:
        policy, now = self._policy(connection, site), store.now()
        for study in sorted(studies):
            completion.renew(connection, study, self._models(), now)
            triage.refresh(connection, study, policy, now)


def check(values: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the values of a patient as they are kept.

    Raises
    ------
    ClinicError
        For an unknown field or a bad value.
    """
    checked: dict[str, str | None] = {}
    for name, value in values.items():
        text = identity.clean(value or "")
        if name not in _PATIENT:
            raise ClinicError(f"{name[:80]!r}: not one of {', '.join(_PATIENT)}")
        if name == "birth_date" and text:
            try:
                text = date.fromisoformat(text).isoformat()
            except ValueError:
                raise ClinicError("birth_date: not a date; write it as YYYY-MM-DD") from None
        if name == "sex" and text not in ("", "M", "F", "O"):
            raise ClinicError("sex: not one of M, F, O")
        checked[name] = text if name in ("patient_id", "patient_name") else text or None
    if not checked:
        raise ClinicError(f"nothing to correct: give one of {', '.join(_PATIENT)}")
    return checked


def set_patient(
    connection: Connection,
    row: Row[Any],
    values: Mapping[str, str | None],
    actor: str,
    reason: str,
    *,
    issuer: str | None = None,
) -> str:
    """Change a study's patient, within a transaction; return the study, see `Corrections.patient`.

    `issuer` is who gave another identifier, where that is known.
    """
    table = store.study
    changed = {name: value for name, value in values.items() if getattr(row, name) != value}
    if not changed:
        return str(row.id)
    words = ", ".join(_PATIENT[name] for name in changed)
    detail = {"fields": sorted(changed), "reason": reason}
    if "patient_id" in changed:
        new = str(changed["patient_id"] or "")
        remember_alias(connection, row.site, row.study_uid, row.patient_id, new)
        twin = connection.execute(
            sa.select(table).where(
                table.c.site == row.site, table.c.study_uid == row.study_uid, table.c.patient_id == new
            )
        ).first()
        if twin is not None and (target := follow(connection, twin)).id != row.id:
            audit.record(connection, row.site, actor, "study.corrected", row.id, detail)
            merge(connection, row, target, actor, reason)
            rest = {name: value for name, value in changed.items() if name != "patient_id"}
            return set_patient(connection, follow(connection, target), rest, actor, reason) if rest else str(target.id)
        if twin is not None:  # one that was merged into this: the two change identifiers
            aside = keys.keyed({"patient_id": f"merged {twin.id}"})
            connection.execute(table.update().where(table.c.id == twin.id).values(aside))
    born = changed.get("birth_date")
    if born is not None and (age := identity.age_between(born, row.acquired_at)) is not None:
        changed["age_years"] = age  # type: ignore[assignment]
    given = {"patient_issuer": issuer} if "patient_id" in changed else {}
    values = keys.keyed(changed) | given | _revised(table.c.revision + 1)
    connection.execute(table.update().where(table.c.id == row.id).values(values))
    caution(connection, row.id, f"corrected after arrival: {words}")
    store.emit(connection, "study.corrected", row.site, row.id, {"fields": sorted(changed)})
    audit.record(connection, row.site, actor, "study.corrected", row.id, detail)
    return str(row.id)


def merge(connection: Connection, source: Row[Any], target: Row[Any], actor: str, reason: str) -> None:
    """Let one study take over another, within a transaction."""
    images, series, studies = store.instance, store.series, store.study
    theirs = {
        row.series_uid: row.id
        for row in connection.execute(sa.select(series.c.id, series.c.series_uid).where(series.c.study == target.id))
    }
    for row in connection.execute(sa.select(series.c.id, series.c.series_uid).where(series.c.study == source.id)).all():
        if row.series_uid in theirs:
            move = images.update().where(images.c.series == row.id).values(series=theirs[row.series_uid])
            connection.execute(move)
            connection.execute(series.delete().where(series.c.id == row.id))
        else:
            connection.execute(series.update().where(series.c.id == row.id).values(study=target.id))
    moved = connection.execute(images.update().where(images.c.study == source.id).values(study=target.id)).rowcount
    drafts = sa.select(store.review.c.reader).where(store.review.c.study == target.id, store.review.c.state == "draft")
    connection.execute(
        store.review.update()
        .where(
            store.review.c.study == source.id,
            sa.or_(store.review.c.state != "draft", store.review.c.reader.not_in(drafts)),
        )
        .values(study=target.id)
    )
    owed, other = store.delivery, store.delivery.alias()
    same = sa.and_(*(other.c[name] == owed.c[name] for name in ("kind", "destination", "cause")))
    twin = sa.select(other.c.id).where(other.c.study == target.id, same).exists()
    connection.execute(  # what is still to be told is told of the study that says it now
        owed.update()
        .where(owed.c.study == source.id, owed.c.state.not_in(("sent", "nothing")), ~twin)
        .values(study=target.id)
    )
    critical.merged(connection, source.id, target.id, store.now())
    connection.execute(store.claim.delete().where(store.claim.c.study == source.id))
    connection.execute(
        studies.update().where(studies.c.merged_into == source.id).values(merged_into=target.id)
    )  # chains stay one step long
    connection.execute(
        studies.update()
        .where(studies.c.id == source.id)
        .values(listed=False, merged_into=target.id, overdue=False, complete_at=None)
    )
    values: dict[str, Any] = {"floor": str(min(Priority(source.floor), Priority(target.floor), key=ORDER.__getitem__))}
    if source.listed:
        values["listed"] = True
        if target.reading != "signed":
            values["received_at"] = min(source.received_at, target.received_at) if target.listed else source.received_at
        if not target.listed:
            values["reading"] = source.reading
    connection.execute(studies.update().where(studies.c.id == target.id).values(values))
    for text in source.cautions:
        caution(connection, target.id, text)
    caution(connection, target.id, "merged with another study")
    caution(connection, source.id, "merged into another study")
    if source.listed and source.images and source.reading != "signed":
        reopen(connection, target.id)
    both = studies.c.id.in_([source.id, target.id])
    newest = connection.execute(sa.select(sa.func.max(studies.c.revision)).where(both)).scalar_one()
    connection.execute(studies.update().where(studies.c.id == target.id).values(_revised(newest + 1)))
    touch(connection, target.id)
    store.emit(connection, "study.merged", source.site, source.id, {"into": target.id})
    store.emit(connection, "study.merged", source.site, target.id, {"from": source.id})
    detail = {"into": target.id, "images": moved, "reason": reason}
    audit.record(connection, source.site, actor, "study.merged", source.id, detail)


def _revised(number: Any) -> dict[str, Any]:
    """Return what says that a study is no longer told under the identity of before; see `superseding`."""
    return {"revision": number, "revised_at": store.now()}


def by_note(connection: Connection, site: str, note: Note, actor: str) -> set[str]:
    """Reject what a rejection note names, here or still to come, within a transaction; return the studies touched."""
    reason, touched = REASONS[note.code], set()
    named = _named(note)
    for row in _there(connection, site, named):
        _withdraw(connection, row, note.code, reason, actor)
        touched.add(str(row.study))
    if note.code != _EXPIRED:
        for sop_uid, study_uid in named.items():
            _remember(connection, site, sop_uid, study_uid, note.code, reason)
    return touched


def caution_named(connection: Connection, site: str, note: Note, text: str) -> None:
    """Add a caution to every study of which a rejection note that is not heeded names an image."""
    for study in sorted({str(row.study) for row in _there(connection, site, _named(note))}):
        caution(connection, study, text)


def _named(note: Note) -> dict[str, str]:
    """Return SOP Instance UID → Study Instance UID of the images that a note names, as they are kept here."""
    return {
        identity.uid("SOPInstanceUID", image): identity.uid("StudyInstanceUID", study) for study, image in note.images
    }


def _there(connection: Connection, site: str, named: Mapping[str, str]) -> list[Row[Any]]:
    """Return those of the named images that are displayed."""
    images, uids, found = store.instance, list(named), list[Row[Any]]()
    for start in range(0, len(uids), 500):
        some = uids[start : start + 500]
        wanted = images.c.site == site, images.c.sop_uid.in_(some), images.c.state == "stored"
        found += [
            row
            for row in connection.execute(sa.select(images).where(*wanted)).all()
            if belongs(connection, site, named[row.sop_uid], row.study)  # a note knows nothing of our merges
        ]
    return found


def rejected_before(connection: Connection, site: str, sop_uid: str, study_uid: str) -> str | None:
    """Return why an image that comes now was rejected already, None when it was not."""
    table = store.rejection.c
    wanted = sa.select(table.reason).where(table.site == site, table.sop_uid == sop_uid, table.study_uid == study_uid)
    return connection.execute(wanted).scalar()


def remember_alias(connection: Connection, site: str, study_uid: str, old: str, new: str) -> None:
    """Let images of the patient `old` find the studies of `new` from now on; without a study UID, in every study."""
    table, now = store.alias, store.now()
    here = sa.and_(table.c.site == site, table.c.study_uid == study_uid)
    connection.execute(table.delete().where(here, table.c.patient_id.in_([old, new])))
    connection.execute(table.update().where(here, table.c.now == old).values(now=new, at=now))
    connection.execute(table.insert().values(site=site, study_uid=study_uid, patient_id=old, now=new, at=now))


def known_as(connection: Connection, site: str, study_uid: str, patient_id: str) -> str:
    """Return the identifier under which a patient is known now."""
    table = store.alias.c
    found = connection.execute(
        sa.select(table.study_uid, table.patient_id, table.now).where(
            table.site == site, table.study_uid.in_((study_uid, "")), table.patient_id == patient_id
        )
    ).all()
    if not found:
        return patient_id
    if own := next((row.now for row in found if row.study_uid), None):
        return known_as(connection, site, "", own)
    return str(found[0].now)


def follow(connection: Connection, row: Row[Any]) -> Row[Any]:
    """Return the study that took a study's images, the study itself when none did, as it is now."""
    key = row.merged_into or row.id
    return connection.execute(sa.select(store.study).where(store.study.c.id == key)).one()


def belongs(connection: Connection, site: str, study_uid: str, study: str) -> bool:
    """Tell whether a Study Instance UID is that of a study, or of one that was merged into it."""
    table = store.study.c
    wanted = sa.select(table.id).where(
        table.site == site, table.study_uid == study_uid, sa.or_(table.id == study, table.merged_into == study)
    )
    return connection.execute(wanted).first() is not None


def caution(connection: Connection, study: str, text: str) -> None:
    """Add a caution that readers see; at most fifty are kept."""
    table = store.study
    cautions = connection.execute(sa.select(table.c.cautions).where(table.c.id == study)).scalar_one()
    if text not in cautions and len(cautions) < 50:
        connection.execute(table.update().where(table.c.id == study).values(cautions=[*cautions, text]))


def touch(connection: Connection, study: str) -> None:
    """Let the next sweep look at a study: what its results rest on may have changed, and so its set of images."""
    table = store.study
    earliest = sa.func.coalesce(table.c.complete_at, sa.bindparam("at", store.now(), store.Moment()))
    connection.execute(table.update().where(table.c.id == study).values(complete_at=earliest))


def _withdraw(connection: Connection, row: Row[Any], code: str, reason: str, actor: str) -> None:
    table = store.instance
    connection.execute(table.update().where(table.c.id == row.id).values(state="rejected", reason=reason))
    caution(
        connection, row.study, f"an image was {reason}" if reason.startswith("rejected") else "an image was rejected"
    )
    store.emit(connection, "instance.rejected", row.site, row.study, {"image": row.id, "code": code})
    audit.record(
        connection, row.site, actor, "image.rejected", row.study, {"image": row.id, "code": code, "reason": reason}
    )
    touch(connection, row.study)


def _remember(connection: Connection, site: str, sop_uid: str, study_uid: str, code: str, reason: str) -> None:
    table = store.rejection
    connection.execute(table.delete().where(table.c.site == site, table.c.sop_uid == sop_uid))
    connection.execute(
        table.insert().values(site=site, sop_uid=sop_uid, study_uid=study_uid, code=code, reason=reason, at=store.now())
    )


def reopen(connection: Connection, study: str) -> None:
    """Give a signed study back to the readers, since an image joined it."""
    table = store.study
    row = connection.execute(sa.select(table).where(table.c.id == study)).one()
    if row.reading == "signed":
        connection.execute(table.update().where(table.c.id == study).values(reading="unread", received_at=store.now()))
        caution(connection, study, NEW_IMAGE)
        store.emit(connection, "study.reopened", row.site, study)


def _reason(text: str) -> str:
    said = identity.clean(text, 500)
    if not said:
        raise ClinicError("reason: say in a few words why")
    return said


def _open(connection: Connection, site: str, study: str) -> Row[Any]:
    row = claims.find(connection, site, study)
    if row.merged_into:
        raise ConflictError(f"study {study}: was merged into study {row.merged_into}; correct that one")
    return row


def _image(connection: Connection, site: str, image: str) -> Row[Any]:
    table = store.instance
    row = connection.execute(sa.select(table).where(table.c.id == image, table.c.site == site)).first()
    if row is None:
        raise NotFoundError(f"image {image[:64]}: no such image at this site")
    return row


def _study_uid(connection: Connection, study: str) -> str:
    return str(connection.execute(sa.select(store.study.c.study_uid).where(store.study.c.id == study)).scalar_one())


def _of_patient(connection: Connection, site: str, ids: Sequence[str]) -> Sequence[Row[Any]]:
    table = store.study
    return connection.execute(
        sa.select(table).where(
            table.c.site == site, table.c.patient_id.in_([each for each in ids if each]), table.c.merged_into.is_(None)
        )
    ).all()

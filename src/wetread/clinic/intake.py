"""Taking in a file: first its bytes, then its row, then the word to the sender.

Whatever comes in becomes part of a study in the worklist, even bytes that are no radiograph: nothing that was
accepted disappears. The same bytes again are success and change nothing; other bytes under a known SOP
Instance UID are kept apart (quarantined) with a caution that the reader sees.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row
from sqlalchemy.exc import SQLAlchemyError

from wetread.clinic import audit, identity, priority, retention, store, triage
from wetread.clinic.archive import Archive, Stored
from wetread.clinic.identity import Identity
from wetread.clinic.priority import ORDER, Priority
from wetread.clinic.store import Store
from wetread.clinic.triage import Policy
from wetread.errors import ClinicError, NotFoundError

READ_ONLY = ""  # the model of a job that only checks whether an image can be read, when no model is served


@dataclass(frozen=True)
class Received:
    """What became of one file.

    Attributes
    ----------
    name : str
        As the sender called it.
    study, image : str
        Their ids.
    new : bool
        False when the same bytes were here already.
    quarantined : bool
        True when other bytes are known under the image's UID.
    format : str
        dicom, jpeg, png, webp, tiff, zip or other.
    """

    name: str
    study: str
    image: str
    new: bool
    quarantined: bool
    format: str


class Intake:
    """Takes files in, for every way by which they come.

    Parameters
    ----------
    database, archive
        Where rows and bytes go.
    policy : callable
        Takes a connection and a site, gives the ranking policy in force.
    models : callable
        Gives the ids of the models in service; each new image gets a job for each.
    max_bytes : int
        Largest file.
    wake : callable, optional
        Called after new work was committed.
    """

    def __init__(
        self,
        database: Store,
        archive: Archive,
        *,
        policy: Callable[[Connection, str], Policy],
        models: Callable[[], Sequence[str]],
        max_bytes: int,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.database, self.archive, self.max_bytes = database, archive, max_bytes
        self._policy, self._models, self._wake = policy, models, wake

    def take(
        self,
        source: BinaryIO,
        name: str,
        site: str,
        *,
        actor: str = "intake",
        study: str | None = None,
        requested: str | None = None,
    ) -> Received:
        """Take in one file; when this returns, it is safe.

        Parameters
        ----------
        source : binary file
            Read to its end.
        name : str
            What the sender calls it; shown, never used as a path.
        site : str
            Where it belongs.
        actor : str
            Who sends it; for the audit.
        study : str, optional
            Which study a file without a Study Instance UID belongs to: the id of a study, or any label of up to 64
            characters, which stands for one study of the site. By default it is a study of its own.
        requested : str, optional
            The priority that the sender asks for, see `priority.parse`; by default the file's own (0040,1003).

        Raises
        ------
        TooLargeError
            When the file is larger than `max_bytes`.
        NotFoundError
            When `study` is an id and there is no such study.
        ClinicError
            For a bad `study` or `requested`, or when the disk refuses.
        """
        floor = priority.parse(requested) if requested is not None else None
        if study is not None and not 0 < len(study) <= 64:
            raise ClinicError(f"study {study[:80]!r}: must be the id of a study or a label of 1 to 64 characters")
        stored = self.archive.put(source, limit=self.max_bytes)
        said = identity.of(self.archive.path(stored.sha256), stored.head)
        try:
            received = self._register(stored, said, name, site, actor, study, floor)
        except ClinicError:  # refused: its bytes must not come back as a file that was forgotten
            with suppress(ClinicError, SQLAlchemyError), self.database.write() as connection:
                retention.discard(connection, stored.sha256)
            raise
        if received.new:
            self._wake()
        return received

    def _register(
        self,
        stored: Stored,
        said: Identity,
        name: str,
        site: str,
        actor: str,
        study: str | None,
        floor: Priority | None,
    ) -> Received:
        cautions = list(said.cautions)
        if floor is None:
            try:
                floor = priority.parse(said.priority)
            except ClinicError:
                floor = Priority.ROUTINE
                cautions.append(f"requested priority {said.priority!r} is not known")
        if said.sop_uid is not None and said.study_uid is None:
            cautions.append("no Study Instance UID")
        with self.database.write() as connection:
            store.ensure_site(connection, site)
            target = _named_study(connection, site, study) if study and said.study_uid is None else None
            study_uid = target.study_uid if target else said.study_uid
            if study_uid is None:
                study_uid = identity.derive("study", site, study or stored.sha256)
            sop_uid = said.sop_uid or identity.derive("image", site, study_uid, stored.sha256)
            known = connection.execute(
                sa.select(store.instance).where(store.instance.c.site == site, store.instance.c.sop_uid == sop_uid)
            ).all()
            name = identity.clean(name) or "file"
            if same := next((row for row in known if row.sha256 == stored.sha256), None):
                return Received(name, same.study, same.id, False, same.state == "quarantined", same.format)
            retention.arrived(connection, self.archive, stored.sha256)
            patient = target.patient_id if target else said.patient_id
            now = store.now()
            values = {"site": site, "study_uid": study_uid, "patient_id": patient, "floor": floor, "now": now}
            row = _of_id(connection, known[0].study) if known else _find_or_add(connection, said, values)
            image = {
                "id": store.new_id(),
                "site": site,
                "study": row.id,
                "series": _series(connection, row.id, said, study_uid),
                "sop_uid": sop_uid,
                "sha256": stored.sha256,
                "bytes": stored.size,
                "format": said.format,
                "name": name,
                "view": said.view,
                "state": "quarantined" if known else "stored",
                "received_at": now,
            }
            connection.execute(store.instance.insert().values(image))
            if known:
                cautions.append("another image came under a UID of this study with other content and was quarantined")
                store.emit(connection, "instance.quarantined", site, row.id, {"image": image["id"]})
            else:
                _enqueue(connection, image["id"], self._models() or [READ_ONLY], floor, now)
                store.emit(connection, "instance.stored", site, row.id, {"image": image["id"]})
            audit.record(
                connection, site, actor, "image.received", row.id, {"image": image["id"], "state": image["state"]}
            )
            _update(connection, row, said, floor, cautions, now, reopen=not known)
            triage.refresh(connection, row.id, self._policy(connection, site), now)
        return Received(name, row.id, image["id"], True, bool(known), said.format)

    def adopt(self, site: str, older_than_s: float = 0.0) -> tuple[list[str], list[str]]:
        """Set right what a crash between disk and database left.

        Parameters
        ----------
        site : str
            To which the files go.
        older_than_s : float
            Leave alone what came since: another process may be about to make its row.

        Returns
        -------
        adopted : list of str
            Ids of the studies made for files that had no row.
        missing : list of str
            Ids of the images whose file is gone.
        """
        with self.database.read() as connection:
            rows = connection.execute(sa.select(store.instance.c.sha256, store.instance.c.id)).all()
            leaving = set(connection.execute(sa.select(store.removal.c.sha256)).scalars())
        known = {row.sha256 for row in rows} | leaving
        on_disk = set(self.archive.names())
        adopted = []
        for sha256 in sorted(on_disk - known):
            if older_than_s and self.archive.age_s(sha256) < older_than_s:
                continue
            path = self.archive.path(sha256)
            with path.open("rb") as file:
                head = file.read(4096)
            stored = Stored(sha256, path.stat().st_size, head)
            adopted.append(
                self._register(stored, identity.of(path, head), "recovered file", site, "recovery", None, None).study
            )
        return adopted, sorted(row.id for row in rows if row.sha256 not in on_disk)

    def backfill(self, others: Collection[str] = ()) -> int:
        """Queue what a change of models left undone, and drop what waits for a model no longer in service.

        Parameters
        ----------
        others : collection of str
            Ids of the models that other live processes serve.

        Returns
        -------
        int
            How many jobs were queued: one for each unread image and model that has not seen it.
        """
        models = list(self._models()) or [READ_ONLY]
        images, jobs = store.instance, store.job
        wanted = (
            sa.select(images.c.id)
            .join(store.study, store.study.c.id == images.c.study)
            .where(sa.text("study.reading != 'signed'"), images.c.state == "stored")
        )
        count, now = 0, store.now()
        with self.database.write() as connection:
            gone = sa.and_(sa.text("job.state != 'done'"), jobs.c.model.not_in([*models, *others]))
            left = sa.select(images.c.study).join(jobs, jobs.c.instance == images.c.id).where(gone)
            studies = {row.study: row.site for row in connection.execute(left.add_columns(images.c.site))}
            connection.execute(jobs.delete().where(gone))
            for model in models:
                done = sa.select(jobs.c.instance).where(jobs.c.model == model)
                for image in connection.execute(wanted.where(images.c.id.not_in(done))).scalars().all():
                    _enqueue(connection, image, [model], Priority.ROUTINE, now)
                    count += 1
            for study, site in studies.items():
                triage.refresh(connection, study, self._policy(connection, site), now)
        return count


def _named_study(connection: Connection, site: str, study: str) -> Row[Any] | None:
    """Return the study that the sender named by id; None when it named one by a label."""
    try:
        key = str(uuid.UUID(study))
    except ValueError:
        return None
    row = connection.execute(sa.select(store.study).where(store.study.c.id == key, store.study.c.site == site)).first()
    if row is None:
        raise NotFoundError(f"study {key}: no such study at this site")
    return row


def _of_id(connection: Connection, study: str) -> Row[Any]:
    return connection.execute(sa.select(store.study).where(store.study.c.id == study)).one()


def _find_or_add(connection: Connection, said: Identity, key: dict[str, Any]) -> Row[Any]:
    """Return the study of these UIDs and this patient.

    Two patients under one Study Instance UID stay two studies, each with a caution: to mix them up would be worse.
    """
    table = store.study
    same_uid = connection.execute(
        sa.select(table).where(table.c.site == key["site"], table.c.study_uid == key["study_uid"])
    ).all()
    if found := next((row for row in same_uid if row.patient_id == key["patient_id"]), None):
        return found
    conflict = "another patient's images carry the same Study Instance UID"
    for row in same_uid:
        if conflict not in row.cautions:
            connection.execute(table.update().where(table.c.id == row.id).values(cautions=[*row.cautions, conflict]))
    study = store.new_id()
    connection.execute(
        table.insert().values(
            id=study,
            site=key["site"],
            study_uid=key["study_uid"],
            patient_id=key["patient_id"],
            patient_name=said.patient_name,
            birth_date=said.birth_date,
            sex=said.sex,
            age_years=said.age_years,
            accession=said.accession,
            description=said.description,
            acquired_at=said.acquired_at,
            study_date=said.study_date,
            study_time=said.study_time,
            views="",
            images=0,
            cautions=[conflict] if same_uid else [],
            received_at=key["now"],
            analysis="received",
            reading="unread",
            floor=str(key["floor"]),
            priority=str(key["floor"]),
            reason="",
            overdue=False,
            overdue_at=key["now"],
            rank=0,
        )
    )
    return _of_id(connection, study)


def _series(connection: Connection, study: str, said: Identity, study_uid: str) -> str:
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


def _enqueue(connection: Connection, image: str, models: Sequence[str], floor: Priority, now: datetime) -> None:
    connection.execute(
        store.job.insert(),
        [
            {"instance": image, "model": model, "floor": ORDER[floor], "state": "queued", "tries": 0, "due_at": now}
            for model in models
        ],
    )


def _update(
    connection: Connection,
    row: Row[Any],
    said: Identity,
    floor: Priority,
    cautions: Sequence[str],
    now: datetime,
    *,
    reopen: bool,
) -> None:
    """Let a study take over what its new image adds; one that was signed goes back to the reader."""
    current = _of_id(connection, row.id)
    values: dict[str, Any] = {
        "floor": str(min(Priority(row.floor), floor, key=ORDER.__getitem__)),
        "sex": row.sex or said.sex,
        "age_years": row.age_years if row.age_years is not None else said.age_years,
        "acquired_at": row.acquired_at or said.acquired_at,
        "study_date": row.study_date or said.study_date,
        "study_time": row.study_time or said.study_time,
    }
    added = [*cautions]
    if row.reading == "signed" and reopen:
        values |= {"reading": "unread", "received_at": now}
        added.append("an image arrived after the study was signed")
        store.emit(connection, "study.reopened", row.site, row.id)
    values["cautions"] = list(dict.fromkeys([*current.cautions, *added]))
    connection.execute(store.study.update().where(store.study.c.id == row.id).values(values))

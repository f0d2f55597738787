"""Taking in a file: first its bytes, then its row, then the word to the sender.

Whatever comes in becomes part of a study, even bytes that are no radiograph: nothing that was accepted disappears. The
same bytes again are success and change nothing. Other bytes under a known SOP Instance UID are a corrected header
when the pixels are the same, and then in force; else they are kept apart (quarantined) with a caution that the reader
sees. Objects without a picture, and our own that come back, are kept beside the images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, BinaryIO

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row
from sqlalchemy.exc import SQLAlchemyError

from wetread.clinic import (
    arrival,
    audit,
    completion,
    content,
    corrections,
    deployments,
    identity,
    priority,
    retention,
    store,
    tracing,
    triage,
)
from wetread.clinic.archive import Archive, Stored
from wetread.clinic.arrival import IN_FORCE, Place
from wetread.clinic.identity import Identity
from wetread.clinic.jobs import READ_ONLY, enqueue
from wetread.clinic.priority import Priority
from wetread.clinic.store import Store
from wetread.clinic.tally import Tally
from wetread.clinic.triage import Policy
from wetread.errors import BusyError, ClinicError, NotFoundError


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
    corrected : bool
        True when it is a new header around the pixels of a known image, and now in force.
    """

    name: str
    study: str
    image: str
    new: bool
    quarantined: bool
    format: str
    corrected: bool = False


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
    complete_after_s : float
        How long nothing must come before a study is complete, in s.
    sample_share : callable
        Gives the share of a site that is drawn for the random-audit sample, see `sample`.
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
        complete_after_s: float = 60.0,
        sample_share: Callable[[str], float] = lambda site: 0.0,
    ) -> None:
        self.database, self.archive, self.max_bytes = database, archive, max_bytes
        self._policy, self._models, self._wake = policy, models, wake
        self._complete_after, self._share = timedelta(seconds=complete_after_s), sample_share
        self.tally = Tally()

    def take(
        self,
        source: BinaryIO,
        name: str,
        site: str,
        *,
        actor: str = "intake",
        corrects: bool = False,
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
        corrects : bool
            Whether its sender may change what is here already. If not, a rejection note or a corrected header is kept
            apart with a caution, and heeded when somebody who may sends it again.
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
        with tracing.span("intake") as span:
            received = self._take(source, name, site, actor, corrects, study, requested)
            span.say(study=received.study, image=received.image)
            return received

    def _take(
        self,
        source: BinaryIO,
        name: str,
        site: str,
        actor: str,
        corrects: bool,
        study: str | None,
        requested: str | None,
    ) -> Received:
        floor = priority.parse(requested) if requested is not None else None
        if study is not None and not 0 < len(study) <= 64:
            raise ClinicError(f"study {study[:80]!r}: must be the id of a study or a label of 1 to 64 characters")
        origin = {"site": site, "actor": actor, "corrects": corrects, "study": study, "requested": requested}
        stored = self.archive.put(source, limit=self.max_bytes, origin=json.dumps(origin))
        said = identity.of(self.archive.path(stored.sha256), stored.head)
        try:
            received = self._register(stored, said, name, site, actor, corrects, study, floor)
        except ClinicError:  # refused: its bytes must not come back as a file that was forgotten
            with suppress(ClinicError, SQLAlchemyError), self.database.write() as connection:
                retention.discard(connection, stored.sha256)
            raise
        self.archive.settle(stored.sha256)
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
        corrects: bool,
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
        rival = _Rival(self.archive, self.max_bytes)
        with self.database.read() as connection:  # what takes long is done before the writers' lock is held
            rival.meet(_in_force(connection, site, said.sop_uid), stored)
        with self.database.write() as connection:
            store.ensure_site(connection, site)
            target = arrival.named_study(connection, site, study) if study and said.study_uid is None else None
            study_uid = target.study_uid if target else said.study_uid
            if study_uid is None:
                study_uid = identity.derive("study", site, study or stored.sha256)
            sop_uid = said.sop_uid or identity.derive("image", site, study_uid, stored.sha256)
            known = connection.execute(_OF_UID, {"site": site, "sop_uid": sop_uid}).all()
            name = identity.clean(name) or "file"
            same = next((row for row in known if row.sha256 == stored.sha256), None)
            if same and corrects and same.reason in HELD:  # now from somebody who may: it begins anew
                connection.execute(store.instance.delete().where(store.instance.c.id == same.id))
            elif same:
                return Received(name, same.study, same.id, False, same.state == "quarantined", same.format)
            retention.arrived(connection, self.archive, stored.sha256)
            patient = target.patient_id if target else said.patient_id
            place = Place(site, study_uid, patient, floor, store.now(), self._complete_after, self._share(site))
            current = next((row for row in known if row.state in IN_FORCE), None)
            rival.meet(current, stored)
            if current is not None and rival.same_data:
                self._copy(connection, current, stored, name)
                return Received(name, current.study, current.id, False, False, said.format)
            digest = rival.same_picture(current)
            header = current is not None and corrections.belongs(connection, site, study_uid, current.study) and digest
            if current is not None and header and corrects:
                key = arrival.correct_header(
                    connection, current, stored, rival.before, said, place, header, self._models(), actor
                )
                policy = self._policy(connection, site)
                for each in dict.fromkeys((key, current.study)):
                    triage.refresh(connection, each, policy, place.now)
                return Received(name, key, current.id, True, False, said.format, True)
            if current is not None:
                row = arrival.of_id(connection, current.study)
            else:
                row = target or arrival.find_or_add(connection, said, place, cautions)
            state, reason = _state(connection, place, sop_uid, said, current)
            if not corrects and header and state == "quarantined":
                reason = HELD_HEADER
            if not corrects and said.rejects and state == "document":
                state, reason = "quarantined", HELD_NOTE
            image = {
                "id": store.new_id(),
                "site": site,
                "study": row.id,
                "series": arrival.series(connection, row.id, said, study_uid),
                "sop_uid": sop_uid,
                "sha256": stored.sha256,
                "bytes": stored.size,
                "format": said.format,
                "name": name,
                "view": said.view,
                "state": state,
                "reason": reason,
                "sop_class": said.sop_class,
                "received_at": place.now,
                "device": said.device,
                "station": said.station,
                "source": actor[:64],
            }
            connection.execute(store.instance.insert(), image)
            if state == "quarantined":
                cautions.append(HELD.get(str(reason), _OTHER))
            policy = self._policy(connection, site)
            if state == "stored":
                rows = policy.deployments(connection, site)
                deployments.assign(connection, rows, row.id, site, place.now)
                enqueue(connection, image["id"], self._models() or [READ_ONLY], floor, place.now, rows)
            why = {"reason": reason} if reason in HELD else {}
            store.emit(connection, _EVENTS.get(state, "instance.stored"), site, row.id, {"image": image["id"], **why})
            detail = {"image": image["id"], "state": state, **why}
            audit.record(connection, site, actor, "image.received", row.id, detail)
            arrival.add_to(connection, row, said, place, cautions, state)
            touched = set[str]()
            if said.rejects and reason == HELD_NOTE:
                corrections.caution_named(connection, site, said.rejects, HELD[HELD_NOTE])
            elif said.rejects and state == "document":
                touched = corrections.by_note(connection, site, said.rejects, actor)
            for each in sorted({row.id, *touched}):
                if each in touched:
                    completion.renew(connection, each, self._models(), place.now)
                triage.refresh(connection, each, policy, place.now)
        return Received(name, row.id, image["id"], True, state == "quarantined", said.format)

    def _copy(self, connection: Connection, current: Row[Any], stored: Stored, name: str) -> None:
        """Keep the bytes of a data set that is known under another file meta header: it came by another way."""
        values = {column.name: current._mapping[column] for column in store.instance.c}
        values |= {"id": store.new_id(), "state": "copy", "reason": "the same data set with another file meta header"}
        values |= {"sha256": stored.sha256, "bytes": stored.size, "name": name, "received_at": store.now()}
        connection.execute(store.instance.insert().values(values))

    def adopt(self, site: str, older_than_s: float = 0.0) -> tuple[list[str], list[str], list[str]]:
        """Set right what a crash between disk and database left.

        Each file goes where it was sent to: its note in the archive says so.

        Parameters
        ----------
        site : str
            To which files go that have no note.
        older_than_s : float
            Leave alone what came since: another process may be about to make its row.

        Returns
        -------
        adopted : list of str
            Ids of the studies made for files that had no row.
        missing : list of str
            Ids of the images whose file is gone.
        unreadable : list of str
            Files without a row that could not be taken in, each with the reason; they stay for the next time.
        """
        with self.database.read() as connection:
            rows = connection.execute(sa.select(store.instance.c.sha256, store.instance.c.id)).all()
            leaving = set(connection.execute(sa.select(store.removal.c.sha256)).scalars())
        known = {row.sha256 for row in rows} | leaving
        on_disk = set(self.archive.names())
        adopted, unreadable = [], []
        for sha256 in sorted(on_disk - known):
            try:
                if not older_than_s or self.archive.age_s(sha256) >= older_than_s:
                    adopted.append(self._adopt(sha256, site))
            except (OSError, ClinicError, BusyError) as error:  # of this file; the others must not wait for it
                unreadable.append(f"{sha256}: {error}")
        for sha256 in self.archive.noted():
            if sha256 in known:  # the crash came after its row
                self.archive.settle(sha256)
        return adopted, sorted(row.id for row in rows if row.sha256 not in on_disk), unreadable

    def _adopt(self, sha256: str, site: str) -> str:
        """Make the row of a file that has none; return its study."""
        path, said = self.archive.path(sha256), self.archive.origin(sha256)
        note = {"site": site, "actor": "recovery", **(json.loads(said) if said else {})}
        with path.open("rb") as file:
            head = file.read(4096)
        stored, found = Stored(sha256, path.stat().st_size, head), identity.of(path, head)
        floor = priority.parse(note["requested"]) if note.get("requested") else None
        to = "recovered file", note["site"], note["actor"], bool(note.get("corrects"))
        try:
            received = self._register(stored, found, *to, note.get("study"), floor)
        except NotFoundError:  # the study that it was meant for is gone: then it is one of its own
            received = self._register(stored, found, *to, None, floor)
        self.archive.settle(sha256)
        return received.study

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
            deployed = deployments.history(connection)
            # Whoever is slower to load a package than another process must not drop its jobs.
            kept = {row.model for row in deployed if row.until is None and row.actor != deployments.SETTINGS}
            gone = sa.and_(sa.text("job.state != 'done'"), jobs.c.model.not_in([*models, *others, *kept]))
            left = sa.select(images.c.study).join(jobs, jobs.c.instance == images.c.id).where(gone)
            studies = {row.study: row.site for row in connection.execute(left.add_columns(images.c.site))}
            connection.execute(jobs.delete().where(gone))
            sites = connection.execute(sa.select(store.site.c.name)).scalars().all() if deployed else []
            for model in models:
                done = sa.select(jobs.c.instance).where(jobs.c.model == model)
                mine = wanted.where(images.c.id.not_in(done), _of(deployments.wanted(deployed, model, sites)))
                for image in connection.execute(mine).scalars().all():
                    enqueue(connection, image, [model], Priority.ROUTINE, now, deployed)
                    count += 1
            policies = {site: self._policy(connection, site) for site in set(studies.values())}
            for study, site in studies.items():
                triage.refresh(connection, study, policies[site], now)
        return count


_OF_UID = sa.select(store.instance).where(
    store.instance.c.site == sa.bindparam("site"), store.instance.c.sop_uid == sa.bindparam("sop_uid")
)


def _of(sites: Mapping[str, datetime | None] | None) -> sa.ColumnElement[bool]:
    """Return the condition for images of some sites, each from a moment on; None stands for all images."""
    if sites is None:
        return sa.true()
    images, always = store.instance.c, [site for site, since in sites.items() if since is None]
    lately = [sa.and_(images.site == site, images.received_at >= at) for site, at in sites.items() if at is not None]
    return sa.or_(images.site.in_(always), *lately)


HELD_NOTE = "a rejection note whose sender may not correct"
HELD_HEADER = "a corrected header whose sender may not correct"
# Why a file was kept apart that would change what is here → the caution that readers see.
HELD = {
    HELD_NOTE: "a rejection note came whose sender may not correct; it was kept apart, and nothing was rejected",
    HELD_HEADER: "a corrected header came whose sender may not correct; it was kept apart, and nothing was changed",
}
_OTHER = "another image came under a UID of this study with other content and was quarantined"
_EVENTS = {
    "quarantined": "instance.quarantined",
    "document": "instance.document",
    "rejected": "instance.rejected",
}


def _state(
    connection: Connection, place: Place, sop_uid: str, said: Identity, current: Row[Any] | None
) -> tuple[str, str | None]:
    """Return what a new file is to its study, and why it is not shown."""
    if said.own:
        return "document", said.document
    if current is not None:
        return "quarantined", "other content under the identifier of a known image"
    if said.document:
        return "document", said.document
    if why := corrections.rejected_before(connection, place.site, sop_uid, place.study_uid):
        return "rejected", why
    return "stored", None


def _in_force(connection: Connection, site: str, sop_uid: str | None) -> Row[Any] | None:
    known = connection.execute(_OF_UID, {"site": site, "sop_uid": sop_uid}) if sop_uid is not None else ()
    return next((row for row in known if row.state in ("stored", "rejected")), None)


class _Rival:
    """The image that is known under the UID of a file, compared with it: only then are pixels read."""

    def __init__(self, archive: Archive, max_bytes: int) -> None:
        self._archive, self._max_bytes = archive, max_bytes
        self._digests: dict[str, str | None] = {}
        self._new, self.before, self.same_data = "", Identity("other"), False

    def meet(self, current: Row[Any] | None, stored: Stored) -> None:
        """Read both files, unless that is done."""
        if current is None or current.sha256 == stored.sha256 or current.state == "document":
            return
        if current.sha256 in self._digests:
            return
        self._new = stored.sha256
        new, old = (self._archive.path(sha256) for sha256 in (stored.sha256, current.sha256))
        self._digests[current.sha256] = None
        with suppress(OSError, EOFError, ValueError, NotImplementedError):  # gone from the archive, or not to be read
            self.same_data = content.same_data(old, new)
            with old.open("rb") as file:
                self.before = identity.of(old, file.read(4096))
            self._digests |= {
                s: content.pixels(p, self._max_bytes) for s, p in ((current.sha256, old), (self._new, new))
            }

    def same_picture(self, current: Row[Any] | None) -> str | None:
        """Return the SHA-256 of the pixels when both files have the same."""
        mine = self._digests.get(self._new)
        return mine if current is not None and mine and mine == self._digests.get(current.sha256) else None

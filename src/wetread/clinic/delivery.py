"""The outbox: what is owed to other systems, since when, and how often it was tried.

A delivery is a row, written in the transaction of what causes it: results that are complete, a signed review, a
critical finding. A thread for each destination takes what is due, builds it from the database and sends it; a
destination that is down keeps no other waiting. A row is leased, not removed, while it is sent, so that a process that
is killed loses nothing: it is sent again, at least once, with the same UIDs. What cannot be sent is tried again, ever
more rarely, and given up in the end; from the first failure on it is shown until it went out or somebody gave it up.
When the patient of a study is corrected, what was told is told anew, once for each correction; see `superseding`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import (
    audit,
    critical,
    deployments,
    destinations,
    statement,
    store,
    superseding,
    switches,
    telling,
    tracing,
)
from wetread.clinic.archive import Archive
from wetread.clinic.destinations import Destination, SendError
from wetread.clinic.evidence import NotDicomError
from wetread.clinic.statement import OutdatedError
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import ConflictError, NotFoundError

log = logging.getLogger(__name__)

LEASE = timedelta(minutes=5)
LONGEST = timedelta(hours=1)
_PATIENCE_S = 10.0
# What each kind is sent for.
RESULT, REVIEW, CRITICAL, ESCALATION = "result", "review", "critical", "escalation"
_FOR = {
    "sr": (RESULT,),
    "sc": (RESULT,),
    "fhir": (RESULT, REVIEW),
    "hl7": (RESULT, REVIEW),
    "webhook": (CRITICAL, ESCALATION),
}
UNSENT = ("queued", "failed", "given_up")
STATES = (*UNSENT, "sent", "nothing")


@dataclass(frozen=True)
class Delivery:
    """One delivery as listed.

    Attributes
    ----------
    state : str
        queued, failed (tried again at `due_at`), sent, given_up or nothing.
    revision : int
        How often the patient of the study had been corrected; above 0 it may take the place of what went before.
    """

    id: str
    study: str
    kind: str
    destination: str
    state: str
    tries: int
    due_at: datetime
    error: str | None
    created_at: datetime
    sent_at: datetime | None
    revision: int = 0


class Outbox:
    """Owes and sends.

    Parameters
    ----------
    database, archive
    settings : Settings

    Raises
    ------
    ConfigError
        For a destination that cannot be.
    """

    def __init__(self, database: Store, archive: Archive, settings: Settings) -> None:
        self.database, self.archive, self.settings = database, archive, settings
        self.destinations = destinations.of(settings)
        self.observe: Callable[[str, str], None] = lambda kind, outcome: None
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        if self.destinations:
            database.followers.append(self.follow)

    def follow(self, connection: Connection, kind: str, study: str | None, payload: Mapping[str, Any]) -> None:
        """Owe what an event causes, in the event's own transaction."""
        if study is None:
            return
        settled = kind in ("study.completed", "study.analysed") and _settled(connection, study)
        if settled and (results := statement.current(connection, study)):
            self._owe(connection, RESULT, study, statement.cause(results, _study(connection, study).revision))
        if kind == "study.analysed" and (critical := _critical(connection, study)):
            self._owe(connection, CRITICAL, study, critical)
        if kind == "critical.escalated":
            self._owe(connection, ESCALATION, study, f"escalated {payload['alert']} {payload['step']}")
        if kind == "review.signed":
            self._owe(connection, REVIEW, study, str(payload["review"]))
        if kind == "study.corrected" or (kind == "study.merged" and "from" in payload):
            self._correct(connection, study)

    def renew(self) -> int:
        """Owe anew what was told of unread studies whose results are another model's by now; return how many.

        It goes the way of newer results: those of before are outdated, and are not sent if they were not yet.
        """
        table, studies = store.delivery.c, store.study.c
        told = (
            sa.select(studies.id)
            .join(store.delivery, table.study == studies.id)
            .where(sa.text("study.reading != 'signed'"), table.kind.in_(("sr", "sc", "fhir", "hl7")))
            .distinct()
        )
        with self.database.read() as connection:
            owing = list(connection.execute(told).scalars()) if self.destinations else []
        for study in owing:
            with self.database.write() as connection:
                if (
                    connection.execute(sa.select(studies.id).where(studies.id == study)).first()
                    and _settled(connection, study)
                    and (results := statement.current(connection, study))
                ):
                    cause = statement.cause(results, _study(connection, study).revision)
                    self._owe(connection, RESULT, study, cause)
        return len(owing)

    def _correct(self, connection: Connection, study: str) -> None:
        """Owe anew what was told of a study before its patient was corrected; what was not sent yet is let be."""
        revision = _study(connection, study).revision
        told = [row for row in superseding.rows(connection, study, revision) if _counts(row)]
        again = [row for row in told if row.kind != "webhook" or self.settings.outputs_webhook_patient]
        superseding.close(connection, again)
        results = statement.cause(statement.current(connection, study), revision)
        for to in self.destinations:
            mine = [row for row in again if (row.kind, row.destination) == (to.kind, to.name)]
            for what, about in sorted({(row.detail["for"], superseding.about(row._mapping)) for row in mine}):
                cause = results if what == RESULT else f"{about[:52]} r{revision}"
                self._owe(connection, what, study, cause, to, about="" if what == RESULT else about)

    def _owe(
        self,
        connection: Connection,
        what: str,
        study: str,
        cause: str,
        only: Destination | None = None,
        about: str = "",
    ) -> None:
        """Owe something to each destination of the study's site, or only to one.

        `about` is the cause under which it was told for the first time.
        """
        table, now, row = store.delivery, store.now(), _study(connection, study)
        due = now if what != REVIEW else max(now, self._final(connection, about or cause))
        for to in self.destinations if only is None else (only,):
            if what not in _FOR[to.kind] or not to.takes(row.site):
                continue
            key = {"study": study, "kind": to.kind, "destination": to.name, "cause": cause}
            there = sa.select(table.c.id).where(*(table.c[name] == value for name, value in key.items()))
            if connection.execute(there).first() is None:
                connection.execute(
                    table.insert().values(
                        id=store.new_id(),
                        detail={"for": what, **({"about": about} if about else {})},
                        revision=row.revision,
                        state="queued",
                        tries=0,
                        due_at=due,
                        created_at=now,
                        **key,
                    )
                )

    def _final(self, connection: Connection, review: str) -> datetime:
        """Return from when on a signature cannot be taken back any more."""
        signed = sa.select(store.review.c.signed_at).where(store.review.c.id == review)
        at: datetime = connection.execute(signed).scalar_one()
        return at + timedelta(seconds=self.settings.undo_seconds)

    def start(self) -> None:
        """Give up what has no destination any more, and begin to send."""
        self._orphans()
        for to in self.destinations:
            thread = threading.Thread(target=self._loop, args=(to,), name=f"send-{to.kind}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Finish what is being sent, unless its destination hangs: that is sent again after the lease."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_PATIENCE_S)

    def _loop(self, to: Destination) -> None:
        while not self._stop.is_set():
            try:
                if not self.step(to):
                    self._stop.wait(0.5)
            except Exception as error:  # the database is gone: nothing is lost, try again
                log.error("outputs: %s", type(error).__name__)
                self._stop.wait(1.0)

    def step(self, to: Destination) -> bool:
        """Send one thing that is due to a destination; return whether there was one."""
        row = self._take(to)
        if row is None:
            return False
        try:
            with tracing.span("delivery", study=row["study"], kind=row["kind"]):
                self._send(to, row)
        except (OutdatedError, NotDicomError, NotFoundError) as error:
            self._finish(row, "nothing", str(error))
        except SendError as error:
            self._failed(row, str(error))
        except Exception as error:
            # What is odd in one study must neither stop the others nor put its data into a log.
            log.error("delivery %s: cannot be made: %s", row["id"], type(error).__name__)
            self._failed(row, f"cannot be made ({type(error).__name__}); look into the log")
        else:
            self._finish(row, "sent", None)
        return True

    def _take(self, to: Destination) -> dict[str, Any] | None:
        """Lease the next delivery that is due."""
        table, now = store.delivery, store.now()
        due = (
            sa.select(table.c.id)
            .where(
                # One address may stand there for several sites, each with secrets of its own.
                table.c.study.in_(sa.select(store.study.c.id).where(store.study.c.site == to.site))
                if to.site
                else sa.true(),
                sa.text("delivery.state IN ('queued', 'failed')"),
                table.c.kind == to.kind,
                table.c.destination == to.name,
                sa.or_(table.c.due_at <= now, table.c.due_at > now + LONGEST),  # the clock was set back
                sa.or_(
                    table.c.lease_until.is_(None), table.c.lease_until <= now, table.c.lease_until > now + 2 * LEASE
                ),
            )
            .order_by(table.c.due_at, table.c.id)
            .limit(1)
        )
        with self.database.read() as connection:
            if connection.execute(due).first() is None:
                return None
        # Writers take turns over all processes, so that no two take the same one.
        with self.database.write() as connection:
            key = connection.execute(due).scalar()
            if key is None:
                return None
            connection.execute(
                table.update().where(table.c.id == key).values(lease_until=now + LEASE, tries=table.c.tries + 1)
            )
            return dict(connection.execute(sa.select(table).where(table.c.id == key)).mappings().one())

    def _send(self, to: Destination, row: Mapping[str, Any]) -> None:
        what, about = row["detail"]["for"], superseding.about(row)
        with self.database.read() as connection:
            before, busy = superseding.earlier(connection, row)
            study = _study(connection, row["study"])
        if busy:
            raise SendError("waits: it is being sent under the identity of before at this moment")
        if what == ESCALATION:
            self._escalate(to, row, about)
            return
        wrong = [each for each in before if not each.done]
        try:
            said = statement.load(
                self.database,
                self.archive,
                row["study"],
                about=row["cause"] if what == RESULT else None,
                review=about if what == REVIEW else None,
                revision=None if what == CRITICAL else row["revision"],
            )
            telling.send(to, row, said, before, self.database, self.settings)
        except (OutdatedError, NotDicomError, NotFoundError):
            # Nothing is to be told any more; what went out of the wrong patient is wrong all the same.
            if not wrong or study.merged_into or study.revision != row["revision"]:
                raise
            telling.take_back(to, wrong, study.revised_at or row["created_at"], study.site, self.settings)
        if wrong:
            with self.database.write() as connection:
                superseding.taken_back(connection, wrong)

    def _escalate(self, to: Destination, row: Mapping[str, Any], about: str) -> None:
        named = self.settings.outputs_webhook_patient
        with self.database.read() as connection:
            content = critical.escalation(connection, about, patient=named)
        if named:
            with self.database.write() as connection:
                if not superseding.begin(connection, row, [about]):
                    raise OutdatedError(superseding.CLOSED)
        destinations.send_webhook(to, content, row["id"])

    def _finish(self, row: Mapping[str, Any], state: str, error: str | None) -> None:
        table = store.delivery
        sent = store.now() if state == "sent" else None
        with self.database.write() as connection:
            connection.execute(
                table.update()
                .where(table.c.id == row["id"])
                .values(state=state, error=error, sent_at=sent, lease_until=None)
            )
            site = self._tell(connection, row, f"delivery.{state}", error and "nothing to send")
            if state == "sent":  # what left the house, and to whom
                detail = {"kind": row["kind"], "destination": row["destination"]}
                audit.record(connection, site, "outputs", "output.sent", row["study"], detail)
        self.observe(row["kind"], state)

    def _failed(self, row: Mapping[str, Any], error: str) -> None:
        """Try again later, twice as late each time; in the end give up."""
        table, tries = store.delivery, row["tries"]
        state = "given_up" if tries >= self.settings.outputs_tries else "failed"
        wait = min(timedelta(seconds=self.settings.outputs_retry_s) * 2 ** min(tries - 1, 30), LONGEST)
        with self.database.write() as connection:
            connection.execute(
                table.update()
                .where(table.c.id == row["id"])
                .values(state=state, error=error[:500], due_at=store.now() + wait, lease_until=None)
            )
            if tries == 1 or state == "given_up":
                self._tell(connection, row, "delivery.failed", "not delivered; the reason is with the delivery")
        # What a receiver says may quote a patient: it stays in the row, which operators see.
        log.warning("delivery %s: %s to %s, try %d: not delivered", row["id"], row["kind"], row["destination"], tries)
        self.observe(row["kind"], state)

    def _tell(self, connection: Connection, row: Mapping[str, Any], kind: str, error: str | None) -> str:
        site: str = connection.execute(
            sa.select(store.study.c.site).where(store.study.c.id == row["study"])
        ).scalar_one()
        payload = {"delivery": row["id"], "kind": row["kind"], "destination": row["destination"]}
        payload |= {"try": row["tries"], "error": error}
        store.emit(connection, kind, site, row["study"], payload)
        return site

    def _orphans(self) -> None:
        """Give up what goes where the settings no longer send: otherwise it would wait, unseen, for ever."""
        table = store.delivery
        known = [
            sa.and_(
                table.c.kind == to.kind,
                table.c.destination == to.name,
                table.c.study.in_(sa.select(store.study.c.id).where(store.study.c.site == to.site))
                if to.site
                else sa.true(),
            )
            for to in self.destinations
        ]
        gone = sa.and_(sa.text("delivery.state IN ('queued', 'failed')"), sa.not_(sa.or_(sa.false(), *known)))
        with self.database.read() as connection:
            if connection.execute(sa.select(table.c.id).where(gone).limit(1)).first() is None:
                return
        with self.database.write() as connection:
            connection.execute(
                table.update().where(gone).values(state="given_up", error="no longer a destination of the settings")
            )


def _study(connection: Connection, study: str) -> sa.Row[Any]:
    return connection.execute(sa.select(store.study).where(store.study.c.id == study)).one()


def _counts(row: sa.Row[Any]) -> bool:
    """Tell whether a delivery of before is to be told anew: not when it was let be, and nothing of it went out."""
    return row.state != "nothing" or bool(row.detail.get("sent")) or row.error == superseding.CLOSED


def _settled(connection: Connection, study: str) -> bool:
    """Tell whether a study is complete and nothing of it waits for analysis."""
    row = connection.execute(sa.select(store.study.c.complete_at).where(store.study.c.id == study)).one()
    waiting = (
        sa.select(store.job.c.id)
        .join(store.instance, store.instance.c.id == store.job.c.instance)
        .where(store.instance.c.study == study, store.instance.c.state == "stored", store.job.c.state != "done")
        .where(store.job.c.model.not_in(switches.held(store.instance.c.site)))
        .where(~deployments.unawaited(store.job.c.model, store.instance.c.study, store.instance.c.site))
    )
    return row.complete_at is None and connection.execute(waiting.limit(1)).first() is None


def _critical(connection: Connection, study: str) -> str | None:
    """Return which finding of which model made a study critical, if AI did."""
    table = store.study.c
    row = connection.execute(sa.select(table.priority, table.finding, table.model).where(table.id == study)).one()
    return f"{row.finding} {row.model}"[:64] if row.priority == "critical" and row.finding else None


def listing(
    database: Store, site: str, *, states: Sequence[str] = UNSENT, study: str | None = None, limit: int = 200
) -> list[Delivery]:
    """Return the deliveries of a site, or of one study of it, in these states, the newest first."""
    table = store.delivery
    columns = [table.c[name] for name in Delivery.__dataclass_fields__]
    wanted = (
        sa.select(*columns)
        .join(store.study, store.study.c.id == table.c.study)
        .where(store.study.c.site == site, table.c.state.in_(list(states)))
        .where(table.c.study == study if study is not None else sa.true())
        .order_by(table.c.created_at.desc(), table.c.id)
        .limit(limit)
    )
    with database.read() as connection:
        return [Delivery(*row) for row in connection.execute(wanted)]


def undelivered(database: Store, site: str) -> int:
    """Return how many deliveries of a site failed so far or were given up."""
    table = store.delivery
    wanted = (
        sa.select(sa.func.count())
        .select_from(table.join(store.study, store.study.c.id == table.c.study))
        .where(store.study.c.site == site, sa.text("delivery.state IN ('failed', 'given_up')"))
    )
    with database.read() as connection:
        return int(connection.execute(wanted).scalar_one())


def retry(database: Store, site: str, key: str, actor: str) -> None:
    """Try a delivery again at once.

    Raises
    ------
    NotFoundError
        When the site has no such delivery.
    ConflictError
        When it was sent already.
    """
    _change(database, site, key, actor, "delivery.retried", state="queued", tries=0, due_at=store.now())


def dismiss(database: Store, site: str, key: str, actor: str) -> None:
    """Let a delivery be: it is not tried again and no longer shown as undelivered. Raises as `retry` does."""
    _change(database, site, key, actor, "delivery.dismissed", state="nothing")


def _change(database: Store, site: str, key: str, actor: str, action: str, **values: Any) -> None:
    table = store.delivery
    with database.write() as connection:
        row = connection.execute(
            sa.select(table.c.state, table.c.study, table.c.kind)
            .join(store.study, store.study.c.id == table.c.study)
            .where(table.c.id == key, store.study.c.site == site)
        ).first()
        if row is None:
            raise NotFoundError(f"delivery {key[:64]}: no such delivery at this site")
        if row.state in ("sent", "nothing"):
            raise ConflictError(f"delivery {key}: it is done already")
        connection.execute(table.update().where(table.c.id == key).values(lease_until=None, **values))
        store.emit(connection, action, site, row.study, {"delivery": key, "kind": row.kind})
        audit.record(connection, site, actor, action, key)

"""Critical findings, from when one is known until somebody was told of it.

::

    AI ranks a study critical ──► open ──(a reader acknowledges)──► acknowledged ──(signs: it is there)──► confirmed
    a reader signs a critical finding of their own ──────────────────────────────────────────────────────► confirmed
    open, acknowledged ──(signs: it is not there, or says why nobody needs to know)──► closed
    confirmed ──(who was told, when and how is recorded)──► closed

What is owed, first to acknowledge, then to sign and once it is signed to tell, is owed within a time of the settings,
and escalated in steps after it. Each study has one open alert at most; what was done about it is written down and never
changed. All of it is in the database: it outlives a restart, and several processes escalate a step once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from wetread.clinic import audit, claims, store
from wetread.clinic.priority import Priority, Rules
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import ClinicError, ConflictError, NotFoundError

Stage = Literal["acknowledge", "sign", "tell"]
How = Literal["phone", "in person", "message"]
HOW: tuple[How, ...] = ("phone", "in person", "message")
SYSTEM = "system"
_MOST = 200  # that a list shows
_AHEAD = timedelta(minutes=2)  # clocks differ


@dataclass(frozen=True)
class Alert:
    """An open alert as the worklist shows it.

    Attributes
    ----------
    stage : {"acknowledge", "sign", "tell"} or None
        What is owed; None when nothing is.
    due_at : datetime or None
        Until when.
    escalated : int
        How often, for what is owed.
    """

    alert: str
    study: str
    source: str
    finding: str
    patient_name: str
    patient_id: str
    opened_at: datetime
    acknowledged_at: datetime | None
    confirmed_at: datetime | None
    told_at: datetime | None
    stage: Stage | None
    due_at: datetime | None
    escalated: int


@dataclass(frozen=True)
class Communication:
    """What was done about a critical finding: acknowledged, communicated, escalated or closed."""

    kind: str
    finding: str
    actor: str
    recipient: str
    how: str
    read_back: bool | None
    note: str
    at: datetime
    recorded_at: datetime


def raised(connection: Connection, study: Row[Any], finding: str, now: datetime) -> None:
    """Open an alert, because AI says that a study which is not signed is critical; once for each finding.

    What a reader denied is raised again only when something new opened the study again.
    """
    table = store.alert.c
    before = connection.execute(
        sa.select(table.closed_at, table.finding, table.outcome).where(table.study == study.id)
    ).all()
    if any(each.closed_at is None or (each.finding == finding and each.outcome != "denied") for each in before):
        return
    _open(connection, study.id, study.site, "ai", finding, now)


def merged(connection: Connection, source: str, target: str, now: datetime) -> None:
    """Let a study that took another one's images take its alerts, too."""
    table = store.alert
    there = connection.execute(
        sa.select(table.c.id).where(table.c.study == target, table.c.closed_at.is_(None))
    ).scalar()
    if there is not None:
        values = {"closed_at": now, "outcome": "merged", "next_at": None}
        connection.execute(table.update().where(table.c.study == source, table.c.closed_at.is_(None)).values(values))
    for other in (table, store.communication):
        connection.execute(other.update().where(other.c.study == source).values(study=target))


class Criticals:
    """What readers owe, and what they do about it.

    Parameters
    ----------
    database : Store
        Told of signatures through its followers.
    settings : Settings
    rules : Rules
        Say which findings are critical.
    """

    def __init__(self, database: Store, settings: Settings, rules: Rules) -> None:
        self.database, self.settings, self.rules = database, settings, rules
        database.followers.append(self.follow)

    # ------------------------------------------------------------------ what is owed

    def owed(self, alert: Row[Any]) -> tuple[Stage, datetime] | None:
        """Return what is owed of an alert, and until when."""
        if alert.closed_at is not None or alert.told_at is not None:
            return None
        if alert.confirmed_at is not None:
            return "tell", alert.confirmed_at + timedelta(minutes=self.settings.critical_tell_minutes)
        if alert.acknowledged_at is None:
            return "acknowledge", alert.opened_at + timedelta(minutes=self.settings.critical_ack_minutes)
        # Whoever acknowledged it may have gone home without reading the study.
        return "sign", alert.acknowledged_at + timedelta(minutes=self.settings.critical_tell_minutes)

    def listing(self, site: str) -> list[Alert]:
        """Return the open alerts of a site that nobody was told of, the oldest first."""
        with self.database.read() as connection:
            return self._alerts(connection, store.alert.c.site == site)

    def of(self, site: str, study: str) -> tuple[Alert | None, list[Communication]]:
        """Return the alert of a study, if one is open, and all that was done about its critical findings.

        Raises
        ------
        NotFoundError
            When the site has no such study.
        """
        table = store.communication
        with self.database.read() as connection:
            claims.find(connection, site, study)
            found = self._alerts(connection, store.alert.c.study == study)
            columns = [table.c[name] for name in Communication.__dataclass_fields__]
            done = connection.execute(
                sa.select(*columns).where(table.c.study == study).order_by(table.c.recorded_at, table.c.id)
            )
            return (found[0] if found else None), [Communication(*row) for row in done]

    def _alerts(self, connection: Connection, where: sa.ColumnElement[bool]) -> list[Alert]:
        table, studies = store.alert, store.study.c
        rows = connection.execute(
            sa.select(table, studies.patient_name, studies.patient_id)
            .join(store.study, studies.id == table.c.study)
            .where(table.c.closed_at.is_(None), table.c.told_at.is_(None), where)
            .order_by(table.c.opened_at, table.c.id)
            .limit(_MOST)
        )
        return [self._alert(row) for row in rows]

    def _alert(self, row: Row[Any]) -> Alert:
        stage, due = self.owed(row) or (None, None)
        return Alert(
            row.id, row.study, row.source, row.finding, row.patient_name, row.patient_id, row.opened_at,
            row.acknowledged_at, row.confirmed_at, row.told_at, stage, due, row.step,
        )  # fmt: skip

    # ------------------------------------------------------------------ what readers do

    def acknowledge(self, site: str, study: str, reader: str, *, now: datetime | None = None) -> None:
        """Write down that a reader knows of the critical finding.

        Raises
        ------
        NotFoundError
            When the site has no such study.
        ConflictError
            When no critical finding of it is open.
        """
        now = now or store.now()
        with self.database.write() as connection:
            alert = _required(connection, site, study)
            if alert.acknowledged_at is None:
                self._acknowledge(connection, alert, reader, now)

    def tell(
        self,
        site: str,
        study: str,
        reader: str,
        *,
        recipient: str,
        how: str,
        read_back: bool,
        at: datetime | None = None,
        note: str = "",
        now: datetime | None = None,
    ) -> None:
        """Write down who was told of a critical finding, when and how, and whether they read it back.

        Also before it is signed, or without an alert: then it counts for what the reader signs afterwards.

        Raises
        ------
        NotFoundError
            When the site has no such study.
        ClinicError
            For a recipient, a way or a time that cannot be.
        """
        now = now or store.now()
        at = at or now
        recipient, note = " ".join(recipient.split()), note.replace("\0", "").strip()
        if not recipient or len(recipient) > 200 or not recipient.isprintable():
            raise ClinicError(f"recipient {recipient[:80]!r}: say who was told, in 1 to 200 printable characters")
        if how not in HOW:
            raise ClinicError(f"how {how[:40]!r}: not one of {', '.join(HOW)}")
        if len(note) > 2000:
            raise ClinicError(f"note: {len(note)} characters; at most 2000 are kept")
        with self.database.write() as connection:
            row = claims.find(connection, site, study)
            alert = _open_of(connection, study)
            if at > now + _AHEAD:
                raise ClinicError(f"at {at.isoformat()}: lies ahead; say when it was")
            if at < row.received_at - _AHEAD:
                raise ClinicError(f"at {at.isoformat()}: before the study came; say when it was")
            if alert is not None and alert.acknowledged_at is None:
                self._acknowledge(connection, alert, reader, now)
            finding = alert.finding if alert else row.finding or ""
            more = {"recipient": recipient, "how": how, "read_back": read_back, "note": note}
            self._record(connection, row.id, site, alert, "communicated", finding, reader, at, now, **more)
            if alert is not None:
                closed = {"closed_at": now, "outcome": "communicated"} if alert.confirmed_at else {}
                _change(connection, alert.id, told_at=at, next_at=None, **closed)

    def close(self, site: str, study: str, reader: str, *, note: str, now: datetime | None = None) -> None:
        """Close an alert without telling anybody, with the reason; raises as `acknowledge`, and without a reason."""
        now, note = now or store.now(), note.replace("\0", "").strip()
        if not 0 < len(note) <= 2000:
            raise ClinicError("note: say in 1 to 2000 characters why nobody has to be told")
        with self.database.write() as connection:
            alert = _required(connection, site, study)
            self._record(connection, study, site, alert, "closed", alert.finding, reader, now, now, note=note)
            _change(connection, alert.id, closed_at=now, outcome="closed", next_at=None)

    def _acknowledge(self, connection: Connection, alert: Row[Any], reader: str, now: datetime) -> None:
        self._record(connection, alert.study, alert.site, alert, "acknowledged", alert.finding, reader, now, now)
        _change(connection, alert.id, acknowledged_at=now, step=0, next_at=now)

    def _record(
        self,
        connection: Connection,
        study: str,
        site: str,
        alert: Row[Any] | None,
        kind: str,
        finding: str,
        actor: str,
        at: datetime,
        now: datetime,
        **more: Any,
    ) -> None:
        """Write down what was done, with event and audit row; who was told stands in the audit, not in the event."""
        values = {"recipient": "", "how": "", "read_back": None, "note": "", "stage": None, "step": None} | more
        key, review = (alert.id, alert.review) if alert else (None, None)
        connection.execute(
            store.communication.insert().values(
                id=store.new_id(), study=study, alert=key, kind=kind, finding=finding, review=review, actor=actor,
                at=at, recorded_at=now, **values,
            )
        )  # fmt: skip
        about = {"alert": key, "finding": finding}
        told = {name: values[name] for name in ("stage", "step") if values[name] is not None}
        store.emit(connection, f"critical.{kind}", site, study, {**about, **told})
        said = {name: value for name, value in more.items() if value not in (None, "")}
        audit.record(connection, site, actor, f"critical.{kind}", study, {**about, **said, "at": at.isoformat()})

    # ------------------------------------------------------------------ what signatures say

    def follow(self, connection: Connection, kind: str, study: str | None, payload: Mapping[str, Any]) -> None:
        """Take in what a signature says, in its transaction."""
        if study is not None and kind == "review.signed":
            self._signed(connection, study, str(payload["review"]))
        elif study is not None and kind == "review.withdrawn":
            self._withdrawn(connection, str(payload["review"]))

    def _signed(self, connection: Connection, study: str, review: str) -> None:
        row = connection.execute(sa.select(store.study.c.site).where(store.study.c.id == study)).one()
        said = connection.execute(sa.select(store.review).where(store.review.c.id == review)).one()
        table = store.review_finding.c
        answers = connection.execute(sa.select(table.finding, table.answer, table.call).where(table.review == review))
        there = {answer.finding: _there(answer.answer, answer.call) for answer in answers}
        rule, now = self.rules.of(row.site), said.signed_at
        present = [finding for finding, yes in there.items() if yes and rule.of(finding) is Priority.CRITICAL]
        alert = _open_of(connection, study)
        if present:
            self._confirmed(connection, study, row.site, alert, present, said, now)
        elif alert is not None and (said.normal or there.get(alert.finding) is False):
            note = f"signed: no {alert.finding}"
            self._record(connection, study, row.site, alert, "closed", alert.finding, said.reader, now, now, note=note)
            _change(connection, alert.id, closed_at=now, outcome="denied", next_at=None, review=review)

    def _confirmed(
        self,
        connection: Connection,
        study: str,
        site: str,
        alert: Row[Any] | None,
        present: Sequence[str],
        said: Row[Any],
        now: datetime,
    ) -> None:
        table, done = store.alert.c, store.communication
        if alert is None:
            told = set(
                connection.execute(
                    sa.select(table.finding).where(table.study == study, table.outcome == "communicated")
                ).scalars()
            )
            new = [finding for finding in present if finding not in told]
            if not new:
                return
            alert = _open(connection, study, site, "reader", new[0], now)
        finding = alert.finding if alert.finding in present else present[0]
        if alert.acknowledged_at is None:
            self._acknowledge(connection, alert, said.reader, now)
        values = {"confirmed_at": now, "review": said.id, "finding": finding, "step": 0, "next_at": now}
        loose = sa.and_(done.c.study == study, done.c.alert.is_(None), done.c.kind == "communicated")
        earlier = connection.execute(sa.select(sa.func.min(done.c.at)).where(loose)).scalar()
        if (told_at := alert.told_at or earlier) is not None:
            values |= {"told_at": told_at, "closed_at": now, "outcome": "communicated", "next_at": None}
        _change(connection, alert.id, **values)
        connection.execute(done.update().where(loose).values(alert=alert.id, review=said.id))

    def _withdrawn(self, connection: Connection, review: str) -> None:
        """Take back what a signature made of alerts, but not that somebody was told."""
        table, now = store.alert, store.now()
        for alert in connection.execute(sa.select(table).where(table.c.review == review)).all():
            again = {"review": None, "confirmed_at": None, "step": 0, "next_at": now}
            if alert.outcome == "denied" and _open_of(connection, alert.study) is None:
                _change(connection, alert.id, **again, closed_at=None, outcome=None)
            elif alert.closed_at is None and alert.source == "reader":
                _change(connection, alert.id, closed_at=now, outcome="withdrawn", next_at=None)
            elif alert.closed_at is None:
                _change(connection, alert.id, **again)

    # ------------------------------------------------------------------ escalation

    def step(self, now: datetime | None = None) -> int:
        """Escalate what is due; return how much that was. Several processes may do this at a time."""
        now, table = now or store.now(), store.alert.c
        due = sa.and_(table.closed_at.is_(None), table.next_at <= now)
        with self.database.read() as connection:
            keys = list(connection.execute(sa.select(table.id).where(due).order_by(table.next_at).limit(100)).scalars())
        count = 0
        for key in keys:
            with self.database.write() as connection:  # writers take turns: the second finds that it is done
                alert = connection.execute(sa.select(store.alert).where(table.id == key, due)).first()
                count += alert is not None and self._escalate(connection, alert, now)
        return count

    def _escalate(self, connection: Connection, alert: Row[Any], now: datetime) -> bool:
        owed = self.owed(alert)
        if owed is None:
            _change(connection, alert.id, next_at=None)
            return False
        stage, due = owed
        if now < (first := due + self._after(alert.step)):
            _change(connection, alert.id, next_at=first)
            return False
        step = alert.step + 1
        while due + self._after(step) <= now:  # nobody was here for a while: what was missed is told once
            step += 1
        done = store.communication.c
        number = connection.execute(
            sa.select(sa.func.count()).where(done.alert == alert.id, done.kind == "escalated")
        ).scalar_one()
        self._record(
            connection, alert.study, alert.site, alert, "escalated", alert.finding, SYSTEM, now, now,
            stage=stage, step=number + 1,
        )  # fmt: skip
        _change(connection, alert.id, step=step, next_at=due + self._after(step))
        return True

    def _after(self, step: int) -> timedelta:
        """Return how long after the time is over a step is taken; the last one is repeated."""
        steps = sorted(self.settings.critical_steps)
        apart = max(steps[-1] - steps[-2] if len(steps) > 1 else steps[-1], 1.0)
        beyond = max(0, step - len(steps) + 1)
        return timedelta(minutes=steps[min(step, len(steps) - 1)] + beyond * apart)


_TOLD_AS = {
    "acknowledge": "critical_not_acknowledged",
    "sign": "critical_not_signed",
    "tell": "critical_not_communicated",
}


def escalation(connection: Connection, about: str, *, patient: bool) -> dict[str, Any]:
    """Return what a webhook tells of an escalation; who the patient is only when asked for.

    Parameters
    ----------
    about : str
        ``escalated ALERT STEP``

    Raises
    ------
    NotFoundError
        When it is over.
    """
    _, key, step = about.split()[:3]
    table, done = store.alert, store.communication.c
    row = connection.execute(sa.select(table).where(table.c.id == key, table.c.closed_at.is_(None))).first()
    sent = connection.execute(sa.select(store.communication).where(done.alert == key, done.step == int(step))).first()
    done_by = {"acknowledge": "acknowledged_at", "sign": "confirmed_at", "tell": "told_at"}
    if row is None or sent is None or row.told_at or getattr(row, done_by[sent.stage]):
        raise NotFoundError(f"alert {key}: is over, so that there is nothing to escalate")
    content: dict[str, Any] = {
        "event": _TOLD_AS[sent.stage],
        "study": row.study,
        "site": row.site,
        "source": row.source,
        "finding": row.finding,
        "opened_at": row.opened_at.isoformat(),
        "confirmed_at": row.confirmed_at.isoformat() if row.confirmed_at else None,
        "step": sent.step,
        "at": sent.at.isoformat(),
    }
    if patient:
        names = ("patient_id", "patient_name", "birth_date", "accession", "study_uid")
        study = connection.execute(sa.select(store.study).where(store.study.c.id == row.study)).one()
        content["patient"] = {name.removeprefix("patient_"): getattr(study, name) for name in names}
    return content


def _there(answer: str, call: str | None) -> bool | None:
    """Return whether an answer says that a finding is there, or that it is not; None when it leaves that open."""
    if answer == "added":
        return True
    return None if answer == "unsure" else (answer == "agree") == (call != "unlikely")


def _open(connection: Connection, study: str, site: str, source: str, finding: str, now: datetime) -> Row[Any]:
    table, key = store.alert, store.new_id()
    connection.execute(
        table.insert().values(
            id=key, study=study, site=site, source=source, finding=finding, opened_at=now, step=0, next_at=now
        )
    )
    about = {"alert": key, "finding": finding, "source": source}
    store.emit(connection, "critical.raised", site, study, about)
    audit.record(connection, site, SYSTEM, "critical.raised", study, about)
    return connection.execute(sa.select(table).where(table.c.id == key)).one()


def _open_of(connection: Connection, study: str) -> Row[Any] | None:
    table = store.alert
    return connection.execute(sa.select(table).where(table.c.study == study, table.c.closed_at.is_(None))).first()


def _required(connection: Connection, site: str, study: str) -> Row[Any]:
    claims.find(connection, site, study)
    if (alert := _open_of(connection, study)) is None:
        raise ConflictError(f"study {study}: no critical finding of it is open")
    return alert


def _change(connection: Connection, key: str, **values: Any) -> None:
    connection.execute(store.alert.update().where(store.alert.c.id == key).values(values))

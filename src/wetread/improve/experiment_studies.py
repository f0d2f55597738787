"""The studies of an experiment: when each came and was read, what AI said of it and what its reader signed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import export, priority, store
from wetread.clinic.experiments import KIND, Experiment
from wetread.clinic.priority import Priority, Rule, Scored
from wetread.findings import PRESENT


@dataclass(frozen=True)
class Study:
    """A study of an experiment.

    Attributes
    ----------
    block : str
    arm : {"ai", "arrival"}
    received, analysed, opened, signed : datetime or None
    acquired : datetime or None
        By the scanner's clock, which may be wrong; None without a time of day.
    reader : str or None
    truth : frozenset of str
        Findings that the reader saw.
    answered : frozenset of str
        Findings of which the reader said whether they are there.
    flagged : frozenset of str
        Findings that AI had flagged.
    early : bool
        It came within the wash-out.
    priority : str
        The class that the requester and AI together give it, whichever order the list had.
    answers : mapping of finding to (answer, call)
        What the reader answered to what AI had called.
    seconds : float
        That the models computed, in s; NaN where none did.
    """

    block: str
    arm: str
    received: datetime
    analysed: datetime | None = None
    opened: datetime | None = None
    signed: datetime | None = None
    acquired: datetime | None = None
    reader: str | None = None
    truth: frozenset[str] = frozenset()
    answered: frozenset[str] = frozenset()
    flagged: frozenset[str] = frozenset()
    early: bool = False
    priority: str = str(Priority.ROUTINE)
    answers: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    seconds: float = math.nan

    @property
    def ahead(self) -> bool:
        """Whether it was acquired after it was received: the scanner's clock is wrong, by how much nobody knows."""
        return self.acquired is not None and self.acquired > self.received

    @property
    def waited(self) -> float:
        """How long AI's word took beside the models' own seconds: in the queue, and for further images; in s."""
        return max(0.0, 60 * self.minutes("received", "analysed") - self.seconds)

    def minutes(self, since: str = "received", until: str = "signed") -> float:
        """Return how long a stage took, in min; NaN where an end is not known, or the scanner's clock is ahead."""
        first, last = getattr(self, since), getattr(self, until)
        if not (first and last) or (since == "acquired" and self.ahead):
            return math.nan
        return float((last - first).total_seconds() / 60)


def studies(connection: Connection, experiment: Experiment, rule: Rule | None = None) -> list[Study]:
    """Return the studies of an experiment, in order of arrival.

    Parameters
    ----------
    rule : Rule, optional
        What gives the classes; the default one where it is left out.
    """
    table, assigned, events = store.study.c, store.assignment.c, store.event.c
    rows = connection.execute(
        sa.select(store.study, assigned.arm, assigned.block)
        .join(store.assignment, assigned.study == table.id)
        .where(assigned.unit == experiment.id, assigned.kind == KIND, table.listed, table.merged_into.is_(None))
        .order_by(table.received_at, table.id)
    ).all()
    keys = sa.select(assigned.study).where(assigned.unit == experiment.id, assigned.kind == KIND)
    first: sa.ColumnElement[Any] = sa.type_coerce(sa.func.min(events.at), store.Moment())
    claimed = sa.select(events.study, first).where(events.kind == "study.claimed", events.study.in_(keys))
    opened = {row[0]: row[1] for row in connection.execute(claimed.group_by(events.study))}
    results = store.study_result.c
    said: dict[str, list[Any]] = defaultdict(list)
    for row in connection.execute(sa.select(store.study_result).where(results.study.in_(keys)).order_by(results.at)):
        said[row.study].append(row)
    reviews = store.review
    signed: dict[str, tuple[Any, dict[str, Any]]] = {}
    first_signed = (
        sa.select(reviews)
        .where(reviews.c.study.in_(keys), reviews.c.state == "signed", reviews.c.parent.is_(None))
        .order_by(reviews.c.signed_at)
    )
    for row in list[Any](connection.execute(first_signed)):
        if row.study not in signed:
            signed[row.study] = row, export.said(connection, row)
    seconds = _seconds(connection, keys)
    wash, zone = experiment.plan["washout_minutes"], ZoneInfo(experiment.plan["zone"])
    found = []
    for row in rows:
        review, answered = signed.get(row.id, (None, {"normal": False, "answers": {}}))
        labels = export.labels_of(answered)
        scored = [
            Scored(result.model_name, f["finding"], f["probability"], f["flagged"], f["call"])
            for result in {result.model: result for result in said[row.id]}.values()  # the last word of each
            for f in result.findings
        ]
        since = experiment.block(row.received_at).since
        found.append(
            Study(
                row.block,
                row.arm,
                row.received_at,
                analysed=said[row.id][0].at if said[row.id] else None,
                opened=opened.get(row.id),
                signed=review.signed_at if review else None,
                acquired=moment(row.acquired_at, zone),
                reader=review.reader if review else None,
                truth=frozenset(finding for finding, value in labels.items() if value == PRESENT),
                answered=frozenset(labels),
                flagged=frozenset(f["finding"] for result in said[row.id] for f in result.findings if f["flagged"]),
                early=(row.received_at - since).total_seconds() < 60 * wash,
                priority=str(priority.decide(rule or Rule(), Priority(row.floor), scored).priority),
                answers=answered["answers"],
                seconds=sum(seconds[row.id, model] for model in {result.model for result in said[row.id]})
                if said[row.id]
                else math.nan,
            )
        )
    return found


def moment(text: str | None, zone: ZoneInfo) -> datetime | None:
    """Return when an image was acquired; None for a day without a time, which midnight stands for, or what is none.

    Parameters
    ----------
    text : str or None
        As ISO 8601.
    zone : ZoneInfo
        Of the clock, where the image does not tell it.
    """
    try:
        found = datetime.fromisoformat(text or "")
        if found.time() == time():
            return None
        return (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _seconds(connection: Connection, keys: sa.Select[Any]) -> dict[tuple[str, str], float]:
    """Return how long each model computed for each study, in s; two views that were seen at once count once."""
    images, results = store.instance.c, store.image_result.c
    once = sa.func.coalesce(results.basis, results.instance)
    each = (
        sa.select(images.study, results.model, sa.func.max(results.seconds))
        .join(store.instance, images.id == results.instance)
        .where(images.study.in_(keys))
        .group_by(images.study, results.model, once)
    )
    found: dict[tuple[str, str], float] = defaultdict(lambda: math.nan)
    for study, model, value in connection.execute(each):
        found[study, model] = value if math.isnan(before := found[study, model]) else before + value
    return found

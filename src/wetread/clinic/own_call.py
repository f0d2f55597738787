"""A reader's own call of a study that is read `blind`: made once, before the model's word, and kept with the review.

It is what such a read says of a model: what was answered afterwards follows the word that was shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from wetread.clinic import audit, blind, claims, reviews, store
from wetread.clinic.export import labels_of
from wetread.clinic.store import Store
from wetread.errors import ConflictError
from wetread.findings import ABSENT, FINDINGS, HARMLESS, NEUTRAL, NORMAL, PRESENT, Task


def record(
    database: Store,
    site: str,
    study: str,
    reader: str,
    *,
    is_blind: bool,
    normal: bool,
    findings: Sequence[str] = (),
    life: timedelta = claims.LIFE,
    now: datetime | None = None,
) -> str:
    """Record what a reader sees before they are told what the model says; return the id of their draft.

    Parameters
    ----------
    is_blind : bool
        Whether the settings have the study read blind, see `blind`; one of the random-audit sample always is.
    normal : bool
        Whether the reader calls the study normal.
    findings : sequence of str
        What they see; may be empty also when the study is not normal.

    Raises
    ------
    NotFoundError
        When the site has no such study.
    ConflictError
        When the reader's own call is there already, the study is not read blind or is signed, or another reader holds
        it.
    ClinicError
        For a finding that cannot be, or that contradicts `normal`.
    """
    now, table = now or store.now(), store.review
    reviews.check_findings(findings)
    if normal:
        reviews.raise_if_abnormal(list(findings))
    with database.write() as connection:
        row = claims.open_study(connection, site, study)
        if not blind.asked(connection, study, is_blind):
            raise ConflictError(f"study {study}: is not read blind; answer the model instead")
        claims.hold(connection, site, study, reader, now, life)
        if not blind.waits(connection, study, reader):
            raise ConflictError(f"study {study}: your own call is recorded already; it cannot be changed")
        review = reviews.draft(connection, study, reader, now)
        # Whoever has answered the model has seen its word, whatever the settings say since.
        answered = sa.select(store.review_finding.c.finding).where(
            store.review_finding.c.review == review, store.review_finding.c.answer != "added"
        )
        anchored = connection.execute(answered.limit(1)).first() is not None
        named = list(dict.fromkeys(findings))
        values = {"own_call": {"normal": normal, "findings": named}, "own_call_at": now, "anchored": anchored}
        connection.execute(table.update().where(table.c.id == review).values(values))
        connection.execute(store.study.update().where(store.study.c.id == study).values(reading="draft"))
        store.emit(connection, "review.saved", row.site, study, {"review": review})
        detail = {"review": review, "normal": normal, "findings": len(named)}
        audit.record(connection, site, reader, "review.own_call", study, detail)
    return review


def named(own: Mapping[str, Any], task: Task | None) -> dict[str, int]:
    """Return the labels of an own call: what it names, what that is a kind of, and everything where it says normal.

    Parameters
    ----------
    own : mapping
        ``normal`` and ``findings``.
    task : Task or None
        Whose tree tells which finding is a kind of which.
    """
    said = [finding for finding in own.get("findings", ()) if isinstance(finding, str)]
    if own.get("normal"):
        return labels_of({"normal": True, "answers": {}}) | dict.fromkeys(said, PRESENT)
    above = [f for finding in said if task and finding in task.findings for f in task.path(finding)]
    found = dict.fromkeys([*said, *above], PRESENT)
    return found | (dict.fromkeys(NORMAL, ABSENT) if set(found) - HARMLESS else {})


def labels(own: Mapping[str, Any], task: Task | None, findings: Iterable[str] = ()) -> dict[str, int]:
    """Return what a reader said before any model's word was known, of every finding of a task and of `findings`.

    A finding that they did not name is absent: they looked, and nothing suggested it to them. Devices are not: nobody
    names all of them.
    """
    everything = {*FINDINGS, *findings, *(task.findings if task else ())}
    said = dict.fromkeys(everything - NEUTRAL, ABSENT) | named(own, task)
    return {finding: label for finding, label in said.items() if label == PRESENT or finding not in NEUTRAL}

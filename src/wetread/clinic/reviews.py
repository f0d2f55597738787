"""Answering the model, signing, adding to what was signed, and taking a signature back.

Whoever answers holds the study (`claims`). A signed review is never changed. A new image after the signature opens the
study again; what is to be said without one is an addendum: a further review that names the one before it. For a short
time a reader may take their own signature back, before anything of it has left the house: the review stays, as
withdrawn, and what was in it is their draft again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row, RowMapping

from wetread.clinic import audit, blind, claims, store, superseding, triage
from wetread.clinic.claims import claim, release
from wetread.clinic.store import Store
from wetread.errors import ClinicError, ConflictError
from wetread.findings import HARMLESS

__all__ = ["ANSWERS", "NewerError", "UnseenError", "Verdict", "Version", "claim", "release", "save", "withdraw"]

ANSWERS = ("agree", "disagree", "unsure")
WITHDRAWN = "the signature was taken back before it was sent"
Verdict = Literal["right", "wrong"]


class UnseenError(ConflictError):
    """A reader signs a study that has images which they have not seen.

    Parameters
    ----------
    study : str
    images : sequence of str
        Ids of these images, in order of arrival.
    """

    def __init__(self, study: str, images: Sequence[str]) -> None:
        count = "an image" if len(images) == 1 else f"{len(images)} images"
        super().__init__(f"study {study}: {count} came that you have not seen; look, then sign again")
        self.images = list(images)


class NewerError(ConflictError):
    """A draft was saved from elsewhere since the one that is to be saved was begun; `revision` is the newer one's."""

    def __init__(self, study: str, revision: int) -> None:
        super().__init__(f"study {study}: you saved a newer draft elsewhere; look at both and keep one")
        self.revision = revision


@dataclass(frozen=True)
class Version:
    """Which draft somebody goes on from: its `revision` (0: there was none), and the page, `writer`, that does."""

    revision: int
    writer: str


def save(
    database: Store,
    site: str,
    study: str,
    reader: str,
    *,
    answers: Mapping[str, str] | None = None,
    added: Sequence[str] | None = None,
    verdict: Verdict | None = None,
    normal: bool = False,
    note: str = "",
    sign: bool = False,
    seen: Collection[str] | None = None,
    parent: str | None = None,
    version: Version | None = None,
    is_blind: bool = False,
    life: timedelta = claims.LIFE,
    now: datetime | None = None,
) -> str:
    """Save a reader's draft, or sign it; return the review's id.

    Parameters
    ----------
    answers : mapping, optional
        Finding of a model → ``agree``, ``disagree`` or ``unsure``. A finding that is not there stays unanswered.
    added : sequence of str, optional
        Findings that the reader sees and no model named.
    verdict : {"right", "wrong"}, optional
        The model over all.
    normal : bool
        The reader calls the study normal; then findings nobody touched count as absent.
    note : str
        Free text, at most 10,000 characters.
    sign : bool
        Make it final.
    seen : collection of str, optional
        Ids of the images that the reader has seen: none of the study's other images may be signed over. By default
        this is not checked.
    parent : str, optional
        Id of the newest signed review, to which this is an addendum. It stands in place of what was said before; one
        with neither `answers` nor `added` leaves all but the note as it was.
    version : Version, optional
        Refuse to take the place of a newer draft. By default this is not checked.
    is_blind : bool
        Whether the settings have the study read blind, see `blind`; one of the random-audit sample always is.
    life : timedelta
        How long the claim holds that comes with a draft.

    Raises
    ------
    NotFoundError
        When the site has no such study.
    ConflictError
        When it is signed already, or another reader holds it; for an addendum, when it is not signed, or `parent` is
        not the newest review; before the own call of a study that is read blind, for answers and signatures.
    UnseenError
        When it is to be signed and has an image that is not among `seen`; nothing is changed then.
    NewerError
        When the reader's draft is a newer one than that of `version`; nothing is changed then.
    ClinicError
        For an answer, finding or note that cannot be.
    """
    now = now or store.now()
    bare = answers is None and added is None
    answers, added = dict(answers or {}), added or ()
    _check(answers, added, verdict, note)
    with database.write() as connection:
        row = claims.find(connection, site, study)
        before = None if parent is None else _before(connection, row, parent)
        if before is None:
            claims.open_study(connection, site, study)
            claims.hold(connection, site, study, reader, now, life)
        images = _images(connection, study)
        if sign and seen is not None and (unseen := [image for image in images if image not in set(seen)]):
            raise UnseenError(study, unseen)
        own_first = (answers or sign) and blind.asked(connection, study, is_blind)
        if own_first and blind.waits(connection, study, reader):
            raise ConflictError(f"study {study}: is read blind; record your own call before you answer or sign")
        inherits = before if bare else None
        if inherits:
            answered = _answers(connection, inherits.id)
            answers = {f: row["answer"] for f, row in answered.items() if row["answer"] != "added"}
            added = [f for f, row in answered.items() if row["answer"] == "added"]
            verdict, normal = inherits.model_verdict, inherits.normal
        said = _said(connection, study, images)
        to = said  # what the model had said when it was answered
        if inherits:
            to = {f: dict(row) for f, row in answered.items()}
        elif unknown := sorted(set(answers) - set(said)):
            raise ClinicError(f"answers: {unknown[0]!r} is no finding of this study's models; put it into `added`")
        if normal and sign:
            calls = {finding: each.get("call") for finding, each in to.items()}
            raise_if_abnormal([*added, *(f for f, answer in answers.items() if _present(answer, calls.get(f)))])
        review = draft(connection, study, reader, now, version)
        connection.execute(
            store.review.update()
            .where(store.review.c.id == review)
            .values(
                state="signed" if sign else "draft",
                parent=parent,
                revision=store.review.c.revision + 1,
                writer=version.writer if version else None,
                model_verdict=verdict,
                normal=normal,
                note=note.replace("\0", ""),
                models=sorted({finding["model"] for finding in said.values()}),
                signed_at=now if sign else None,
            )
        )
        connection.execute(store.review_finding.delete().where(store.review_finding.c.review == review))
        rows = [{"finding": f, "answer": a} for f, a in answers.items()]
        rows += [{"finding": f, "answer": "added"} for f in dict.fromkeys(added) if f not in answers]
        for values in rows:
            model = to.get(values["finding"], {})
            connection.execute(
                store.review_finding.insert().values(
                    review=review,
                    call=model.get("call"),
                    probability=model.get("probability"),
                    model=model.get("model"),
                    **values,
                )
            )
        if parent is None:
            reading = "signed" if sign else "draft"
            connection.execute(store.study.update().where(store.study.c.id == study).values(reading=reading))
        detail: dict[str, Any] = {"review": review, "answers": len(answers), "added": len(added), "verdict": verdict}
        detail |= {} if parent is None else {"addendum_to": parent}
        if sign:
            connection.execute(store.claim.delete().where(store.claim.c.study == study))
            store.emit(connection, "review.signed", row.site, study, {"review": review, "verdict": verdict})
            audit.record(connection, site, reader, "review.signed", study, {**detail, "images": images})
        else:
            store.emit(connection, "review.saved", row.site, study, {"review": review})
            audit.record(connection, site, reader, "review.saved", study, detail)
    return review


def withdraw(
    database: Store,
    site: str,
    study: str,
    reader: str,
    *,
    within: timedelta,
    life: timedelta = claims.LIFE,
    now: datetime | None = None,
) -> str:
    """Take one's own newest signature back; return the id of the draft that has what was signed.

    Parameters
    ----------
    within : timedelta
        How long after the signature this may be done.

    Raises
    ------
    NotFoundError
        When the site has no such study.
    ConflictError
        When it is too late, something of it is sent already, the newest signature is not the reader's, or another
        reader holds the study.
    """
    now, table = now or store.now(), store.review
    with database.write() as connection:
        row = claims.find(connection, site, study)
        last = newest(connection, study)
        if row.merged_into or last is None or last.reader != reader or last.signed_at is None:
            raise ConflictError(f"study {study}: you signed nothing here last, so that there is nothing to take back")
        if not last.signed_at <= now < last.signed_at + within:
            seconds = f"{within.total_seconds():.0f} s"
            raise ConflictError(f"study {study}: signed more than {seconds} ago; write an addendum instead")
        _unsend(connection, study, last.id, now)
        if last.parent is None:
            claims.hold(connection, site, study, reader, now, life)
            connection.execute(store.study.update().where(store.study.c.id == study).values(reading="draft"))
        connection.execute(table.update().where(table.c.id == last.id).values(state="withdrawn", withdrawn_at=now))
        key = draft(connection, study, reader, now)
        kept = ("parent", "model_verdict", "normal", "models", "own_call", "own_call_at", "anchored")
        # A draft that is there already is an addendum just begun: none of its words are lost.
        begun = connection.execute(sa.select(table.c.note).where(table.c.id == key)).scalar_one()
        values = {name: getattr(last, name) for name in kept}
        values |= {
            "note": "\n\n".join(filter(None, (last.note, begun))),
            "revision": table.c.revision + 1,
            "writer": None,
        }
        connection.execute(table.update().where(table.c.id == key).values(values))
        answers = store.review_finding
        connection.execute(answers.delete().where(answers.c.review == key))
        for answer in connection.execute(sa.select(answers).where(answers.c.review == last.id)).mappings().all():
            connection.execute(answers.insert().values({**answer, "review": key}))
        store.emit(connection, "review.withdrawn", row.site, study, {"review": last.id})
        audit.record(connection, site, reader, "review.withdrawn", study, {"review": last.id})
    return key


def newest(connection: Connection, study: str) -> Row[Any] | None:
    """Return the newest signed review of a study; none when nobody signed it."""
    table = store.review
    signed = sa.select(table).where(table.c.study == study, table.c.state == "signed")
    return connection.execute(signed.order_by(table.c.signed_at.desc(), table.c.created_at.desc()).limit(1)).first()


def draft(connection: Connection, study: str, reader: str, now: datetime, version: Version | None = None) -> str:
    """Return the reader's draft for this study, a new one when there is none.

    Raises
    ------
    NewerError
        When it is a newer one than that of `version`, and another page saved it.
    """
    table = store.review
    found = connection.execute(
        sa.select(table).where(table.c.study == study, table.c.reader == reader, table.c.state == "draft")
    ).first()
    if found is not None:
        # What the same page saved is no other draft: an answer of ours may have been lost on its way.
        if version and found.revision != version.revision and found.writer != version.writer:
            raise NewerError(study, found.revision)
        return str(found.id)
    key = store.new_id()
    connection.execute(
        table.insert().values(
            id=key, study=study, reader=reader, state="draft", revision=0, normal=False, note="", models=[],
            created_at=now,
        )
    )  # fmt: skip
    return key


def raise_if_abnormal(findings: Sequence[str]) -> None:
    """Raise `ClinicError` when a study called normal has a finding that is neither normal nor a mere device."""
    if abnormal := [finding for finding in findings if finding not in HARMLESS]:
        raise ClinicError(f"normal: contradicts {abnormal[0]!r}; take back one of the two")


def check_findings(findings: Sequence[str]) -> None:
    """Raise `ClinicError` for what cannot be the name of a finding."""
    for finding in findings:
        if not 0 < len(finding) <= 64 or not finding.isprintable():
            raise ClinicError(f"added: {finding[:80]!r} is no finding; 1 to 64 printable characters")


def _check(answers: Mapping[str, str], added: Sequence[str], verdict: str | None, note: str) -> None:
    for finding, answer in answers.items():
        if answer not in ANSWERS:
            raise ClinicError(f"answers: {finding[:64]} = {answer!r}: not one of {', '.join(ANSWERS)}")
    if verdict not in (None, "right", "wrong"):
        raise ClinicError(f"verdict {verdict!r}: not right or wrong")
    if len(note) > 10_000:
        raise ClinicError(f"note: {len(note)} characters; at most 10000 are kept")
    check_findings(added)


def _before(connection: Connection, study: Row[Any], parent: str) -> Row[Any]:
    """Return the review that an addendum is to; raise when it is not the newest of a signed study."""
    last = newest(connection, study.id)
    if study.merged_into:
        raise ConflictError(f"study {study.id}: was merged into study {study.merged_into}; read that one")
    if study.reading != "signed" or last is None:
        raise ConflictError(f"study {study.id}: is open; an addendum is to a signed study, sign this one instead")
    if last.id != parent:
        raise ConflictError(f"study {study.id}: an addendum was signed meanwhile; read it, then write yours to it")
    return last


def _answers(connection: Connection, review: str) -> dict[str, RowMapping]:
    table = store.review_finding
    rows = connection.execute(sa.select(table).where(table.c.review == review)).mappings()
    return {row["finding"]: row for row in rows}


def _unsend(connection: Connection, study: str, review: str, now: datetime) -> None:
    """Let be what a signature owes; raise `ConflictError` when something of it is sent, or is just being sent."""
    table = store.delivery
    owed = [
        row
        for row in connection.execute(sa.select(table).where(table.c.study == study)).all()
        if row.detail["for"] == "review" and superseding.about(row._mapping) == review
    ]
    if any(row.state == "sent" or row.tries or (row.lease_until and row.lease_until > now) for row in owed):
        raise ConflictError(f"study {study}: what you signed was sent already; write an addendum instead")
    waiting = table.c.id.in_([row.id for row in owed]), table.c.state == "queued"
    connection.execute(table.update().where(*waiting).values(state="nothing", error=WITHDRAWN))


def _present(answer: str, call: str | None) -> bool:
    """Tell whether an answer says that the finding may be there: agreeing with *unlikely* denies it."""
    return answer == ("disagree" if call == "unlikely" else "agree")


def _images(connection: Connection, study: str) -> list[str]:
    """Return the ids of the images that a reader of this study has to see, in order of arrival."""
    table = store.instance.c
    wanted = sa.select(table.id).where(table.study == study, table.state == "stored")
    return list(connection.execute(wanted.order_by(table.received_at, table.id)).scalars())


def _said(connection: Connection, study: str, images: list[str]) -> dict[str, dict[str, Any]]:
    """Return what the models said: finding → call, probability and model; the highest of several models."""
    said: dict[str, dict[str, Any]] = {}
    for model in triage.merge([r for r in triage.latest(connection, study, images) if r["suitable"]]):
        for finding in model["findings"]:
            name = finding["finding"]
            if name not in said or finding["probability"] > said[name]["probability"]:
                said[name] = {**finding, "model": model["model"]}
    return said

"""Answering the model, signing.

Whoever answers holds the study (`claims`). A signed review is never changed; a new image after the signature opens the
study again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import audit, claims, store, triage
from wetread.clinic.claims import claim, release
from wetread.clinic.store import Store
from wetread.errors import ClinicError, ConflictError

__all__ = ["ANSWERS", "UnseenError", "Verdict", "claim", "release", "save"]

ANSWERS = ("agree", "disagree", "unsure")
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


def save(
    database: Store,
    site: str,
    study: str,
    reader: str,
    *,
    answers: Mapping[str, str] | None = None,
    added: Sequence[str] = (),
    verdict: Verdict | None = None,
    normal: bool = False,
    note: str = "",
    sign: bool = False,
    seen: Collection[str] | None = None,
    life: timedelta = claims.LIFE,
    now: datetime | None = None,
) -> str:
    """Save a reader's draft, or sign it; return the review's id.

    Parameters
    ----------
    answers : mapping, optional
        Finding of a model → ``agree``, ``disagree`` or ``unsure``. A finding that is not there stays unanswered.
    added : sequence of str
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
    life : timedelta
        How long the claim holds that comes with a draft.

    Raises
    ------
    NotFoundError
        When the site has no such study.
    ConflictError
        When it is signed already, or another reader holds it.
    UnseenError
        When it is to be signed and has an image that is not among `seen`; nothing is changed then.
    ClinicError
        For an answer, finding or note that cannot be.
    """
    now = now or store.now()
    answers = dict(answers or {})
    for finding, answer in answers.items():
        if answer not in ANSWERS:
            raise ClinicError(f"answers: {finding[:64]} = {answer!r}: not one of {', '.join(ANSWERS)}")
    if verdict not in (None, "right", "wrong"):
        raise ClinicError(f"verdict {verdict!r}: not right or wrong")
    if len(note) > 10_000:
        raise ClinicError(f"note: {len(note)} characters; at most 10000 are kept")
    for finding in added:
        if not 0 < len(finding) <= 64 or not finding.isprintable():
            raise ClinicError(f"added: {finding[:80]!r} is no finding; 1 to 64 printable characters")
    with database.write() as connection:
        row = claims.open_study(connection, site, study)
        claims.hold(connection, site, study, reader, now, life)
        images = _images(connection, study)
        if sign and seen is not None and (unseen := [image for image in images if image not in set(seen)]):
            raise UnseenError(study, unseen)
        said = _said(connection, images)
        if unknown := sorted(set(answers) - set(said)):
            raise ClinicError(f"answers: {unknown[0]!r} is no finding of this study's models; put it into `added`")
        if normal and sign:
            raise_if_abnormal([*added, *(f for f, answer in answers.items() if _present(answer, said[f].get("call")))])
        review = _draft(connection, study, reader, now)
        connection.execute(
            store.review.update()
            .where(store.review.c.id == review)
            .values(
                state="signed" if sign else "draft",
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
            model = said.get(values["finding"], {})
            connection.execute(
                store.review_finding.insert().values(
                    review=review, call=model.get("call"), probability=model.get("probability"), **values
                )
            )
        connection.execute(
            store.study.update().where(store.study.c.id == study).values(reading="signed" if sign else "draft")
        )
        detail: dict[str, Any] = {"review": review, "answers": len(answers), "added": len(added), "verdict": verdict}
        if sign:
            connection.execute(store.claim.delete().where(store.claim.c.study == study))
            store.emit(connection, "review.signed", row.site, study, {"review": review, "verdict": verdict})
            audit.record(connection, site, reader, "review.signed", study, {**detail, "images": images})
        else:
            store.emit(connection, "review.saved", row.site, study, {"review": review})
            audit.record(connection, site, reader, "review.saved", study, detail)
    return review


def _present(answer: str, call: str | None) -> bool:
    """Tell whether an answer says that the finding may be there: agreeing with *unlikely* denies it."""
    return answer == ("disagree" if call == "unlikely" else "agree")


def raise_if_abnormal(findings: Sequence[str]) -> None:
    """Raise `ClinicError` when a study called normal has a finding that is neither normal nor a mere device."""
    from wetread.findings import TASKS

    harmless = {task.normal for task in TASKS.values()} | {f for task in TASKS.values() for f in task.neutral}
    if abnormal := [finding for finding in findings if finding not in harmless]:
        raise ClinicError(f"normal: contradicts {abnormal[0]!r}; take back one of the two")


def _images(connection: Connection, study: str) -> list[str]:
    """Return the ids of the images that a reader of this study has to see, in order of arrival."""
    table = store.instance.c
    wanted = sa.select(table.id).where(table.study == study, table.state == "stored")
    return list(connection.execute(wanted.order_by(table.received_at, table.id)).scalars())


def _said(connection: Connection, images: list[str]) -> dict[str, dict[str, Any]]:
    """Return what the models said: finding → call, probability and model; the highest of several models."""
    said: dict[str, dict[str, Any]] = {}
    for model in triage.merge([r for r in triage.latest(connection, images) if r["suitable"]]):
        for finding in model["findings"]:
            name = finding["finding"]
            if name not in said or finding["probability"] > said[name]["probability"]:
                said[name] = {**finding, "model": model["model"]}
    return said


def _draft(connection: Connection, study: str, reader: str, now: datetime) -> str:
    """Return the reader's draft for this study, a new one when there is none."""
    table = store.review
    found = connection.execute(
        sa.select(table.c.id).where(table.c.study == study, table.c.reader == reader, table.c.state == "draft")
    ).scalar()
    if found is not None:
        return str(found)
    key = store.new_id()
    connection.execute(
        table.insert().values(
            id=key, study=study, reader=reader, state="draft", normal=False, note="", models=[], created_at=now
        )
    )
    return key

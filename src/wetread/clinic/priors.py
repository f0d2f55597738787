"""Other studies of the same patient, for comparison: same site and same patient identifier.

Two hospitals may give the same number to two patients: where both studies say who gave it, that must be the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from wetread.clinic import claims, store
from wetread.clinic.store import Store

MOST = 20


@dataclass(frozen=True)
class Prior:
    """A study to compare with.

    Attributes
    ----------
    later : bool or None
        Whether it was acquired after the study in question; None when one of them does not say when.
    doubts : tuple of str
        What differs although the identifier is the same: ``"name"``, ``"birth date"``, ``"sex"``.
    images : tuple of (str, str or None)
        Identifier and view of each image that can be shown.
    normal : bool or None
        What a reader signed; None when nobody has.
    present : tuple of str
        Findings that the reader's signature says are there.
    """

    study: str
    patient_name: str
    patient_id: str
    birth_date: str | None
    acquired_at: str | None
    description: str | None
    views: str
    later: bool | None
    doubts: tuple[str, ...]
    images: tuple[tuple[str, str | None], ...]
    reader: str | None
    normal: bool | None
    present: tuple[str, ...]


def priors(database: Store, site: str, study: str, *, most: int = MOST) -> Sequence[Prior]:
    """Return the other studies of a study's patient, the newest first; none for a patient without an identifier.

    Raises
    ------
    NotFoundError
        When the site has no such study.
    """
    table, images, review, answers = store.study, store.instance, store.review, store.review_finding
    with database.read() as connection:
        own = claims.find(connection, site, study)
        if not own.patient_id.strip():
            return ()
        found = connection.execute(
            sa.select(table)
            .where(
                table.c.site == site,
                table.c.patient_id == own.patient_id,
                sa.or_(
                    sa.literal(own.patient_issuer is None),
                    table.c.patient_issuer.is_(None),
                    table.c.patient_issuer == own.patient_issuer,
                ),
                table.c.id != study,
                table.c.listed.is_(True),
            )
            .order_by(table.c.acquired_at.desc().nulls_last(), table.c.received_at.desc(), table.c.id)
            .limit(most)
        ).all()
        keys = [row.id for row in found]
        shown: dict[str, list[tuple[str, str | None]]] = {key: [] for key in keys}
        for image in connection.execute(
            sa.select(images.c.id, images.c.study, images.c.view)
            .where(images.c.study.in_(keys), images.c.state == "stored")
            .order_by(images.c.received_at, images.c.id)
        ):
            shown[image.study].append((image.id, image.view))
        signed = {
            row.study: row
            for row in connection.execute(
                sa.select(review)
                .where(review.c.study.in_(keys), review.c.state == "signed")
                .order_by(review.c.signed_at, review.c.id)
            )
        }
        said: dict[str, list[str]] = {row.id: [] for row in signed.values()}
        for answer in connection.execute(
            sa.select(answers).where(answers.c.review.in_(list(said))).order_by(answers.c.finding)
        ):
            if _present(answer.answer, answer.call):
                said[answer.review].append(answer.finding)
    result = []
    for row in found:
        last = signed.get(row.id)
        result.append(
            Prior(
                study=row.id,
                patient_name=row.patient_name,
                patient_id=row.patient_id,
                birth_date=row.birth_date,
                acquired_at=row.acquired_at,
                description=row.description,
                views=row.views,
                later=row.acquired_at > own.acquired_at if row.acquired_at and own.acquired_at else None,
                doubts=tuple(
                    word
                    for word, one, other in (
                        ("name", row.patient_name, own.patient_name),
                        ("birth date", row.birth_date, own.birth_date),
                        ("sex", row.sex, own.sex),
                    )
                    if one and other and one != other
                ),
                images=tuple(shown[row.id]),
                reader=last.reader if last else None,
                normal=last.normal if last else None,
                present=tuple(said[last.id]) if last else (),
            )
        )
    return result


def _present(answer: str, call: str | None) -> bool:
    """Tell whether a reader's answer to a model's call says that the finding is there."""
    return answer == "added" or (answer, call) in {("agree", "likely"), ("disagree", "unlikely")}

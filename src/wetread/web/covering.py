"""What is kept from a caller, in every answer that would tell it.

From a reader of a study that is read blind, what the models say (`clinic.blind`); from a role that sees no patients,
who the patient is (`clinic.unnamed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from wetread.clinic import blind, unnamed, worklist
from wetread.clinic.access import Caller, Right
from wetread.clinic.service import Clinic
from wetread.clinic.worklist import PAGE, Page, Query, Row, Study
from wetread.errors import ConflictError, DeniedError
from wetread.web import schemas


def hidden(clinic: Clinic, caller: Caller, studies: Sequence[str]) -> set[str]:
    """Return those of these studies whose results are kept from this caller: one who reads, and has not said yet."""
    if not caller.may(Right.REVIEW):
        return set()
    with clinic.database.read() as connection:
        return blind.hidden(connection, clinic.settings, caller.site, studies, caller.name)


def hides(clinic: Clinic, caller: Caller, study: str) -> bool:
    """Return whether this study's results are kept from this caller."""
    return study in hidden(clinic, caller, [study])


def select(clinic: Clinic, caller: Caller) -> sa.Select[Any] | None:
    """Return the query for all unread studies whose results are kept from this caller; None when there are none."""
    if not caller.may(Right.REVIEW):
        return None
    with clinic.database.read() as connection:
        return blind.covered(connection, clinic.settings, caller.site, caller.name)


def page(
    clinic: Clinic,
    caller: Caller,
    query: Query,
    *,
    after: str | None = None,
    limit: int = PAGE,
    now: datetime | None = None,
) -> Page:
    """Return a page of the list as this caller may see it; to ask for or by a finding does not tell who has it."""
    covered = select(clinic, caller) if query.order == "why" else None
    found = worklist.page(clinic.database, caller.site, query, after=after, limit=limit, now=now, covered=covered)
    told = rows(clinic, caller, found.rows)
    if query.finding is not None:
        told = [row for row in told if row.finding is not None]
    return replace(found, rows=tuple(told))


def rows(clinic: Clinic, caller: Caller, found: Sequence[Row]) -> list[Row]:
    """Return lines of the list as this caller may see them."""
    covered = hidden(clinic, caller, [row.study for row in found])
    if not caller.sees_patients:
        found = [unnamed.row(row) for row in found]
    return [blind.cover(row) if row.study in covered else row for row in found]


def study(clinic: Clinic, caller: Caller, key: str) -> Study:
    """Return a study as this caller may see it; raise `NotFoundError` when their site has none such."""
    found = worklist.study(clinic.database, caller.site, key)
    if hides(clinic, caller, key):
        found = blind.cover_study(found, caller.name)
    return found if caller.sees_patients else unnamed.study(found)


def named(caller: Caller, what: str) -> None:
    """Raise `DeniedError` for a caller who may not see who the patients are, when something cannot go without."""
    if not caller.sees_patients:
        raise DeniedError(
            f"{caller.name}: role {caller.role} may not see who patients are, and {what} says it; ask an administrator"
        )


def row_out(clinic: Clinic, caller: Caller, study: str) -> schemas.RowOut:
    """Return a study's line as the API says it to this caller."""
    return schemas.RowOut.model_validate(rows(clinic, caller, [worklist.row(clinic.database, caller.site, study)])[0])


def refuse(clinic: Clinic, caller: Caller, study: str) -> None:
    """Raise `ConflictError` when what would be told of this study is kept from this caller."""
    if hides(clinic, caller, study):
        raise ConflictError(f"study {study}: is {blind.REASON}; record it first")

"""What is kept from a reader of a study that is read blind, in every answer that would tell it; see `clinic.blind`."""

from __future__ import annotations

from collections.abc import Sequence

from wetread.clinic import blind, worklist
from wetread.clinic.access import Caller, Right
from wetread.clinic.service import Clinic
from wetread.clinic.worklist import Row
from wetread.errors import ConflictError
from wetread.web import schemas


def hidden(clinic: Clinic, caller: Caller, studies: Sequence[str]) -> set[str]:
    """Return those of these studies whose results are kept from this caller: one who reads, and has not said yet."""
    if not (clinic.settings.blind_sites or clinic.settings.blind_share) or not caller.may(Right.REVIEW):
        return set()
    with clinic.database.read() as connection:
        return blind.hidden(connection, clinic.settings, caller.site, studies, caller.name)


def hides(clinic: Clinic, caller: Caller, study: str) -> bool:
    """Return whether this study's results are kept from this caller."""
    return study in hidden(clinic, caller, [study])


def rows(clinic: Clinic, caller: Caller, found: Sequence[Row], finding: str | None = None) -> list[Row]:
    """Return lines of the list as this caller may see them; to ask for a `finding` does not tell who has it."""
    covered = hidden(clinic, caller, [row.study for row in found])
    if finding is not None:
        return [row for row in found if row.study not in covered]
    return [blind.cover(row) if row.study in covered else row for row in found]


def row_out(clinic: Clinic, caller: Caller, study: str) -> schemas.RowOut:
    """Return a study's line as the API says it to this caller."""
    return schemas.RowOut.model_validate(rows(clinic, caller, [worklist.row(clinic.database, caller.site, study)])[0])


def refuse(clinic: Clinic, caller: Caller, study: str) -> None:
    """Raise `ConflictError` when what would be told of this study is kept from this caller."""
    if hides(clinic, caller, study):
        raise ConflictError(f"study {study}: is {blind.REASON}; record it first")

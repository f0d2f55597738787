"""The random-audit sample: studies that are drawn when they arrive and read blind, so that figures are unbiased.

Readers agree with what they were shown, and cases are looked at again because a model was wrong. Both make figures on
reviewed studies look better or worse than the model is. So a share of the patients is drawn before any model has
seen them, by a hash of who they are: all studies of a patient are in the sample or none, which keeps patients apart
when the sample judges what others train. The draw is kept with each study, with the share that held then; a setting
that changes later changes nothing about studies that are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import store
from wetread.config import Settings, by_site


def shares(settings: Settings) -> Callable[[str], float]:
    """Return what gives the share of a site.

    Raises
    ------
    ConfigError
        When `sample_sites` is not of the form ``site=share``.
    """

    def share(text: str) -> float:
        if not 0 <= (value := float(text)) <= 1:
            raise ValueError("no share")
        return value

    wanted = "site=share with a share of 0 to 1, such as north=0.05"
    own = by_site("sample_sites", settings.sample_sites, share, wanted)
    return lambda site: own.get(site, settings.sample_share)


def draw(connection: Connection, site: str, study: str, patient: str, share: float, now: datetime) -> None:
    """Draw for a study that just arrived, and keep the draw; without a share there is nothing to draw from.

    Parameters
    ----------
    patient : str
        Empty: nobody knows whose study it is, and it is drawn for itself.
    """
    if share <= 0:
        return
    who = f"patient {patient}" if patient else f"study {study}"
    digest = hashlib.sha256(f"sample\0{site}\0{who}".encode("utf-8", "surrogatepass")).digest()
    chosen = int.from_bytes(digest[:8], "big") / 2**64 < share
    connection.execute(store.draw.insert().values(study=study, share=share, chosen=chosen, at=now))


def size(connection: Connection, site: str | None = None, *wanted: sa.ColumnElement[bool]) -> dict[str, int]:
    """Return how many studies there are in the sample, and how many of them are signed: the others may differ.

    Parameters
    ----------
    site : str, optional
        Only those of this site.
    wanted : conditions on `store.study`
    """
    table = store.study.c
    counted = (
        sa.select(sa.func.count(), sa.func.count(sa.case((table.reading == "signed", 1))))
        .join(store.draw, store.draw.c.study == table.id)
        .where(store.draw.c.chosen, table.merged_into.is_(None), table.listed, *wanted)
    )
    if site is not None:
        counted = counted.where(table.site == site)
    chosen, signed = connection.execute(counted).one()
    return {"drawn": chosen, "signed": signed}


def drawn(connection: Connection, studies: Sequence[str]) -> set[str]:
    """Return those of these studies that are in the sample."""
    table = store.draw.c
    return set(connection.execute(sa.select(table.study).where(table.study.in_(studies), table.chosen)).scalars())

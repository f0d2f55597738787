"""Reading blind: the reader's own call is recorded before the model's word is shown.

Which studies are read so is fixed by site, or by a share of all studies; the share is taken by a hash of the study, so
that the answer is the same for every reader, at every time. Studies of the random-audit sample (`sample`) are always
read so. The place in the worklist stays: it is for the patient.
Whoever may review is not told what ranked the study or what a model said of it, by no page and no interface, until
their own call is recorded or somebody has signed; the review keeps that call, when it was made, and that it was not
anchored by the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import deployments, sample, store
from wetread.clinic.listing import Row
from wetread.clinic.worklist import Study
from wetread.config import Settings

REASON = "read blind: the model's word is shown after your own call"


def applies(settings: Settings, site: str, study: str) -> bool:
    """Return whether a study is read blind; the same for every reader."""
    return site in settings.blind_sites or _by_lot(settings, study)


def _by_lot(settings: Settings, study: str) -> bool:
    return deployments.drawn(study, "blind") < settings.blind_share


def asked(connection: Connection, study: str, is_blind: bool) -> bool:
    """Return whether a study is read blind, by the settings (`is_blind`) or because it is in the sample."""
    return is_blind or study in sample.drawn(connection, [study])


def waits(connection: Connection, study: str, reader: str) -> bool:
    """Return whether a study that is read blind still waits for this reader's own call."""
    return study in unopened(connection, [study], reader)


def unopened(connection: Connection, studies: Sequence[str], reader: str) -> set[str]:
    """Return those of these studies that nobody has signed and that this reader has made no own call of."""
    table, calls = store.study.c, store.review.c
    called = sa.select(calls.id).where(calls.study == table.id, calls.reader == reader, calls.own_call_at.is_not(None))
    wanted = sa.select(table.id).where(table.id.in_(studies), table.reading != "signed", ~sa.exists(called))
    return set(connection.execute(wanted).scalars())


def hidden(connection: Connection, settings: Settings, site: str, studies: Sequence[str], reader: str) -> set[str]:
    """Return those of these studies whose results are kept from this reader."""
    chosen = {study for study in studies if applies(settings, site, study)} | sample.drawn(connection, studies)
    return unopened(connection, sorted(chosen), reader) if chosen else set()


def covered(connection: Connection, settings: Settings, site: str, reader: str) -> sa.Select[Any] | None:
    """Return the query for the unread studies of a site whose results are kept from this reader, as `hidden` has it.

    None when no study there is read blind. However many there are, they are no list of parameters.
    """
    table, calls, draws = store.study.alias("kept").c, store.review.c, store.draw.c
    called = sa.select(calls.id).where(calls.study == table.id, calls.reader == reader, calls.own_call_at.is_not(None))
    unread = table.site == site, sa.text("kept.reading != 'signed'"), sa.text("kept.listed")
    wanted = sa.select(table.id).where(*unread, ~sa.exists(called))
    if site in settings.blind_sites:
        return wanted
    sampled = sa.select(draws.study).where(draws.chosen)
    by_lot = []
    if settings.blind_share > 0:
        there = connection.execute(sa.select(table.id).where(*unread)).scalars()
        by_lot = [study for study in there if _by_lot(settings, study)]
    if not by_lot and connection.execute(sampled.limit(1)).first() is None:
        return None
    listed: Any = sa.literal(json.dumps(by_lot), sa.Text)
    if connection.dialect.name == "postgresql":
        listed = sa.func.json_array_elements_text(sa.cast(listed, sa.JSON)).table_valued("value")
    else:
        listed = sa.func.json_each(listed).table_valued("value")
    return wanted.where(sa.or_(table.id.in_(sampled), table.id.in_(sa.select(listed.c.value))))


def cover(row: Row) -> Row:
    """Return a line of the worklist without what the model said; its place stays."""
    reason = row.reason if row.finding is None and row.analysis != "analysed" else REASON
    return replace(row, reason=reason, finding=None, model=None)


def cover_study(study: Study, reader: str) -> Study:
    """Return a study without what the models said, and without other readers' answers to it."""
    return replace(
        study,
        blind=True,
        row=cover(study.row),
        cautions=study.row.cautions,
        abnormal={},
        findings=(),
        images=tuple(
            replace(image, results=tuple(result for result in image.results if not result.suitable))
            for image in study.images
        ),
        reviews=tuple(review for review in study.reviews if review.reader == reader),
    )

"""What may go, and how: studies whose time after the signature is over, and bytes that no row needs any more.

Off unless the settings say so. A study goes only when it was read: signed by a reader, all of it, with nothing under
way (no analysis, no claim, no report still to be delivered, no critical finding still to be told). What remains is the
audit. Its bytes go in a second step, and only when no other image has the same: the rows are gone before the file is,
and a note between the two (table `removal`) makes sure that neither a crash nor the same file coming in again at that
moment confuses them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import audit, store
from wetread.clinic.archive import Archive, open_archive
from wetread.clinic.store import Store
from wetread.config import Settings, by_site
from wetread.errors import BusyError

log = logging.getLogger(__name__)

ACTOR = "retention"
_AT_ONCE = 50  # studies of one transaction, so that others get their turn in between
_REMEMBERED = timedelta(days=1)  # far longer than any file takes from the disk to its row


def days(settings: Settings) -> Mapping[str, int]:
    """Return the sites' own number of days after signing, 0 for never.

    Raises
    ------
    ConfigError
        When `retain_sites` is not of the form ``site=days``.
    """

    def number(text: str) -> int:
        if not text.isdecimal():
            raise ValueError("no number of days")
        return int(text)

    return by_site("retain_sites", settings.retain_sites, number, "site=days, such as north=365")


def run(data: Path, settings: Settings, *, dry: bool) -> list[str]:
    """Remove what may go from the clinic of a data folder, or with `dry` only say what; return the studies' ids."""
    database = Store.existing(data, settings.database)
    try:
        with database.read() as connection:
            found = due(connection, settings, store.now())
        if not dry:
            remove(database, open_archive(data, settings), found)
        return found
    finally:
        database.close()


def due(connection: Connection, settings: Settings, now: datetime) -> list[str]:
    """Return the ids of the studies that may go, those signed first at the front."""
    own, table = days(settings), store.study.c
    found: list[str] = []
    for site in connection.execute(sa.select(store.site.c.name).order_by(store.site.c.name)).scalars().all():
        if number := own.get(site, settings.retain_days):
            signed = _signed_at()
            found += connection.execute(
                sa.select(table.id)
                .where(table.site == site, sa.text("study.reading = 'signed'"), signed < now - timedelta(days=number))
                .where(*_at_rest(now))
                .order_by(signed, table.id)
            ).scalars()
    return found


def remove(database: Store, archive: Archive, studies: Sequence[str], actor: str = ACTOR) -> int:
    """Remove studies that are still at rest, with all their rows; then the bytes. Return how many went."""
    gone = 0
    for start in range(0, len(studies), _AT_ONCE):
        with database.write() as connection:
            gone += sum(_remove(connection, key, actor) for key in studies[start : start + _AT_ONCE])
    empty(database, archive)
    return gone


def empty(database: Store, archive: Archive) -> int:
    """Remove the files that are noted for it and that no row needs; return how many went."""
    table, gone = store.removal, 0
    with database.read() as connection:
        noted = list(connection.execute(sa.select(table.c.sha256).where(table.c.done.is_(False))).scalars())
    for sha256 in noted:
        with database.write() as connection:  # nobody makes a row meanwhile
            still = connection.execute(sa.select(table.c.done).where(table.c.sha256 == sha256)).scalar()
            if still is not False or _used(connection, sha256):
                connection.execute(table.delete().where(table.c.sha256 == sha256, table.c.done.is_(False)))
                continue
            archive.remove(sha256)
            connection.execute(table.update().where(table.c.sha256 == sha256).values(done=True, at=store.now()))
            gone += 1
    old = store.now() - _REMEMBERED
    with database.write(ordered=False) as connection:
        connection.execute(table.delete().where(table.c.done.is_(True), table.c.at < old))
    return gone


def discard(connection: Connection, sha256: str) -> None:
    """Note a file that came in and was refused, unless a row needs it; `empty` removes it."""
    if not _used(connection, sha256):
        _note(connection, sha256)


def arrived(connection: Connection, archive: Archive, sha256: str) -> None:
    """Make sure that a file which is about to get its row is there, and stays.

    Raises
    ------
    BusyError
        When it was removed between its arrival and this transaction.
    """
    table = store.removal
    done = connection.execute(sa.select(table.c.done).where(table.c.sha256 == sha256)).scalar()
    if done and archive.size(sha256) is None:
        raise BusyError("the same file was being removed as this one arrived; send it again")
    if done is not None:
        connection.execute(table.delete().where(table.c.sha256 == sha256))


def _signed_at() -> sa.ScalarSelect[datetime]:
    review = store.review.c
    last = sa.select(sa.func.max(review.signed_at)).where(review.study == store.study.c.id, review.state == "signed")
    return last.correlate(store.study).scalar_subquery()


def _at_rest(now: datetime) -> list[sa.ColumnElement[bool]]:
    """Return the conditions under which nothing about a study is under way."""
    table, image, delivery, alert = store.study.c, store.instance.c, store.delivery.c, store.alert.c
    images = sa.select(image.id).where(image.study == table.id).correlate(store.study)
    drafts = sa.select(store.review.c.id).where(store.review.c.study == table.id, store.review.c.state == "draft")
    return [
        table.analysis != "received",
        ~sa.exists(sa.select(store.job.c.id).where(store.job.c.instance.in_(images), store.job.c.state != "done")),
        ~sa.exists(
            sa.select(store.claim.c.study).where(store.claim.c.study == table.id, store.claim.c.expires_at > now)
        ),
        ~sa.exists(drafts.correlate(store.study)),
        ~sa.exists(
            sa.select(delivery.id).where(delivery.study == table.id, delivery.state.not_in(("sent", "nothing")))
        ),
        ~sa.exists(sa.select(alert.id).where(alert.study == table.id, alert.closed_at.is_(None))),
    ]


def _remove(connection: Connection, key: str, actor: str) -> bool:
    """Remove one study's rows and note its files; false when it is not at rest any more."""
    table, now = store.study, store.now()
    row = connection.execute(
        sa.select(table.c.site, _signed_at().label("signed_at")).where(
            table.c.id == key, sa.text("study.reading = 'signed'"), *_at_rest(now)
        )
    ).first()
    if row is None or row.signed_at is None:
        return False
    files = connection.execute(sa.select(store.instance.c.id, store.instance.c.sha256).where(
        store.instance.c.study == key)).all()  # fmt: skip
    images = sa.select(store.instance.c.id).where(store.instance.c.study == key)
    keys = [key, *connection.execute(sa.select(table.c.id).where(table.c.merged_into == key)).scalars()]
    reviews = sa.select(store.review.c.id).where(store.review.c.study.in_(keys))
    audit.record(
        connection, row.site, actor, "study.removed", key,
        {"signed_at": row.signed_at.isoformat(), "images": {file.id: file.sha256 for file in files}},
    )  # fmt: skip
    store.emit(connection, "study.removed", row.site, key)
    connection.execute(store.job.delete().where(store.job.c.instance.in_(images)))
    for made in (store.image_result, store.image_trait):
        connection.execute(made.delete().where(made.c.instance.in_(images)))
    connection.execute(store.review_finding.delete().where(store.review_finding.c.review.in_(reviews)))
    for other in (
        *(store.communication, store.alert, store.study_result, store.review, store.claim, store.draw, store.delivery),
        *(store.assignment, store.instance, store.series),
    ):
        connection.execute(other.delete().where(other.c.study.in_(keys)))
    connection.execute(table.delete().where(table.c.id.in_(keys)))
    for sha256 in {file.sha256 for file in files}:
        if not _used(connection, sha256):
            _note(connection, sha256)
    return True


def _used(connection: Connection, sha256: str) -> bool:
    found = sa.select(store.instance.c.id).where(store.instance.c.sha256 == sha256).limit(1)
    return connection.execute(found).first() is not None


def _note(connection: Connection, sha256: str) -> None:
    connection.execute(store.removal.delete().where(store.removal.c.sha256 == sha256))
    connection.execute(store.removal.insert().values(sha256=sha256, at=store.now(), done=False))

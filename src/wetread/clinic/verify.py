"""`wetread verify`: every row has its bytes, every byte its row, and nobody changed either.

It only reads, and may run while the clinic works: what looks wrong is looked at again before it is said.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from wetread.clinic import audit, store
from wetread.clinic.archive import CHUNK, Archive, open_archive
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import ClinicError

GRACE_S = 5.0  # between a file and its row when the clinic works
_PAGE = 1000


@dataclass
class Report:
    """What was found.

    Attributes
    ----------
    images, files, bytes
        Rows of images, files in the archive, and bytes that were read.
    missing : list of str
        Images whose file is not there.
    changed : list of str
        Images whose file has other bytes than when it came.
    unknown : list of str
        Files that no row knows.
    strays : list of str
        What lies in the archive and is none of its files.
    database : list of str
        What the database says about itself.
    audit : int or None
        Number of the first row that breaks the chain of the audit.
    """

    images: int = 0
    files: int = 0
    bytes: int = 0
    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    database: list[str] = field(default_factory=list)
    audit: int | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        wrong = self.missing or self.changed or self.unknown or self.strays or self.database
        return not wrong and self.audit is None

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {"whole": self.whole, **asdict(self)}

    def lines(self) -> Iterator[str]:
        """Yield what a person reads."""
        yield f"{self.images} images, {self.files} files, {self.bytes} bytes read"
        yield from (f"image {image}: its file is missing; restore it from a backup" for image in self.missing)
        yield from (f"image {image}: its file was changed; restore it from a backup" for image in self.changed)
        yield from (f"file {name}: no row knows it; the next start of the clinic takes it in" for name in self.unknown)
        yield from (f"file {path!a}: not of the archive; see whose it is, and move it away" for path in self.strays)
        yield from (f"database: {line}" for line in self.database)
        if self.audit is not None:
            yield f"audit: row {self.audit} breaks the chain: a row was changed or removed"
        yield "whole" if self.whole else "NOT whole"


def run(data: Path, settings: Settings, *, quick: bool = False, progress: Callable[[], None] = lambda: None) -> Report:
    """Verify the clinic of a data folder, or the backup that lies there, which has a database of its own.

    Raises
    ------
    ConfigError
        When there is none.
    """
    if (data / "backup.json").is_file():
        settings = settings.model_copy(update={"database": "", "archive": ""})
    database = Store.existing(data, settings.database)
    try:
        return verify(database, open_archive(data, settings), quick=quick, progress=progress)
    finally:
        database.close()


def verify(
    database: Store,
    archive: Archive,
    *,
    quick: bool = False,
    grace_s: float = GRACE_S,
    progress: Callable[[], None] = lambda: None,
) -> Report:
    """Compare database and archive, both ways.

    Parameters
    ----------
    database, archive
        Those of one clinic, or of one backup.
    quick : bool
        Compare sizes, not contents.
    grace_s : float
        A file without a row, and a row without a file, count when they still are so after this time.
    progress : callable
        Called after each file.
    """
    report = Report(database=list(_sound(database)), audit=audit.verify(database))
    names, wanted = set(archive.names()), dict[str, list[tuple[str, int]]]()
    for image, sha256, size in _images(database):
        wanted.setdefault(sha256, []).append((image, size))
        report.images += 1
    report.files = len(names)
    for sha256, images in sorted(wanted.items()):
        found, same = _weigh(archive, sha256, quick)
        if found is None:
            report.missing += [image for image, _ in images]
        else:
            report.bytes += 0 if quick else found
            report.changed += [image for image, expected in images if not same or found != expected]
        progress()
    report.unknown = sorted(names - wanted.keys())
    report.strays = sorted(archive.strays())
    if report.unknown or report.missing:
        time.sleep(grace_s)
        _again(database, archive, report)
    return report


def _again(database: Store, archive: Archive, report: Report) -> None:
    """Keep only what is still wrong: meanwhile a row may have come, or gone with its file."""
    images, removal = store.instance.c, store.removal.c
    with database.read() as connection:
        for sha256 in list(report.unknown):
            known = connection.execute(sa.select(images.id).where(images.sha256 == sha256).limit(1)).first()
            leaving = connection.execute(sa.select(removal.sha256).where(removal.sha256 == sha256)).first()
            if known or leaving or archive.size(sha256) is None:
                report.unknown.remove(sha256)
        for image in list(report.missing):
            name = connection.execute(sa.select(images.sha256).where(images.id == image)).scalar()
            if name is None or archive.size(name) is not None:
                report.missing.remove(image)


def _images(database: Store) -> Iterator[tuple[str, str, int]]:
    """Yield id, SHA-256 and size of every image, in pages, so that no transaction lasts."""
    table, after = store.instance.c, ""
    while True:
        page = sa.select(table.id, table.sha256, table.bytes).where(table.id > after).order_by(table.id).limit(_PAGE)
        with database.read() as connection:
            rows = connection.execute(page).all()
        yield from ((row.id, row.sha256, row.bytes) for row in rows)
        if len(rows) < _PAGE:
            return
        after = rows[-1].id


def _weigh(archive: Archive, sha256: str, quick: bool) -> tuple[int | None, bool]:
    """Return a file's size, None when it is not there, and whether its content is what its name says."""
    if quick:
        return archive.size(sha256), True
    digest, size = hashlib.sha256(), 0
    try:
        with archive.open(sha256) as file:
            while piece := file.read(CHUNK):
                digest.update(piece)
                size += len(piece)
    except FileNotFoundError:
        return None, False
    except OSError as error:  # a bad sector
        raise ClinicError(f"archive: {sha256} cannot be read ({error.strerror or error}); check the disk") from None
    return size, digest.hexdigest() == sha256


def _sound(database: Store) -> Iterator[str]:
    """Yield what SQLite finds wrong with its own file; PostgreSQL checks its pages as it reads them."""
    if database.url.get_backend_name() != "sqlite":
        return
    with database.read() as connection:
        for (line,) in connection.exec_driver_sql("PRAGMA integrity_check(20)"):
            if line != "ok":
                yield str(line)
        for row in connection.exec_driver_sql("PRAGMA foreign_key_check"):
            yield f"table {row[0]}: row {row[1]} names a row of {row[2]} that is not there"

"""A watched folder: what is put into ``incoming`` is taken in and then moved to ``done``, or to ``failed``.

A file counts as finished when its size and time have not changed since the look before. It is moved only after it is
safe in the archive; when the process is killed in between, it is taken in again, which changes nothing. When there is
no room, files stay where they are and are tried again. Hidden files and those that end in ``.part`` or ``.tmp`` are
still being written and are left alone.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from wetread.clinic import upload
from wetread.clinic.intake import Intake
from wetread.clinic.upload import Receipt
from wetread.config import Settings
from wetread.errors import ConfigError, FullError

log = logging.getLogger(__name__)

_UNFINISHED = (".part", ".tmp", ".partial", ".crdownload")
_AT_ONCE = 200  # files of one look, so that stopping never waits long


class Watch:
    """One watched folder.

    Parameters
    ----------
    folder : Path
        Gets the folders ``incoming``, ``done`` and ``failed``.
    intake : Intake
    settings : Settings

    Raises
    ------
    ConfigError
        When the folders cannot be made or written.
    """

    def __init__(self, folder: Path, intake: Intake, settings: Settings) -> None:
        self.incoming, self.done, self.failed = (folder / name for name in ("incoming", "done", "failed"))
        self.intake, self.settings = intake, settings
        self._seen: dict[Path, tuple[int, int]] = {}
        try:
            for each in (self.incoming, self.done, self.failed):
                each.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"watch {folder}: cannot be made ({error.strerror}); name a folder you may write"
            ) from None
        if not os.access(self.incoming, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(f"watch {folder}: may not be read and written; name another folder")

    def look(self) -> int:
        """Take in every file that has not changed since the last look; return how many were moved."""
        before, self._seen, moved = self._seen, {}, 0
        for path in sorted(self._files()):
            try:
                found = path.stat(follow_symlinks=False)
            except OSError:
                continue  # somebody took it away
            now = (found.st_size, found.st_mtime_ns)
            if before.get(path) != now or moved >= _AT_ONCE:
                self._seen[path] = now
                continue
            if not self._take(path):  # the disk is full: the rest need not be tried now
                break
            moved += 1
        return moved

    def _files(self) -> list[Path]:
        """Return the regular files in `incoming`; links are not followed, since they may lead anywhere."""
        found = []
        for folder, folders, names in os.walk(self.incoming):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(folder) / name
                if name.startswith(".") or name.lower().endswith(_UNFINISHED):
                    continue
                if stat.S_ISREG(path.lstat().st_mode):
                    found.append(path)
        return found

    def _take(self, path: Path) -> bool:
        """Take in one file and move it; return False when there is no room, and it was left where it is."""
        try:
            # O_NOFOLLOW: between the look and now somebody may have put a link in its place.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                receipt = upload.take(
                    self.intake,
                    [(path.name, file)],
                    self.settings.site,
                    actor="watched folder",
                    corrects=self.settings.watch_corrects,
                    max_files=self.settings.max_files,
                    max_total=self.settings.max_upload_bytes,
                )
        except OSError as error:
            log.error("watched folder: a file cannot be read: %s", error.strerror)
            receipt = Receipt()
        if isinstance(receipt.error, FullError):
            log.error("watched folder: no room: %s", receipt.error)
            return False
        good = bool(receipt.received) and not receipt.refused and any(r.format != "other" for r in receipt.received)
        target = (self.done if good else self.failed) / path.relative_to(self.incoming)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(_free(target))
        except OSError as error:
            log.error("watched folder: a file cannot be moved: %s", error.strerror)
        return True


def _free(target: Path) -> Path:
    """Return a name that is not taken: nothing that was moved here before is overwritten."""
    number, found = 1, target
    while found.exists():
        found = target.with_name(f"{target.stem}.{number}{target.suffix}")
        number += 1
    return found

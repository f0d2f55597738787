"""Taking up what is deployed: packages are loaded and let go while the service runs, in each process by itself.

Every second the rows are looked at. A package new in force is loaded from ``DATA/models/<sha256>`` and proven on
its golden radiographs before it analyses anything; one that does not keep them, or whose content is not what its id
says, never serves and is rolled back. One that is not there, not whole (yet) or not readable on this machine is looked
for again and again: that is the machine's fault and not the package's, and other processes may have it. What is no
longer in force is let go once nothing of it is under way. The list is ordered anew by one process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from wetread.clinic import deploying, deployments
from wetread.clinic.ai import Ai, Served
from wetread.clinic.deploying import Candidate
from wetread.clinic.deployments import CHAMPION, SETTINGS, Deployment
from wetread.config import Settings
from wetread.errors import MissingError, ModelError, WetreadError, hide
from wetread.infer.predict import Predictor
from wetread.infer.remote import local_name
from wetread.model.package import Package

log = logging.getLogger(__name__)

AGAIN_S = 10.0  # between two looks for a package that is not there
COPYING_S = 60.0  # a package whose files changed so lately may still be being copied
GRACE_S = 5.0  # between taking a package out of service and closing it: a job of it may just have begun


class TakeUp:
    """Keeps the models of a process the same as what is deployed.

    Parameters
    ----------
    ai : Ai
        Whose models they are.
    arrived : callable
        Called after the models changed, to queue what they owe.
    leads : callable
        Whether this process is the one that orders the list anew.

    Attributes
    ----------
    missing : dict
        Package id → why it is not loaded here, of those in force.
    """

    def __init__(self, ai: Ai, arrived: Callable[[], None], leads: Callable[[], bool]) -> None:
        self._ai, self._arrived, self._leads = ai, arrived, leads
        self.missing: dict[str, str] = {}
        self._seen: tuple[str, ...] | None = None
        self._tried = 0.0
        self._going: list[tuple[Served, float]] = []
        self._reorder = threading.Event()

    def first(self, others: Collection[str]) -> None:
        """Make the models of the settings champions, at the start; `others` serve these packages already."""
        ai = self._ai
        named = [candidate(each.predictor.package) for each in ai.models.values() if isinstance(each, Served)]
        if named:
            with ai.database.write() as connection:
                for row in deploying.first(connection, ai.settings.site, named, others, whole=ai.whole):
                    log.info("model %s is the champion of %s, as the settings say", row.label, row.slot)
        self.look()

    def look(self) -> bool:
        """Load what is new in force and let go what is not; return whether anything changed."""
        self._close()
        ai = self._ai
        if not ai.settings.ai:
            return False
        with ai.database.read() as connection:
            rows = deployments.history(connection)
        now = tuple(f"{row.id} {row.share}" for row in rows if row.until is None)
        again = self.missing and time.monotonic() - self._tried > AGAIN_S
        if now == self._seen and not again:
            return False
        begun = self._seen is not None  # at the start the service does all that anyway
        self._tried = time.monotonic()
        changed = self._settle(rows)
        self._seen = now
        ai.challenging = deployments.challenging(rows)
        if changed and begun:
            self._arrived()
        if begun:
            self._reorder.set()
        return changed

    def order(self) -> bool:
        """Order the lists anew after a change, in one process; return whether it did."""
        if not self._reorder.is_set():
            return False
        if not self._leads():
            if self._ai.ordered():
                self._reorder.clear()
            return False
        self._reorder.clear()
        self._ai.reorder()
        return True

    def close(self) -> None:
        """Close what was let go, at the end."""
        for served, _ in self._going:
            served.predictor.close()
        self._going.clear()

    def _settle(self, rows: list[Deployment]) -> bool:
        ai = self._ai
        force = {row.model: row for row in rows if row.until is None}
        known, models = {row.model for row in rows}, dict(ai.models)
        gone = [models.pop(model) for model in list(models) if model in known and model not in force]
        self.missing = {model: why for model, why in self.missing.items() if model in force}
        for row in force.values():
            # What other processes' settings name is theirs.
            if row.model not in models and row.actor != SETTINGS and (served := self._load(row)) is not None:
                models[row.model] = served
        changed = models.keys() != ai.models.keys()
        if changed:
            ai.take(models)
        self._going += [(each, time.monotonic()) for each in gone if isinstance(each, Served)]
        return changed

    def _load(self, row: Deployment) -> Served | None:
        ai = self._ai
        try:
            served = Served(Predictor(find(row.model, ai.data, ai.settings), ai.settings))
        except (WetreadError, OSError) as error:
            unsound = isinstance(error, ModelError) and not isinstance(error, MissingError)
            self._failed(row, hide(str(error)), sound=not unsound)
            return None
        self.missing.pop(row.model, None)
        log.info("model %s is loaded, in %s", row.label, row.stage)
        return served

    def _failed(self, row: Deployment, why: str, *, sound: bool) -> None:
        """Say that a package could not be loaded; one that was read and is not sound is rolled back."""
        if self.missing.get(row.model) != why:
            log.error("model %s is not served: %s", row.label, why)
        self.missing[row.model] = why
        if sound:
            return
        with self._ai.database.write() as connection:
            home = self._ai.settings.site
            done = deploying.fell(connection, row.model, f"not served: {why}", home=home, champions=True)
        for change in done:
            log.error("%s", change.words)
        if row.stage == CHAMPION and not done:
            self._ai.unsound(row.model_name, row.model, why)

    def _close(self) -> None:
        """Close the packages that were let go and have nothing under way any more."""
        busy, now = self._ai.watchdog.busy(), time.monotonic()
        for each in list(self._going):
            served, since = each
            if now - since > GRACE_S and served.id not in busy:
                self._going.remove(each)
                if served.id not in self._ai.models:
                    served.predictor.close()


def candidate(package: Package) -> Candidate:
    """Return a package as its slot knows it."""
    return Candidate(deployments.slot_of(package), package.id, package.name, package.meta.code_version[:64])


def find(model: str, data: Path, settings: Settings) -> Package:
    """Return the package of an id, from the data folder or from what the settings name.

    Raises
    ------
    MissingError
        When it is nowhere, or is not whole or not readable; it says why.
    ModelError
        When what the data folder holds under this id is another content.
    """
    own, unsound = data / "models" / model, None
    why: list[str] = []
    try:
        if (package := Package(own)).id == model:
            return package
        raise ModelError(f"{own}: its files are not those of package {model[:12]}; stage the package again")
    except WetreadError as error:
        why.append(str(error))
        if not isinstance(error, MissingError) and not _copied(own):
            unsound = error
    for name in settings.models:
        try:
            if (package := Package.open(local_name(name), data)).id == model:
                return package
        except (WetreadError, OSError) as error:
            why.append(str(error))
    if unsound is not None:
        raise unsound
    raise MissingError(f"package {model[:12]}: neither in {data / 'models'} nor named by the setting models: {why[0]}")


def _copied(folder: Path) -> bool:
    """Tell whether a folder may be being copied just now: a file of it changed lately."""
    try:
        return any(abs(time.time() - each.lstat().st_mtime) < COPYING_S for each in folder.iterdir())
    except OSError:  # a file has just been renamed
        return True

"""One clinic: everything that `wetread serve` runs, put together, started and stopped in order."""

from __future__ import annotations

import fcntl
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path
from typing import IO, Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from wetread.clinic import (
    accuracy,
    adt,
    completion,
    destinations,
    experiments,
    priority,
    processes,
    quality,
    retention,
    sample,
    store,
    triage,
)
from wetread.clinic.ai import Ai, AiState, ModelState, Served
from wetread.clinic.archive import open_archive, room
from wetread.clinic.corrections import Corrections
from wetread.clinic.critical import Criticals
from wetread.clinic.delivery import Outbox
from wetread.clinic.dimse import Listener
from wetread.clinic.intake import Intake
from wetread.clinic.jobs import READ_ONLY
from wetread.clinic.processes import Leader, Presence
from wetread.clinic.pull_service import Pulls
from wetread.clinic.store import Store
from wetread.clinic.takeup import TakeUp
from wetread.clinic.triage import Policy
from wetread.clinic.watch import Watch
from wetread.clinic.worker import Model, Worker, research_only
from wetread.config import Settings
from wetread.errors import ClinicError, ConfigError, FullError
from wetread.radiograph.read import Limits

__all__ = ["AiState", "Clinic", "ModelState", "Served"]

log = logging.getLogger(__name__)

UPKEEP_S = 30.0
PATIENCE_S = 10.0
RECOVER_S = 20.0  # between two looks at models that turned themselves off
ROUND_S = 600.0  # between two rounds of the leader
UPLOAD_S = 3600.0  # a file that was not written to for so long is no upload under way
ADOPTED_S = 600.0  # a file that has no row after so long will get none


class Clinic:
    """The clinic of one data folder.

    Parameters
    ----------
    data : Path
        The folder of database and archive; made when missing. On SQLite only one service at a time may use it; on
        PostgreSQL several may, of one folder or of several with one archive in S3.
    settings : Settings
    models : sequence of Model, optional
        The models in service; by default those of the setting `models`, opened by `start`.
    kind : str
        ``serve``, or ``work`` for a process that only analyses: nothing comes in through it.

    Raises
    ------
    ConfigError, ClinicError
        When the folder cannot be used, or another service uses it.
    """

    def __init__(
        self, data: Path, settings: Settings, *, models: Sequence[Model] | None = None, kind: str = "serve"
    ) -> None:
        self.data, self.settings, self.kind = data, settings, kind
        # They say what is wrong with the settings before anything starts.
        retention.days(settings)
        destinations.of(settings)
        self.rules = priority.rules(settings.priority)
        self._lock = _lock(data, alone=not settings.database or settings.database.startswith("sqlite"))
        self.database = Store.open(data, settings.database)
        self.archive = open_archive(data, settings)
        self.claim_life = timedelta(minutes=settings.claim_minutes)
        self.days: quality.Kept = {}  # figures of days that are over
        self._counted: date | None = None
        self.accuracy: dict[str, list[accuracy.Accuracy]] = {}  # site → what Prometheus is told
        self._judged = -math.inf
        self.undo = timedelta(seconds=settings.undo_seconds)  # a signature is final only after it
        self.leader, self.watcher = Leader(self.database, "upkeep"), Leader(self.database, "watch")
        self.turner = Leader(self.database, "turn")  # each is asked by one thread only
        self.orderer = Leader(self.database, "order")
        self.critical = Criticals(self.database, settings, self.rules)
        self.outbox = Outbox(self.database, self.archive, settings)
        self._given = models
        self.switches = Ai(self.database, settings, self.rules, data)
        self.deployed = TakeUp(self.switches, self._changed, self.orderer.leads)
        self.worker: Worker | None = None
        self.intake = Intake(
            self.database,
            self.archive,
            policy=self.policy,
            models=lambda: list(self.models),
            max_bytes=settings.max_bytes,
            wake=self._wake,
            complete_after_s=settings.complete_after_s,
            sample_share=sample.shares(settings),
        )
        self.pulls = Pulls(self.intake, settings)
        self.corrections = Corrections(self.database, self.policy, lambda: list(self.models))
        enters = kind == "serve"
        self.watch = Watch(Path(settings.watch), self.intake, settings) if settings.watch and enters else None
        self.listener = Listener(self.intake, settings, self.has_room) if settings.dicom_port and enters else None
        self.adt = adt.Listener(self.corrections, settings) if settings.hl7_port and enters else None
        self.stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._pulling: threading.Thread | None = None
        self._next_round = time.monotonic() + ROUND_S
        self._turned: tuple[str, ...] = ()

    def start(self) -> None:
        """Open the models, set right what a crash left, and begin to work. Only the first call does."""
        if self.worker is not None:
            return
        settings = self.settings
        if self.listener is not None:
            self.listener.bind()
        logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it quotes what it finds odd, names included
        with self.database.write() as connection:
            store.ensure_site(connection, settings.site)
        self.switches.open(self._given)
        limits = Limits.of(settings)
        # Two more than the runtime has, so that files are decoded while it computes, and batches form.
        self.worker = Worker(
            self.database, self.archive, self.models, self.policy,
            threads=settings.threads + 2, limits=limits, tries=settings.job_tries,
        )  # fmt: skip
        self.worker.watchdog, self.worker.held = self.switches.watchdog, lambda: self.switches.held
        self.switches.failures, self.switches.arrived = self.worker.failures, self._arrived
        self.switches.taken, self.worker.broke = self._taken, self.switches.broke
        self.switches.look()
        self.presence = Presence(self.database, self.worker.name, self.kind, lambda: list(self.models) or [READ_ONLY])
        self.presence.enter()
        others = self.presence.others()
        self.deployed.first(_models(others))
        self.presence.beat()
        self.worker.queue.take_back([other["id"] for other in others])
        retention.empty(self.database, self.archive)
        self._set_right(bool(others))
        self.intake.backfill(_models(others))
        self.worker.start()
        self._every(processes.BEAT_S, self._beat)
        self._every(UPKEEP_S, self._upkeep)
        self._every(UPKEEP_S, self._count)
        self.outbox.start()
        self._every(1.0, self._sweep)
        self._every(1.0, self._complete)
        self._every(1.0, self.critical.step)
        self._every(1.0, self.switches.step)
        self._every(1.0, self.deployed.look)
        self._every(1.0, self._order)
        self._every(1.0, self._turn)
        self._every(RECOVER_S, self.switches.recover)
        if self.adt is not None:
            self.adt.start()
        if self.watch is not None:
            self._every(1.0, self._look)
        if self.listener is not None:
            self.listener.start()
            self._every(1.0, self._report)
        if self.kind == "serve":
            self.pulls.worker = self.worker.name
            self._pulling = threading.Thread(target=self._pull, name="pull", daemon=True)
            self._pulling.start()
        self._ordering = threading.Thread(target=self._rerank_all, name="rerank", daemon=True)
        self._ordering.start()

    def stop(self) -> None:
        """Finish what is at hand and close everything."""
        self.stopping.set()
        if self.listener is not None:
            self.listener.stop()
        if self.adt is not None:
            self.adt.stop()
        for thread in self._threads:
            thread.join()
        if self.worker is not None:
            self.worker.stop()
            self._ordering.join(PATIENCE_S)  # what it does not finish, the next start does
            if self._pulling is not None:
                self._pulling.join(PATIENCE_S)  # likewise
        self.outbox.stop()
        for model in self.models.values():
            if isinstance(model, Served):
                model.predictor.close()
        self.deployed.close()
        if self.worker is not None:
            with suppress(SQLAlchemyError, ClinicError):
                self.presence.leave()
        self.leader.resign()
        self.watcher.resign()
        self.turner.resign()
        self.orderer.resign()
        self.database.close()
        self._lock.close()

    def free(self) -> float:
        """Return how many bytes may still be taken in: what the disks have, less the setting `disk_reserve`."""
        return min(self.archive.free(), room(self.data, self.settings.disk_reserve))

    def has_room(self) -> bool:
        """Return whether anything more may be taken in."""
        return self.free() > 0

    @property
    def models(self) -> Mapping[str, Model]:
        """The models that are loaded, by id; another mapping whenever they change."""
        return self.switches.models

    @property
    def research_only(self) -> bool:
        """Whether what the pages show is for research only: one model that is makes it so, and so does having none."""
        return any(research_only(model) for model in self.models.values()) or not self.models

    def require_room(self) -> None:
        """Raise `FullError` when nothing more may be taken in; call it before a body or an association is read."""
        if not self.has_room():
            raise FullError("the disk has only its reserve left (setting disk_reserve); make room and send it again")

    def policy(self, connection: Connection, site: str) -> Policy:
        """Return how the studies of a site are ranked now."""
        return self.switches.policy(connection, site)

    def ai(self, site: str) -> AiState:
        """Return whether AI orders this site's list, and what to tell the reader when it does not."""
        return self.switches.state(site)

    def switch_ai(self, site: str, on: bool, actor: str, *, model: str = "", reason: str = "") -> None:
        """Turn the site's AI switch, or that of one model, and order its list anew; see `Ai.switch`."""
        self.switches.switch(site, on, actor, model=model, reason=reason)

    def _arrived(self) -> None:
        """Go on with what waited for a model."""
        if self.worker is not None:
            self.intake.backfill(_models(self.presence.others()))
            self.worker.wake()

    def _taken(self, models: Mapping[str, Model]) -> None:
        if self.worker is not None:
            self.worker.models = models

    def _changed(self) -> None:
        """Tell the other processes what is served here now, and go on with what waited for it."""
        self.presence.beat()
        self._arrived()

    def _wake(self) -> None:
        if self.worker is not None:
            self.worker.wake()

    def _every(self, seconds: float, task: Callable[[], object]) -> None:
        """Run a task again and again in its own thread; a failure is logged and does not end it."""

        def loop() -> None:
            while not self.stopping.wait(seconds):
                try:
                    task()
                except Exception as error:
                    log.error("%s: %s", task.__name__, type(error).__name__)

        thread = threading.Thread(target=loop, name=task.__name__, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _pull(self) -> None:
        while not self.stopping.is_set():
            try:
                others = [other["id"] for other in self.presence.others()]
                if not self.pulls.step(others, self.stopping.is_set):
                    self.stopping.wait(1.0)
            except Exception as error:  # the database is gone: nothing is lost, try again
                log.error("pull: %s", type(error).__name__)
                self.stopping.wait(1.0)

    def _look(self) -> None:
        if self.watch is not None and self.watcher.leads():
            self.watch.look()

    def _order(self) -> None:
        if self.deployed.order():
            self.outbox.renew()

    def _beat(self) -> None:
        self.presence.beat()

    def _upkeep(self) -> None:
        """Do what is due now and then; what several processes must not do at a time, only the leader does."""
        if self.database.shared:
            self.intake.backfill(_models(self.presence.others()))
        if self.leader.leads() and time.monotonic() > self._next_round:
            self._next_round = time.monotonic() + ROUND_S
            if self.database.shared:
                self._set_right(True)
            with self.database.read() as connection:
                over = retention.due(connection, self.settings, store.now())
            if gone := retention.remove(self.database, self.archive, over):
                log.info("%d studies were removed: their time after the signature is over", gone)

    def _count(self) -> None:
        """Count the days that are over once a day, before anybody waits for the page of figures; and for Prometheus."""
        now = store.now()
        if self._counted != now.date():
            quality.ahead(self.database, self.days, now)
            self._counted = now.date()
        if self.kind == "serve" and time.monotonic() > self._judged + ROUND_S:
            self.accuracy, self._judged = accuracy.ahead(self.database, now), time.monotonic()

    def _set_right(self, careful: bool) -> None:
        """Put away what a crash left; `careful` leaves alone what another process may be writing just now."""
        self.archive.clean(UPLOAD_S if careful else 0.0)
        adopted, missing, unreadable = self.intake.adopt(self.settings.site, ADOPTED_S if careful else 0.0)
        if adopted:
            log.warning("%d files without a row were taken in: studies %s", len(adopted), ", ".join(adopted))
        for file in unreadable:
            log.error("a file without a row was not taken in: %s", file)
        for image in missing:
            log.error("image %s: its file is missing from the archive; restore it from a backup", image)

    def _report(self) -> None:
        if self.listener is not None:
            self.listener.commitments.step()

    def _turn(self) -> None:
        """Order the lists anew where an experiment has come to its next block, or has begun or ended."""
        with self.database.read() as connection:
            latest = experiments.latest(connection, store.now())
        if latest != self._turned:
            if self.turner.leads():
                self.switches.reorder()
            elif not self.switches.ordered():
                return  # whoever leads is at it
            self._turned = latest

    def _sweep(self) -> None:
        with self.database.read() as connection:
            due = triage.due(connection, store.now())
        if due:
            with self.database.write() as connection:
                triage.sweep(connection, self.rules, store.now())

    def _complete(self) -> None:
        wait = timedelta(seconds=self.settings.complete_after_s)
        completion.sweep(self.database, list(self.models), self.policy, store.now(), wait)

    def _rerank_all(self) -> None:
        try:
            self.switches.reorder()
        except Exception as error:
            log.error("rerank: %s", type(error).__name__)


def _models(others: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the ids of the models that other processes serve."""
    return {model for other in others for model in other["models"]}


def _lock(data: Path, *, alone: bool) -> IO[str]:
    """Take the lock of a data folder, alone or with others that share it; it goes with the process."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = (data / "serve.lock").open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--data {data}: cannot be written ({error.strerror}); name a folder you may write") from None
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise ClinicError(
            f"--data {data}: another `wetread serve` uses it; stop that one, name another folder, or use PostgreSQL, "
            "on which several may work (setting database)"
        ) from None
    return handle

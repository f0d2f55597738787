"""The AI of one clinic: which models order the list now, what turns them off, and how they come back.

A person turns a site's model off and on, or all of them. A model that fails turns itself off, at every site, and comes
back when a person says so, or, with the setting `ai_recover`, when it keeps its golden outputs again. Meanwhile studies
come in and are listed first come, first served, and the jobs of a model that turned itself off wait for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import deploying, deployments, store, switches, triage
from wetread.clinic.jobs import Job
from wetread.clinic.merging import Merging
from wetread.clinic.priority import Rules
from wetread.clinic.store import Store
from wetread.clinic.switches import ALL, SYSTEM, Off
from wetread.clinic.triage import Policy
from wetread.clinic.watchdog import Watchdog
from wetread.clinic.worker import Model
from wetread.config import Settings
from wetread.errors import ModelError, NotFoundError, WetreadError, hide
from wetread.infer.predict import Analysis, Predictor
from wetread.infer.remote import address, local_name
from wetread.model.package import Package

log = logging.getLogger(__name__)

FAILING = 3  # failures in a row after which a model counts as failing
_FIRST_COME = "studies are listed first come, first served"


@dataclass(frozen=True)
class ModelState:
    """One model of the setting `models`.

    It is ``serving``, ``local`` (its server does not answer, so this machine does), ``failing`` on recent images,
    ``off`` (`since` when, `by` whom), or ``missing``; all but the first may have a reason.
    """

    name: str
    id: str
    version: str
    state: str
    reason: str = ""
    since: datetime | None = None
    by: str = ""


@dataclass(frozen=True)
class AiState:
    """Whether AI orders the list; `banner` says so when it does not, or not fully. `off` is the site's own switch."""

    on: bool
    banner: str | None
    models: tuple[ModelState, ...]
    off: Off | None = None


class Served:
    """A predictor as the worker uses it."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.id, self.name = predictor.package.id, predictor.package.name
        self.version = predictor.package.meta.code_version
        self.research_only = predictor.package.meta.research_only

        meta, normal = predictor.package.meta, predictor.package.task.normal
        self.merging = Merging(meta.kind, meta.aggregate, normal, {f: list(both) for f, both in meta.cutoffs.items()})

    def analyse(self, path: Path, name: str) -> Analysis:
        """Read a file as the model wants it and analyse it."""
        return self.predictor.analyse(self.predictor.read(path, name))

    def analyse_pair(self, frontal: Path, lateral: Path) -> tuple[Analysis, ...]:
        """Read the two views of a study and analyse them together; only for a model of studies."""
        return self.predictor.analyse_pair(self.predictor.read(frontal), self.predictor.read(lateral))


class Ai:
    """The models of a clinic, and their switches.

    Parameters
    ----------
    database : Store
    settings : Settings
    rules : Rules
    data : Path
        Where packages may lie.

    Attributes
    ----------
    models : dict
        Model id → model, of those that are loaded, also when they are off.
        Never changed in place: others walk along it.
    held : frozenset of str
        Ids of the models whose jobs wait: they turned themselves off, at every site.
    challenging : frozenset of str
        Ids of those that are champion nowhere: they are no part of what readers are told of the AI.
    """

    def __init__(self, database: Store, settings: Settings, rules: Rules, data: Path) -> None:
        self.database, self.settings, self.rules, self.data = database, settings, rules, data
        self.models: dict[str, Model] = {}
        self.held: frozenset[str] = frozenset()
        self.challenging: frozenset[str] = frozenset()
        self.taken: Callable[[dict[str, Model]], None] = lambda models: None  # called when the models are others
        self.failures: dict[str, int] = {}  # model id → failures in a row, as the worker counts them
        self.arrived: Callable[[], None] = lambda: None  # called when a model came back
        self.watchdog = Watchdog(settings, self.fail)
        self._missing: dict[str, ModelState] = {}  # name in the setting → why it does not serve
        self._off: set[str] = set()  # packages that were off at the last look
        self._reorder = threading.Event()

    # ------------------------------------------------------------------ loading

    def open(self, given: Sequence[Model] | None = None) -> None:
        """Load the models of the setting `models`, or take those given."""
        if given is not None and self.settings.ai:
            self.take({model.id: model for model in given})
            return
        for name in self.settings.models if self.settings.ai else ():
            self._open(name)

    def _open(self, name: str) -> bool:
        """Load one; one whose package is there and does not do what it did when it was packaged is off."""
        shown, package = hide(name) if "://" in name else Path(name).name, None
        try:
            package = Package.open(local_name(name), self.data)
            served = Served(Predictor(package, self.settings, url=address(name)))
        except WetreadError as error:
            why = hide(str(error))
            if name not in self._missing:
                log.error("model %s is not served: %s", hide(name), why)
            if package is not None and isinstance(error, ModelError):
                self._missing[name] = ModelState(package.name, package.id, "", "missing", why)
                self._turn_off(package.name, package.id, "golden", why)
            else:
                self._missing[name] = ModelState(shown, "", "", "missing", why)
            return False
        self._missing.pop(name, None)
        self.take({**self.models, served.id: served})
        return True

    def take(self, models: dict[str, Model]) -> None:
        """Serve these models from now on."""
        self.models = models
        self.taken(models)

    @property
    def whole(self) -> bool:
        """Whether every model of the settings is loaded."""
        return not self._missing

    def _ranking(self) -> list[Model]:
        return [model for model in self.models.values() if model.id not in self.challenging]

    # ------------------------------------------------------------------ what holds now

    def policy(self, connection: Connection, site: str) -> Policy:
        """Return how the studies of a site are ranked now."""
        return switches.policy(connection, site, self.rules.of(site), ai=self.settings.ai and bool(self.models))

    def state(self, site: str) -> AiState:
        """Return whether AI orders this site's list, and what to tell the reader when it does not."""
        with self.database.read() as connection:
            off = switches.off(connection, site)
        models = self._ranking()
        states = [self._state(model, off.get(model.name)) for model in models]
        states += [_off(state, off.get(state.name)) for state in self._missing.values()]
        on = self.settings.ai and ALL not in off and any(model.name not in off for model in models)
        return AiState(on, self._banner(states, off, on), tuple(states), off.get(ALL))

    def _state(self, model: Model, off: Off | None) -> ModelState:
        remote = model.predictor.remote if isinstance(model, Served) else None
        state = ModelState(model.name, model.id, model.version, "serving")
        if off is not None:
            return _off(state, off)
        if self.failures.get(model.id, 0) >= FAILING:
            return ModelState(model.name, model.id, model.version, "failing")
        if remote is not None and remote.breaker.state != "closed":
            return ModelState(model.name, model.id, model.version, "local", remote.reason)
        return state

    def _banner(self, states: Sequence[ModelState], off: Mapping[str, Off], on: bool) -> str | None:
        if not self.settings.ai:
            return f"AI is switched off: {_FIRST_COME}."
        if all_off := off.get(ALL):
            return f"AI is switched off{_since(all_off)}: {_FIRST_COME}."
        said = [
            f"Model {name} {'turned itself off' if each.by_itself else 'is switched off'}{_since(each)}."
            for name, each in off.items()
            if any(state.name == name for state in states)
        ]
        if not on:
            said.append(f"AI is {'off' if said else 'not available'}: {_FIRST_COME}.")
        elif said:
            said.append("It ranks nothing; what it had said is not shown.")
        broken = [state.name for state in states if state.state in ("failing", "missing")]
        alone = [state.name for state in states if state.state == "local"]
        if on and broken:
            said.append(
                f"AI is incomplete: model {', '.join(broken)} is not working; its studies wait in order of arrival."
            )
        elif on and alone:
            said.append(f"AI works, but slower: the server of model {', '.join(alone)} does not answer.")
        return " ".join(said) or None

    # ------------------------------------------------------------------ off and on

    def switch(self, site: str, on: bool, actor: str, *, model: str = ALL, reason: str = "") -> None:
        """Turn all AI of a site, or one model, and order the site's list anew.

        Raises
        ------
        NotFoundError
            When there is no such model.
        """
        with self.database.write() as connection:
            store.ensure_site(connection, site)
            known = {each.name for each in self.models.values()} | {each.name for each in self._missing.values()}
            if model != ALL and model not in known | set(switches.off(connection, site)):
                raise NotFoundError(f"model {model[:64]!r}: not one of {', '.join(sorted(known)) or 'none'}")
            if on:
                switches.turn_on(connection, site, model, actor, reason=reason)
            else:
                switches.turn_off(connection, site, model, actor, reason=reason)
            policy = self.policy(connection, site)
        self.look()
        triage.rerank(self.database, policy, site)

    def fail(self, model: str, cause: str, reason: str) -> bool:
        """Turn a model off at every site, because it fails; the list is ordered anew at the next `step`.

        One that only challenges is rolled back instead; return whether that is so.
        """
        if (found := self.models.get(model)) is None or model in self._off:
            return False
        with self.database.write() as connection:
            done = deploying.fell(connection, model, f"{cause}: {reason}", home=self.settings.site)
            rows = [row for row in deployments.history(connection) if row.model == model]
        for change in done:
            log.error("%s", change.words)
        if not rows or any(row.until is None for row in rows):
            self._turn_off(found.name, model, cause, reason)
            return False
        return True

    def broke(self, job: Job) -> bool:
        """Roll a challenger back that may be what ends the process; return whether it was."""
        if job.model not in self.challenging:
            return False
        return self.fail(job.model, "crash", f"its analysis broke off {job.tries - 1} times")

    def unsound(self, name: str, package: str, reason: str) -> None:
        """Turn a champion off that has no predecessor and does not keep its golden outputs."""
        self._turn_off(name, package, "golden", reason)

    def _turn_off(self, name: str, package: str, cause: str, reason: str) -> None:
        with self.database.write() as connection:
            store.ensure_site(connection, self.settings.site)
            sites = connection.execute(sa.select(store.site.c.name)).scalars().all()
            done = [
                switches.turn_off(connection, site, name, SYSTEM, reason=reason, cause=cause, package=package)
                for site in sites
            ]
        if any(done):
            log.error("model %s turned itself off: %s", name, reason)
            self._reorder.set()
        self.look()

    def look(self) -> None:
        """Learn what is off now, whoever turned it; a model that came back begins anew."""
        with self.database.read() as connection:
            found = switches.everywhere(connection)
            sites = connection.execute(sa.select(sa.func.count()).select_from(store.site)).scalar_one()
        packages = [each.package for each in found if each.package]
        self.held = frozenset(package for package in packages if packages.count(package) >= sites)
        back, self._off = self._off - set(packages), set(packages)
        for package in back:
            self.watchdog.reset(package)
            self.failures[package] = 0
        if back:
            self.arrived()

    def step(self) -> None:
        """Do what is due every second or so: look at the models and the switches, and order the list anew."""
        remotes = {
            model.id: model.predictor.remote
            for model in self.models.values()
            if isinstance(model, Served) and model.predictor.remote is not None
        }
        self.watchdog.look(remotes)
        self.look()
        if self._reorder.is_set():
            self._reorder.clear()
            self.reorder()

    def reorder(self) -> None:
        """Bring every site's list into the order that holds now."""
        with self.database.read() as connection:
            sites = list(connection.execute(sa.select(store.site.c.name)).scalars())
            policies = {site: self.policy(connection, site) for site in sites}
        for site, policy in policies.items():
            triage.rerank(self.database, policy, site)

    def ordered(self) -> bool:
        """Tell whether every site's list is in that order."""
        with self.database.read() as connection:
            sites = connection.execute(sa.select(store.site.c.name, store.site.c.policy)).all()
            return all(self.policy(connection, site.name).id == site.policy for site in sites)

    def recover(self, now: datetime | None = None) -> list[str]:
        """Try the models that turned themselves off long enough ago; return the names of those that go on."""
        wait, now = timedelta(minutes=self.settings.ai_recover), now or store.now()
        if not self.settings.ai_recover:
            return []
        with self.database.read() as connection:
            due = [each for each in switches.everywhere(connection) if each.by_itself and each.at + wait <= now]
        recovered = [name for name in dict.fromkeys(each.model for each in due) if self._sound(name)]
        with self.database.write() as connection:
            for each in due:
                if each.model in recovered:
                    switches.turn_on(connection, each.site, each.model, SYSTEM, reason="it keeps its golden outputs")
        if recovered:
            log.warning("models go on, their golden outputs hold again: %s", ", ".join(recovered))
            self.look()
            self.arrived()
            self._reorder.set()
        return recovered

    def _sound(self, name: str) -> bool:
        """Return whether a model is loaded, its server if any in reach, and its golden outputs are kept."""
        for setting, state in list(self._missing.items()):
            if state.name == name:
                return self._open(setting)
        served = next((each for each in self._ranking() if each.name == name), None)
        if not isinstance(served, Served):
            return False
        try:
            served.predictor.prove()
        except ModelError as error:
            log.warning("model %s stays off: %s", name, hide(str(error)))
            return False
        remote = served.predictor.remote
        return remote is None or remote.breaker.state == "closed"


def _off(state: ModelState, off: Off | None) -> ModelState:
    if off is None:
        return state
    return ModelState(state.name, state.id, state.version, "off", off.reason, off.at, off.actor)


def _since(off: Off) -> str:
    by = "" if off.by_itself or off.actor == "unknown" else f" by {off.actor}"
    return f" since {off.at:%Y-%m-%d %H:%M} UTC{by}{f' ({off.reason})' if off.reason else ''}"

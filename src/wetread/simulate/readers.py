"""A simulated reader: takes the top of the worklist and reads it through the interface that the study page uses."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np

from wetread.clinic.priority import Priority
from wetread.errors import ClinicError, ConfigError, DeniedError, hide
from wetread.simulate import perception
from wetread.simulate.perception import Skill, generator
from wetread.simulate.truth import Case, Clock

CLASSES = tuple(str(each) for each in Priority)
MINUTES = dict(zip(CLASSES, (4.0, 3.5, 2.5), strict=True))
_PAGE = 50
_SLICE_S = 240.0  # a claim is renewed before it runs out, as a hand on the mouse does
_TRIES = 8
_SOON_S, _FOREIGN_S = 1.0, 120.0


@dataclass(frozen=True)
class Habit:
    """How somebody works.

    Attributes
    ----------
    minutes : dict of str to float
        Mean reading time by class, in simulated minutes.
    spread : float
        Standard deviation of it as a share of its mean; times are log-normal.
    shift : (float, float)
        Hours of the (simulated) day between which they read; (0, 24) is always, (22, 6) over midnight.
    hand_over : float
        Chance of handing a study to another reader of the crew instead of reading it.
    look : bool
        Whether they fetch the pictures, as the page does.
    """

    minutes: Mapping[str, float] = field(default_factory=lambda: dict(MINUTES))
    spread: float = 0.5
    shift: tuple[float, float] = (0.0, 24.0)
    hand_over: float = 0.0
    look: bool = True

    def __post_init__(self) -> None:
        for name, value in {**self.minutes, "spread": self.spread}.items():
            if not 0 <= value <= 1e5:
                raise ConfigError(f"reader: {name} = {value}: must be 0 to 100000")
        if not 0 <= self.hand_over <= 1:
            raise ConfigError(f"reader: hand_over = {self.hand_over}: must be 0 to 1")
        begin, end = self.shift
        if begin == end or not all(0 <= hour <= 24 for hour in self.shift):
            raise ConfigError(f"reader: shift = {begin:g} to {end:g}: must be two different hours, 0 to 24")

    def takes(self, priority: str, rng: np.random.Generator) -> float:
        """Draw a reading time, in simulated minutes."""
        mean = self.minutes.get(priority, MINUTES["routine"])
        width = np.sqrt(np.log1p(self.spread**2))
        return float(rng.lognormal(np.log(mean) - width**2 / 2, width)) if mean > 0 else 0.0

    def works(self, hour: float) -> bool:
        """Return whether an hour of the day lies in the shift."""
        begin, end = self.shift
        return begin <= hour < end if begin <= end else hour >= begin or hour < end


def hours(text: str) -> tuple[float, float]:
    """Read the hours of a shift, as `8-18`; raise `ConfigError` for what is none."""
    begin, dash, end = text.partition("-")
    try:
        found = float(begin), float(end)
    except ValueError:
        found = math.nan, math.nan
    if not dash or not all(0 <= hour <= 24 for hour in found):
        raise ConfigError(f"shift {text[:40]!r}: write the hours between which they read, e.g. 8-18")
    return found


class ConflictError(ClinicError):
    """Somebody else has the study, or something of it changed."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        super().__init__(str(answer.get("detail", "")))
        self.images: Sequence[str] = answer.get("images") or ()


class Reader:
    """One reader at one server.

    Parameters
    ----------
    name : str
        As the server calls them.
    http : httpx.Client
        Signed in, see `crew`.
    skill, habit
    clock : Clock
        Of the simulation.
    seed : int
    truth : callable
        Takes the Study Instance UID and the server's id; returns the case, or None for what is not of the simulation.
    crew : sequence of str
        To whom studies may be handed over.
    stop : threading.Event
    """

    def __init__(
        self,
        name: str,
        http: httpx.Client,
        skill: Skill,
        habit: Habit,
        *,
        clock: Clock,
        seed: int,
        truth: Callable[[str, str], Case | None],
        crew: Sequence[str] = (),
        stop: threading.Event | None = None,
    ) -> None:
        self.name, self.http, self.skill, self.habit = name, http, skill, habit
        self.clock, self.seed, self.truth = clock, seed, truth
        self.others = [other for other in crew if other != name]
        self.stop = stop or threading.Event()
        self.done: Counter[str] = Counter()
        self._strange: dict[str, float] = {}  # study → until when it is left alone, as nothing is known of it
        self._writer = str(uuid.uuid4())

    # ------------------------------------------------------------------ what a reader does

    def step(self) -> str | None:
        """Read the most urgent study that is free; return what became of it, None when there is none."""
        for row in self._list():
            mine = row["claimed_by"] == self.name
            if not self._may(row) or row["status"] == "received" or not (mine or row["claimed_by"] is None):
                continue
            try:
                outcome = self._read(row)
            except ConflictError:
                outcome = "conflict"  # another reader was faster
            self.done[outcome] += 1
            if outcome in ("signed", "handed over"):
                return outcome
        return None

    def _list(self) -> list[dict[str, Any]]:
        """Return the unread studies, those that were handed to this reader first."""
        rows: list[dict[str, Any]] = []
        mine, after = [], None
        while True:
            page = self._ask("GET", "/worklist", params={"limit": _PAGE} | ({"after": after} if after else {}))
            rows += page["studies"]
            free = [r for r in rows if r["claimed_by"] is None and self._may(r)]
            after = page["next"]
            if free or after is None:
                mine = [r for r in rows if r["claimed_by"] == self.name]
                return mine + [r for r in rows if r["claimed_by"] != self.name]

    def _may(self, row: Mapping[str, Any]) -> bool:
        return self._strange.get(row["study"], 0.0) <= time.monotonic()

    def _read(self, row: Mapping[str, Any]) -> str:
        study = f"/studies/{row['study']}"
        handed = row.get("handed_by") is not None
        claimed = self._ask("POST", f"{study}/claim")
        self.name = claimed["claimed_by"] or self.name  # a token's name is known to the server only
        opened = self._ask("GET", study)
        case = self.truth(opened["study_uid"], row["study"])
        if case is None:
            # The truth of one that just came may be on its way; one that has long been here is somebody else's.
            age = (datetime.now(UTC) - datetime.fromisoformat(row["received_at"])).total_seconds()
            self._strange[row["study"]] = time.monotonic() + (_SOON_S if age < _FOREIGN_S else math.inf)
            self._ask("DELETE", f"{study}/claim")
            return "not of the simulation"
        rng = generator(self.seed, self.name, case.patient)
        if rng.random() < self.habit.hand_over and not handed and self._hand_over(study, rng):
            return "handed over"
        self._look(opened)
        self._acknowledge(study)
        self._wait(study, self.habit.takes(row["priority"], rng))
        if self.stop.is_set():  # in the middle of a reading, which nobody signs half read
            self._ask("DELETE", f"{study}/claim")
            return "given back"
        seen = self.skill.sees(case, rng)
        if opened["blind"]:
            named = [name for name, there in seen.items() if there]
            self._ask("POST", f"{study}/own-call", {"normal": perception.is_normal(seen), "findings": named})
            self.done["read blind"] += 1
            opened = self._ask("GET", study)
        else:
            seen = self.skill.follows(seen, case, perception.highest(opened["findings"]), rng)
        self._sign(study, opened, seen, rng)
        self._tell(study)
        return "signed"

    def _hand_over(self, study: str, rng: np.random.Generator) -> bool:
        here = sorted(set(self.others) & set(self._ask("GET", "/readers")))
        if not here:
            return False
        self._ask("POST", f"{study}/hand-over", {"to": here[int(rng.integers(len(here)))]})
        return True

    def _look(self, opened: Mapping[str, Any]) -> None:
        for image in _stored(opened) if self.habit.look else ():
            response = self._request("GET", f"/images/{image}/values")
            self.done["pictures" if response.status_code == 200 else "no picture"] += 1

    def _wait(self, study: str, minutes: float) -> None:
        left = self.clock.lasts(minutes)
        while left > 0 and not self.stop.wait(min(left, _SLICE_S)):
            left -= _SLICE_S
            if left > 0:
                self._ask("POST", f"{study}/claim")

    def _sign(self, study: str, opened: Mapping[str, Any], seen: perception.Seen, rng: np.random.Generator) -> None:
        said = perception.highest(opened["findings"])
        answers = self.skill.answers(seen, said, rng)
        body: dict[str, Any] = {
            "findings": answers,
            "normal": perception.is_normal(seen),
            "model_verdict": None
            if not said
            else "wrong" if any(answer["answer"] == "disagree" for answer in answers) else "right",
            "note": "",
            "writer": self._writer,
        }  # fmt: skip
        drafts = [r for r in opened["reviews"] if r["state"] == "draft" and r["reader"] == self.name]
        revision = drafts[-1]["revision"] if drafts else 0
        saved = self._ask("POST", f"{study}/reviews", body | {"state": "draft", "revision": revision})
        images = _stored(opened)
        for _ in range(_TRIES):
            try:
                sealed = body | {"state": "signed", "seen": images, "revision": saved["revision"]}
                self._ask("POST", f"{study}/reviews", sealed)
                return
            except ConflictError as error:
                if not error.images:
                    if self._is_ours(study):  # it arrived, though its answer did not
                        return
                    raise
                self.done["images came late"] += 1
                images = _stored(self._ask("GET", study))
        raise ConflictError({"detail": "images kept coming"})

    def _is_ours(self, study: str) -> bool:
        review = self._ask("GET", study)["review"]
        return review is not None and review["reader"] == self.name

    def _acknowledge(self, study: str) -> None:
        alert = self._ask("GET", f"{study}/communications")["alert"]
        if alert is not None and alert["stage"] == "acknowledge":
            self._ask("POST", f"{study}/communications", {"kind": "acknowledged"})
            self.done["acknowledged"] += 1

    def _tell(self, study: str) -> None:
        alert = self._ask("GET", f"{study}/communications")["alert"]
        if alert is not None and alert["stage"] == "tell":
            told = {"kind": "communicated", "recipient": "Ward (simulated)", "how": "phone", "read_back": True}
            self._ask("POST", f"{study}/communications", told)
            self.done["told"] += 1

    # ------------------------------------------------------------------ the interface

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, params: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the answer; wait and ask again while the server is busy or away.

        Raises
        ------
        ConflictError
            When somebody else was faster, or the study is gone.
        DeniedError
            When the reader is not let in.
        ClinicError
            For anything else than a good answer.
        """
        response = self._request(method, path, body, params)
        if response.status_code < 300:
            return response.json()  # type: ignore[no-any-return]
        if response.status_code in (404, 409):
            raise ConflictError(_detail(response))
        if response.status_code in (401, 403):
            raise DeniedError(f"{self.name}: {_detail(response).get('detail', 'not let in')}")
        raise ClinicError(f"{method} {path}: HTTP {response.status_code}: {_detail(response).get('detail', '')}")

    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, params: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        for attempt in range(1, _TRIES + 1):
            try:
                response = self.http.request(method, f"/api/v1{path}", json=body, params=params)
                if response.status_code not in (429, 503, 507) or attempt == _TRIES:
                    return response
                asked = response.headers.get("Retry-After", "")
            except httpx.HTTPError as error:
                if attempt == _TRIES:
                    raise ClinicError(f"{hide(str(self.http.base_url))}: {type(error).__name__}") from None
                asked = ""
            self.done["tried again"] += 1
            if self.stop.wait(min(30.0, max(0.5 * 2 ** (attempt - 1), float(asked) if asked.isdecimal() else 0.0))):
                raise ClinicError("stopped")
        raise AssertionError


def _stored(opened: Mapping[str, Any]) -> list[str]:
    return [image["image"] for image in opened["images"] if image["state"] == "stored"]


def _detail(response: httpx.Response) -> dict[str, Any]:
    try:
        value = response.json()
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}

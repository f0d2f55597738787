"""A crew of simulated readers: who they are, how they log in, and until when they read."""

from __future__ import annotations

import re
import secrets
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from wetread.clinic import access, accounts, audit
from wetread.clinic.store import Store
from wetread.errors import ClinicError, ConfigError, DeniedError, NotFoundError, hide
from wetread.simulate import truth
from wetread.simulate.arrivals import connect
from wetread.simulate.perception import Skill
from wetread.simulate.readers import Habit, Reader
from wetread.simulate.truth import Case, Truth

_POLL_S = 0.2
_ACTOR = "simulation"  # as the audit names who made, enabled and disabled an account
_CSRF = re.compile(r'<meta name="csrf-token" content="([0-9a-f]+)">')


@dataclass(frozen=True)
class Member:
    """One reader of the crew; `token` is empty for one who logs in with an account of their own."""

    name: str
    skill: Skill
    habit: Habit
    token: str = ""


def load(path: Path) -> list[Member]:
    """Read a crew from TOML: a table `[[reader]]` for each, with the names of `Skill` and `Habit`, `name` and `token`.

    Raises
    ------
    ConfigError
        Naming what is wrong with it.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        members = [_member(dict(values)) for values in found.pop("reader", [])]
        if found or not members:
            raise ConfigError(f"{next(iter(found), 'reader')!r} is not [[reader]]" if found else "no [[reader]] in it")
    except (OSError, ValueError, TypeError, KeyError, ConfigError) as error:
        raise ConfigError(f"{path}: not a crew ({error}); see docs/simulate.md") from None
    if len({member.name for member in members}) < len(members):
        raise ConfigError(f"{path}: two readers have the same name; give each another one")
    return members


def _member(values: dict[str, Any]) -> Member:
    skill = {name: values.pop(name) for name in Skill.__dataclass_fields__ if name in values}
    habit = {name: values.pop(name) for name in Habit.__dataclass_fields__ if name in values}
    if "findings" in skill:
        skill["findings"] = {name: (float(pair[0]), float(pair[1])) for name, pair in skill["findings"].items()}
    if "shift" in habit:
        begin, end = habit["shift"]
        habit["shift"] = (float(begin), float(end))
    member = Member(str(values.pop("name")), Skill(**skill), Habit(**habit), str(values.pop("token", "")))
    if values:
        raise ConfigError(f"reader {member.name!r}: unknown key {next(iter(values))!r}")
    return member


@contextmanager
def employed(database: Store, members: Sequence[Member], site: str) -> Iterator[dict[str, str]]:
    """Give each member without a token an account for as long as this lasts; yields name → password.

    An account that an earlier simulation made is taken, also one that it could not disable any more.

    Raises
    ------
    ConflictError
        When a token has the name of a member.
    ClinicError
        When an account that no simulation made has it.
    """
    passwords = {member.name: secrets.token_urlsafe(24) for member in members if not member.token}
    keys = []
    try:
        for name, password in passwords.items():
            try:
                account = accounts.find(database, site, name)
            except NotFoundError:
                made = accounts.create(database, name, access.Role.RADIOLOGIST, site, password, actor=_ACTOR)
                keys.append(made.id)
            else:
                if not any(audit.rows(database, actor=_ACTOR, action="account.created", what=account.id)):
                    raise ClinicError(f"account {name!r}: is somebody's; give the simulated reader another name")
                keys.append(account.id)
                accounts.set_password(database, site, account.id, password, actor=_ACTOR)
                accounts.change(database, site, account.id, disabled=False, actor=_ACTOR)
        yield passwords
    finally:
        for key in keys:
            with suppress(ClinicError):
                accounts.change(database, site, key, disabled=True, actor=_ACTOR)


def log_in(url: str, name: str, password: str) -> httpx.Client:
    """Log in by the form of the login page; return the client of the session.

    Raises
    ------
    DeniedError
        When the server does not let them in.
    ClinicError
        When there is no server.
    """
    http = connect(url, "-")
    del http.headers["Authorization"]
    try:
        answer = http.post("/login", data={"name": name, "password": password})
        page = http.get("/") if answer.status_code == 303 else answer
    except httpx.HTTPError as error:
        http.close()
        raise ClinicError(f"{hide(url)}: no server there ({error}); start `wetread serve`") from None
    token = _CSRF.search(page.text)
    if answer.status_code != 303 or token is None:
        http.close()
        raise DeniedError(f"{name}: not let in (HTTP {answer.status_code})")
    http.headers["X-CSRF-Token"] = token[1]
    return http


class Following:
    """A truth file that may still grow; safe in several threads."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock, self._size, self._grown = path, threading.RLock(), -1, time.monotonic()
        self.truth: Truth = truth.read(path)
        self._cases = self.truth.by_key()

    def case(self, study_uid: str, study: str) -> Case | None:
        """Return the case of a study, also one that was written just now."""
        with self._lock:
            found = self._cases.get(study_uid) or self._cases.get(study)
            if found is None and self.refresh():
                found = self._cases.get(study_uid) or self._cases.get(study)
            return found

    def refresh(self) -> bool:
        """Read it again where it grew; return whether it did."""
        with self._lock:
            size = self.path.stat().st_size
            if size == self._size:
                return False
            self._size, self._grown, self.truth = size, time.monotonic(), truth.read(self.path)
            self._cases = self.truth.by_key()
            return True

    def ended(self, idle_s: float) -> bool:
        """Return whether nothing more comes: it says so, or for so long nobody wrote, and nobody is about to."""
        silent = time.monotonic() - self._grown > idle_s
        return self.truth.ended or (silent and not truth.written(self.path))

    @property
    def patients(self) -> int:
        """How many studies the server has accepted so far."""
        return len({case.study_uid or case.study for case in self.truth.cases if case.outcome == "accepted"})


def read(
    members: Sequence[Member],
    clients: Mapping[str, httpx.Client],
    path: Path,
    *,
    seed: int,
    stop: threading.Event | None = None,
    count: int | None = None,
    idle_s: float = 30.0,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> dict[str, dict[str, int]]:
    """Let a crew read until all studies of the simulation are signed.

    Parameters
    ----------
    members : sequence of Member
    clients : mapping of str to httpx.Client
        By name, signed in.
    path : Path
        The truth file, which may still be written.
    seed : int
    stop : threading.Event, optional
        Ends it early.
    count : int, optional
        Ends it once so many are signed.
    idle_s : float
        Once all were sent: how long nobody finds anything to read before it ends, in real s, when not all studies
        can be signed by the crew. Also, how long a truth file that nobody writes may lack its last line.
    now : callable
        The real time.

    Returns
    -------
    dict of str to dict
        Name → what was done how often.

    Raises
    ------
    ConfigError
        For a time that is none.
    DeniedError, ClinicError
        When a reader is not let in, or the server is gone.
    """
    if not 0 <= idle_s <= 1e7:
        raise ConfigError(f"idle = {idle_s}: must be 0 to 10000000 s")
    stop, following = stop or threading.Event(), Following(path)
    names = [member.name for member in members]
    clock = following.truth.clock
    readers = [
        Reader(
            m.name, clients[m.name], m.skill, m.habit, clock=clock, seed=seed, truth=following.case,
            crew=names, stop=stop,
        )
        for m in members
    ]  # fmt: skip

    def finished(quiet_s: float) -> bool:
        following.refresh()
        signed = sum(reader.done["signed"] for reader in readers)
        if count is not None and signed >= count:
            return True
        return following.ended(idle_s) and (signed >= following.patients or quiet_s > idle_s)

    def work(reader: Reader) -> None:
        found = time.monotonic()  # when there was something to read, or no shift
        try:
            while not stop.is_set() and not finished(time.monotonic() - found):
                at = clock.at(now())
                works = reader.habit.works(at.hour + at.minute / 60)
                read = works and reader.step() is not None
                if read or not works:
                    found = time.monotonic()
                if not read:
                    stop.wait(_POLL_S)
        except BaseException:
            if not stop.is_set():
                stop.set()
                raise

    with ThreadPoolExecutor(len(readers), "reader") as pool:
        try:
            for future in [pool.submit(work, reader) for reader in readers]:
                future.result()
        except KeyboardInterrupt:
            pass
        finally:
            stop.set()
    return {reader.name: dict(reader.done) for reader in readers}


@contextmanager
def signed_in(url: str, members: Sequence[Member], passwords: Mapping[str, str]) -> Iterator[dict[str, httpx.Client]]:
    """Sign everybody in: by token where there is one, else with name and password."""
    with ExitStack() as stack:
        yield {
            m.name: stack.enter_context(
                closing(connect(url, m.token) if m.token else log_in(url, m.name, passwords[m.name]))
            )
            for m in members
        }


def alike(count: int, skill: Skill, habit: Habit, tokens: Sequence[str] = ()) -> list[Member]:
    """Return so many readers of the same kind, with tokens where there are some."""
    if tokens and len(tokens) < count:
        raise ConfigError(f"{len(tokens)} tokens for {count} readers; each needs one of their own")
    found = [Member(f"Simulated {number}", skill, habit) for number in range(1, count + 1)]
    return [replace(m, token=t) for m, t in zip(found, tokens, strict=False)] if tokens else found

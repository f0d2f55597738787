"""The priority rule: what a study waits for, and why. Pure functions; no clock, no database.

AI only reorders. The priority that the requester gave is a floor which AI may raise and never lower; a study
that AI did not analyse keeps it. A study that reaches the waiting cap of its class is promoted to the top of
its list and stays there until it is read; only critical studies stand above an overdue one. Within a class, first come
first served, but for the head start that a finding may have; urgent and routine studies may take turns (`turns`).
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wetread.errors import ClinicError, ConfigError


class Priority(StrEnum):
    """The three classes, most urgent first."""

    CRITICAL = "critical"
    URGENT = "urgent"
    ROUTINE = "routine"


ORDER = {priority: place for place, priority in enumerate(Priority)}


class Class(BaseModel):
    """One class: the findings that put a study into it, and how long it may wait."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    findings: tuple[str, ...] = ()
    cap_minutes: float = Field(gt=0, le=60 * 24 * 365, allow_inf_nan=False)

    @property
    def cap(self) -> timedelta:
        """The waiting cap."""
        return timedelta(minutes=self.cap_minutes)


class Rule(BaseModel):
    """A site's rule. Flagged findings named in no class are routine; those in `never` do not rank at all.

    `weights` is finding → head start in its class, in minutes. `points` is finding → probability from which it counts,
    in place of the operating point with which the model's result was stored. `ratio` is how many urgent studies are
    read for each routine one while both wait; without it the urgent ones all come first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    critical: Class = Class(findings=("Pneumothorax",), cap_minutes=30)
    urgent: Class = Class(
        findings=("Edema", "Consolidation", "Pneumonia", "Pleural Effusion", "Effusion"), cap_minutes=120
    )
    routine: Class = Class(cap_minutes=240)
    never: tuple[str, ...] = ("No Finding", "Normal", "Support Devices")
    weights: dict[str, Annotated[float, Field(ge=0, le=60 * 24, allow_inf_nan=False)]] = {}
    points: dict[str, Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]] = {}
    ratio: float | None = Field(None, ge=1, le=100, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _give_way(cls, data: Any) -> Any:
        """Take what a rule puts into another class out of the lists that it leaves as they are."""
        if not isinstance(data, dict):
            return data
        lists = {name: data[name].get("findings") if isinstance(data.get(name), dict) else None for name in Priority}
        given = [*(found for found in lists.values() if isinstance(found, list)), data.get("never")]
        named = {str(finding) for found in given if isinstance(found, list) for finding in found}
        filled = dict(data)
        for name in Priority:
            usual: Class = cls.model_fields[name].default
            findings = [finding for finding in usual.findings if finding not in named]
            if name not in data:
                filled[name] = {"findings": findings, "cap_minutes": usual.cap_minutes}
            elif isinstance(data[name], dict) and "findings" not in data[name]:
                filled[name] = {"findings": findings, **data[name]}
        if "never" not in data:
            filled["never"] = [finding for finding in cls.model_fields["never"].default if finding not in named]
        return filled

    @model_validator(mode="after")
    def _once(self) -> Rule:
        named = [*self.critical.findings, *self.urgent.findings, *self.routine.findings, *self.never]
        if twice := [finding for finding, times in Counter(named).items() if times > 1]:
            raise ValueError(f"{twice[0]!r} is named more than once; leave one")
        return self

    def of(self, finding: str) -> Priority | None:
        """Return the class of a flagged finding, or None for one that never ranks."""
        if finding in self.never:
            return None
        for priority in (Priority.CRITICAL, Priority.URGENT):
            if finding in getattr(self, priority).findings:
                return priority
        return Priority.ROUTINE

    def cap(self, priority: Priority) -> timedelta:
        """Return how long a study of this class may wait."""
        found: Class = getattr(self, priority)
        return found.cap

    def ahead(self, finding: str | None, priority: Priority) -> timedelta:
        """Return the head start of a study of this class that this finding ranked."""
        minutes = self.weights.get(finding, 0.0) if finding is not None and self.of(finding) is priority else 0.0
        return timedelta(minutes=minutes)

    def counts(self, scored: Scored) -> bool:
        """Return whether a finding of a model is there, as far as this rule goes."""
        point = self.points.get(scored.finding)
        return scored.flagged if point is None else scored.probability >= point

    def rank(self, priority: Priority, overdue: bool) -> int:
        """Return the place of a study's group in the list; urgent and routine are one group when they take turns."""
        return rank(Priority.URGENT if self.turns(priority, overdue) else priority, overdue)

    def turns(self, priority: Priority, overdue: bool) -> bool:
        """Return whether studies of this class take turns."""
        return self.ratio is not None and priority is not Priority.CRITICAL and not overdue


@dataclass(frozen=True)
class Rules:
    """The rules of all sites: those of the sites that have their own, and the one of all others."""

    common: Rule = field(default_factory=Rule)
    own: dict[str, Rule] = field(default_factory=dict)

    def of(self, site: str) -> Rule:
        """Return the rule of a site."""
        return self.own.get(site, self.common)


def rules(setting: str) -> Rules:
    """Read the rules that the setting `priority` names: a file for all sites, or a folder with one for each.

    In a folder, ``north.toml`` is the rule of the site *north*, and ``default.toml`` that of the sites without a file.

    Raises
    ------
    ConfigError
        For a path that is not there, or a file that is no rule.
    """
    path = Path(setting)
    if not setting:
        return Rules()
    if not path.is_dir():
        return Rules(load(path))
    found = {file.stem: load(file) for file in sorted(path.glob("*.toml"))}
    if not found:
        raise ConfigError(f"priority {setting!r}: a folder without a rule; put SITE.toml or default.toml there")
    return Rules(found.pop("default", Rule()), found)


def load(file: Path) -> Rule:
    """Read a rule from a TOML file with the tables ``[critical] [urgent] [routine]`` and the list ``never``.

    Raises
    ------
    ConfigError
        For a file that is none, an unknown key or finding class, or a bad value, naming it.
    """
    try:
        return read(file.read_text(encoding="utf-8"), str(file))
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file}: not a priority rule: {error}") from None


def read(text: str, name: str) -> Rule:
    """Read a rule from TOML; `name` is what errors call it.

    Raises
    ------
    ConfigError
        For what is no TOML, an unknown key or finding class, or a bad value, naming it.
    """
    try:
        return Rule(**tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{name}: not a priority rule: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = f"{where} = {str(first['input'])[:80]!r}: " if where else ""
        raise ConfigError(f"{name}: {said}{first['msg'].removeprefix('Value error, ')}; see docs/clinic.md") from None


def written(rule: Rule) -> str:
    """Return a rule as TOML, as `read` takes it."""

    def quoted(texts: Sequence[str]) -> str:
        return f"[{', '.join(json.dumps(text) for text in texts)}]"

    lines = [f"never = {quoted(rule.never)}"]
    if rule.ratio is not None:
        lines.append(f"ratio = {rule.ratio:g}")
    for name in Priority:
        found: Class = getattr(rule, name)
        lines += ["", f"[{name}]", f"findings = {quoted(found.findings)}", f"cap_minutes = {found.cap_minutes:g}"]
    for table, values in (("weights", rule.weights), ("points", rule.points)):
        if values:
            lines += ["", f"[{table}]", *(f"{json.dumps(finding)} = {value!r}" for finding, value in values.items())]
    return "\n".join(lines) + "\n"


def parse(word: str | None) -> Priority:
    """Read the priority that a requester gave; nothing means routine.

    Wetread's own words are accepted, and those of DICOM's Requested Procedure Priority (0040,1003):
    STAT, HIGH, MEDIUM, ROUTINE, LOW.

    Raises
    ------
    ClinicError
        For any other word.
    """
    words = {
        "": Priority.ROUTINE,
        "stat": Priority.CRITICAL,
        "critical": Priority.CRITICAL,
        "high": Priority.URGENT,
        "urgent": Priority.URGENT,
        "medium": Priority.ROUTINE,
        "routine": Priority.ROUTINE,
        "low": Priority.ROUTINE,
    }
    try:
        return words[(word or "").strip().lower()]
    except KeyError:
        raise ClinicError(f"priority {word!r}: not one of critical, urgent, routine") from None


@dataclass(frozen=True)
class Scored:
    """One flagged or unflagged finding of one model, as far as the rule needs it."""

    model: str
    finding: str
    probability: float
    flagged: bool
    call: str


@dataclass(frozen=True)
class Decision:
    """Where a study stands and why: the class, the finding and the model that put it there, and the words."""

    priority: Priority
    finding: str | None
    model: str | None
    reason: str
    ahead: timedelta = timedelta(0)  # the head start in its class


def decide(rule: Rule, floor: Priority, scored: Sequence[Scored], *, refusal: str | None = None) -> Decision:
    """Put a study into its class.

    Parameters
    ----------
    rule : Rule
        The site's rule.
    floor : Priority
        What the requester asked for.
    scored : sequence of Scored
        All findings of all models that analysed the study; empty when none did.
    refusal : str, optional
        Why nothing analysed it; goes into the reason.
    """
    ranked = [(cls, -s.probability, s.finding, s) for s in scored if rule.counts(s) and (cls := rule.of(s.finding))]
    requested = "" if floor is Priority.ROUTINE else f"requested as {floor}"
    if not ranked:
        if refusal is not None:
            said = f"not analysed: {refusal}"
        elif scored:
            said = f"no finding flagged ({', '.join(dict.fromkeys(s.model for s in scored))})"
        else:
            said = "waiting for analysis"
        return Decision(floor, None, None, "; ".join(filter(None, (requested, said))))
    cls, _, _, top = min(ranked, key=lambda e: (ORDER[e[0]], -rule.weights.get(e[2], 0.0), *e[1:3]))
    said = f"{top.finding} {top.call} ({top.model})"
    if ORDER[cls] > ORDER[floor]:
        return Decision(floor, top.finding, top.model, f"{requested}; {said}")
    return Decision(cls, top.finding, top.model, said, rule.ahead(top.finding, cls))


def rank(priority: Priority, overdue: bool) -> int:
    """Return the place of a study's group in the list, 0 first.

    0 critical and overdue, 1 critical, 2 overdue, 3 urgent, 4 routine. Within a group the one that came first is
    first, so that an overdue study is always above every study that is not critical.
    """
    if overdue:
        return 0 if priority is Priority.CRITICAL else 2
    return {Priority.CRITICAL: 1, Priority.URGENT: 3, Priority.ROUTINE: 4}[priority]


def overdue_at(rule: Rule, priority: Priority, received_at: datetime) -> datetime:
    """Return when the study reaches its waiting cap."""
    return received_at + rule.cap(priority)


def promoted(reason: str, cap: timedelta) -> str:
    """Return the reason of a study that reached its cap, e.g. ``promoted: waiting cap 4 h; Edema likely (phantom)``."""
    minutes = cap.total_seconds() / 60
    words = f"{minutes / 60:g} h" if minutes >= 60 else f"{minutes:g} min"
    return f"promoted: waiting cap {words}; {reason}"

"""The priority rule: what a study waits for, and why. Pure functions; no clock, no database.

AI only reorders. The priority that the requester gave is a floor which AI may raise and never lower; a study
that AI did not analyse keeps it. A study that reaches the waiting cap of its class is promoted to the top of
its list and stays there until it is read; only critical studies stand above an overdue one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
    """A site's rule. Flagged findings named in no class are routine; those in `never` do not rank at all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    critical: Class = Class(findings=("Pneumothorax",), cap_minutes=30)
    urgent: Class = Class(
        findings=("Edema", "Consolidation", "Pneumonia", "Pleural Effusion", "Effusion"), cap_minutes=120
    )
    routine: Class = Class(cap_minutes=240)
    never: tuple[str, ...] = ("No Finding", "Normal", "Support Devices")

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


def load(file: Path) -> Rule:
    """Read a rule from a TOML file with the tables ``[critical] [urgent] [routine]`` and the list ``never``.

    Raises
    ------
    ConfigError
        For a file that is none, an unknown key or finding class, or a bad value, naming it.
    """
    try:
        return Rule(**tomllib.loads(file.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file}: not a priority rule: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{file}: {where} = {first['input']!r}: {first['msg']}; see docs/clinic.md") from None


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
    ranked = [(cls, -s.probability, s.finding, s) for s in scored if s.flagged and (cls := rule.of(s.finding))]
    requested = "" if floor is Priority.ROUTINE else f"requested as {floor}"
    if not ranked:
        if refusal is not None:
            said = f"not analysed: {refusal}"
        elif scored:
            said = f"no finding flagged ({', '.join(dict.fromkeys(s.model for s in scored))})"
        else:
            said = "waiting for analysis"
        return Decision(floor, None, None, "; ".join(filter(None, (requested, said))))
    cls, _, _, top = min(ranked, key=lambda entry: (ORDER[entry[0]], *entry[1:3]))
    said = f"{top.finding} {top.call} ({top.model})"
    if ORDER[cls] > ORDER[floor]:
        return Decision(floor, top.finding, top.model, f"{requested}; {said}")
    return Decision(cls, top.finding, top.model, said)


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

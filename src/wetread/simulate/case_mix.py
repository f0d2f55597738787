"""Who comes to a reading room and what the AI makes of them: named groups, a site's rule, a package's accuracy."""

from __future__ import annotations

import math
import tomllib
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wetread.clinic.priority import Priority, Rule
from wetread.errors import ConfigError
from wetread.model.package import Package
from wetread.simulate.reading_room import Kind

ABOVE = 1
"""A promoted study stands above all but the critical ones."""

_Share = Annotated[float, Field(ge=0, le=1)]


class Group(BaseModel):
    """Patients with the same finding: their share, mean reading time, and the shares that the AI ranks so."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[^\s].{0,39}$")
    share: _Share
    minutes: float = Field(gt=0)
    critical: _Share = 0.0
    urgent: _Share = 0.0

    @model_validator(mode="after")
    def _within(self) -> Group:
        if self.name in {"fifo", "all", *Priority}:
            raise ValueError(f"name {self.name!r} is taken by a line of the results; choose another")
        if self.critical + self.urgent > 1:
            raise ValueError(f"critical and urgent are {self.critical + self.urgent:g} together; at most 1")
        return self


class Mix(BaseModel):
    """The content of a file of groups."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: tuple[Group, ...] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def _whole(self) -> Mix:
        names = [group.name for group in self.group]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"group {twice[0]!r} is there twice")
        if not math.isclose(total := sum(group.share for group in self.group), 1, abs_tol=1e-6):
            raise ValueError(f"the shares of the groups add up to {total:g}; they must to 1")
        return self


def groups(file: Path) -> tuple[Kind, ...]:
    """Read groups of patients from TOML tables ``[[group]]``; each class of the priority rule is a rank.

    Raises
    ------
    ConfigError
        For a file that is none, an unknown key or a bad value, naming it.
    """
    try:
        mix = Mix(**tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: no file of groups: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{file}: {where}{': ' if where else ''}{said}; see docs/reading-room.md") from None
    found = []
    for group, (rank, word) in product(mix.group, enumerate(Priority)):
        part = {"critical": group.critical, "urgent": group.urgent, "routine": 1 - group.critical - group.urgent}[word]
        found.append(Kind((word.value, group.name), group.share * part, group.minutes, rank))
    return tuple(found)


def caps(rule: Rule) -> tuple[float, ...]:
    """Return the waiting cap of each rank, in minutes.

    Raises
    ------
    ConfigError
        For a rule with turns or head starts, which the model of the room does not have.
    """
    if rule.ratio is not None or rule.weights:
        raise ConfigError("rule: turns (ratio) and head starts (weights) are not modelled; leave them out")
    return tuple(getattr(rule, word).cap_minutes for word in Priority)


def accuracy(package: Package, finding: str | None, point: Literal["screen", "balanced"]) -> tuple[float, float]:
    """Return sensitivity and false-positive fraction of a package as its `model.json` states them.

    Parameters
    ----------
    package : Package
    finding : str, optional
        May be left out when there is only one that is neither normal nor neutral.
    point : {"screen", "balanced"}

    Raises
    ------
    ConfigError
        For an unknown finding, or when the package does not say.
    """
    task = package.task
    names = [name for name in task.findings if name != task.normal and name not in task.neutral]
    if finding is None and len(names) > 1:
        raise ConfigError(f"--finding: {package.name} has several; choose one of {', '.join(names)}")
    chosen = finding or names[0]
    if chosen not in task.findings:
        raise ConfigError(f"--finding {chosen!r}: {package.name} has {', '.join(task.findings)}")
    stated: Any = package.meta.metrics
    try:
        figures = stated["findings"][chosen][point]
        found = float(figures["sensitivity"][0]), 1 - float(figures["specificity"][0])
    except (KeyError, TypeError, ValueError, IndexError):
        raise ConfigError(
            f"{package.name}: model.json states no accuracy for {chosen!r} at {point}; give --sensitivity and --fpf"
        ) from None
    if not all(0 <= value <= 1 for value in found):
        raise ConfigError(f"{package.name}: model.json states {found} for {chosen!r} at {point}; shares are needed")
    return found

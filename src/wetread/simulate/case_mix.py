"""Who comes to a reading room and what the AI makes of them: named groups, a site's rule, a package's accuracy."""

from __future__ import annotations

import math
import tomllib
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
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


def chosen(package: Package, finding: str | None) -> str:
    """Return the finding that is meant: it may be left out when there is only one that is neither normal nor neutral.

    Raises
    ------
    ConfigError
        For an unknown finding, or when there are several.
    """
    task = package.task
    names = [name for name in task.findings if name != task.normal and name not in task.neutral]
    if finding is None and len(names) > 1:
        raise ConfigError(f"--finding: {package.name} has several; choose one of {', '.join(names)}")
    if finding is not None and finding not in task.findings:
        raise ConfigError(f"--finding {finding!r}: {package.name} has {', '.join(task.findings)}")
    return finding or names[0]


class Roc:
    """The ROC curve of a package's finding on its validation images, as `model.json` holds it.

    Parameters
    ----------
    package : Package
    finding : str, optional
        See `chosen`.

    Raises
    ------
    ConfigError
        For an unknown finding, or when the package holds no curve, or none that could be one.
    """

    def __init__(self, package: Package, finding: str | None) -> None:
        name = chosen(package, finding)
        curves: Any = package.meta.metrics.get("roc")
        try:
            self.sensitivity = np.array(curves[name], dtype=np.float64)
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                f"{package.name}: model.json holds no ROC curve of {name!r}, only the points screen and balanced; "
                "package its run again with this version, or give --sensitivity and --fpf"
            ) from None
        at = self.sensitivity
        if at.ndim != 1 or at.size < 2 or not (at[0] >= 0 and at[-1] <= 1 and (np.diff(at) >= 0).all()):
            raise ConfigError(f"{package.name}: model.json: roc.{name} is no ROC curve; package its run again")
        self.fpf = np.linspace(0, 1, at.size)

    def at_fpf(self, fpf: float) -> tuple[float, float]:
        """Return sensitivity and false-positive fraction where it is `fpf`; raises `ConfigError` for no share."""
        if not 0 <= fpf <= 1:
            raise ConfigError(f"fpf = {fpf:g}: give a share, 0 to 1")
        return float(np.interp(fpf, self.fpf, self.sensitivity)), fpf

    def at_sensitivity(self, wanted: float) -> tuple[float, float]:
        """Return sensitivity and the least false-positive fraction for it; raises `ConfigError` for no such point."""
        if not 0 <= wanted <= self.sensitivity[-1]:
            raise ConfigError(f"--point {wanted:g}: give screen, balanced, or a sensitivity, 0 to 1")
        last = int(np.searchsorted(self.sensitivity, wanted))
        left = slice(max(0, last - 1), last + 1)
        return wanted, float(np.interp(wanted, self.sensitivity[left], self.fpf[left]))


def accuracy(package: Package, finding: str | None, point: Literal["screen", "balanced"]) -> tuple[float, float]:
    """Return sensitivity and false-positive fraction of a package as its `model.json` states them.

    Parameters
    ----------
    package : Package
    finding : str, optional
        See `chosen`.
    point : {"screen", "balanced"}

    Raises
    ------
    ConfigError
        For an unknown finding, or when the package does not say.
    """
    name = chosen(package, finding)
    stated: Any = package.meta.metrics
    try:
        figures = stated["findings"][name][point]
        found = float(figures["sensitivity"][0]), 1 - float(figures["specificity"][0])
    except (KeyError, TypeError, ValueError, IndexError):
        raise ConfigError(
            f"{package.name}: model.json states no accuracy for {name!r} at {point}; give --sensitivity and --fpf"
        ) from None
    if not all(0 <= value <= 1 for value in found):
        raise ConfigError(f"{package.name}: model.json states {found} for {name!r} at {point}; shares are needed")
    return found

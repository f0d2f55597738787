"""The file that states the gates of a candidate: TOML, typed.

A key that it does not know is an error, so that a misspelt gate never passes::

    point = "balanced"            # operating point of sensitivity and specificity; each model's own thresholds
    min_positives = 30            # patients with, and
    min_negatives = 30            # without a finding; fewer are never a pass

    [critical]                    # sensitivity may not have dropped by more than this against the champion
    Pneumothorax = 0.02

    [floor.Pneumonia]             # what the candidate must reach by itself
    auroc = 0.95
    sensitivity = 0.90
    [floor.mean]
    auroc = 0.80
    [ceiling.Pneumonia]           # and must not exceed
    brier = 0.10

    [margin.Pneumonia]            # what it may lose against the champion
    auroc = 0.01
    specificity = 0.05

    [hard.night-shift]            # a hard batch: share of its cases that must be right, and what may be lost
    floor = 0.50
    margin = 0.05
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wetread.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
MEAN = "mean"

RATES = ("sensitivity", "specificity", "ppv", "npv")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figures(_Table):
    """Figures of one finding that are held to a value; None is not held."""

    auroc: Share | None = None
    average_precision: Share | None = None
    sensitivity: Share | None = None
    specificity: Share | None = None
    ppv: Share | None = None
    npv: Share | None = None
    brier: Share | None = None


class HardGate(_Table):
    """What is asked of a hard batch: a least share right, and what may be lost against the champion."""

    floor: Share | None = None
    margin: Share | None = None


class BehaviourGate(_Table):
    """Limits of the behaviour checks; both kinds are run."""

    most_flips: Share | None = None
    least_rises: Share | None = None
    images: int = Field(200, ge=1)
    phantoms: int = Field(40, ge=0)


class Gates(_Table):
    """The contents of a gates file; see the module."""

    point: Literal["screen", "balanced"] = "balanced"
    min_positives: int = Field(30, ge=1)
    min_negatives: int = Field(30, ge=1)
    resamples: int = Field(2000, ge=100, le=100_000)
    seed: int = Field(0, ge=0)
    critical: dict[str, Share] = {}
    floor: dict[str, Figures] = {}
    ceiling: dict[str, Figures] = {}
    margin: dict[str, Figures] = {}
    hard: dict[str, HardGate] = {}
    behaviour: BehaviourGate | None = None

    @property
    def compares(self) -> bool:
        """Whether any gate needs a champion."""
        return bool(self.critical or self.margin or any(gate.margin is not None for gate in self.hard.values()))


def load(file: Path) -> Gates:
    """Read a gates file.

    Raises
    ------
    ConfigError
        When it is not TOML, has an unknown key or a bad value (naming it), or has no gate.
    """
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not a TOML file: {error}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from None
    try:
        return parse(values)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def parse(values: Mapping[str, Any]) -> Gates:
    """Check the values of a gates file; raises `ConfigError` as `load`."""
    try:
        gates = Gates.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"unknown setting {key!r}; see docs/gates.md") from None
        raise ConfigError(f"{key} = {first['input']!r}: {first['msg']}") from None
    held = [figures for table in (gates.floor, gates.ceiling, gates.margin) for figures in table.items()]
    for name, figures in held:
        given = figures.model_dump(exclude_none=True)
        if not given:
            raise ConfigError(f"{name}: no figure; give one, e.g. auroc = 0.9, or remove the table")
        if name == MEAN and set(given) != {"auroc"}:
            raise ConfigError(f"mean: only auroc has a mean over the findings, got {', '.join(given)}")
    for name, gate in gates.hard.items():
        if gate.floor is None and gate.margin is None:
            raise ConfigError(f"hard.{name}: give floor or margin")
    if not (gates.critical or held or gates.hard or gates.behaviour):
        raise ConfigError("no gate: a file that asks nothing would pass anything; see docs/gates.md")
    return gates

"""What a sweep tries: for each key of a recipe a range or a list of values."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from wetread.errors import ConfigError
from wetread.train import recipe
from wetread.train.recipe import Recipe

if TYPE_CHECKING:
    from optuna.trial import Trial

_RANGE = {"low", "high", "log", "step"}


class Range(BaseModel):
    """Numbers from `low` to `high`: whole ones where both are, evenly over their logarithm with `log`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _agree(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log wants low above 0 and no step")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step = {self.step} must be above 0")
        return self

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float)

    def suggest(self, trial: Trial, key: str) -> int | float:
        """Choose a value for a trial."""
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)

    def ends(self) -> list[Any]:
        """Return values that must be allowed if all are to be."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Values:
    """A list of values of any kind, one of which is taken."""

    values: tuple[Any, ...]

    def suggest(self, trial: Trial, key: str) -> Any:
        """Choose a value for a trial."""
        # By number: a storage keeps only plain values, a recipe may have lists and tables.
        return self.values[trial.suggest_categorical(key, list(range(len(self.values))))]

    def ends(self) -> list[Any]:
        """Return values that must be allowed if all are to be."""
        return list(self.values)


Choice = Range | Values


@dataclass(frozen=True)
class Space:
    """Keys of a recipe, dotted, with what to try for each."""

    choices: dict[str, Choice]

    @classmethod
    def parse(cls, table: Mapping[str, Any], base: Mapping[str, Any]) -> Space:
        """Read a `sweep` table: `"optimise.batch" = [16, 32]`, or `{low = 1e-4, high = 1e-2, log = true}`.

        Parameters
        ----------
        table : mapping
            Keys may be dotted or nested.
        base : mapping
            The values of the recipe that is varied; each end of a range and each value of a list is tried in it.

        Raises
        ------
        ConfigError
            For an unknown key, a bad range, or a value that the key may not take, naming it.
        """
        choices: dict[str, Choice] = {}
        for key, value in _flat(table):
            where = f"sweep: {key!r} = {value!r}"
            if isinstance(value, list) and value:
                choices[key] = Values(tuple(value))
            elif isinstance(value, dict):
                try:
                    choices[key] = Range(**value)
                except ValidationError as error:
                    first = error.errors()[0]
                    part = ".".join(str(p) for p in first["loc"][:1])
                    raise ConfigError(f"{where}: {part + ': ' if part else ''}{first['msg']}") from None
            else:
                raise ConfigError(f"{where}: give a list of values, or low and high")
            for end in choices[key].ends():
                recipe.check(_changed(base, {key: end}), "sweep")
        if not choices:
            raise ConfigError(
                'sweep: nothing to try; the recipe needs a [sweep] table, e.g. "optimise.batch" = [16, 32]'
            )
        return cls(choices)

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Choose a value for every key."""
        return {key: choice.suggest(trial, key) for key, choice in self.choices.items()}

    def recipe(self, base: Mapping[str, Any], chosen: Mapping[str, Any], name: str = "") -> Recipe:
        """Return the recipe with the chosen values.

        Raises
        ------
        ConfigError
            When they do not go together.
        """
        return recipe.check(_changed(base, chosen) | ({"name": name} if name else {}), "sweep")


def from_file(path: Path) -> dict[str, Any]:
    """Read a space from a TOML file: its `sweep` table, or the whole file.

    Raises
    ------
    ConfigError
        When the file cannot be read.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--space {path}: cannot be read as TOML: {error}") from None
    table = values.get("sweep", values)
    if not isinstance(table, dict):
        raise ConfigError(f"--space {path}: sweep = {table!r} is no table")
    return table


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and not _RANGE & value.keys():
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = copy.deepcopy(dict(base))
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = values
        for section in sections:
            inner = place.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"sweep: {key!r}: {section!r} is a value, not a section")
            place = inner
        place[last] = value
    return values

"""Policies of the closed loop: typed TOML files, in which an unknown key or a bad value is an error that names it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from wetread.errors import ConfigError


class Policy(BaseModel):
    """One table of a policy; never changed once read. No number is infinite or none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


P = TypeVar("P", bound=Policy)


def load(file: Path | None, kind: type[P]) -> P:
    """Read a policy; without a file all is as the defaults say.

    Raises
    ------
    ConfigError
        When the file cannot be read, is not TOML, has an unknown key or a bad value.
    """
    if file is None:
        return kind()
    try:
        return kind.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not a TOML file: {error}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(kind.model_fields))
            raise ConfigError(f"{file}: unknown setting {key!r}; known: {known}") from None
        raise ConfigError(f"{file}: {key} = {first['input']!r}: {first['msg']}") from None

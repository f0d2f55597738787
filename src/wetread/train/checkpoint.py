"""Checkpoints that are whole or not there, and that hold all a run needs to go on exactly."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from wetread import whole
from wetread.errors import TrainError


def _whole(path: Path) -> AbstractContextManager[BinaryIO]:
    return whole.opened(path, f".{path.name}.draft")


def replace(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with _whole(path) as file:
        file.write(data)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    with _whole(path) as file:
        torch.save(state, file)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are unpickled.

    Raises
    ------
    TrainError
        When the file is not a checkpoint.
    """
    try:
        return cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises several unrelated classes for a broken file
        raise TrainError(
            f"checkpoint {path}: cannot be read ({type(error).__name__}); delete it to start anew"
        ) from None

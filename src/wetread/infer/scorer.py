"""A package as evaluation judges it: what scores arrays, and the dataset as that sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread import config
from wetread.dataset.dataset import Dataset
from wetread.evaluate.gate_command import Model
from wetread.infer.runtime import Engine, open_engine
from wetread.infer.study import judged
from wetread.model.package import Package


def open_model(name: str, data: Path | None = None) -> Model:
    """Open a package that judges images, by name, id or path; runtime and threads are the settings'.

    Raises
    ------
    ModelError
        When there is none, or it is not sound.
    """
    package, engine = _open(name, data)
    return _model(package, lambda pixels: engine.run(pixels).probability)


def open_on(name: str, data: Path | None, dataset: Path, by_study: bool = False) -> tuple[Model, Dataset]:
    """Open a package and a packed dataset, whose rows become studies where the package or `by_study` says so.

    Raises
    ------
    ModelError, DatasetError
        When there is none, or it is not sound.
    """
    package, engine = _open(name, data)
    packed, probability, _ = judged(package, engine, Dataset.open(dataset), by_study)
    return _model(package, probability), packed


def _open(name: str, data: Path | None) -> tuple[Package, Engine]:
    package, settings = Package.open(name, data), config.load(Path("wetread.toml"))
    return package, open_engine(package, settings.runtime, settings.threads)


def _model(package: Package, score: Callable[[NDArray[np.uint8]], NDArray[np.floating[Any]]]) -> Model:
    return Model(
        package.name,
        package.id,
        package.task,
        package.transform,
        {point: dict(thresholds) for point, thresholds in package.meta.points.items()},
        package.meta.dataset_hash,
        score,
    )

"""A collection of smooth noise in two classes, packed: enough for commands that need a model and its images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from wetread.dataset import sources, split
from wetread.dataset.dataset import Dataset
from wetread.dataset.pack import pack
from wetread.findings import PNEUMONIA
from wetread.radiograph.pixels import Transform


def films(folder: Path, count: int) -> None:
    """Write pictures into a folder for each class, in turn."""
    rng = np.random.default_rng(0)
    for n in range(count):
        file = folder / ("NORMAL", "PNEUMONIA")[n % 2] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (6, 6), dtype=np.uint8)
        cv2.imwrite(str(file), cv2.resize(coarse, (80, 70), interpolation=cv2.INTER_CUBIC))


def packed(folder: Path, out: Path, transform: Transform, *, test: float) -> Dataset:
    """Pack the pictures of a folder, ten of them for validation and `test` for the test."""
    collection = sources.collect("folders", folder, task=PNEUMONIA)
    rows, _ = split.assign(collection.rows, collection.task, valid=10.0, test=test)
    return pack(replace(collection, rows=rows), out, transform=transform, workers=1)

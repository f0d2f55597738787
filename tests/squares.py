"""A tiny packed dataset that a small network can learn: a bright square on the left or on the right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from wetread.dataset import dataset as datasets
from wetread.dataset.dataset import Dataset
from wetread.findings import Task
from wetread.radiograph.pixels import plain

SIDE = 32
SPLITS = ("valid", "train", "train", "train")


def write_dataset(
    folder: Path, task: Task, labels: np.ndarray, pixels: np.ndarray, splits: Sequence[str] = SPLITS
) -> Dataset:
    """Write what `wetread pack` writes, from arrays; `splits` are taken in turn."""
    folder.mkdir(parents=True)
    count = len(pixels)
    columns = {
        "image": [f"{i}.png" for i in range(count)],
        "patient": [f"p{i}" for i in range(count)],
        "study": [f"s{i}" for i in range(count)],
        "view": ["PA"] * count,
        "sex": ["F"] * count,
        "age_years": np.full(count, 40, np.float32),
        "split": [splits[i % len(splits)] for i in range(count)],
        "source": ["squares"] * count,
    }
    manifest = pl.DataFrame(columns).with_columns(
        [
            pl.Series(f, [None if np.isnan(v) else int(v) for v in labels[:, i]], dtype=pl.Int8)
            for i, f in enumerate(task.findings)
        ]
    )
    transform = plain(SIDE, source=SIDE)
    np.save(folder / datasets.PIXELS, pixels)
    manifest.write_parquet(folder / datasets.MANIFEST)
    transform.save(folder / datasets.TRANSFORM)
    info = {
        "schema_version": datasets.SCHEMA_VERSION,
        "sha256": datasets.digest(task, transform, manifest, folder),
        "inputs": "",
        "task": task.to_dict(),
        "transform": transform.parameters(),
        "counts": {},
        "collection": {"title": "squares", "attribution": "nobody", "licence": "none"},
        "code_version": "0",
        "refused": [],
        "refused_by_reason": {},
    }
    (folder / datasets.INFO).write_text(json.dumps(info))
    return Dataset.open(folder)


def squares(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels [N, S, S] and the side (0 left, 1 right) of the bright square in each."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 90, (count, SIDE, SIDE)).astype(np.uint8)
    side = rng.integers(0, 2, count)
    for image, right in zip(pixels, side, strict=True):
        y, x = rng.integers(2, 20), rng.integers(1, 5) + 17 * right
        image[y : y + 10, x : x + 10] += 120
    return pixels, side

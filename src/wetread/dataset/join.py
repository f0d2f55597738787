"""Packed datasets to one: beside each other without copying their pixels, or copied into one folder.

To train on a base set and on what came since, `join` them: the result is opened like any packed dataset. Who is trained
on and who judges stays as it was in the parts.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from wetread import __version__
from wetread.dataset import parts
from wetread.dataset.dataset import (
    INFO,
    MANIFEST,
    PIXELS,
    SCHEMA_VERSION,
    TRANSFORM,
    Dataset,
    counts,
    digest,
)
from wetread.dataset.split import unit
from wetread.errors import DatasetError
from wetread.findings import Task
from wetread.radiograph.pixels import Transform

_BLOCK = 256  # images that are copied at a time


def join(
    datasets: Sequence[Dataset], out: Path, *, replay: float = 1.0, seed: int = 0, parent: str | None = None
) -> Dataset:
    """Write a dataset of all images of several ones, whose pixels stay where they are.

    Parameters
    ----------
    datasets : sequence of Dataset
        Of one task and one transform. The first is the base set.
    out : Path
        A new folder.
    replay : float
        Share of the base set's training patients to keep, more than 0 and at most 1. Its other splits stay whole.
    seed : int
        Of that choice.
    parent : str, optional
        Hash of the dataset that this one takes the place of.

    Raises
    ------
    DatasetError
        When they do not fit each other, an image is in two of them, or a patient would be on two sides.
    """
    first = datasets[0]
    for other in datasets[1:]:
        if other.task.to_dict() != first.task.to_dict():
            raise DatasetError(f"{other.path}: its task is not that of {first.path}; pack it with --task")
        if other.transform != first.transform:
            raise DatasetError(f"{other.path}: its transform is not that of {first.path}; pack it with the same")
    if not 0 < replay <= 1:
        raise DatasetError(f"replay = {replay:g}: a share of the training patients, more than 0 and at most 1")
    folders: list[tuple[Path, str]] = []
    tables = []
    for number, dataset in enumerate(datasets):
        rows = np.arange(len(dataset))
        if number == 0 and replay < 1:
            patients = dataset.manifest["patient"].to_list()
            kept = unit(patients, seed, "replay") < replay
            rows = rows[kept | (dataset.manifest["split"] != "train").to_numpy()]
        own, places = _places(dataset)
        tables.append(
            dataset.manifest[rows].with_columns(
                pl.Series("part", places[rows, 0] + len(folders), dtype=pl.Int64),
                pl.Series("row", places[rows, 1], dtype=pl.Int64),
            )
        )
        folders += own
    table = pl.concat(_apart(tables), how="diagonal_relaxed").sort("image")
    if (again := table.filter(~pl.col("image").is_first_distinct())).height:
        raise DatasetError(f"image {again['image'][0]!r} is in two of the datasets; join each image once")
    sides = table.group_by("patient").agg(pl.col("split").unique().sort())
    if (torn := sides.filter(pl.col("split").list.len() > 1).sort("patient")).height:
        name, where = torn.row(0)
        raise DatasetError(f"patient {name!r} is in {' and '.join(where)}; pack one of the datasets with other splits")
    collections = [dataset.info["collection"] for dataset in datasets]
    about = {
        "kind": "joined",
        **{
            key: "; ".join(dict.fromkeys(str(c[key]) for c in collections if c.get(key)))
            for key in ("title", "licence", "attribution", "url")
        },
        "parts": [{"folder": dataset.path.name, "sha256": dataset.hash} for dataset in datasets],
        "selection": {"replay": replay, "seed": seed},
        "parent": parent,
    }
    with draft(out) as folder:
        parts.write(folder, folders, table.select("part", "row").to_numpy())
        finish(folder, first.task, first.transform, table.drop("part", "row"), about)
    return Dataset.open(out)


def copy(
    folder: Path,
    manifest: pl.DataFrame,
    sources: Sequence[Dataset],
    places: NDArray[np.int64],
    about: Mapping[str, Any],
    refused: Sequence[Mapping[str, str]] = (),
) -> None:
    """Fill a folder with a dataset of its own: rows of `sources`, of whose task and transform it is, pixels copied.

    Parameters
    ----------
    folder : Path
        There, and empty; whoever calls renames it when all is in it.
    manifest : DataFrame
        Sorted by image.
    places : int64 array, shape [N, 2]
        Source and row of each image.
    """
    first = sources[0]
    pixels = parts.Gathered(tuple(source.pixels for source in sources), places)
    with (folder / PIXELS).open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (len(places), *pixels.shape[1:])}
        )
        for start in range(0, len(places), _BLOCK):
            file.write(pixels[start : start + _BLOCK].tobytes())
        file.flush()
        os.fsync(file.fileno())
    finish(folder, first.task, first.transform, manifest, about, refused)


def finish(
    folder: Path,
    task: Task,
    transform: Transform,
    manifest: pl.DataFrame,
    about: Mapping[str, Any],
    refused: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write what stands beside the pixels of a dataset."""
    from wetread.dataset.pack import reasons

    manifest.write_parquet(folder / MANIFEST)
    transform.save(folder / TRANSFORM)
    listed = sorted((dict(entry) for entry in refused), key=lambda entry: (entry["image"], entry["reason"]))
    info = {
        "schema_version": SCHEMA_VERSION,
        "sha256": digest(task, transform, manifest, folder),
        "inputs": None,
        "task": task.to_dict(),
        "transform": transform.parameters(),
        "counts": counts(manifest, task),
        "collection": dict(about),
        "code_version": __version__,
        "refused_by_reason": reasons(listed),
        "refused": listed,
    }
    (folder / INFO).write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def draft(out: Path) -> Iterator[Path]:
    """Give an empty folder that becomes `out` in one step when all went well, and goes when not.

    Raises
    ------
    DatasetError
        When `out` is there already.
    """
    if out.exists():
        raise DatasetError(f"{out}: exists; a dataset is never changed, name a new folder")
    folder = out.with_name(f".{out.name}.draft")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _places(dataset: Dataset) -> tuple[list[tuple[Path, str]], NDArray[np.int64]]:
    """Return the datasets in which the pixels of one lie, and where in them."""
    if parts.is_joined(dataset.path):
        return parts.read(dataset.path)
    rows = np.arange(len(dataset), dtype=np.int64)
    return [(dataset.path, dataset.hash)], np.stack([np.zeros_like(rows), rows], 1)


def _apart(tables: Sequence[pl.DataFrame]) -> list[pl.DataFrame]:
    """Name the patients of different collections differently: "patient00001" of two is not one."""
    if len({source for table in tables for source in table["source"].unique()}) < 2:
        return list(tables)
    prefix = pl.format("{}/", pl.col("source").fill_null("unknown"))
    named = pl.when(pl.col("patient").str.starts_with(prefix)).then("patient").otherwise(prefix + pl.col("patient"))
    return [table.with_columns(patient=named) for table in tables]

"""A packed dataset: a folder that is opened in no time, whatever its size, and never changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from wetread.dataset import labels, parts
from wetread.dataset.split import SPLITS
from wetread.dataset.tables import COLUMNS
from wetread.errors import DatasetError
from wetread.findings import ABSENT, PRESENT, UNCERTAIN, Task
from wetread.radiograph.pixels import Transform

SCHEMA_VERSION = 1
MANIFEST, PIXELS, MASKS = "manifest.parquet", "pixels.npy", "masks.npy"
INFO, TRANSFORM = "dataset.json", "transform.npz"
_BLOCK = 8 * 2**20


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pixels as a model sees them, with labels and splits.

    Attributes
    ----------
    path : Path
    info : dict
        The contents of ``dataset.json``.
    task : Task
    transform : Transform
        What made the pixels; service must use the same.
    manifest : DataFrame
        `image, patient, study, view, sex, age_years, split, source`, one Int8 column per finding (null: not
        mentioned), `height` and `width` of the image in pixels, and what else the collection tells (`race`, for
        one), which slices may use.
    pixels : uint8 array, shape [N, H, W]
        Memory-mapped, read-only.
    labels : float32 array, shape [N, F]
        1, 0, -1 (uncertain), NaN (not mentioned), in the order of the task's findings.
    masks : uint8 array, shape [N, F, M, M], or None
        Share of each cell that a finding covers, times 255, in the coordinates of `pixels`; empty where it is not known
        where a finding is. Memory-mapped, read-only; None when packed without.
    """

    path: Path
    info: dict[str, Any]
    task: Task
    transform: Transform
    manifest: pl.DataFrame
    pixels: NDArray[np.uint8]
    labels: NDArray[np.float32]
    masks: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return self.manifest.height

    @property
    def hash(self) -> str:
        """SHA-256 over task, transform, manifest and pixels, as recorded when packed."""
        return str(self.info["sha256"])

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the row numbers of a split, ascending.

        Raises
        ------
        DatasetError
            When `split` is none of train, valid and test.
        """
        if split not in SPLITS:
            raise DatasetError(f"{self.path}: split {split!r}: known are {', '.join(SPLITS)}")
        return np.flatnonzero((self.manifest["split"] == split).to_numpy()).astype(np.int64)

    def verify(self) -> None:
        """Read every byte and compare it with the recorded hash.

        Raises
        ------
        DatasetError
            When the contents are not those that were packed.
        """
        found = digest(self.task, self.transform, self.manifest, self.path)
        if found != self.hash:
            raise DatasetError(f"{self.path}: sha256 is {found}, recorded is {self.hash}; pack the dataset again")
        for part, _ in parts.read(self.path)[0] if parts.is_joined(self.path) else ():
            Dataset.open(part).verify()

    @classmethod
    def open(cls, path: Path | str) -> Dataset:
        """Open a packed dataset; the pixels stay on disk.

        Raises
        ------
        DatasetError
            When a file is missing or damaged, or the files do not fit each other.
        """
        path = Path(path)
        info = _info(path)
        try:
            task = Task.from_dict(info["task"])
            transform = Transform.load(path / TRANSFORM)
            manifest = pl.read_parquet(path / MANIFEST)
            pixels, masks = _array(path, PIXELS), _array(path, MASKS)
        except DatasetError:
            raise
        except (Exception, pl.exceptions.PanicException) as error:  # hostile bytes can raise anything
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise DatasetError(f"{path}: not a packed dataset: {first}; pack it again") from None
        if wrong := [name for name, dtype in COLUMNS.items() if manifest.schema.get(name) != dtype]:
            raise DatasetError(f"{path / MANIFEST}: no column {wrong[0]!r} of type {COLUMNS[wrong[0]]}; pack it again")
        shape = (manifest.height, transform.size, transform.size)
        if pixels is None:
            raise DatasetError(f"{path}: not a packed dataset: no {PIXELS}; pack it again")
        if pixels.dtype != np.uint8 or pixels.shape != shape:
            raise DatasetError(
                f"{path / PIXELS}: {pixels.dtype} {list(pixels.shape)}, but manifest and transform ask for uint8 "
                f"{list(shape)}; pack it again"
            )
        if masks is not None:
            wanted = (manifest.height, len(task.findings), *masks.shape[2:3] * 2)
            if masks.dtype != np.uint8 or masks.shape != wanted:
                raise DatasetError(
                    f"{path / MASKS}: {masks.dtype} {list(masks.shape)}, wanted uint8 {list(wanted)}; pack it again"
                )
        if stray := sorted(set(manifest["split"].fill_null("null")) - set(SPLITS)):
            raise DatasetError(f"{path / MANIFEST}: split {stray[0]!r} is none of {', '.join(SPLITS)}")
        try:
            values = labels.to_array(manifest, task)
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}; pack it again") from None
        return cls(path, info, task, transform, manifest, pixels, values, masks)


def counts(manifest: pl.DataFrame, task: Task) -> dict[str, Any]:
    """Return how many images, patients and labels of each value every split holds."""
    splits = {}
    for split in SPLITS:
        part = manifest.filter(pl.col("split") == split)
        splits[split] = {
            "images": part.height,
            "patients": part["patient"].n_unique(),
            "labels": {
                finding: {
                    "present": int((part[finding] == PRESENT).sum()),
                    "absent": int((part[finding] == ABSENT).sum()),
                    "uncertain": int((part[finding] == UNCERTAIN).sum()),
                    "not_mentioned": part[finding].null_count(),
                }
                for finding in task.findings
            },
        }
    return {"images": manifest.height, "patients": manifest["patient"].n_unique(), "splits": splits}


def digest(task: Task, transform: Transform, manifest: pl.DataFrame, folder: Path) -> str:
    """Return the SHA-256 over what a dataset says: task, transform, manifest row by row, pixels, masks.

    It does not depend on how a library writes Parquet or where the collection lay.
    """
    sha = hashlib.sha256(canonical({"task": task.to_dict(), "transform": transform.parameters()}))
    known = [*COLUMNS, *task.findings]
    # Sizes of the images are left out: a dataset that was packed without them keeps its hash.
    more = sorted(set(manifest.columns) - {*known, "height", "width"})
    for line in canonical_rows(manifest.select(*known, *more)):
        sha.update(line)
    for file in (folder / PIXELS, folder / MASKS):
        if file.is_file():
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    sha.update(block)
    if parts.is_joined(folder):  # each part's hash stands for its pixels
        found, places = parts.read(folder)
        sha.update(canonical([sha256 for _, sha256 in found]) + places.astype("<i8").tobytes())
    return sha.hexdigest()


def canonical(value: Any) -> bytes:
    """Return JSON in which equal values are equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def canonical_rows(frame: pl.DataFrame) -> Iterator[bytes]:
    """Yield the column names, then each row, as canonical JSON; memory stays flat."""
    yield canonical(frame.columns)
    for row in frame.iter_rows():
        yield canonical(row)


def _array(path: Path, name: str) -> NDArray[np.uint8] | None:
    """Return an array of a dataset, memory-mapped; None where there is none."""
    if parts.is_joined(path):
        return parts.pixels(path, name)
    file = path / name
    return np.load(file, mmap_mode="r", allow_pickle=False) if file.is_file() else None


def _info(path: Path) -> dict[str, Any]:
    file = path / INFO
    if not file.is_file():
        raise DatasetError(f"{path}: not a packed dataset (no {INFO}); make one with `wetread pack`")
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: not JSON: {error}; pack the dataset again") from None
    if not isinstance(info, dict) or info.get("schema_version") != SCHEMA_VERSION:
        found = info.get("schema_version") if isinstance(info, dict) else None
        raise DatasetError(f"{file}: schema_version = {found!r}, this version reads {SCHEMA_VERSION}; pack it again")
    if not isinstance(info.get("sha256"), str):
        raise DatasetError(f"{file}: sha256 is missing; pack the dataset again")
    return info

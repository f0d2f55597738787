"""Rows to a packed dataset: decoded in parallel, appended in order, resumed where a killed run stopped.

Everything is made in ``OUT.partial``, which becomes ``OUT`` in one step at the end. Workers decode shards of rows; this
process alone appends them to ``pixels.npy`` in order, and then a line per shard to ``journal.jsonl``. A killed run thus
leaves whole shards and at most one torn one, which the next run cuts off. Neither process holds more than a few shards.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from wetread import __version__
from wetread.dataset import files, labels, masks
from wetread.dataset.dataset import (
    INFO,
    MANIFEST,
    MASKS,
    PIXELS,
    SCHEMA_VERSION,
    TRANSFORM,
    Dataset,
    canonical,
    canonical_rows,
    counts,
    digest,
)
from wetread.dataset.parallel import Spread, in_order
from wetread.dataset.sources import Collection
from wetread.dataset.tables import PLACE
from wetread.errors import DatasetError, ReadError
from wetread.radiograph.pixels import Transform
from wetread.radiograph.read import Limits, Radiograph
from wetread.whole import flush

_SHARD = 64  # images: 3 MB of pixels at 224²
_JOURNAL = "journal.jsonl"
_SIZES = "sizes.npy"

# What a worker gets per image (file, member), and what it gives per shard: the arrays of the good images, and
# (number in the shard, reason) of the others. A good image has pixels, and masks where they are asked for.
Place = tuple[str, str | None]
Shard = tuple[list[NDArray[np.uint8]], list[tuple[int, str]]]


def pack(
    collection: Collection,
    out: Path,
    *,
    transform: Transform,
    workers: int = 2,
    seed: int = 0,
    parent: str | None = None,
    with_masks: bool = False,
    spread: Spread = in_order,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Write a packed dataset, or finish one that a killed run began.

    Packing the same input twice gives the same hash, whatever the number of workers and interruptions. Packing it
    into the folder that holds it already does nothing.

    Parameters
    ----------
    collection : Collection
        Every row with its split (`wetread.dataset.split.assign`).
    out : Path
        The dataset's folder: absent, empty, or of the same inputs.
    transform : Transform
        From a radiograph to the array that a model sees.
    workers : int
        Processes that decode; 1: this one.
    seed : int
        Recorded: what the choice of patients and splits was made with.
    parent : str, optional
        Hash of the dataset that this one corrects.
    with_masks : bool
        Also pack the masks that lie beside the images (`wetread.dataset.masks`).
    spread : callable
        How the work is shared out: `in_order`, or the same on a cluster.
    progress : callable, optional
        Called with the number of rows done and of all rows.

    Raises
    ------
    DatasetError
        When `out` holds anything else, another process packs into it, no image can be read, or no worker starts.
    """
    rows = collection.rows
    unsplit = rows["split"].null_count()
    if rows.is_empty() or unsplit:
        raise DatasetError(f"{out}: {rows.height} rows, {unsplit} of them without a split; nothing to pack")
    labels.to_array(rows, collection.task)  # raises when the labels do not fit the task
    if workers < 1:
        raise DatasetError(f"workers = {workers}: must be at least 1")
    about = collection.about | {"seed": seed, "parent": parent} | ({"masks": True} if with_masks else {})
    inputs = _fingerprint(collection, transform, about)
    if (out / INFO).is_file():
        dataset = Dataset.open(out)
        if dataset.info.get("inputs") != inputs:
            given = {"task": collection.task.to_dict(), "transform": transform.parameters(), "collection": about}
            other = next((name for name, value in given.items() if dataset.info.get(name) != value), "images or labels")
            raise DatasetError(f"{out}: holds a dataset of other {other}, which is never changed; give another folder")
        return dataset
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out}: exists and is no dataset; give another folder")
    folder = out.with_name(out.name + ".partial")
    folder.mkdir(parents=True, exist_ok=True)
    with _journal(folder, inputs, out) as journal:
        findings = collection.task.findings if with_masks else ()
        unread = _decode(rows, folder, journal, transform, _Wanted.of(about), findings, workers, spread, progress)
        numbers = {number for number, _ in unread}
        kept = rows.filter(~pl.int_range(pl.len()).is_in(list(numbers))).drop(*PLACE)
        images = rows["image"]
        refused = collection.refused + [{"image": images[number], "reason": reason} for number, reason in unread]
        if kept.is_empty():
            first = refused[-1]
            raise DatasetError(
                f"{out}: none of {rows.height} images can be packed; {first['image']}: {first['reason']}"
            )
        for name, shape in _columns(transform, findings).items():
            _write_header(folder / name, (kept.height, *shape))
        sizes = np.load(folder / _SIZES).view("<u2")
        kept = kept.with_columns(
            height=pl.Series(sizes[:, 0], dtype=pl.Int32), width=pl.Series(sizes[:, 1], dtype=pl.Int32)
        )
        kept.write_parquet(folder / MANIFEST)
        transform.save(folder / TRANSFORM)
        info = {
            "schema_version": SCHEMA_VERSION,
            "sha256": digest(collection.task, transform, kept, folder),
            "inputs": inputs,
            "task": collection.task.to_dict(),
            "transform": transform.parameters(),
            "counts": counts(kept, collection.task),
            "collection": about,
            "code_version": __version__,
            "refused_by_reason": reasons(refused),
            "refused": sorted(refused, key=lambda entry: (entry["image"], entry["reason"])),
        }
        (folder / INFO).write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for name in (MANIFEST, TRANSFORM, INFO, *_columns(transform, findings)):
            flush(folder / name)
        folder.replace(out)
        flush(out.parent)
        (out / _SIZES).unlink()
        (out / _JOURNAL).unlink()
    return Dataset.open(out)


def reasons(refused: list[dict[str, str]]) -> dict[str, int]:
    """Count refusals by kind: what stands before the colon of the reason."""
    return dict(Counter(entry["reason"].split(":")[0] for entry in refused).most_common())


def _fingerprint(collection: Collection, transform: Transform, about: dict[str, Any]) -> str:
    """Return a hash of what goes in, without reading any image: rows, sizes in bytes, refusals, transform, version."""
    sha = hashlib.sha256(canonical([collection.task.to_dict(), transform.parameters(), about, collection.refused]))
    for line in canonical_rows(collection.rows.drop("file")):
        sha.update(line)
    return sha.hexdigest()


# --- decoding ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    """What only the image itself tells about whether it belongs."""

    kind: str
    views: str

    @classmethod
    def of(cls, about: dict[str, Any]) -> _Wanted:
        return cls(about.get("kind", "folders"), about.get("selection", {}).get("views", "all"))

    def refuses(self, radiograph: Radiograph) -> str | None:
        phantom = radiograph.source == "phantom"
        if phantom and self.kind not in ("phantom", "folders", "reviews"):  # a clinic may read phantoms
            return "wrong kind: a phantom among patients; pack it with `wetread pack phantom`"
        if not phantom and self.kind == "phantom":
            return "wrong kind: not a phantom; pack it with the collection's own kind"
        if (
            radiograph.view is not None
            and self.views != "all"
            and (radiograph.view == "LATERAL") != (self.views == "lateral")
        ):
            return f"wrong view: {radiograph.view}, asked for {self.views}"
        return None


def _columns(transform: Transform, findings: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the arrays of a dataset and the shape of an image in each; without findings there are no masks.

    The sizes of the images, two 16-bit numbers each, are an array until the manifest is written.
    """
    shapes: dict[str, tuple[int, ...]] = {PIXELS: (transform.size, transform.size), _SIZES: (4,)}
    return shapes | ({MASKS: (len(findings), masks.SIDE, masks.SIDE)} if findings else {})


def _decode(
    rows: pl.DataFrame,
    folder: Path,
    journal: BinaryIO,
    transform: Transform,
    wanted: _Wanted,
    findings: Sequence[str],
    workers: int,
    spread: Spread,
    progress: Callable[[int, int], None] | None,
) -> list[tuple[int, str]]:
    """Append the arrays of all rows after what is there already; return (row, reason) of what cannot be read."""
    done, written, unread = _resume(journal)
    with ExitStack() as stack:
        columns = []
        for name, shape in _columns(transform, findings).items():
            end = _write_header(folder / name, (rows.height, *shape)) + written * math.prod(shape)
            column = stack.enter_context((folder / name).open("r+b"))
            if column.seek(0, os.SEEK_END) < end:
                raise DatasetError(
                    f"{folder}: {name} is shorter than its journal says; remove the folder and pack again"
                )
            column.truncate(end)
            column.seek(end)
            columns.append(column)
        starts = range(done * _SHARD, rows.height, _SHARD)
        shards = (list(rows[start : start + _SHARD].select("file", "member").iter_rows()) for start in starts)
        results = spread(shards, partial(_shard, transform, wanted, findings), _rescue, workers)
        for start, (arrays, bad) in zip(starts, results, strict=True):
            for column, array in zip(columns, arrays, strict=bool(arrays)):  # none, when every image kills its worker
                column.write(array.data)
                column.flush()
                os.fsync(column.fileno())
            refused = [(start + number, reason) for number, reason in bad]
            journal.write(canonical({"images": len(arrays[0]) if arrays else 0, "refused": refused}))
            journal.flush()
            unread += refused
            if progress:
                progress(min(start + _SHARD, rows.height), rows.height)
    files.close()
    return unread


def _shard(transform: Transform, wanted: _Wanted, findings: Sequence[str], places: list[Place]) -> Shard:
    columns = [np.empty((len(places), *shape), np.uint8) for shape in _columns(transform, findings).values()]
    bad: list[tuple[int, str]] = []
    good = 0
    for number, (file, member) in enumerate(places):
        try:
            name = Path(member or file).name
            source = Path(file) if member is None else files.read(file, member, Limits().max_bytes)
            radiograph = transform.read(source, name)
            reason = wanted.refuses(radiograph)
            if reason is None:
                seen = transform(radiograph)
                columns[0][good] = seen.array
                columns[1][good] = np.minimum(radiograph.full_size, 65535).astype("<u2").view(np.uint8)
                if findings:
                    columns[2][good] = masks.beside(file, member, findings, seen.box)
        except (ReadError, DatasetError) as error:
            reason = f"unreadable: {error}"
        if reason is None:
            good += 1
        else:
            bad.append((number, reason))
    return [column[:good] for column in columns], bad


def _rescue(places: list[Place], alone: Callable[[Place], Shard | None]) -> Shard:
    """Work image by image on a shard in whose time a worker died, and refuse the image that kills."""
    parts: list[list[NDArray[np.uint8]]] = []
    bad: list[tuple[int, str]] = []
    for number, place in enumerate(places):
        result = alone(place)
        if result is None:
            bad.append((number, "unreadable: the decoder crashed, or ran out of memory"))
        else:
            parts.append(result[0])
            bad += [(number, reason) for _, reason in result[1]]
    return [np.concatenate(column) for column in zip(*parts, strict=True)], bad


# --- what a killed run leaves -----------------------------------------------------------------------------------------


@contextmanager
def _journal(folder: Path, inputs: str, out: Path) -> Iterator[BinaryIO]:
    """Open the journal, whose first line names the inputs, for this process alone."""
    file = folder / _JOURNAL
    with file.open("a+b") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatasetError(f"{folder}: another process is packing into it; wait for it") from None
        journal.seek(0)
        first = journal.readline()
        expected = canonical({"inputs": inputs, "shard": _SHARD})
        if first.endswith(b"\n") and first != expected:
            raise DatasetError(f"{folder}: an unfinished packing of other inputs; finish it or remove the folder")
        if first != expected:
            journal.truncate(0)
            journal.write(expected)
            journal.flush()
        yield journal


def _resume(journal: BinaryIO) -> tuple[int, int, list[tuple[int, str]]]:
    """Return shards done, images written and rows refused; cut the journal behind its last whole line."""
    journal.seek(0)
    end = len(journal.readline())
    shards = written = 0
    unread: list[tuple[int, str]] = []
    for line in journal:
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):  # torn by the kill
            break
        shards, written, end = shards + 1, written + entry["images"], end + len(line)
        unread += [(number, reason) for number, reason in entry["refused"]]
    journal.truncate(end)
    return shards, written, unread


def _write_header(file: Path, shape: tuple[int, ...]) -> int:
    """Write the header of a uint8 array at the start of the file, leave the rest, and return its length.

    NumPy pads the header so that its length does not depend on the first axis.
    """
    file.touch()
    with file.open("r+b") as stream:
        values = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, values)
        return stream.tell()

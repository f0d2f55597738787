"""`wetread score`: many images to one table of scores, on several processes or a cluster; none goes missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wetread.config import Settings
from wetread.dataset.dataset import INFO, Dataset
from wetread.dataset.parallel import Spread, in_order
from wetread.errors import Code, DatasetError, ModelError, ReadError
from wetread.infer.files import expand
from wetread.infer.predict import Analysis, Predictor
from wetread.model.package import Package

_SHARD = 64  # images
_DIED = "the process that worked on it died: a decoder crashed, or memory ran out"


@dataclass(frozen=True)
class Job:
    """What every worker must know; it travels to other processes and machines.

    Attributes
    ----------
    model : str
        Path of the package.
    settings : str
        `Settings` as JSON.
    dataset : str
        The packed dataset whose row numbers are the items; empty when the items are files.
    """

    model: str
    settings: str
    dataset: str = ""


def score(
    model: str,
    source: Path,
    out: Path,
    *,
    settings: Settings,
    data: Path | None = None,
    workers: int = 1,
    spread: Spread = in_order,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Score a packed dataset, a file or a folder of files, and write one Parquet table.

    The columns are `image`; `view`; `code` and `reason`, null for an image that was scored; `abnormal`; `familiarity`;
    and the probability of each finding, null where there is none. A row never goes missing: a file that cannot be
    read, does not suit the model or kills its decoder has a row with its code.

    Parameters
    ----------
    model : str
        Model package: name, id or path.
    source, out : Path
    settings : Settings
    data : Path, optional
        Data folder whose models are known by name.
    workers : int
        Processes.
    spread : callable
        How the work is shared out: `in_order`, or the same on a cluster.
    progress : callable
        Told how many more images are done.

    Returns
    -------
    dict
        ``model``, ``images``, ``scored``, ``codes`` (images per code) and ``out``.

    Raises
    ------
    WetreadError
        When the package or the dataset cannot be opened or do not fit, or nothing is there.
    """
    package = Package.open(model, data)
    if package.meta.kind == "study":
        raise ModelError(f"{package.name}: judges studies of two views, not single images; score with an image model")
    job, items = _items(package, settings, source)
    if not items:
        raise ReadError(f"{source}: holds no file; give radiographs, a folder of them, or a packed dataset")
    findings = package.task.findings
    columns = [("image", pa.string()), ("view", pa.string()), ("code", pa.string()), ("reason", pa.string())]
    figures = [(name, pa.float32()) for name in ("abnormal", "familiarity", *findings)]
    about = {"model": package.name, "model_id": package.id, "task": package.task.name, "source": str(source)}
    schema = pa.schema([*columns, *figures], metadata=about)
    codes: Counter[str] = Counter()
    draft = out.with_name(f".{out.name}.draft")
    out.parent.mkdir(parents=True, exist_ok=True)
    shards = (items[start : start + _SHARD] for start in range(0, len(items), _SHARD))
    try:
        with pq.ParquetWriter(draft, schema) as writer:
            for rows in spread(shards, partial(_shard, job), partial(_rescue, job), workers):
                writer.write_table(pa.Table.from_pylist(rows, schema))
                codes.update(row["code"] for row in rows if row["code"])
                progress(len(rows))
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    refused = sum(codes.values())
    return {
        "model": package.name,
        "images": len(items),
        "scored": len(items) - refused,
        "codes": dict(codes.most_common()),
        "out": str(out),
    }


def _items(package: Package, settings: Settings, source: Path) -> tuple[Job, list[Any]]:
    where, known = str(package.path.resolve()), settings.model_dump_json()
    if (source / INFO).is_file():
        dataset = Dataset.open(source)
        ours, theirs = package.transform.parameters(), dataset.transform.parameters()
        if ours != theirs:
            what = ", ".join(
                f"{key} {theirs.get(key)!r} for {ours[key]!r}" for key in ours if ours[key] != theirs.get(key)
            )
            raise DatasetError(f"{source}: other transform than {package.name}'s: {what}; score the files themselves")
        return Job(where, known, str(source.resolve())), list(range(len(dataset)))
    if not source.exists():
        raise ReadError(f"{source}: no such file or folder; give radiographs, a folder of them, or a packed dataset")
    return Job(where, known), [str(path.resolve()) for path in expand([source])]


@lru_cache(maxsize=1)
def _predictor(job: Job) -> Predictor:
    return Predictor.open(job.model, Settings.model_validate_json(job.settings))


@lru_cache(maxsize=1)
def _dataset(path: str) -> Dataset:
    return Dataset.open(path)


def _shard(job: Job, items: list[Any]) -> list[dict[str, Any]]:
    predictor = _predictor(job)
    if not job.dataset:
        analyses: Iterator[Analysis] = predictor.analyse_many(Path(item) for item in items)
        return [_row(item, analysis) for item, analysis in zip(items, analyses, strict=True)]
    dataset = _dataset(job.dataset)
    names, views = dataset.manifest["image"], dataset.manifest["view"]
    analyses = predictor.analyse_seen(np.asarray(dataset.pixels[i]) for i in items)
    return [_row(names[i], analysis) | {"view": views[i]} for i, analysis in zip(items, analyses, strict=True)]


def _rescue(job: Job, items: list[Any], alone: Callable[[Any], list[dict[str, Any]] | None]) -> list[dict[str, Any]]:
    """Score image by image after a worker died; the image that kills gets a row that says so."""
    rows = []
    for item in items:
        name = _dataset(job.dataset).manifest["image"][item] if job.dataset else item
        code = Code.MODEL_FAILED if job.dataset else Code.UNREADABLE
        rows += alone(item) or [{"image": name, "code": code.value, "reason": _DIED}]
    return rows


def _row(image: str, analysis: Analysis) -> dict[str, Any]:
    return {
        "image": image,
        "view": analysis.view,
        "code": analysis.code.value if analysis.code else None,
        "reason": analysis.reason or None,
        "abnormal": analysis.abnormal,
        "familiarity": analysis.familiarity,
        **{result.finding: result.probability for result in analysis.findings},
    }

"""`wetread score`: many images or studies to one table of scores, on several processes or a cluster; none goes missing.

Interrupted, the same command goes on where it stopped: finished pieces wait in a hidden folder beside the table.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from wetread.dataset.studies import apart, studies
from wetread.errors import BusyError, Code, DatasetError, ModelError, ReadError
from wetread.infer import study, study_list
from wetread.infer.predict import Analysis, Predictor
from wetread.infer.remote import SCHEME, local_name
from wetread.model.package import Package

_SHARD = 64  # images
_DIED = "the process that worked on it died: a decoder crashed, or memory ran out"
_ABSENT = "listed, but no such file is there"


@dataclass(frozen=True)
class Job:
    """What every worker must know; it travels to other processes and machines.

    Attributes
    ----------
    model : str
        Path of the package, or address of a remote model.
    settings : str
        `Settings` as JSON.
    dataset : str
        The packed dataset whose row numbers are the items; empty when the items are files.
    whole : bool
        Items are studies: the package judges both views together.
    """

    model: str
    settings: str
    dataset: str = ""
    whole: bool = False


def score(
    model: str,
    source: Path,
    out: Path,
    *,
    settings: Settings,
    data: Path | None = None,
    listed: Path | None = None,
    workers: int = 1,
    spread: Spread = in_order,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Score a packed dataset, a file or a folder of files, and write one Parquet table.

    The columns are `study` (Study Instance UID, or as listed) and `image`; `view`; `code` and `reason`, null for what
    was scored; `abnormal`; `familiarity`; and the probability of each finding, null where there is none. A model of
    studies gives a row a study: `image` is the frontal view and `lateral` the other, `files` how many files there were,
    and `reason` names those that were left out. A row never goes missing: what cannot be read, does not suit the model
    or kills its decoder has a row with its code.

    Parameters
    ----------
    model : str
        Model package: name, id or path.
    source, out : Path
    settings : Settings
    data : Path, optional
        Data folder whose models are known by name.
    listed : Path, optional
        CSV of the files or studies to score; see `study_list.entries`.
    workers : int
        Processes.
    spread : callable
        How the work is shared out: `in_order`, or the same on a cluster.
    progress : callable
        Told how many more rows are done.

    Returns
    -------
    dict
        ``model``, ``images`` (rows), ``scored``, ``codes`` (rows per code) and ``out``.

    Raises
    ------
    WetreadError
        When the package, the list or the dataset cannot be opened or do not fit, or nothing is there.
    """
    package = Package.open(local_name(model), data)
    job, items = _items(package, model, settings, source, listed)
    if not items:
        raise ReadError(f"{source}: holds no file; give radiographs, a folder of them, or a packed dataset")
    schema = _schema(package, source, job.whole)
    out.parent.mkdir(parents=True, exist_ok=True)
    parts = _parts(out, package, job, items)
    shards = [items[start : start + _SHARD] for start in range(0, len(items), _SHARD)]
    codes: Counter[str] = Counter()
    for number, shard in enumerate(shards):
        if (done := parts / f"{number}.parquet").is_file():
            codes.update(code for code in pq.read_table(done, columns=["code"])["code"].to_pylist() if code)
            progress(len(shard))
    left = [number for number in range(len(shards)) if not (parts / f"{number}.parquet").is_file()]
    results = spread((shards[number] for number in left), partial(_shard, job), partial(_rescue, job), workers)
    for number, rows in zip(left, results, strict=True):
        draft = parts / f"{number}.draft"
        pq.write_table(pa.Table.from_pylist(rows, schema), draft)
        draft.replace(parts / f"{number}.parquet")
        codes.update(row["code"] for row in rows if row["code"])
        progress(len(rows))
    whole = parts / "whole"
    with pq.ParquetWriter(whole, schema) as writer:
        for number in range(len(shards)):
            writer.write_table(pq.read_table(parts / f"{number}.parquet", schema=schema))
    whole.replace(out)
    shutil.rmtree(parts)
    refused = sum(codes.values())
    return {
        "model": package.name,
        "images": len(items),
        "scored": len(items) - refused,
        "codes": dict(codes.most_common()),
        "out": str(out),
    }


def _schema(package: Package, source: Path, whole: bool) -> pa.Schema:
    texts = ["study", "image", *(["lateral"] if whole else []), "view", "code", "reason"]
    columns = [(name, pa.string()) for name in texts] + ([("files", pa.int32())] if whole else [])
    figures = [(name, pa.float32()) for name in ("abnormal", "familiarity", *package.task.findings)]
    about = {"model": package.name, "model_id": package.id, "task": package.task.name, "source": str(source)}
    return pa.schema([*columns, *figures], metadata=about)


def _parts(out: Path, package: Package, job: Job, items: Sequence[Any]) -> Path:
    """Return the folder of finished pieces, emptied when they are of another model, other settings or other files."""
    digest = hashlib.sha256(f"{package.id} {job} {_SHARD}".encode())
    for item in items:
        files = [item] if isinstance(item, int) else [Path(file) for file in item[1] if file]
        state = [(str(f), s.st_size, s.st_mtime_ns) for f in files if isinstance(f, Path) and (s := _stat(f))]
        digest.update(f"{item} {state}".encode("utf-8", "surrogatepass"))
    parts, plan = out.with_name(f".{out.name}.parts"), digest.hexdigest()
    known = parts / "plan.json"
    if not known.is_file() or json.loads(known.read_text(encoding="utf-8")) != plan:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        known.write_text(json.dumps(plan), encoding="utf-8")
    return parts


def _stat(path: Path) -> Any:
    try:
        return path.stat()
    except OSError:
        return None


def _items(
    package: Package, model: str, settings: Settings, source: Path, listed: Path | None
) -> tuple[Job, list[Any]]:
    """Return the job and its items: row numbers, or studies with the files to score, one unless the model wants all."""
    where = model if model.startswith(SCHEME) else str(package.path.resolve())
    known, whole = settings.model_dump_json(), package.meta.kind == "study"
    if (source / INFO).is_file():
        if listed is not None:
            raise ReadError(f"{listed}: a list goes with a folder of radiographs, not with a packed dataset")
        dataset = Dataset.open(source)
        ours, theirs = package.transform.parameters(), dataset.transform.parameters()
        if ours != theirs:
            what = ", ".join(
                f"{key} {theirs.get(key)!r} for {ours[key]!r}" for key in ours if ours[key] != theirs.get(key)
            )
            raise DatasetError(f"{source}: other transform than {package.name}'s: {what}; score the files themselves")
        job = Job(where, known, str(source.resolve()), whole)
        return job, list(range(len(_dataset(job.dataset, whole))))
    found = study_list.entries(source, listed)
    job = Job(where, known, whole=whole)
    return job, study_list.grouped(found) if whole else [(entry.study, (entry.file,)) for entry in found]


@lru_cache(maxsize=1)
def _predictor(job: Job) -> Predictor:
    return Predictor.open(job.model, Settings.model_validate_json(job.settings))


@lru_cache(maxsize=1)
def _dataset(path: str, whole: bool) -> Dataset:
    return studies(Dataset.open(path)) if whole else Dataset.open(path)


def _shard(job: Job, items: list[Any]) -> list[dict[str, Any]]:
    predictor = _predictor(job)
    if job.dataset:
        dataset = _dataset(job.dataset, job.whole)
        about = dataset.manifest[items].select("study", "image", "view").to_dicts()
        arrays = (np.asarray(dataset.pixels[i]) for i in items)
        seen = (apart(array[None, None])[0] for array in arrays) if job.whole else arrays
        analyses: Iterator[Analysis] = predictor.analyse_seen(seen)
        return [_row(analysis) | row for row, analysis in zip(about, analyses, strict=True)]
    if job.whole:
        return [_study(predictor, name, files) for name, files in items]
    there = [Path(files[0]) for _, files in items if files[0] and Path(files[0]).is_file()]
    found = dict(zip(there, predictor.analyse_many(there), strict=True))
    rows = []
    for name, (file,) in items:
        analysis = found.get(Path(file)) or predictor.refused(Code.UNREADABLE, _ABSENT)
        rows.append(_row(analysis) | {"study": name or study_list.study_uid(Path(file)), "image": file or None})
    return rows


def _study(predictor: Predictor, name: str, files: Sequence[str]) -> dict[str, Any]:
    """Return the row of a study: both views together, and what was left out of it."""
    radiographs, kept, out = [], [], []
    for file in files:
        try:
            radiographs.append(predictor.read(Path(file)))
            kept.append(file)
        except ReadError as error:
            out.append((error.code, f"{Path(file).name}: {error.code}"))
    row: dict[str, Any] = {"study": name, "image": files[0] if files else None, "lateral": None, "files": len(files)}
    if not radiographs:
        code, reason = out[0] if out else (Code.UNREADABLE, _ABSENT)
        return _row(predictor.refused(code, reason)) | row
    frontal, lateral = study.pair(radiographs)
    row["image"] = kept[frontal] if frontal is not None else None
    row["lateral"] = kept[lateral] if lateral is not None else None
    try:
        whole, images = study.analyse(predictor, radiographs)
    except (ModelError, BusyError) as error:
        return _row(predictor.refused(Code.MODEL_FAILED, str(error))) | row
    for number, image in enumerate(images):
        if image.code is not None:
            out.append((image.code, f"{Path(kept[number]).name}: {image.code}"))
        elif number not in (frontal, lateral):
            out.append((Code.MODEL_FAILED, f"{Path(kept[number]).name}: not used, another image of its view was"))
    found = _row(whole) | row
    if whole.suitable and out:
        found["reason"] = "; ".join(reason for _, reason in out)
    return found


def _rescue(job: Job, items: list[Any], alone: Callable[[Any], list[dict[str, Any]] | None]) -> list[dict[str, Any]]:
    """Score item by item after a worker died; the one that kills gets a row that says so."""
    rows = []
    for item in items:
        if job.dataset:
            about = _dataset(job.dataset, job.whole).manifest[item].select("study", "image").to_dicts()[0]
            lost = about | {"code": Code.MODEL_FAILED.value, "reason": _DIED}
        else:
            lost = {"study": item[0] or None, "image": item[1][0], "code": Code.UNREADABLE.value, "reason": _DIED}
        rows += alone(item) or [lost]
    return rows


def _row(analysis: Analysis) -> dict[str, Any]:
    return {
        "view": analysis.view,
        "code": analysis.code.value if analysis.code else None,
        "reason": analysis.reason or None,
        "abnormal": analysis.abnormal,
        "familiarity": analysis.familiarity,
        **{result.finding: result.probability for result in analysis.findings},
    }

"""Public collections to rows: what each image shows, whose it is, and where its bytes lie.

One row of `SOURCES` per collection. What cannot become a row is refused with a reason, never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from wetread.dataset import files, layouts
from wetread.dataset.layouts import COLUMNS, PLACE
from wetread.dataset.split import unit
from wetread.errors import DatasetError, ReadError
from wetread.findings import CHEXPERT, NIH, PNEUMONIA, Task
from wetread.radiograph import read as radiograph
from wetread.radiograph.read import Limits

Views = Literal["frontal", "lateral", "all"]
Refused = list[dict[str, str]]


@dataclass(frozen=True)
class Collection:
    """The rows of a collection that can be packed, and those that cannot.

    Attributes
    ----------
    rows : DataFrame
        Sorted by `image`: the columns of `COLUMNS` (`split` is the published one, or null), one Int8 column per
        finding, and where the bytes lie (`PLACE`).
    refused : list of dict
        `image` and `reason` ("kind: details").
    task : Task
    about : dict
        Kind, licence, attribution and URL of the collection, and how this selection of it was made.
    """

    rows: pl.DataFrame
    refused: Refused
    task: Task
    about: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A kind of collection: how to read it, and what its terms are.

    Attributes
    ----------
    read : callable
        From listed files, task and the name of a label table to rows with a `reason` column (null: fine) and task.
    patient : str
        What tells patients apart.
    task : Task or None
        The task when none is asked for; None: inferred from the folder names.
    """

    title: str
    read: Callable[[pl.DataFrame, Task | None, str | None, Path], tuple[pl.DataFrame, Task]]
    patient: str
    task: Task | None
    licence: str
    attribution: str
    url: str


def collect(
    kind: str,
    root: Path,
    *,
    task: Task | None = None,
    limit: int | None = None,
    views: Views = "frontal",
    labels: str | None = None,
    seed: int = 0,
) -> Collection:
    """List a collection: one row per image that can be packed, one reason per image that cannot.

    Parameters
    ----------
    kind : str
        A name in `SOURCES`.
    root : Path
        The collection's folder, or one zip archive of it. Archives inside the folder are read in place.
    task : Task, optional
        Which findings to take; by default the collection's own.
    limit : int, optional
        Most images; whole patients are taken, in an order that depends on `seed` and nothing else.
    views : {"frontal", "lateral", "all"}
        Images of another view are refused. An image whose collection does not tell its view counts as frontal.
    labels : str, optional
        Another label table for the training images, e.g. ``train_cheXbert.csv``: its name in the collection or a path.
    seed : int
        Of the choice of patients under `limit`.

    Raises
    ------
    DatasetError
        For an unknown kind, a missing root or table, a table without the needed columns, a task that does not fit,
        or a collection of which nothing is left.
    """
    if kind not in SOURCES:
        raise DatasetError(f"collection kind {kind!r}: unknown; known: {', '.join(SOURCES)}")
    if limit is not None and limit < 1:
        raise DatasetError(f"limit = {limit}: must be at least 1 image")
    source = SOURCES[kind]
    listed, refused = files.index(root)
    rows, chosen = source.read(listed, task or source.task, labels, root)
    if kind == "chexpert" and _shows_phantoms(rows):  # the same layout, but other terms
        kind, source = "phantom", SOURCES["phantom"]
    rows = rows.sort("image", "file").with_columns(source=pl.lit(kind)).with_columns(reason=_reasons(views))
    refused += rows.filter(pl.col("reason").is_not_null()).select("image", "reason").to_dicts()
    rows = rows.filter(pl.col("reason").is_null()).select(*COLUMNS, *chosen.findings, *PLACE)
    if rows.is_empty():
        why = f"; first of {len(refused)} refused: {refused[0]['image']}: {refused[0]['reason']}" if refused else ""
        raise DatasetError(f"{root}: no image of a {kind} collection could be taken{why}")
    files.close()
    taken = rows if limit is None else _limit(rows, limit, seed)
    about = {
        "kind": kind,
        "title": source.title,
        "licence": source.licence,
        "attribution": source.attribution,
        "url": source.url,
        "patient_key": source.patient,
        "selection": {
            "views": views,
            "limit": limit,
            "labels": Path(labels).name if labels else None,
            "seed": seed,
            "images_beyond_limit": rows.height - taken.height,
        },
    }
    return Collection(taken, sorted(refused, key=lambda r: (r["image"], r["reason"])), chosen, about)


def _shows_phantoms(rows: pl.DataFrame) -> bool:
    """Return whether the first image that can be read is a phantom; packing refuses a mixture."""
    for file, member in rows.drop_nulls("file").select("file", "member").head(8).iter_rows():
        try:
            return radiograph.read(files.read(file, member, Limits().max_bytes)).source == "phantom"
        except (DatasetError, ReadError):
            continue
    return False


def _reasons(views: Views) -> pl.Expr:
    """Return why a row is refused: what its reader found, then what holds for every collection."""
    is_lateral = (pl.col("view") == "LATERAL").fill_null(False)
    seen = pl.coalesce("view", pl.lit("unknown"))
    wrong = {"frontal": is_lateral, "lateral": ~is_lateral, "all": pl.lit(False)}[views]
    return (
        pl.when(pl.col("reason").is_not_null())
        .then("reason")
        .when(pl.col("file").is_null())
        .then(pl.lit("missing file: listed in the table but not in the collection"))
        .when(~pl.struct("image").is_first_distinct())
        .then(pl.format("duplicate: {} has the same name as an image before it", "path"))
        .when(wrong)
        .then(pl.format(f"wrong view: {{}}, asked for {views}", seen))
    )


def _limit(rows: pl.DataFrame, limit: int, seed: int) -> pl.DataFrame:
    patients = rows.group_by("patient").len()
    patients = patients.with_columns(order=pl.Series(unit(patients["patient"].to_list(), seed, "limit"))).sort("order")
    kept = patients.filter((pl.col("len").cum_sum() <= limit) | (pl.int_range(pl.len()) == 0))
    return rows.filter(pl.col("patient").is_in(kept["patient"].implode()))


SOURCES: dict[str, Source] = {
    "chexpert": Source(
        title="CheXpert",
        read=layouts.chexpert,
        patient="patientNNNNN in the path",
        task=CHEXPERT,
        licence="Stanford University Dataset Research Use Agreement: research use only, no redistribution",
        attribution="Irvin, Rajpurkar et al., CheXpert: a large chest radiograph dataset with uncertainty labels and "
        "expert comparison, AAAI 2019",
        url="https://stanfordmlgroup.github.io/competitions/chexpert/",
    ),
    "nih": Source(
        title="NIH ChestX-ray14",
        read=layouts.nih,
        patient="first eight digits of the file name",
        task=NIH,
        licence="no restriction on use; credit the NIH Clinical Center and cite the paper",
        attribution="NIH Clinical Center; Wang et al., ChestX-ray8: hospital-scale chest X-ray database and benchmarks "
        "on weakly-supervised classification and localization of common thorax diseases, CVPR 2017",
        url="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    ),
    "kermany": Source(
        title="Kermany paediatric pneumonia",
        read=layouts.kermany,
        patient="(subtype, number) in personN_subtype_M; IM-NNNN or NORMAL2-IM-NNNN; joined over byte-identical files",
        task=PNEUMONIA,
        licence="CC BY 4.0",
        attribution="Kermany, Goldbaum et al., Identifying medical diagnoses and treatable diseases by image-based "
        "deep learning, Cell 2018",
        url="https://data.mendeley.com/datasets/rscbjbr9sj",
    ),
    "phantom": Source(
        title="Wetread phantoms",
        read=layouts.chexpert,
        patient="patientNNNNN in the path",
        task=CHEXPERT,
        licence="Apache-2.0",
        attribution="made by `wetread phantom`; no patient is shown",
        url="",
    ),
    "folders": Source(
        title="a folder per class",
        read=layouts.folders,
        patient="Kermany's key, else DICOM Patient ID, else the file name; joined over byte-identical files",
        task=None,
        licence="unknown: see the collection",
        attribution="unknown: see the collection",
        url="",
    ),
}

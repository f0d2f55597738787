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
from wetread.dataset.mimic import mimic
from wetread.dataset.padchest import padchest
from wetread.dataset.reviews import reviews
from wetread.dataset.rsna import rsna
from wetread.dataset.split import unit
from wetread.dataset.tables import COLUMNS, PLACE
from wetread.dataset.vindr import vindr
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
        finding, what else the collection tells (`race`, for one), and where the bytes lie (`PLACE`).
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
    images : int
        How many were published; 0: as many as you have.
    layout : str
        The files that hold the labels, and where the images lie.
    patient : str
        What tells patients apart.
    task : Task or None
        The task when none is asked for; None: inferred from the folder names.
    """

    title: str
    images: int
    layout: str
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
    known = (*COLUMNS, *chosen.findings)
    more = [name for name in rows.columns if name not in (*known, *PLACE, "reason")]
    rows = rows.filter(pl.col("reason").is_null()).select(*known, *more, *PLACE)
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
        images=224_316,
        layout="train.csv, valid.csv, test.csv; patientNNNNN/studyN/viewN_frontal.jpg in folders or the "
        "published batches",
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
        images=112_120,
        layout="Data_Entry_2017*.csv, train_val_list.txt, test_list.txt; images_NNN/images/NNNNNNNN_NNN.png",
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
        images=5_856,
        layout="train, val, test over NORMAL, PNEUMONIA; personN_virus_N.jpeg, IM-NNNN-NNNN.jpeg",
        read=layouts.kermany,
        patient="(subtype, number) in personN_subtype_M; IM-NNNN or NORMAL2-IM-NNNN; joined over byte-identical files",
        task=PNEUMONIA,
        licence="CC BY 4.0",
        attribution="Kermany, Goldbaum et al., Identifying medical diagnoses and treatable diseases by image-based "
        "deep learning, Cell 2018",
        url="https://data.mendeley.com/datasets/rscbjbr9sj",
    ),
    "mimic": Source(
        title="MIMIC-CXR-JPG",
        images=377_110,
        layout="mimic-cxr-2.0.0-chexpert.csv, -metadata.csv, -split.csv (or .csv.gz); "
        "files/pNN/pNNNNNNNN/sNNNNNNNN/ID.jpg",
        read=mimic,
        patient="subject_id of the metadata",
        task=CHEXPERT,
        licence="PhysioNet Credentialed Health Data License 1.5.0: research use, no redistribution",
        attribution="Johnson, Lungren, Peng et al., MIMIC-CXR-JPG, a large publicly available database of labeled "
        "chest radiographs, arXiv 1901.07042, PhysioNet 2019",
        url="https://physionet.org/content/mimic-cxr-jpg/",
    ),
    "padchest": Source(
        title="PadChest",
        images=160_868,
        layout="PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv (or .csv.gz); 16-bit PNG in the "
        "folders or archives 0 to 54",
        read=padchest,
        patient="PatientID of the table",
        task=CHEXPERT,
        licence="CC BY-SA 4.0; access through BIMCV's research use agreement",
        attribution="Bustos, Pertusa, Salinas, de la Iglesia-Vayá, PadChest: a large chest x-ray image dataset with "
        "multi-label annotated reports, Medical Image Analysis 2020",
        url="https://bimcv.cipf.es/bimcv-projects/padchest/",
    ),
    "vindr": Source(
        title="VinDr-CXR",
        images=18_000,
        layout="annotations/image_labels_train.csv (a row per reader), image_labels_test.csv; "
        "train/ID.dicom, test/ID.dicom",
        read=vindr,
        patient="every image: none is published",
        task=CHEXPERT,
        licence="PhysioNet Credentialed Health Data License 1.5.0: research use, no redistribution",
        attribution="Nguyen, Lam, Le et al., VinDr-CXR: an open dataset of chest X-rays with radiologist's "
        "annotations, Scientific Data 2022",
        url="https://physionet.org/content/vindr-cxr/",
    ),
    "rsna": Source(
        title="RSNA Pneumonia Detection Challenge",
        images=26_684,
        layout="stage_2_train_labels.csv, stage_2_detailed_class_info.csv; stage_2_train_images/ID.dcm",
        read=rsna,
        patient="first eight digits of NIH's name by RSNA's mapping, else every image",
        task=CHEXPERT,
        licence="RSNA terms: non-commercial research and education; the images are NIH ChestX-ray14's",
        attribution="Shih, Wu, Halabi et al., Augmenting the National Institutes of Health chest radiograph dataset "
        "with expert annotations of possible pneumonia, Radiology: Artificial Intelligence 2019; images: NIH Clinical "
        "Center",
        url="https://www.rsna.org/rsnai/ai-image-challenge/rsna-pneumonia-detection-challenge-2018",
    ),
    "phantom": Source(
        title="Wetread phantoms",
        images=0,
        layout="as CheXpert; made by `wetread phantom`",
        read=layouts.chexpert,
        patient="patientNNNNN in the path",
        task=CHEXPERT,
        licence="Apache-2.0",
        attribution="made by `wetread phantom`; no patient is shown",
        url="",
    ),
    "reviews": Source(
        title="a clinic's signed reviews",
        images=0,
        layout="labels.csv beside images/; made by `wetread export-learning`",
        read=reviews,
        patient="keyed pseudonym of the site's patient identifier",
        task=None,
        licence="the site's own; ask before you pass it on",
        attribution="readers of the site",
        url="",
    ),
    "folders": Source(
        title="a folder per class",
        images=0,
        layout="a folder per class, with or without train, val, test above it",
        read=layouts.folders,
        patient="Kermany's key, else DICOM Patient ID, else the file name; joined over byte-identical files",
        task=None,
        licence="unknown: see the collection",
        attribution="unknown: see the collection",
        url="",
    ),
}

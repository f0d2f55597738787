"""RSNA Pneumonia Detection Challenge 2018: one of three classes, and boxes, for images of NIH ChestX-ray14 (Shih 2019).

``stage_2_train_labels.csv`` and ``stage_2_detailed_class_info.csv`` with a row per box, beside
``stage_2_train_images/<patientId>.dcm``. A `patientId` names an image: only RSNA's mapping to NIH's names
(``pneumonia-challenge-dataset-mappings_2018.json``) tells which images are of one patient.
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from wetread.dataset import alignment, tables
from wetread.errors import DatasetError
from wetread.findings import CHEXPERT, Task

_CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
_MAPPING = r"pneumonia-challenge-dataset-mappings.*\.json"


def rsna(listed: pl.DataFrame, task: Task | None, other: str | None, root: Path) -> tuple[pl.DataFrame, Task]:
    """Read images by `patientId`; the test images of the challenge have no labels."""
    task = task or CHEXPERT
    boxes = tables.needed(listed, "stage_2_train_labels.csv", ("patientId", "Target"), root, other)
    classes = tables.needed(listed, "stage_2_detailed_class_info.csv", ("patientId", "class"), root)
    found = alignment.words(alignment.RSNA, _CLASSES, task, "rsna")
    images, again = tables.images(listed)
    rows = (
        boxes.group_by("patientId", maintain_order=True)
        .agg(pl.col("Target").fill_null("").str.strip_chars().unique().sort())
        .join(
            classes.group_by("patientId").agg(pl.col("class").fill_null("").str.strip_chars().unique().sort()),
            on="patientId",
            how="left",
        )
        .with_columns(shown=pl.col("class").list.first())
    )
    unlabelled = tables.leftover(
        images.join(rows, left_on="key", right_on="patientId", how="anti"), "unlabelled: no table has a row for it"
    )
    columns = [(pl.col("shown") == name).fill_null(False).cast(pl.Int8).alias(name) for name in _CLASSES]
    rows = (
        alignment.open_parents(alignment.align(rows.with_columns(columns), found), task)
        .join(images, left_on="patientId", right_on="key", how="left")
        .join(tables.headers(images), left_on="patientId", right_on="key", how="left")
        .join(_patients(listed), on="patientId", how="left")
        .with_columns(
            image="patientId",
            patient=pl.coalesce("nih_patient", "patientId"),
            study="patientId",
            class_=pl.col("shown"),
            reason=_reason(),
        )
        .rename({"class": "classes", "class_": "class"})
    )
    return tables.together(tables.exclusive(rows, task), unlabelled, again, task, extra=("class",)), task


def _reason() -> pl.Expr:
    target, shown = pl.col("Target").list.join("' and '"), pl.col("class").list.join("' and '").fill_null("")
    opaque = pl.when(pl.col("shown") == "Lung Opacity").then(pl.lit("1")).otherwise(pl.lit("0"))
    return tables.first_reason(
        (pl.col("Target").list.len() > 1, pl.format("contradiction: Target = '{}'", target)),
        (~pl.col("Target").list.first().is_in(["0", "1"]), pl.format("unknown label: Target = '{}'", target)),
        ((pl.col("class").list.len() > 1).fill_null(False), pl.format("contradiction: class = '{}'", shown)),
        (~pl.col("shown").is_in(_CLASSES).fill_null(False), pl.format("unknown label: class = '{}'", shown)),
        (pl.col("Target").list.first() != opaque, pl.format("contradiction: Target {}, class '{}'", target, shown)),
    )


def _patients(listed: pl.DataFrame) -> pl.DataFrame:
    """Return NIH's patient by `patientId`, where RSNA's mapping is at hand."""
    out: list[tuple[str, str]] = []
    for name in tables.find(listed, _MAPPING):
        try:
            entries = json.loads(tables.text(listed, name) or "")
            out += [(entry["subset_img_id"], entry["img_id"][:8]) for entry in entries]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DatasetError(f"{name}: not RSNA's list of subset_img_id and img_id: {error!r}") from None
    schema = {"patientId": pl.String, "nih_patient": pl.String}
    return pl.DataFrame(out, schema=schema, orient="row").unique("patientId")

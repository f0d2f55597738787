"""VinDr-CXR: what three radiologists saw in each training image, and five agreed on in each test image (Nguyen 2022).

``annotations/image_labels_train.csv`` has a row per image and reader, ``image_labels_test.csv`` one per image, beside
the DICOM files ``train/<image_id>.dicom`` and ``test/<image_id>.dicom``.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from wetread.dataset import alignment, labels, tables
from wetread.errors import DatasetError
from wetread.findings import ABSENT, CHEXPERT, PRESENT, UNCERTAIN, Task

_TABLES = {"train": "image_labels_train.csv", "test": "image_labels_test.csv"}
_KEYS = ("image_id", "rad_id")


def vindr(listed: pl.DataFrame, task: Task | None, other: str | None, root: Path) -> tuple[pl.DataFrame, Task]:
    """Read images by reader; a finding on which the readers of an image disagree is uncertain."""
    task = task or CHEXPERT
    parts = []
    for split, name in _TABLES.items():
        chosen = other if other and split == "train" else name
        table = tables.table(listed, (chosen, f"{chosen}.gz"), root, required=bool(other) and split == "train")
        if table is not None:
            if "image_id" not in table.columns:
                raise DatasetError(f"{root}: {chosen} has no column 'image_id'")
            parts.append(_combined(table, task).with_columns(split=pl.lit(split)))
    if not parts:
        raise DatasetError(f"{root}: no label table ({' or '.join(_TABLES.values())}); give the collection's root")
    images, again = tables.images(listed)
    rows = pl.concat(parts)
    unlabelled = tables.leftover(
        images.join(rows, left_on="key", right_on="image_id", how="anti"), "unlabelled: no table has a row for it"
    )
    rows = (
        alignment.open_parents(rows, task)
        .join(images, left_on="image_id", right_on="key", how="left")
        .join(tables.headers(images).drop("view"), left_on="image_id", right_on="key", how="left")
        .with_columns(
            image=pl.format("{}/{}", "split", "image_id"),
            patient="image_id",  # the published files name no patient
            study="image_id",
            view=pl.lit("PA"),
            reason=tables.first_reason((pl.col("wrong").is_not_null(), pl.col("wrong"))),
        )
    )
    return tables.together(tables.exclusive(rows, task), unlabelled, again, task, extra=("readers",)), task


def _combined(table: pl.DataFrame, task: Task) -> pl.DataFrame:
    """Return one row per image from one per reader: what all say, else uncertain; what is wrong with it in `wrong`."""
    columns = [name for name in table.columns if name not in _KEYS]
    found = alignment.words(alignment.VINDR, columns, task, "vindr")
    if "rad_id" not in table.columns:
        table = table.with_columns(rad_id=pl.lit("consensus"))
    bad = [
        (labels.is_bad(name) | (labels.parse(name) == UNCERTAIN), pl.format(f"unknown label: {name} = '{{}}'", name))
        for name in columns
    ]
    twice = (~pl.struct(*_KEYS).is_unique(), pl.format("contradiction: two rows of reader {}", "rad_id"))
    table = table.with_columns(wrong=tables.first_reason(*bad, twice))
    table = alignment.align(table.with_columns(labels.parse(name) for name in columns), found)
    return table.group_by("image_id", maintain_order=True).agg(
        *(_agreed(finding).alias(finding) for finding in task.findings),
        pl.col("wrong").drop_nulls().first(),
        pl.len().cast(pl.Int8).alias("readers"),
    )


def _agreed(finding: str) -> pl.Expr:
    value = pl.col(finding)
    return (
        pl.when((value == PRESENT).fill_null(False).all())
        .then(PRESENT)
        .when((value == PRESENT).any())
        .then(UNCERTAIN)
        .when((value == ABSENT).fill_null(False).all())
        .then(ABSENT)
        .cast(pl.Int8)
    )

"""PadChest: labels that physicians or a network gave to Spanish reports, 16-bit PNG (Bustos et al. 2020).

``PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv``, packed by gzip or not, beside the images in the folders or zip
archives ``0`` to ``54``. There is no published split.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from wetread.dataset import alignment, tables
from wetread.errors import DatasetError
from wetread.findings import CHEXPERT, Task

_TABLE = r"PADCHEST_chest_x_ray_images_labels_.*\.csv(\.gz)?"
_COLUMNS = (
    "ImageID",
    "StudyID",
    "PatientID",
    "PatientBirth",
    "PatientSex_DICOM",
    "StudyDate_DICOM",
    "Projection",
    "MethodLabel",
    "Labels",
)
_VIEWS = {"PA": "PA", "AP": "AP", "AP_horizontal": "AP", "L": "LATERAL"}
_QUOTED = r"""'[^']*'|"[^"]*\""""
_NO_LABELS = ("exclude", "suboptimal study")  # the reader could not judge the image
_SAYS_NEITHER = (*alignment.DEVICES, "unchanged")  # alone they make an image neither normal nor abnormal


def padchest(listed: pl.DataFrame, task: Task | None, other: str | None, root: Path) -> tuple[pl.DataFrame, Task]:
    """Read images by name; a finding that the report does not name is absent, as in NIH ChestX-ray14."""
    task = task or CHEXPERT
    names = [other] if other else tables.find(listed, _TABLE)
    if not names:
        raise DatasetError(f"{root}: no label table PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv")
    table = tables.needed(listed, names[0], _COLUMNS, root, names[0])
    images, again = tables.images(listed)
    key = pl.col("ImageID").str.strip_chars().str.replace(r"\.[A-Za-z]+$", "")
    said = pl.col("Labels").str.strip_chars().fill_null("")
    rows = table.select(_COLUMNS).with_columns(
        key=key,
        readable=said.str.contains(rf"^\[(?:\s*(?:{_QUOTED})\s*,?)+\]$"),
        said=said.str.extract_all(_QUOTED).list.eval(
            pl.element().str.strip_chars("'\"").str.strip_chars().str.to_lowercase()
        ),
    )
    rows = rows.with_columns(said=pl.col("said").list.set_difference([""]))
    seen = rows["said"].explode().drop_nulls().unique().to_list()
    found = alignment.words(alignment.PADCHEST, seen, task, "padchest")
    unlabelled = tables.leftover(images.join(rows, on="key", how="anti"), "unlabelled: no table has a row for it")
    rows = alignment.align(rows.with_columns(_columns(found)), found)
    rows = (
        alignment.open_parents(rows, task)
        .join(images, on="key", how="left")
        .with_columns(
            tables.sex("PatientSex_DICOM"),
            _age().cast(pl.Float32).alias("age_years"),
            image=pl.format("{}.png", "key"),
            patient="PatientID",
            study="StudyID",
            view=pl.col("Projection").replace_strict(_VIEWS, default=None),
            method=pl.col("MethodLabel").str.to_lowercase(),
            reason=_reason(),
        )
    )
    return tables.together(tables.exclusive(rows, task), unlabelled, again, task, extra=("method",)), task


def _columns(found: dict[str, alignment.Words | None]) -> list[pl.Expr]:
    """Return a column per label that tells about a finding: named, not named, or not known."""
    said = pl.col("said")
    used = sorted({label for tells in found.values() if tells for label in (*tells.named, *tells.vague)})
    # "Unchanged" refers to an earlier report: what it does not repeat may still be there.
    absent = pl.when(~said.list.contains("unchanged")).then(0)
    columns = [
        pl.when(said.list.contains(label)).then(1).otherwise(absent).cast(pl.Int8).alias(label) for label in used
    ]
    if "normal" in used:
        more = said.list.set_difference(list(_SAYS_NEITHER)).list.len() > 0
        normal = pl.when(said.list.contains("normal")).then(1).otherwise(pl.when(more).then(0))
        columns.append(normal.cast(pl.Int8).alias("normal"))
        columns = [column for column in columns if column.meta.output_name() != "normal"] + columns[-1:]
    return columns


def _age() -> pl.Expr:
    """Return the difference of the years of study and birth: all that is published."""
    born = pl.col("PatientBirth").str.strip_chars().cast(pl.Float64, strict=False)
    return pl.col("StudyDate_DICOM").str.extract(r"^(\d{4})\d{4}").cast(pl.Float64) - born


def _reason() -> pl.Expr:
    said, blank = pl.col("said"), pl.col("PatientBirth").str.strip_chars().fill_null("") == ""
    wrong = ~blank & ~_age().is_between(0, 120).fill_null(False)
    contradictory = said.list.contains("normal") & (said.list.len() > 1)
    text = pl.col("Labels").fill_null("")
    return tables.first_reason(
        (pl.col("PatientID").fill_null("").str.strip_chars() == "", pl.lit("unknown patient: PatientID is blank")),
        (~pl.col("readable") | (said.list.len() == 0), pl.format("unknown label: Labels = '{}'", text)),
        (said.list.set_intersection(list(_NO_LABELS)).list.len() > 0, pl.format("no class: the report says {}", text)),
        (contradictory, pl.format("contradiction: {}", text)),
        (wrong, pl.format("bad age: born {}, seen {}", "PatientBirth", pl.col("StudyDate_DICOM").fill_null("?"))),
        (
            ~pl.col("Projection").is_in([*_VIEWS]).fill_null(False),
            pl.format("wrong view: {} is neither frontal nor lateral", pl.col("Projection").fill_null("?")),
        ),
    )

"""MIMIC-CXR-JPG: study labels by CheXpert's labeller or NegBio, images by DICOM identifier (Johnson et al. 2019).

``mimic-cxr-2.0.0-chexpert.csv``, ``-metadata.csv`` and ``-split.csv``, packed by gzip or not, beside
``files/p10/p10000032/s50414267/<dicom_id>.jpg``. With MIMIC-IV's ``patients.csv`` in the folder, sex and age are known.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from wetread.dataset import alignment, labels, tables
from wetread.findings import CHEXPERT, Task

_STEM = "mimic-cxr-2.0.0-"
_SPLITS = {"train": "train", "validate": "valid", "test": "test"}
_OBLIQUE = ("LAO", "RAO", "LPO", "RPO", "SWIMMERS")  # neither frontal nor lateral


def mimic(listed: pl.DataFrame, task: Task | None, other: str | None, root: Path) -> tuple[pl.DataFrame, Task]:
    """Read images by study; `other` names another label table, e.g. ``mimic-cxr-2.0.0-negbio.csv.gz``."""
    task = task or CHEXPERT
    said = tables.needed(listed, f"{_STEM}chexpert.csv", ("study_id",), root, other)
    said = said.rename({"Airspace Opacity": "Lung Opacity"}, strict=False)  # so called in the 2.1.0 test set
    columns = [name for name in said.columns if name not in ("study_id", "subject_id", "dicom_id")]
    found = alignment.words(alignment.MIMIC, columns, task, "mimic")
    bad = [(labels.is_bad(name), pl.format(f"unknown label: {name} = '{{}}'", name)) for name in columns]
    twice = (
        ~pl.struct("study_id").is_unique(),
        pl.format("contradiction: study {} has two rows of labels", "study_id"),
    )
    said = said.with_columns(wrong=tables.first_reason(twice, *bad)).unique("study_id", maintain_order=True)
    said = alignment.align(said.with_columns(labels.parse(name) for name in columns), found)
    known = tables.needed(listed, f"{_STEM}metadata.csv", ("dicom_id", "subject_id", "study_id", "ViewPosition"), root)
    optional = [name for name in ("ViewCodeSequence_CodeMeaning", "StudyDate") if name not in known.columns]
    known = known.with_columns(pl.lit(None, pl.String).alias(name) for name in optional)
    splits = tables.needed(listed, f"{_STEM}split.csv", ("dicom_id", "split"), root)
    images, again = tables.images(listed)
    unlabelled = tables.leftover(
        images.join(known, left_on="key", right_on="dicom_id", how="anti"),
        "unlabelled: no row of the metadata names it",
    )
    rows = (
        known.join(images, left_on="dicom_id", right_on="key", how="left")
        .join(said.select("study_id", "wrong", *task.findings, labelled=pl.lit(True)), on="study_id", how="left")
        .join(splits.select("dicom_id", published="split").unique("dicom_id"), on="dicom_id", how="left")
        .join(_patients(listed, root), on="subject_id", how="left")
        .with_columns(position=pl.col("ViewPosition").str.strip_chars().str.to_uppercase().fill_null(""))
        .with_columns(
            image=pl.format(
                "p{}/p{}/s{}/{}", pl.col("subject_id").str.slice(0, 2), "subject_id", "study_id", "dicom_id"
            ),
            patient=pl.format("p{}", "subject_id"),
            study=pl.format("s{}", "study_id"),
            split=pl.col("published").replace_strict(_SPLITS, default=None),
            view=_view(),
            age_years=(_year("StudyDate") - pl.col("year") + pl.col("age")).clip(0).cast(pl.Float32),
            reason=tables.first_reason(
                (pl.col("labelled").is_null(), pl.format("unlabelled: study s{} has no row of labels", "study_id")),
                (pl.col("wrong").is_not_null(), pl.col("wrong")),
                (
                    ~pl.col("published").is_in([*_SPLITS]).fill_null(False),
                    pl.format("unknown split: '{}'", pl.col("published").fill_null("")),
                ),
                (
                    pl.col("position").is_in(_OBLIQUE),
                    pl.format("wrong view: {} is neither frontal nor lateral", "position"),
                ),
            ),
        )
    )
    return tables.together(tables.exclusive(rows, task), unlabelled, again, task), task


def _view() -> pl.Expr:
    """Return the view from ViewPosition, or where it is blank from the meaning of the view code."""
    code = pl.col("ViewCodeSequence_CodeMeaning").str.to_lowercase().fill_null("")
    position = pl.col("position")
    blank = position == ""
    return (
        pl.when(position.str.contains(r"^(LL|RL|LATERAL|XTABLE LATERAL)$") | (blank & code.str.contains("lateral")))
        .then(pl.lit("LATERAL"))
        .when(position.str.contains(r"^PA\b") | (blank & code.str.starts_with("postero-anterior")))
        .then(pl.lit("PA"))
        .when(position.str.contains(r"^AP\b") | (blank & code.str.starts_with("antero-posterior")))
        .then(pl.lit("AP"))
    )


def _year(column: str) -> pl.Expr:
    return pl.col(column).str.extract(r"^(\d{4})").cast(pl.Int32)


def _patients(listed: pl.DataFrame, root: Path) -> pl.DataFrame:
    """Return sex, and age in a year of reference, by subject; nothing where MIMIC-IV's patients are not at hand."""
    names = ("patients.csv", "patients.csv.gz")
    table = tables.table(listed, names, root, required=False)
    if table is None:
        schema = {"subject_id": pl.String, "sex": pl.String, "age": pl.Int32, "year": pl.Int32}
        return pl.DataFrame(schema=schema)
    table = tables.needed(listed, names[0], ("subject_id", "gender", "anchor_age", "anchor_year"), root)
    numbers = {"age": "anchor_age", "year": "anchor_year"}
    return table.unique("subject_id", maintain_order=True).select(
        "subject_id",
        tables.sex("gender"),
        **{name: pl.col(column).cast(pl.Int32, strict=False) for name, column in numbers.items()},
    )

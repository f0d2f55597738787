"""CheXpert's demographics: ``CHEXPERT DEMO.xlsx``, a table of patients that Stanford publishes beside the images."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl

from wetread.dataset import tables
from wetread.errors import DatasetError

_FILE = r"(?i)chexpert[ _-]?demo.*\.(xlsx|csv|csv\.gz)"
_COLUMNS = {
    "PATIENT": "patient",
    "GENDER": "gender",
    "AGE_AT_CXR": "years",
    "PRIMARY_RACE": "race",
    "ETHNICITY": "ethnicity",
}


def join(rows: pl.DataFrame, listed: pl.DataFrame, root: Path) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Add `race` and `ethnicity` by patient, and sex and age where the label tables leave them blank.

    Parameters
    ----------
    rows : DataFrame
        With `patient`, `sex` and `age_years`.
    listed : DataFrame
        The collection's files.
    root : Path

    Returns
    -------
    rows : DataFrame
    added : tuple of str
        The new columns; none when the collection has no such table.

    Raises
    ------
    DatasetError
        When the table cannot be read, or contradicts itself about a patient.
    """
    if not (names := tables.find(listed, _FILE)):
        return rows, ()
    table = _read(listed, names[0], root)
    if absent := [column for column in _COLUMNS if column not in table.columns]:
        raise DatasetError(f"{root}: {names[0]} has no column {absent[0]!r}; it is not CheXpert's table of patients")
    table = table.select(
        pl.col(column).cast(pl.String).str.strip_chars().alias(name) for column, name in _COLUMNS.items()
    )
    table = table.filter(pl.col("patient").fill_null("") != "").unique(maintain_order=True)
    if twice := table.filter(~pl.struct("patient").is_unique())["patient"].to_list():
        raise DatasetError(f"{root}: {names[0]}: patient {twice[0]} has two rows that differ; keep one")
    wrong, reason = tables.bad_age("years")
    if bad := table.filter(wrong).select(pl.format("patient {}: {}", "patient", reason)).to_series().to_list():
        raise DatasetError(f"{root}: {names[0]}: {bad[0]}; correct it or leave it blank")
    table = table.select(
        "patient",
        tables.sex("gender").alias("other_sex"),
        tables.age("years").alias("other_age"),
        *(pl.when(pl.col(name) != "").then(name).alias(name) for name in ("race", "ethnicity")),
    )
    rows = rows.join(table, on="patient", how="left").with_columns(
        sex=pl.coalesce("sex", "other_sex"), age_years=pl.coalesce("age_years", "other_age")
    )
    return rows.drop("other_sex", "other_age"), ("race", "ethnicity")


def _read(listed: pl.DataFrame, name: str, root: Path) -> pl.DataFrame:
    if not name.lower().endswith(".xlsx"):
        table = tables.table(listed, (name,), root, required=True)
    elif (found := tables.raw(listed, name)) is not None:
        try:
            table = pl.read_excel(io.BytesIO(found[1]), engine="calamine", infer_schema_length=None)
        except Exception as error:  # the reader's own kinds
            raise DatasetError(f"{found[0]}: {name}: not an Excel table: {str(error).splitlines()[0]}") from None
    assert table is not None
    return table.rename({column: column.strip() for column in table.columns})

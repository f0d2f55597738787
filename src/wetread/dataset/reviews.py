"""What a clinic's readers signed, as `wetread export-learning` writes it: ``labels.csv`` beside ``images/``."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from wetread.dataset import labels, tables
from wetread.errors import DatasetError
from wetread.findings import TASKS, Task

_TABLE = "labels.csv"
_KNOWN = ("image", "patient", "study", "view", "sex", "age_years", "site")


def reviews(listed: pl.DataFrame, task: Task | None, other: str | None, root: Path) -> tuple[pl.DataFrame, Task]:
    """Read ``labels.csv``; a finding that has no column was mentioned by nobody."""
    rows = tables.needed(listed, _TABLE, _KNOWN, root, other)
    said = [column for column in rows.columns if column not in _KNOWN]
    task = task or _task(said, root)
    if not set(task.findings) & set(said):
        raise DatasetError(f"{root}: no reader said anything about a finding of task {task.name!r}")
    images, again = tables.first_of_each(
        listed.with_columns(key=pl.col("path").str.extract(r"(images/[^/]+)$")).drop_nulls("key")
    )
    unlabelled = tables.leftover(
        images.join(rows, left_on="key", right_on="image", how="anti"), "unlabelled: no table has a row for it"
    )
    absent = [finding for finding in task.findings if finding not in said]
    rows = (
        rows.with_columns(pl.lit(None, pl.String).alias(finding) for finding in absent)
        .join(images, left_on="image", right_on="key", how="left")
        .with_columns(
            tables.sex("sex"),
            view=pl.when(tables.among("view", "PA", "AP", "LATERAL")).then("view"),
            reason=tables.first_reason(
                (pl.col("patient").fill_null("") == "", pl.lit("unknown patient: the row names none")),
                tables.bad_age("age_years"),
                *[(labels.is_bad(f), pl.format(f"unknown label: {f} = '{{}}'", f)) for f in task.findings],
            ),
        )
        .with_columns(tables.age("age_years"), *[labels.parse(finding) for finding in task.findings])
    )
    rows = tables.exclusive(rows, task)
    return tables.together(rows, unlabelled, again, task), task


def _task(said: list[str], root: Path) -> Task:
    """Return the first built-in task that has every finding; by default CheXpert's, which knows most."""
    fitting = [task for task in TASKS.values() if set(said) <= set(task.findings)]
    if fitting:
        return fitting[0]
    if set(said) & set(TASKS["chexpert"].findings):
        return TASKS["chexpert"]
    raise DatasetError(f"{root}: {_TABLE} has findings of no built-in task ({', '.join(said[:5])}); name one by --task")

"""Who is trained on, who tunes, who judges: splits in which no patient stands on two sides.

A patient's side follows from a hash of seed and patient. With a fraction it depends on nothing else, so that patients
added later move nobody. With a number of images it follows the same order up to a cut, in every stratum of labels, so
that the number is met closely and only patients at the cut may move.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from wetread.errors import DatasetError
from wetread.findings import PRESENT, Task

SPLITS = ("train", "valid", "test")


def unit(keys: Sequence[str], seed: int, salt: str) -> NDArray[np.float64]:
    """Return a number in [0, 1) per key that depends on `seed`, `salt` and the key alone."""
    digests = (hashlib.blake2b(f"{seed}:{salt}:{key}".encode(), digest_size=8).digest() for key in keys)
    return np.array([(int.from_bytes(digest, "big") >> 11) / 2**53 for digest in digests], np.float64)


def assign(
    rows: pl.DataFrame,
    task: Task,
    *,
    valid: float | None = None,
    test: float | None = None,
    seed: int = 0,
) -> tuple[pl.DataFrame, list[dict[str, str]]]:
    """Give every row its split: the published one where there is one, else by patient.

    Parameters
    ----------
    rows : DataFrame
        With `image`, `patient`, `split` ("train", "valid", "test" or null) and the task's findings.
    task : Task
    valid, test : float, optional
        Below 1: a fraction of the patients; 1 or more: about so many images; 0: none. What is given replaces the
        published split of that name, whose images return to training first. By default the published splits stay,
        and a collection without a validation split gives up a tenth of its training patients for one. `valid` is
        taken from what `test` leaves.
    seed : int

    Returns
    -------
    rows : DataFrame
        Without null in `split`, and without the refused ones.
    refused : list of dict
        `image` and `reason` of training or validation images whose patient the published test or validation split
        claims.

    Raises
    ------
    DatasetError
        When a share is negative or leaves nobody to train on.
    """
    published = set(rows["split"].drop_nulls())
    if valid is None and "valid" not in published:
        valid = 0.1
    returned = [name for name, share in (("valid", valid), ("test", test)) if share is not None]
    rows = rows.with_columns(
        split=pl.when(pl.col("split").is_in(returned)).then(None).otherwise("split").fill_null("train")
    )
    rows, refused = _without_leaks(rows)
    for name, share in (("test", test), ("valid", valid)):
        if share:
            chosen = _choose(rows.filter(pl.col("split") == "train"), task, name, share, seed)
            moved = (pl.col("split") == "train") & pl.col("patient").is_in(chosen)
            rows = rows.with_columns(split=pl.when(moved).then(pl.lit(name)).otherwise("split"))
    return rows, refused


def _without_leaks(rows: pl.DataFrame) -> tuple[pl.DataFrame, list[dict[str, str]]]:
    """Refuse what would put a patient on two sides; the published test images stay, whoever else is in them."""
    refused: list[dict[str, str]] = []
    for keeper, others in (("test", ("train", "valid")), ("valid", ("train",))):
        claimed = rows.filter(pl.col("split") == keeper)["patient"].unique().to_list()
        leaks = pl.col("split").is_in(others) & pl.col("patient").is_in(claimed)
        reason = pl.format(f"leak: patient {{}} is in the published {keeper} split", "patient")
        refused += rows.filter(leaks).select("image", reason=reason).to_dicts()
        rows = rows.filter(~leaks)
    return rows, refused


def _choose(pool: pl.DataFrame, task: Task, name: str, share: float, seed: int) -> list[str]:
    """Return the patients of the pool that go to split `name`."""
    patients = _strata(pool, task).sort("patient")
    patients = patients.with_columns(order=pl.Series(unit(patients["patient"].to_list(), seed, name))).sort("order")
    if not 0 <= share < pool.height or patients.height < 2:
        raise DatasetError(
            f"{name} = {share:g}: would leave nobody to train on ({pool.height} images of {patients.height} patients); "
            "give a fraction below 1 or fewer images"
        )
    if share < 1:
        # A tiny collection may have nobody below the share, or everybody; both sides get at least one patient.
        number = int((patients["order"] < share).sum())
        return patients["patient"][: min(max(number, 1), patients.height - 1)].to_list()
    chosen: list[str] = []
    owed = 0.0
    for _, stratum in sorted(patients.group_by("stratum", maintain_order=True), key=lambda item: str(item[0])):
        owed += share * int(stratum["images"].sum()) / pool.height
        for patient, images in stratum.select("patient", "images").iter_rows():
            if images / 2 > owed:  # taking it would miss by more than leaving it
                break
            chosen.append(patient)
            owed -= images
    return chosen[: patients.height - 1] or patients["patient"][:1].to_list()


def _strata(pool: pl.DataFrame, task: Task) -> pl.DataFrame:
    """Return per patient the number of images and its rarest present finding."""
    present = [(pl.col(finding) == PRESENT).fill_null(False).alias(finding) for finding in task.findings]
    grouped = pool.group_by("patient").agg(pl.len().alias("images"), *[column.any() for column in present])
    counts = {finding: int(grouped[finding].sum()) for finding in task.findings}
    rarest = sorted(task.findings, key=lambda finding: counts[finding])
    stratum = pl.coalesce(*[pl.when(pl.col(f)).then(pl.lit(f)) for f in rarest], pl.lit(""))
    return grouped.select("patient", "images", stratum=stratum)

"""Label values: parsing, closure along the task's tree, and what uncertain is taken for.

1 present, 0 absent, -1 uncertain, null (NaN in float arrays) not mentioned.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from wetread.errors import DatasetError
from wetread.findings import ABSENT, PRESENT, UNCERTAIN, Task

Labels = NDArray[np.float32]

# What an uncertain label becomes: drawn from U(low, high); None is NaN. The two drawn ones are the label-smoothing
# regularisation (LSR) of Pham et al., arXiv 1911.06475, section 3.3.
POLICIES: Mapping[str, tuple[float, float] | None] = {
    "ignore": None,
    "zeros": (0.0, 0.0),
    "ones": (1.0, 1.0),
    "zeros-lsr": (0.0, 0.3),
    "ones-lsr": (0.55, 0.85),
}


def parse(column: str) -> pl.Expr:
    """Return the label of a text column: ``1.0``, ``0.0``, ``-1.0`` or blank to Int8 or null.

    What is none of these becomes null too; `is_bad` finds it.
    """
    number = pl.col(column).str.strip_chars().cast(pl.Float64, strict=False)
    return (
        pl.when(number.is_in([float(PRESENT), float(ABSENT), float(UNCERTAIN)]))
        .then(number)
        .cast(pl.Int8)
        .alias(column)
    )


def is_bad(column: str) -> pl.Expr:
    """Return whether a text column holds something that is neither a label nor blank."""
    return (pl.col(column).str.strip_chars().fill_null("") != "") & parse(column).is_null()


def to_array(frame: pl.DataFrame, task: Task) -> Labels:
    """Return the labels of a manifest, float32 [N, F] in the order of the task; NaN where null.

    Raises
    ------
    DatasetError
        When a finding has no column, a column holds another value than 1, 0, -1 and null, or an exclusive task has
        not exactly one present finding in a row.
    """
    if missing := [finding for finding in task.findings if finding not in frame.columns]:
        raise DatasetError(f"manifest: no column {missing[0]!r}, which task {task.name!r} asks for")
    labels = np.empty((frame.height, len(task.findings)), np.float32)
    for index, finding in enumerate(task.findings):
        if not (frame.schema[finding].is_numeric() or frame.schema[finding] == pl.Null):
            raise DatasetError(f"manifest: column {finding!r} is {frame.schema[finding]}, wanted Int8")
        labels[:, index] = frame[finding].cast(pl.Float32).fill_null(float("nan")).to_numpy()
    if (bad := ~(np.isnan(labels) | np.isin(labels, (PRESENT, ABSENT, UNCERTAIN)))).any():
        row, index = np.argwhere(bad)[0]
        raise DatasetError(f"manifest: row {row}, {task.findings[index]!r} = {labels[row, index]:g}; allowed 1, 0, -1")
    present = (labels == PRESENT).sum(axis=1)
    if task.exclusive and (wrong := np.flatnonzero(present != 1)).size:
        raise DatasetError(
            f"manifest: row {wrong[0]}: {present[wrong[0]]} findings are present, but task {task.name!r} is exclusive: "
            "exactly one must be"
        )
    return labels


def close_up(task: Task, labels: Labels) -> Labels:
    """Return the labels with every ancestor of a present finding present too.

    Only what is present rises: an uncertain child says nothing about its parent. Without it, 93 % of CheXpert's
    cardiomegaly has a parent that is not positive and would be lost to conditional training. A task without a
    tree is returned as it was.

    Parameters
    ----------
    task : Task
    labels : float32 array, shape [N, F]
        1, 0, -1 or NaN.
    """
    closed = labels.copy()
    for index in _leaves_first(task):
        if (parent := task.parent_index()[index]) >= 0:
            closed[closed[:, index] == PRESENT, parent] = PRESENT
    return closed


def close_down(task: Task, labels: Labels) -> Labels:
    """Return the labels with every descendant of an absent finding absent too.

    A present descendant contradicts its absent ancestor and stays, with what lies below it; after `close_up` there
    is none.

    Parameters
    ----------
    task : Task
    labels : float32 array, shape [N, F]
        1, 0, -1 or NaN.
    """
    closed = labels.copy()
    for index in reversed(_leaves_first(task)):
        if (parent := task.parent_index()[index]) >= 0:
            closed[(closed[:, parent] == ABSENT) & (closed[:, index] != PRESENT), index] = ABSENT
    return closed


def resolve(
    labels: Labels,
    policy: str,
    rng: np.random.Generator | None = None,
    policies: Mapping[str, tuple[float, float] | None] = POLICIES,
) -> Labels:
    """Return the labels with the uncertain ones replaced by what the policy takes them for.

    The draw of an ``-lsr`` policy happens here and now: call it once, or once an epoch, and own the seed.

    Parameters
    ----------
    labels : float32 array
        1, 0, -1 or NaN.
    policy : str
        A name in `policies`.
    rng : Generator, optional
        Needed by the policies that draw.
    policies : mapping of str to (float, float) or None
        By default `POLICIES`.

    Raises
    ------
    DatasetError
        For an unknown policy, or one that draws without `rng`.
    """
    if policy not in policies:
        raise DatasetError(f"uncertain labels: unknown policy {policy!r}; known: {', '.join(policies)}")
    span = policies[policy]
    if span is None:
        return np.where(labels == UNCERTAIN, np.float32(np.nan), labels)
    low, high = span
    if low == high:
        return np.where(labels == UNCERTAIN, np.float32(low), labels)
    if rng is None:
        raise DatasetError(f"uncertain labels: policy {policy!r} draws at random; pass a generator")
    return np.where(labels == UNCERTAIN, rng.uniform(low, high, labels.shape).astype(np.float32), labels)


def _leaves_first(task: Task) -> list[int]:
    return sorted(range(len(task.findings)), key=lambda index: -len(task.path(task.findings[index])))

"""Hard batches: the worst mistakes of a model, kept as a named test set for the models after it.

A batch lists cases, a case being a finding of an image, with what it should have been. It is JSON, ``hard/NAME.json``
in the dataset's folder (which is not part of the dataset's hash), and names images, not rows, so that it holds for
every packing of the same collection. The model that it was drawn from gets all of it wrong by construction: compare
it with others on these cases only, never to say how good a model is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wetread.dataset.dataset import Dataset
from wetread.errors import DatasetError
from wetread.evaluate import clustered, metrics
from wetread.evaluate.calibration import logit
from wetread.evaluate.intervals import Interval
from wetread.evaluate.metrics import FloatArray
from wetread.findings import Task

FOLDER = "hard"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Case(BaseModel):
    """A finding of an image that a model got wrong.

    Attributes
    ----------
    image, finding : str
    label : {0, 1}
        The truth: 1 was missed, 0 was a false alarm.
    probability, threshold : float
        Of the model that got it wrong.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str
    finding: str
    label: Literal[0, 1]
    probability: Probability
    threshold: Probability

    @property
    def kind(self) -> str:
        """``missed`` or ``false alarm``."""
        return "missed" if self.label else "false alarm"


class Batch(BaseModel):
    """A named test set of hard cases, worst first.

    Attributes
    ----------
    schema_version : 1
    name : str
    task, model, model_id, point, dataset_hash, split : str
        Where the cases come from.
    cases : tuple of Case
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    schema_version: Literal[1] = 1
    name: str = Field(pattern=f"^{_NAME}$")
    task: str
    model: str
    model_id: str
    point: str
    dataset_hash: str
    split: str
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Right:
    """How many cases of a batch a model gets right.

    Attributes
    ----------
    name : str
    cases : int
    share : Interval
    kinds : dict of str to (int, int)
        ``missed`` and ``false alarm``: now right, of so many.
    """

    name: str
    cases: int
    share: Interval
    kinds: dict[str, tuple[int, int]]


def worst(
    task: Task,
    images: Sequence[str],
    probability: ArrayLike,
    labels: ArrayLike,
    thresholds: Mapping[str, float],
    *,
    count: int = 20,
    findings: Sequence[str] | None = None,
) -> tuple[Case, ...]:
    """Return the cases that a model gets most wrong.

    Parameters
    ----------
    task : Task
    images : sequence of str [N]
    probability, labels : array_like of float [N, F]
        Labels of -1 and NaN are never wrong.
    thresholds : mapping of finding to float
        At or above which a finding is flagged.
    count : int
        Most cases of each finding and of each kind, so that common mistakes do not crowd out rare ones.
    findings : sequence of str, optional
        By default all, of two mirrored ones the abnormal one.

    Returns
    -------
    tuple of Case
        By distance from the threshold in log-odds, the largest first.
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    mirror = task.normal if task.exclusive and len(task.findings) == 2 else None
    found: list[tuple[float, Case]] = []
    for f, finding in enumerate(task.findings):
        if finding == mirror if findings is None else finding not in findings:
            continue
        threshold = float(thresholds[finding])
        beyond = logit(p[:, f]) - logit(threshold)
        certain, flagged = metrics.known(y[:, f]), p[:, f] >= threshold
        for label in (1, 0):
            wrong = np.flatnonzero(certain & (y[:, f] == label) & (flagged != bool(label)))
            chosen = wrong[np.argsort(-np.abs(beyond[wrong]), kind="stable")][:count]
            found += [
                (
                    abs(float(beyond[n])),
                    Case(
                        image=str(images[n]),
                        finding=finding,
                        label=label,
                        probability=float(p[n, f]),
                        threshold=threshold,
                    ),
                )
                for n in chosen
            ]
    return tuple(case for _, case in sorted(found, key=lambda item: -item[0]))


def place(dataset: Dataset, name: str) -> Path:
    """Return where a batch of this name lies; raises `DatasetError` for a name that is none."""
    if not re.fullmatch(_NAME, name):
        raise DatasetError(f"hard batch {name!r}: use letters, digits, dots, dashes and underscores")
    return dataset.path / FOLDER / f"{name}.json"


def write(dataset: Dataset, batch: Batch, *, overwrite: bool = False) -> Path:
    """Write a batch into the dataset's folder and return the file.

    Raises
    ------
    DatasetError
        When there is one of that name, or it has no case.
    """
    file = place(dataset, batch.name)
    if not batch.cases:
        raise DatasetError(f"hard batch {batch.name}: the model makes no mistake here; nothing to keep")
    if file.exists() and not overwrite:
        raise DatasetError(f"{file}: exists; later figures compare with it, so take another name, or --overwrite")
    file.parent.mkdir(exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(batch.model_dump_json(indent=1) + "\n", encoding="utf-8")
    part.replace(file)
    return file


def read(dataset: Dataset, name: str) -> Batch:
    """Read a batch by its name in the dataset's folder, or by its file.

    Raises
    ------
    DatasetError
        When there is none, naming those that are there, or the file is no batch.
    """
    file = Path(name)
    if not file.is_file():
        file = place(dataset, name)
    if not file.is_file():
        there = sorted(path.stem for path in file.parent.glob("*.json"))
        raise DatasetError(
            f"{dataset.path}: no hard batch {name!r}; "
            + (f"there are {', '.join(there)}" if there else "make one with `wetread hard`")
        )
    try:
        return Batch.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise DatasetError(f"{file}: not a hard batch: {where}: {first['msg']}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: not a hard batch: {error}") from None


def rows(batch: Batch, dataset: Dataset, task: Task, split: str) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Find the cases of a batch in a dataset.

    Parameters
    ----------
    batch : Batch
    dataset : Dataset
        Any packing of the collection that the batch was drawn from.
    task : Task
        The model's.
    split : str
        The images must be in it: a case that was trained on is hard no more.

    Returns
    -------
    rows : int64 [K]
        Row of the dataset of each case.
    columns : int [K]
        Finding of each case, in the order of `task`.

    Raises
    ------
    DatasetError
        Naming the first case whose image or finding is not there, or in another split.
    """
    row = {image: n for n, image in enumerate(dataset.manifest["image"])}
    places = dataset.manifest["split"].to_list()
    column = {finding: n for n, finding in enumerate(task.findings)}
    for case in batch.cases:
        if case.image not in row:
            raise DatasetError(f"{dataset.path}: image {case.image!r} of hard batch {batch.name} is not in it")
        if (found := places[row[case.image]]) != split:
            raise DatasetError(
                f"{dataset.path}: image {case.image!r} of hard batch {batch.name} is in split {found}, not {split}"
            )
        if case.finding not in column:
            raise DatasetError(f"hard batch {batch.name}: task {task.name} has no finding {case.finding!r}")
    return (
        np.array([row[case.image] for case in batch.cases], dtype=np.int64),
        np.array([column[case.finding] for case in batch.cases], dtype=np.intp),
    )


def right(
    batch: Batch, probability: ArrayLike, columns: ArrayLike, thresholds: Sequence[float], groups: ArrayLike
) -> Right:
    """Say how many cases a model gets right.

    Parameters
    ----------
    batch : Batch
    probability : array_like of float [K, F]
        One row a case.
    columns : array_like of int [K]
    thresholds : sequence of float [F]
        The model's own.
    groups : array_like [K]
        Patient of each case.
    """
    hit = hits(batch, probability, columns, thresholds)
    label = np.array([case.label for case in batch.cases])
    patient = np.unique(np.asarray(groups), return_inverse=True)[1]
    return Right(
        batch.name,
        len(batch.cases),
        clustered.share(hit > 0, np.ones(len(hit), dtype=bool), patient).interval,
        {
            kind: (int(hit[label == value].sum()), int((label == value).sum()))
            for kind, value in (("missed", 1), ("false alarm", 0))
        },
    )


def hits(batch: Batch, probability: ArrayLike, columns: ArrayLike, thresholds: Sequence[float]) -> FloatArray:
    """Return 1 for each case on the right side of the model's threshold, else 0, float64 [K]."""
    p, column = np.asarray(probability, dtype=np.float64), np.asarray(columns)
    flagged = p[np.arange(len(column)), column] >= np.asarray(thresholds, dtype=np.float64)[column]
    return np.asarray(flagged == np.array([case.label == 1 for case in batch.cases]), np.float64)

"""Labels that deserve a second look: where what readers say and what a model said beforehand are far apart.

By confident learning (Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels",
Journal of Artificial Intelligence Research 70, 2021), finding by finding: a label is suspected when the other answer is
at least as probable as it is on average where readers gave that other answer. So a model that is sure of itself
everywhere, or nowhere, does not decide how many are suspected. Suspects are ranked by their margin, the probability of
the label less that of the other answer.

The scores are those that models gave when the studies came, before there was a label: no model had learnt from it.
Findings on which readers differ are listed too.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wetread.clinic.store import Store
from wetread.findings import ABSENT, PRESENT, Task
from wetread.improve import cases
from wetread.improve.cases import Case

LEAST = 10  # labels of each kind, below which a finding has no suspects


@dataclass(frozen=True)
class Suspect:
    """A label to look at again.

    Attributes
    ----------
    study, link : str
        The clinic's own identifier, and the page of the study.
    finding : str
    label : int
        1 present, 0 absent, -1 readers differ.
    why : str
        ``model`` or ``readers``.
    probability, margin : float or None
        Of the model, that the finding is present; the label's own less the other answer's.
    model : str
        Name and version.
    """

    study: str
    link: str
    finding: str
    label: int
    why: str
    probability: float | None
    margin: float | None
    model: str


def suspected(probability: ArrayLike, labels: ArrayLike) -> NDArray[np.bool_]:
    """Return which labels are suspected; nothing where either label is rare.

    Parameters
    ----------
    probability : array_like of float [N]
        That the finding is present; out of sample.
    labels : array_like of int [N]
        1 or 0.
    """
    p, y = np.asarray(probability, np.float64), np.asarray(labels)
    if min((y == PRESENT).sum(), (y == ABSENT).sum()) < LEAST:
        return np.zeros(len(y), bool)
    # Of each answer, how probable it is on average where it was given.
    usual = {PRESENT: p[y == PRESENT].mean(), ABSENT: 1 - p[y == ABSENT].mean()}
    other = np.where(y == PRESENT, 1 - p, p)
    threshold = np.where(y == PRESENT, usual[ABSENT], usual[PRESENT])
    return np.asarray((other >= threshold) & (other > 1 - other))


def find(database: Store, task: Task, site: str | None = None) -> list[Suspect]:
    """Return the labels of a clinic's signed studies to look at again, the most suspicious first."""
    return rank(cases.signed(database, site), task)


def rank(signed: Iterable[Case], task: Task) -> list[Suspect]:
    """Return the suspects among cases: those of models by margin, then what readers differ on."""
    scored: dict[tuple[str, str], list[tuple[str, float, int]]] = defaultdict(list)
    named: dict[str, str] = {}
    differ: list[Suspect] = []
    for case in signed:
        labels, disputed = case.labels(task)
        for model in case.models:
            named[model["model"]] = f"{model['model_name']} {model['version']}".strip()
            for said in model["findings"]:
                label = labels.get(said["finding"])
                if said["finding"] in task.findings and label in (PRESENT, ABSENT):
                    of = model["model"], said["finding"]
                    scored[of].append((case.study.id, float(said["probability"]), int(label)))
        known = disputed & set(task.findings)
        differ += [_suspect(case.study.id, finding, -1, "readers", None, None, "") for finding in sorted(known)]
    worst: dict[tuple[str, str], Suspect] = {}
    for (model_id, finding), rows in scored.items():
        for suspect in _of_model(rows, finding, named[model_id]):
            before = worst.get((suspect.study, finding))
            if before is None or (suspect.margin or 0) < (before.margin or 0):
                worst[suspect.study, finding] = suspect
    by_model = sorted(worst.values(), key=lambda s: (s.margin or 0, s.study, s.finding))
    return by_model + sorted(differ, key=lambda s: (s.study, s.finding))


def _of_model(rows: Sequence[tuple[str, float, int]], finding: str, model: str) -> Iterator[Suspect]:
    found = suspected([p for _, p, _ in rows], [label for _, _, label in rows])
    for number in np.flatnonzero(found):
        study, p, label = rows[int(number)]
        own = p if label == PRESENT else 1 - p
        yield _suspect(study, finding, label, "model", round(p, 6), round(2 * own - 1, 6), model)


def _suspect(
    study: str, finding: str, label: int, why: str, probability: float | None, margin: float | None, model: str
) -> Suspect:
    return Suspect(study, f"/studies/{study}", finding, label, why, probability, margin, model)


def write(found: Sequence[Suspect], file: Path) -> None:
    """Write a table of suspects as CSV."""
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, [field.name for field in fields(Suspect)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(suspect) for suspect in found)

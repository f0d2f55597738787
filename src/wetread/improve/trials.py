"""On what a candidate is judged: the fixed test set, hard batches, the random-audit sample; and what is not, and why.

What a gates file names is judged as it says. Batches that nobody named are added with one margin for all, unless they
cannot tell anything: of too few patients, or of the champion's own mistakes, in which nothing can be worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wetread.dataset.dataset import Dataset
from wetread.evaluate import hard
from wetread.evaluate.gate_file import Gates, HardGate
from wetread.evaluate.hard import Batch
from wetread.improve.curate import AUDIT

FIXED, FOUND, SAMPLE = "the fixed test set", "hard cases that readers found", "the random-audit sample"
_NOTHING: dict[str, Any] = {"critical": {}, "floor": {}, "ceiling": {}, "margin": {}, "hard": {}, "behaviour": None}
_COMPARED: dict[str, Any] = {"floor": {}, "ceiling": {}, "hard": {}, "behaviour": None}


@dataclass(frozen=True)
class Trials:
    """By its name each dataset with its gates, and what is not judged, in words."""

    asked: dict[str, tuple[Path, Gates]]
    notes: list[str]


def choose(
    wanted: Gates, of_sample: Gates | None, base: Path, version: Path, *, champion: str | None, margin: float
) -> Trials:
    """Choose on what to judge.

    Parameters
    ----------
    wanted : Gates
        Of the fixed test set, which is that of `base`. Hard batches that it names may lie beside either dataset.
    of_sample : Gates or None
        Of the random-audit sample; None: the comparisons of `wanted`.
    base, version : Path
        Datasets.
    champion : str or None
        SHA-256 of its package; without one there is nothing to compare with.
    margin : float
        What may be lost on a hard batch that `wanted` does not name.

    Raises
    ------
    DatasetError
        When a dataset or a hard batch cannot be read.
    """
    at_base, notes = _hard(Dataset.open(base), wanted, champion, margin)
    found, more = _hard(Dataset.open(version), wanted, champion, margin)
    nowhere = {name: gate for name, gate in wanted.hard.items() if name not in found}  # judging says so
    asked = {
        FIXED: (base, wanted.model_copy(update={"hard": nowhere | at_base})),
        FOUND: (version, wanted.model_copy(update=_NOTHING | {"hard": found})),
    }
    notes += more
    if champion is None:
        notes.append("there is no champion to compare with")
    elif not (version / AUDIT).is_dir():
        notes.append("there is no random-audit sample to judge on yet")
    else:
        sample = of_sample or wanted.model_copy(update=_COMPARED)
        asked[SAMPLE] = (version / AUDIT, sample)
        if not _asks(sample):
            notes.append("the random-audit sample was not judged: `gates` has no comparison; name `audit_gates`")
    return Trials({name: trial for name, trial in asked.items() if _asks(trial[1])}, notes)


def _asks(gates: Gates) -> bool:
    return any(getattr(gates, name) for name in _NOTHING)


def _hard(
    dataset: Dataset, wanted: Gates, champion: str | None, margin: float
) -> tuple[dict[str, HardGate], list[str]]:
    """Return the gates of the batches beside a dataset, and why there is none of others."""
    patient = dict(dataset.manifest.select("image", "patient").iter_rows())
    gates: dict[str, HardGate] = {}
    notes = []
    for name in sorted(path.stem for path in (dataset.path / hard.FOLDER).glob("*.json")):
        if name in wanted.hard:
            gates[name] = wanted.hard[name]
        elif champion is not None:
            batch = hard.read(dataset, name)
            patients = {patient.get(case.image) for case in batch.cases}
            if batch.split != "test":
                notes.append(f"hard batch {name} was not judged: it is of split {batch.split}")
            elif batch.model_id == champion and _mistakes(batch):
                notes.append(f"hard batch {name} was not judged: the champion's own mistakes, nothing does worse")
            elif len(patients) < wanted.min_positives:
                few = f"only {len(patients)} patients, {wanted.min_positives} wanted"
                notes.append(f"hard batch {name} was not judged: {few}")
            else:
                gates[name] = HardGate(margin=margin)
    return gates, notes


def _mistakes(batch: Batch) -> bool:
    return all((case.probability >= case.threshold) != bool(case.label) for case in batch.cases)

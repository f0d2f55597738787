"""What `wetread gate`, `wetread hard` and `wetread behave` do: score, judge, keep, and show as JSON or as a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wetread.dataset.dataset import Dataset
from wetread.errors import DatasetError, WetreadError
from wetread.evaluate import behaviour, command, gates, hard
from wetread.evaluate.behaviour import Behaviour, Verdict
from wetread.evaluate.cautions import TUNED
from wetread.evaluate.gates import Decision, Gates, HardScores
from wetread.evaluate.hard import Batch
from wetread.evaluate.intervals import Interval
from wetread.evaluate.metrics import FloatArray
from wetread.evaluate.results import plain
from wetread.findings import Task
from wetread.radiograph import phantom
from wetread.radiograph.pixels import Transform

EXIT: Mapping[Verdict, int] = {"pass": 0, "fail": 1, "inconclusive": 3}
"""Exit codes; 2 is bad input, as everywhere."""

_COLOUR = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


@dataclass(frozen=True)
class Model:
    """What judging needs of a package.

    Attributes
    ----------
    name, id : str
    task : Task
    transform : Transform
    points : mapping of point to mapping of finding to threshold
    dataset_hash : str
        Of the dataset that it was trained on.
    score : callable
        From uint8 [B, 1, H, W] to probabilities [B, F].
    """

    name: str
    id: str
    task: Task
    transform: Transform
    points: Mapping[str, Mapping[str, float]]
    dataset_hash: str
    score: Callable[[NDArray[np.uint8]], NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class Judged:
    """A decision and what it was made on."""

    decision: Decision
    candidate: Model
    champion: Model | None
    dataset: Dataset
    split: str
    point: str
    notes: tuple[str, ...]


# --- gate -------------------------------------------------------------------------------------------------------------


def judge(
    wanted: Gates,
    candidate: Model,
    dataset: Dataset,
    split: str,
    *,
    champion: Model | None = None,
    champion_dataset: Dataset | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Judged:
    """Score both models on a split and judge the candidate.

    Parameters
    ----------
    wanted : Gates
    candidate : Model
    dataset : Dataset
        Packed with the candidate's transform.
    split : {"test", "valid"}
    champion : Model, optional
    champion_dataset : Dataset, optional
        The same images packed with the champion's transform; by default `dataset`. They are joined by name.
    progress : callable
        Told how many more images are done.

    Raises
    ------
    WetreadError
        When a model does not fit its dataset, an image is missing, or a gate names what is not there.
    """
    columns, rows = command.fits(dataset, candidate.task, candidate.transform), command.split_rows(dataset, split)
    batches = {name: hard.read(dataset, name) for name in wanted.hard}
    labels = dataset.labels[rows][:, columns].astype(np.float64)
    patient = dataset.manifest[rows]["patient"].to_numpy()
    mine = command.score(candidate.score, dataset, rows, progress=progress)
    theirs: FloatArray | None = None
    notes = []
    if champion is not None:
        theirs = _same_images(champion, champion_dataset or dataset, dataset, rows, candidate.task, split, progress)
        if candidate.id == champion.id:
            notes.append("Candidate and champion are the same package.")
    for name, model in {"candidate": candidate, "champion": champion}.items():
        if split == "valid" and model is not None and model.dataset_hash == dataset.hash:
            notes.append(f"{name}: {TUNED}")
    scored = {
        name: _hard_scores(
            batch,
            candidate.task,
            dataset,
            rows,
            patient,
            split,
            [(mine, candidate), *([(theirs, champion)] if champion is not None else [])],
            wanted.point,
        )
        for name, batch in batches.items()
    }
    behaved = None
    if (gate := wanted.behaviour) is not None:
        behaved = check(
            candidate,
            wanted.point,
            dataset=dataset,
            split=split,
            images=gate.images,
            phantoms=gate.phantoms,
            most_flips=behaviour.MOST_FLIPS if gate.most_flips is None else gate.most_flips,
            least_rises=behaviour.LEAST_RISES if gate.least_rises is None else gate.least_rises,
            seed=wanted.seed,
        )
    decision = gates.judge(
        wanted,
        candidate.task,
        labels,
        mine,
        theirs,
        groups=patient,
        candidate_points=candidate.points[wanted.point],
        champion_points=champion.points[wanted.point] if champion is not None else None,
        hard=scored,
        behaviour=behaved,
    )
    return Judged(decision, candidate, champion, dataset, split, wanted.point, tuple(notes))


def _same_images(
    champion: Model,
    theirs: Dataset,
    dataset: Dataset,
    rows: NDArray[np.int64],
    task: Task,
    split: str,
    progress: Callable[[int], None],
) -> FloatArray:
    """Score the champion on the same images, and bring its findings into the order of `task`."""
    command.fits(theirs, champion.task, champion.transform)
    column = {finding: n for n, finding in enumerate(champion.task.findings)}
    if missing := [finding for finding in task.findings if finding not in column]:
        raise WetreadError(f"champion {champion.name}: its task {champion.task.name} has no {missing[0]!r} to compare")
    row = {image: n for n, image in enumerate(theirs.manifest["image"])}
    images = dataset.manifest[rows]["image"].to_list()
    if absent := [image for image in images if image not in row]:
        raise DatasetError(f"{theirs.path}: image {absent[0]!r} of {dataset.path} is missing; pack the same collection")
    their_rows = np.array([row[image] for image in images], dtype=np.int64)
    if (theirs.manifest["split"].to_numpy()[their_rows] != split).any():
        raise DatasetError(f"{theirs.path}: its {split} split is another than that of {dataset.path}; pack it alike")
    scores = command.score(champion.score, theirs, their_rows, progress=progress)
    return scores[:, [column[finding] for finding in task.findings]]


def _hard_scores(
    batch: Batch,
    task: Task,
    dataset: Dataset,
    rows: NDArray[np.int64],
    patient: NDArray[Any],
    split: str,
    scored: list[tuple[FloatArray | None, Model | None]],
    point: str,
) -> HardScores:
    where, columns = hard.rows(batch, dataset, task, split)
    place = {int(row): n for n, row in enumerate(rows)}
    taken = np.array([place[int(row)] for row in where])
    hits = [
        hard.hits(batch, p[taken], columns, [model.points[point][f] for f in task.findings])
        for p, model in scored
        if p is not None and model is not None
    ]
    return HardScores(hits[0], patient[taken], hits[1] if len(hits) > 1 else None)


def decision_json(judged: Judged) -> str:
    """Return a decision as JSON; what is undefined is null."""
    champion = judged.champion
    values = {
        "verdict": judged.decision.verdict,
        "candidate": {"name": judged.candidate.name, "id": judged.candidate.id},
        "champion": None if champion is None else {"name": champion.name, "id": champion.id},
        "dataset": {"folder": judged.dataset.path.name, "sha256": judged.dataset.hash, "split": judged.split},
        "point": judged.point,
        "gates": [
            plain(gate)
            | {"value": plain(gate.value.value), "low": plain(gate.value.low), "high": plain(gate.value.high)}
            for gate in judged.decision.gates
        ],
        "notes": list(judged.notes),
    }
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)


def decision_table(judged: Judged) -> RenderableType:
    """Return a decision as a table for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("gate", "of", "figure", "limit", "candidate", "champion", "judged (95 %)", "verdict", "why"):
        table.add_column(name, justify="right" if name in ("limit", "candidate", "champion") else "left")
    for gate in judged.decision.gates:
        table.add_row(
            gate.gate,
            gate.subject,
            gate.figure,
            f"{gate.limit:g}",
            _number(gate.candidate),
            _number(gate.champion),
            _interval(gate.value),
            Text(gate.verdict, style=_COLOUR[gate.verdict]),
            gate.reason,
        )
    verdict = judged.decision.verdict
    notes = [Text(f"! {note}", style="yellow") for note in judged.notes]
    return Group(table, *notes, Text(f"{judged.candidate.name}: {verdict}", style=f"bold {_COLOUR[verdict]}"))


# --- hard batches -----------------------------------------------------------------------------------------------------


def keep(
    model: Model,
    dataset: Dataset,
    name: str,
    *,
    split: str,
    point: str,
    count: int,
    findings: list[str] | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Batch:
    """Keep a model's worst mistakes on a split as a named batch in the dataset's folder.

    Raises
    ------
    WetreadError
        When model and dataset do not fit, a finding is unknown, or the name is taken.
    """
    hard.place(dataset, name)
    if unknown := [finding for finding in findings or () if finding not in model.task.findings]:
        raise WetreadError(f"--finding {unknown[0]!r}: task {model.task.name} has {', '.join(model.task.findings)}")
    columns, rows = command.fits(dataset, model.task, model.transform), command.split_rows(dataset, split)
    cases = hard.worst(
        model.task,
        dataset.manifest[rows]["image"].to_list(),
        command.score(model.score, dataset, rows, progress=progress),
        dataset.labels[rows][:, columns],
        model.points[point],
        count=count,
        findings=findings,
    )
    batch = Batch(
        name=name,
        task=model.task.name,
        model=model.name,
        model_id=model.id,
        point=point,
        dataset_hash=dataset.hash,
        split=split,
        cases=cases,
    )
    hard.write(dataset, batch, overwrite=overwrite)
    return batch


def batch_table(batch: Batch, most: int = 20) -> RenderableType:
    """Return the first cases of a batch as a table for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("kind", "finding", "probability", "threshold", "image"):
        table.add_column(name, justify="right" if name in ("probability", "threshold") else "left")
    for case in batch.cases[:most]:
        table.add_row(case.kind, case.finding, f"{case.probability:.3f}", f"{case.threshold:.3f}", case.image)
    missed = sum(case.label for case in batch.cases)
    images = len({case.image for case in batch.cases})
    said = (
        f"{batch.name}: {len(batch.cases)} cases in {images} images, {missed} missed, {len(batch.cases) - missed} false"
    )
    return Group(table, Text(f"{said} alarms of {batch.model} at {batch.point}"))


# --- behaviour --------------------------------------------------------------------------------------------------------


def check(
    model: Model,
    point: str,
    *,
    dataset: Dataset | None = None,
    split: str = "test",
    images: int = 200,
    phantoms: int = 40,
    most_flips: float = behaviour.MOST_FLIPS,
    least_rises: float = behaviour.LEAST_RISES,
    seed: int = 0,
) -> Behaviour:
    """Check a model's behaviour on images of a split, or on phantoms, and on phantoms with and without findings.

    Raises
    ------
    WetreadError
        When model and dataset do not fit.
    """
    groups = None
    if dataset is not None:
        command.fits(dataset, model.task, model.transform)
        if dataset.pixels.shape[1] != dataset.pixels.shape[2]:
            raise WetreadError(f"{model.name}: behaviour is about images, and this model judges studies")
        rows = command.split_rows(dataset, split)
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:images])
        pixels, groups = np.asarray(dataset.pixels[rows]), dataset.manifest[rows]["patient"].to_numpy()
    else:
        made = (phantom.make(phantom.patient_seed(seed + 1, n), view="PA" if n % 2 else "AP") for n in range(images))
        pixels = np.stack([model.transform(one.radiograph).array for one in made])
    checks = behaviour.invariance(
        model.score, model.task, pixels, model.points[point], groups=groups, at_most=most_flips
    )
    if phantoms:
        checks += behaviour.direction(
            model.score, model.task, model.transform, count=phantoms, seed=seed, at_least=least_rises
        )
    return Behaviour(point, tuple(checks))


def behaviour_json(model: Model, found: Behaviour) -> str:
    """Return the checks as JSON; what is undefined is null."""
    values = {
        "verdict": found.verdict,
        "model": {"name": model.name, "id": model.id},
        "point": found.point,
        "checks": [plain(one) for one in found.checks],
    }
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)


def behaviour_table(model: Model, found: Behaviour) -> RenderableType:
    """Return the checks as a table for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("check", "finding", "images", "rate (95 %)", "limit", "log-odds", "verdict"):
        table.add_column(name, justify="left" if name in ("check", "finding", "verdict") else "right")
    for one in found.checks:
        sign = "≤" if one.kind == "invariance" else "≥"
        table.add_row(
            one.name,
            one.finding,
            str(one.images),
            f"{one.rate.value:.1%} ({one.rate.low:.1%}–{one.rate.high:.1%})",
            f"{sign} {one.limit:.0%}",
            f"{one.shift:+.2f}" if one.kind == "direction" else f"{one.shift:.2f}",
            Text(one.verdict, style=_COLOUR[one.verdict]),
        )
    said = Text(f"{model.name} at {found.point}: {found.verdict}", style=f"bold {_COLOUR[found.verdict]}")
    return Group(table, said)


def _number(value: float | None) -> str:
    return "" if value is None else "—" if np.isnan(value) else f"{value:.3f}"


def _interval(value: Interval) -> str:
    limits = "no interval" if np.isnan(value.low) else f"{value.low:.3f} to {value.high:.3f}"
    return "—" if np.isnan(value.value) else f"{value.value:.3f} ({limits})"

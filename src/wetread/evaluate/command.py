"""What `wetread evaluate` does: run a model over a split, write report.html and evaluation.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text

from wetread.dataset.dataset import Dataset
from wetread.errors import DatasetError, WetreadError
from wetread.evaluate import evidence, hard, operating_points, report
from wetread.evaluate.cautions import TUNED
from wetread.evaluate.evaluation import evaluate
from wetread.evaluate.evidence import Maps, Options, Overlay
from wetread.evaluate.metrics import FloatArray
from wetread.evaluate.recalibrate import recalibrated
from wetread.evaluate.results import Evaluation
from wetread.findings import Task
from wetread.radiograph.pixels import Transform

BATCH = 16


def fits(dataset: Dataset, task: Task, transform: Transform) -> list[int]:
    """Check that a dataset asks what a model answers, and holds the pixels that it takes.

    Returns
    -------
    list of int
        For each finding of the model its column in the dataset; they are joined by name.

    Raises
    ------
    DatasetError
        When the transform differs, saying in what, or a finding is missing.
    """
    theirs, ours = dataset.transform.parameters(), transform.parameters()
    if different := [key for key in ours if ours[key] != theirs.get(key)]:
        what = "; ".join(f"{key} is {theirs.get(key)!r}, the model's is {ours[key]!r}" for key in different)
        raise DatasetError(f"{dataset.path}: other transform: {what}; pack the collection with the model's transform")
    columns = {finding: column for column, finding in enumerate(dataset.task.findings)}
    if missing := [finding for finding in task.findings if finding not in columns]:
        raise DatasetError(
            f"{dataset.path}: its task {dataset.task.name} has no {missing[0]!r}; the model's task {task.name} does"
        )
    if task.exclusive != dataset.task.exclusive:
        raise DatasetError(f"{dataset.path}: of the tasks {dataset.task.name} and {task.name} only one is exclusive")
    return [columns[finding] for finding in task.findings]


def score(
    run: Callable[[NDArray[np.uint8]], NDArray[np.floating[Any]]],
    dataset: Dataset,
    rows: NDArray[np.int64],
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> FloatArray:
    """Return the probabilities of the images in `rows`.

    Parameters
    ----------
    run : callable
        From uint8 [B, 1, H, W] to probabilities [B, F].
    progress : callable
        Told after each batch how many images it held.

    Returns
    -------
    ndarray of float64 [len(rows), F]
    """
    parts = []
    for start in range(0, len(rows), BATCH):
        pixels = np.ascontiguousarray(dataset.pixels[rows[start : start + BATCH], None])
        parts.append(np.asarray(run(pixels), dtype=np.float64))
        progress(len(pixels))
    return np.concatenate(parts)


def split_rows(dataset: Dataset, split: str) -> NDArray[np.int64]:
    """Return the rows to evaluate; raises `WetreadError` for the training split or one without images."""
    if split not in ("test", "valid"):
        raise WetreadError(f"--split {split!r}: use test or valid; a model is not judged on what it was trained on")
    if not (rows := dataset.rows(split)).size:
        raise DatasetError(
            f"{dataset.path}: no image in split {split}; pack it with --{split}, or evaluate another split"
        )
    return rows


def run(
    dataset: Dataset,
    split: str,
    probability: Callable[[NDArray[np.uint8]], NDArray[np.floating[Any]]],
    *,
    task: Task,
    transform: Transform,
    model: Mapping[str, Any],
    out: Path,
    options: Options | None = None,
    maps: Maps | None = None,
    overlay: Overlay | None = None,
    recalibrate: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Evaluate a model on a split and write ``report.html`` and ``evaluation.json`` into a folder.

    Parameters
    ----------
    dataset : Dataset
    split : {"test", "valid"}
    probability : callable
        From uint8 [B, 1, H, W] to probabilities [B, F].
    task, transform
        The model's.
    model : mapping
        The fields of the package's `model.json`, and `id`.
    out : Path
        Made when missing; files of an earlier evaluation are replaced.
    options : Options, optional
        What else to look for; by default everything that needs no further file, at `balanced`.
    maps : callable, optional
        From uint8 [B, 1, H, W] to finding maps [B, F, h, w]; without it there are no heatmaps and no localisation.
    overlay : callable, optional
        From a picture uint8 [H, W] and a map [h, w] to a coloured picture uint8 [H, W, 3].
    recalibrate : {"platt", "isotonic"}, optional
        Fit calibration, points and conformal sets anew on the dataset's validation split.
    resamples, seed : int
        Of the bootstrap.
    progress : callable
        Told how many more images are done.
    say : callable
        Told what comes after them.

    Raises
    ------
    WetreadError
        When dataset and model do not fit, or the folder cannot be written.
    """
    options = options or Options()
    columns, rows = fits(dataset, task, transform), split_rows(dataset, split)
    if options.batch is not None:
        rows = np.unique(hard.rows(options.batch, dataset, task, split)[0])
    if recalibrate is not None:
        if split != "test":
            raise WetreadError("--recalibrate: it fits on the validation split, so judge the test split")
        other = split_rows(dataset, "valid")
        probability, model = recalibrated(
            task, probability, model, score(probability, dataset, other), dataset.labels[other][:, columns], recalibrate
        )
    manifest = dataset.manifest[rows]
    labels = dataset.labels[rows][:, columns].astype(np.float64)
    p = score(probability, dataset, rows, progress=progress)
    kept = model.get("metrics") or {}
    rules = {"screen": "sensitivity", "sensitivity": operating_points.SENSITIVITY} | kept.get("rules", {})
    tuned = split == "valid" and dataset.hash == model.get("dataset_hash")
    evaluation = evaluate(
        task,
        p,
        labels,
        groups=manifest["patient"].to_numpy(),
        points=model["points"],
        cutoffs=model["cutoffs"],
        sources=manifest["source"].to_numpy(),
        aim=rules["sensitivity"] if rules["screen"] == "sensitivity" else None,
        resamples=resamples,
        seed=seed,
        cautions=[TUNED] if tuned else [],
        meta=provenance(dataset, split, model)
        | {"thresholds": {point: operating_points.describe(rules, point) for point in model["points"]}}
        | ({"recalibrated": f"{recalibrate}, on this dataset's validation split"} if recalibrate else {}),
    )
    found = evidence.gather(
        dataset,
        rows,
        task,
        labels,
        p,
        model["points"],
        replace(options, seed=seed, sets=kept.get("conformal")),
        score=probability,
        transform=transform,
        maps=maps,
        overlay=overlay,
        progress=say,
    )
    evaluation = replace(evaluation, evidence=found, cautions=(*evaluation.cautions, *found.cautions()))
    out.mkdir(parents=True, exist_ok=True)
    what = f"hard batch {options.batch.name}" if options.batch else f"{split} split"
    title = f"{model['name']} on {dataset.path.name}, {what}"
    (out / "report.html").write_text(report.html(evaluation, title=title), encoding="utf-8")
    (out / "evaluation.json").write_text(
        json.dumps(evaluation.to_dict(), ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    return evaluation


def provenance(dataset: Dataset, split: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was evaluated on what, for the report."""
    about = (
        "name",
        "id",
        "precision",
        "population",
        "views",
        "recipe",
        "seed",
        "code_version",
        "licence",
        "attribution",
    )
    return {
        "model": {key: model.get(key) for key in about} | {"trained on dataset": model.get("dataset_hash")},
        "dataset": {"folder": dataset.path.name, "SHA-256": dataset.hash, "split": split},
        "transform": dataset.transform.parameters(),
    }


def render(evaluation: Evaluation, point: str) -> Group:
    """Return the evaluation as a table for a terminal, with the rates at one operating point."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("finding", "present / images", "AUROC", f"sensitivity at {point}", "specificity"):
        # an interval is never cut short; a long finding wraps instead
        narrow = name in ("finding", "present / images")
        table.add_column(name, justify="left" if name == "finding" else "right", min_width=None if narrow else 13)
    for f in evaluation.findings:
        at = f.points[point]
        table.add_row(
            f.finding,
            f"{f.positives} / {f.images}",
            report.area(f.auroc),
            report.rate(at.sensitivity),
            report.rate(at.specificity),
        )
    cautions = [*evaluation.cautions, *(f"{f.finding}: {text}" for f in evaluation.findings for text in f.cautions)]
    batch = evaluation.evidence.hard if evaluation.evidence else None
    return Group(
        Text(" ".join(report.summary(evaluation)) + "\n"),
        *(
            [Text(f"Of the {batch.cases} cases of {batch.name} {report.rate(batch.share)} are right.\n")]
            if batch
            else []
        ),
        table,
        *(Text(f"! {text}", style="yellow") for text in cautions),
    )

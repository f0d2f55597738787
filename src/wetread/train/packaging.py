"""From a finished run to a model package: calibrate, export, prove, describe.

Everything that is fitted here (calibration, operating points, cut-offs, the familiarity threshold)
is fitted on the validation split; the test split, where there is one, is only measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from wetread import __version__
from wetread.dataset.dataset import Dataset
from wetread.dataset.studies import apart, studies, wide
from wetread.errors import TrainError
from wetread.evaluate import calibration, conformal, evidence, operating_points
from wetread.evaluate.cautions import TUNED
from wetread.evaluate.evaluation import evaluate
from wetread.evaluate.report import card
from wetread.evaluate.results import Evaluation
from wetread.findings import Task
from wetread.infer import runtime
from wetread.infer.runtime import Engine, Outputs
from wetread.model import golden
from wetread.model.package import Meta, Package, Run, write
from wetread.train.augment import augment
from wetread.train.ensemble import Ensemble
from wetread.train.export import Familiarity, Served, halve, to_onnx
from wetread.train.looks import looks
from wetread.train.loop import keep_memory
from wetread.train.recipe import Recipe
from wetread.train.trained import Trained
from wetread.train.trained import soup as mean

PARITY = 1e-3
"""Largest difference of a probability between PyTorch and the exported graph, both in float32."""

ROUNDED = {"fp32": 2e-2, "bf16": 1e-1, "int8": 1e-1}
"""The same of the graph that ships, where its weights or its arithmetic are rounded: of fp32 with weights kept as
float16 the largest difference; of the others, which move single images by that and more, the mean one."""

PASS = 0.99
"""Share of validation images that must be familiar."""

_BATCH = 32
_GENTLE = 0.25  # slope with which log-odds of ±30 leave a graph as rounded probabilities and are not lost near 0 and 1
_ENOUGH = 3000  # images whose features describe the training set


@torch.inference_mode()
def _look(ensemble: Ensemble, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], list[NDArray[np.float32]]]:
    """Return uncalibrated probabilities [N, F] and each member's pooled features [N, D]."""
    odds, features = [], []
    for start in range(0, len(pixels), _BATCH):
        values, _, pooled = ensemble(torch.from_numpy(pixels[start : start + _BATCH, None]))
        odds.append(values)
        features.append(pooled)
    return calibration.sigmoid(torch.cat(odds).numpy()), [
        torch.cat(part).numpy() for part in zip(*features, strict=True)
    ]


def _run(engine: Engine, pixels: NDArray[np.uint8]) -> Outputs:
    """Run all pixels [N, S, S] in batches, without keeping the maps of more than one batch."""
    parts = []
    for start in range(0, len(pixels), _BATCH):
        outputs = engine.run(apart(pixels[start : start + _BATCH, None]))
        parts.append(outputs._replace(maps=outputs.maps[:0]))
    return Outputs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _anything(task: Task, probability: NDArray[np.float64], labels: NDArray[np.float32]) -> tuple[float, float]:
    """Calibrate the chance of any finding, for a task that has no normal finding."""
    if task.normal is not None:
        return 1.0, 0.0
    none = np.log1p(-np.minimum(probability, 1 - 1e-6)).sum(1)
    present = (labels == 1).any(1)
    known = present | (labels == 0).all(1)
    odds = np.log(-np.expm1(np.minimum(none, -1e-6))) - none
    return calibration.fit_platt(odds[known], present[known].astype(np.float64))


def package(
    run: Path,
    dataset: Dataset,
    out: Path,
    *,
    members: Sequence[Path] = (),
    soup: Sequence[Path] = (),
    recipe: Recipe | None = None,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    name: str = "",
    overwrite: bool = False,
    resamples: int = 1000,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Package, Evaluation]:
    """Make a model package of a run, or of several.

    Parameters
    ----------
    run : Path
    dataset : Dataset
        What the run was trained on.
    out : Path
        Folder of the package.
    members : sequence of Path
        Further runs: the package gives the mean probability of all, with one calibration.
    soup : sequence of Path
        Further runs whose weights are averaged with those of `run`; see `wetread.train.trained.soup`.
    recipe : Recipe, optional
        Whose `package` section describes the package; by default the run's own.
    precision : {"fp32", "bf16", "int8"}
        Each precision is an artefact of its own: all but familiarity's Gaussian is fitted on its own outputs.
    name : str
        By default the recipe's.
    overwrite : bool
        Replace a package that is there.
    resamples : int
        Of the bootstrap behind the intervals.
    say : callable
        Told what is being done.

    Raises
    ------
    TrainError
        When a run was trained on another dataset, runs do not fit each other, or the graph does not repeat
        PyTorch's answers.
    """
    runs = [Trained.open(path) for path in (run, *soup, *members)]
    trained = runs[0]
    task, about = trained.task, (recipe or trained.recipe).package
    for one in runs:
        one.fits(dataset)
    by_study = trained.recipe.network.views == "study"
    if by_study:
        dataset = studies(dataset)
    keep_memory()
    torch.set_num_threads(trained.recipe.threads)
    valid, train = dataset.rows("valid"), dataset.rows("train")
    pixels, labels = np.asarray(dataset.pixels[valid]), dataset.labels[valid]
    copies = [pixels]
    if about.stress:  # what another source may do to an image, as far as the recipe imagines it
        changes = trained.recipe.augment
        draws = [np.random.default_rng([trained.recipe.seed, 3, int(row)]) for row in valid]
        copies.append(np.stack([augment(image, changes, rng) for image, rng in zip(pixels, draws, strict=True)]))
    fit_pixels, fit_labels = np.concatenate(copies), np.concatenate([labels] * len(copies))

    if soup:
        say("averaging weights")
    stock, others = runs[: 1 + len(soup)], runs[1 + len(soup) :]
    networks = [mean(stock, dataset, say).network, *(other.network for other in others)]
    ensemble = Ensemble(networks, task, looks(about))

    some = np.sort(np.random.default_rng(trained.recipe.seed).permutation(train)[:_ENOUGH])
    familiarity = [Familiarity.fit(part) for part in _look(ensemble, np.asarray(dataset.pixels[some]))[1]]
    calibrating = np.asarray(dataset.pixels[some[:300]])

    def build(tail: calibration.Calibration, anything: tuple[float, float]) -> tuple[bytes, Engine]:
        served = Served(ensemble, tail, familiarity, anything)
        graph = to_onnx(served, dataset.transform.size)
        return _ship(served, graph, precision, about.half, calibrating, pixels[:_BATCH], run)

    say(f"calibrating {precision} on validation")
    if precision == "fp32":
        plain, _ = _look(ensemble, fit_pixels)
    else:  # its scores are others, so it is calibrated on them, as they enter the tail
        _, engine = build(_bare_tail(task), (1.0, 0.0))
        plain = calibration.sigmoid(calibration.logit(_run(engine, fit_pixels).probability) / _GENTLE)
    fitted = calibration.fit(task, plain, fit_labels)
    say("exporting")
    graph, engine = build(fitted, _anything(task, fitted.apply(plain), fit_labels))

    say("choosing operating points on validation")
    outputs = _run(engine, fit_pixels)
    rules: dict[str, Any] = about.model_dump(include={"screen", "balanced", "sensitivity", "cost"})
    points = operating_points.fit(task, outputs.probability, fit_labels, **rules)
    halves = np.split(outputs.probability, len(copies))
    if about.stress:  # counted once each, or the same patients would prove a sensitivity twice
        points = _safer(task, points, [operating_points.fit(task, half, labels, **rules) for half in halves])
    sets = conformal.fit(task, halves[0], labels, alpha=about.conformal)
    familiar = np.sort(outputs.familiarity)
    threshold = float(familiar[int((1 - PASS) / 2 * len(familiar))]) / 2

    split = "test" if len(dataset.rows("test")) else "valid"
    say(f"measuring on {split}")
    judged = dataset.rows(split)
    scores = _run(engine, np.asarray(dataset.pixels[judged])).probability
    manifest = dataset.manifest[judged.tolist()]
    facts: dict[str, Any] = {
        "model": name or trained.recipe.name,
        "dataset": str(dataset.info["collection"]["title"]),
        "dataset_hash": dataset.hash,
        "split": split,
    }
    evaluation = evaluate(
        task,
        scores,
        dataset.labels[judged],
        groups=manifest["patient"].to_numpy(),
        sources=manifest["source"].to_numpy(),
        points={"screen": points.screen, "balanced": points.balanced},
        cutoffs=points.cutoffs,
        aim=about.sensitivity if about.screen == "sensitivity" else None,
        resamples=resamples,
        seed=trained.recipe.seed,
        cautions=[TUNED] if split == "valid" else [],
        meta=facts,
    )
    say("looking at slices, behaviour and shortcuts")
    found = evidence.gather(
        dataset,
        judged,
        task,
        dataset.labels[judged].astype(np.float64),
        scores.astype(np.float64),
        {"screen": points.screen, "balanced": points.balanced},
        evidence.Options(sets=sets.to_dict(), seed=trained.recipe.seed, rerun=not by_study),
        score=lambda pixels: engine.run(apart(pixels)).probability,
        transform=dataset.transform,
        maps=lambda pixels: wide(engine.run(apart(pixels)).maps),
    )
    evaluation = replace(evaluation, evidence=found, cautions=(*evaluation.cautions, *found.cautions()))
    meta = Meta(
        name=(name or trained.recipe.name).lower(),
        task=task.to_dict(),
        kind="study" if by_study else "image",
        aggregate=about.aggregate,
        input_size=dataset.transform.size,
        transform=dataset.transform.parameters(),
        precision=precision,
        points={"screen": points.screen, "balanced": points.balanced},
        cutoffs=points.cutoffs,
        population=about.population,
        views=["PA", "AP", "LATERAL"] if by_study else about.views,
        familiarity_threshold=threshold,
        metrics=evaluation.metrics()
        | {
            "split": split,
            "rules": rules,
            "roc": evaluation.roc(),
            "conformal": sets.to_dict() | {"coverage": conformal.plain(found.coverage)},
        },
        dataset_hash=dataset.hash,
        recipe=trained.recipe.model_dump(exclude={"package"}),
        runs=[
            Run(role=role, recipe=one.recipe.model_dump(exclude={"package"}))
            for role, group in (("soup", stock[1:]), ("member", others))
            for one in group
        ],
        seed=trained.recipe.seed,
        code_version=__version__,
        licence=about.licence,
        attribution=about.attribution or str(dataset.info["collection"]["attribution"]),
        intended_use=about.intended_use,
        limits=about.limits,
    )
    made = golden.make(dataset.transform, engine.run, views=2 if by_study else 1)
    text = card(evaluation, meta.model_dump())
    written = write(
        out, onnx=graph, meta=meta, transform=dataset.transform, card=text, golden=made, overwrite=overwrite
    )
    return written, evaluation


def _safer(
    task: Task, points: operating_points.Points, others: list[operating_points.Points]
) -> operating_points.Points:
    """Take of each `screen` and cut-off among the others the one that misses less or claims less; keep `balanced`."""
    screen, cutoffs = {}, {}
    for finding in task.findings:
        pick = max if finding == task.normal else min
        balanced = points.balanced[finding]
        screen[finding] = pick(balanced, *(other.screen[finding] for other in others))
        lows, highs = zip(*(other.cutoffs[finding] for other in others), strict=True)
        cutoffs[finding] = (min(*lows, balanced), max(*highs, balanced))
    return replace(points, screen=screen, cutoffs=cutoffs)


def _bare_tail(task: Task) -> calibration.Calibration:
    """Return a tail that shows each finding's log-odds times `_GENTLE` as they come: none divided, none held down."""
    alone, count = replace(task, exclusive=False, parents={}), len(task.findings)
    return calibration.Calibration(alone, np.full(count, _GENTLE), np.zeros(count))


def _ship(
    served: Served,
    graph: bytes,
    precision: Literal["fp32", "bf16", "int8"],
    half: bool,
    calibrating: NDArray[np.uint8],
    pixels: NDArray[np.uint8],
    run: Path,
) -> tuple[bytes, Engine]:
    """Return the graph as it ships and what runs it, both it and the plain export proved against PyTorch.

    Raises
    ------
    TrainError
        When either does not repeat PyTorch's answers on `pixels`, uint8 [N, S, S].
    """
    shown = apart(pixels[:, None])
    with torch.inference_mode():
        wanted = served(torch.from_numpy(shown))[0].numpy()
    threads = torch.get_num_threads()
    engine = runtime.load(graph, runtime="onnxruntime", threads=threads)
    off = float(np.abs(wanted - engine.run(shown).probability).max())
    if not off <= PARITY:
        raise TrainError(f"run {run}: the exported graph differs from PyTorch by {off:.2g} in probability")
    if precision == "fp32" and not half:
        return graph, engine
    if half:
        graph = halve(graph)
    if precision == "int8":
        from wetread.train.quantise import quantise

        graph = quantise(graph, calibrating)
    engine = runtime.load(graph, precision=precision, threads=threads)
    moved = np.abs(wanted - engine.run(shown).probability)
    off = float(moved.max() if precision == "fp32" else moved.mean())
    if not off <= ROUNDED[precision]:
        rounding, remedy = ("float16 weights", "set package.half = false")
        if precision != "fp32":
            rounding, remedy = precision, "package it with --precision fp32"
        raise TrainError(
            f"run {run}: {rounding} move probabilities by {off:.2g}, more than {ROUNDED[precision]:g}; {remedy}"
        )
    return graph, engine

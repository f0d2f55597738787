"""From a finished run to a model package: calibrate, export, prove, describe.

Everything that is fitted here (calibration, operating points, cut-offs, the familiarity threshold)
is fitted on the validation split; the test split, where there is one, is only measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from wetread import __version__
from wetread.dataset.dataset import Dataset
from wetread.errors import ConfigError, TrainError
from wetread.evaluate import calibration, operating_points
from wetread.evaluate.cautions import TUNED
from wetread.evaluate.evaluation import evaluate
from wetread.evaluate.report import card
from wetread.evaluate.results import Evaluation
from wetread.findings import Task
from wetread.infer import runtime
from wetread.infer.runtime import Engine, Outputs
from wetread.model import golden
from wetread.model.package import Meta, Package, write
from wetread.train.augment import augment
from wetread.train.export import Familiarity, Served, halve, to_onnx
from wetread.train.network import Network, load_weights
from wetread.train.recipe import Recipe

PARITY = 1e-3
"""Largest difference of a probability between PyTorch and the exported graph, both in float32."""

PASS = 0.99
"""Share of validation images that must be familiar."""

_BATCH = 32
_ENOUGH = 3000  # images whose features describe the training set


@dataclass(frozen=True)
class Trained:
    """A finished run, read back.

    Attributes
    ----------
    recipe : Recipe
    network : Network
        With the best weights, in evaluation mode.
    task : Task
    dataset_hash : str
        Of the dataset that it was trained on.
    """

    recipe: Recipe
    network: Network
    task: Task
    dataset_hash: str

    @classmethod
    def open(cls, run: Path) -> Trained:
        """Read a run's folder.

        Raises
        ------
        TrainError
            When the folder is no run, or no epoch of it was finished.
        """
        record, weights = run / "recipe.json", run / "best.safetensors"
        if not record.is_file() or not weights.is_file():
            raise TrainError(f"run {run}: {(record if not record.is_file() else weights).name} is missing; train first")
        try:
            facts = json.loads(record.read_text(encoding="utf-8"))
            recipe, task = Recipe.model_validate(facts["recipe"]), Task.from_dict(facts["task"])
        except (ValueError, KeyError, ConfigError) as error:
            raise TrainError(f"run {run}: recipe.json: {str(error).splitlines()[0]}") from None
        network = Network(recipe.network.model_copy(update={"weights": ""}), len(task.findings))
        load_weights(network, weights)
        return cls(recipe, network.eval(), task, str(facts["dataset"]))


@torch.inference_mode()
def _look(served: Served, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return uncalibrated probabilities [N, F] and pooled features [N, D]."""
    odds, features = [], []
    for start in range(0, len(pixels), _BATCH):
        values, _, pooled = served.look(torch.from_numpy(pixels[start : start + _BATCH, None]))
        odds.append(values)
        features.append(pooled)
    return calibration.sigmoid(torch.cat(odds).numpy()), torch.cat(features).numpy()


def _run(engine: Engine, pixels: NDArray[np.uint8]) -> Outputs:
    """Run all pixels [N, S, S] in batches, without keeping the maps of more than one batch."""
    parts = []
    for start in range(0, len(pixels), _BATCH):
        outputs = engine.run(pixels[start : start + _BATCH, None])
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
    recipe: Recipe | None = None,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    name: str = "",
    overwrite: bool = False,
    resamples: int = 1000,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Package, Evaluation]:
    """Make a model package of a run.

    Parameters
    ----------
    run : Path
    dataset : Dataset
        What the run was trained on.
    out : Path
        Folder of the package.
    recipe : Recipe, optional
        Whose `package` section describes the package; by default the run's own.
    precision : {"fp32", "bf16", "int8"}
        Each precision is an artefact of its own: calibration aside, everything is fitted on its own outputs.
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
        When the run was trained on another dataset, or the graph does not repeat PyTorch's answers.
    """
    trained = Trained.open(run)
    task, about = trained.task, (recipe or trained.recipe).package
    if dataset.hash != trained.dataset_hash:
        raise TrainError(
            f"dataset {dataset.path}: its hash {dataset.hash[:12]} is not that of the run, {trained.dataset_hash[:12]};"
            " give the dataset that the run was trained on"
        )
    torch.set_num_threads(trained.recipe.threads)
    valid, train = dataset.rows("valid"), dataset.rows("train")
    pixels, labels = np.asarray(dataset.pixels[valid]), dataset.labels[valid]
    looks = [pixels]
    if about.stress:  # what another source may do to an image, as far as the recipe imagines it
        changes = trained.recipe.augment
        draws = [np.random.default_rng([trained.recipe.seed, 3, int(row)]) for row in valid]
        looks.append(np.stack([augment(image, changes, rng) for image, rng in zip(pixels, draws, strict=True)]))
    fit_pixels, fit_labels = np.concatenate(looks), np.concatenate([labels] * len(looks))

    say("calibrating on validation")
    some = np.sort(np.random.default_rng(trained.recipe.seed).permutation(train)[:_ENOUGH])
    count = len(task.findings)
    unfitted = Served(
        trained.network, calibration.Calibration(task, np.ones(count), np.zeros(count)), mirror=about.mirror
    )
    plain, _ = _look(unfitted, fit_pixels)
    fitted = calibration.fit(task, plain, fit_labels)
    anything = _anything(task, fitted.apply(plain), fit_labels)
    familiarity = Familiarity.fit(_look(unfitted, np.asarray(dataset.pixels[some]))[1])
    calibrating = np.asarray(dataset.pixels[some[:300]])

    def build(tail: calibration.Calibration) -> tuple[bytes, Engine]:
        served = Served(trained.network, tail, familiarity, anything, about.mirror)
        graph = to_onnx(served, dataset.transform.size)
        _prove(served, graph, pixels[:_BATCH, None], run)
        if about.half:
            graph = halve(graph)
        if precision == "int8":
            from wetread.train.quantise import quantise

            graph = quantise(graph, calibrating)
        return graph, runtime.load(graph, precision=precision, threads=trained.recipe.threads)

    say("exporting")
    graph, engine = build(fitted)
    if precision != "fp32":  # its scores are others, so it is calibrated on them
        say(f"calibrating {precision}")
        again = calibration.fit(task, _run(engine, fit_pixels).probability, fit_labels)
        slope, intercept = again.slope * fitted.slope, again.slope * fitted.intercept + again.intercept
        graph, engine = build(calibration.Calibration(task, slope, intercept))

    say("choosing operating points on validation")
    outputs = _run(engine, fit_pixels)
    points = operating_points.fit(task, outputs.probability, fit_labels)
    if about.stress:  # counted once each, or the same patients would prove a sensitivity twice
        halves = np.split(outputs.probability, len(looks))
        points = _safer(task, points, [operating_points.fit(task, half, labels) for half in halves])
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
        resamples=resamples,
        seed=trained.recipe.seed,
        cautions=[TUNED] if split == "valid" else [],
        meta=facts,
    )
    say("writing")
    meta = Meta(
        name=(name or trained.recipe.name).lower(),
        task=task.to_dict(),
        input_size=dataset.transform.size,
        transform=dataset.transform.parameters(),
        precision=precision,
        points={"screen": points.screen, "balanced": points.balanced},
        cutoffs=points.cutoffs,
        population=about.population,
        views=about.views,
        familiarity_threshold=threshold,
        metrics=evaluation.metrics() | {"split": split},
        dataset_hash=dataset.hash,
        recipe=trained.recipe.model_dump(exclude={"package"}),
        seed=trained.recipe.seed,
        code_version=__version__,
        licence=about.licence,
        attribution=about.attribution or str(dataset.info["collection"]["attribution"]),
        intended_use=about.intended_use,
        limits=about.limits,
    )
    made = golden.make(dataset.transform, engine.run)
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
        screen[finding] = pick(other.screen[finding] for other in others)
        lows, highs = zip(*(other.cutoffs[finding] for other in others), strict=True)
        balanced = points.balanced[finding]
        cutoffs[finding] = (min(*lows, balanced), max(*highs, balanced))
    return replace(points, screen=screen, cutoffs=cutoffs)


def _prove(served: Served, graph: bytes, pixels: NDArray[np.uint8], run: Path) -> None:
    """Compare the exported graph with PyTorch, both in float32."""
    with torch.inference_mode():
        wanted = served(torch.from_numpy(pixels))[0].numpy()
    given = runtime.load(graph, runtime="onnxruntime", threads=torch.get_num_threads()).run(pixels).probability
    difference = float(np.abs(wanted - given).max())
    if not difference <= PARITY:
        raise TrainError(f"run {run}: the exported graph differs from PyTorch by {difference:.2g} in probability")

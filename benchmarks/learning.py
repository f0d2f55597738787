"""Ways to learn from uncertain, hierarchical labels, side by side on phantoms whose truth is known.

    wetread phantom noisy 4000 --seed 7 --size 128 --label-noise --valid 0.1 --test 0.25 --laterals 0
    wetread pack phantom noisy data/noisy96 --size 96
    python -m benchmarks learning data/noisy96 runs/learning --weights mobilenetv2_100.imagenet.safetensors \\
        --epochs 3 --threads 1

Training labels are those of an imitated report labeller: uncertain, not mentioned, wrong. Validation and test hold the
truth. Each way has the same backbone, images, steps and seeds; it is compared with what it is added to, seed by seed,
on the same resamples of test patients. That leaves out how much seeds differ: see the column *between seeds*.
Calibration (Platt) is fitted on validation. Resumable: a finished run is not trained again. `--seeds 0 --only` shares
the work between processes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wetread.dataset.dataset import Dataset
from wetread.evaluate import calibration
from wetread.evaluate.intervals import Interval, bootstrap, percentiles
from wetread.evaluate.metrics import Ranking, brier, ece
from wetread.train import recipe as recipes
from wetread.train.hierarchy import unconditional
from wetread.train.loop import score, train
from wetread.train.recipe import Recipe
from wetread.train.trained import Trained

UP_AND_DOWN = {"labels": {"close_up": True, "close_down": True}}
LSR = {"labels": {"uncertain": "ones-lsr"}}
WAYS: dict[str, tuple[str, list[dict[str, dict[str, object]]]]] = {
    # name: (what it is compared with, changes to the plain recipe)
    "plain: uncertain ignored, no closure": ("", []),
    "closure, up and down": ("plain: uncertain ignored, no closure", [UP_AND_DOWN]),
    "LSR of uncertain labels (ones)": ("plain: uncertain ignored, no closure", [LSR]),
    "AUC-margin": ("plain: uncertain ignored, no closure", [{"loss": {"kind": "auc-margin"}}]),
    "conditional training": ("closure, up and down", [UP_AND_DOWN, {"network": {"hierarchy": "conditional"}}]),
    "HMLC": ("closure, up and down", [UP_AND_DOWN, {"network": {"hierarchy": "hmlc"}}]),
    "all: closure, LSR, HMLC, AUC-margin": (
        "closure, up and down",
        [UP_AND_DOWN, LSR, {"network": {"hierarchy": "hmlc"}}, {"loss": {"kind": "auc-margin"}}],
    ),
}
Scores = NDArray[np.float64]


def recipe(changes: list[dict[str, dict[str, object]]], seed: int, weights: str, epochs: int, threads: int) -> Recipe:
    """Return the recipe of a way: the same for all but for its changes."""
    values: dict[str, dict[str, object]] = {
        "network": {
            "backbone": "mobilenetv2_100", "options": {"pad_type": "same"}, "weights": weights, "normalise": "image",
            "dropout": 0.1,
        },
        "labels": {"close_up": False},
        "augment": {"rotate": 5, "shift": 0.04, "zoom": 0.08, "gamma": 0.2, "contrast": 0.15},
        "optimise": {
            "epochs": epochs, "batch": 32, "learning_rate": 1e-3, "backbone_factor": 0.5, "ema": 0.99, "keep": "last",
            "second_factor": 0.3,
        },
    }  # fmt: skip
    for change in changes:
        for section, keys in change.items():
            values[section] = values.get(section, {}) | keys
    return recipes.check({"name": "learning", "seed": seed, "threads": threads, **values}, "benchmark")


def judged(run: Path, dataset: Dataset) -> tuple[Scores, Scores]:
    """Return log-odds [N, F] and calibrated probabilities [N, F] of the test images."""
    trained, valid, test = Trained.open(run), dataset.rows("valid"), dataset.rows("test")

    def odds(rows: NDArray[np.int64]) -> Scores:
        logits = torch.from_numpy(score(trained.network, dataset.pixels, rows))
        return (unconditional(dataset.task, logits) if trained.network.conditional else logits).double().numpy()

    fitted = calibration.fit(dataset.task, calibration.sigmoid(odds(valid)), dataset.labels[valid])
    plain = odds(test)
    return plain, np.asarray(fitted.apply(calibration.sigmoid(plain)))


def means(rankings: list[list[Ranking]], metric: str, weights: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return the mean over seeds and findings of AUROC or average precision, one for each resample."""
    return np.mean([getattr(one.counts(weights), metric)() for seed in rankings for one in seed], 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", default="", help="ImageNet weights of mobilenetv2_100; empty: random")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", action="store_true", help="train and show nothing")
    chosen = parser.parse_args()
    dataset = Dataset.open(chosen.dataset)
    for seed in chosen.seeds:
        for name, (_, changes) in WAYS.items():
            run = chosen.out / f"{''.join(c if c.isalnum() else '_' for c in name)}.{seed}"
            train(recipe(changes, seed, chosen.weights, chosen.epochs, chosen.threads), dataset, run)
    if chosen.only:
        return
    test = dataset.rows("test")
    labels, patients = dataset.labels[test], dataset.manifest["patient"].to_numpy()[test]
    torch.set_num_threads(chosen.threads)
    found = {}
    for name in WAYS:
        runs = [chosen.out / f"{''.join(c if c.isalnum() else '_' for c in name)}.{seed}" for seed in chosen.seeds]
        found[name] = [judged(run, dataset) for run in runs]
    columns = [f for f in range(labels.shape[1]) if 0 < np.nansum(labels[:, f]) < (~np.isnan(labels[:, f])).sum()]

    def rankings(name: str) -> list[list[Ranking]]:
        return [[Ranking(labels[:, f], odds[:, f]).merged() for f in columns] for odds, _ in found[name]]

    def against(name: str, base: str, metric: str) -> Interval:
        new, old = rankings(name), rankings(base)
        return percentiles(
            *bootstrap(lambda w: means(new, metric, w) - means(old, metric, w), patients, count=1000, seed=0)
        )

    print(
        f"{len(dataset.rows('train'))} noisy training images, {len(test)} true test images, {len(chosen.seeds)} seeds"
    )
    print("| way | AUROC | between seeds | AP | ECE | Brier | against | difference of AUROC | difference of AP |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (base, _) in WAYS.items():
        ranks = rankings(name)
        areas = [float(np.mean([one.counts().auroc()[0] for one in seed])) for seed in ranks]
        precision = float(means(ranks, "average_precision", None)[0])
        errors = np.mean([[ece(labels[:, f], p[:, f]) for f in columns] for _, p in found[name]])
        squares = np.mean([[brier(labels[:, f], p[:, f]) for f in columns] for _, p in found[name]])
        cells = ["", "", ""]
        if base:
            cells[0] = base.split(":")[0].split(",")[0]
            for place, metric in ((1, "auroc"), (2, "average_precision")):
                gap = against(name, base, metric)
                cells[place] = f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})"
        print(
            f"| {name} | {np.mean(areas):.4f} | {min(areas):.4f}–{max(areas):.4f} | {precision:.4f} | {errors:.4f} "
            f"| {squares:.4f} | {' | '.join(cells)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

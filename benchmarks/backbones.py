"""Backbones side by side: the same data, augmentation and number of epochs; prints a Markdown table.

    python benchmarks/backbones.py DATASET OUT --weights mobilenetv2_100.imagenet.safetensors

The recipe is `recipes/pneumonia.toml` with fewer epochs. Validation is patient-disjoint; the last epoch counts, so
that no row gains by having been looked at more often. Resumable: a finished row is not trained again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from wetread.dataset.dataset import Dataset
from wetread.evaluate import calibration, operating_points
from wetread.evaluate.evaluation import evaluate
from wetread.evaluate.report import area, rate
from wetread.train import recipe as recipes
from wetread.train.loop import score, softmax, train
from wetread.train.trained import Trained

ROWS = {
    "small CNN": ["network.backbone=small_cnn", "network.options={}", "optimise.precision=fp32"],
    "residual CNN": ["network.backbone=residual_cnn", "network.options={}"],
    "MobileNetV2, ImageNet": [],
    "DenseNet-121, random": ["network.backbone=densenet121", "network.options={}"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", default="", help="ImageNet weights of mobilenetv2_100")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--per-epoch", type=int, default=0, help="images drawn each epoch; 0 is all")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/pneumonia.toml"))
    arguments = parser.parse_args()
    dataset = Dataset.open(arguments.dataset)
    valid = dataset.rows("valid")
    labels, patients = dataset.labels[valid], dataset.manifest["patient"].to_numpy()[valid]
    print("| network | parameters | AUROC | sensitivity, specificity at `balanced` | at `screen` | train images/s |")
    print("|---|---|---|---|---|---|")
    for name, changes in ROWS.items():
        weights = arguments.weights if name.endswith("ImageNet") else ""
        if name.endswith("ImageNet") and not weights:
            continue
        factor = [] if weights else ["optimise.backbone_factor=1"]
        recipe = recipes.load(
            arguments.recipe,
            [
                *changes,
                *factor,
                f"network.weights={weights}",
                f"optimise.epochs={arguments.epochs}",
                f"optimise.per_epoch={arguments.per_epoch}",
                "optimise.keep=last",
            ],
        )
        run = arguments.out / "".join(c if c.isalnum() else "_" for c in name)
        spent = run / "seconds.json"
        if not spent.exists():
            start = time.perf_counter()
            train(recipe, dataset, run)
            spent.write_text(json.dumps(time.perf_counter() - start))
        trained = Trained.open(run)
        torch.set_num_threads(recipe.threads)
        plain = softmax(score(trained.network, dataset.pixels, valid))
        probability = calibration.fit(dataset.task, plain, labels).apply(plain)
        points = operating_points.fit(dataset.task, probability, labels)
        result = evaluate(
            dataset.task,
            probability,
            labels,
            groups=patients,
            points={"screen": points.screen, "balanced": points.balanced},
        ).findings[1]
        drawn = arguments.per_epoch or len(dataset.rows("train"))
        speed = drawn * arguments.epochs / float(np.asarray(json.loads(spent.read_text())))
        cells = [
            f"{rate(at.sensitivity)}, {rate(at.specificity)}"
            for at in (result.points["balanced"], result.points["screen"])
        ]
        count = sum(p.numel() for p in trained.network.parameters())
        print(
            f"| {name} | {count / 1e6:.2f} M | {area(result.auroc)} | {cells[0]} | {cells[1]} | {speed:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

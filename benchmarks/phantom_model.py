"""The shipped phantom model on phantoms of a seed that it never saw: areas, and where its maps point.

    python -m benchmarks phantom_model [--count 600] [--seed 99]

A map points right when its highest place lies inside the finding's mask (the pointing game of Zhang et al. 2018,
without its margin). It is asked of true positives at `balanced`. Beside it stand what a blind guess at the middle of
the image would have got, and the overlap of mask and map over all positives (`wetread.evaluate.localisation`).
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np

from wetread.evaluate import localisation
from wetread.evaluate.intervals import auroc
from wetread.evaluate.metrics import mean_auroc
from wetread.evaluate.report import area, rate
from wetread.infer import heatmap, runtime
from wetread.model.package import Package
from wetread.radiograph import phantom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=99, help="of phantoms; training used the patients of seed 1")
    parser.add_argument("--model", default="phantom")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    package = Package.open(arguments.model)
    engine = runtime.open_engine(package, threads=2)
    findings, thresholds = package.task.findings, package.meta.points["balanced"]
    labels, scores = [], []
    everywhere, flagged = (localisation.Localiser(package.task, thresholds) for _ in range(2))
    for index in range(arguments.count):
        seed = phantom.patient_seed(arguments.seed, index)
        made = phantom.make(seed, view=("PA", "AP")[index % 2])
        seen = package.transform(made.radiograph)
        outputs = engine.run(seen.array[None, None])
        labels.append([made.labels[f] for f in findings])
        scores.append(outputs.probability[0])
        shape = made.radiograph.pixels.shape
        for column, finding in enumerate(findings):
            mask, probability = made.masks[finding], float(outputs.probability[0, column])
            if made.labels[finding] and mask.any():
                heat = heatmap.to_image(outputs.maps[0, column], seen.box, shape)
                everywhere.add(finding, heat, mask, probability, str(index))
                if probability >= thresholds[finding]:
                    flagged.add(finding, heat, mask, probability, str(index))
    y, p = np.array(labels, float), np.array(scores, float)
    overlap = {found.finding: found for found in everywhere.result()}
    pointing = {found.finding: found for found in flagged.result()}
    print("| finding | positives | AUROC | pointing right | middle of the image | overlap at half, best |")
    print("|---|---|---|---|---|---|")
    for column, finding in enumerate([*findings, "all"]):
        value = f"{mean_auroc(y, p):.3f}"
        if finding != "all":
            value = area(auroc(y[:, column], p[:, column], np.arange(len(y)), count=500))
        positives = "" if finding == "all" else f"{int(y[:, column].sum())}"
        right = middle = iou = "–"
        if (found := pointing.get(finding)) is not None:
            right = f"{rate(found.pointing)} of {found.images}"
            middle = f"{found.middle.value:.0%}"
        if (found := overlap.get(finding)) is not None:
            iou = f"{found.iou:.2f}, {found.best_iou:.2f} (at {found.best_share})"
        print(f"| {finding} | {positives} | {value} | {right} | {middle} | {iou} |")


if __name__ == "__main__":
    main()

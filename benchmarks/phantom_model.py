"""The shipped phantom model on phantoms of a seed that it never saw: areas, and where its maps point.

    python -m benchmarks phantom_model [--count 600] [--seed 99]

A map points right when its highest place lies inside the finding's mask (the pointing game of Zhang et al. 2018,
without its margin). It is asked of true positives at `balanced`. Beside it stands what a blind guess at the middle of
the image would have got.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import cv2
import numpy as np

from wetread.evaluate.intervals import auroc, wilson
from wetread.evaluate.metrics import mean_auroc
from wetread.evaluate.report import area
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
    hits: dict[str, list[bool]] = defaultdict(list)
    middle: dict[str, list[bool]] = defaultdict(list)
    for index in range(arguments.count):
        seed = phantom.patient_seed(arguments.seed, index)
        made = phantom.make(seed, view=("PA", "AP")[index % 2])
        seen = package.transform(made.radiograph)
        outputs = engine.run(seen.array[None, None])
        labels.append([made.labels[f] for f in findings])
        scores.append(outputs.probability[0])
        shape = made.radiograph.pixels.shape
        for column, finding in enumerate(findings):
            mask = made.masks[finding]
            if made.labels[finding] and mask.any() and outputs.probability[0, column] >= thresholds[finding]:
                values = heatmap.to_image(outputs.maps[0, column], seen.box, shape)
                place = np.unravel_index(int(np.nanargmax(values)), shape)
                hits[finding].append(bool(mask[place]))
                middle[finding].append(bool(mask[shape[0] // 2, shape[1] // 2]))
    y, p = np.array(labels, float), np.array(scores, float)
    print("| finding | positives | AUROC | pointing right | middle of the image |")
    print("|---|---|---|---|---|")
    for column, finding in enumerate(findings):
        right, found = sum(hits[finding]), len(hits[finding])
        low, high = wilson(right, max(found, 1))
        pointing = f"{right}/{found} = {right / found:.0%} ({float(low):.0%}–{float(high):.0%})" if found else "–"
        blind = f"{sum(middle[finding]) / found:.0%}" if found else "–"
        value = area(auroc(y[:, column], p[:, column], np.arange(len(y)), count=500))
        print(f"| {finding} | {int(y[:, column].sum())} | {value} | {pointing} | {blind} |")
    right, found = sum(map(sum, hits.values())), sum(map(len, hits.values()))
    blind = sum(map(sum, middle.values())) / max(found, 1)
    print(f"| all | | {mean_auroc(y, p):.3f} | {right}/{found} = {right / max(found, 1):.1%} | {blind:.1%} |")


if __name__ == "__main__":
    main()

"""Patient-level bootstrap at full size: 2,000 resamples of 20,000 images with fourteen findings, and DeLong beside it.

    python -m benchmarks intervals [--images 20000] [--findings 14] [--resamples 2000] [--reference 5]

Random scores and labels (prevalence 2 to 40 %, a tenth of the labels unknown), patients of one to three images. The
last row calls scikit-learn once for each resample and finding, which is the usual loop; only `--reference` resamples
of it are run, and the time is scaled up.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from wetread.evaluate import delong, intervals, metrics
from wetread.evaluate.evaluation import evaluate
from wetread.findings import Task


def draw(images: int, findings: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels [N, F], probabilities [N, F] and patients [N]."""
    rng = np.random.default_rng(0)
    labels = (rng.random((images, findings)) < np.linspace(0.02, 0.4, findings)).astype(np.float64)
    probability = 1 / (1 + np.exp(-rng.normal(1.5 * labels - 1, 1)))
    labels[rng.random(labels.shape) < 0.1] = np.nan
    return labels, probability, np.repeat(np.arange(images), rng.integers(1, 4, images))[:images]


def areas(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray, count: int) -> np.ndarray:
    """Return the area of each finding in each resample [R, F]."""
    rankings = [metrics.Ranking(labels[:, f], scores[:, f]).merged() for f in range(labels.shape[1])]
    blocks = intervals.resamples(patients, count)
    return np.concatenate([np.stack([r.counts(w).auroc() for r in rankings], axis=1) for w in blocks])


def usual(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray, count: int) -> np.ndarray:
    """Return the same by scikit-learn, one call for each resample and finding."""
    from sklearn.metrics import roc_auc_score

    known = [np.flatnonzero(~np.isnan(column)) for column in labels.T]
    return np.array(
        [
            [roc_auc_score(labels[k, f], scores[k, f], sample_weight=row[k]) for f, k in enumerate(known)]
            for weights in intervals.resamples(patients, count)
            for row in weights
        ]
    )


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    processor, clock = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - processor, time.perf_counter() - clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--findings", type=int, default=14)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--reference", type=int, default=5)
    options = parser.parse_args()
    labels, probability, patients = draw(options.images, options.findings)
    task = Task("benchmark", tuple(f"finding {f}" for f in range(options.findings)))
    points = {name: dict.fromkeys(task.findings, at) for name, at in (("screen", 0.2), ("balanced", 0.5))}
    size = f"{options.images:,} images, {options.findings} findings, {options.resamples:,} resamples"
    print(f"| {size} | CPU s | s |\n|---|---|---|", flush=True)

    def row(name: str, processor: float, clock: float) -> None:
        print(f"| {name} | {processor:.1f} | {clock:.1f} |", flush=True)

    sample, *spent = timed(lambda: areas(labels, probability, patients, options.resamples))
    row("AUROC of each finding", *spent)
    _, *spent = timed(
        lambda: evaluate(task, probability, labels, groups=patients, points=points, resamples=options.resamples)
    )
    row("whole evaluation: areas, precision, rates at two points, Brier, curves with bands", *spent)
    _, *spent = timed(lambda: [delong.auroc(labels[:, f], probability[:, f]) for f in range(options.findings)])
    row("DeLong (images independent)", *spent)
    if options.reference:
        theirs, *spent = timed(lambda: usual(labels, probability, patients, options.reference))
        assert np.abs(theirs - sample[: options.reference]).max() < 1e-9
        row("AUROC, a loop over scikit-learn (scaled up)", *(options.resamples / options.reference * s for s in spent))


if __name__ == "__main__":
    main()

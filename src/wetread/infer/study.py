"""From the images of a study to the study's own result.

A model of studies judges the frontal and the lateral view together. A model of images judges each, and the study gets
of each finding the highest probability among its images, or the mean, as the package says (`aggregate`); of the normal
finding the lowest, because a study is normal where all its images are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wetread.dataset.dataset import Dataset
from wetread.dataset.studies import apart, sheets, studies, wide
from wetread.infer.predict import Analysis, Point, Predictor
from wetread.infer.runtime import Engine
from wetread.model.package import Package
from wetread.radiograph.read import Radiograph

_ORDER = {"PA": 0, "AP": 1, None: 2}  # which frontal view a model of studies takes, as in training


def analyse(
    predictor: Predictor, radiographs: Sequence[Radiograph], point: Point | None = None
) -> tuple[Analysis, list[Analysis]]:
    """Analyse the images of one study.

    Parameters
    ----------
    predictor : Predictor
    radiographs : sequence of Radiograph
        At least one.
    point : {"screen", "balanced"}, optional
        Operating point; by default the settings'.

    Returns
    -------
    study : Analysis
        Without maps: those belong to images.
    images : list of Analysis
        One for each radiograph, in order.

    Raises
    ------
    BusyError
        When the queue of the model stays full.
    ModelError
        When the graph fails.
    """
    chosen = point or predictor.settings.point
    images: list[Analysis | None] = [None] * len(radiographs)
    together = set(range(len(radiographs)))
    if predictor.package.meta.kind == "study":
        frontal, lateral = pair(radiographs)
        together = {number for number in (frontal, lateral) if number is not None}
        if frontal is not None and lateral is not None:
            images[frontal], images[lateral] = predictor.analyse_pair(
                radiographs[frontal], radiographs[lateral], chosen
            )
    done = [predictor.analyse(r, chosen) if one is None else one for r, one in zip(radiographs, images, strict=True)]
    return combine(predictor, [done[n] for n in sorted(together)], chosen), done


def pair(radiographs: Sequence[Radiograph]) -> tuple[int | None, int | None]:
    """Return which images a model of studies judges: PA before AP before a view that is not named, and the lateral."""
    frontal = [(_ORDER.get(r.view, 2), n) for n, r in enumerate(radiographs) if r.view != "LATERAL"]
    lateral = [n for n, r in enumerate(radiographs) if r.view == "LATERAL"]
    return min(frontal)[1] if frontal else None, lateral[0] if lateral else None


def combine(predictor: Predictor, images: Sequence[Analysis], point: Point) -> Analysis:
    """Return the result of a study of the analyses of its images; a refusal only where all of them are refused."""
    kept = [image for image in images if image.suitable]
    if not kept:
        return images[0]
    task, mean = predictor.package.task, predictor.package.meta.aggregate == "mean"
    columns = zip(*([f.probability for f in image.findings] for image in kept), strict=True)
    probability = [
        sum(values) / len(values) if mean else min(values) if finding == task.normal else max(values)
        for finding, values in zip(task.findings, columns, strict=True)
    ]
    abnormal = [image.abnormal for image in kept if image.abnormal is not None]
    familiarity = [image.familiarity for image in kept if image.familiarity is not None]
    return replace(
        kept[0],
        abnormal=sum(abnormal) / len(abnormal) if mean else max(abnormal),
        findings=predictor.calls(probability, point),
        cautions=tuple(dict.fromkeys(caution for image in kept for caution in image.cautions)),
        caution_codes=tuple(dict.fromkeys(code for image in kept for code in image.caution_codes)),
        view="+".join(dict.fromkeys(image.view or "unknown" for image in kept)),
        seen=None,
        maps=None,
        features=None,
        familiarity=min(familiarity),
    )


Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def judged(package: Package, engine: Engine, dataset: Dataset, by_study: bool) -> tuple[Dataset, Run, Run | None]:
    """Return what is evaluated, and what gives the probabilities and the maps of its pictures.

    Parameters
    ----------
    package : Package
    engine : Engine
        Of the package.
    dataset : Dataset
        As packed, a row an image.
    by_study : bool
        Judge studies by the results of their images, as `combine` does. A model of studies always does its own way.

    Returns
    -------
    dataset : Dataset
        Its rows are images or studies.
    probability : callable
        From uint8 [B, 1, H, W] to probabilities float32 [B, F].
    maps : callable or None
        From the same to maps [B, F, h, w]; None where results of images are put together.
    """
    if package.meta.kind == "study":
        pair = studies(dataset)
        return pair, lambda x: engine.run(apart(x)).probability, lambda x: wide(engine.run(apart(x)).maps)
    if not by_study:
        return dataset, lambda x: engine.run(x).probability, lambda x: engine.run(x).maps
    task, mean = package.task, package.meta.aggregate == "mean"

    def together(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = apart(pixels)
        there = images.max((2, 3)) > 0
        every = np.full((*there.shape, len(task.findings)), np.nan, np.float32)
        every[there] = engine.run(np.ascontiguousarray(images[there][:, None])).probability
        result: NDArray[np.float32] = np.nanmean(every, 1) if mean else np.nanmax(every, 1)
        if not mean and task.normal is not None:
            column = task.findings.index(task.normal)
            result[:, column] = np.nanmin(every[:, :, column], 1)
        return result

    return sheets(dataset, package.meta.views), together, None

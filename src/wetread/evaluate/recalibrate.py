"""A model fitted anew to a collection: calibration, operating points and conformal sets from its validation split.

What a package carries was fitted to the images of its own validation split. At another site chances may be off while
the order of the images is as good as before; this shows what fitting the tail anew would give there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wetread.errors import WetreadError
from wetread.evaluate import calibration, conformal, isotonic, operating_points
from wetread.evaluate.metrics import FloatArray
from wetread.findings import Task

Method = Literal["platt", "isotonic"]
Score = Callable[[NDArray[np.uint8]], NDArray[np.floating[Any]]]


def recalibrated(
    task: Task, run: Score, model: Mapping[str, Any], probability: ArrayLike, labels: ArrayLike, method: str
) -> tuple[Score, dict[str, Any]]:
    """Return a model that gives recalibrated probabilities, and its fields with the points that go with them.

    Parameters
    ----------
    task : Task
    run : callable
        From uint8 [B, 1, H, W] to probabilities [B, F].
    model : mapping
        The fields of the package's `model.json`.
    probability, labels : array_like of float [N, F]
        Of the images to fit on, which are not those to judge.
    method : {"platt", "isotonic"}

    Raises
    ------
    WetreadError
        For another method, or arrays that do not fit the task.
    """
    if method not in get_args(Method):
        raise WetreadError(f"--recalibrate {method}: use {' or '.join(get_args(Method))}")
    fitted: calibration.Calibration | isotonic.Isotonic
    if method == "platt":
        fitted = calibration.fit(task, probability, labels)
    else:
        fitted = isotonic.fit(task, probability, labels)
    metrics = dict(model.get("metrics", {}))
    rules = metrics.get("rules", {})
    after = fitted.apply(probability)
    points = operating_points.fit(task, after, labels, **rules)
    alpha = metrics.get("conformal", {}).get("alpha", conformal.ALPHA)
    metrics["conformal"] = conformal.fit(task, after, labels, alpha=alpha).to_dict()

    def again(pixels: NDArray[np.uint8]) -> FloatArray:
        return fitted.apply(run(pixels))

    fields = {"points": {"screen": points.screen, "balanced": points.balanced}, "cutoffs": points.cutoffs}
    return again, {**model, **fields, "metrics": metrics}

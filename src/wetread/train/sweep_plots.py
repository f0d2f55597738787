"""Pictures of a sweep: training and validation AUROC over pairs of keys, and how much each key matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.tri import LinearTriInterpolator, Triangulation
from numpy.typing import NDArray
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import TrialState

from wetread.train.space import Choice, Range, Space

_PAIRED = 4  # the keys that matter most are paired: six pictures at most
_GRID = 100
_PANELS = (("train_auroc", "training AUROC"), ("valid_auroc", "validation AUROC"))

Rows = Sequence[Mapping[str, Any]]


def write(study: Study, space: Space, trials: Rows, out: Path) -> list[Path]:
    """Write `contour-KEY-KEY.png` of the pairs that matter most (`curve-KEY.png` of a single key) and `importance.png`.

    Parameters
    ----------
    study : Study
    space : Space
    trials : sequence of mapping
        Rows of `sweep.json`.
    out : Path

    Returns
    -------
    list of Path
        What was written; without importance where the trials are too few or too alike to tell.
    """
    rows = [row for row in trials if row["valid_auroc"] is not None]
    matters = importance(study, space)
    keys = sorted(space.choices, key=lambda key: -matters.get(key, 0))
    written = []
    if len(keys) == 1:
        written.append(_save(_curve(rows, space, keys[0]), out / f"curve-{keys[0]}.png"))
    for first, second in combinations(keys[:_PAIRED], 2):
        written.append(_save(contour(rows, space, first, second), out / f"contour-{first}-{second}.png"))
    if matters:
        figure = Figure(figsize=(6, 1 + 0.4 * len(matters)), layout="constrained")
        axes = figure.subplots()
        names = list(reversed(matters))
        axes.barh(names, [matters[name] for name in names])
        axes.set_xlabel("share of the spread of validation AUROC")
        written.append(_save(figure, out / "importance.png"))
    return written


def importance(study: Study, space: Space) -> dict[str, float]:
    """Return how much each key matters, the most first, summing to 1; empty where that cannot be told.

    By functional analysis of variance (Hutter et al. 2014): the share of each key alone in the variance of AUROC, among
    the shares of the keys alone.
    """
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    if len({trial.value for trial in done}) < 2:
        return {}
    found = get_param_importances(study, params=list(space.choices), evaluator=FanovaImportanceEvaluator(seed=0))
    return {key: float(value) for key, value in sorted(found.items(), key=lambda item: -item[1])}


def contour(trials: Rows, space: Space, first: str, second: str) -> Figure:
    """Draw training and validation AUROC over two keys, as two panels with one scale of colour.

    Between the trials AUROC is interpolated linearly; where they span no area, only they are drawn.
    """
    x, y = (_place(trials, key, space.choices[key]) for key in (first, second))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    values = {name: np.array([row[name] for row in trials], float) for name, _ in _PANELS}
    together = np.concatenate(list(values.values()))
    low, high = float(np.nanmin(together)), float(np.nanmax(together))
    top = high if high > low else low + 1e-3
    scale: dict[str, Any] = {"vmin": low, "vmax": top, "cmap": "viridis"}
    for axes, (name, title) in zip(panels, _PANELS, strict=True):
        there = np.isfinite(values[name])
        grid = _between(x[there], y[there], values[name][there])
        if grid is not None:
            axes.contourf(*grid, levels=np.linspace(low, top, 15), **scale)
        points = axes.scatter(x[there], y[there], c=values[name][there], edgecolor="black", linewidth=0.6, **scale)
        axes.set_title(title)
        _label(axes, "x", first, space.choices[first])
        _label(axes, "y", second, space.choices[second])
    figure.colorbar(points, ax=panels, label="AUROC")
    return figure


def _curve(trials: Rows, space: Space, key: str) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    x = _place(trials, key, space.choices[key])
    for name, title in _PANELS:
        axes.scatter(x, [np.nan if row[name] is None else row[name] for row in trials], label=title)
    _label(axes, "x", key, space.choices[key])
    axes.set_ylabel("AUROC")
    axes.legend()
    return figure


def _place(trials: Rows, key: str, choice: Choice) -> NDArray[np.float64]:
    """Return where the trials are on an axis: a logarithm where the range is one, numbers of a list's values."""
    values = [row["values"][key] for row in trials]
    if isinstance(choice, Range):
        plain = np.array(values, float)
        return np.log10(plain) if choice.log else plain
    return np.array([list(choice.values).index(value) for value in values], float)


def _label(axes: Axes, which: str, key: str, choice: Choice) -> None:
    name = f"{key} (log 10)" if isinstance(choice, Range) and choice.log else key
    (axes.set_xlabel if which == "x" else axes.set_ylabel)(name)
    if not isinstance(choice, Range):
        numbers, texts = range(len(choice.values)), [str(value) for value in choice.values]
        (axes.set_xticks if which == "x" else axes.set_yticks)(numbers, texts)


def _between(
    x: NDArray[np.float64], y: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], Any] | None:
    """Return a grid over the trials and the values interpolated on it, or None where they span no area."""
    points, rows = np.unique(np.column_stack([x, y]), axis=0, return_inverse=True)
    if len(points) < 3 or np.ptp(points[:, 0]) == 0 or np.ptp(points[:, 1]) == 0:
        return None
    scaled = (points - points.min(0)) / np.ptp(points, axis=0)
    if np.linalg.matrix_rank(scaled[1:] - scaled[0], tol=1e-6) < 2:
        return None
    mean = np.bincount(rows.ravel(), values) / np.bincount(rows.ravel())  # trials at one place
    gx, gy = np.meshgrid(np.linspace(0, 1, _GRID), np.linspace(0, 1, _GRID))
    surface = LinearTriInterpolator(Triangulation(scaled[:, 0], scaled[:, 1]), mean)(gx, gy)
    spread, corner = np.ptp(points, axis=0), points.min(0)
    return gx * spread[0] + corner[0], gy * spread[1] + corner[1], surface


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=110)
    return path

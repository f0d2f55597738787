"""Plots of an evaluation as SVG text: no file, no global state, the same bytes for the same values."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from wetread.evaluate.costs import Cost
from wetread.evaluate.intervals import Interval
from wetread.evaluate.results import GRID, Evaluation, FindingResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _SOFT, _MODEL, _ABSENT = "#1c2330", "#8a93a3", "#1f5fa8", "#b9c2cf"
_MARKS = {"screen": ("v", "#b3541e"), "balanced": ("o", _INK)}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small files that can be searched
    "svg.hashsalt": "wetread",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _SOFT,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}


def overview(evaluation: Evaluation) -> str:
    """Return the AUROC of each finding that has one, with its interval, best first, as SVG."""
    shown = sorted((f for f in evaluation.findings if not np.isnan(f.auroc.value)), key=lambda f: f.auroc.value)

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        for row, result in enumerate(shown):
            _bar(axes, result.auroc, row)
        axes.axvline(0.5, color=_SOFT, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(shown)), [f"{f.finding} ({f.positives} of {f.images})" for f in shown])
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.set_xlim(min(0.45, *(np.nan_to_num(f.auroc.low, nan=1.0) - 0.02 for f in shown)), 1.0)
        axes.set_xlabel("AUROC with 95 % interval; dotted: chance")

    return svg(draw, 7.5, 0.9 + 0.27 * len(shown))


def finding(result: FindingResult, cost: Cost | None = None) -> str:
    """Return ROC and precision-recall curve, reliability, histogram and costs of one finding, as SVG."""
    count = 4 if cost is None else 5

    def draw(figure: Figure) -> None:
        roc, precision, reliability, histogram, *last = figure.subplots(
            1, count, gridspec_kw={"left": 0.18 / count, "right": 0.99, "bottom": 0.17, "top": 0.91, "wspace": 0.3}
        )
        _roc(roc, result)
        _precision_recall(precision, result)
        _reliability(reliability, result)
        _histogram(histogram, result)
        if cost is not None:
            _cost(last[0], cost)

    return svg(draw, 3.1 * count, 3.1)


def _bar(axes: Axes, area: Interval, row: int) -> None:
    axes.plot([area.low, area.high], [row, row], color=_MODEL, linewidth=1.6, solid_capstyle="butt")
    axes.plot([area.value], [row], "o", color=_MODEL, markersize=4.5)


def _roc(axes: Axes, result: FindingResult) -> None:
    axes.set_title("ROC curve")
    axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=0.8, linestyle=":")
    if result.roc.value.size:
        axes.fill_between(GRID, result.roc.low, result.roc.high, color=_MODEL, alpha=0.18, linewidth=0)
        axes.plot(GRID, result.roc.value, color=_MODEL)
        for name, point in result.points.items():
            marker, colour = _MARKS.get(name, ("s", _INK))
            specificity, sensitivity = point.specificity.value, point.sensitivity.value
            axes.plot([1 - specificity], [sensitivity], marker, color=colour, markersize=5, linestyle="", label=name)
        if result.points:
            axes.legend(loc="lower right")
    _square(axes, "1 − specificity", "sensitivity")


def _precision_recall(axes: Axes, result: FindingResult) -> None:
    axes.set_title("Precision and recall")
    if not np.isnan(result.prevalence.value):
        axes.axhline(result.prevalence.value, color=_SOFT, linewidth=0.8, linestyle=":")
    curve = result.precision_recall
    if curve.value.size:
        axes.fill_between(GRID, curve.low, curve.high, color=_MODEL, alpha=0.18, linewidth=0)
        axes.plot(GRID, curve.value, color=_MODEL)
        for name, point in result.points.items():
            marker, colour = _MARKS.get(name, ("s", _INK))
            axes.plot([point.sensitivity.value], [point.ppv.value], marker, color=colour, markersize=5, linestyle="")
    _square(axes, "recall (sensitivity)", "precision (PPV)")


def _reliability(axes: Axes, result: FindingResult) -> None:
    axes.set_title("Reliability")
    axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=0.8, linestyle=":")
    r = result.reliability
    errors = [np.maximum(r.observed - r.low, 0), np.maximum(r.high - r.observed, 0)]
    axes.errorbar(r.predicted, r.observed, yerr=errors, color=_MODEL, fmt="o-", markersize=4, linewidth=1)
    _square(axes, "predicted chance", "observed frequency")


def _histogram(axes: Axes, result: FindingResult) -> None:
    axes.set_title("Predicted chances")
    present, absent = result.histogram
    left = np.linspace(0, 1, len(present) + 1)[:-1]
    width = 1 / len(present)
    axes.bar(left, absent, width, align="edge", color=_ABSENT, label="absent")
    axes.bar(left, -present, width, align="edge", color=_MODEL, label="present")
    axes.axhline(0, color=_INK, linewidth=0.6)
    for name, point in result.points.items():
        axes.axvline(point.threshold, color=_MARKS.get(name, ("s", _INK))[1], linewidth=0.9, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_xlabel("predicted chance; dashed: thresholds")
    axes.set_ylabel("images")
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.legend(loc="best")


def _cost(axes: Axes, cost: Cost) -> None:
    """Draw the cost of each policy; the height is cut above the better of flagging all and nobody."""
    axes.set_title("Cost per 1,000 images")
    for name, values in cost.cost.items():
        if name == "by ratio":
            axes.plot(cost.ratios, values, color=_MODEL, linewidth=1, label="threshold by ratio")
        elif name in ("flag all", "flag none"):
            axes.plot(cost.ratios, values, color=_SOFT, linewidth=1, linestyle=":")
        else:
            axes.plot(cost.ratios, values, color=_MARKS.get(name, ("s", _INK))[1], linewidth=1.2, label=name)
    axes.set_xscale("log")
    axes.set_xticks([1, 10, 100], ["1", "10", "100"])
    axes.minorticks_off()
    top = float(np.minimum(cost.cost["flag all"], cost.cost["flag none"]).max())
    axes.set_ylim(0, 1.25 * top)
    axes.set_xlabel("false alarms that a miss is worth")
    axes.set_ylabel("in false alarms")
    axes.legend(loc="best", fontsize=8)


def _square(axes: Axes, x: str, y: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def svg(draw: Callable[[Figure], None], width: float, height: float) -> str:
    """Return what `draw` draws on a figure of so many inches, as SVG."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        draw(figure)
        text = io.StringIO()
        FigureCanvasSVG(figure)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]  # inside HTML there is no XML declaration

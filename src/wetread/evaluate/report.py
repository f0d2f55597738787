"""An evaluation as a page that radiologists and engineers both can read, and as a model card."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

import jinja2
import numpy as np

from wetread.evaluate import operating_points, plots
from wetread.evaluate.evaluation import evaluate
from wetread.evaluate.intervals import Interval
from wetread.evaluate.results import RATES, Evaluation, FindingResult
from wetread.evaluate.shortcuts import COINCIDES

__all__ = ["Evaluation", "card", "evaluate", "html", "summary"]

UNDEFINED = "—"

SHOWN_RATIOS = (1.0, 10.0, 100.0)
"""Costs of a miss, in false alarms, that the table shows."""

_FIELDS = [
    "name",
    "task",
    "input_size",
    "transform",
    "precision",
    "population",
    "views",
    "licence",
    "attribution",
    "dataset_hash",
    "seed",
    "code_version",
    "intended_use",
    "limits",
    "metrics",
]


def area(value: Interval) -> str:
    """Write a value from 0 to 1 with its interval: ``0.974 (0.951–0.988)``."""
    if np.isnan(value.value):
        return UNDEFINED
    limits = "no interval" if np.isnan(value.low) else f"{value.low:.3f}–{value.high:.3f}"
    return f"{value.value:.3f} ({limits})"


def rate(value: Interval) -> str:
    """Write a share with its interval: ``97.4 % (95.1–98.8)``."""
    if np.isnan(value.value):
        return UNDEFINED
    limits = "no interval" if np.isnan(value.low) else f"{100 * value.low:.1f}–{100 * value.high:.1f}"
    return f"{100 * value.value:.1f} % ({limits})"


def number(value: float) -> str:
    """Write a plain figure with three decimals."""
    return UNDEFINED if np.isnan(value) else f"{value:.3f}"


def threshold(value: float) -> str:
    """Write a probability with three significant digits."""
    return f"{value:.3g}" if value < 0.1 else f"{value:.3f}"


def chance(p: float) -> str:
    """Write a p-value: ``= 0.03``, ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


def summary(evaluation: Evaluation) -> list[str]:
    """Return the result in a few plain sentences."""
    patients = "" if evaluation.patients is None else f" of {evaluation.patients:,} patients"
    sentences = [f"Evaluated on {evaluation.images:,} images{patients}."]
    defined = [f for f in evaluation.findings if not np.isnan(f.auroc.value)]
    abnormal = [f for f in defined if f.finding != evaluation.task.normal]
    if evaluation.classes is not None:
        sentences.append(f"The most probable finding is the true one in {rate(evaluation.classes.accuracy)} of them.")
    if len(abnormal) == 1:
        only = abnormal[0]
        sentences.append(f"AUROC of {only.finding}: {area(only.auroc)}.")
        sentences += [
            f"At {name} it flags {rate(point.sensitivity)} of the images with {only.finding}, and does not flag "
            f"{rate(point.specificity)} of those without it."
            for name, point in only.points.items()
        ]
    elif abnormal:
        best, worst = max(abnormal, key=_auroc), min(abnormal, key=_auroc)
        sentences.append(
            f"Mean AUROC over {len(defined)} of {len(evaluation.findings)} findings: {area(evaluation.mean_auroc)}; "
            f"from {worst.auroc.value:.3f} ({worst.finding}) to {best.auroc.value:.3f} ({best.finding})."
        )
    else:
        sentences.append("No AUROC is defined: the images lack present or absent findings.")
    return sentences


def _auroc(result: FindingResult) -> float:
    return result.auroc.value


def html(evaluation: Evaluation, *, title: str = "Evaluation") -> str:
    """Return the report: one HTML document that needs nothing from outside itself.

    Parameters
    ----------
    evaluation : Evaluation
    title : str
        What was evaluated, e.g. ``"pneumonia on kermany, test split"``.
    """
    costs = {cost.finding: cost for cost in evaluation.evidence.costs} if evaluation.evidence else {}
    has_area = [f for f in evaluation.findings if not np.isnan(f.auroc.value)]
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            e=evaluation,
            sentences=summary(evaluation),
            rates=RATES,
            points=list(evaluation.findings[0].points),
            v=evaluation.evidence,
            coincides=COINCIDES,
            shown_ratios=SHOWN_RATIOS,
            overview=plots.overview(evaluation) if len(has_area) > 2 else "",
            plots={f.finding: plots.finding(f, costs.get(f.finding)) for f in evaluation.findings if f.images},
        )
    )


def card(evaluation: Evaluation | None, meta: Mapping[str, Any]) -> str:
    """Return the model card (Mitchell et al. 2019), Markdown.

    Parameters
    ----------
    evaluation : Evaluation or None
        None when the model was not evaluated, which the card then says.
    meta : mapping
        The fields of the package's `model.json`; those that are missing or empty are left out or named as
        not stated.
    """
    return (
        _environment()
        .get_template("card.md")
        .render(
            e=evaluation,
            v=evaluation.evidence if evaluation else None,
            sentences=summary(evaluation) if evaluation else [],
            meta={**dict.fromkeys(_FIELDS), **meta},
            rates=RATES,
        )
    )


def signed(value: float, digits: int = 3) -> str:
    """Write a difference with its sign: ``+0.012``, ``−0.154``."""
    return f"{value:+.{digits}f}".replace("-", "−")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _cell(text: object) -> str:
    """Make text safe inside a Markdown table: no row or column of its own, no markup."""
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", " ".join(str(text).split()))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wetread.evaluate"),
        autoescape=jinja2.select_autoescape(["html"]),  # Markdown tables escape by `cell`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"area": area, "rate": rate, "number": number, "threshold": threshold, "cell": _cell}
    environment.filters["chosen"] = operating_points.describe
    environment.filters |= {"chance": chance, "base64": _base64, "signed": signed}
    return environment

"""What a probability means, in words: how often it was right where it was measured, and what the point is for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wetread.model.package import Meta

_RULES = {
    "youden": "weighs missed and false findings alike",
    "cost": "weighs missed and false findings by their cost",
}


def words(meta: Meta | None, finding: str, probability: float, point: str, *, flagged: bool) -> list[str]:
    """Return sentences for a reader who asks what the figures of a finding mean.

    Parameters
    ----------
    meta : Meta, optional
        Of the model; None when it does not serve any more: then nothing is told of where it was measured.
    finding : str
    probability : float
        As the model says it, calibrated.
    point : str
        Operating point in force when the film was analysed.
    flagged : bool
        Whether the probability is at or above it.
    """
    metrics: Mapping[str, Any] = meta.metrics if meta else {}
    table = metrics.get("findings")
    measured = table.get(finding) if isinstance(table, dict) else None
    measured = measured if isinstance(measured, dict) else {}
    films, had, off = (_number(measured.get(name)) for name in ("images", "positives", "ece"))
    sentence = f"Of 100 films with this score, {_of_100(probability)} had it"
    found = [
        f"{sentence} in the validation data." if films else f"{sentence}, as far as the model's calibration holds."
    ]
    if films and had is not None:
        error = f", and such numbers were off by {_of_100(off)} of 100 on average" if off is not None else ""
        found.append(f"Measured on {films:.0f} films, of which {had:.0f} had it{error}.")
    rules = metrics.get("rules")
    rules = rules if isinstance(rules, dict) else {}
    rule, wanted = str(rules.get(point, "")), _number(rules.get("sensitivity"))
    if rule == "sensitivity" and wanted is not None:
        purpose = f" is set to find {_of_100(wanted)} of 100 films that have it"
    elif rule in _RULES:
        purpose = f" {_RULES[rule]}"
    else:
        purpose = " is the model's threshold for this finding"
    state = "at or above it: flagged, and counted in its place in the list" if flagged else "below it: not flagged"
    found.append(f"The operating point {point}{purpose}; this film is {state}.")
    return found


def _of_100(share: float) -> str:
    """Return a share in words that say no more than is known."""
    count = round(100 * share)
    if count == 0 and share > 0:
        return "fewer than 1"
    if count == 100 and share < 1:
        return "more than 99"
    return f"about {count}"


def _number(value: object) -> float | None:
    """Return what a package says as a number; what it says may be anything."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return float(value)

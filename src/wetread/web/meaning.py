"""What a probability means, in words: how often it was right where it was measured, and what the point is for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wetread.model.package import Meta
from wetread.web.language import gettext as _
from wetread.web.language import number


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
    share = _of_100(probability)
    found = [
        _("Of 100 films with this score, %(share)s had it in the validation data.", share=share)
        if films
        else _("Of 100 films with this score, %(share)s had it, as far as the model's calibration holds.", share=share)
    ]
    if films and had is not None:
        counts = {"films": number(f"{films:.0f}"), "had": number(f"{had:.0f}")}
        found.append(
            _("Measured on %(films)s films, of which %(had)s had it.", **counts)
            if off is None
            else _(
                "Measured on %(films)s films, of which %(had)s had it, and such numbers were off by %(off)s of 100 on "
                "average.",
                off=_of_100(off),
                **counts,
            )
        )
    rules = metrics.get("rules")
    rules = rules if isinstance(rules, dict) else {}
    rule, wanted = str(rules.get(point, "")), _number(rules.get("sensitivity"))
    if rule == "sensitivity" and wanted is not None:
        purpose = _(
            "The operating point %(point)s is set to find %(share)s of 100 films that have it",
            point=point,
            share=_of_100(wanted),
        )
    elif rule == "youden":
        purpose = _("The operating point %(point)s weighs missed and false findings alike", point=point)
    elif rule == "cost":
        purpose = _("The operating point %(point)s weighs missed and false findings by their cost", point=point)
    else:
        purpose = _("The operating point %(point)s is the model's threshold for this finding", point=point)
    found.append(
        _("%(purpose)s; this film is at or above it: flagged, and counted in its place in the list.", purpose=purpose)
        if flagged
        else _("%(purpose)s; this film is below it: not flagged.", purpose=purpose)
    )
    return found


def _of_100(share: float) -> str:
    """Return a share in words that say no more than is known."""
    count = round(100 * share)
    if count == 0 and share > 0:
        return _("fewer than 1")
    if count == 100 and share < 1:
        return _("more than 99")
    return _("about %(count)s", count=count)


def _number(value: object) -> float | None:
    """Return what a package says as a number; what it says may be anything."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return float(value)

"""From the results of a study's images to the study's own, as the model's package says.

The same rules as `wetread.infer.study`, over results that are rows: a model of images gives of each finding the
highest probability among the images, or the mean (`aggregate`), and of the normal finding the lowest; a model of
studies has judged a frontal and a lateral view together, and only these two speak for the study.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

_ORDER = {"PA": 0, "AP": 1}  # which frontal view a model of studies takes first, as in training


@dataclass(frozen=True)
class Merging:
    """How a package wants the images of a study put together; kept with each result, so that it outlives the model.

    Attributes
    ----------
    kind : {"image", "study"}
        What the model judges.
    aggregate : {"max", "mean"}
        How the results of several images become one.
    normal : str or None
        The finding that says there is none.
    cutoffs : mapping
        Finding → below the first it is unlikely, from the second on likely.
    """

    kind: Literal["image", "study"] = "image"
    aggregate: Literal["max", "mean"] = "max"
    normal: str | None = None
    cutoffs: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as a result keeps it."""
        return asdict(self)


@dataclass(frozen=True)
class View:
    """One image of a study: its id, its view, when it came, and the SHA-256 of its file."""

    image: str
    view: str | None
    received_at: datetime
    sha256: str = ""


def pair(views: Sequence[View]) -> tuple[View | None, View | None]:
    """Return the frontal and the lateral view that a model of studies judges together: the first that came of each."""
    ordered = sorted(views, key=lambda v: (v.received_at, v.image))
    frontal = sorted((v for v in ordered if v.view != "LATERAL"), key=lambda v: _ORDER.get(v.view or "", 2))
    lateral = [v for v in ordered if v.view == "LATERAL"]
    return next(iter(frontal), None), next(iter(lateral), None)


def bases(views: Sequence[View], kind: str) -> dict[str, str]:
    """Return of each image what its result must rest on: its own file, or the files of the pair to which it belongs.

    A result that rests on something else is out of date: the header was corrected, or the other view came or went.
    """
    found = {v.image: v.sha256 for v in views}
    frontal, lateral = pair(views)
    if kind == "study" and frontal and lateral:
        both = hashlib.sha256(f"{frontal.sha256}\n{lateral.sha256}".encode()).hexdigest()
        found |= {frontal.image: both, lateral.image: both}
    return found


def combine(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the results of one model together.

    Parameters
    ----------
    results : sequence of mapping
        Rows of `image_result` with `received_at`, all suitable, at least one.

    Returns
    -------
    dict
        ``abnormal`` and ``findings``; each finding names under ``image`` the one where it is most probable (of the
        normal finding, the one that decided).
    """
    how = Merging(**next((r["merging"] for r in reversed(results) if r.get("merging")), {}))
    if how.kind == "study":
        chosen = pair([View(r["instance"], r["view"], r["received_at"]) for r in results])
        speaking = {view.image for view in chosen if view is not None}
        results = [r for r in results if r["instance"] in speaking]
    abnormal = [r["abnormal"] for r in results if r["abnormal"] is not None]
    said: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for finding in result["findings"]:
            said.setdefault(finding["finding"], []).append({**finding, "image": result["instance"]})
    return {
        "abnormal": _together(abnormal, how.aggregate) if abnormal else None,
        "findings": [_one(found, how) for found in said.values()],
    }


def _one(found: Sequence[dict[str, Any]], how: Merging) -> dict[str, Any]:
    lowest = how.aggregate == "max" and found[0]["finding"] == how.normal
    first = (min if lowest else max)(found, key=lambda f: float(f["probability"]))
    cutoffs = how.cutoffs.get(first["finding"])
    if how.aggregate == "max" or len(found) == 1 or cutoffs is None:
        return first
    value = _together([f["probability"] for f in found], "mean")
    call = "likely" if value >= cutoffs[1] else "unlikely" if value < cutoffs[0] else "unsure"
    return first | {"probability": value, "flagged": value >= first["threshold"], "call": call}


def _together(values: Sequence[float], aggregate: str) -> float:
    return float(sum(values) / len(values) if aggregate == "mean" else max(values))

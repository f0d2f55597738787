"""May this model speak about this radiograph? Two questions, and a code and a plain sentence for each refusal.

*Is it a chest radiograph?* Tags and picture answer: what the modality and the content say counts, not the SOP class,
for public copies of radiographs are often Secondary Capture. *Does it fit this model?* Population, view and
processing answer.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from wetread.errors import Code
from wetread.radiograph import chest
from wetread.radiograph.read import Radiograph

Population = Literal["adult", "child", "phantom", "any"]

ADULT_AGE = 18.0
MIN_SIDE = 48  # pixels: below, nothing can be said about a chest

_TAGGED = 1.15  # times the usual distance from other chests is allowed where a tag says chest

_MODALITIES = frozenset({"CR", "DX", "DR", "RG", "OT", "SC"})  # OT and SC: copies; the picture decides
_CHEST = ("CHEST", "THORAX", "LUNG", "RIB", "TORSO", "HEART", "STERNUM")
_UNSPECIFIC = frozenset({"", "UNKNOWN", "OTHER", "NONE", "BODY", "WHOLEBODY", "PORT CHEST"})


@dataclass(frozen=True)
class Suitability:
    """The answer.

    Attributes
    ----------
    suitable : bool
    code : Code or None
        Why not; None when suitable.
    reason : str
        One plain sentence; empty when suitable.
    cautions : tuple of str
        What a reader should know although the radiograph suits.
    """

    suitable: bool
    code: Code | None = None
    reason: str = ""
    cautions: tuple[str, ...] = ()


def suit(
    radiograph: Radiograph, *, population: Population = "any", views: Collection[str] = ("PA", "AP")
) -> Suitability:
    """Tell whether a model for `population` and `views` may speak about `radiograph`.

    Parameters
    ----------
    radiograph : Radiograph
    population : {"adult", "child", "phantom", "any"}
        Whom the model was trained on. ``"any"`` takes real people of any age, and no phantoms.
    views : collection of str
        The projections that the model knows. An unknown view passes with a caution.
    """
    refusal = _chest(radiograph) or _fit(radiograph, population, views)
    if refusal is not None:
        return Suitability(False, *refusal)
    cautions = []
    if radiograph.age_years is None and population in ("adult", "child"):
        whom = "adults" if population == "adult" else "children"
        cautions.append(f"The age is unknown; this model was trained on {whom}.")
    if radiograph.view is None:
        cautions.append("The view is unknown; it was taken for a frontal one.")
    return Suitability(True, cautions=tuple(cautions))


def _chest(radiograph: Radiograph) -> tuple[Code, str] | None:
    """Answer the first question; None means yes."""
    modality = (radiograph.modality or "").upper()
    if modality and modality not in _MODALITIES:
        return Code.NOT_RADIOGRAPH, f"The modality is {modality}, not a radiograph (CR or DX)."
    if radiograph.presentation == "FOR PROCESSING":
        return Code.FOR_PROCESSING, "The image is the detector's raw data (FOR PROCESSING), not meant to be looked at."
    part = (radiograph.body_part or "").upper()
    tagged = any(word in part for word in _CHEST)
    if part not in _UNSPECIFIC and not tagged:
        return Code.NOT_CHEST, f"The body part is {part.lower()}, not the chest."
    if min(radiograph.pixels.shape) < MIN_SIDE:
        height, width = radiograph.pixels.shape
        return Code.NOT_RADIOGRAPH, f"The image has only {width}×{height} pixels."
    if int(radiograph.pixels.max()) == int(radiograph.pixels.min()):
        return Code.NOT_RADIOGRAPH, "The image is blank."
    if radiograph.view != "LATERAL" and chest.distance(radiograph) > (_TAGGED if tagged else 1.0):
        return Code.NOT_CHEST, "The picture does not look like a frontal chest radiograph."
    return None


def _fit(radiograph: Radiograph, population: Population, views: Collection[str]) -> tuple[Code, str] | None:
    """Answer the second question; None means yes."""
    phantom = radiograph.source == "phantom"
    if population == "phantom" and not phantom:
        return Code.UNFAMILIAR, "This model was trained on synthetic radiographs and speaks about no others."
    if phantom and population != "phantom":
        return Code.UNFAMILIAR, "The radiograph is synthetic; this model was trained on real ones."
    if radiograph.view is not None and radiograph.view not in views:
        if radiograph.view == "LATERAL":
            return Code.LATERAL_ONLY, "The view is lateral; this model reads frontal radiographs."
        known = " or ".join(sorted(views))
        return Code.UNFAMILIAR, f"The view is {radiograph.view}; this model reads {known}."
    age = radiograph.age_years
    if age is not None and population == "adult" and age < ADULT_AGE:
        return Code.CHILD, f"The patient is {_age(age)} old; this model was trained on adults."
    if age is not None and population == "child" and age >= ADULT_AGE:
        return Code.ADULT, f"The patient is {_age(age)} old; this model was trained on children."
    return None


def _age(years: float) -> str:
    if years >= 2:
        return f"{int(years)} years"
    months = max(1, int(years * 12))
    return f"{months} month{'s' if months > 1 else ''}"

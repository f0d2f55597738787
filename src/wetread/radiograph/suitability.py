"""May this model speak about this radiograph? Two questions, and a code and a plain sentence for each answer.

*Is it a chest radiograph?* Tags and picture answer: what the modality and the content say counts, not the SOP class,
for public copies of radiographs are often Secondary Capture. *Does it fit this model?* Population, view and
processing answer.

A refusal keeps the model silent; a caution lets it speak and tells the reader what to mind. What only makes a picture
worse (cut off, badly exposed, written upon) is a caution: the sickest films are the worst ones, and a finding that
shows in them is not to be lost.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from wetread.errors import Caution, Code
from wetread.radiograph import chest, framing, screenshot
from wetread.radiograph.read import Radiograph

Population = Literal["adult", "child", "phantom", "any"]

ADULT_AGE = 18.0
MIN_SIDE = 48  # pixels: below, nothing can be said about a chest

_TAGGED = 1.15  # times the usual distance from other chests is allowed where a tag says chest
_DOUBTFUL = 1.2  # up to so many times, the features of a model may still know it for a chest
_NEGATIVE = 0.6  # a picture whose negative lies as near as this, as 99 % of chests do, is a chest's negative

_MODALITIES = frozenset({"CR", "DX", "DR", "RG", "OT", "SC"})  # OT and SC: copies; the picture decides
_CHEST = ("CHEST", "THORAX", "LUNG", "RIB", "TORSO", "HEART", "STERNUM")
_UNSPECIFIC = frozenset({"", "UNKNOWN", "OTHER", "NONE", "BODY", "WHOLEBODY", "PORT CHEST"})

_SIDES = {
    "top": "above",
    "bottom": "below",
    "left": "on the left of the picture",
    "right": "on the right of the picture",
}


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
        What a reader should know although the radiograph suits: one plain sentence each.
    caution_codes : tuple of Caution
        Their codes, in the same order.
    doubtful : bool
        The picture is refused as NOT_CHEST by a narrow margin, and by nothing else: a model whose own features know
        such pictures well may speak after all.
    """

    suitable: bool
    code: Code | None = None
    reason: str = ""
    cautions: tuple[str, ...] = ()
    caution_codes: tuple[Caution, ...] = ()
    doubtful: bool = False


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
    refusal = _tags(radiograph) or _blank(radiograph)
    if refusal is not None:
        return Suitability(False, *refusal)
    thumb = chest.thumbnail(radiograph)
    description = chest.describe(thumb)
    frontal = radiograph.view != "LATERAL"
    distance = chest.distance_of(description) if frontal else 0.0
    limit = _TAGGED if _tagged(radiograph) else 1.0
    text = screenshot.text(radiograph)
    if text.on_panels >= screenshot.MANY or (text.blocks >= screenshot.MANY and distance > limit):
        return Suitability(False, Code.SCREENSHOT, "The picture shows lines of text: a screen or a page, not a film.")
    if distance > limit and chest.distance_of(chest.describe(255 - thumb)) <= _NEGATIVE:
        return Suitability(False, Code.INVERTED, _inverted(radiograph))
    refusal = None
    if distance > limit:
        refusal = Code.NOT_CHEST, "The picture does not look like a frontal chest radiograph."
        if distance > _DOUBTFUL:
            return Suitability(False, *refusal)
    if (misfit := _fit(radiograph, population, views)) is not None:
        return Suitability(False, *misfit)
    cautions = _cautions(radiograph, population)
    if frontal and (cut := framing.cut_off(description)):
        where = " and ".join(_SIDES[side] for side in cut)
        cautions[Caution.CROPPED] = f"The lungs seem to be cut off {where}; what lies there was not seen."
    if exposure := framing.exposure(thumb):
        cautions[Caution.EXPOSURE] = f"The picture is {exposure}; faint findings may not show."
    if text.blocks >= screenshot.MANY:
        cautions[Caution.TEXT] = "Text is burned into the picture; it may hide something, or mislead the model."
    if refusal is not None:
        cautions[Caution.UNUSUAL] = "The picture is unusual for a frontal chest radiograph."
        return Suitability(False, *refusal, tuple(cautions.values()), tuple(cautions), doubtful=True)
    return Suitability(True, cautions=tuple(cautions.values()), caution_codes=tuple(cautions))


def _tags(radiograph: Radiograph) -> tuple[Code, str] | None:
    """Tell what the tags say against a chest radiograph; None when nothing."""
    modality = (radiograph.modality or "").upper()
    if modality and modality not in _MODALITIES:
        return Code.NOT_RADIOGRAPH, f"The modality is {modality}, not a radiograph (CR or DX)."
    if radiograph.presentation == "FOR PROCESSING":
        return Code.FOR_PROCESSING, "The image is the detector's raw data (FOR PROCESSING), not meant to be looked at."
    part = (radiograph.body_part or "").upper()
    if part not in _UNSPECIFIC and not _tagged(radiograph):
        return Code.NOT_CHEST, f"The body part is {part.lower()}, not the chest."
    return None


def _tagged(radiograph: Radiograph) -> bool:
    """Tell whether the body part says chest."""
    return any(word in (radiograph.body_part or "").upper() for word in _CHEST)


def _blank(radiograph: Radiograph) -> tuple[Code, str] | None:
    """Tell whether there is too little of a picture to say more."""
    if min(radiograph.pixels.shape) < MIN_SIDE:
        height, width = radiograph.pixels.shape
        return Code.NOT_RADIOGRAPH, f"The image has only {width}×{height} pixels."
    if int(radiograph.pixels.max()) == int(radiograph.pixels.min()):
        return Code.NOT_RADIOGRAPH, "The image is blank."
    return None


def _inverted(radiograph: Radiograph) -> str:
    tag = " by its polarity tag (Photometric Interpretation)" if radiograph.modality else ""
    return f"The picture{tag} is the negative of a chest radiograph: black and white are exchanged."


def _cautions(radiograph: Radiograph, population: Population) -> dict[Caution, str]:
    """Return what the tags leave open."""
    cautions: dict[Caution, str] = {}
    if radiograph.age_years is None and population in ("adult", "child"):
        whom = "adults" if population == "adult" else "children"
        cautions[Caution.AGE_UNKNOWN] = f"The age is unknown; this model was trained on {whom}."
    if radiograph.view is None:
        cautions[Caution.VIEW_UNKNOWN] = "The view is unknown; it was taken for a frontal one."
    return cautions


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

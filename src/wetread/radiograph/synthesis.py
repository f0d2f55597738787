"""Synthesis of chest phantoms: radiographs of bodies that never lived, with known findings and where they are.

A phantom is simple anatomy (`anatomy`) changed by findings (`pathology`, `devices`), projected in parallel
(`rendering`, `projection`) and exposed (`film`). The same seed gives the same body in every view. `phantom`
writes them as a CheXpert-like collection and as DICOM.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wetread.errors import WetreadError
from wetread.findings import CHEXPERT
from wetread.radiograph.anatomy import Body, breathe_out, draw_body
from wetread.radiograph.film import expose
from wetread.radiograph.pathology import alter, breaks, reshape
from wetread.radiograph.projection import Scene
from wetread.radiograph.read import Radiograph, View
from wetread.radiograph.rendering import build

# Chance of a healthy phantom, and of each finding in the others (drawn again when nothing came up).
NORMAL = 0.22
PREVALENCE = {
    "Enlarged Cardiomediastinum": 0.09,
    "Cardiomegaly": 0.17,
    "Lung Opacity": 0.06,
    "Lung Lesion": 0.13,
    "Edema": 0.15,
    "Consolidation": 0.10,
    "Pneumonia": 0.12,
    "Atelectasis": 0.16,
    "Pneumothorax": 0.13,
    "Pleural Effusion": 0.25,
    "Pleural Other": 0.11,
    "Fracture": 0.12,
    "Support Devices": 0.36,
}


@dataclass(frozen=True, eq=False)
class Phantom:
    """One view of one phantom.

    Attributes
    ----------
    radiograph : Radiograph
        8-bit; `source` is ``"phantom"``.
    labels : dict of str to int
        0 or 1 for each of the 14 CheXpert findings, consistent with the CheXpert tree.
    masks : dict of str to bool array [H, W]
        Where each finding is; empty for an absent one and for No Finding. A parent's is the union of its children's
        and its own.
    lungs : bool array [H, W]
        The lung fields, apices and costophrenic angles included, whatever hides them.
    """

    radiograph: Radiograph
    labels: dict[str, int]
    masks: dict[str, NDArray[np.bool_]]
    lungs: NDArray[np.bool_]


def draw_findings(seed: int, study: int = 0) -> frozenset[str]:
    """Draw the findings of a phantom by `PREVALENCE`, before closure up the tree."""
    rng = np.random.default_rng([seed, 10, study])
    if rng.random() < NORMAL:
        return frozenset({"Support Devices"} if rng.random() < PREVALENCE["Support Devices"] else ())
    while True:
        found = frozenset(name for name, chance in PREVALENCE.items() if rng.random() < chance)
        if found - CHEXPERT.neutral:
            return found


def labels(findings: Collection[str]) -> dict[str, int]:
    """Return the labels of a set of findings: closed up the tree, and No Finding when nothing is abnormal."""
    closed = {step for finding in findings for step in CHEXPERT.path(finding)} - {"No Finding"}
    if not closed - CHEXPERT.neutral:
        closed.add("No Finding")
    return {finding: int(finding in closed) for finding in CHEXPERT.findings}


def make(
    seed: int, *, view: View = "PA", size: int = 320, findings: Collection[str] | None = None, study: int = 0
) -> Phantom:
    """Make one view of a phantom.

    Parameters
    ----------
    seed : int
        Not negative. The same seed is the same body, whatever the view, the size and the findings.
    view : {"PA", "AP", "LATERAL"}
    size : int
        Side of the square image, in pixels, 64 to 2048.
    findings : collection of str, optional
        CheXpert findings; their parents are added. A parent alone means itself: Consolidation without Pneumonia,
        Lung Opacity that is none of its children. By default drawn by `PREVALENCE`.
    study : int
        Which examination of this patient, from 0: the same anatomy with other findings, pose and exposure.

    Raises
    ------
    WetreadError
        For an unknown finding or view, No Finding together with an abnormality, or a seed or size out of range.
    """
    if seed < 0:
        raise WetreadError(f"phantom: seed = {seed}: must not be negative")
    if view not in ("PA", "AP", "LATERAL"):
        raise WetreadError(f"phantom: view = {view!r}: must be PA, AP or LATERAL")
    if not 64 <= size <= 2048:
        raise WetreadError(f"phantom: size = {size}: must be 64 to 2048 pixels")
    given = draw_findings(seed, study) if findings is None else frozenset(findings)
    if unknown := sorted(given - set(CHEXPERT.findings)):
        raise WetreadError(f"phantom: unknown finding {unknown[0]!r}; known: {', '.join(CHEXPERT.findings)}")
    if "No Finding" in given and given - CHEXPERT.neutral - {"No Finding"}:
        raise WetreadError("phantom: No Finding excludes every other finding but Support Devices; leave one out")
    parents = {step for finding in given for step in CHEXPERT.path(finding)[:-1]}
    leaves = given - parents - {"No Finding"}
    body = draw_body(seed, study)
    if view == "AP":
        breathe_out(body)
    reshape(body, leaves)
    scene = Scene(body, view, size, breaks(body) if "Fracture" in leaves else {})
    build(scene)
    found = alter(scene, leaves)
    marked = labels(given)
    masks = {finding: np.zeros((size, size), np.bool_) for finding in CHEXPERT.findings}
    for leaf, mask in found.items():
        for finding in CHEXPERT.path(leaf):
            masks[finding] |= mask
    return Phantom(_radiograph(body, scene, seed), marked, masks, lung_fields(scene))


def lung_fields(scene: Scene) -> NDArray[np.bool_]:
    """Return where lung shows above the diaphragm, in a frontal view beside heart and mediastinum."""
    fields = np.zeros(scene.soft.shape, np.bool_)
    for whole, reach in zip(scene.whole, scene.depth, strict=True):
        fields |= (whole > 0.4) & (whole > 0.5 * reach)
    return np.asarray(fields & ~((scene.heart > 2) | (scene.central > 4))) if scene.frontal else fields


def _radiograph(body: Body, scene: Scene, seed: int) -> Radiograph:
    spacing = scene.cm * 10
    return Radiograph(
        pixels=expose(scene),
        bits=8,
        full_size=(scene.size, scene.size),
        view=scene.view,
        modality="DX",
        body_part="CHEST",
        age_years=float(body.age),
        sex=body.sex,
        spacing_mm=(spacing, spacing),
        patient=f"phantom{seed:08d}",
        source="phantom",
    )

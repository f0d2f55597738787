"""Imitate a labeller that reads reports: uncertain, not mentioned, now and then wrong.

How often a positive is called uncertain is the share of uncertain among positive and uncertain labels in CheXpert's
training set (Irvin et al. 2019, table 1). A parent is often left blank although its child is positive, as there
(Cardiomegaly without Enlarged Cardiomediastinum in 91 %). The other rates are round numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wetread.findings import CHEXPERT, UNCERTAIN

# Chance that a positive is reported as uncertain.
UNSURE = {
    "Enlarged Cardiomediastinum": 0.53,
    "Cardiomegaly": 0.22,
    "Lung Opacity": 0.04,
    "Lung Lesion": 0.14,
    "Edema": 0.19,
    "Consolidation": 0.65,
    "Pneumonia": 0.77,
    "Atelectasis": 0.5,
    "Pneumothorax": 0.13,
    "Pleural Effusion": 0.11,
    "Pleural Other": 0.42,
    "Fracture": 0.06,
    "Support Devices": 0.01,
}
# Chance that a parent is left blank when its child is reported.
UNSPOKEN_PARENT = {"Enlarged Cardiomediastinum": 0.91, "Lung Opacity": 0.55, "Consolidation": 0.7}
# An absent finding: not mentioned, hedged, or invented; a present one: missed.
ABSENT_UNSAID = 0.8
ABSENT_UNSURE = 0.015
MISSED = 0.04
INVENTED = 0.01


def report(labels: Mapping[str, int], rng: np.random.Generator) -> dict[str, int | None]:
    """Return what a labeller would make of the report on a study.

    Parameters
    ----------
    labels : mapping of str to int
        The truth: 0 or 1 for each CheXpert finding.
    rng : Generator

    Returns
    -------
    dict of str to int or None
        1, 0, -1 (uncertain) or None (not mentioned) for each CheXpert finding; No Finding is 1 or None.
    """
    with_child = {parent for child, parent in CHEXPERT.parents.items() if labels[child]}
    said: dict[str, int | None] = {}
    for finding in CHEXPERT.findings[1:]:
        chance = rng.random(3)
        if labels[finding]:
            unspoken = UNSPOKEN_PARENT.get(finding, 0.0) if finding in with_child else 0.0
            missed = None if chance[2] < 0.7 else 0
            said[finding] = UNCERTAIN if chance[1] < UNSURE[finding] else 1
            if chance[0] < unspoken:
                said[finding] = None
            elif chance[0] > 1 - MISSED:
                said[finding] = missed
        else:
            said[finding] = None if chance[0] < ABSENT_UNSAID else 0
            if chance[1] < INVENTED:
                said[finding] = 1
            elif chance[1] < INVENTED + ABSENT_UNSURE:
                said[finding] = UNCERTAIN
    abnormal = any(said[f] in (1, UNCERTAIN) for f in said if f not in CHEXPERT.neutral)
    return {"No Finding": None if abnormal else 1, **said}

"""What the labels of a collection say about the findings of a task.

Collections name findings in their own words, finer or coarser than ours. Here stands, per collection, which of its
words mean a finding, and which leave it open. What no word of a collection tells about is null, never absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from wetread.errors import DatasetError
from wetread.findings import ABSENT, PRESENT, UNCERTAIN, Task


@dataclass(frozen=True)
class Words:
    """The labels of a collection that tell about one finding.

    Attributes
    ----------
    named : tuple of str
        Any of these present: the finding is present. All absent: it is absent.
    vague : tuple of str
        Wider than the finding. Present, without a named one: not known. Absent: so is the finding.
    """

    named: tuple[str, ...] = ()
    vague: tuple[str, ...] = ()

    def value(self) -> pl.Expr:
        """Return the finding (Int8: 1, 0, -1 or null) from one column per label with such values."""
        named, vague = [pl.col(label) for label in self.named], [pl.col(label) for label in self.vague]
        certain = _any((label == PRESENT).fill_null(False) for label in named)
        doubtful = _any((label == UNCERTAIN).fill_null(False) for label in named)
        unknown = _any([*((label != ABSENT).fill_null(True) for label in vague), *(label.is_null() for label in named)])
        value = pl.when(certain).then(PRESENT).when(doubtful).then(UNCERTAIN).when(~unknown).then(ABSENT)
        return value.cast(pl.Int8)


def words(table: Mapping[str, Words], labels: Sequence[str], task: Task, kind: str) -> dict[str, Words | None]:
    """Return for each finding of the task the labels that tell about it; None where there are none.

    Parameters
    ----------
    table : mapping of str to Words
        Of the collection.
    labels : sequence of str
        All labels of the collection; one that is spelled as a finding means it, in any case of letters.
    task : Task
    kind : str
        Of the collection, for messages.

    Raises
    ------
    DatasetError
        When the collection tells about none of the findings.
    """
    own = {label.casefold(): Words((label,)) for label in labels}
    found = {finding: table.get(finding, own.get(finding.casefold())) for finding in task.findings}
    if not any(found.values()):
        known = ", ".join(table)
        raise DatasetError(f"task {task.name!r}: a {kind} collection labels none of its findings, but {known}")
    return found


def align(rows: pl.DataFrame, found: Mapping[str, Words | None]) -> pl.DataFrame:
    """Return rows with one Int8 column per finding of the task, made of one column per label.

    Parameters
    ----------
    rows : DataFrame
        With a column of 1, 0, -1 or null for every label that `found` names; these columns go.
    found : mapping of str to Words or None
        From `words`.
    """
    used = sorted({label for tells in found.values() if tells for label in (*tells.named, *tells.vague)})
    values = [(tells.value() if tells else pl.lit(None, pl.Int8)).alias(finding) for finding, tells in found.items()]
    return pl.concat([rows.drop(used), rows.select(values)], how="horizontal")


def open_parents(rows: pl.DataFrame, task: Task) -> pl.DataFrame:
    """Return rows in which the absent parent of a finding that is not absent is null.

    A collection that does not know the task's tree and names a child only has not said that the parent is absent.
    """
    below = {parent: [f for f in task.findings if parent in task.path(f)[:-1]] for parent in {*task.parents.values()}}
    return rows.with_columns(
        pl.when((pl.col(parent) == ABSENT) & _any((pl.col(child) != ABSENT).fill_null(False) for child in children))
        .then(None)
        .otherwise(parent)
        .alias(parent)
        for parent, children in below.items()
    )


def _any(conditions: Iterable[pl.Expr]) -> pl.Expr:
    return pl.any_horizontal(pl.lit(False), *conditions)


# --- MIMIC-CXR-JPG: CheXpert's own fourteen, as its labeller or NegBio found them in the report -----------------------

MIMIC = {
    "Effusion": Words(("Pleural Effusion",)),
    "Infiltration": Words(vague=("Lung Opacity",)),
    "Mass": Words(vague=("Lung Lesion",)),
    "Nodule": Words(vague=("Lung Lesion",)),
    "Pleural_Thickening": Words(vague=("Pleural Other",)),
    "Normal": Words(("No Finding",)),
}

# --- PadChest: some 190 labels of a report, lower case (Bustos et al. 2020, appendix) ---------------------------------

_ATELECTASIS = (
    "atelectasis",
    "atelectasis basal",
    "laminar atelectasis",
    "lobar atelectasis",
    "round atelectasis",
    "segmental atelectasis",
    "total atelectasis",
)
_INFILTRATES = (
    "infiltrates",
    "alveolar pattern",
    "ground glass pattern",
    "interstitial pattern",
    "miliary opacities",
    "reticular interstitial pattern",
    "reticulonodular interstitial pattern",
)
_EFFUSION = (
    "pleural effusion",
    "empyema",
    "hemothorax",
    "hydropneumothorax",
    "loculated fissural effusion",
    "loculated pleural effusion",
)
_THICKENING = ("pleural thickening", "apical pleural thickening", "calcified pleural thickening")
_NODULE = ("nodule", "multiple nodules")
_MASS = ("mass", "pulmonary mass")
DEVICES = (
    "aortic endoprosthesis",
    "artificial aortic heart valve",
    "artificial heart valve",
    "artificial mitral heart valve",
    "catheter",
    "central venous catheter",
    "central venous catheter via jugular vein",
    "central venous catheter via subclavian vein",
    "central venous catheter via umbilical vein",
    "chest drain tube",
    "dai",
    "double j stent",
    "dual chamber device",
    "electrical device",
    "endoprosthesis",
    "endotracheal tube",
    "gastrostomy tube",
    "nephrostomy tube",
    "nsg tube",
    "pacemaker",
    "reservoir central venous catheter",
    "single chamber device",
    "tracheostomy tube",
    "ventriculoperitoneal drain tube",
)
PADCHEST = {
    "No Finding": Words(("normal",)),
    "Enlarged Cardiomediastinum": Words(
        ("mediastinal enlargement", "superior mediastinal enlargement"),
        ("mediastinal mass", "aortic aneurysm", "goiter", "pericardial effusion"),
    ),
    "Cardiomegaly": Words(("cardiomegaly",)),
    "Lung Opacity": Words((*_INFILTRATES, "consolidation", "air bronchogram"), ("increased density",)),
    "Lung Lesion": Words((*_NODULE, *_MASS, "cavitation", "lung metastasis"), ("granuloma", "calcified granuloma")),
    "Edema": Words(("pulmonary edema",), ("heart insufficiency", "kerley lines")),
    "Consolidation": Words(("consolidation", "air bronchogram"), ("alveolar pattern",)),
    "Pneumonia": Words(("pneumonia", "atypical pneumonia")),
    "Atelectasis": Words(_ATELECTASIS),
    "Pneumothorax": Words(("pneumothorax", "hydropneumothorax")),
    "Pleural Effusion": Words(_EFFUSION, ("costophrenic angle blunting",)),
    "Pleural Other": Words((*_THICKENING, "calcified pleural plaques", "pleural mass", "pleural plaques")),
    "Fracture": Words(
        (
            "fracture",
            "callus rib fracture",
            "clavicle fracture",
            "humeral fracture",
            "rib fracture",
            "vertebral fracture",
        )
    ),
    "Support Devices": Words(DEVICES),
    "Effusion": Words(_EFFUSION, ("costophrenic angle blunting",)),
    "Infiltration": Words(_INFILTRATES),
    "Mass": Words(_MASS),
    "Nodule": Words(_NODULE),
    "Emphysema": Words(("emphysema",), ("air trapping", "bullas", "copd signs")),  # not "subcutaneous emphysema"
    "Fibrosis": Words(("pulmonary fibrosis", "fibrotic band"), ("chronic changes", "post radiotherapy changes")),
    "Pleural_Thickening": Words(_THICKENING),
    "Hernia": Words(("hiatal hernia",)),
    "Normal": Words(("normal",)),
    "Tuberculosis": Words(("tuberculosis",), ("tuberculosis sequelae",)),
}

# --- VinDr-CXR: 22 findings and 6 diagnoses of a reader (Nguyen et al. 2022, table 2) ---------------------------------

VINDR = {
    "No Finding": Words(("No finding",)),
    "Lung Opacity": Words(("Lung Opacity", "Infiltration"), ("ILD",)),
    "Lung Lesion": Words(("Nodule/Mass", "Lung tumor", "Lung cavity"), ("Other lesion",)),
    "Pleural Effusion": Words(("Pleural effusion",)),
    "Pleural Other": Words(("Pleural thickening",)),
    "Fracture": Words(("Clavicle fracture", "Rib fracture")),
    "Effusion": Words(("Pleural effusion",)),
    "Mass": Words(vague=("Nodule/Mass", "Lung tumor")),
    "Nodule": Words(vague=("Nodule/Mass",)),
    "Emphysema": Words(("Emphysema",), ("COPD",)),
    "Fibrosis": Words(("Pulmonary fibrosis",), ("ILD",)),
    "Pleural_Thickening": Words(("Pleural thickening",)),
    "Normal": Words(("No finding",)),
}

# --- RSNA: one of three classes (Shih et al. 2019) --------------------------------------------------------------------

RSNA = {
    "No Finding": Words(("Normal",)),
    "Lung Opacity": Words(("Lung Opacity",)),
    "Pneumonia": Words(("Lung Opacity",)),  # an opacity that raised the suspicion of pneumonia
    "Normal": Words(("Normal",)),
}

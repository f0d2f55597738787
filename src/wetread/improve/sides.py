"""Who trains, who tunes, who judges, over all versions of a dataset: nobody ever changes sides.

The side of a new patient follows from their pseudonym, which is keyed, and from nothing else; patients of the
random-audit sample judge. Sides are handed on from version to version, also those of patients who are in none now.
Who turned out to be on two sides is *torn*: they and their studies stay out for ever, also when what tore them is gone,
for a model may have learnt from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wetread.dataset.split import SPLITS, unit
from wetread.errors import DatasetError

FILE, TORN = "sides.json", "torn"


@dataclass(frozen=True)
class Sides:
    """Sides that were given so far: pseudonym of a patient, and of a study of theirs, to train, valid, test or torn.

    Studies are kept too, because a patient's identifier may be corrected, or turn out to be another patient's.
    """

    patients: Mapping[str, str] = field(default_factory=dict)
    studies: Mapping[str, str] = field(default_factory=dict)

    def assign(
        self, studies: Mapping[str, str], sampled: frozenset[str], *, valid: float, test: float
    ) -> tuple[dict[str, str], Sides]:
        """Give every patient a side.

        Parameters
        ----------
        studies : mapping of study to patient
            Pseudonyms; that of a study outlives a correction of its patient.
        sampled : frozenset of str
            Patients of the random-audit sample.
        valid, test : float
            Shares of the new patients; together less than 1.

        Returns
        -------
        sides : dict of patient to side
            Without patients who turned out to be on two sides, now or before: they have none any more.
        Sides
            Those that there are now.
        """
        homes: dict[str, set[str]] = {patient: set() for patient in studies.values()}
        for study, patient in studies.items():
            homes[patient] |= {side for side in (self.patients.get(patient), self.studies.get(study)) if side}
        sides = {}
        for (patient, known), at in zip(homes.items(), unit(list(homes), 0, "curate"), strict=True):
            if not known:
                drawn = "test" if at < test else "valid" if at < test + valid else "train"
                sides[patient] = "test" if patient in sampled else drawn
            else:
                sides[patient] = known.pop() if len(known) == 1 else TORN
        given = {study: sides[patient] for study, patient in studies.items()}
        found = {patient: side for patient, side in sides.items() if side != TORN}
        return found, Sides({**self.patients, **sides}, {**self.studies, **given})

    def with_those_of(self, other: Sides) -> Sides:
        """Return the sides of both; who is on two is torn."""
        return Sides(_both(self.patients, other.patients), _both(self.studies, other.studies))

    def write(self, folder: Path) -> None:
        """Write them beside a dataset."""
        values = {"patients": dict(sorted(self.patients.items())), "studies": dict(sorted(self.studies.items()))}
        (folder / FILE).write_text(json.dumps(values) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Sides:
        """Read them from beside a dataset.

        Raises
        ------
        DatasetError
            When they are not there, or damaged: without them somebody might change sides.
        """
        try:
            values = json.loads((folder / FILE).read_text(encoding="utf-8"))
            found = cls(dict(values["patients"]), dict(values["studies"]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise DatasetError(
                f"{folder / FILE}: cannot be read ({type(error).__name__}); put it back: without it a patient could "
                "change sides"
            ) from None
        given = {str(side) for side in (*found.patients.values(), *found.studies.values())}
        if stray := given - {*SPLITS, TORN}:
            raise DatasetError(f"{folder / FILE}: {min(stray)!r} is no side; put the file back")
        return found


def _both(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, str]:
    return {name: side if ours.get(name, side) == side else TORN for name, side in {**ours, **theirs}.items()}

"""A study without who the patient is, for roles that need not know: age, sex, pictures and findings stay.

What people typed or named files by may name the patient, too, and goes with the rest. What is drawn into a picture
stays in it.
"""

from __future__ import annotations

from dataclasses import replace

from wetread.clinic.listing import Row
from wetread.clinic.worklist import Study

KEPT_BACK = "not shown to your role"


def row(found: Row) -> Row:
    """Return a line of the worklist without the patient."""
    return replace(found, patient_name="", patient_id="")


def study(found: Study) -> Study:
    """Return a study without the patient, without identifiers, names of files and free text."""
    return replace(
        found,
        row=row(found.row),
        unnamed=True,
        study_uid="",
        birth_date=None,
        accession=None,
        images=tuple(replace(image, name=f"image {image.image[:8]}") for image in found.images),
        reviews=tuple(replace(r, note=KEPT_BACK if r.note else "") for r in found.reviews),
    )

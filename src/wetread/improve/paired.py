"""What champion and challenger said of the same studies, and what readers signed of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import store, triage
from wetread.clinic.deployments import CHALLENGER, Deployment, whose
from wetread.findings import PRESENT, UNCERTAIN
from wetread.improve import cases, consensus

Said = dict[str, Any]


@dataclass(frozen=True)
class Paired:
    """Studies that both packages analysed, and images that both looked at.

    Attributes
    ----------
    images : list of (dict, dict)
        Results of champion and challenger for the same image, refusals too.
    studies : dict of str to (dict, dict)
        What each says of a study, merged.
    patients : dict of str to str
        Study → a word for its patient.
    truth : dict of str to dict
        Study → finding → whether it is there, of those that were signed, in the last word of their first reader;
        uncertain ones are not in it.
    blind : set of str
        Those of them that were read blind.
    drew : set of str
        Those in which the challenger's word counted.
    """

    images: list[tuple[Said, Said]] = field(default_factory=list)
    studies: dict[str, tuple[Said, Said]] = field(default_factory=dict)
    patients: dict[str, str] = field(default_factory=dict)
    truth: dict[str, dict[str, bool]] = field(default_factory=dict)
    blind: set[str] = field(default_factory=set)
    drew: set[str] = field(default_factory=set)


def gather(connection: Connection, row: Deployment, champion: str, site: str, most: int) -> Paired:
    """Return what both packages said of the images that came since a stage began, the newest."""
    images, results, studies = store.instance.c, store.image_result.c, store.study.c
    here = (images.state == "stored", images.received_at >= row.since, images.site == site if site else sa.true())
    both = (
        sa.select(results.instance)
        .join(store.instance, images.id == results.instance)
        .where(*here, results.model.in_((champion, row.model)))
        .group_by(results.instance, images.received_at)
        .having(sa.func.count() == 2)
        .order_by(images.received_at.desc())
        .limit(most)
    ).subquery()
    columns = [column for column in results if column.name not in ("maps", "cautions", "caution_codes", "box")]
    found = connection.execute(
        sa.select(*columns, images.study, images.received_at, studies.site, studies.patient_id)
        .join(both, both.c.instance == results.instance)
        .join(store.instance, images.id == results.instance)
        .join(store.study, studies.id == images.study)
        .where(results.model.in_((champion, row.model)))
        .order_by(images.study, results.instance)
    ).mappings()
    sides: dict[str, tuple[dict[str, Said], dict[str, Said]]] = {}
    patients: dict[str, str] = {}
    for result in found:
        mine = sides.setdefault(result["study"], ({}, {}))[result["model"] == row.model]
        mine[result["instance"]] = dict(result)
        patients[result["study"]] = whose(result["site"], result["patient_id"], result["study"])
    pairs = [(old[image], new[image]) for old, new in sides.values() for image in sorted(old)]
    merged = {}
    for study, (old, new) in sides.items():
        said = [triage.merge([r for r in side.values() if r["suitable"]]) for side in (old, new)]
        if all(said):
            merged[study] = (said[0][0], said[1][0])
    truth, blind = _truth(connection, list(merged))
    table = store.assignment.c
    drew = sa.select(table.study).where(table.unit == row.id, table.arm == CHALLENGER)
    return Paired(pairs, merged, patients, truth, blind, set(connection.execute(drew).scalars()))


def _truth(connection: Connection, studies: Sequence[str]) -> tuple[dict[str, dict[str, bool]], set[str]]:
    """Return the last word of the first reader on each finding, by study, and which studies were read blind.

    A reader's own addendum corrects them. Another's does not: somebody adds to a report where there is cause to, often
    what a model said, so that the studies that the second reader is asked about are no fair sample; and to leave out
    what two see differently would leave out where models err. One who corrects a blind read has seen the model's word.
    """
    truth: dict[str, dict[str, bool]] = {}
    blind = set[str]()
    for start in range(0, len(studies), 500):
        for study, signed in cases.readings(connection, studies[start : start + 500]).items():
            said = consensus.first(signed).said
            truth[study] = {finding: value == PRESENT for finding, value in said.items() if value != UNCERTAIN}
            if not signed[0].anchored and said == signed[0].said:
                blind.add(study)
    return truth, blind

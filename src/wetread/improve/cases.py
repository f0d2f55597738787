"""The signed studies of a clinic, each with all that a dataset of them needs to know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from wetread.clinic import export, store, triage
from wetread.clinic.pseudonyms import Pseudonyms
from wetread.clinic.store import Store
from wetread.findings import Task
from wetread.improve import consensus
from wetread.improve.consensus import Reading
from wetread.radiograph.suitability import ADULT_AGE, Population

_COLUMNS = [column for column in store.image_result.c if column.name != "maps"]


@dataclass(frozen=True)
class Case:
    """A signed study.

    Attributes
    ----------
    study : Row
    readings : tuple of Reading
        In order of signature.
    images : list of (Row, set of str)
        Those that are displayed, with the codes of their refusals.
    models : list of dict
        What each model had said of the study before anybody signed: ``model``, ``model_name``, ``version``, ``point``,
        ``findings`` (with `image`, the id of the one that decided).
    drawn : float or None
        The share with which it was drawn for the random-audit sample; None when it was not.
    """

    study: Row[Any]
    readings: tuple[Reading, ...]
    images: list[tuple[Row[Any], set[str]]]
    models: list[dict[str, Any]]
    drawn: float | None

    def labels(self, task: Task) -> tuple[dict[str, int], frozenset[str]]:
        """Return what its readers say together, and on what they do not agree; see `consensus.labels`."""
        return consensus.labels(self.readings, task)

    def is_hard(self, labels: Mapping[str, int], disputed: frozenset[str]) -> bool:
        """Return whether a model was wrong or unsure about something that a reader answered, or readers differed."""
        calls = {"likely": 1, "unlikely": 0}
        for reading in self.readings:
            for finding, (_, call) in reading.answers.items():
                if call == "unsure" or (call in calls and labels.get(finding) == 1 - calls[call]):
                    return True
        return bool(disputed)


def served(population: Population) -> sa.ColumnElement[bool]:
    """Return which studies a model for a population speaks about: by age as `suitability.suit`; unknown ones pass."""
    age = store.study.c.age_years
    if population == "adult":
        return sa.or_(age.is_(None), age >= ADULT_AGE)
    return sa.or_(age.is_(None), age < ADULT_AGE) if population == "child" else sa.true()


def signed(database: Store, site: str | None = None, population: Population = "any") -> Iterator[Case]:
    """Yield the signed studies, in no order that means anything.

    Parameters
    ----------
    site : str, optional
        Only those of this site.
    population : {"adult", "child", "phantom", "any"}
        Only those about which a model for it speaks; see `served`.
    """
    table = store.study.c
    wanted = sa.select(table.id).where(sa.text("study.reading = 'signed'"), served(population)).order_by(table.id)
    if site is not None:
        wanted = wanted.where(table.site == site)
    with database.read() as connection:
        keys = list(connection.execute(wanted).scalars())
    for key in keys:
        with database.read() as connection:
            if case := _case(connection, key):
                yield case


def _case(connection: Connection, key: str) -> Case | None:
    table = store.study
    study = connection.execute(sa.select(table).where(table.c.id == key, table.c.reading == "signed")).first()
    signed = readings(connection, [key]).get(key, ())
    if study is None or not signed:  # opened again, or removed, while others were looked at
        return None
    images = export.images_of(connection, key)
    draw = connection.execute(sa.select(store.draw.c.share).where(store.draw.c.study == key, store.draw.c.chosen))
    models = _models(connection, [image.id for image, _ in images], signed[0].signed_at)
    return Case(study, signed, images, models, draw.scalar())


def readings(connection: Connection, studies: Sequence[str]) -> dict[str, tuple[Reading, ...]]:
    """Return what was signed of some studies and is in force, by study, in order of signature."""
    table, answers = store.review, store.review_finding
    rows = connection.execute(
        sa.select(table)
        .where(table.c.study.in_(studies), table.c.state == "signed")
        .order_by(table.c.signed_at, table.c.created_at, table.c.id)
    ).all()
    said: dict[str, dict[str, tuple[str, str | None]]] = defaultdict(dict)
    models: dict[str, dict[str, tuple[str, float]]] = defaultdict(dict)
    for row in connection.execute(sa.select(answers).where(answers.c.review.in_([row.id for row in rows]))):
        said[row.review][row.finding] = (row.answer, row.call)
        if row.model is not None and row.probability is not None:
            models[row.review][row.finding] = (row.model, row.probability)
    found: dict[str, list[Reading]] = defaultdict(list)
    for row in rows:
        own = row.own_call if row.own_call_at is not None else None
        found[row.study].append(
            Reading(
                row.id,
                row.reader,
                row.parent,
                row.anchored,
                row.signed_at,
                row.normal,
                said[row.id],
                own,
                models[row.id],
            )
        )
    return {study: tuple(each) for study, each in found.items()}


def _models(connection: Connection, images: Sequence[str], before: datetime) -> list[dict[str, Any]]:
    """Return what each model had said by then, over all images; of several versions of a model each."""
    table = store.image_result.c
    rows = connection.execute(
        sa.select(*_COLUMNS, store.instance.c.received_at)
        .join(store.instance, store.instance.c.id == table.instance)
        .where(table.instance.in_(images), table.suitable, table.at <= before)
        .order_by(table.model, table.instance)
    ).mappings()
    results = [dict(row) for row in rows]
    points = {row["model"]: row["point"] for row in results}
    return [model | {"point": points[model["model"]]} for model in triage.merge(results)]


# --- what is told of it -----------------------------------------------------------------------------------------------


def line(
    case: Case, names: Pseudonyms, task: Task, labels: Mapping[str, int], disputed: frozenset[str]
) -> dict[str, Any]:
    """Return the lineage of a study: who said what, with which model's word before them, under pseudonyms.

    Of times the year is told and no more; of findings those of the task or of a model: a reader may type anything.
    """
    images = {image.id: export.about(case.study, image, names)["image"] for image, _ in case.images}
    known = {*task.findings, *(f["finding"] for model in case.models for f in model["findings"])}
    first = next(iter(images), None)
    about = export.about(case.study, case.images[0][0], names) if first else {}
    return {
        "study": about.get("study"),
        "patient": about.get("patient"),
        "key": names.name("row", case.study.id),
        "site": about.get("site"),
        "images": sorted(images.values()),
        "drawn": case.drawn,
        "blind": consensus.is_blind(case.readings),
        "labels": {f: labels[f] for f in sorted(labels) if f in known},
        "disputed": sorted(disputed & known),
        "readings": [_reading(reading, names, known) for reading in case.readings],
        "models": [
            {
                "model": model["model"],
                "name": model["model_name"],
                "version": model["version"],
                "point": model["point"],
                "findings": {
                    f["finding"]: {
                        "probability": round(float(f["probability"]), 6),
                        "threshold": round(float(f["threshold"]), 6),
                        "call": f["call"],
                        "image": images[f["image"]],
                    }
                    for f in model["findings"]
                },
            }
            for model in case.models
        ],
    }


def _reading(reading: Reading, names: Pseudonyms, known: set[str]) -> dict[str, Any]:
    own = reading.own_call
    return {
        "reader": names.name("reader", reading.reader),
        "addendum": reading.parent is not None,
        "anchored": reading.anchored,
        "year": reading.signed_at.year,
        "normal": reading.normal,
        "own_call": None
        if own is None
        else {
            "normal": bool(own.get("normal")),
            "findings": sorted(f for f in own.get("findings", ()) if isinstance(f, str) and f in known),
        },
        "answers": {
            finding: {"answer": answer, "call": call} | _of(reading.models.get(finding))
            for finding, (answer, call) in sorted(reading.answers.items())
            if finding in known
        },
    }


def _of(model: tuple[str, float] | None) -> dict[str, Any]:
    return {} if model is None else {"model": model[0], "probability": round(model[1], 6)}

"""How right the models are, by what readers signed: sensitivity, specificity, precision, F1, AUROC, week by week.

The truth is what a reader said, which is no truth: readers miss things, too, and agree with what they were shown. So
reads are kept apart. *audit*: drawn by lot before any model had seen the study (`sample`) and read before the model's
word was shown; only these are unbiased. *blind*: the reader's own call came first, but nobody drew the study. Of both
counts that call and nothing that was answered afterwards (`own_call.labels`): what was not named is absent.
*anchored*: the model's word was shown first. Of these count the answers, and a finding that was not answered is not
known. Of each study counts the first signature and the model's newest word before it.

Intervals are of 95 %, over patients (`wetread.evaluate.clustered`). The newest `MOST` readings of a period count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import lru_cache
from math import ceil
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from wetread.clinic import export, own_call, store
from wetread.clinic.figures import Period, at_site, walk
from wetread.clinic.store import Store
from wetread.evaluate import clustered
from wetread.evaluate.intervals import Interval
from wetread.evaluate.metrics import BoolArray, FloatArray
from wetread.findings import ABSENT, HARMLESS, NORMAL, PRESENT, TASKS, Task

READS = ("audit", "blind", "anchored")
ANY = "any finding"  # whether a study shows anything at all
MOST = 5_000
DAYS = 28  # that the numbers for Prometheus are of
WEEK = timedelta(days=7)


@dataclass(frozen=True)
class Measures:
    """How right a model was; each with its interval, NaN where there is nothing to divide by."""

    sensitivity: Interval
    specificity: Interval
    precision: Interval
    f1: Interval
    auroc: Interval


NAMES = tuple(field.name for field in fields(Measures))


@dataclass(frozen=True)
class Accuracy:
    """One finding of one model in one kind of reads.

    Attributes
    ----------
    model, name : str
        SHA-256 of the package, and what it is called.
    finding : str
        `ANY`: flagged anything, and the reader saw anything.
    reads : {"audit", "blind", "anchored"}
    week : datetime or None
        When the week begins; None: the whole period.
    studies, present, flagged : int
        Of which the reader said whether it is there; of these, in which they saw it, and in which the model had
        flagged it.
    patients : int
    measures : Measures
    """

    model: str
    name: str
    finding: str
    reads: str
    week: datetime | None
    studies: int
    present: int
    flagged: int
    patients: int
    measures: Measures

    def basis(self, measure: str) -> int:
        """Return how many studies a measure rests on: an AUROC on as many as there are of the rarer kind."""
        absent = self.studies - self.present
        return {
            "sensitivity": self.present,
            "specificity": absent,
            "precision": self.flagged,
            "f1": max(self.present, self.flagged),
            "auroc": min(self.present, absent),
        }[measure]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it: null where undefined."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "measures"}
        found["week"] = self.week.isoformat() if self.week else None
        for name in NAMES:
            one: Interval = getattr(self.measures, name)
            found[name] = {key: _number(getattr(one, key)) for key in ("value", "low", "high")}
        return found


@dataclass(frozen=True, eq=False)
class _Cases:
    """What a reader and a model said of a finding [N]: is it there, was it flagged, how probable, whose study it is."""

    truth: BoolArray
    flagged: BoolArray
    score: FloatArray
    patient: NDArray[np.intp]
    week: NDArray[np.intp]
    reads: NDArray[np.str_]

    def of(self, chosen: BoolArray) -> _Cases:
        """Return some of them."""
        return _Cases(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def measures(self) -> Measures:
        """Return how right the model was on them."""
        _, patient = np.unique(self.patient, return_inverse=True)
        hit, every = self.truth & self.flagged, np.ones(len(self.truth), bool)
        return Measures(
            clustered.share(self.flagged, self.truth, patient).interval,
            clustered.share(~self.flagged, ~self.truth, patient).interval,
            clustered.share(self.truth, self.flagged, patient).interval,
            clustered.f1(hit, self.truth, self.flagged, patient).interval,
            clustered.area(self.truth, self.score, every, patient).interval,
        )


def accuracy(
    connection: Connection, site: str, period: Period, *, model: str = "", finding: str = "", weeks: bool = True
) -> list[Accuracy]:
    """Return how right models were at a site.

    Parameters
    ----------
    model, finding : str
        Of one model or finding only; empty: of all that there are.
    weeks : bool
        Also week by week, counted from the beginning of the period.
    """
    starts = [period.since + n * WEEK for n in range(ceil(period.days / 7))] if weeks else []
    found = []
    for (key, name, what), cases in _cases(connection, site, period, model, finding):
        for reads in READS:
            mine = cases.of(cases.reads == reads)
            if not len(mine.truth):
                continue
            parts = [(None, mine), *((week, mine.of(mine.week == n)) for n, week in enumerate(starts))]
            found += [
                Accuracy(
                    key, name, what, reads, week, len(part.truth), int(part.truth.sum()), int(part.flagged.sum()),
                    len(np.unique(part.patient)), part.measures(),
                )
                for week, part in parts
            ]  # fmt: skip
    return found


def ahead(database: Store, now: datetime) -> dict[str, list[Accuracy]]:
    """Count for every site what Prometheus is told, of the last `DAYS`: it must not wait for it."""
    with database.read() as connection:
        sites = list(connection.execute(sa.select(store.site.c.name)).scalars())
    found = {}
    for site in sites:
        with database.read() as connection:
            found[site] = accuracy(connection, site, Period.last(DAYS, now), finding=ANY, weeks=False)
    return found


def _cases(
    connection: Connection, site: str, period: Period, model: str, finding: str
) -> Iterator[tuple[tuple[str, str, str], _Cases]]:
    """Yield the cases of each model (id and name) and finding, in the order of their names."""
    rows = _readings(connection, site, period)
    answers: dict[str, dict[str, tuple[str, str | None]]] = defaultdict(dict)
    for row in connection.execute(_answers(site, period)):
        answers[row.review][row.finding] = row.answer, row.call
    labels = {row.id: export.labels_of({"normal": row.normal, "answers": answers[row.id]}) for row in rows}
    readings = {row.id: row for row in rows}
    whose = {row.id: row.patient_id or f"study {row.study}" for row in rows}
    codes = {patient: n for n, patient in enumerate(dict.fromkeys(whose.values()))}
    columns: dict[tuple[str, str, str], list[tuple[Any, ...]]] = defaultdict(list)
    for result in _words(connection, site, period, model, readings):
        row = readings[result.review]
        is_blind = row.own_call is not None and not row.anchored
        reads = "anchored" if not is_blind else "audit" if row.chosen else "blind"
        truth = _by_themselves(row.own_call, result) if is_blind else labels[row.id]
        of_reading = codes[whose[row.id]], (row.signed_at - period.since) // WEEK, reads
        for name, *said in _compared(truth, result):
            if finding in ("", name):
                columns[result.model_name, result.model, name].append((*said, *of_reading))
    for (name, key, what), found in sorted(columns.items(), key=lambda one: (*one[0][:2], one[0][2] != ANY, one[0][2])):
        kinds = bool, bool, np.float64, np.intp, np.intp, np.str_
        arrays = (np.array(values, kind) for values, kind in zip(zip(*found, strict=True), kinds, strict=True))
        yield (key, name, what), _Cases(*arrays)


def _by_themselves(own: Mapping[str, Any], result: Any) -> dict[str, int]:
    """Return what a reader said before they were shown a model's word, of all that this model speaks of."""
    spoken = frozenset(one["finding"] for one in result.findings)
    return own_call.labels(own, _task(spoken), spoken)


@lru_cache(64)
def _task(findings: frozenset[str]) -> Task | None:
    """Return the built-in task that has these findings; of others no tree is known here."""
    return next((task for task in TASKS.values() if findings <= set(task.findings)), None)


def _compared(labels: dict[str, int], result: Any) -> Iterator[tuple[str, bool, bool, float]]:
    """Yield each finding of which both spoke: its name, whether it is there, was flagged, and how probable it was."""
    said = {one["finding"]: one for one in result.findings if one["finding"] not in NORMAL}
    for name, one in said.items():
        if labels.get(name) in (PRESENT, ABSENT):
            yield name, labels[name] == PRESENT, bool(one["flagged"]), float(one["probability"])
    seen = any(value == PRESENT for name, value in labels.items() if name not in HARMLESS)
    normal = any(labels.get(name) == PRESENT for name in NORMAL)
    counted = [one for name, one in said.items() if name not in HARMLESS]
    if counted and seen != normal:  # neither: what was not asked may be there; both: the reader contradicts themselves
        highest = max(float(one["probability"]) for one in counted)
        score = highest if result.abnormal is None else float(result.abnormal)
        yield ANY, seen, any(one["flagged"] for one in counted), score


def _newest(site: str, period: Period) -> sa.Select[Any]:
    """Return the query for the newest first signatures of a site in a period; `state` as the index has it."""
    reviews, before = store.review.c, store.review.alias("before").c
    sooner = sa.tuple_(before.signed_at, before.id) < sa.tuple_(reviews.signed_at, reviews.id)
    again = sa.select(before.id).where(  # of a study that was opened again: its reader has seen what was signed
        before.study == reviews.study, before.state == "signed", before.parent.is_(None), sooner
    )
    return (
        sa.select(reviews.id)
        .join(store.study, store.study.c.id == reviews.study)
        .where(
            sa.text("review.state = 'signed'"), reviews.parent.is_(None), period.holds(reviews.signed_at),
            at_site(site, store.study), ~again.correlate(store.review).exists(),
        )
        .order_by(reviews.signed_at.desc(), reviews.id)
        .limit(MOST)
    )  # fmt: skip


def _readings(connection: Connection, site: str, period: Period) -> Sequence[Any]:
    walk(connection)
    reviews, studies, newest = store.review.c, store.study.c, _newest(site, period).subquery()
    return connection.execute(
        sa.select(
            reviews.id, reviews.study, reviews.normal, reviews.anchored, reviews.own_call, reviews.signed_at,
            studies.patient_id,
            sa.func.coalesce(store.draw.c.chosen, sa.false()).label("chosen"),
        )
        .select_from(newest)
        .join(store.review, reviews.id == newest.c.id)
        .join(store.study, studies.id == reviews.study)
        .outerjoin(store.draw, store.draw.c.study == reviews.study)
    ).all()  # fmt: skip


def _answers(site: str, period: Period) -> sa.Select[Any]:
    table, newest = store.review_finding, _newest(site, period).subquery()
    return sa.select(table).join(newest, newest.c.id == table.c.review)


def _words(connection: Connection, site: str, period: Period, model: str, readings: dict[str, Any]) -> Iterable[Any]:
    """Return what each model said of each reading: its newest word before the signature, or else its first after."""
    results, reviews, newest = store.study_result.c, store.review.c, _newest(site, period).subquery()
    wanted = (
        sa.select(
            reviews.id.label("review"), results.model, results.model_name, results.findings, results.abnormal,
            results.at,
        )
        .select_from(newest)
        .join(store.review, reviews.id == newest.c.id)
        .join(store.study_result, results.study == reviews.study)
        .order_by(results.at, results.id)
    )  # fmt: skip
    if model:
        wanted = wanted.where(results.model == model)
    found: dict[tuple[str, str], Any] = {}
    for row in connection.execute(wanted):
        key = row.review, row.model
        if row.at <= readings[row.review].signed_at or key not in found:
            found[key] = row
    return found.values()


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value

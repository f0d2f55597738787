"""What a check for drift compares: the images and the signed studies of two windows, one of each patient."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from pydantic import Field
from sqlalchemy.engine import Connection

from wetread.clinic import export, store, traits
from wetread.clinic.figures import Period
from wetread.evaluate import shift
from wetread.evaluate.metrics import BoolArray, FloatArray
from wetread.evaluate.shift import Channel
from wetread.findings import ABSENT, PRESENT
from wetread.improve.policy import Policy
from wetread.radiograph.exposure import Exposure

MOST = 2_000  # images of either window; more prove smaller effects, which do not matter

GROUPS = "device", "station", "source"
PERSON = "by hand"  # the sender of what a person uploads
Groups = dict[str, NDArray[np.str_]]

Share = Annotated[float, Field(gt=0, le=1)]


class Limits(Policy):
    """The smallest effect of each kind that matters; those of distances and shares are 0 to 1."""

    pixels: Share = 0.25
    device: Share = 0.2
    refused: Share = 0.05
    features: Annotated[float, Field(gt=0, le=1.41)] = 0.1
    scores: Share = 0.2
    labels: Share = 0.1
    calibration: Share = 0.1


@dataclass(frozen=True, eq=False)
class Images:
    """Images of two windows, one of each patient.

    Attributes
    ----------
    after : bool array, shape [N]
        Which are of the newer window.
    groups : dict of str to str array, shape [N]
        Which device, station (one of several devices of a model) and sender; empty where nobody says.
    figures : dict of str to float64 array, shape [N]
        Of the exposure.
    refused : bool array, shape [N]
    features : float64 array, shape [N, D]
        Rows of NaN where there are none.
    scores : dict of str to float64 array, shape [N]
        Probability of each finding, NaN where the image was refused.
    """

    after: BoolArray
    groups: Groups
    figures: dict[str, FloatArray]
    refused: BoolArray
    features: FloatArray
    scores: dict[str, FloatArray]

    def channels(self, limits: Limits, of: BoolArray) -> Iterator[Channel]:
        """Yield what may have changed among the images `of` [N]; the mix of devices only among all."""
        for name, values in self.figures.items():
            yield _channel("pixels", name, shift.distance, values[of], limits.pixels)
        if of.all():
            yield Channel("device", "mix", shift.mix(self.groups["device"]), limits.device, of)
        yield _channel("refused", "share", shift.difference, self.refused[of].astype(float), limits.refused)
        if self.features.shape[1]:
            known = np.asarray(~np.isnan(self.features[of, 0]))
            yield Channel("features", "discrepancy", shift.discrepancy(self.features[of]), limits.features, known)
        for finding, values in self.scores.items():
            yield _channel("scores", finding, shift.distance, values[of], limits.scores)


@dataclass(frozen=True, eq=False)
class Reviews:
    """Signed studies of two windows, one of each patient: what readers said, 0 or 1 [N], and the model, NaN if not."""

    after: BoolArray
    groups: Groups
    labels: dict[str, FloatArray]
    expected: dict[str, FloatArray]

    def channels(self, limits: Limits, of: BoolArray) -> Iterator[Channel]:
        """Yield what may have changed among the studies `of` [N]: labels, and how far the model is off on average."""
        for finding, said in self.labels.items():
            yield _channel("labels", finding, shift.difference, said[of], limits.labels)
            off = said - self.expected[finding]
            yield _channel("calibration", finding, shift.difference, off[of], limits.calibration)


def gather(connection: Connection, site: str, model: str, reference: Period, window: Period) -> Images:
    """Return the images of two windows that a model saw: of each patient one."""
    rows = _images(connection, site, model, reference, window)
    size = max((len(traits.unpack(row.features)) for _, row in rows if row.features), default=0)
    features = np.full((len(rows), size), np.nan)
    for place, (_, row) in enumerate(rows):
        if row.features:
            features[place] = traits.unpack(row.features)
    scores = [{f["finding"]: f["probability"] for f in row.findings} for _, row in rows]
    figures = [field.name for field in fields(Exposure)]
    return Images(
        np.array([new for new, _ in rows], bool),
        _groups(connection, rows),
        {name: np.array([(row.exposure or {}).get(name, np.nan) for _, row in rows], float) for name in figures},
        np.array([not row.suitable for _, row in rows], bool),
        features,
        _columns(scores),
    )


def signed(connection: Connection, site: str, model: str, reference: Period, window: Period) -> Reviews:
    """Return the signed studies of two windows: what was said of each finding, and the probability that the model gave.

    Uncertain answers count as none.
    """
    rows = _studies(connection, site, model, reference, window)
    said, expected = [], []
    for _, row in rows:
        labels = export.labels_of(export.said(connection, row))
        said.append({f: float(value) for f, value in labels.items() if value in (PRESENT, ABSENT)})
        expected.append({f["finding"]: f["probability"] for f in row.findings})
    of_model = _columns(expected)
    of_reader = {name: values for name, values in _columns(said).items() if name in of_model}
    after, of_model = np.array([new for new, _ in rows], bool), {name: of_model[name] for name in of_reader}
    return Reviews(after, _groups(connection, rows), of_reader, of_model)


def _images(connection: Connection, site: str, model: str, reference: Period, window: Period) -> list[tuple[bool, Any]]:
    images, trait, results, studies = store.instance.c, store.image_trait.c, store.image_result.c, store.study.c
    joined = (
        store.instance.join(store.study, studies.id == images.study)
        .join(store.image_result, sa.and_(results.instance == images.id, results.model == model))
        .outerjoin(store.image_trait, sa.and_(trait.instance == images.id, trait.model == model))
    )  # fmt: skip
    there = (
        sa.select(images.received_at, studies.patient_id, images.study, images.id)
        .select_from(joined)
        .where(images.site == site, _in_either(images.received_at, reference, window), images.state == "stored")
    )
    drawn = one_each(connection.execute(there), window)
    wanted = (
        sa.select(
            images.id,
            *(images[name] for name in GROUPS),
            trait.exposure,
            trait.features,
            results.suitable,
            results.findings,
        )
        .select_from(joined)
        .where(images.id.in_(drawn))
        .order_by(images.id)
    )
    return [(drawn[row.id], row) for row in connection.execute(wanted)]


def _studies(
    connection: Connection, site: str, model: str, reference: Period, window: Period
) -> list[tuple[bool, Any]]:
    studies, reviews, results = store.study.c, store.review.c, store.study_result.c
    newest = sa.select(sa.func.max(reviews.signed_at)).where(reviews.study == studies.id, reviews.state == "signed")
    result = sa.select(sa.func.max(results.at)).where(results.study == studies.id, results.model == model)
    joined = (
        store.study.join(store.review, sa.and_(
            reviews.study == studies.id, reviews.state == "signed",
            reviews.signed_at == newest.correlate(store.study).scalar_subquery()))
        .join(store.study_result, sa.and_(
            results.study == studies.id, results.model == model,
            results.at == result.correlate(store.study).scalar_subquery()))
    )  # fmt: skip
    there = (
        sa.select(studies.received_at, studies.patient_id, studies.id, studies.id)
        .select_from(joined)
        .where(studies.site == site, _in_either(studies.received_at, reference, window), studies.reading == "signed")
    )
    drawn = one_each(connection.execute(there), window)
    images = store.instance.c
    one = sa.select(sa.func.min(images.id)).where(images.study == studies.id, images.state == "stored")
    wanted = (
        sa.select(store.review, results.findings, *(images[name] for name in GROUPS))
        .select_from(joined.outerjoin(store.instance, images.id == one.correlate(store.study).scalar_subquery()))
        .where(studies.id.in_(drawn))
        .order_by(studies.id)
    )
    return [(drawn[row.study], row) for row in connection.execute(wanted)]


def _groups(connection: Connection, rows: Sequence[tuple[bool, Any]]) -> Groups:
    """Return the groups of rows; who uploads by hand is no name in a report."""
    groups = {name: np.array([getattr(row, name) or "" for _, row in rows], np.str_) for name in GROUPS}
    people = list(connection.execute(sa.select(store.account.c.name)).scalars())
    sender = groups["source"]
    return groups | {"source": np.where(np.isin(sender, people), PERSON, sender)}


def _in_either(moment: Any, reference: Period, window: Period) -> sa.ColumnElement[bool]:
    return sa.or_(reference.holds(moment), window.holds(moment))


def one_each(rows: Iterable[Any], window: Period) -> dict[str, bool]:
    """Draw one of each patient over both windows, at most `MOST` of either; return which are of the newer.

    Rows are moment, patient, study and id. Whoever comes often stands in either window as often as chance has it: with
    a window preferred, it would be fuller of them than the other though nothing changed.
    """
    drawn: dict[str, tuple[bytes, bool, str]] = {}
    for at, patient, study, key in rows:
        who = patient or f"study {study}"  # without an identifier nobody knows whom it belongs to
        one = (_lot(key), at >= window.since, key)
        drawn[who] = min(drawn.get(who, one), one)
    found: dict[str, bool] = {}
    for new in (False, True):
        # By the lot of the patient: that of the image is small where there were many to draw from.
        mine = sorted((_lot(who), key) for who, (_, of, key) in drawn.items() if of is new)
        found |= {key: new for _, key in mine[:MOST]}
    return found


def _lot(word: str) -> bytes:
    return hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()


def _channel(kind: str, name: str, effect: Any, values: FloatArray, limit: float) -> Channel:
    return Channel(kind, name, effect(values), limit, ~np.isnan(values))


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, FloatArray]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: np.array([row.get(name, np.nan) for row in rows], float) for name in names}

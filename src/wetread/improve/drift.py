"""Does what comes in, or what is said of it, still look as it did? Two windows of time compared.

The *reference* begins when the model came into use at the site, unless the policy names another beginning; the *window*
is the newest whole one. Compared are, over all and by each device, station and sender that has enough: exposure and
size, the mix of devices, what is refused, the model's features and scores; and of what readers signed the frequency of
each finding and the model's calibration. An alarm wants images enough, more than chance over all that is compared, and
an effect that matters (`wetread.evaluate.shift`). It suggests where to look; it changes nothing.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from pydantic import AwareDatetime, Field
from sqlalchemy.engine import Connection

from wetread.clinic import audit, store
from wetread.clinic.figures import Period
from wetread.clinic.store import Store
from wetread.evaluate import shift
from wetread.evaluate.metrics import BoolArray
from wetread.evaluate.shift import Change, Channel
from wetread.improve.policy import Policy
from wetread.improve.windows import Images, Limits, Reviews, gather, signed

ALL, REVIEWS, UNSAID, MORE = "all devices", "reviews", "device unknown", "more groups"
KINDS = {"device": "", "station": "station ", "source": "sender "}
OF = f"{REVIEWS} of "
_NAMED = 10  # groups of which there are too few and that are named all the same
_FEW = 6  # of them in the reason
DRIFT, QUIET, UNKNOWN = "drift", "quiet", "unknown"
_STEPS = 7  # a window begins and ends at a seventh of its length, so that a second check finds the first
_NAMESPACE = uuid.UUID("6f1f3f0e-6d0c-4b9e-9f0b-3c1f5c1d2a77")
_LOOK = {
    "pixels": "exposure, processing or size of the images: ask who serves the device",
    "device": "which devices send: a new one may need a look at its first images, or a threshold of its own",
    "refused": "what is refused, by code, on the model's page",
    "features": "images that the model sees otherwise than before, whatever the reason: look at some of the newest",
    "scores": "the model's scores: patients, images or both are others",
    "labels": "how often readers see a finding: the patients, or how readers read",
    "calibration": "how far the model's probabilities are right: recalibrate, or train anew on what was signed",
}


class DriftPolicy(Policy):
    """When drift is an alarm; see docs/drift.md."""

    window_days: float = Field(7.0, ge=1e-5, le=3650)
    reference_days: float = Field(28.0, ge=1e-5, le=3650)
    reference_from: AwareDatetime | None = None
    least_images: int = Field(100, ge=20)
    least_reviews: int = Field(50, ge=20)
    alpha: float = Field(0.01, gt=0, le=0.2)
    most_groups: int = Field(12, ge=0, le=100)
    resamples: int = Field(999, ge=99, le=20_000)
    seed: int = Field(0, ge=0)
    limits: Limits = Limits()


@dataclass(frozen=True)
class Source:
    """What was found of one device, station or sender, of all of them, or of the reviews.

    Attributes
    ----------
    name : str
    before, after : int
        Patients.
    changes : tuple of Change
        Empty where there were too few to compare, or more groups than the policy allows.
    alarms : tuple of str
    few : tuple of str
        What could not be compared of an otherwise compared source.
    """

    name: str
    before: int
    after: int
    changes: tuple[Change, ...]
    alarms: tuple[str, ...]
    few: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What one check found.

    Attributes
    ----------
    id, site, model, model_name : str
    reference, window : Period
    verdict : {"drift", "quiet", "unknown"}
    reason : str
    sources : tuple of Source
    new_devices : tuple of str
        Seen in the window and not in the reference.
    look : tuple of str
        Where to look, by kind of alarm.
    alpha : float
        The chance of any false alarm that was allowed, over all sources.
    """

    id: str
    site: str
    model: str
    model_name: str
    reference: Period
    window: Period
    verdict: str
    reason: str
    sources: tuple[Source, ...]
    new_devices: tuple[str, ...]
    look: tuple[str, ...]
    alpha: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        found = asdict(self)
        for name in ("reference", "window"):
            found[name] = {key: value.isoformat() for key, value in found[name].items()}
        return found


def check(
    database: Store, site: str, policy: DriftPolicy, *, until: datetime | None = None, actor: str = "command line"
) -> list[Report]:
    """Compare the newest window with the reference for each model that saw images of it, and keep what was found.

    A window that was checked by the same policy is not checked again: what was found then is returned, and nobody is
    alarmed twice.
    """
    window = _window(until or store.now(), policy)
    found = []
    with database.read() as connection:
        models = _models(connection, site, window)
    for model, name, first in models:
        start = policy.reference_from or _floor(first, policy)
        whole = start + timedelta(days=policy.reference_days)
        reference = Period(start, max(start, min(whole, window.since)))
        key = str(uuid.uuid5(_NAMESPACE, f"{site} {model} {reference} {window} {policy.model_dump_json()}"))
        table = store.drift_check
        with database.read() as connection:
            there = connection.execute(sa.select(table.c.report).where(table.c.id == key)).scalar()
            if there is not None:
                found.append(from_dict(there))
                continue
            report = judge(connection, key, site, model, name, reference, window, policy)
        with database.write() as connection:
            if connection.execute(sa.select(table.c.id).where(table.c.id == key)).first() is None:
                _keep(connection, report, actor)
        found.append(report)
    return found


def judge(
    connection: Connection,
    key: str,
    site: str,
    model: str,
    name: str,
    reference: Period,
    window: Period,
    policy: DriftPolicy,
) -> Report:
    """Compare two windows of one model at one site."""
    images = gather(connection, site, model, reference, window)
    sources = compare(images, signed(connection, site, model, reference, window), policy)
    kinds = list(dict.fromkeys(alarm.split(":")[0] for source in sources for alarm in source.alarms))
    before, now = (set(images.groups["device"][which].tolist()) for which in (~images.after, images.after))
    verdict, reason = _verdict(sources, reference, policy)
    return Report(
        key, site, model, name, reference, window, verdict, reason, sources,
        tuple(sorted(filter(None, now - before))), tuple(f"{kind}: {_LOOK[kind]}" for kind in kinds), policy.alpha,
    )  # fmt: skip


def compare(images: Images, reviews: Reviews, policy: DriftPolicy) -> tuple[Source, ...]:
    """Compare all images, all reviews, and those of each device, station and sender; share alpha among them.

    What has too few, or is one of more groups than the policy allows, is a source without changes.
    """
    families = [
        *_families(ALL, "", images, policy.limits, policy.least_images, policy.most_groups),
        *_families(REVIEWS, OF, reviews, policy.limits, policy.least_reviews, policy.most_groups),
    ]
    alpha = policy.alpha / max(1, sum(bool(family.channels) for family in families))
    resamples = max(policy.resamples, math.ceil(2 / alpha) - 1)
    sources = []
    for name, after, channels, least in families:
        changes = shift.compare(channels, after, least=least, resamples=resamples, seed=policy.seed)
        alarms = tuple(f"{c.kind}: {c.name}" for c in changes if c.alarms(alpha))
        told = {(c.kind, c.name) for c in changes}
        few = tuple(f"{c.kind}: {c.name}" for c in channels if (c.kind, c.name) not in told)
        sources.append(Source(name, int((~after).sum()), int(after.sum()), tuple(changes), alarms, few))
    return tuple(sources)


class _Family(NamedTuple):
    """What is tested together: which are of the newer window, and the channels; none where it is left out."""

    name: str
    after: BoolArray
    channels: Sequence[Channel]
    least: int


def _families(whole: str, of: str, data: Images | Reviews, limits: Limits, least: int, most: int) -> Iterator[_Family]:
    """Yield all of `data`, then the largest groups that have enough, then the others, of which only some are named."""
    every = np.ones(len(data.after), bool)
    enough = _least(data.after) >= least
    yield _Family(whole, data.after, list(data.channels(limits, every)) if enough else [], least)
    if not enough:
        return  # neither is there of any part
    groups: list[tuple[int, str, BoolArray]] = []
    seen = set[bytes]()
    for kind, names in data.groups.items():
        for name in np.unique(names).tolist():
            mask = names == name
            known = name or kind == "device"  # that nobody says who sent it is no sender
            if known and not mask.all() and (images := mask.tobytes()) not in seen:
                seen.add(images)
                title = f"{KINDS[kind]}{name}" if name else UNSAID
                groups.append((_least(data.after[mask]), f"{of}{title}", mask))
    groups.sort(key=lambda group: (-group[0], -group[2].sum()))
    tested = sum(size >= least for size, *_ in groups[:most])
    for _, name, mask in groups[:tested]:
        yield _Family(name, data.after[mask], list(data.channels(limits, mask)), least)
    for _, name, mask in groups[tested : tested + _NAMED]:
        yield _Family(name, data.after[mask], [], least)
    if rest := groups[tested + _NAMED :]:
        others = np.any([mask for *_, mask in rest], axis=0)
        yield _Family(f"{of}{len(rest)} {MORE}", data.after[others], [], least)


def latest(connection: Connection, site: str, count: int = 100) -> list[dict[str, Any]]:
    """Return the newest reports of a site as JSON has them, the newest first."""
    table = store.drift_check.c
    rows = connection.execute(
        sa.select(table.report).where(table.site == site).order_by(table.at.desc(), table.id).limit(count)
    )
    return list(rows.scalars())


def from_dict(found: Mapping[str, Any]) -> Report:
    """Return a report that was kept."""
    periods = {
        name: Period(*(datetime.fromisoformat(found[name][key]) for key in ("since", "until")))
        for name in ("reference", "window")
    }
    sources = tuple(
        Source(
            **{
                **one,
                "changes": tuple(Change(**c) for c in one["changes"]),
                "alarms": tuple(one["alarms"]),
                "few": tuple(one.get("few", ())),
            }
        )
        for one in found["sources"]
    )
    lists = {name: tuple(found[name]) for name in ("new_devices", "look")}
    return Report(**{**found, **periods, **lists, "sources": sources})


def _models(connection: Connection, site: str, window: Period) -> list[tuple[str, str, datetime]]:
    """Return the models that were given images of a window at a site: id, name, and when the first came.

    An image that could not be read counts in the window, and the first is one of which something was measured.
    """
    images, trait, results = store.instance.c, store.image_trait.c, store.image_result.c
    first: sa.ColumnElement[Any] = sa.type_coerce(sa.func.min(images.received_at), store.Moment())
    joined = store.image_trait.join(store.instance, images.id == trait.instance)
    given = (
        sa.select(results.model)
        .join(store.instance, images.id == results.instance)
        .where(images.site == site, window.holds(images.received_at))
        .distinct()
    )
    found = []
    for model in sorted(connection.execute(given).scalars()):
        since = connection.execute(
            sa.select(first).select_from(joined).where(images.site == site, trait.model == model)
        ).scalar_one()
        if since is None:
            continue
        name = connection.execute(sa.select(results.model_name).where(results.model == model).limit(1)).scalar() or ""
        found.append((model, name, since))
    return found


def _least(after: BoolArray) -> int:
    return int(min(after.sum(), (~after).sum()))


def _window(until: datetime, policy: DriftPolicy) -> Period:
    end = _floor(until, policy)
    return Period(end - timedelta(days=policy.window_days), end)


def _floor(moment: datetime, policy: DriftPolicy) -> datetime:
    step = timedelta(days=policy.window_days / _STEPS).total_seconds()
    return datetime.fromtimestamp(math.floor(moment.timestamp() / step) * step, UTC)


def _verdict(sources: Sequence[Source], reference: Period, policy: DriftPolicy) -> tuple[str, str]:
    if alarms := [f"{alarm} ({source.name})" for source in sources for alarm in source.alarms]:
        return DRIFT, "; ".join(alarms)
    whole = timedelta(days=policy.reference_days)
    if reference.until - reference.since < whole:
        return UNKNOWN, f"the reference is not whole before {(reference.since + whole).isoformat(timespec='minutes')}"
    if not any(source.changes for source in sources):
        few = sources[0]
        return UNKNOWN, f"{few.before} and {few.after} patients' images, {policy.least_images} of each wanted"
    found = "nothing that matters and is more than chance"
    left = [*(source.name for source in sources if not source.changes),
            *(f"{name} ({source.name})" for source in sources if source.changes for name in source.few)]  # fmt: skip
    if left:
        rest = f" and {len(left) - _FEW} more" if len(left) > _FEW else ""
        found += f"; too little to say of {', '.join(left[:_FEW])}{rest}"
    return QUIET, found


def _keep(connection: Connection, report: Report, actor: str) -> None:
    values = {"id": report.id, "site": report.site, "model": report.model, "at": store.now(),
              "since": report.window.since, "until": report.window.until, "verdict": report.verdict}  # fmt: skip
    connection.execute(store.drift_check.insert().values(**values, report=report.to_dict()))
    if report.verdict == DRIFT:
        detail = {"model": report.model, "what": report.reason, "since": report.window.since.isoformat()}
        audit.record(connection, report.site, actor, "drift.found", report.id, detail)
        store.emit(connection, "drift.found", report.site, None, {"model": report.model, "what": report.reason})

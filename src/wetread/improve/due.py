"""Is it time to train anew? What has happened since the last time, and what a policy makes of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic import Field
from sqlalchemy.engine import Connection

from wetread.clinic import deployments, store
from wetread.clinic.deployments import Deployment
from wetread.improve import cases
from wetread.improve.drift import DRIFT
from wetread.improve.policy import Policy

_DAY = 86_400.0


class When(Policy):
    """The table `[when]`: any of these makes it due, 0 or false never does."""

    reviews: int = Field(500, ge=0)  # studies signed since the last time
    drift: bool = True  # an alarm since the last time
    age_days: float = Field(0.0, ge=0)  # of the champion
    every_days: float = Field(0.0, ge=0)  # since the last time
    least_reviews: int = Field(50, ge=1)  # without so many there is nothing to learn, whatever else


@dataclass(frozen=True)
class Facts:
    """What has happened.

    Attributes
    ----------
    at : datetime
    champion : str or None
        SHA-256 of the package in service.
    champion_since : datetime or None
    last : datetime or None
        When the last training began.
    reviews : int
        Studies that were signed for the first time since then, of patients whom the slot serves. An addendum to an
        older one is learnt from, but does not make it due.
    drift : tuple of str
        Reasons of the alarms since then, newest first.
    """

    at: datetime
    champion: str | None
    champion_since: datetime | None
    last: datetime | None
    reviews: int
    drift: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return them as JSON has them."""
        found = asdict(self)
        return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in found.items()}


@dataclass(frozen=True)
class Due:
    """Whether it is time, and each reason for and against, in words."""

    due: bool
    reasons: tuple[str, ...]


def champion(connection: Connection, site: str, slot: str) -> Deployment | None:
    """Return what serves a slot at a site."""
    found = deployments.slots(deployments.history(connection, site), site).get(slot)
    return found.champion if found else None


def challenger(connection: Connection, site: str, slot: str) -> str:
    """Return what challenges in a slot at a site, in words; empty when nothing does."""
    found = deployments.slots(deployments.history(connection, site), site).get(slot)
    return found.challenger.label if found and found.challenger else ""


def facts(connection: Connection, site: str, slot: str, last: datetime | None, now: datetime) -> Facts:
    """Return what has happened at a site, or `EVERYWHERE`, since the last training of a slot."""
    serving, reviews, checks = champion(connection, site, slot), store.review.c, store.drift_check.c
    of_slot = cases.served(deployments.population_of(slot))
    signed = (
        sa.select(reviews.study)
        .join(store.study, store.study.c.id == reviews.study)
        .where(reviews.state == "signed", store.study.c.reading == "signed", of_slot)
        .group_by(reviews.study)
    )
    alarms = sa.select(checks.report).where(checks.verdict == DRIFT).order_by(checks.at.desc())
    if site != deployments.EVERYWHERE:
        signed, alarms = signed.where(store.study.c.site == site), alarms.where(checks.site == site)
    if serving is not None:
        alarms = alarms.where(checks.model == serving.model)
    if last is not None:
        signed, alarms = signed.having(sa.func.min(reviews.signed_at) > last), alarms.where(checks.at > last)
    return Facts(
        now,
        serving.model if serving else None,
        serving.since if serving else None,
        last,
        int(connection.execute(sa.select(sa.func.count()).select_from(signed.subquery())).scalar_one()),
        tuple(report["reason"] for report in connection.execute(alarms.limit(20)).scalars()),
    )


def judge(found: Facts, when: When) -> Due:
    """Say whether it is time."""
    since = "since the last training" if found.last else "so far"
    due: list[str] = []
    idle: list[str] = []

    def weigh(is_due: bool, text: str) -> None:
        (due if is_due else idle).append(text)

    if when.reviews:
        weigh(found.reviews >= when.reviews, f"{found.reviews} studies signed {since}, due from {when.reviews}")
    if when.drift:
        text = f"drift: {found.drift[0]}" if found.drift else f"no alarm of drift {since}"
        weigh(bool(found.drift), text)
    if when.age_days and found.champion_since:
        age = (found.at - found.champion_since).total_seconds() / _DAY
        weigh(age >= when.age_days, f"the champion serves for {age:.1f} days, due from {when.age_days:g}")
    if when.every_days:
        passed = (found.at - found.last).total_seconds() / _DAY if found.last else None
        text = f"last trained {passed:.1f} days ago" if passed is not None else "never trained here"
        weigh(passed is None or passed >= when.every_days, f"{text}, due every {when.every_days:g}")
    if found.reviews < when.least_reviews:
        few = f"only {found.reviews} studies signed {since}: with fewer than {when.least_reviews} nothing is learnt"
        return Due(False, (few, *due, *idle))
    return Due(bool(due), tuple(due + idle))

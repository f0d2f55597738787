"""Does AI's order of the list help? Half of the shifts in AI's order, half by arrival, and what came of it.

The unit is the block of site and shift (`clinic.experiments`): studies of one shift wait behind each other, so every
interval is of blocks and not of studies. Blocks are independent as far as no backlog lasts from one to the next; see
docs/experiment.md for what it costs where it does. The number of blocks is set before the first. Guards stop the
experiment when critical findings are missed or wait too long; nothing else is decided before its end.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import sqlalchemy as sa
from pydantic import AfterValidator, Field, model_validator
from sqlalchemy.engine import Connection

from wetread.clinic import audit, deployments, experiments, store, takeup
from wetread.clinic.experiments import AI, ARRIVAL, Experiment
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import ConfigError, ConflictError, WetreadError
from wetread.evaluate import clustered
from wetread.evaluate.intervals import Interval, wilson
from wetread.evaluate.metrics import FloatArray
from wetread.findings import FINDINGS, NORMAL
from wetread.improve.experiment_studies import Study, studies
from wetread.improve.policy import Policy
from wetread.infer.remote import local_name
from wetread.model.package import Package

Ended = Literal["complete", "guard", "person"]
COMPLETE = "as many blocks as were planned"


def _shift(text: str) -> str:
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", text):
        raise ValueError("write hours and minutes, such as 07:00")
    return text


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("not a time zone; write one such as Europe/Berlin") from None
    return name


def _length(minutes: float) -> float:
    if minutes and not 0.01 <= minutes <= 100_000:
        raise ValueError("write 0.01 to 100,000 minutes, or leave it out and give shifts")
    return minutes


class Guards(Policy):
    """The table `[guards]`: beyond any of these the experiment ends; each is judged by its interval."""

    missed: float = Field(0.25, gt=0, le=1)  # share of critical studies, as signed, in which AI had flagged none of it
    wait_minutes: float = Field(240.0, gt=0)  # of critical studies until signed, in either arm: what `late` counts
    late: float = Field(0.1, gt=0, le=1)  # share of them that waits longer
    least: int = Field(20, ge=5)  # critical studies in an arm before a guard speaks


class Design(Policy):
    """An experiment, as it is written down before it begins; see docs/experiment.md."""

    blocks: int = Field(ge=4, le=100_000, multiple_of=2)
    shifts: tuple[Annotated[str, AfterValidator(_shift)], ...] = ()
    zone: Annotated[str, AfterValidator(_zone)] = "UTC"
    block_minutes: Annotated[float, AfterValidator(_length)] = 0.0  # instead of shifts
    # Studies that come so soon after a change of order count in neither arm.
    washout_minutes: float = Field(0.0, ge=0, le=100_000)
    # A study with any of these is critical: the primary outcome.
    findings: tuple[str, ...] = Field(("Pneumothorax",), min_length=1)
    guards: Guards = Guards()

    @model_validator(mode="after")
    def _one_kind(self) -> Design:
        if bool(self.shifts) == bool(self.block_minutes):
            raise ValueError("give either shifts, such as ['07:00', '19:00'], or block_minutes")
        if len(set(self.shifts)) != len(self.shifts):
            raise ValueError("a shift begins twice")
        return self


def blocks_needed(sd: float, effect: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Return how many blocks, both arms together, show an effect.

    Parameters
    ----------
    sd : float
        Standard deviation of the blocks' mean waits, in minutes.
    effect : float
        The smallest difference between the arms' means that matters, in minutes.
    power : float
        The chance to show it, two-sided at `alpha`.

    Notes
    -----
    ``n = 2 (z[1 - alpha/2] + z[power])^2 (sd / effect)^2`` blocks in each arm.
    """
    z = NormalDist().inv_cdf
    each = 2 * (z(1 - alpha / 2) + z(power)) ** 2 * (sd / effect) ** 2
    return 2 * max(2, math.ceil(each))


# --- begin and end ----------------------------------------------------------------------------------------------------


def known(database: Store, data: Path, settings: Settings, site: str) -> frozenset[str]:
    """Return the findings of the models that are deployed at a site or that the settings name, beside those built in.

    A package that cannot be read now adds none.
    """
    with database.read() as connection:
        rows = deployments.history(connection, site)
    found: set[str] = set()
    for key in dict.fromkeys(row.model for row in rows if row.until is None):
        with suppress(WetreadError, OSError):
            found.update(takeup.find(key, data, settings).task.findings)
    for name in settings.models:
        with suppress(WetreadError, OSError):
            found.update(Package.open(local_name(name), data).task.findings)
    return frozenset(found)


def start(
    database: Store, site: str, design: Design, actor: str, *, known: frozenset[str] = frozenset()
) -> tuple[Experiment, bool]:
    """Begin an experiment at a site; return it, and whether it is a new one.

    While one of the same design is under way nothing changes; once that has ended another begins, with blocks and a
    coin of its own.

    Parameters
    ----------
    known : frozenset of str
        Findings beside those of the tasks that are built in, see `known`.

    Raises
    ------
    ConfigError
        For a critical finding that no task or model knows: nothing would ever be critical, and no guard would speak.
    ConflictError
        When another one is under way there.
    """
    names = sorted({*FINDINGS, *known} - NORMAL)
    if strange := [finding for finding in design.findings if finding not in names]:
        raise ConfigError(f"findings: {strange[0]!r} is of no task and of no model here; known: {', '.join(names)}")
    values = design.model_dump(mode="json")
    with database.write() as connection:
        store.ensure_site(connection, site)
        there = experiments.running(connection, site)
        if there is not None and there.over(store.now()):
            _end(connection, there, "complete", COMPLETE, actor)
            there = None
        if there is not None:
            if there.plan == values:
                return there, False
            since = f"{there.started_at:%Y-%m-%d}"
            raise ConflictError(f"site {site}: an experiment is under way since {since}; stop it first")
        key, salt = store.new_id(), secrets.token_hex(8)
        connection.execute(store.experiment.insert().values(
            id=key, site=site, plan=values, salt=salt, actor=actor, started_at=store.now(), reason=""))  # fmt: skip
        audit.record(connection, site, actor, "experiment.started", key, {"plan": values})
        store.emit(connection, "experiment.started", site, None, {"experiment": key})
        found = experiments.running(connection, site)
        assert found is not None
        return found, True


def stop(database: Store, site: str, reason: str, actor: str) -> tuple[Experiment, bool]:
    """End the experiment of a site: the list is AI's again within seconds; return it, and whether it ended just now.

    When none is under way, the newest one keeps how and why it ended.

    Raises
    ------
    ConflictError
        When there never was one.
    """
    with database.write() as connection:
        there = experiments.running(connection, site)
        if there is None:
            return find(connection, site), False
        if there.over(store.now()):
            return _end(connection, there, "complete", COMPLETE, actor), True
        return _end(connection, there, "person", reason, actor), True


def watch(database: Store, site: str, actor: str) -> tuple[Experiment, list[str]] | None:
    """End the experiment of a site when it is over or a guard speaks; return it and why, None when there is none."""
    with database.read() as connection:
        there = experiments.running(connection, site)
        if there is None:
            return None
        over = there.over(store.now())
        breaches = [] if over else guard(there, studies(connection, there))
    if not (over or breaches):
        return there, []
    reasons = breaches or [COMPLETE]
    with database.write() as connection:
        now = experiments.running(connection, site)
        if now is None or now.id != there.id:
            return there, reasons  # somebody else was faster
        return _end(connection, there, "guard" if breaches else "complete", "; ".join(reasons), actor), reasons


def _end(connection: Connection, there: Experiment, how: Ended, reason: str, actor: str) -> Experiment:
    table = store.experiment
    values = {"ended_at": store.now(), "ended": how, "reason": reason[:1000]}
    connection.execute(table.update().where(table.c.id == there.id).values(values))
    audit.record(connection, there.site, actor, "experiment.ended", there.id, {"how": how, "reason": reason[:1000]})
    store.emit(connection, "experiment.ended", there.site, None, {"experiment": there.id, "how": how})
    return Experiment(*connection.execute(sa.select(table).where(table.c.id == there.id)).one())


def find(connection: Connection, site: str, key: str = "") -> Experiment:
    """Return an experiment of a site by (the beginning of) its id, or the newest.

    Raises
    ------
    ConflictError
        When there is none.
    """
    table = store.experiment
    wanted = sa.select(table).where(table.c.site == site).order_by(table.c.started_at.desc())
    if key:
        wanted = wanted.where(table.c.id.startswith(key, autoescape=True))
    row = connection.execute(wanted).first()
    if row is None:
        raise ConflictError(f"site {site}: no experiment {key}".rstrip())
    return Experiment(*row)


# --- what came of it --------------------------------------------------------------------------------------------------


def guard(experiment: Experiment, found: Sequence[Study]) -> list[str]:
    """Return which guards speak: those whose bound lies below the whole 95 % interval of what happened."""
    design = Design.model_validate(experiment.plan)
    rule, critical = design.guards, set(design.findings)
    breaches = []
    signed = [study for study in found if study.truth & critical]
    missed = sum(not study.flagged & critical for study in signed)
    low = float(wilson(missed, max(len(signed), 1))[0])
    if len(signed) >= rule.least and low > rule.missed:
        breaches.append(f"AI missed {missed} of {len(signed)} critical studies, more than {rule.missed:.0%} allowed")
    now = store.now()
    for arm in (AI, ARRIVAL):
        # One that waits still and was flagged counts too: else a list that nobody reads would look well.
        waits = [study for study in found if study.arm == arm and (study.truth or study.flagged) & critical]
        known = [study for study in waits if study.truth & critical or study.signed is None]
        minutes = [((study.signed or now) - study.received).total_seconds() / 60 for study in known]
        late = sum(wait > rule.wait_minutes for wait in minutes)
        low = float(wilson(late, max(len(known), 1))[0])
        if len(known) >= rule.least and low > rule.late:
            breaches.append(
                f"order {arm}: {late} of {len(known)} critical studies waited more than {rule.wait_minutes:g} min, "
                f"more than {rule.late:.0%} allowed"
            )
    return breaches


def saved(found: Iterable[Study], since: str = "received", until: str = "signed") -> Interval:
    """Return by how many minutes a stage is shorter in AI's order on the average, with a 95 % interval over blocks.

    The arms' means over all their studies; the variance is that of sums over blocks (`clustered.standard_error`), and
    the quantile Student's with two degrees of freedom less than there are blocks.
    """
    rows = [(study.arm, study.block, value) for study in found if not math.isnan(value := study.minutes(since, until))]
    arms = np.array([arm == AI for arm, *_ in rows], bool)
    values = np.array([value for *_, value in rows], float)
    if not rows or arms.all() or not arms.any():
        return Interval(math.nan, math.nan, math.nan, 0.0)
    means = values[arms].mean(), values[~arms].mean()
    influence: FloatArray = np.where(arms, -(values - means[0]) / arms.sum(), (values - means[1]) / (~arms).sum())
    names, block = np.unique([block for _, block, _ in rows], return_inverse=True)
    if len(names) < 4:
        return Interval(float(means[1] - means[0]), math.nan, math.nan, 0.0)
    half = t_quantile(0.975, len(names) - 2) * clustered.standard_error(influence, block.astype(np.intp))
    value = float(means[1] - means[0])
    return Interval(value, value - half, value + half)


def t_quantile(p: float, freedom: int) -> float:
    """Return a quantile of Student's t: exact for 1 and 2 degrees of freedom, else Abramowitz and Stegun 26.7.5."""
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z: float = NormalDist().inv_cdf(p)
    n = freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / n**power for power, term in enumerate(terms, start=1)))

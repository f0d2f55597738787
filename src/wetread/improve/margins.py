"""The limits of a verdict, and one figure held against one of them.

A figure passes when its whole interval keeps its limit, fails when its whole 95 % interval is beyond, and is
inconclusive otherwise. A verdict that is asked for at several *looks* has as many chances to promote what is not as
good, so the interval that must pass has the level 1 - 0.05 / looks (Bonferroni, which holds however much one look
shares with the next, and when the oldest images fall out of what is looked at). The interval that fails keeps 95 %:
to roll back a model that was good enough costs time, and harms nobody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

from pydantic import Field

from wetread.evaluate.clustered import Contrast
from wetread.evaluate.intervals import LEVEL, Z
from wetread.improve.browsing import Name, PageLimits
from wetread.improve.policy import Policy

Judged = Literal["pass", "fail", "inconclusive"]


class Limits(Policy):
    """The table `[verdict]` of a rollout policy. Differences are challenger less champion."""

    studies: int = Field(200, ge=20)  # that both analysed, at least
    reviewed: int = Field(50, ge=10)  # … and readers signed
    positives: int = Field(10, ge=5)  # … with a finding, of each whose sensitivity is held
    errors: float = Field(0.02, ge=0, le=1)  # more images that fail, at most
    refusals: float = Field(0.05, ge=0, le=1)  # more images that are refused, at most
    latency: float = Field(1.5, gt=1)  # times the champion's, at most
    shift: float = Field(0.15, gt=0, le=1)  # of the mean probability of a finding, either way
    flags: float = Field(0.15, gt=0, le=1)  # of the share of studies in which it is flagged, either way
    agreement: float = Field(0.05, gt=0, le=1)  # less, of the answers of readers
    sensitivity: float = Field(0.10, gt=0, le=1)  # less, of any finding, and of all together
    most: int = Field(20_000, ge=100)  # images that are looked at, the newest
    looks: int = Field(1, ge=1, le=1000)  # verdicts that are planned in a stage; 1: neither corrected nor counted
    browsers: dict[Name, PageLimits] = Field({}, max_length=32)  # profile → what its pages keep in canary


@dataclass(frozen=True)
class Figure:
    """One figure, its limit, and whether that is kept; `value` is a difference, or a ratio. None: undefined.

    `low` and `high` are the interval of `level` by which it was judged.
    """

    name: str
    finding: str
    champion: float | None
    challenger: float | None
    value: float | None
    low: float | None
    high: float | None
    level: float
    limit: str
    count: int
    verdict: Judged
    held: bool = True


@dataclass(frozen=True)
class Margin:
    """From where to where a figure may be, and that in words."""

    least: float
    most: float
    words: str


def at_most(most: float) -> Margin:
    """Return a margin for what may grow by so much."""
    return Margin(-math.inf, most, f"at most +{most:g}")


def at_least(most: float) -> Margin:
    """Return a margin for what may shrink by so much."""
    return Margin(-most, math.inf, f"at least -{most:g}")


def within(most: float) -> Margin:
    """Return a margin for what may move by so much either way."""
    return Margin(-most, most, f"within ±{most:g}")


def figure(
    name: str,
    finding: str,
    champion: float,
    challenger: float,
    found: Contrast,
    margin: Margin,
    looks: int,
    count: int,
    *,
    enough: bool = True,
    held: bool = True,
) -> Figure:
    """Hold a difference against its margin.

    Parameters
    ----------
    found : Contrast
        Challenger less champion, with its 95 % interval; NaN where undefined.
    looks : int
        How often it is looked at.
    count : int
        Cases behind it.
    enough : bool
        Whether these are enough to judge it.
    held : bool
        Whether it decides anything.
    """
    level, span = LEVEL, found
    verdict: Judged = "inconclusive"
    if enough and (found.low > margin.most or found.high < margin.least):
        verdict = "fail"
    else:
        level, span = _widened(found, looks)
        if enough and margin.least <= span.low and span.high <= margin.most:
            verdict = "pass"
    old, new, value, low, high = (
        None if math.isnan(x) else float(x) for x in (champion, challenger, span.value, span.low, span.high)
    )
    return Figure(name, finding, old, new, value, low, high, level, margin.words, count, verdict, held)


def _widened(found: Contrast, looks: int) -> tuple[float, Contrast]:
    """Return the level of each of so many looks, and the interval: normal, so that only its quantile changes."""
    level = 1 - (1 - LEVEL) / looks
    by = NormalDist().inv_cdf((1 + level) / 2) / Z
    low, high = (found.value + by * (end - found.value) for end in (found.low, found.high))
    return level, replace(found, low=low, high=high)


def words(told: Figure) -> str:
    """Return a figure in words."""
    of = f" of {told.finding}" if told.finding else ""
    if told.value is None:
        return f"{told.name}{of}: too little to say ({told.count} cases)"
    return (
        f"{told.name}{of}: {told.value:.3g}{f' ({between(told)})' if told.low is not None else ''}, wanted {told.limit}"
    )


def between(told: Figure) -> str:
    """Return the interval of a figure in words, with its level where that is not 95 %."""
    if told.low is None:
        return ""
    level = "" if told.level == LEVEL else f" at {100 * told.level:.4g} %"
    return f"{told.low:.3g} to {told.high:.3g}{level}"

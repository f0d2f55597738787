"""One figure against its limit: who looks every day does not promote what is too bad more often than they may."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wetread.evaluate import clustered
from wetread.evaluate.clustered import Contrast, Estimate
from wetread.evaluate.intervals import Interval
from wetread.improve import margins
from wetread.improve.margins import Judged, Limits, Margin

LOOKS, A_DAY, CLINICS = 14, 20, 180


def judge(found: Contrast, margin: Margin, looks: int = 1) -> Judged:
    return margins.figure("f", "", 0.0, 0.0, found, margin, looks, 100).verdict


@pytest.mark.parametrize(
    ("low", "high", "once", "often"),
    [
        (-0.049, 0.0, "pass", "inconclusive"),
        (-0.03, 0.03, "pass", "pass"),
        (-0.06, 0.0, "inconclusive", "inconclusive"),
        (-0.2, -0.051, "fail", "fail"),
        (math.nan, math.nan, "inconclusive", "inconclusive"),
    ],
)
def test_what_passes_keeps_its_limit_at_every_look_and_what_fails_is_beyond_at_one(
    low: float, high: float, once: Judged, often: Judged
) -> None:
    for sign in (1, -1):
        ends = (low, high) if sign == 1 else (-high, -low)
        found = Contrast(sum(ends) / 2, *ends, 0.5)
        for margin in (margins.within(0.05), margins.at_least(0.05) if sign == 1 else margins.at_most(0.05)):
            assert judge(found, margin) == once
            assert judge(found, margin, 10) == often


def promoted(shift: float, margin: Margin) -> tuple[float, float]:
    """Return in which share of clinics a daily look passes once: corrected for looking daily, and not.

    The challenger's probabilities are higher by `shift`; each day's patients are added to those before.
    """
    rng, ever = np.random.default_rng(5), {LOOKS: 0, 1: 0}
    for _ in range(CLINICS):
        moved, passed = rng.normal(shift, 0.3, LOOKS * A_DAY), set[int]()
        for n in range(A_DAY, moved.size + 1, A_DAY):
            mean, none = float(moved[:n].mean()), np.zeros(n)
            one, other = (
                Estimate(value, spread, 0, Interval(value, math.nan, math.nan))
                for value, spread in ((mean, (moved[:n] - mean) / n), (0.0, none))
            )
            found = clustered.contrast(one, other, np.arange(n))
            passed |= {looks for looks in ever if judge(found, margin, looks) == "pass"}
        for looks in passed:
            ever[looks] += 1
    return ever[LOOKS] / CLINICS, ever[1] / CLINICS


def test_looking_every_day_promotes_what_is_just_too_bad_at_most_one_time_in_twenty() -> None:
    """The challenger is off by just as much as is too much: each promotion is a false one."""
    corrected, not_corrected = promoted(0.15, margins.within(0.15))
    assert corrected <= 0.05 < not_corrected
    assert promoted(0.05, margins.within(0.15))[0] > 0.9  # what is good enough still gets through


def test_looks_that_cannot_be_are_refused() -> None:
    for looks in (0, -1, 1001):
        with pytest.raises(ValueError, match="looks"):
            Limits(looks=looks)

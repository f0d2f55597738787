"""How figures are written: never without their counts, and undefined is a dash."""

from __future__ import annotations

import pytest

from wetread.clinic.figures import Rate, Share, Spread
from wetread.web import figures


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [
        (0, 0, "—"),
        (3, 4, "3 of 4"),
        (9, 9, "9 of 9"),
        (17, 20, "17 of 20 · 85 % (64–95)"),
        (0, 40, "0 of 40 · 0 % (0–9)"),
        (40, 40, "40 of 40 · 100 % (91–100)"),
        (1, 1000, "1 of 1,000 · 0.1 % (0.02–0.6)"),
        (995, 1000, "995 of 1,000 · 99.5 % (99–99.8)"),
    ],
)
def test_a_share(part: int, whole: int, words: str) -> None:
    assert figures.share(Share(part, whole)) == words


def test_times_and_sizes() -> None:
    assert figures.rate(Rate(0, 28)) == "0 in 28 days · 0.00 a day (0.00–0.13)"
    assert [figures.minutes(value) for value in (None, 0, 0.4, 7, 1440 + 200.2)] == [
        "—",
        "0:00",
        "under 0:01",
        "0:07",
        "1 d 3:20",
    ]
    assert [figures.seconds(value) for value in (None, 0.0312, 2.345, 61, 600, 86400)] == [
        "—",
        "31 ms",
        "2.3 s",
        "61 s",
        "10 min",
        "1 day, 0:00:00",
    ]
    assert figures.median(Spread.of([5.0] * 5)) == "0:05"  # too few for an interval
    assert figures.median(Spread.of([1, 2, 3, 4, 5, 60]), "seconds") == "3.5 s (1.0 s–60 s)"
    assert [figures.size(value) for value in (2**20, 1.5 * 2**30)] == ["1 MiB", "1.5 GiB"]

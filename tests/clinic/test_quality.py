"""Agreement, misses, false alerts and times against polars on the same drawn rows, on both databases."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import department
import polars as pl
import pytest
from department import HERE, NOW

from wetread.clinic import quality
from wetread.clinic.figures import Period, Share, Spread
from wetread.clinic.quality import Quality
from wetread.clinic.store import Store

TABLES = department.draw(400)
PERIODS = {days: Period.last(days, NOW) for days in (7, 28, 90)}


@pytest.fixture(scope="module")
def found(connection: Any) -> dict[int, Quality]:
    """What is found in each period."""
    return {days: quality.quality(connection, HERE, period) for days, period in PERIODS.items()}


def test_days_that_were_kept_say_the_same(connection: Any, found: dict[int, Quality]) -> None:
    kept: quality.Kept = {}
    quality.quality(connection, HERE, PERIODS[90], kept)
    assert 80 < len(kept) < 90
    for _ in range(2):
        for days, period in PERIODS.items():
            assert quality.quality(connection, HERE, period, kept) == found[days]
    day = max(kept)[1]
    assert day < NOW - timedelta(hours=24)
    parts = list(kept.values())
    with pytest.MonkeyPatch.context() as patch:  # they are not asked for again
        patch.setattr(quality, "_answers", lambda connection, site, period: [])
        assert {one.finding for one in quality.quality(connection, HERE, PERIODS[90], kept).agreement} <= {
            one.finding for one in found[90].agreement
        }
    assert list(kept.values()) == parts
    later = Period.last(7, NOW + timedelta(days=200))
    quality.quality(connection, HERE, later, kept)
    assert all(key[1] > NOW for key in kept)  # what nobody asks for any more is let go


def test_the_service_counts_ahead_for_every_site(connection: Any) -> None:
    database, kept = Store(connection.engine.url.render_as_string(hide_password=False), migrate=False), {}
    quality.ahead(database, kept, NOW)
    database.close()
    assert {site for site, _ in kept} >= {HERE}


def readings(days: int) -> pl.DataFrame:
    """Return what was signed here in a period, with its study."""
    period = PERIODS[days]
    signed = department.frame(TABLES, "review").filter(
        pl.col("state") == "signed",
        pl.col("parent").is_null(),
        pl.col("signed_at").is_between(period.since, period.until, closed="left"),
    )
    studies = department.frame(TABLES, "study").rename({"id": "study"})
    return signed.join(studies, on="study").filter(pl.col("site") == HERE)


def answers(days: int) -> pl.DataFrame:
    return department.frame(TABLES, "review_finding").join(
        readings(days).rename({"id": "review", "finding": "ranked"}), on="review"
    )


def share(frame: pl.DataFrame, part: pl.Expr, whole: pl.Expr) -> Share:
    return Share(frame.filter(part).height, frame.filter(whole).height)


@pytest.mark.parametrize("days", PERIODS)
def test_agreement_is_that_of_the_rows(found: dict[int, Quality], days: int) -> None:
    assert found[days].signed == readings(days).height
    called = answers(days).filter(pl.col("call").is_not_null())
    answer, call = pl.col("answer"), pl.col("call")
    sure = call != "unsure"
    seen = (
        ((call != "unlikely") & (answer == "agree"))
        | (answer == "added")
        | ((call == "unlikely") & (answer == "disagree"))
    )
    expected = {}
    for (model, finding), group in called.group_by("model", "finding"):
        missed = (call == "unlikely") & answer.is_in(["disagree", "added"])
        # The model did not call it likely, and the reader adds it: seen, missed only where it said unlikely.
        expected[model, finding] = (
            share(group, sure & (answer == "agree"), sure & answer.is_in(["agree", "disagree"])),
            group.filter(answer == "unsure").height,
            share(group, missed, seen) if finding != "No Finding" else Share(0, 0),
            share(
                group,
                (call == "likely") & (answer == "disagree"),
                (call == "likely") & answer.is_in(["agree", "disagree"]),
            ),
        )
    assert {(a.model, a.finding): (a.agreed, a.unsure, a.missed, a.false) for a in found[days].agreement} == expected
    assert len(expected) >= 9 or days == 7
    for arm, anchored in (("anchored", True), ("blind", False)):
        group = called.filter(pl.col("anchored") == anchored)
        assert found[days].by_arm[arm] == share(
            group, sure & (answer == "agree"), sure & answer.is_in(["agree", "disagree"])
        )
    unnamed = answers(days).filter(call.is_null())
    assert dict(found[days].unnamed) == {name: group.height for (name,), group in unnamed.group_by("finding")}


@pytest.mark.parametrize("days", PERIODS)
def test_alerts_are_those_of_the_rows(found: dict[int, Quality], days: int) -> None:
    raised = readings(days).filter(pl.col("finding").is_not_null(), pl.col("priority") != pl.col("floor"))
    own = department.frame(TABLES, "review_finding").rename({"review": "id"})
    rows = raised.join(own, on=["id", "finding"], how="left").to_dicts()
    counts = {"true": 0, "false": 0, "open": 0}
    by_day: dict[Any, int] = {}
    for row in rows:
        answer, call = row["answer"], row["call"]
        denied = answer == ("agree" if call == "unlikely" else "disagree")
        verdict = "false" if row["normal"] or denied else "true" if answer in ("agree", "disagree") else "open"
        counts[verdict] += 1
        if verdict == "false":
            by_day[row["signed_at"].date()] = by_day.get(row["signed_at"].date(), 0) + 1
    alerts = found[days].alerts
    assert alerts.raised == len(rows)
    assert alerts.confirmed == Share(counts["true"], counts["true"] + counts["false"])
    assert (alerts.false_a_day.count, alerts.false_a_day.days) == (counts["false"], days)
    assert {at.date(): n for at, n in zip(alerts.days, alerts.by_day, strict=True) if n} == by_day


@pytest.mark.parametrize("days", PERIODS)
def test_times_are_those_of_the_rows(found: dict[int, Quality], days: int) -> None:
    claimed = department.frame(TABLES, "event").with_columns(by=pl.col("payload").struct.field("reader"))
    rows = readings(days)
    opened = (
        claimed.filter(pl.col("kind") == "study.claimed")
        .join(rows.select("study", "reader", "signed_at"), left_on=["study", "by"], right_on=["study", "reader"])
        .filter(pl.col("at") <= pl.col("signed_at"))
        .group_by("study")
        .agg(opened_at=pl.col("at").min())
    )
    rows = rows.join(opened, on="study", how="left")
    off = pl.col("reason").str.contains("first come")
    arms = {
        None: pl.lit(True),
        "AI on": ~off,
        "AI off": off,
        "anchored": pl.col("anchored"),
        "blind": ~pl.col("anchored"),
    }
    assert {wait.arm for wait in found[days].waits} == set(arms)
    for wait in found[days].waits:
        group = rows.filter(
            arms[wait.arm], pl.lit(True) if wait.priority is None else pl.col("priority") == wait.priority
        )
        waited = (group["signed_at"] - group["received_at"]).dt.total_microseconds() / 6e7
        read = (group["signed_at"] - group["opened_at"]).drop_nulls().dt.total_microseconds() / 6e7
        for spread, values in ((wait.received_to_signed, waited), (wait.opened_to_signed, read)):
            assert spread.count == len(values)
            assert spread.median == (pytest.approx(values.median()) if len(values) else None)
            assert spread.p95 == (pytest.approx(values.quantile(0.95, "linear")) if len(values) >= 20 else None)


def test_nothing_is_undefined_and_not_zero(tmp_path: Path) -> None:
    database = Store(f"sqlite:///{tmp_path}/clinic.db")
    with database.read() as connection:
        none = quality.quality(connection, HERE, Period(NOW - timedelta(days=1), NOW))
    database.close()
    assert (none.signed, none.agreement, none.alerts.confirmed.value) == (0, (), None)
    assert {wait.received_to_signed for wait in none.waits} == {Spread(0, None, None, None)}

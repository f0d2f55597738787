"""Queues, what is owed, throughput and latency against polars on the same drawn rows, on both databases."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from typing import Any

import department
import polars as pl
import pytest
from department import HERE, NOW

from wetread.clinic import load
from wetread.clinic.figures import Period

TABLES = department.draw(300, seed=1)
HOUR = timedelta(hours=1)


def images() -> pl.DataFrame:
    return department.frame(TABLES, "instance").filter(pl.col("site") == HERE)


def test_queues_are_those_of_the_rows(connection: Any) -> None:
    jobs = department.frame(TABLES, "job").join(images(), left_on="instance", right_on="id")
    age = NOW - pl.col("received_at")
    later = NOW + timedelta(minutes=3)  # so that none came under a minute ago, and some may under ten
    for queue in load.queues(connection, HERE, later):
        mine = jobs.filter(pl.col("state") == queue.state).with_columns(age=age + timedelta(minutes=3))
        limits = [timedelta(0), *(limit for _, limit in load.AGES), timedelta(days=1000)]
        between = [
            mine.filter((pl.col("age") >= low) & (pl.col("age") < high)).height
            for low, high in itertools.pairwise(limits)
        ]
        assert list(queue.by_age.values()) == between
        assert queue.count == mine.height > 0
        assert queue.oldest == mine["received_at"].min()


def test_what_is_owed_is_that_of_the_rows(connection: Any) -> None:
    studies = department.frame(TABLES, "study").rename({"id": "study"}).filter(pl.col("site") == HERE)
    rows = department.frame(TABLES, "delivery").join(studies, on="study")
    rows = rows.filter(pl.col("state").is_in(["queued", "failed", "given_up"])).group_by("kind", "state")
    expected = rows.agg(count=pl.len(), oldest=pl.col("created_at").min()).sort("kind", "state").rows()
    assert [(o.kind, o.state, o.count, o.oldest) for o in load.owed(connection, HERE)] == expected


@pytest.mark.parametrize(("days", "step"), [(1, HOUR), (7, HOUR), (30, timedelta(days=1))])
def test_flow_is_that_of_the_rows(connection: Any, days: int, step: timedelta) -> None:
    period = Period.last(days, NOW)
    flow = load.flow(connection, HERE, period, step)
    inside = pl.col("received_at").is_between(period.since, period.until, closed="left")

    def by_step(frame: pl.DataFrame) -> dict[datetime, int]:
        at = frame["received_at"].dt.truncate(step)
        return dict(at.value_counts().rows())

    studies = department.frame(TABLES, "study").filter(pl.col("site") == HERE, inside)
    stored = images().filter(inside, pl.col("state") == "stored")
    assert {at: n for at, n in zip(flow.steps, flow.studies, strict=True) if n} == by_step(studies)
    assert {at: n for at, n in zip(flow.steps, flow.images, strict=True) if n} == by_step(stored)
    assert (flow.steps[0] <= period.since, flow.steps[-1] < period.until) == (True, True)
    assert load.taken_in(connection, HERE, period) == images().filter(inside)["bytes"].sum()
    last = department.frame(TABLES, "image_result").group_by("instance").agg(done=pl.col("at").max())
    waits = last.join(images().filter(inside), left_on="instance", right_on="id").with_columns(
        wait=(pl.col("done") - pl.col("received_at")).dt.total_microseconds() / 1e6,
        step=pl.col("received_at").dt.truncate(step),
    )
    assert flow.waits.count == waits.height > 5
    assert flow.waits.median == pytest.approx(waits["wait"].median())
    assert sorted(wait for _, wait in flow.each) == pytest.approx(waits["wait"].sort().to_list())
    for at, spread in zip(flow.steps, flow.wait_by_step, strict=True):
        mine = waits.filter(pl.col("step") == at)["wait"]
        assert spread.count == len(mine)
        assert spread.median == (pytest.approx(mine.median()) if len(mine) else None)

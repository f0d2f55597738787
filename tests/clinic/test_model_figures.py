"""What a model did against polars on the same drawn rows, on both databases."""

from __future__ import annotations

from typing import Any

import department
import polars as pl
import pytest
from department import HERE, NOW

from wetread.clinic import model_figures, quality
from wetread.clinic.figures import Period, Share

TABLES = department.draw(300, seed=2)


def images() -> pl.DataFrame:
    return department.frame(TABLES, "instance").filter(pl.col("site") == HERE)


def test_a_models_numbers_are_those_of_the_rows(connection: Any) -> None:
    period = Period.last(28, NOW)
    inside = pl.col("received_at").is_between(period.since, period.until, closed="left")
    rows = department.frame(TABLES, "image_result").join(images().filter(inside), left_on="instance", right_on="id")
    seen = {one.model: one for one in model_figures.seen(connection, HERE, period)}
    assert set(seen) == set(department.MODELS)
    for model in department.MODELS:
        mine = rows.filter(pl.col("model") == model)
        suitable = mine.filter(pl.col("suitable"))
        assert (seen[model].images, seen[model].refused) == (mine.height, mine.height - suitable.height)
        numbers = model_figures.numbers(connection, HERE, model, period)
        assert numbers.images == mine.height
        codes = mine.filter(~pl.col("suitable"))["code"].value_counts()
        assert dict(numbers.refusals) == {code: Share(count, mine.height) for code, count in codes.rows()}
        assert numbers.seconds.count == suitable.height
        assert numbers.seconds.median == pytest.approx(suitable["seconds"].median())
        said = suitable.explode("findings").unnest("findings", separator=".") if suitable.height else suitable
        week = ((pl.col("received_at") - period.since).dt.total_seconds() // (7 * 86400)).alias("week")
        counts = said.with_columns(week).group_by("findings.finding", "week")
        expected = {
            (finding, int(n)): Share(flagged, whole)
            for finding, n, flagged, whole in counts.agg(pl.col("findings.flagged").sum(), whole=pl.len()).rows()
        }
        assert len(numbers.weeks) == 4
        found = {(c.finding, n): share for c in numbers.calls for n, share in enumerate(c.weeks) if share.whole}
        assert found == expected
        for calls in numbers.calls:
            assert calls.whole == Share(sum(s.part for s in calls.weeks), sum(s.whole for s in calls.weeks))
        agreed = [a for a in quality.quality(connection, HERE, period).agreement if a.model == model]
        assert quality.agreement(connection, HERE, period, model) == agreed


def test_of_many_images_some_are_drawn_evenly(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    period, model = Period.last(28, NOW), next(iter(department.MODELS))
    whole = model_figures.numbers(connection, HERE, model, period)
    monkeypatch.setattr(model_figures, "SAMPLE", whole.images // 3)
    some = model_figures.numbers(connection, HERE, model, period)
    assert (some.images, some.refusals) == (whole.images, whole.refusals)
    drawn = some.calls[0].whole.whole
    of = whole.calls[0].whole.whole
    # A third of them, within four standard deviations of the binomial.
    assert abs(drawn - of / 3) < 4 * (of * 2 / 9) ** 0.5

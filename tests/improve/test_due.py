"""When it is time to train anew: each reason by itself, and none without anything to learn from."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import department
import pytest
from department import HERE
from drifting import MODEL, POLICY, START, Department

from wetread.clinic import store
from wetread.clinic.store import Store
from wetread.improve import drift, due
from wetread.improve.due import Facts, When

NOW = START + timedelta(days=40)
IDLE = Facts(NOW, MODEL, START, START, 60, ())
NEVER = When(reviews=0, drift=False)


@pytest.mark.parametrize(
    ("when", "changed", "wanted"),
    [
        (When(reviews=60), {}, "60 studies signed"),
        (When(reviews=61), {}, None),
        (NEVER, {"drift": ("pixels: mean",)}, None),
        (When(reviews=0), {"drift": ("pixels: mean",)}, "drift: pixels: mean"),
        (When(reviews=0), {}, None),
        (NEVER.model_copy(update={"age_days": 40}), {}, "serves for 40.0 days"),
        (NEVER.model_copy(update={"age_days": 41}), {}, None),
        (NEVER.model_copy(update={"age_days": 1}), {"champion_since": None}, None),
        (NEVER.model_copy(update={"every_days": 40}), {}, "last trained 40.0 days ago"),
        (NEVER.model_copy(update={"every_days": 41}), {}, None),
        (NEVER.model_copy(update={"every_days": 41}), {"last": None}, "never trained here"),
        (When(reviews=10), {"reviews": 49}, None),  # below `least_reviews`
    ],
)
def test_each_reason_by_itself(when: When, changed: dict[str, object], wanted: str | None) -> None:
    found = due.judge(Facts(**vars(IDLE) | changed), when)
    assert found.due is (wanted is not None)
    if wanted is not None:
        assert wanted in found.reasons[0]


def test_facts_are_of_the_site_and_of_the_time_since(tmp_path: Path) -> None:
    database = Store(f"sqlite:///{tmp_path}/clinic.db")
    drawn = Department().come(range(28)).come(range(28, 35), dark=0.2)
    department.put(database, drawn.tables)
    drift.check(database, HERE, POLICY, until=START + timedelta(days=35))
    with database.read() as connection:
        so_far = due.facts(connection, HERE, "chexpert/any", None, NOW)
        later = due.facts(connection, HERE, "chexpert/any", START + timedelta(days=28), NOW)
        now = due.facts(connection, HERE, "chexpert/any", store.now(), NOW)
        elsewhere = due.facts(connection, "elsewhere", "chexpert/any", None, NOW)
        everywhere = due.facts(connection, "", "chexpert/any", None, NOW)
    assert (so_far.reviews, later.reviews, now.reviews, elsewhere.reviews) == (280, 56, 0, 0)
    assert "pixels: mean" in so_far.drift[0]
    assert (now.drift, elsewhere.drift) == ((), ())
    assert (everywhere.reviews, len(everywhere.drift)) == (280, 1)
    assert so_far.champion is None
    database.close()


@pytest.mark.parametrize(("slot", "wanted"), [("chexpert/any", 4), ("chexpert/adult", 3), ("chexpert/child", 2)])
def test_only_who_was_first_signed_since_and_is_served_is_new(tmp_path: Path, slot: str, wanted: int) -> None:
    """Four new studies, one of a child, one of a patient of unknown age; addenda to old ones; one opened again."""
    database = Store(f"sqlite:///{tmp_path}/clinic.db")
    tables = Department().come(range(2)).tables
    department.put(database, tables)
    review, study = store.review, store.study
    old, new = tables["review"][:-4], tables["review"][-4:]
    since = START + timedelta(days=2)
    with database.write() as connection:
        at = since + timedelta(hours=1)
        connection.execute(review.update().where(review.c.id.in_([r["id"] for r in new])).values(signed_at=at))
        for row in old[:3]:
            more = row | {"id": f"more-{row['id']}", "parent": row["id"], "signed_at": at}
            connection.execute(review.insert().values(**more))
        for row, age in zip(new, (40.0, 40.0, 5.0, None), strict=True):
            connection.execute(study.update().where(study.c.id == row["study"]).values(age_years=age))
    with database.read() as connection:
        assert due.facts(connection, HERE, slot, since, NOW).reviews == wanted
    with database.write() as connection:
        connection.execute(study.update().where(study.c.id == new[0]["study"]).values(reading="unread"))
        assert due.facts(connection, HERE, slot, since, NOW).reviews == wanted - (slot != "chexpert/child")
    database.close()

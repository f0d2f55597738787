"""What may go and what must stay; and that bytes go only when nobody needs them, whatever happens in between."""

from __future__ import annotations

import logging
from datetime import timedelta
from io import BytesIO

import pytest
import sqlalchemy as sa
from ward import SITE, Ward, png

from wetread.clinic import audit, retention, reviews, store, verify
from wetread.config import Settings
from wetread.errors import BusyError, ConfigError, NotFoundError

KEEP = Settings(retain_days=30)
LATER = timedelta(days=31)
ALERT = {"id": "1", "site": SITE, "source": "ai", "finding": "Edema", "step": 0}


def read(ward: Ward, number: int = 0, name: str = "edema.png", **more: object) -> str:
    """Take a study in, analyse it, sign it; return its id."""
    key = ward.take(png(number), name, **more).study
    ward.work()
    reviews.save(ward.database, SITE, key, "dr", answers={}, verdict="right", sign=True)
    return key


def due(ward: Ward, settings: Settings = KEEP, after: timedelta = LATER) -> list[str]:
    with ward.database.read() as connection:
        return retention.due(connection, settings, store.now() + after)


def change(ward: Ward, statement: sa.Executable) -> None:
    with ward.database.write() as connection:
        connection.execute(statement)


def files(ward: Ward) -> int:
    return len(list(ward.archive.names()))


def test_off_unless_asked_for(ward: Ward) -> None:
    read(ward)
    assert due(ward, Settings(), timedelta(days=10_000)) == []
    assert due(ward, after=timedelta(days=29)) == []


def test_a_signed_study_goes_whole_and_the_audit_says_so(ward: Ward) -> None:
    key, other = read(ward, 0), ward.take(png(1), "unread.png").study
    assert due(ward) == [key]
    assert retention.remove(ward.database, ward.archive, [key]) == 1
    assert files(ward) == 1
    report = verify.verify(ward.database, ward.archive, grace_s=0.0)
    assert report.whole
    with ward.database.read() as connection:
        assert list(connection.execute(sa.select(store.study.c.id)).scalars()) == [other]
        row = connection.execute(sa.select(store.audit).where(store.audit.c.action == "study.removed")).one()
    assert (row.actor, row.object, len(row.detail["images"])) == ("retention", key, 1)
    assert audit.verify(ward.database) is None


def test_every_table_that_names_a_study_or_an_image_is_thought_of() -> None:
    tables = {
        table.name
        for table in store.metadata.tables.values()
        for key in table.foreign_keys
        if key.column.table.name in ("study", "series", "instance", "review")
    }
    assert tables == {
        "series", "instance", "image_result", "image_trait", "study_result", "job", "claim", "review", "review_finding",
        "delivery", "alert", "communication", "assignment", "draw",
    }  # fmt: skip


@pytest.mark.parametrize(
    "what", ["unread", "draft", "another draft", "claim", "analysis", "delivery", "given up", "alert"]
)
def test_what_is_not_finished_stays(ward: Ward, what: str) -> None:
    key = read(ward)
    now = store.now()
    delivery = {
        "id": "1", "study": key, "kind": "sr", "destination": "x", "cause": "y", "detail": {}, "tries": 0,
        "due_at": now, "created_at": now,
    }  # fmt: skip
    another = {
        "id": "1", "study": key, "reader": "dr2", "state": "draft", "normal": False, "note": "", "models": [],
        "created_at": now,
    }  # fmt: skip
    changes: dict[str, sa.Executable] = {
        "unread": store.study.update().values(reading="unread"),
        "draft": store.study.update().values(reading="draft"),
        "another draft": store.review.insert().values(another),
        "claim": store.claim.insert().values(study=key, reader="dr", at=now, expires_at=now + 2 * LATER),
        "analysis": store.job.update().values(state="queued"),
        "delivery": store.delivery.insert().values(delivery | {"state": "failed"}),
        "given up": store.delivery.insert().values(delivery | {"state": "given_up"}),
        "alert": store.alert.insert().values(ALERT | {"study": key, "opened_at": now}),
    }
    change(ward, changes[what])
    assert due(ward) == []
    assert retention.remove(ward.database, ward.archive, [key]) == 0  # asked all the same
    assert files(ward) == 1


def test_a_delivered_study_goes(ward: Ward) -> None:
    key, now = read(ward), store.now()
    change(ward, store.delivery.insert().values(
        id="1", study=key, kind="sr", destination="x", cause="y", detail={}, state="sent", tries=1, due_at=now,
        created_at=now))  # fmt: skip
    assert retention.remove(ward.database, ward.archive, due(ward)) == 1


def test_a_study_goes_with_what_was_told_about_it(ward: Ward) -> None:
    key, now = read(ward), store.now()
    change(ward, store.alert.insert().values(ALERT | {"study": key, "opened_at": now, "closed_at": now}))
    change(ward, store.communication.insert().values(
        id="1", study=key, alert="1", kind="communicated", finding="Edema", actor="dr", recipient="ward", how="phone",
        note="", at=now, recorded_at=now))  # fmt: skip
    assert retention.remove(ward.database, ward.archive, due(ward)) == 1
    with ward.database.read() as connection:
        assert not connection.execute(sa.select(store.communication.c.id)).first()
        assert not connection.execute(sa.select(store.alert.c.id)).first()


def test_sites_have_days_of_their_own(ward: Ward) -> None:
    key = read(ward)
    assert due(ward, Settings(retain_days=30, retain_sites=[f"{SITE}=0"])) == []
    assert due(ward, Settings(retain_sites=[f"{SITE}=31"]), timedelta(days=30)) == []
    assert due(ward, Settings(retain_sites=["north=1", f"{SITE}=7"]), timedelta(days=8)) == [key]
    for bad in ("north", "=3", "north=-1", "north=x"):
        with pytest.raises(ConfigError, match="site=days"):
            retention.days(Settings(retain_sites=[bad]))


def test_bytes_that_another_study_has_too_stay(ward: Ward) -> None:
    key = read(ward, 0)
    ward.intake.take(BytesIO(png(0)), "edema.png", "elsewhere")
    assert files(ward) == 1
    assert retention.remove(ward.database, ward.archive, [key]) == 1
    assert files(ward) == 1
    assert verify.verify(ward.database, ward.archive, grace_s=0.0).whole


def test_a_crash_between_rows_and_bytes_neither_brings_the_study_back_nor_leaves_bytes(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = read(ward)
    with monkeypatch.context() as patch:
        patch.setattr(retention, "empty", lambda *_: None)  # killed here
        retention.remove(ward.database, ward.archive, [key])
    assert files(ward) == 1
    assert ward.intake.adopt(SITE) == ([], [], [])
    assert verify.verify(ward.database, ward.archive, grace_s=0.0).whole
    assert retention.empty(ward.database, ward.archive) == 1
    assert files(ward) == 0


def test_the_same_file_again_is_a_new_study_whatever_the_moment(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    key = read(ward)
    with monkeypatch.context() as patch:
        patch.setattr(retention, "empty", lambda *_: None)
        retention.remove(ward.database, ward.archive, [key])
    again = ward.take(png(0), "edema.png")  # before its bytes went
    assert again.new
    assert retention.empty(ward.database, ward.archive) == 0
    assert files(ward) == 1
    reviews_key = again.study
    ward.work()
    reviews.save(ward.database, SITE, reviews_key, "dr", answers={}, verdict="right", sign=True)
    retention.remove(ward.database, ward.archive, [reviews_key])
    assert ward.take(png(0), "edema.png").new  # after they went
    assert verify.verify(ward.database, ward.archive, grace_s=0.0).whole


def test_bytes_that_go_while_the_same_file_comes_in_refuse_it(ward: Ward) -> None:
    """Between the file on disk and its row, another process removed the file of the study before."""
    stored = ward.archive.put(BytesIO(png(0)), limit=10**6)
    change(ward, store.removal.insert().values(sha256=stored.sha256, at=store.now(), done=False))
    assert retention.empty(ward.database, ward.archive) == 1
    with pytest.raises(BusyError, match="send it again"), ward.database.write() as connection:
        retention.arrived(connection, ward.archive, stored.sha256)
    assert ward.take(png(0), "edema.png").new


def test_a_refused_file_does_not_come_back(ward: Ward, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(NotFoundError):
        ward.take(png(0), "a.png", study="00000000-0000-0000-0000-000000000000")
    retention.empty(ward.database, ward.archive)
    assert files(ward) == 0
    assert ward.intake.adopt(SITE) == ([], [], [])

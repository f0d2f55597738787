"""Complete when nothing came for a while: said once for each set of images, and nothing waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from ward import SITE, NameReader, Ward, dicom, png

from wetread.clinic import completion, reviews, store, worklist

LATER = timedelta(seconds=61)


def sweep(ward: Ward, now: datetime | None = None) -> list[str]:
    now = now or store.now() + LATER
    return completion.sweep(ward.database, list(ward.models), lambda connection, site: ward.ranking, now, LATER)


def completed(ward: Ward, key: str) -> list[dict]:
    found = worklist.study(ward.database, SITE, key)
    return [event["payload"] for event in found.events if event["kind"] == "study.completed"]


def test_it_is_said_once_and_only_when_nothing_came_for_a_while(ward: Ward) -> None:
    key = ward.take(png(0), "edema.png").study
    ward.work()
    assert worklist.row(ward.database, SITE, key).priority == "urgent"  # ranked long before it is complete
    assert sweep(ward, store.now()) == []
    assert sweep(ward) == [key]
    assert sweep(ward) == []
    assert [said["images"] for said in completed(ward, key)] == [1]


def test_a_clock_that_was_ahead_holds_nothing(ward: Ward) -> None:
    key = ward.take(png(0), "edema.png").study
    ward.work()
    with ward.database.write() as connection:
        connection.execute(store.study.update().values(complete_at=store.now() + timedelta(days=300)))
    assert sweep(ward, store.now()) == [key]


def test_it_waits_for_the_analysis(ward: Ward) -> None:
    key = ward.take(png(0), "edema.png").study
    assert sweep(ward) == []
    ward.work()
    assert sweep(ward) == [key]


def test_each_new_image_starts_the_wait_again_and_makes_another_set(ward: Ward) -> None:
    key = ward.take(png(0), "nothing.png").study
    ward.work()
    at = store.now() + timedelta(seconds=59)
    ward.take(png(1), "nothing.png", study=key)
    ward.work()
    assert sweep(ward, at) == []
    assert sweep(ward) == [key]
    ward.take(png(2), "pneumothorax.png", study=key)  # late: it refines
    ward.work()
    assert worklist.row(ward.database, SITE, key).priority == "critical"
    assert sweep(ward) == [key]
    assert [said["images"] for said in completed(ward, key)] == [2, 3]
    assert len({said["set"] for said in completed(ward, key)}) == 2
    with ward.database.read() as connection:
        sets = set(connection.execute(sa.select(store.study_result.c.images)).scalars())
    assert {said["set"] for said in completed(ward, key)} <= sets


def test_the_same_bytes_again_complete_nothing_anew(ward: Ward) -> None:
    key = ward.take(png(0)).study
    ward.work()
    sweep(ward)
    ward.take(png(0))
    assert sweep(ward) == []
    assert len(completed(ward, key)) == 1


def test_two_sweepers_say_it_once(ward: Ward, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    keys = [ward.take(png(i)).study for i in range(5)]
    ward.work()
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda _: sweep(ward), range(4)))
    assert sorted(key for some in said for key in some) == sorted(keys)
    assert all(len(completed(ward, key)) == 1 for key in keys)


def test_an_image_after_the_review_is_a_new_image_since_review(ward: Ward) -> None:
    key = ward.take(dicom(0)).study
    ward.work()
    sweep(ward)
    reviews.save(ward.database, SITE, key, "dr", sign=True)
    ward.take(dicom(1, StudyInstanceUID="1.2.1.1", PatientID="P0"))
    ward.work()
    row = worklist.page(ward.database, SITE).rows[0]
    assert (row.study, row.reading) == (key, "unread")
    assert "new image since review" in row.cautions
    assert sweep(ward) == [key]


@pytest.fixture
def readers(tmp_path: Path) -> Iterator[Ward]:
    opened = Ward(tmp_path, [])
    yield opened
    opened.database.close()


def test_without_a_model_a_study_is_complete_once_it_is_read(readers: Ward) -> None:
    key = readers.take(png(0)).study
    assert sweep(readers) == []
    readers.work()
    assert sweep(readers) == [key]


def test_what_a_retired_model_said_is_not_asked_again(ward: Ward) -> None:
    key = ward.take(dicom(0)).study
    ward.work()
    newer = NameReader("names", "2")
    ward.models.clear()
    ward.models[newer.id] = newer
    ward.take(dicom(0, PatientName="Roe^Jane"))  # corrected: only the model in service looks again
    ward.work()
    with ward.database.read() as connection:
        states = set(connection.execute(sa.select(store.job.c.state)).scalars())
    assert states == {"done"}
    assert sweep(ward) == [key]

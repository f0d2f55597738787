"""The random-audit sample: drawn at arrival, by patient, whatever a model says, and never drawn again."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from ward import SITE, Ward, dicom

from wetread.clinic import blind, own_call, reviews, sample, store
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import ConfigError, ConflictError

NOW = store.now()


def studies(database: Store, count: int, patients: list[str]) -> list[str]:
    """Put bare studies into a database, so that many can be drawn for."""
    with database.write() as connection:
        store.ensure_site(connection, SITE)
        rows = [
            {
                "id": f"study-{n}", "site": SITE, "study_uid": f"1.{n}", "patient_id": patients[n], "patient_name": "",
                "views": "", "images": 0, "cautions": [], "received_at": NOW, "analysis": "received", "rank": 0,
                "reading": "unread", "floor": "routine", "priority": "routine", "reason": "", "overdue": False,
                "overdue_at": NOW,
            }
            for n in range(count)
        ]  # fmt: skip
        connection.execute(sa.insert(store.study), rows)
    return [row["id"] for row in rows]


def drawn(database: Store, keys: list[str], patients: list[str], share: float) -> set[str]:
    with database.write() as connection:
        connection.execute(store.draw.delete())
        for key, patient in zip(keys, patients, strict=True):
            sample.draw(connection, SITE, key, patient, share, NOW)
        return sample.drawn(connection, keys)


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
def test_the_share_is_met_and_a_patient_is_in_it_or_not(
    kind: str, request: pytest.FixtureRequest, tmp_path: Any
) -> None:
    database = Store(request.getfixturevalue("postgresql")) if kind == "postgresql" else Store.open(tmp_path)
    count = 240
    patients = [f"P{n // 2}" if n < 160 else "" for n in range(count)]  # two studies each; some of nobody
    keys = studies(database, count, patients)
    few, more = (drawn(database, keys, patients, share) for share in (0.1, 0.3))
    assert few < more
    assert drawn(database, keys, patients, 0.3) == more
    assert abs(len(more) - 0.3 * count) < 5 * (2 * 0.21 * count) ** 0.5
    for n in range(0, 160, 2):
        assert (keys[n] in more) == (keys[n + 1] in more)
    assert drawn(database, keys, patients, 1) == set(keys)
    assert drawn(database, keys, patients, 0) == set()
    with database.read() as connection:  # without a share there is no draw that could be mistaken for one
        assert connection.execute(sa.select(store.draw)).all() == []
    database.close()


def test_a_draw_is_kept_when_a_study_arrives_and_stays(ward: Ward) -> None:
    shares = sample.shares(Settings(sample_share=0.0, sample_sites=[f"{SITE}=1"]))
    ward.intake._share = shares
    first = ward.take(dicom(1)).study
    ward.intake._share = lambda site: 0.0
    again = ward.take(dicom(1, SOPInstanceUID="1.2.99")).study
    second = ward.take(dicom(2)).study
    assert again == first
    with ward.database.read() as connection:
        [row] = connection.execute(sa.select(store.draw)).all()
        assert (row.study, row.share, row.chosen) == (first, 1.0, True)
        assert sample.drawn(connection, [first, second]) == {first}
        assert blind.hidden(connection, Settings(), SITE, [first, second], "dr") == {first}


def test_a_study_of_the_sample_is_read_blind_whatever_the_settings_say(ward: Ward) -> None:
    ward.intake._share = lambda site: 1.0
    study = ward.take(dicom(1), "edema.dcm").study
    ward.work()
    with pytest.raises(ConflictError, match="own call"):
        reviews.save(ward.database, SITE, study, "dr", normal=True, sign=True)
    own_call.record(ward.database, SITE, study, "dr", is_blind=False, normal=True)
    reviews.save(ward.database, SITE, study, "dr", normal=True, sign=True)
    with ward.database.read() as connection:
        signed = reviews.newest(connection, study)
    assert signed is not None
    assert signed.anchored is False


@pytest.mark.parametrize("bad", ["north", "north=2", "=0.1", "north=x", "north=nan", "north=-1"])
def test_a_bad_share_of_a_site_is_named(bad: str) -> None:
    with pytest.raises(ConfigError, match="sample_sites"):
        sample.shares(Settings(sample_sites=[bad]))

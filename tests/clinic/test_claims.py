"""Who reads which study: one at a time, for so long, and whoever it is handed over to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from ward import SITE, NameReader, Ward, png

from wetread.clinic import access, accounts, audit, claims, filters, reviews, store, worklist
from wetread.clinic.access import Role
from wetread.clinic.store import Store
from wetread.errors import ClinicError, ConflictError, NotFoundError

LIFE = timedelta(minutes=5)


@pytest.fixture
def key(ward: Ward) -> str:
    received = ward.take(png(), "edema.png")
    ward.work()
    for name, role in (("ann", "radiologist"), ("bob", "radiologist"), ("eve", "engineer"), ("gone", "radiologist")):
        accounts.create(ward.database, name, role, SITE, None)
    with ward.database.write() as connection:
        gone = store.account.update().where(store.account.c.name == "gone")
        connection.execute(gone.values(disabled_at=store.now()))
    return received.study


def at_once(calls: list[Callable[[], object]]) -> list[object]:
    """Call from as many threads at one moment; return what each gave, or raised."""
    gate, found = threading.Barrier(len(calls)), list[object]()

    def call(one: Callable[[], object]) -> None:
        gate.wait()
        try:
            found.append(one())
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=call, args=(one,)) for one in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def one_wins(ward: Ward, study: str) -> None:
    readers = [f"reader {n}" for n in range(6)]
    found = at_once([lambda r=r: (claims.claim(ward.database, SITE, study, r), r) for r in readers])  # type: ignore[misc]
    (won,) = [entry for entry in found if isinstance(entry, tuple)]
    lost = [entry for entry in found if not isinstance(entry, tuple)]
    assert len(lost) == 5
    assert all(isinstance(error, ConflictError) and f"claimed by {won[1]}" in str(error) for error in lost)
    assert worklist.row(ward.database, SITE, study).claimed_by == won[1]
    kinds = [event["kind"] for event in worklist.study(ward.database, SITE, study).events]
    assert kinds.count("study.claimed") == 1


def test_of_readers_who_claim_at_once_one_wins(ward: Ward, key: str) -> None:
    one_wins(ward, key)


@pytest.mark.system
def test_of_readers_who_claim_at_once_one_wins_on_postgresql(postgresql: str, tmp_path: Path) -> None:
    ward = Ward(tmp_path, [NameReader()], postgresql)
    received = ward.take(png(), "edema.png")
    ward.work()
    one_wins(ward, received.study)
    ward.database.close()


def test_a_claim_lasts_as_long_as_the_site_says_and_work_renews_it(ward: Ward, key: str) -> None:
    now = store.now()
    until = claims.claim(ward.database, SITE, key, "ann", life=LIFE, now=now)
    assert until == now + LIFE
    reviews.save(ward.database, SITE, key, "ann", note="still here", life=LIFE, now=now + timedelta(minutes=4))
    with pytest.raises(ConflictError):
        claims.claim(ward.database, SITE, key, "bob", life=LIFE, now=now + timedelta(minutes=8))
    late = now + timedelta(minutes=9)
    assert claims.claim(ward.database, SITE, key, "bob", life=LIFE, now=late) == late + LIFE
    with pytest.raises(ConflictError, match="claimed by bob"):
        reviews.save(ward.database, SITE, key, "ann", sign=True, now=late)


def test_a_study_that_is_handed_over_is_the_others(ward: Ward, key: str) -> None:
    database, now = ward.database, store.now()
    claims.claim(database, SITE, key, "ann", life=LIFE, now=now)
    until = claims.hand_over(database, SITE, key, "ann", "bob", life=LIFE, now=now)
    assert until == now + claims.PATIENCE * LIFE
    row = worklist.row(database, SITE, key, now=now)
    assert (row.claimed_by, row.handed_by) == ("bob", "ann")
    with database.read() as connection:
        assert claims.held(connection, SITE, "bob", now) == claims.Held(1, ((key, "ann"),))
        assert claims.held(connection, SITE, "ann", now) == claims.Held(0, ())
        assert claims.held(connection, "elsewhere", "bob", now) == claims.Held(0, ())
        told = connection.execute(
            sa.select(store.event.c.payload).where(store.event.c.kind == "study.handed_over")
        ).scalar_one()
    assert told == {"from": "ann", "to": "bob"}
    assert [(r["actor"], r["object"], r["detail"]) for r in audit.rows(database, action="study.handed_over")] == [
        ("ann", key, {"to": "bob"})
    ]
    with pytest.raises(ConflictError, match="claimed by bob"):
        claims.claim(database, SITE, key, "ann", now=now)
    claims.claim(database, SITE, key, "bob", life=LIFE, now=now)  # opens it
    with database.read() as connection:
        assert claims.held(connection, SITE, "bob", now) == claims.Held(1, ())
    assert worklist.page(database, SITE, reader="bob", now=now).rows[0].study == key


def test_what_nobody_opens_goes_back_to_all(ward: Ward, key: str) -> None:
    until = claims.hand_over(ward.database, SITE, key, "ann", "bob", life=LIFE)
    row = worklist.row(ward.database, SITE, key, now=until)
    assert (row.claimed_by, row.handed_by, row.status) == (None, None, "analysed")
    assert claims.claim(ward.database, SITE, key, "ann", now=until) > until
    assert worklist.row(ward.database, SITE, key, now=until).handed_by is None


@pytest.mark.parametrize("to", ["ann", "eve", "gone", "nobody", ""])
def test_only_who_reads_here_is_handed_a_study(ward: Ward, key: str, to: str) -> None:
    with pytest.raises(ClinicError, match="to "):
        claims.hand_over(ward.database, SITE, key, "ann", to)
    assert worklist.row(ward.database, SITE, key).claimed_by is None


def test_what_another_reads_or_has_signed_is_not_handed_over(ward: Ward, key: str) -> None:
    claims.claim(ward.database, SITE, key, "bob")
    with pytest.raises(ConflictError, match="claimed by bob"):
        claims.hand_over(ward.database, SITE, key, "ann", "bob")
    reviews.save(ward.database, SITE, key, "bob", sign=True)
    with pytest.raises(ConflictError, match="signed already"):
        claims.hand_over(ward.database, SITE, key, "bob", "ann")
    with pytest.raises(NotFoundError):
        claims.hand_over(ward.database, SITE, "nothing", "bob", "ann")


def test_who_is_signed_in_by_a_link_can_be_handed_a_study(ward: Ward, key: str) -> None:
    code = access.login_code(ward.database, "Dr Link", Role.RADIOLOGIST, SITE)
    access.login(ward.database, code)
    with ward.database.read() as connection:
        assert claims.readers(connection, SITE, store.now()) == ["Dr Link", "ann", "bob"]
        assert claims.readers(connection, SITE, store.now() + timedelta(days=1)) == ["ann", "bob"]
        assert claims.readers(connection, "elsewhere", store.now()) == []
    claims.hand_over(ward.database, SITE, key, "ann", "Dr Link")
    assert worklist.row(ward.database, SITE, key).claimed_by == "Dr Link"


def kept(database: Store, reader: str, site: str = SITE) -> dict[str, dict[str, str]]:
    with database.read() as connection:
        return {f.name: f.query for f in filters.of(connection, site, reader)}


def test_filters_are_each_readers_own(ward: Ward, key: str) -> None:
    database = ward.database
    filters.save(database, SITE, "ann", "night", {"class": "critical"})
    filters.save(database, SITE, "ann", "night", {"class": "urgent"})
    filters.save(database, SITE, "bob", "night", {"class": "read"})
    assert kept(database, "ann") == {"night": {"class": "urgent"}}
    assert kept(database, "bob") == {"night": {"class": "read"}}
    assert kept(database, "ann", "elsewhere") == {}
    filters.delete(database, SITE, "ann", "night")
    assert kept(database, "ann") == {}
    assert kept(database, "bob") == {"night": {"class": "read"}}
    with pytest.raises(NotFoundError):
        filters.delete(database, SITE, "ann", "night")


def test_a_reader_keeps_only_so_many_filters(ward: Ward, key: str) -> None:
    for n in range(filters.MOST):
        filters.save(ward.database, SITE, "ann", f"f{n}", {})
    with pytest.raises(ConflictError, match="forget one"):
        filters.save(ward.database, SITE, "ann", "one more", {})
    filters.save(ward.database, SITE, "ann", "f0", {"class": "read"})  # replaces one
    for bad in ("", "  ", "a/b", "x" * 65, "a\nb"):
        with pytest.raises(ClinicError, match="name"):
            filters.save(ward.database, SITE, "bob", bad, {})

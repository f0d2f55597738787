"""Which package does what: one champion and one challenger, whatever happens, and whose word counts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ward import SITE, NameReader, Ward, dicom, png

from wetread.clinic import audit, deploying, deployments, export, reviews, store, switches, triage, worklist
from wetread.clinic.ai import Ai
from wetread.clinic.deploying import Candidate, Change
from wetread.clinic.deployments import CANARY, CHALLENGER, CHAMPION, SHADOW, Deployment, Voices
from wetread.clinic.jobs import Job
from wetread.clinic.priority import Rule, Rules
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import Code, ConflictError, NotFoundError
from wetread.infer.predict import Analysis

AT = datetime(2026, 1, 1, tzinfo=UTC)


def candidate(model: str, slot: str = "chexpert/adult") -> Candidate:
    return Candidate(slot, model * 64, f"model-{model}", "1")


def row(model: str, stage: str, **values: Any) -> Deployment:
    base: dict[str, Any] = {
        "id": f"{model}-{stage}", "site": "", "slot": "s", "model": model, "model_name": model, "version": "1",
        "share": 0.5, "salt": "salt", "previous": None, "actor": "a", "reason": "", "since": AT, "until": None,
        "ended": None, "why": None, "held": False, "verdict": None,
    }  # fmt: skip
    return Deployment(**base | {"stage": stage} | values)


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder: Path = tmp_path_factory.mktemp("deployed")
    shared = request.param == "postgresql"
    opened = Store(request.getfixturevalue("postgresql") if shared else f"sqlite:///{folder}/clinic.db")
    with opened.write() as connection:
        for site in (SITE, "north"):
            store.ensure_site(connection, site)
    yield opened
    opened.close()


_slots = iter(range(10**9))


@pytest.fixture
def slot() -> str:
    return f"task-{next(_slots)}/adult"


def do(database: Store, deed: str, slot: str, model: str = "", site: str = "", **more: Any) -> Change:
    """Do one thing as the command does: in one transaction."""
    with database.write() as connection:
        if deed == "first":
            begun = deploying.first(connection, SITE, [candidate(model, slot)], (), whole=False)
            found = deployments.slots(deployments.history(connection), "")[slot]
            if found.champion is None:
                raise ConflictError("it challenges nobody")
            return Change("first" if begun else "unchanged", found.champion, "")
        if deed == "shadow":
            return deploying.shadow(connection, site, candidate(model, slot), "tester", "", home=SITE)
        if deed == "canary":
            return deploying.canary(
                connection, deploying.find(connection, site, slot), more.get("share", 0.5), "tester", "", home=SITE
            )
        act = {"promote": deploying.promote, "rollback": deploying.rollback}.get(deed)
        where = deploying.find(connection, site, slot)
        if act is None:
            return deploying.hold(connection, where, "tester", "", home=SITE)
        return act(
            connection, where, more.pop("actor", "tester"), "because", home=SITE, model=more.pop("named", ""), **more
        )


def holds(database: Store, slot: str, site: str = "") -> tuple[str | None, str | None]:
    """Return the first letters of the models of champion and challenger."""
    with database.read() as connection:
        found = deployments.slots(deployments.history(connection, site), site)[slot]
    both = found.champion, found.challenger
    return tuple(each.model[0] if each else None for each in both)  # type: ignore[return-value]


def audited(database: Store) -> list[str]:
    with database.read() as connection:
        table = store.audit.c
        return list(connection.execute(sa.select(table.action).order_by(table.seq)).scalars())


def count(database: Store) -> int:
    with database.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(store.audit)).scalar_one())


# ---------------------------------------------------------------------- the hash


@given(st.text(), st.text("0123456789abcdef", min_size=16, max_size=16), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_only_adds_patients(patient: str, salt: str, one: float, other: float) -> None:
    who = deployments.whose(SITE, patient, "study")
    small, large = (row("n", CANARY, salt=salt, share=share) for share in sorted((one, other)))
    assert small.draws(who) <= large.draws(who)
    assert row("n", CANARY, salt=salt, share=one).draws(who) == row("n", CANARY, salt=salt, share=one).draws(who)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_share_is_right_and_another_salt_draws_others(share: float) -> None:
    count, patients = 20_000, [deployments.whose("north", f"{n:06d}", "study") for n in range(20_000)]
    drew = {salt: {who for who in patients if deployments.drawn(who, salt) < share} for salt in ("a", "b")}
    sd = (count * share * (1 - share)) ** 0.5
    for chosen in drew.values():
        assert abs(len(chosen) - count * share) < 5 * sd
    both = len(drew["a"] & drew["b"])
    assert abs(both - count * share**2) < 5 * (count * share**2) ** 0.5 + 1


# ---------------------------------------------------------------------- whose word counts

_MODELS = "abcx"  # x has no row


@given(
    st.permutations("abc").flatmap(lambda order: st.sampled_from([tuple(order[:n]) for n in range(1, 4)])),
    st.lists(
        st.tuples(
            st.sampled_from(_MODELS), st.sampled_from("12"), st.booleans(), st.sampled_from(["stored", "rejected"])
        ),
        max_size=8,
        unique_by=lambda r: r[:2],
    ),
)  # fmt: skip
def test_of_a_slot_one_package_speaks_and_others_always_do(
    order: tuple[str, ...], said: list[tuple[str, str, bool, str]]
) -> None:
    results = [{"model": m, "instance": i, "suitable": ok, "state": state} for m, i, ok, state in said]
    chosen = Voices((order,), frozenset("abc")).choose(results)
    speaking = {r["model"] for r in chosen} - {"x"}
    assert len(speaking) <= 1
    assert speaking <= set(order)
    assert [r for r in chosen if r["model"] == "x"] == [r for r in results if r["model"] == "x"]
    usable = [r for r in results if r["model"] in order and r["suitable"] and r["state"] == "stored"]
    if usable:  # nobody is silenced by one who has nothing to say
        assert any(r["suitable"] for r in chosen if r["model"] in speaking)
        if all(any(r["model"] == order[0] and r["instance"] == u["instance"] for r in results) for u in usable):
            firsts = [r for r in usable if r["model"] == order[0]]
            assert not firsts or len({r["model"] for r in usable}) == 1 or speaking <= set(order)


def test_the_first_in_order_speaks_unless_it_saw_less() -> None:
    def result(model: str, image: str, suitable: bool = True) -> dict[str, Any]:
        return {"model": model, "instance": image, "suitable": suitable, "state": "stored"}

    voices = Voices((("b", "a"),), frozenset("ab"))
    both = [result("a", "1"), result("b", "1")]
    assert {r["model"] for r in voices.choose(both)} == {"b"}
    assert {r["model"] for r in voices.choose([*both, result("a", "2")])} == {"a"}  # b is still at it
    assert {r["model"] for r in voices.choose([result("a", "1"), result("b", "1", False)])} == {"a"}
    assert {r["model"] for r in voices.choose([result("a", "1", False), result("b", "1", False)])} == {"b"}


def test_a_sites_own_champion_is_no_business_of_those_who_challenge_everywhere() -> None:
    rows = [row("a", CHAMPION), row("b", SHADOW), row("c", CHAMPION, id="own", site="north")]
    north, south = (deployments.slots(rows, site)["s"] for site in ("north", "south"))
    assert north.champion
    assert north.champion.model == "c"
    assert north.challenger is None
    assert south.champion
    assert south.champion.model == "a"
    assert south.challenger
    assert south.challenger.model == "b"
    assert deployments.wanted(rows, "a", ["north", "south"]) == {"south": None}
    assert deployments.wanted(rows, "b", ["north", "south"]) == {"south": AT}
    assert deployments.wanted(rows, "x", ["north", "south"]) is None


def test_the_fingerprint_is_of_what_ranks() -> None:
    champion, shadow, canary = row("a", CHAMPION), row("b", SHADOW), row("b", CANARY)
    assert deployments.fingerprint([], "x") == ""
    assert deployments.fingerprint([champion], "x") == deployments.fingerprint([champion, shadow], "x")
    assert deployments.fingerprint([champion], "x") != deployments.fingerprint([champion, canary], "x")


# ---------------------------------------------------------------------- the stages


def test_every_step_is_one_change_one_audit_row_and_may_be_repeated(database: Store, slot: str) -> None:
    do(database, "first", slot, "a")
    before = len(audited(database))
    steps: list[tuple[str, str, dict[str, Any], str, tuple[str | None, str | None]]] = [
        ("shadow", "b", {}, "model.shadowed", ("a", "b")),
        ("hold", "", {}, "model.held", ("a", "b")),
        ("canary", "", {"share": 0.1}, "model.canaried", ("a", "b")),
        ("canary", "", {"share": 0.3}, "model.canaried", ("a", "b")),
        ("promote", "", {}, "model.promoted", ("b", None)),
        ("rollback", "", {}, "model.rolled_back", ("a", None)),
        ("shadow", "c", {}, "model.shadowed", ("a", "c")),
        ("rollback", "", {}, "model.rolled_back", ("a", None)),
    ]
    for number, (deed, model, more, action, after) in enumerate(steps, 1):
        assert do(database, deed, slot, model, **more).changed, deed
        assert holds(database, slot) == after
        assert not do(database, deed, slot, model, **more).changed, deed
        assert holds(database, slot) == after
        assert audited(database)[before:][-1] == action
        assert len(audited(database)) == before + number
    assert audit.verify(database) is None


def test_a_canary_that_is_widened_keeps_what_studies_drew(database: Store, slot: str) -> None:
    do(database, "first", slot, "a")
    do(database, "shadow", slot, "b")
    one = do(database, "canary", slot, share=0.1).row
    do(database, "hold", slot)
    other = do(database, "canary", slot, share=0.4).row
    assert (one.id, one.salt) == (other.id, other.salt)
    assert not other.held  # a person moved it


def test_a_rolled_back_challenger_leaves_its_champion_alone_however_often_it_is_said(
    database: Store, slot: str
) -> None:
    do(database, "first", slot, "a")
    for model in "bc":
        do(database, "shadow", slot, model)
        do(database, "promote", slot)
    do(database, "shadow", slot, "d")
    assert do(database, "rollback", slot).row.model[0] == "d"
    for _ in range(3):
        assert not do(database, "rollback", slot).changed
    assert holds(database, slot) == ("c", None)
    assert do(database, "rollback", slot, named="model-c").changed  # now it is named
    assert holds(database, slot) == ("b", None)
    assert do(database, "rollback", slot, named="model-b").changed
    assert holds(database, slot) == ("a", None)
    with pytest.raises(ConflictError, match="took the place of nothing"):
        do(database, "rollback", slot, named="model-a")


def fall(database: Store, model: str, *, champions: bool = False) -> list[Change]:
    with database.write() as connection:
        return deploying.fell(connection, model * 64, "took too long", home=SITE, champions=champions)


@pytest.mark.parametrize("by", ["system", "verdict", "another", "earlier"])
def test_what_others_rolled_back_does_not_keep_a_harmful_champion(
    database: Store, slot: str, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    do(database, "first", slot, "a")
    do(database, "shadow", slot, "b")
    do(database, "promote", slot)
    do(database, "shadow", slot, "c")
    if by == "system":
        assert fall(database, "c")
    else:  # the timer that applies a verdict may run as the same user
        others: dict[str, dict[str, Any]] = {"verdict": {"automatic": True}, "another": {"actor": "ben"}}
        assert do(database, "rollback", slot, **others.get(by, {})).changed
    assert holds(database, slot) == ("b", None)
    if by == "earlier":
        later = store.now() + 1.1 * deploying.AGAIN
        monkeypatch.setattr(store, "now", lambda: later)
    assert not do(database, "rollback", slot, named="model-c").changed  # who names it means no other
    done = do(database, "rollback", slot)
    assert (done.done, done.row.model[0], holds(database, slot)) == ("rolled_back", "b", ("a", None))
    assert "model-b 1 (bbbbbbbbbbbb) was rolled back from champion; model-a 1" in done.words
    for named in ("", "model-b"):  # a nervous finger
        assert not do(database, "rollback", slot, named=named).changed
    assert holds(database, slot) == ("a", None)


def test_a_name_that_both_have_is_no_reason_to_roll_back_two(database: Store, slot: str) -> None:
    do(database, "first", slot, "a")
    do(database, "shadow", slot, "b")
    do(database, "promote", slot)
    do(database, "shadow", slot, "c")
    table = store.deployment
    with database.write() as connection:
        connection.execute(table.update().where(table.c.slot == slot).values(model_name="same"))
    assert do(database, "rollback", slot, named="same").row.model[0] == "c"
    said = do(database, "rollback", slot, named="same")
    assert (said.changed, holds(database, slot)) == (False, ("b", None))
    assert "same 1 (bbbbbbbbbbbb) is the champion; --model bbbbbbbbbbbb rolls that back, too" in said.words
    assert do(database, "rollback", slot, named="bbbbbbbbbbbb").changed
    assert holds(database, slot) == ("a", None)


def promoted(database: Store, slot: str, models: str, site: str = "") -> None:
    for model in models:
        do(database, "shadow", slot, model, site)
        do(database, "promote", slot, site=site)


def test_who_came_back_and_fails_goes_to_who_was_before(database: Store, slot: str) -> None:
    do(database, "first", slot, "1")
    promoted(database, slot, "23")
    for model, then in (("3", "2"), ("2", "1")):  # by itself: neither keeps its golden outputs
        assert [change.done for change in fall(database, model, champions=True)] == ["rolled_back"]
        assert holds(database, slot) == (then, None)
    assert not fall(database, "1", champions=True)
    assert holds(database, slot) == ("1", None)


@pytest.mark.parametrize(
    ("order", "back"),
    [("abcd", "cba"), ("abca", "cb"), ("abcbd", "bca"), ("abab", "a"), ("abacad", "acb")],
)  # fmt: skip
def test_the_way_back_leads_round_in_no_circle(database: Store, slot: str, order: str, back: str) -> None:
    """Nobody who was rolled back comes back by a roll back, and nobody who is left out has not been rolled back."""
    do(database, "first", slot, order[0])
    promoted(database, slot, order[1:])
    for then in back:
        champion = holds(database, slot)[0]
        assert do(database, "rollback", slot, named=f"model-{champion}").changed
        assert holds(database, slot) == (then, None)
    with pytest.raises(ConflictError, match="took the place of nothing"):
        do(database, "rollback", slot, named=f"model-{back[-1]}")


def test_a_site_does_not_go_back_to_what_was_rolled_back_everywhere(database: Store, slot: str) -> None:
    do(database, "first", slot, "a")
    promoted(database, slot, "b")
    promoted(database, slot, "c", site="north")
    do(database, "rollback", slot)
    assert holds(database, slot, "north") == ("c", None)
    do(database, "rollback", slot, site="north")
    assert holds(database, slot, "north") == ("a", None)


def test_a_sites_rollout_ends_in_what_every_site_has(database: Store, slot: str) -> None:
    do(database, "first", slot, "a")
    do(database, "shadow", slot, "b", site="north")
    do(database, "promote", slot, site="north")
    assert holds(database, slot, "north") == ("b", None)
    assert holds(database, slot, SITE) == ("a", None)
    do(database, "rollback", slot, site="north")
    assert holds(database, slot, "north") == ("a", None)


def test_what_is_every_sites_is_not_changed_by_a_site(database: Store, slot: str) -> None:
    do(database, "first", slot, "a")
    do(database, "shadow", slot, "b")
    before = count(database)
    for deed, named in (("canary", ""), ("hold", ""), ("promote", ""), ("rollback", ""), ("rollback", "model-a")):
        with pytest.raises(ConflictError, match="leave --site out"):
            do(database, deed, slot, site="north", named=named)
    do(database, "promote", slot)
    with pytest.raises(ConflictError, match="leave --site out"):
        do(database, "rollback", slot, site="north")
    assert holds(database, slot) == holds(database, slot, "north") == ("b", None)
    assert count(database) == before + 1


def test_what_cannot_be_is_said(database: Store, slot: str) -> None:
    with pytest.raises(NotFoundError, match="nothing is deployed there"):
        do(database, "promote", slot)
    do(database, "first", slot, "a")
    for deed in ("canary", "promote", "hold"):
        with pytest.raises(ConflictError, match="nothing challenges"):
            do(database, deed, slot)
    with pytest.raises(ConflictError, match=r"champion of .* already"):
        do(database, "shadow", slot, "a")
    do(database, "shadow", slot, "b")
    with pytest.raises(ConflictError, match="promote it or roll it back"):
        do(database, "shadow", slot, "c")
    with pytest.raises(ConflictError, match="does not challenge"):
        do(database, "promote", slot, named="model-c")


_DEEDS = st.tuples(
    st.sampled_from(["first", "shadow", "canary", "promote", "rollback", "hold"]), st.sampled_from("abc")
)


@settings(max_examples=15)
@given(st.lists(_DEEDS, max_size=10))
@example([("first", "a"), ("shadow", "b"), ("promote", "b"), ("shadow", "a"), ("rollback", "b"), ("rollback", "a")])
def test_whatever_is_done_there_is_one_champion(database: Store, deeds: list[tuple[str, str]]) -> None:
    name = f"task-{next(_slots)}/adult"
    had = False
    for deed, model in deeds:
        before = count(database)
        try:
            change = do(database, deed, name, model)
        except (ConflictError, NotFoundError):
            assert count(database) == before
        else:
            assert count(database) == before + change.changed
        with database.read() as connection:
            rows = [r for r in deployments.history(connection) if r.slot == name]
        now = [r for r in rows if r.until is None]
        champions = [r for r in now if r.stage == CHAMPION]
        assert len(champions) == 1 if had else len(champions) <= 1
        had = had or bool(champions)
        assert len(now) - len(champions) <= 1
        assert len({r.model for r in now}) == len(now)
        assert all((r.until is None) == (r.ended is None) and (r.until is None or r.since <= r.until) for r in rows)


def test_of_two_promotions_at_a_time_one_is_done(database: Store, slot: str) -> None:
    """By two connections, as two commands; then a promotion against a roll back: one of them, never half of each."""
    do(database, "first", slot, "a")
    do(database, "shadow", slot, "b")
    before, other = len(audited(database)), Store(database.url.render_as_string(hide_password=False))
    done: list[Change | Exception] = []
    begin = threading.Barrier(2)

    def act(which: Store, deed: str) -> None:
        begin.wait()
        try:
            done.append(do(which, deed, slot))
        except ConflictError as error:
            done.append(error)

    def both(*deeds: str) -> None:
        threads = [threading.Thread(target=act, args=pair) for pair in zip((database, other), deeds, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    both("promote", "promote")
    assert sorted(change.done for change in done if isinstance(change, Change)) == ["promoted", "unchanged"]
    assert len(audited(database)) == before + 1
    assert holds(database, slot) == ("b", None)
    done.clear()
    do(database, "shadow", slot, "c")
    both("promote", "rollback")
    assert holds(database, slot) in (("b", None), ("c", None))
    other.close()


def test_a_change_that_breaks_off_leaves_nothing(database: Store, slot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    do(database, "first", slot, "a")
    do(database, "shadow", slot, "b")

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(audit, "record", fail)
        with pytest.raises(ZeroDivisionError):
            do(database, "promote", slot)
    assert holds(database, slot) == ("a", "b")
    with database.read() as connection:
        assert all(r.until is None for r in deployments.history(connection) if r.slot == slot)


_KILLED = """
import os, signal, sys
from wetread.clinic import audit, deploying, store
record = audit.record
def kill(*args, **more):
    record(*args, **more)
    os.kill(os.getpid(), signal.SIGKILL)
audit.record = kill
database = store.Store(sys.argv[1])
with database.write() as connection:
    deploying.promote(connection, deploying.find(connection, "", sys.argv[2]), "tester", "", home="default")
"""


@pytest.mark.system
def test_a_process_that_is_killed_in_between_leaves_nothing(database: Store, slot: str) -> None:
    do(database, "first", slot, "a")
    do(database, "shadow", slot, "b")
    before, url = len(audited(database)), database.url.render_as_string(hide_password=False)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WETREAD_")}
    command = [sys.executable, "-c", _KILLED, url, slot]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == -signal.SIGKILL, said.stderr
    assert holds(database, slot) == ("a", "b")
    assert len(audited(database)) == before
    assert do(database, "promote", slot).changed  # the lock went with the process
    assert audit.verify(database) is None


# ---------------------------------------------------------------------- the settings


def named(*pairs: tuple[str, str]) -> list[Candidate]:
    return [candidate(model, slot) for model, slot in pairs]


def test_a_rollout_wins_over_the_settings_and_the_settings_over_themselves(database: Store, slot: str) -> None:
    def start(*models: str, served: tuple[str, ...] = ()) -> None:
        with database.write() as connection:
            deploying.first(
                connection, SITE, named(*((m, slot) for m in models)), [m * 64 for m in served], whole=False
            )

    start("a", "z")  # two of one slot: the first takes part
    assert holds(database, slot) == ("a", None)
    start("b", served=("a",))  # another process still serves a
    assert holds(database, slot) == ("a", None)
    start("b")
    assert holds(database, slot) == ("b", None)
    do(database, "shadow", slot, "c")
    start("c")  # what challenges stays a challenger
    assert holds(database, slot) == ("b", "c")
    do(database, "promote", slot)
    start("b")
    assert holds(database, slot) == ("c", None)


# ---------------------------------------------------------------------- studies


Both = tuple[Ward, NameReader, NameReader]


@contextmanager
def shadowed(folder: Path, new: NameReader) -> Iterator[Both]:
    """Give a clinic of which one package is the champion and another in shadow."""
    old = NameReader("names", "1")
    ward = Ward(folder, [old, new])
    with ward.database.write() as connection:
        store.ensure_site(connection, SITE)
    deploy(ward, "first", old)
    deploy(ward, "shadow", new)
    yield ward, old, new
    ward.database.close()


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    with shadowed(tmp_path, NameReader("names", "2")) as found:
        yield found


def deploy(ward: Ward, deed: str, model: NameReader | None = None, **more: Any) -> Change:
    with ward.database.write() as connection:
        found = deployments.slots(deployments.history(connection), "").get("s")
        if model is not None and deed == "first":
            package = Candidate("s", model.id, model.name, model.version)
            deploying.first(connection, SITE, [package], (), whole=False)
            return Change("", deployments.history(connection)[-1], "")
        if model is not None:
            package = Candidate("s", model.id, model.name, model.version)
            return deploying.shadow(connection, "", package, "tester", "", home=SITE)
        assert found is not None
        if deed == "canary":
            return deploying.canary(connection, found, more["share"], "tester", "", home=SITE)
        return getattr(deploying, deed)(connection, found, "tester", "", home=SITE)


def test_each_new_study_draws_once_and_nobody_waits_for_a_shadow(tmp_path: Path) -> None:
    old, new = NameReader("names", "1"), NameReader("names", "2")
    ward = Ward(tmp_path, [old])
    with ward.database.write() as connection:
        store.ensure_site(connection, SITE)
    deploy(ward, "first", old)
    before = ward.take(png(0), "edema.png").study
    deploy(ward, "shadow", new)
    ward.models[new.id] = new
    ward.take(png(1), "edema.png")
    with ward.database.read() as connection:
        jobs = connection.execute(sa.select(store.job.c.model, store.job.c.floor).order_by(store.job.c.id)).all()
    assert [job.model for job in jobs] == [old.id, old.id, new.id]
    assert jobs[2].floor > jobs[1].floor  # behind all others
    deploy(ward, "canary", share=0.5)
    keys = [ward.take(png(n), "edema.png").study for n in range(2, 12)]
    with ward.database.read() as connection:
        table = store.assignment.c
        drew = {r.study: r.arm for r in connection.execute(sa.select(table.study, table.arm))}
        canary = deployments.history(connection)[-1]
        assert set(drew) == set(keys)
        assert before not in drew
        whose = {key: deployments.whose(SITE, "", key) for key in keys}  # pictures without a patient
        assert all((arm == CHALLENGER) == canary.draws(whose[key]) for key, arm in drew.items())
        floors = {
            r.study: r.floor
            for r in connection.execute(
                sa.select(store.instance.c.study, store.job.c.floor)
                .join(store.instance, store.instance.c.id == store.job.c.instance)
                .where(store.job.c.model == new.id)
            )
        }
        assert all((floors[key] < deployments.LATER) == (drew[key] == CHALLENGER) for key in keys)
        for key in keys:
            voices = deployments.voices(connection, key)
            assert (new.id in voices.unawaited) == (drew[key] == CHAMPION)
    assert ward.work() == 2 + 1 + 20
    with ward.database.read() as connection:
        told = dict(connection.execute(sa.select(store.study.c.id, store.study.c.model)).all())  # type: ignore[arg-type]
    assert {key: told[key] for key in keys} == {
        key: "names 2" if drew[key] == CHALLENGER else "names 1" for key in keys
    }
    ward.database.close()


@pytest.mark.parametrize("stage", [CHAMPION, SHADOW, CANARY])
def test_what_is_deployed_is_read_once_for_what_is_done_to_an_image(tmp_path: Path, stage: str) -> None:
    """Once in the transaction in which it comes, and once in that of each result; a change shows in the next."""
    old, new = NameReader("names", "1"), NameReader("names", "2")
    ward = Ward(tmp_path, [old, new])
    ward.intake._policy = ward.worker._policy = lambda c, site: switches.policy(c, site, Rule(), ai=True)
    with ward.database.write() as connection:
        store.ensure_site(connection, SITE)
    deploy(ward, "first", old)
    deploy(ward, "shadow", new)
    if stage != SHADOW:
        deploy(ward, "canary", share=1.0)
    if stage == CHAMPION:
        deploy(ward, "promote")
    read: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        read.extend(re.findall(r"(?:FROM|JOIN) deployment\b", statement))

    sa.event.listen(ward.database.engine, "before_cursor_execute", note)
    study = ward.take(png(0), "edema.png").study
    assert len(read) == 1
    done = ward.work()
    assert (done, len(read)) == (1 if stage == CHAMPION else 2, 1 + done)
    assert told(ward, study) == ("names 1" if stage == SHADOW else "names 2")
    deploy(ward, "rollback")
    study = ward.take(png(1), "edema.png").study
    ward.work()
    assert told(ward, study) == "names 1"
    ward.database.close()


def told(ward: Ward, study: str) -> str | None:
    """Return the model whose word a study has its place by."""
    with ward.database.read() as connection:
        return connection.execute(sa.select(store.study.c.model).where(store.study.c.id == study)).scalar_one()


def test_a_list_that_is_ordered_anew_is_told_by_what_is_deployed_by_then(both: Both) -> None:
    """Whatever was when somebody set out to order it."""
    ward, _, _ = both
    deploy(ward, "canary", share=1.0)
    study = ward.take(png(0), "edema.png").study
    ward.work()
    with ward.database.read() as connection:
        before = switches.policy(connection, SITE, Rule(), ai=True)
    deploy(ward, "rollback")
    assert triage.rerank(ward.database, before, SITE) == 1
    assert told(ward, study) == "names 1"


def test_all_new_studies_of_a_patient_are_told_by_one_model(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploying.secrets, "token_hex", lambda _: "salt")
    ward, _, _ = both
    prior = ward.take(dicom(99, PatientID="P0")).study
    deploy(ward, "canary", share=0.5)
    patients = [f"P{n}" for n in range(6)]

    def come(visit: int) -> dict[str, list[str]]:
        keys = {who: ward.take(dicom(10 * visit + n, PatientID=who)).study for n, who in enumerate(patients)}
        table = store.assignment.c
        with ward.database.read() as connection:
            drew = dict(connection.execute(sa.select(table.study, table.arm)).all())  # type: ignore[arg-type]
        assert prior not in drew
        return {who: [drew[key], key] for who, key in keys.items()}

    first, second = come(1), come(2)
    arms = {who: arm for who, (arm, _) in first.items()}
    assert set(arms.values()) == {CHALLENGER, CHAMPION}
    assert {who: arm for who, (arm, _) in second.items()} == arms
    deploy(ward, "canary", share=0.01)  # what a study drew stays, whatever its patient would draw now
    third = come(3)
    with ward.database.read() as connection:
        canary, table = deployments.history(connection)[-1], store.assignment.c
        drew = dict(connection.execute(sa.select(table.study, table.arm)).all())  # type: ignore[arg-type]
    assert {drew[key] for who, (_, key) in first.items() if arms[who] == CHALLENGER} == {CHALLENGER}
    assert {who: arm == CHALLENGER for who, (arm, _) in third.items()} == {
        who: canary.draws(deployments.whose(SITE, who, "")) for who in patients
    }


def test_unawaited_by_the_database_is_as_by_study(both: Both) -> None:
    ward, _, new = both
    shadowed = ward.take(png(0), "edema.png").study
    deploy(ward, "canary", share=0.5)
    keys = [shadowed, *(ward.take(png(n), "edema.png").study for n in range(1, 6))]
    table, images = store.job.c, store.instance.c
    with ward.database.read() as connection:
        condition = deployments.unawaited(table.model, images.study, images.site)
        rows = connection.execute(
            sa.select(images.study, table.model).join(store.instance, images.id == table.instance).where(condition)
        ).all()
        by_study = {(key, model) for key in keys for model in deployments.voices(connection, key).unawaited}
    assert {tuple(r) for r in rows} == by_study
    assert (shadowed, new.id) in by_study


def test_what_a_reader_answered_stays_when_it_is_rolled_back(both: Both) -> None:
    ward, old, new = both
    deploy(ward, "canary", share=0.999999)
    read, unread = (ward.take(png(n), "edema.png").study for n in range(2))
    ward.work()
    reviews.save(ward.database, SITE, read, "dr", answers={"Edema": "agree"}, verdict="right", sign=True)
    deploy(ward, "rollback")
    with ward.database.write() as connection:
        for key in (read, unread):
            triage.refresh(connection, key, ward.ranking, store.now())
    for key, version in ((read, new), (unread, old)):
        found = worklist.study(ward.database, SITE, key)
        assert {result.model_id for image in found.images for result in image.results} == {version.id}
        assert found.row.model == f"names {version.version}"


def test_what_a_rolled_back_challenger_refused_is_exported_all_the_same(tmp_path: Path) -> None:
    class Strict(NameReader):
        def analyse(self, path: Path, name: str) -> Analysis:
            return Analysis(self.name, self.id, "screen", False, Code.NOT_CHEST, "no chest")

    with shadowed(tmp_path, Strict("names", "2")) as (ward, _, _):
        study = ward.take(png(0), "edema.png").study
        ward.work()
        deploy(ward, "rollback")
        with ward.database.read() as connection:
            said = set(connection.execute(sa.select(store.image_result.c.code)).scalars())
            [(_, codes)] = export.images_of(connection, study)
    assert said == {None, "NOT_CHEST"}
    assert codes == set()


def test_an_open_job_of_what_was_rolled_back_is_gone(both: Both) -> None:
    ward, old, _ = both
    ward.take(png(0), "edema.png")
    deploy(ward, "rollback")
    with ward.database.read() as connection:
        assert list(connection.execute(sa.select(store.job.c.model)).scalars()) == [old.id]
    assert ward.intake.backfill() == 0  # loaded, and no longer asked


def test_what_a_challenger_still_owes_is_hurried_when_it_is_promoted(both: Both) -> None:
    ward, _, new = both
    ward.take(png(0), "edema.png")
    deploy(ward, "promote")
    with ward.database.read() as connection:
        jobs = connection.execute(sa.select(store.job.c.model, store.job.c.floor)).all()
    assert [job.model for job in jobs] == [new.id]  # the old one's are not wanted any more
    assert jobs[0].floor < deployments.LATER


def test_an_analysis_that_breaks_off_with_its_process_again_is_told_before_it_is_tried_again(tmp_path: Path) -> None:
    ward, told = Ward(tmp_path), list[int]()

    def tell(job: Job) -> bool:
        told.append(job.tries)
        return False

    ward.worker.broke = tell
    ward.take(png(0), "edema.png")
    for _ in range(2):
        assert ward.lease()  # … and killed
        ward.worker.queue.take_back()
        assert not told
    assert ward.work() == 1
    assert told == [3]
    ward.database.close()


def in_shadow(tmp_path: Path) -> tuple[Ward, Ai, NameReader, NameReader]:
    """Give a ward with a champion, a challenger in shadow, and what rolls it back."""
    old, new = NameReader("names", "1"), NameReader("names", "2")
    ward = Ward(tmp_path, [old, new])
    with ward.database.write() as connection:
        store.ensure_site(connection, SITE)
    deploy(ward, "first", old)
    deploy(ward, "shadow", new)
    ai = Ai(ward.database, Settings(), Rules(), tmp_path)
    ai.open([old, new])
    with ward.database.read() as connection:
        ai.challenging = deployments.challenging(deployments.history(connection))
    return ward, ai, old, new


def test_a_challenger_that_ends_the_process_is_not_run_again_once_it_is_rolled_back(tmp_path: Path) -> None:
    ward, ai, old, new = in_shadow(tmp_path)
    ward.worker.broke = ai.broke
    ward.take(png(0), "edema.png")
    assert ward.worker.step()  # the champion's
    for _ in range(2):
        job = ward.lease()  # … and killed
        assert job
        assert job.model == new.id
        ward.worker.queue.take_back()
    ward.work()
    assert (len(old.calls), new.calls) == (1, [])
    with ward.database.read() as connection:
        assert deployments.history(connection)[-1].ended == "rolled_back"
        assert set(connection.execute(sa.select(store.job.c.model)).scalars()) == {old.id}
    ward.database.close()


def test_a_challenger_that_ends_the_process_is_rolled_back_and_a_champion_is_not(tmp_path: Path) -> None:
    ward, ai, old, new = in_shadow(tmp_path)
    for model in (old, new):
        ai.broke(Job(1, "i", "s", SITE, "f" * 64, "f", model.id, 3))
    with ward.database.read() as connection:
        rows = deployments.history(connection)
        off = connection.execute(sa.select(store.ai_switch)).all()
    assert [(r.model, r.ended, r.why) for r in rows if r.until] == [
        (new.id, "rolled_back", "crash: its analysis broke off 2 times")
    ]
    assert off == []
    ward.database.close()

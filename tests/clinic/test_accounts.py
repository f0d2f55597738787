"""People: what a password may be, how it is kept, how often one may guess, and what ends a session."""

from __future__ import annotations

import threading
from datetime import timedelta

import argon2
import pytest
import sqlalchemy as sa
from ward import SITE, Ward

from wetread.clinic import access, accounts, attempts, audit, passwords, store
from wetread.clinic.access import Role
from wetread.clinic.attempts import ThrottledError
from wetread.clinic.store import Store
from wetread.errors import ClinicError, ConflictError, DeniedError, NotFoundError

PASSWORD = "correct horse battery"
OTHER = "staple paper clip ink"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make hashing cheap; one test below looks at the real parameters."""
    monkeypatch.setattr(passwords, "hasher", argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))


@pytest.fixture
def person(ward: Ward) -> accounts.Account:
    return accounts.create(ward.database, "Dr N", "radiologist", SITE, PASSWORD)


def row(ward: Ward) -> sa.Row:
    with ward.database.read() as connection:
        return connection.execute(sa.select(store.account)).one()


def deeds(ward: Ward) -> list[str]:
    return [row["action"] for row in audit.rows(ward.database)]


def alive(ward: Ward, session: str, **more: object) -> bool:
    return access.identify(ward.database, session, kind="session", **more) is not None  # type: ignore[arg-type]


def test_hashes_are_argon2id_as_rfc_9106_recommends() -> None:
    parameters = argon2.extract_parameters(argon2.PasswordHasher().hash("x"))
    assert argon2.PasswordHasher() is not passwords.hasher
    assert parameters.type is argon2.Type.ID
    assert (parameters.memory_cost, parameters.time_cost) == (64 * 1024, 3)


def test_a_name_and_a_password_open_a_session(ward: Ward, person: accounts.Account) -> None:
    session = accounts.log_in(ward.database, "Dr N", PASSWORD, address="10.0.0.1")
    caller = access.identify(ward.database, session, kind="session")
    assert caller is not None
    assert (caller.name, caller.role, caller.site, caller.account) == ("Dr N", Role.RADIOLOGIST, SITE, person.id)
    kept = row(ward).password
    assert kept.startswith("$argon2id$")
    assert PASSWORD not in kept
    assert argon2.PasswordHasher().verify(kept, PASSWORD)  # an independent look at what was stored
    assert accounts.accounts(ward.database)[0].seen_at is not None
    assert deeds(ward) == ["account.created", "session.opened"]


@pytest.mark.parametrize("name", ["dr n", "DR N", "Ｄｒ Ｎ"])
def test_names_that_look_the_same_are_the_same(ward: Ward, person: accounts.Account, name: str) -> None:
    assert alive(ward, accounts.log_in(ward.database, name, PASSWORD))
    with pytest.raises(ConflictError):
        accounts.create(ward.database, name, "engineer", SITE, PASSWORD)
    with pytest.raises(ConflictError):
        accounts.create(ward.database, name, "engineer", "another site", PASSWORD)


def test_a_password_may_be_typed_on_any_keyboard(ward: Ward) -> None:
    accounts.create(ward.database, "Müller", "radiologist", SITE, "ein Äpfelchen für Zoë")
    decomposed = "ein A\u0308pfelchen fu\u0308r Zoe\u0308"
    assert alive(ward, accounts.log_in(ward.database, "Mu\u0308ller", decomposed))


@pytest.mark.parametrize(
    ("name", "password"),
    [("Dr N", "wrong password"), ("Dr N", ""), ("Dr N", PASSWORD + " "), ("nobody here", PASSWORD), ("", ""),
     ("Dr N", "x" * 5000), ("x" * 5000, PASSWORD), ("Dr N\0", PASSWORD), ("\udcff", "\udcff")],
)  # fmt: skip
def test_anything_else_is_refused_in_the_same_words(
    ward: Ward, person: accounts.Account, name: str, password: str
) -> None:
    with pytest.raises(DeniedError) as caught:
        accounts.log_in(ward.database, name, password)
    assert str(caught.value) == "name or password: not right, or the account is disabled"
    assert deeds(ward)[-1] == "login.failed"


def test_an_unknown_name_takes_as_much_work_as_a_wrong_password(
    ward: Ward, person: accounts.Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each refusal computes exactly one hash with the parameters in force; no clock is asked."""
    accounts.enter(ward.database, "https://id", "1", "External", Role.ENGINEER, SITE)
    disabled = accounts.create(ward.database, "Disabled", "engineer", SITE, PASSWORD)
    accounts.change(ward.database, SITE, disabled.id, disabled=True)
    passwords.verify(None, "warm")  # the hash that stands for nobody's is made once
    work: list[str] = []
    verify = argon2.PasswordHasher.verify

    def counted(self: argon2.PasswordHasher, stored: str, password: bytes) -> bool:
        parameters = argon2.extract_parameters(stored)
        work.append(f"{parameters.memory_cost},{parameters.time_cost}")
        return verify(self, stored, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", counted)
    for name in ("Dr N", "nobody here", "External", "Disabled"):
        with pytest.raises(DeniedError):
            accounts.log_in(ward.database, name, PASSWORD if name == "Disabled" else "wrong password")
    assert work == ["64,1"] * 4


def test_a_name_typed_by_a_stranger_is_not_kept(ward: Ward) -> None:
    """People type passwords into the wrong field."""
    with pytest.raises(DeniedError):
        accounts.log_in(ward.database, PASSWORD, "")
    with ward.database.read() as connection:
        for table in store.metadata.sorted_tables:
            assert PASSWORD not in str(connection.execute(sa.select(table)).all())
    assert next(audit.rows(ward.database))["actor"] == "unknown"


@pytest.mark.parametrize(
    ("password", "why"),
    [("short", "12 to"), ("x" * 1025, "12 to"), ("aaaaaaaaaaaaaaaa", "different"), ("abababababab", "different"),
     ("My Name Is Dr N.!", "")],
)  # fmt: skip
def test_what_is_no_password_is_said(ward: Ward, password: str, why: str) -> None:
    if not why:
        with pytest.raises(ClinicError, match="account's name"):
            passwords.check(password, "name is dr n")
        return
    with pytest.raises(ClinicError, match=why) as caught:
        accounts.create(ward.database, "Dr N", "radiologist", SITE, password)
    assert password not in str(caught.value)
    assert accounts.accounts(ward.database) == []


@pytest.mark.parametrize("name", ["", " x", "x" * 65, "a\nb", "operator", "Command Line", "intake", "AE MODALITY"])
def test_names_that_cannot_be(ward: Ward, name: str) -> None:
    with pytest.raises(ClinicError, match="account name"):
        accounts.create(ward.database, name, "radiologist", SITE, PASSWORD)


def test_people_are_no_services(ward: Ward) -> None:
    with pytest.raises(ClinicError, match="not one of"):
        accounts.create(ward.database, "x", "service", SITE, PASSWORD)


def test_a_name_is_a_person_s_or_a_token_s(ward: Ward, person: accounts.Account) -> None:
    with pytest.raises(ConflictError, match="an account has this name"):
        access.create(ward.database, "dr n", "service", SITE)
    access.create(ward.database, "Modality", "service", SITE)
    with pytest.raises(ConflictError, match="a token has this name"):
        accounts.create(ward.database, "modality", "engineer", SITE, PASSWORD)
    access.revoke(ward.database, "Modality", SITE)
    accounts.create(ward.database, "modality", "engineer", SITE, PASSWORD)


def test_a_hash_with_old_parameters_is_renewed_at_the_next_login(
    ward: Ward, person: accounts.Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = row(ward).password
    accounts.log_in(ward.database, "Dr N", PASSWORD)
    assert row(ward).password == old
    monkeypatch.setattr(passwords, "hasher", argon2.PasswordHasher(time_cost=2, memory_cost=128, parallelism=1))
    with pytest.raises(DeniedError):
        accounts.log_in(ward.database, "Dr N", "wrong password")
    assert row(ward).password == old
    accounts.log_in(ward.database, "Dr N", PASSWORD)
    assert "m=128,t=2" in row(ward).password
    assert alive(ward, accounts.log_in(ward.database, "Dr N", PASSWORD))


def test_disabling_ends_sessions_and_enabling_does_not_bring_them_back(ward: Ward, person: accounts.Account) -> None:
    session = accounts.log_in(ward.database, "Dr N", PASSWORD)
    caller = access.identify(ward.database, session, kind="session")
    assert caller is not None
    assert access.still(ward.database, caller)
    assert accounts.change(ward.database, SITE, person.id, disabled=True, actor="admin").disabled_at is not None
    assert not alive(ward, session)
    assert not access.still(ward.database, caller)
    with pytest.raises(DeniedError):
        accounts.log_in(ward.database, "Dr N", PASSWORD)
    accounts.change(ward.database, SITE, person.id, disabled=False, actor="admin")
    assert not alive(ward, session)
    assert alive(ward, accounts.log_in(ward.database, "Dr N", PASSWORD))
    assert deeds(ward)[2:] == ["account.disabled", "login.failed", "account.enabled", "session.opened"]


def test_a_disabled_account_is_out_even_if_its_session_row_is_not(ward: Ward, person: accounts.Account) -> None:
    session = accounts.log_in(ward.database, "Dr N", PASSWORD)
    with ward.database.write() as connection:
        connection.execute(store.account.update().values(disabled_at=store.now()))
    assert not alive(ward, session)


def test_another_role_counts_at_once_and_is_audited(ward: Ward, person: accounts.Account) -> None:
    session = accounts.log_in(ward.database, "Dr N", PASSWORD)
    accounts.change(ward.database, SITE, person.id, role="engineer", actor="admin")
    assert not alive(ward, session)
    last = list(audit.rows(ward.database))[-1]
    assert (last["actor"], last["action"], last["object"]) == ("admin", "account.role", person.id)
    assert last["detail"] == {"from": "radiologist", "to": "engineer"}
    with pytest.raises(ConflictError, match="yours"):
        accounts.change(ward.database, SITE, person.id, role="administrator", actor="dr n")
    accounts.change(ward.database, SITE, person.id, role="engineer", actor="admin")
    assert deeds(ward).count("account.role") == 1  # nothing changed, nothing audited


def test_another_password_ends_the_other_sessions(ward: Ward, person: accounts.Account) -> None:
    here, there = (accounts.log_in(ward.database, "Dr N", PASSWORD) for _ in range(2))
    caller = access.identify(ward.database, here, kind="session")
    assert caller is not None
    with pytest.raises(DeniedError, match="present one"):
        accounts.change_own_password(ward.database, caller, "wrong password", OTHER)
    with pytest.raises(ClinicError, match="12 to"):
        accounts.change_own_password(ward.database, caller, PASSWORD, "short")
    assert alive(ward, there)
    accounts.change_own_password(ward.database, caller, PASSWORD, OTHER)
    assert (alive(ward, here), alive(ward, there)) == (True, False)
    with pytest.raises(DeniedError):
        accounts.log_in(ward.database, "Dr N", PASSWORD)
    accounts.log_in(ward.database, "Dr N", OTHER)
    accounts.set_password(ward.database, SITE, person.id, PASSWORD, actor="admin")
    assert not alive(ward, here)


def test_other_sites_have_no_such_account(ward: Ward, person: accounts.Account) -> None:
    for call in (
        lambda: accounts.change(ward.database, "other", person.id, role="engineer"),
        lambda: accounts.set_password(ward.database, "other", person.id, OTHER),
        lambda: accounts.find(ward.database, "other", "Dr N"),
    ):
        with pytest.raises(NotFoundError):
            call()
    assert accounts.accounts(ward.database, "other") == []


class TestSessions:
    def test_run_out_at_the_latest_after_their_life(self, ward: Ward, person: accounts.Account) -> None:
        session = accounts.log_in(ward.database, "Dr N", PASSWORD, life=timedelta(seconds=0))
        assert not alive(ward, session)

    def test_run_out_when_nobody_uses_them(self, ward: Ward, person: accounts.Account) -> None:
        session, idle = accounts.log_in(ward.database, "Dr N", PASSWORD), timedelta(minutes=30)

        def later(minutes: int) -> None:
            with ward.database.write() as connection:
                for name in ("created_at", "seen_at"):
                    value = connection.execute(sa.select(store.token.c[name])).scalar()
                    if value is not None:
                        changed = {name: value - timedelta(minutes=minutes)}
                        connection.execute(store.token.update().values(**changed))

        later(20)
        assert alive(ward, session, idle=idle)  # a sign of life
        later(20)
        assert alive(ward, session, idle=idle, active=False)  # what the page does by itself is none
        later(20)
        assert not alive(ward, session, idle=idle)
        assert alive(ward, session, idle=timedelta(hours=2))

    def test_a_sign_of_life_that_cannot_be_kept_lets_in(
        self, ward: Ward, person: accounts.Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = accounts.log_in(ward.database, "Dr N", PASSWORD)
        monkeypatch.setattr(access, "_SEEN", timedelta(0))

        def full() -> None:
            raise sa.exc.OperationalError("update", {}, Exception("disk full"))

        monkeypatch.setattr(ward.database, "write", full)
        assert alive(ward, session)


class TestProvider:
    def test_the_first_time_makes_an_account_and_later_ones_follow_it(self, ward: Ward) -> None:
        def enter(name: str, role: Role, site: str = SITE) -> str:
            return accounts.enter(ward.database, "https://id", "42", name, role, site)

        first = enter("Dr N", Role.RADIOLOGIST)
        account = accounts.accounts(ward.database)[0]
        assert (account.name, account.role, account.external) == ("Dr N", "radiologist", True)
        again = enter("Dr N", Role.RADIOLOGIST)
        assert alive(ward, first)
        other = enter("Dr N", Role.ADMINISTRATOR, "north")
        assert (alive(ward, first), alive(ward, again), alive(ward, other)) == (False, False, True)
        enter("Dr N-M", Role.ADMINISTRATOR, "north")
        found = accounts.accounts(ward.database)
        assert [(a.id, a.name, a.site) for a in found] == [(account.id, "Dr N-M", "north")]
        assert {"account.role", "account.renamed"} <= set(deeds(ward))

    def test_nobody_takes_over_a_name(self, ward: Ward, person: accounts.Account) -> None:
        with pytest.raises(ConflictError, match="exists already"):
            accounts.enter(ward.database, "https://id", "42", "DR N", Role.ADMINISTRATOR, SITE)
        accounts.enter(ward.database, "https://id", "42", "Dr O", Role.RADIOLOGIST, SITE)
        with pytest.raises(ConflictError, match="exists already"):
            accounts.enter(ward.database, "https://id", "42", "dr n", Role.RADIOLOGIST, SITE)
        with pytest.raises(ConflictError, match="exists already"):
            accounts.enter(ward.database, "https://other", "42", "Dr O", Role.RADIOLOGIST, SITE)

    def test_has_no_password_here_and_can_be_disabled_here(self, ward: Ward) -> None:
        session = accounts.enter(ward.database, "https://id", "42", "Dr O", Role.RADIOLOGIST, SITE)
        key = accounts.accounts(ward.database)[0].id
        for password in ("", "None", PASSWORD):
            with pytest.raises(DeniedError):
                accounts.log_in(ward.database, "Dr O", password)
        with pytest.raises(ConflictError, match="identity provider"):
            accounts.set_password(ward.database, SITE, key, PASSWORD)
        accounts.change(ward.database, SITE, key, disabled=True)
        assert not alive(ward, session)
        with pytest.raises(DeniedError, match="disabled here"):
            accounts.enter(ward.database, "https://id", "42", "Dr O", Role.RADIOLOGIST, SITE)


class TestAttempts:
    def test_an_account_is_guessed_only_so_often(self, ward: Ward, person: accounts.Account) -> None:
        for number in range(attempts.ACCOUNT.burst):
            with pytest.raises(DeniedError, match="not right"):
                accounts.log_in(ward.database, "Dr N", "wrong password", address=f"10.0.{number}.1")
        with pytest.raises(ThrottledError, match="try again in") as caught:
            accounts.log_in(ward.database, "DR N", PASSWORD, address="10.9.9.9")
        assert 0 < caught.value.seconds <= attempts.ACCOUNT.every_s
        assert deeds(ward).count("login.failed") == attempts.ACCOUNT.burst  # a refusal costs no row
        _pass(ward, attempts.ACCOUNT.every_s)
        assert alive(ward, accounts.log_in(ward.database, "Dr N", PASSWORD, address="10.9.9.9"))
        with pytest.raises(DeniedError, match="not right"):  # a good one emptied the account's bucket
            accounts.log_in(ward.database, "Dr N", "wrong password")

    def test_an_address_guesses_only_so_often_whatever_the_names(self, ward: Ward, person: accounts.Account) -> None:
        for number in range(attempts.ADDRESS.burst):
            with pytest.raises(DeniedError, match="not right"):
                accounts.log_in(ward.database, f"guess {number}", "wrong password", address="2001:db8::1")
        with pytest.raises(ThrottledError):  # all addresses of one network are one
            accounts.log_in(ward.database, "Dr N", PASSWORD, address="2001:db8::ffff")
        assert alive(ward, accounts.log_in(ward.database, "Dr N", PASSWORD, address="2001:db8:1::1"))

    def test_a_department_behind_one_address_is_not_locked_out_by_itself(
        self, ward: Ward, person: accounts.Account
    ) -> None:
        for _ in range(attempts.ADDRESS.burst + 5):
            accounts.log_in(ward.database, "Dr N", PASSWORD, address="10.0.0.1")

    def test_many_at_once_count_as_many(self, ward: Ward, person: accounts.Account) -> None:
        """Counted before the password is looked at, in one transaction each: no race lets more through."""
        results: list[str] = []

        def guess() -> None:
            try:
                accounts.log_in(ward.database, "Dr N", "wrong password", address="10.0.0.1")
            except DeniedError as error:
                results.append(type(error).__name__)

        threads = [threading.Thread(target=guess) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results.count("DeniedError") == attempts.ACCOUNT.burst
        assert results.count("ThrottledError") == 24 - attempts.ACCOUNT.burst

    def test_addresses_are_counted_by_what_one_person_has(self) -> None:
        def key(address: str) -> str:
            return list(attempts.limits("", address))[1]

        assert key("2001:db8::1") == key("2001:db8:0:0:ffff::2") != key("2001:db8:0:1::1")
        assert key("10.0.0.1") == key("::ffff:10.0.0.1") != key("10.0.0.2")
        assert key("") != key("testclient")

    def test_a_clock_set_back_neither_frees_nor_locks_for_ever(self, ward: Ward) -> None:
        keys = attempts.limits("x", "10.0.0.1")
        for _ in range(3):
            attempts.take(ward.database, keys)
        _pass(ward, -3600)
        attempts.take(ward.database, keys)
        with ward.database.read() as connection:
            assert connection.execute(sa.select(sa.func.max(store.attempt.c.level))).scalar() == pytest.approx(
                4, abs=0.5
            )

    def test_what_has_leaked_away_is_forgotten(self, ward: Ward) -> None:
        attempts.take(ward.database, attempts.limits("x", "10.0.0.1"))
        _pass(ward, 3600)
        attempts.take(ward.database, attempts.limits("y", "10.0.0.2"))
        with ward.database.read() as connection:
            assert connection.execute(sa.select(sa.func.count()).select_from(store.attempt)).scalar() == 2


def _pass(ward: Ward, seconds: float) -> None:
    """Let time pass for the buckets."""
    with ward.database.write() as connection:
        for found in connection.execute(sa.select(store.attempt)).all():
            connection.execute(
                store.attempt.update()
                .where(store.attempt.c.key == found.key)
                .values(at=found.at - timedelta(seconds=seconds))
            )


@pytest.mark.system
def test_on_postgresql_several_services_are_one_house(postgresql: str) -> None:
    """Accounts, sessions and counted attempts are common to all that share the database."""
    here, there = Store(postgresql), Store(postgresql)
    person = accounts.create(here, "Dr N", "radiologist", SITE, PASSWORD)
    session = accounts.log_in(here, "Dr N", PASSWORD, address="10.0.0.1")
    assert access.identify(there, session, kind="session") is not None
    for number in range(attempts.ACCOUNT.burst):
        with pytest.raises(DeniedError, match="not right"):
            accounts.log_in((here, there)[number % 2], "Dr N", "wrong password", address="10.0.0.1")
    for store_ in (here, there):
        with pytest.raises(ThrottledError):
            accounts.log_in(store_, "Dr N", PASSWORD, address="10.0.0.1")
    accounts.change(there, SITE, person.id, disabled=True)
    assert access.identify(here, session, kind="session") is None
    for name in ("Dr N\0", "\udcff", "nobody here"):
        with pytest.raises(DeniedError):
            accounts.log_in(here, name, "wrong\0password", address="10.0.0.2")
    secret = access.create(here, "m", "service", SITE, scopes=["view"])
    caller = access.identify(there, secret, kind="api")
    assert caller is not None
    assert [right for right in access.Right if caller.may(right)] == [access.Right.VIEW]
    entered = accounts.enter(there, "https://id", "1", "Dr X", Role.ENGINEER, SITE)
    assert access.identify(here, entered, kind="session") is not None
    assert audit.verify(here) is None
    here.close()
    there.close()

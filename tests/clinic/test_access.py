"""Tokens, links, sessions, roles."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from ward import SITE, Ward

from wetread.clinic import access, accounts, audit, store
from wetread.clinic.access import RIGHTS, Right, Role
from wetread.errors import ClinicError, ConflictError, DeniedError, NotFoundError


def test_a_token_says_who_and_its_secret_is_not_kept(ward: Ward) -> None:
    secret = access.create(ward.database, "modality", "service", SITE)
    caller = access.identify(ward.database, secret, kind="api")
    assert caller is not None
    assert (caller.name, caller.role, caller.site) == ("modality", Role.SERVICE, SITE)
    assert len(secret) >= 43  # 256 bits
    with ward.database.read() as connection:
        for table in store.metadata.sorted_tables:
            assert secret not in str(connection.execute(sa.select(table)).all())


@pytest.mark.parametrize("secret", ["", "x", "é", "\udcff", "a" * 10_000])
def test_other_secrets_are_nobody(ward: Ward, secret: str) -> None:
    access.create(ward.database, "modality", "service", SITE)
    assert access.identify(ward.database, secret, kind="api") is None


def test_a_revoked_token_is_nobody_and_its_name_is_free(ward: Ward) -> None:
    secret = access.create(ward.database, "modality", "service", SITE)
    with pytest.raises(ConflictError, match="exists already"):
        access.create(ward.database, "modality", "engineer", SITE)
    access.revoke(ward.database, "modality", SITE)
    assert access.identify(ward.database, secret, kind="api") is None
    with pytest.raises(NotFoundError):
        access.revoke(ward.database, "modality", SITE)
    access.create(ward.database, "modality", "engineer", SITE)
    assert [(t.role, t.revoked_at is None) for t in access.tokens(ward.database)] == [
        ("service", False),
        ("engineer", True),
    ]


def test_bad_roles_and_names_are_named(ward: Ward) -> None:
    with pytest.raises(ClinicError, match="'king'"):
        access.create(ward.database, "a", "king", SITE)
    for name in ("", "x" * 65, "a\nb"):
        with pytest.raises(ClinicError, match="1 to 64"):
            access.create(ward.database, name, "service", SITE)


def test_a_login_link_works_once(ward: Ward) -> None:
    code = access.login_code(ward.database, "operator", Role.ADMINISTRATOR, SITE)
    session = access.login(ward.database, code)
    caller = access.identify(ward.database, session, kind="session")
    assert caller is not None
    assert caller.role is Role.ADMINISTRATOR
    assert access.identify(ward.database, code, kind="session") is None
    assert access.identify(ward.database, session, kind="api") is None
    with pytest.raises(DeniedError, match="used already"):
        access.login(ward.database, code)
    access.logout(ward.database, caller)
    assert access.identify(ward.database, session, kind="session") is None


def test_links_and_sessions_run_out(ward: Ward) -> None:
    session = access.login(ward.database, access.login_code(ward.database, "o", Role.RADIOLOGIST, SITE))
    code = access.login_code(ward.database, "operator", Role.ADMINISTRATOR, SITE)
    with ward.database.write() as connection:
        connection.execute(
            store.token.update()
            .where(store.token.c.expires_at.is_not(None))
            .values(expires_at=store.now() - timedelta(seconds=1))
        )
    with pytest.raises(DeniedError):
        access.login(ward.database, code)
    assert access.identify(ward.database, session, kind="session") is None


def test_roles_have_only_their_rights(ward: Ward) -> None:
    assert RIGHTS[Role.ADMINISTRATOR] == set(Right)
    assert [role for role in Role if Right.REVIEW in RIGHTS[role]] == [Role.RADIOLOGIST, Role.ADMINISTRATOR]
    assert [role for role in Role if Right.ADMINISTER in RIGHTS[role]] == [Role.ADMINISTRATOR]
    caller = access.identify(ward.database, access.create(ward.database, "m", "service", SITE), kind="api")
    assert caller is not None
    with pytest.raises(DeniedError, match="service may not review"):
        caller.require(Right.REVIEW)


def test_a_service_corrects_only_when_its_scopes_say_so(ward: Ward) -> None:
    whole, narrow, wide = (
        access.identify(ward.database, access.create(ward.database, name, "service", SITE, scopes=scopes), kind="api")
        for name, scopes in (("a", None), ("b", ["upload"]), ("c", ["upload", "correct"]))
    )
    assert whole is not None
    assert narrow is not None
    assert wide is not None
    assert [caller.may(Right.CORRECT) for caller in (whole, narrow, wide)] == [False, False, True]
    assert wide.may(Right.UPLOAD)
    assert not wide.may(Right.VIEW)
    with pytest.raises(ClinicError, match="scope 'correct': role engineer has only"):
        access.create(ward.database, "d", "engineer", SITE, scopes=["correct"])


def test_a_new_link_ends_the_one_before(ward: Ward) -> None:
    old = access.login_code(ward.database, "operator", Role.ADMINISTRATOR, SITE)
    elsewhere = access.login_code(ward.database, "operator", Role.ADMINISTRATOR, "elsewhere")
    new = access.login_code(ward.database, "operator", Role.ADMINISTRATOR, SITE)
    with pytest.raises(DeniedError):
        access.login(ward.database, old, address="10.0.0.9")
    access.login(ward.database, new)
    access.login(ward.database, elsewhere)
    with pytest.raises(DeniedError):
        access.login(ward.database, "made up", address="10.0.0.9")
    said = [(row["action"], row["actor"], row["detail"]) for row in audit.rows(ward.database)]
    made = {"name": "operator", "role": "administrator"}
    assert said[:3] == [("login.link", "command line", made)] * 3
    address = {"by": "link", "address": "10.0.0.9"}
    assert said[3] == ("login.failed", "operator", address)
    assert [(action, actor) for action, actor, _ in said[4:6]] == [("session.opened", "operator")] * 2
    links = [row["object"] for row in audit.rows(ward.database) if row["action"] == "login.link"]
    assert [detail["link"] for _, _, detail in said[4:6]] == [links[2], links[1]]
    assert said[6] == ("login.failed", "unknown", address)


def test_the_first_link_is_made_while_nobody_can_administer(ward: Ward) -> None:
    def link() -> str | None:
        return access.first_code(ward.database, "operator", SITE)

    code = link()
    assert code is not None
    accounts.create(ward.database, "Dr N", "radiologist", SITE, "correct horse battery")
    accounts.create(ward.database, "Root", "administrator", "elsewhere", "correct horse battery")
    code = link()
    assert code is not None
    root = accounts.create(ward.database, "Admin", "administrator", SITE, "correct horse battery")
    assert link() is None
    with pytest.raises(DeniedError):  # what was made before is over, too
        access.login(ward.database, code)
    accounts.change(ward.database, SITE, root.id, disabled=True)
    code = link()
    assert code is not None
    accounts.change(ward.database, SITE, root.id, disabled=False)
    with pytest.raises(DeniedError):
        access.login(ward.database, code)
    accounts.change(ward.database, SITE, root.id, role="engineer")
    code = link()
    assert code is not None
    accounts.enter(ward.database, "https://id.example", "1", "Ms A", Role.ADMINISTRATOR, SITE)
    assert link() is None
    with pytest.raises(DeniedError):
        access.login(ward.database, code)


def test_scopes_narrow_what_a_role_may(ward: Ward) -> None:
    secret = access.create(ward.database, "m", "service", SITE, scopes=["upload"])
    caller = access.identify(ward.database, secret, kind="api")
    assert caller is not None
    assert [right for right in Right if caller.may(right)] == [Right.UPLOAD]
    with pytest.raises(DeniedError, match="with the scopes upload may not view"):
        caller.require(Right.VIEW)
    for scope in ("review", "everything", ""):
        with pytest.raises(ClinicError, match="has only"):
            access.create(ward.database, "n", "service", SITE, scopes=[scope])
    assert access.tokens(ward.database)[0].scopes == ("upload",)


def test_a_scope_never_gives_what_the_role_has_not(ward: Ward) -> None:
    """Even a row that says so."""
    secret = access.create(ward.database, "m", "service", SITE, scopes=["upload"])
    with ward.database.write() as connection:
        connection.execute(store.token.update().values(scopes=["administer", "view"]))
    caller = access.identify(ward.database, secret, kind="api")
    assert caller is not None
    assert [right for right in Right if caller.may(right)] == [Right.VIEW]


def test_a_token_runs_out(ward: Ward) -> None:
    secret = access.create(ward.database, "m", "service", SITE, days=1)
    assert access.identify(ward.database, secret, kind="api") is not None
    with ward.database.write() as connection:
        connection.execute(store.token.update().values(expires_at=store.now() - timedelta(seconds=1)))
    assert access.identify(ward.database, secret, kind="api") is None

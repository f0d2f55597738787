"""People: accounts with a role and a password, or known to the identity provider; how they log in, who changed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from wetread.clinic import access, attempts, audit, passwords, store
from wetread.clinic.access import SESSION_LIFE, Role
from wetread.clinic.store import Store
from wetread.errors import ClinicError, ConflictError, DeniedError, NotFoundError

ROLES = (Role.RADIOLOGIST, Role.ENGINEER, Role.ADMINISTRATOR)
# Names that the audit uses for what no person did.
_RESERVED = frozenset(
    {
        "operator",
        "command line",
        "intake",
        "watched folder",
        "pull",
        "outputs",
        "adt message",
        "simulation",
        "unknown",
        "wetread",
    }
)
_WRONG = "name or password: not right, or the account is disabled"


@dataclass(frozen=True)
class Account:
    """An account as it may be listed; `external` when the person signs in at the identity provider."""

    id: str
    name: str
    role: str
    site: str
    external: bool
    created_at: datetime
    seen_at: datetime | None
    disabled_at: datetime | None


def create(
    database: Store, name: str, role: str, site: str, password: str | None, *, actor: str = "command line"
) -> Account:
    """Make an account.

    Raises
    ------
    ClinicError
        For a name, role or password that cannot be.
    ConflictError
        When an account, here or at another site, or a token in force has the name.
    """
    _check(name, role)
    if password is not None:
        passwords.check(password, name)
    hashed = None if password is None else passwords.hash_(password)
    with database.write() as connection:
        key = _insert(connection, name, role, site, actor, password=hashed)
        return _account(_row(connection, site, key))


def accounts(database: Store, site: str | None = None) -> list[Account]:
    """Return the accounts of a site, or of all, by name."""
    table = store.account
    wanted = sa.select(table).order_by(table.c.site, table.c.login)
    with database.read() as connection:
        rows: Sequence[Row[Any]] = connection.execute(
            wanted if site is None else wanted.where(table.c.site == site)
        ).all()
    return [_account(row) for row in rows]


def find(database: Store, site: str, name: str) -> Account:
    """Return the account of this name.

    Raises
    ------
    NotFoundError
        When the site has none.
    """
    table = store.account.c
    with database.read() as connection:
        row = connection.execute(
            sa.select(store.account).where(table.login == access.login_name(name), table.site == site)
        ).first()
    if row is None:
        raise NotFoundError(f"account {name[:64]!r}: none at site {site!r}; `wetread account list` shows them")
    return _account(row)


def own(database: Store, caller: access.Caller) -> Account | None:
    """Return the caller's account; None for who came in by a login link or a token."""
    if caller.account is None:
        return None
    with database.read() as connection:
        return _account(_row(connection, caller.site, caller.account))


def change(
    database: Store,
    site: str,
    key: str,
    *,
    role: str | None = None,
    disabled: bool | None = None,
    actor: str = "command line",
) -> Account:
    """Give an account another role, disable it or enable it again; what is None stays. Its sessions end.

    Raises
    ------
    ClinicError
        For a role that people cannot have.
    NotFoundError
        When the site has no such account.
    ConflictError
        When people would change their own.
    """
    if role is not None:
        _check_role(role)
    with database.write() as connection:
        row, table = _row(connection, site, key), store.account
        if access.login_name(actor) == row.login:
            raise ConflictError(f"account {row.name!r}: yours; ask another administrator to change it")
        changes: dict[str, Any] = {}
        if role is not None and role != row.role:
            changes["role"] = role
            audit.record(connection, site, actor, "account.role", key, {"from": row.role, "to": role})
        if disabled is not None and disabled != (row.disabled_at is not None):
            changes["disabled_at"] = store.now() if disabled else None
            audit.record(connection, site, actor, "account.disabled" if disabled else "account.enabled", key)
        if changes:
            connection.execute(table.update().where(table.c.id == key).values(**changes))
            access.end_sessions(connection, key)
            _links(connection, site)
        return _account(_row(connection, site, key))


def set_password(
    database: Store, site: str, key: str, password: str, *, actor: str = "command line", keep: str = ""
) -> None:
    """Give an account another password; its sessions end, except the one with the identifier `keep`.

    Raises
    ------
    ClinicError
        For a password that is none.
    NotFoundError
        When the site has no such account.
    ConflictError
        When the person signs in at the identity provider.
    """
    with database.read() as connection:
        row = _row(connection, site, key)
    if row.issuer is not None:
        raise ConflictError(f"account {row.name!r}: signs in at the identity provider; the password is changed there")
    passwords.check(password, row.name)
    hashed = passwords.hash_(password)
    with database.write() as connection:
        connection.execute(store.account.update().where(store.account.c.id == key).values(password=hashed))
        access.end_sessions(connection, key, but=keep)
        _links(connection, site)
        audit.record(connection, site, actor, "account.password", key)


def change_own_password(database: Store, caller: access.Caller, old: str, new: str, *, address: str = "") -> None:
    """Give the caller's own account another password; the caller's other sessions end.

    Raises
    ------
    DeniedError
        When the old one is not right, or the caller has no account.
    ThrottledError
        After too many tries.
    ClinicError
        For a new one that is none.
    """
    if caller.account is None:
        raise DeniedError("password: only people with an account have one")
    with database.read() as connection:
        row = _row(connection, caller.site, caller.account)
    keys = attempts.limits(row.login, address)
    attempts.take(database, keys)
    if not passwords.verify(row.password, old):
        _failed(database, row, address)
        raise DeniedError("password: the present one is not right")
    with database.write() as connection:
        attempts.forgive(connection, keys)
    set_password(database, caller.site, caller.account, new, actor=caller.name, keep=caller.token)


def log_in(database: Store, name: str, password: str, *, address: str = "", life: timedelta = SESSION_LIFE) -> str:
    """Open a session for a name and password and return its secret.

    A name that nobody has takes as long and says the same as a wrong password.

    Raises
    ------
    DeniedError
        When they are not right, or the account is disabled.
    ThrottledError
        After too many attempts for this account or from this address.
    """
    # Nobody's name has what cannot be printed, and some databases refuse even to look for it.
    login, table = access.login_name(name[:256]) if name.isprintable() else "", store.account
    keys = attempts.limits(login, address)
    attempts.take(database, keys)
    with database.read() as connection:
        row = connection.execute(sa.select(table).where(table.c.login == login)).first()
    good = row is not None and row.disabled_at is None
    if not passwords.verify(row.password if row is not None and good else None, password) or row is None:
        _failed(database, row, address)
        raise DeniedError(_WRONG)
    renewed = passwords.hash_(password) if passwords.outdated(row.password) else row.password
    with database.write() as connection:
        changed = connection.execute(
            table.update()
            .where(table.c.id == row.id, table.c.password == row.password, table.c.disabled_at.is_(None))
            .values(seen_at=store.now(), password=renewed)
        )
        if changed.rowcount:
            attempts.forgive(connection, keys)
            return access.open_session(connection, row.name, row.role, row.site, life, by="password", account=row.id)
    _failed(database, row, address)  # disabled, or given another password, in this very moment
    raise DeniedError(_WRONG)


def enter(
    database: Store, issuer: str, subject: str, name: str, role: Role, site: str, *, life: timedelta = SESSION_LIFE
) -> str:
    """Open a session for somebody whom the identity provider vouches for, and return its secret.

    The account is made at the first time and follows what the provider says later. An account with a password is
    never taken over by somebody whom the provider calls the same.

    Raises
    ------
    DeniedError
        When the account is disabled here.
    ConflictError
        When the name is taken.
    ClinicError
        For a name that cannot be.
    """
    _check(name, role)
    table = store.account
    with database.write() as connection:
        row = connection.execute(sa.select(table).where(table.c.issuer == issuer, table.c.subject == subject)).first()
        if row is None:
            key = _insert(connection, name, role, site, name, issuer=issuer, subject=subject)
        else:
            key = row.id
            if row.disabled_at is not None:
                raise DeniedError("account: disabled here; ask an administrator")
            if (row.role, row.site) != (role, site):
                detail = {"from": row.role, "to": role, "from_site": row.site, "by": "identity provider"}
                audit.record(connection, site, row.name, "account.role", key, detail)
                access.end_sessions(connection, key)
            if access.login_name(name) != row.login:
                _taken(connection, name)
                audit.record(connection, site, row.name, "account.renamed", key, {"to": name})
            values = {"name": name, "login": access.login_name(name), "role": role, "site": site}
            store.ensure_site(connection, site)
            connection.execute(table.update().where(table.c.id == key).values(**values))
            _links(connection, site)
        connection.execute(table.update().where(table.c.id == key).values(seen_at=store.now()))
        return access.open_session(connection, name, role, site, life, by="identity provider", account=key)


def _check(name: str, role: str) -> None:
    if not 0 < len(name) <= 64 or not name.isprintable() or name != name.strip():
        raise ClinicError(f"account name {name[:80]!r}: must be 1 to 64 printable characters")
    if access.login_name(name) in _RESERVED or access.login_name(name).startswith("ae "):
        raise ClinicError(f"account name {name!r}: the audit uses it for what no person did; choose another")
    _check_role(role)


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise ClinicError(f"role {role[:80]!r}: not one of {', '.join(ROLES)}")


def _taken(connection: Connection, name: str) -> None:
    """Refuse a name that stands for somebody or something already: the audit must tell them apart."""
    login, tokens = access.login_name(name), store.token.c
    if connection.execute(sa.select(store.account.c.id).where(store.account.c.login == login)).first():
        raise ConflictError(f"account {name!r}: exists already; choose another name")
    used = sa.select(tokens.name).where(tokens.kind == "api", tokens.revoked_at.is_(None))
    if login in map(access.login_name, connection.execute(used).scalars()):
        raise ConflictError(f"account {name!r}: a token has this name; choose another")


def _insert(connection: Connection, name: str, role: str, site: str, actor: str, **more: Any) -> str:
    _taken(connection, name)
    store.ensure_site(connection, site)
    key = store.new_id()
    row = {"id": key, "site": site, "name": name, "login": access.login_name(name), "role": str(role)}
    connection.execute(store.account.insert().values(**row, created_at=store.now(), **more))
    audit.record(connection, site, actor, "account.created", key, {"name": name, "role": str(role)})
    _links(connection, site)
    return key


def _links(connection: Connection, site: str) -> None:
    """End the login links that were for the first administrator, once there is one."""
    if access.administered(connection, site):
        access.end_codes(connection, site)


def _row(connection: Connection, site: str, key: str) -> Row[Any]:
    table = store.account.c
    row = connection.execute(sa.select(store.account).where(table.id == key, table.site == site)).first()
    if row is None:
        raise NotFoundError(f"account {key[:64]}: none at this site")
    return row


def _failed(database: Store, row: Row[Any] | None, address: str) -> None:
    """Audit a failed attempt; a name that nobody has is not kept, since it may be a password in the wrong field."""
    with database.write() as connection:
        site, who, key = ("", "unknown", "") if row is None else (row.site, row.name, row.id)
        access.failed(connection, site, who, key, by="password", address=address)


def _account(row: Row[Any]) -> Account:
    return Account(
        row.id, row.name, row.role, row.site, row.issuer is not None, row.created_at, row.seen_at, row.disabled_at
    )

"""Who may come in, and what they may do there: tokens, one-time login links, sessions, roles.

Secrets are 256 random bits, so a plain SHA-256 in the database is enough: it cannot be searched. They are
shown once, when made. People with a password are in `accounts`.
"""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from wetread.clinic import audit, store
from wetread.clinic.store import Store
from wetread.errors import ClinicError, ConflictError, DeniedError, NotFoundError

LOGIN_LIFE = timedelta(hours=1)
SESSION_LIFE = timedelta(hours=12)
SESSION_IDLE = timedelta(hours=1)
_SEEN = timedelta(minutes=1)  # how exactly it is kept when a secret was last used


class Role(StrEnum):
    """What somebody is."""

    RADIOLOGIST = "radiologist"
    ENGINEER = "engineer"
    ADMINISTRATOR = "administrator"
    SERVICE = "service"


class Right(StrEnum):
    """What somebody may do."""

    UPLOAD = "upload"
    CORRECT = "correct"  # rejection notes and corrected headers that one sends are heeded
    VIEW = "view"
    REVIEW = "review"
    INFER = "infer"
    OPERATE = "operate"
    PULL = "pull"  # have studies fetched from an archive of the setting pull_sources
    ADMINISTER = "administer"


RIGHTS: dict[Role, frozenset[Right]] = {
    Role.RADIOLOGIST: frozenset({Right.UPLOAD, Right.VIEW, Right.REVIEW}),
    Role.ENGINEER: frozenset({Right.UPLOAD, Right.VIEW, Right.INFER, Right.OPERATE, Right.PULL}),
    Role.ADMINISTRATOR: frozenset(Right),
    Role.SERVICE: frozenset({Right.UPLOAD, Right.VIEW, Right.INFER}),
}
# What a token of the role may have besides, when its scopes name it.
GRANTABLE: dict[Role, frozenset[Right]] = {Role.SERVICE: frozenset({Right.CORRECT, Right.PULL})}


@dataclass(frozen=True)
class Caller:
    """Who makes a request, from which site, and by which kind of secret (``api`` or ``session``).

    `account` is that of a person who signed in with a password or at the identity provider; `scopes` narrows what
    a token may do, None does not.
    """

    name: str
    role: Role
    site: str
    kind: str
    token: str
    account: str | None = None
    scopes: frozenset[Right] | None = None

    @property
    def sees_patients(self) -> bool:
        """Whether lists, studies and files say who the patients are; see `wetread.clinic.unnamed`."""
        return self.role is not Role.ENGINEER

    def may(self, right: Right) -> bool:
        """Return whether the caller's role has the right, and the token's scopes do not withhold it."""
        if self.scopes is None:
            return right in RIGHTS[self.role]
        return right in self.scopes and right in _most(self.role)

    def require(self, right: Right) -> None:
        """Raise `DeniedError` when the caller does not have the right."""
        if not self.may(right):
            narrowed = "" if self.scopes is None else f" with the scopes {', '.join(sorted(self.scopes))}"
            raise DeniedError(f"{self.name}: role {self.role}{narrowed} may not {right}; ask an administrator")


@dataclass(frozen=True)
class Token:
    """A token as it may be listed: everything but the secret."""

    id: str
    name: str
    role: str
    site: str
    created_at: datetime
    revoked_at: datetime | None
    expires_at: datetime | None = None
    scopes: tuple[str, ...] | None = None
    seen_at: datetime | None = None


def create(
    database: Store,
    name: str,
    role: str,
    site: str,
    *,
    scopes: Collection[str] | None = None,
    days: float | None = None,
    actor: str = "command line",
) -> str:
    """Make an API token and return its secret, which is not kept.

    Parameters
    ----------
    scopes : collection of str, optional
        The rights that the token may use, of those of the role and `GRANTABLE`; by default all of the role.
    days : float, optional
        After which it runs out; by default never.

    Raises
    ------
    ClinicError
        For a role or scope that does not exist, or an empty or overlong name.
    ConflictError
        When a token of this name is in force, or an account has it.
    """
    if role not in set(Role):
        raise ClinicError(f"role {role!r}: not one of {', '.join(Role)}")
    if not 0 < len(name) <= 64 or not name.isprintable():
        raise ClinicError(f"token name {name[:80]!r}: must be 1 to 64 printable characters")
    allowed = sorted(_most(Role(role)))
    for scope in scopes or ():
        if scope not in allowed:
            raise ClinicError(f"scope {scope!r}: role {role} has only {', '.join(allowed)}")
    until = None if days is None else store.now() + timedelta(days=days)
    tokens = store.token.c
    with database.write() as connection:
        taken = sa.select(tokens.id).where(
            tokens.site == site, tokens.name == name, tokens.kind == "api", tokens.revoked_at.is_(None)
        )
        if connection.execute(taken).first():
            raise ConflictError(f"token {name!r}: exists already; choose another name or revoke it first")
        if connection.execute(sa.select(store.account.c.id).where(store.account.c.login == login_name(name))).first():
            raise ConflictError(f"token {name!r}: an account has this name; choose another")
        store.ensure_site(connection, site)
        narrowed = sorted(set(scopes)) if scopes else None
        secret, key = _insert(connection, "api", name, role, site, until, scopes=narrowed)
        detail = {"name": name, "role": role, "scopes": narrowed, "days": days}
        audit.record(connection, site, actor, "token.created", key, detail)
    return secret


def revoke(database: Store, name: str, site: str, *, actor: str = "command line") -> None:
    """End the API token of this name.

    Raises
    ------
    NotFoundError
        When no token of this name is in force.
    """
    tokens = store.token
    with database.write() as connection:
        ended = connection.execute(
            tokens.update()
            .where(tokens.c.site == site, tokens.c.name == name, tokens.c.kind == "api", tokens.c.revoked_at.is_(None))
            .values(revoked_at=store.now())
        )
        if not ended.rowcount:
            raise NotFoundError(f"token {name!r}: none in force at site {site!r}; `wetread token list` shows them")
        audit.record(connection, site, actor, "token.revoked", name[:64])


def tokens(database: Store) -> list[Token]:
    """Return all API tokens, oldest first."""
    table = store.token
    names = ("id", "name", "role", "site", "created_at", "revoked_at", "expires_at", "scopes", "seen_at")
    columns = [table.c[name] for name in names]
    with database.read() as connection:
        rows = connection.execute(sa.select(*columns).where(table.c.kind == "api").order_by(table.c.created_at))
        return [Token(**row | {"scopes": row["scopes"] and tuple(row["scopes"])}) for row in map(dict, rows.mappings())]


def login_code(database: Store, name: str, role: Role, site: str, *, actor: str = "command line") -> str:
    """Make the code of a login link, good for one use within an hour; the site's codes before it end."""
    with database.write() as connection:
        store.ensure_site(connection, site)
        end_codes(connection, site)
        code, key = _insert(connection, "login", name, role, site, store.now() + LOGIN_LIFE)
        audit.record(connection, site, actor, "login.link", key, {"name": name, "role": str(role)})
    return code


def first_code(database: Store, name: str, site: str, *, actor: str = "command line") -> str | None:
    """Make the code of an administrator's login link; None when the site has an administrator who can log in."""
    with database.read() as connection:
        if administered(connection, site):
            return None
    return login_code(database, name, Role.ADMINISTRATOR, site, actor=actor)


def administered(connection: Connection, site: str) -> bool:
    """Return whether a site has an administrator who can log in, by password or at the identity provider."""
    table = store.account.c
    able = sa.and_(table.disabled_at.is_(None), sa.or_(table.password.is_not(None), table.issuer.is_not(None)))
    there = sa.select(table.id).where(table.site == site, table.role == Role.ADMINISTRATOR.value, able)
    return connection.execute(there.limit(1)).first() is not None


def end_codes(connection: Connection, site: str) -> None:
    """End the site's login links that nobody used yet."""
    table = store.token
    unused = (table.c.site == site, table.c.kind == "login", table.c.revoked_at.is_(None))
    connection.execute(table.update().where(*unused).values(revoked_at=store.now()))


def login(database: Store, code: str, life: timedelta = SESSION_LIFE, *, address: str = "") -> str:
    """Turn a login code into a session and return the session's secret.

    Parameters
    ----------
    address : str
        Where it comes from; for the audit.

    Raises
    ------
    DeniedError
        When the code is unknown, used or out of date.
    """
    table = store.token
    with database.write() as connection:
        row = connection.execute(
            table.update()
            .where(
                table.c.hash == _hash(code),
                table.c.kind == "login",
                table.c.revoked_at.is_(None),
                table.c.expires_at > store.now(),
            )
            .values(revoked_at=store.now())
            .returning(table.c.id, table.c.name, table.c.role, table.c.site)
        ).first()
        if row is not None:
            return open_session(connection, row.name, row.role, row.site, life, by="link", link=row.id)
        old = connection.execute(
            sa.select(table.c.id, table.c.name, table.c.site).where(
                table.c.hash == _hash(code), table.c.kind == "login"
            )
        ).first()
        site, who, key = ("", "unknown", "") if old is None else (old.site, old.name, old.id)
        failed(connection, site, who, key, by="link", address=address)
    raise DeniedError("login link: unknown, used already, or out of date; restart `wetread serve`")


def failed(connection: Connection, site: str, who: str, what: str, *, by: str, address: str, **more: str) -> None:
    """Audit an attempt to come in that was refused."""
    audit.record(connection, site, who, "login.failed", what, {"by": by, "address": address[:64], **more})


def open_session(
    connection: Connection,
    name: str,
    role: str,
    site: str,
    life: timedelta,
    *,
    by: str,
    account: str | None = None,
    **more: str,
) -> str:
    """Open a session, in the transaction of what gave the right to it, and return its secret."""
    secret, key = _insert(connection, "session", name, role, site, store.now() + life, account=account)
    audit.record(connection, site, name, "session.opened", key, {"by": by, **more})
    return secret


def logout(database: Store, caller: Caller) -> None:
    """End the caller's session."""
    with database.write() as connection:
        connection.execute(store.token.update().where(store.token.c.id == caller.token).values(revoked_at=store.now()))
        audit.record(connection, caller.site, caller.name, "session.closed", caller.token)


def end(database: Store, secret: str) -> None:
    """End the session with this secret, if there is one: another takes its place."""
    table = store.token
    theirs = (table.c.hash == _hash(secret), table.c.kind == "session", table.c.revoked_at.is_(None))
    with database.write() as connection:
        ended = table.update().where(*theirs).values(revoked_at=store.now())
        row = connection.execute(ended.returning(table.c.id, table.c.site, table.c.name)).first()
        if row is not None:
            audit.record(connection, row.site, row.name, "session.closed", row.id, {"by": "another login"})


def end_sessions(connection: Connection, account: str, but: str = "") -> None:
    """End every session of an account, except the one with the identifier `but`."""
    table = store.token
    theirs = (table.c.account == account, table.c.kind == "session", table.c.revoked_at.is_(None), table.c.id != but)
    connection.execute(table.update().where(*theirs).values(revoked_at=store.now()))


def identify(
    database: Store, secret: str, *, kind: str, idle: timedelta = SESSION_IDLE, active: bool = True
) -> Caller | None:
    """Return who holds the secret of an ``api`` token or a ``session``, or None.

    Parameters
    ----------
    idle : timedelta
        After which a session that nobody uses ends.
    active : bool
        Whether this is a sign of life. What a page does by itself is none.
    """
    table = store.token.c
    with database.read() as connection:
        row = connection.execute(_holders().where(table.hash == _hash(secret), table.kind == kind)).first()
    if row is None or not _in_force(row, idle):
        return None
    if active and store.now() - (row.seen_at or row.created_at) > _SEEN:
        with suppress(SQLAlchemyError), database.write() as connection:  # a full disk ends no session at once
            connection.execute(store.token.update().where(table.id == row.id).values(seen_at=store.now()))
    scopes = None if row.scopes is None else frozenset(Right(scope) for scope in row.scopes)
    role = row.role if row.account is None else row.account_role
    return Caller(row.name, Role(role), row.site, row.kind, row.id, row.account, scopes)


def still(database: Store, caller: Caller, idle: timedelta = SESSION_IDLE) -> bool:
    """Return whether a caller who was identified before is still let in, for answers that take long."""
    with database.read() as connection:
        row = connection.execute(_holders().where(store.token.c.id == caller.token)).first()
    return row is not None and _in_force(row, idle) and (row.account is None or row.account_role == caller.role)


def _holders() -> sa.Select[Any]:
    """Select tokens with what their account says now, so that a change of it counts at once."""
    account = store.account.c
    joined = store.token.outerjoin(store.account, account.id == store.token.c.account)
    return sa.select(
        store.token, account.role.label("account_role"), account.disabled_at.label("account_disabled_at")
    ).select_from(joined)


def _in_force(row: sa.Row[Any], idle: timedelta) -> bool:
    now = store.now()
    if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
        return False
    if row.kind == "session" and (row.seen_at or row.created_at) + idle <= now:
        return False
    return row.account is None or (row.account_role is not None and row.account_disabled_at is None)


def login_name(name: str) -> str:
    """Return a name as names are compared: letters that look or mean the same are one."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _most(role: Role) -> frozenset[Right]:
    """Return what a token of a role may at most be given."""
    return RIGHTS[role] | GRANTABLE.get(role, frozenset())


def _insert(
    connection: Connection, kind: str, name: str, role: str, site: str, expires_at: datetime | None, **more: Any
) -> tuple[str, str]:
    secret, key = secrets.token_urlsafe(32), store.new_id()
    connection.execute(
        store.token.insert().values(
            id=key,
            site=site,
            kind=kind,
            name=name,
            role=str(role),
            hash=_hash(secret),
            created_at=store.now(),
            expires_at=expires_at,
            **more,
        )
    )
    return secret, key


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()

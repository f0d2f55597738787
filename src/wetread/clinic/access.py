"""Who may come in, and what they may do there: tokens, one-time login links, sessions, roles.

Secrets are 256 random bits, so a plain SHA-256 in the database is enough: it cannot be searched. They are
shown once, when made.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import audit, store
from wetread.clinic.store import Store
from wetread.errors import ClinicError, ConflictError, DeniedError, NotFoundError

LOGIN_LIFE = timedelta(hours=1)
SESSION_LIFE = timedelta(hours=12)


class Role(StrEnum):
    """What somebody is."""

    RADIOLOGIST = "radiologist"
    ENGINEER = "engineer"
    ADMINISTRATOR = "administrator"
    SERVICE = "service"


class Right(StrEnum):
    """What somebody may do."""

    UPLOAD = "upload"
    VIEW = "view"
    REVIEW = "review"
    OPERATE = "operate"
    ADMINISTER = "administer"


RIGHTS: dict[Role, frozenset[Right]] = {
    Role.RADIOLOGIST: frozenset({Right.UPLOAD, Right.VIEW, Right.REVIEW}),
    Role.ENGINEER: frozenset({Right.UPLOAD, Right.VIEW, Right.OPERATE}),
    Role.ADMINISTRATOR: frozenset(Right),
    Role.SERVICE: frozenset({Right.UPLOAD, Right.VIEW}),
}


@dataclass(frozen=True)
class Caller:
    """Who makes a request, from which site, and by which kind of secret (``api`` or ``session``)."""

    name: str
    role: Role
    site: str
    kind: str
    token: str

    def may(self, right: Right) -> bool:
        """Return whether the caller's role has the right."""
        return right in RIGHTS[self.role]

    def require(self, right: Right) -> None:
        """Raise `DeniedError` when the caller's role does not have the right."""
        if not self.may(right):
            raise DeniedError(f"{self.name}: role {self.role} may not {right}; ask an administrator")


@dataclass(frozen=True)
class Token:
    """A token as it may be listed: everything but the secret."""

    id: str
    name: str
    role: str
    site: str
    created_at: datetime
    revoked_at: datetime | None


def create(database: Store, name: str, role: str, site: str, *, actor: str = "command line") -> str:
    """Make an API token and return its secret, which is not kept.

    Raises
    ------
    ClinicError
        For a role that does not exist, or an empty or overlong name.
    ConflictError
        When a token of this name is in force.
    """
    if role not in set(Role):
        raise ClinicError(f"role {role!r}: not one of {', '.join(Role)}")
    if not 0 < len(name) <= 64 or not name.isprintable():
        raise ClinicError(f"token name {name[:80]!r}: must be 1 to 64 printable characters")
    tokens = store.token.c
    with database.write() as connection:
        taken = sa.select(tokens.id).where(
            tokens.site == site, tokens.name == name, tokens.kind == "api", tokens.revoked_at.is_(None)
        )
        if connection.execute(taken).first():
            raise ConflictError(f"token {name!r}: exists already; choose another name or revoke it first")
        store.ensure_site(connection, site)
        secret, key = _insert(connection, "api", name, role, site, None)
        audit.record(connection, site, actor, "token.created", key, {"name": name, "role": role})
    return secret


def revoke(database: Store, name: str, site: str, *, actor: str = "command line") -> None:
    """End the API token of this name, and the sessions that carry it.

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
    columns = (table.c.id, table.c.name, table.c.role, table.c.site, table.c.created_at, table.c.revoked_at)
    with database.read() as connection:
        rows = connection.execute(sa.select(*columns).where(table.c.kind == "api").order_by(table.c.created_at))
        return [Token(*row) for row in rows]


def login_code(database: Store, name: str, role: Role, site: str) -> str:
    """Make the code of a login link, good for one use within an hour."""
    with database.write() as connection:
        store.ensure_site(connection, site)
        code, _ = _insert(connection, "login", name, role, site, store.now() + LOGIN_LIFE)
    return code


def login(database: Store, code: str) -> str:
    """Turn a login code into a session and return the session's secret.

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
            .returning(table.c.name, table.c.role, table.c.site)
        ).first()
        if row is None:
            raise DeniedError("login link: unknown, used already, or older than an hour; restart `wetread serve`")
        secret, key = _insert(connection, "session", row.name, row.role, row.site, store.now() + SESSION_LIFE)
        audit.record(connection, row.site, row.name, "session.opened", key)
    return secret


def logout(database: Store, caller: Caller) -> None:
    """End the caller's session."""
    with database.write() as connection:
        connection.execute(store.token.update().where(store.token.c.id == caller.token).values(revoked_at=store.now()))
        audit.record(connection, caller.site, caller.name, "session.closed", caller.token)


def identify(database: Store, secret: str, *, kind: str) -> Caller | None:
    """Return who holds the secret of an ``api`` token or a ``session``, or None."""
    table = store.token
    with database.read() as connection:
        row = connection.execute(sa.select(table).where(table.c.hash == _hash(secret), table.c.kind == kind)).first()
    if row is None or row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= store.now()):
        return None
    return Caller(row.name, Role(row.role), row.site, row.kind, row.id)


def _insert(
    connection: Connection, kind: str, name: str, role: str, site: str, expires_at: datetime | None
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
        )
    )
    return secret, key


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()

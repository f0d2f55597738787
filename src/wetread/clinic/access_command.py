"""`wetread token`, `wetread account` and `wetread audit`: who may come in, and who did what.

Passwords come from a prompt or from standard input, never as an argument, which every user of the machine could see.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from datetime import datetime

    from wetread.clinic.store import Store
    from wetread.config import Settings

token = typer.Typer(no_args_is_help=True, help="API tokens, for programs that send studies or read results.")
account = typer.Typer(no_args_is_help=True, help="Accounts, for people who log in with a name and a password.")
audit = typer.Typer(no_args_is_help=True, help="The audit: who did what, when, in a chain that shows tampering.")

_Data = Annotated[Path, typer.Option(help="Data folder of the server.")]
_Name = Annotated[str, typer.Argument(help="The account's name.")]
_Site = Annotated[str | None, typer.Option(help="Its site; default: setting site.")]
_Json = Annotated[bool, typer.Option("--json", help="Print a JSON list.")]
_Actor = Annotated[str | None, typer.Option(help="Only what this one did.")]
_Action = Annotated[str | None, typer.Option(help="Only this action, or with a dot at its end all that begin so.")]
_Object = Annotated[str | None, typer.Option("--object", help="Only what was done to this (an identifier).")]
_Since = Annotated[str | None, typer.Option(help="Only from this time on, e.g. 2026-01-31 or 2026-01-31T08:00Z.")]


@contextmanager
def _open(data: Path, *, make: bool = False) -> Iterator[tuple[Store, Settings]]:
    """Open a clinic's database; a mistyped folder is an error, except to what may come before the first start."""
    from wetread import config
    from wetread.clinic.store import Store

    settings = config.load(Path("wetread.toml"))
    database = (Store.open if make else Store.existing)(data, settings.database)
    try:
        yield database, settings
    finally:
        database.close()


@token.command("create")
def token_create(
    name: Annotated[str, typer.Argument(help="Who will use it; shown in the audit.")],
    data: _Data,
    role: Annotated[str, typer.Option(help="radiologist, engineer, administrator or service.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="A right of the role to keep; may be repeated. Default: all of them.")
    ] = None,
    days: Annotated[float | None, typer.Option(help="Days after which it runs out; default: never.", min=0)] = None,
) -> None:
    """Make a token and print it, and nothing else. It is shown this once.

    Example: `wetread token create modality-1 --role service --scope upload --data clinic`
    """
    from wetread.clinic import access

    with _open(data, make=True) as (database, settings):
        typer.echo(access.create(database, name, role, settings.site, scopes=scope, days=days))


@token.command("list")
def token_list(data: _Data, as_json: _Json = False) -> None:
    """List the tokens; their secrets are not kept anywhere."""
    import json
    from dataclasses import asdict

    from wetread.clinic import access

    with _open(data) as (database, _):
        found = access.tokens(database)
    if as_json:
        typer.echo(json.dumps([asdict(t) for t in found], default=str, indent=2))
        return
    for t in found:
        state = f"revoked {t.revoked_at:%Y-%m-%d}" if t.revoked_at else "in force"
        if t.expires_at and not t.revoked_at:
            state += f" until {t.expires_at:%Y-%m-%d}"
        scopes = ",".join(t.scopes) if t.scopes is not None else "all scopes"
        typer.echo(f"{t.name}\t{t.role}\t{t.site}\tmade {t.created_at:%Y-%m-%d}\t{state}\t{scopes}")


@token.command("revoke")
def token_revoke(name: Annotated[str, typer.Argument(help="The token's name.")], data: _Data) -> None:
    """End a token at once."""
    from wetread.clinic import access

    with _open(data) as (database, settings):
        access.revoke(database, name, settings.site)


@account.command("create")
def account_create(
    name: _Name,
    data: _Data,
    role: Annotated[str, typer.Option(help="radiologist, engineer or administrator.")],
    site: _Site = None,
) -> None:
    """Make an account; asks for the password, or reads it from standard input.

    Example: `wetread account create 'Dr N' --role radiologist --data clinic`
    """
    from wetread.clinic import accounts

    with _open(data, make=True) as (database, settings):
        accounts.create(database, name, role, site or settings.site, _password())


@account.command("list")
def account_list(data: _Data, as_json: _Json = False) -> None:
    """List the accounts of all sites."""
    import json
    from dataclasses import asdict

    from wetread.clinic import accounts

    with _open(data) as (database, _):
        found = accounts.accounts(database)
    if as_json:
        typer.echo(json.dumps([asdict(a) for a in found], default=str, indent=2))
        return
    for a in found:
        state = f"disabled {a.disabled_at:%Y-%m-%d}" if a.disabled_at else "enabled"
        seen = f"seen {a.seen_at:%Y-%m-%d}" if a.seen_at else "never seen"
        by = "identity provider" if a.external else "password"
        typer.echo(f"{a.name}\t{a.role}\t{a.site}\t{by}\t{seen}\t{state}")


@account.command("disable")
def account_disable(name: _Name, data: _Data, site: _Site = None) -> None:
    """Let nobody in by this account any more, and end its sessions."""
    _change(name, data, site, disabled=True)


@account.command("enable")
def account_enable(name: _Name, data: _Data, site: _Site = None) -> None:
    """Let people in by a disabled account again."""
    _change(name, data, site, disabled=False)


@account.command("role")
def account_role(
    name: _Name,
    role: Annotated[str, typer.Argument(help="radiologist, engineer or administrator.")],
    data: _Data,
    site: _Site = None,
) -> None:
    """Give an account another role, and end its sessions."""
    _change(name, data, site, role=role)


@account.command("password")
def account_password(name: _Name, data: _Data, site: _Site = None) -> None:
    """Give an account another password, from a prompt or standard input, and end its sessions."""
    from wetread.clinic import accounts

    with _open(data) as (database, settings):
        found = accounts.find(database, site or settings.site, name)
        accounts.set_password(database, found.site, found.id, _password())


@audit.command("verify")
def audit_verify(
    data: _Data,
    expect: Annotated[
        str, typer.Option(help="The head that an earlier call printed; it must still be in the chain.", metavar="HASH")
    ] = "",
) -> None:
    """Follow the chain from its first row to its last, and print how many there are and the hash of the last.

    Keep that hash where whoever owns the database cannot write: only against it does a chain that was cut short show.

    Example: `wetread audit verify --data clinic`
    """
    from wetread.clinic import audit
    from wetread.errors import ClinicError

    with _open(data) as (database, _):
        found = audit.examine(database, expect.strip())
    if found.broken is not None:
        raise ClinicError(
            f"audit: row {found.broken} does not follow the one before it; a row was changed, moved or taken out there"
        )
    if found.missing:
        raise ClinicError(f"audit: no row has the hash {expect[:80]!r}; the chain was cut short or written anew")
    typer.echo(f"{found.rows} rows, whole; head {found.head}")


@audit.command("list")
def audit_list(
    data: _Data,
    actor: _Actor = None,
    action: _Action = None,
    what: _Object = None,
    since: _Since = None,
    last: Annotated[int, typer.Option(help="At most so many, the newest.", min=1)] = 50,
) -> None:
    """Print the newest rows: when, site, who, what, to what, and more.

    Example: `wetread audit list --data clinic --action login. --last 20`
    """
    import json

    from wetread.clinic import audit

    moment = _moment(since)
    with _open(data) as (database, _):
        for row in audit.rows(database, actor=actor, action=action, what=what, since=moment, last=last):
            detail = json.dumps(row["detail"], ensure_ascii=False) if row["detail"] else ""
            words = (row["at"], row["site"], row["actor"], row["action"], row["object"], detail)
            typer.echo("\t".join(words).rstrip())


@audit.command("export")
def audit_export(
    data: _Data,
    as_: Annotated[
        Literal["jsonl", "csv"], typer.Option("--as", help="jsonl: one JSON object a line; csv: a table.")
    ] = "jsonl",
    actor: _Actor = None,
    action: _Action = None,
    what: _Object = None,
    since: _Since = None,
) -> None:
    """Print the rows with their hashes, for an archive or another tool. That it was done is audited as well.

    Example: `wetread audit export --data clinic > audit.jsonl`
    """
    import csv
    import json

    from wetread.clinic import audit

    wanted = {"actor": actor, "action": action, "object": what, "since": since}
    detail = {name: value for name, value in wanted.items() if value is not None}
    moment, table = _moment(since), csv.writer(sys.stdout, lineterminator="\n")
    with _open(data) as (database, settings):
        with database.write() as connection:
            audit.record(connection, settings.site, "command line", "audit.exported", "", detail)
        rows = audit.rows(database, actor=actor, action=action, what=what, since=moment)
        for number, row in enumerate(rows):
            if as_ == "jsonl":
                typer.echo(json.dumps(row, ensure_ascii=False))
                continue
            if not number:
                table.writerow(row)
            cells = (json.dumps(v, ensure_ascii=False) if isinstance(v, dict) else _cell(v) for v in row.values())
            table.writerow(cells)


def _change(name: str, data: Path, site: str | None, *, role: str | None = None, disabled: bool | None = None) -> None:
    from wetread.clinic import accounts

    with _open(data) as (database, settings):
        found = accounts.find(database, site or settings.site, name)
        accounts.change(database, found.site, found.id, role=role, disabled=disabled)


def _password() -> str:
    """Ask for a password twice, or take the first line of standard input when that is no terminal."""
    if sys.stdin.isatty():
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\r\n")


def _moment(text: str | None) -> datetime | None:
    """Return a time that was given as ISO 8601; without a zone it is UTC."""
    from datetime import UTC, datetime

    from wetread.errors import ClinicError

    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ClinicError(f"--since {text[:80]!r}: not a time; write it as 2026-01-31 or 2026-01-31T08:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _cell(value: object) -> object:
    """Keep a spreadsheet from taking text for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value

"""What the commands of the closed loop have in common: whose clinic, who asks, since when."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wetread.errors import ConfigError

if TYPE_CHECKING:
    from wetread.clinic.store import Store
    from wetread.config import Settings

Data = Annotated[Path, typer.Option(help="Data folder of the server.")]
Site = Annotated[str | None, typer.Option(help="The site; default: setting site.")]
AnySite = Annotated[str | None, typer.Option("--site", help="The only site; default: every one.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def opened(data: Path, url: str | None = None) -> Iterator[tuple[Store, Settings]]:
    """Open the database of a clinic that is there, by default that of the settings, which come along."""
    from wetread import config
    from wetread.clinic.store import Store

    settings = config.load(Path("wetread.toml"))
    database = Store.existing(data, settings.database if url is None else url)
    try:
        yield database, settings
    finally:
        database.close()


@contextmanager
def clinic(data: Path, site: str | None) -> Iterator[tuple[Store, str]]:
    """Open the database of a clinic that is there, and say which site is meant."""
    with opened(data) as (database, settings):
        yield database, site or settings.site


def sites(database: Store, site: str | None) -> list[str]:
    """Return the site that was asked for, or every one."""
    import sqlalchemy as sa

    from wetread.clinic import store

    if site:
        return [site]
    with database.read() as connection:
        return list(connection.execute(sa.select(store.site.c.name).order_by(store.site.c.name)).scalars())


def actor() -> str:
    """Return who gives the command, for the audit."""
    return f"command line ({getpass.getuser()})"[:64]


def moment(text: str | None, option: str) -> datetime | None:
    """Return a time that was given as ISO 8601, in UTC unless it says otherwise; raises `ConfigError`."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option} {text}: not a time; write 2026-01-31 or 2026-01-31T08:00Z") from None
    return found.replace(tzinfo=found.tzinfo or UTC)

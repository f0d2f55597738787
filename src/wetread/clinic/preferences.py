"""What a reader prefers, kept under their name: so far their own keys."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from wetread.clinic import store
from wetread.clinic.store import Store
from wetread.errors import ClinicError, ConflictError

KEYS = "keys"
MOST = 200  # actions
# What answers keys on one page: the first part of an action's name.
PAGES = (("help", "worklist"), ("help", "study", "viewer"))
_ACTION = re.compile(r"(help|worklist|study|viewer)(\.[a-z-]{1,40})?", re.ASCII)
_MODIFIERS = frozenset({"Shift", "Control", "Alt", "Meta", "AltGraph", "CapsLock", "Dead", "Process", "Unidentified"})


def get(database: Store, site: str, reader: str, name: str) -> Any:
    """Return what a reader prefers; None when they never said."""
    table = store.preference.c
    wanted = sa.select(table.value).where(table.site == site, table.reader == reader, table.name == name)
    with database.read() as connection:
        return connection.execute(wanted).scalar()


def put(database: Store, site: str, reader: str, name: str, value: Any) -> None:
    """Keep what a reader prefers; None forgets it."""
    table = store.preference
    with database.write() as connection:
        connection.execute(table.delete().where(table.c.site == site, table.c.reader == reader, table.c.name == name))
        if value is not None:
            store.ensure_site(connection, site)
            connection.execute(table.insert().values(site=site, reader=reader, name=name, value=value, at=store.now()))


def check_keys(keys: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return a reader's keys as they are kept: action → keys, of all actions.

    Raises
    ------
    ClinicError
        For what is no action or no key.
    ConflictError
        When a key would mean two things on one page.
    """
    if len(keys) > MOST:
        raise ClinicError(f"keys: {len(keys)} actions; at most {MOST}")
    for action, own in keys.items():
        if not _ACTION.fullmatch(action):
            raise ClinicError(f"keys: {action[:64]!r} is no action; the list on ? has them all")
        if not 0 < len(own) <= 4:
            raise ClinicError(f"keys: {action}: {len(own)} keys; give 1 to 4")
        for key in own:
            if not 0 < len(key) <= 32 or not key.isprintable() or key.removeprefix("Shift+") in _MODIFIERS:
                raise ClinicError(f"keys: {action}: {key[:40]!r} is no key that can be pressed alone")
    for page in PAGES:
        here = {action: set(own) for action, own in keys.items() if action.split(".")[0] in page}
        used = Counter(key for own in here.values() for key in own)
        for key, count in used.items():
            if count > 1:
                first, second = [action for action, own in here.items() if key in own][:2]
                raise ConflictError(f"key {key!r}: would mean both {first} and {second}; choose another")
    return {action: list(dict.fromkeys(own)) for action, own in keys.items()}

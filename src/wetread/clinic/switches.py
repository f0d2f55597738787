"""Which AI is off where, since when, by whom and why: one row for each site's model that is off, or for all of a site.

A model that a person turned off is still run, so that it is there at once when it is turned on again; one that turned
itself off is not: its jobs wait (`Policy.held`). Neither ranks a study, is shown as a current result, or is told to
other systems. What it had said stays in the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import audit, deployments, experiments, store
from wetread.clinic.priority import Rule
from wetread.clinic.triage import Policy

ALL = ""  # all models of a site
PERSON, SYSTEM = "person", "system"


@dataclass(frozen=True)
class Off:
    """One AI that is off.

    Attributes
    ----------
    model : str
        Short name, empty for all of the site.
    package : str
        SHA-256 of a model that turned itself off, empty for others.
    actor : str
        Who turned it off.
    cause : str
        ``person``, or what made it turn itself off: ``golden failures share timeout remote collapse``.
    """

    site: str
    model: str
    package: str
    actor: str
    cause: str
    reason: str
    at: datetime

    @property
    def by_itself(self) -> bool:
        """Whether no person did it."""
        return self.cause != PERSON


def off(connection: Connection, site: str) -> dict[str, Off]:
    """Return what is off at a site, by the model's name."""
    table = store.ai_switch
    rows = connection.execute(sa.select(table).where(table.c.site == site).order_by(table.c.model))
    return {row.model: Off(*row) for row in rows}


def everywhere(connection: Connection) -> list[Off]:
    """Return what is off at any site."""
    table = store.ai_switch
    return [Off(*row) for row in connection.execute(sa.select(table).order_by(table.c.site, table.c.model))]


def policy(connection: Connection, site: str, rule: Rule, *, ai: bool) -> Policy:
    """Return how the studies of a site are ranked now; without `ai` no model counts, whatever the switches say."""
    found, rows = off(connection, site), tuple(deployments.history(connection, site))
    return Policy(
        rule,
        ai=ai and ALL not in found,
        off=frozenset(found) - {ALL},
        held=frozenset(each.package for each in found.values() if each.package),
        deployed=deployments.fingerprint(rows, site),
        by_arrival=experiments.by_arrival(connection, site, store.now()),
        rows=rows,
    )


def current(connection: Connection, study: str, results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those results of a study whose model is not off."""
    table = store.ai_switch
    wanted = sa.select(table.c.model).join(store.study, store.study.c.site == table.c.site)
    found = set(connection.execute(wanted.where(store.study.c.id == study)).scalars())
    return [] if ALL in found else [result for result in results if result["model_name"] not in found]


def held(site: sa.ColumnElement[str]) -> sa.Select[Any]:
    """Return the query for the packages whose jobs nobody waits for at a site."""
    table = store.ai_switch.c
    return sa.select(table.package).where(table.site == site, table.package != "")


def turn_off(
    connection: Connection,
    site: str,
    model: str,
    actor: str,
    *,
    reason: str = "",
    cause: str = PERSON,
    package: str = "",
) -> bool:
    """Turn a site's model off, or all of them, with event and audit row; return false when it is off already.

    A person takes over what turned itself off: from then on only a person turns it on.
    """
    table, key = store.ai_switch, _key(site, model)
    there = connection.execute(sa.select(table.c.cause).where(key)).scalar()
    if there is not None and (cause != PERSON or there == PERSON):
        return False
    values = {"actor": actor, "cause": cause, "reason": reason[:500], "at": store.now()}
    if there is None:
        connection.execute(table.insert().values(site=site, model=model, package=package, **values))
    else:  # it failed all the same: its package stays, its jobs go on waiting
        connection.execute(table.update().where(key).values(values))
    _tell(connection, site, model, actor, False, {"cause": cause, "reason": reason[:500]})
    return True


def turn_on(connection: Connection, site: str, model: str, actor: str, *, reason: str = "") -> bool:
    """Turn it on again; return false when it was not off."""
    if not connection.execute(store.ai_switch.delete().where(_key(site, model))).rowcount:
        return False
    _tell(connection, site, model, actor, True, {"reason": reason[:500]})
    return True


def _key(site: str, model: str) -> sa.ColumnElement[bool]:
    return sa.and_(store.ai_switch.c.site == site, store.ai_switch.c.model == model)


def _tell(connection: Connection, site: str, model: str, actor: str, on: bool, more: Mapping[str, str]) -> None:
    if model == ALL:
        connection.execute(store.site.update().where(store.site.c.name == site).values(ai=on))
    store.emit(connection, "ai.switched", site, None, {"on": on, "model": model or None, "by": actor, **more})
    audit.record(connection, site, actor, "ai.switched", model or site, {"on": on, "model": model, **more})

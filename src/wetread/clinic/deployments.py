"""Which package does what for a slot (task and population), and whose word counts for a study.

Each slot has one *champion*: it analyses everything, ranks, is shown and told. A *challenger* may stand beside it. In
*shadow* it analyses what comes, behind everything else in the queue, and its word is kept and neither shown, ranked nor
told. As *canary* its word takes the place of the champion's for a share of the patients, by a hash of the patient and
the deployment's salt, so that nobody's studies are told by two models turn about; what a study drew is written down
once. Both go on to analyse every study, so that they can be compared, and the champion's word counts until the
challenger's is there, and where the challenger has none.

A site's own rows go before those of every site. Models without a row (settings that name two of one slot, models of
tests) are outside of this and serve as if there were none. Nothing here writes but `assign`; see `deploying`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import store
from wetread.model.package import Package
from wetread.radiograph.suitability import Population

SHADOW, CANARY, CHAMPION = "shadow", "canary", "champion"
STAGES = (SHADOW, CANARY, CHAMPION)
PROMOTED, ROLLED_BACK, RETIRED, REPLACED = "promoted", "rolled_back", "retired", "replaced"
EVERYWHERE = ""
SETTINGS = "settings"  # the actor of a champion that the settings named
CHALLENGER = "challenger"  # the arms of a canary; the other is CHAMPION
LATER = 100  # added to a job's place in the queue when nobody waits for it

_rows, _studies = store.deployment.c, store.study.c
_KEY: sa.BindParameter[Any] = sa.bindparam("key")
_ALL = sa.select(store.deployment).order_by(_rows.since, _rows.id)
_OF_STUDY = (
    sa.select(store.deployment, _studies.reading, _studies.site.label("of"))
    .join(store.study, sa.or_(_rows.site == EVERYWHERE, _rows.site == _studies.site))
    .where(_studies.id == _KEY)
    .order_by(_rows.since, _rows.id)
)
_ARMS = sa.select(store.assignment.c.unit).where(
    store.assignment.c.study == _KEY, store.assignment.c.kind == CANARY, store.assignment.c.arm == CHALLENGER
)


@dataclass(frozen=True)
class Deployment:
    """One row: a package in one stage, from `since` to `until` (None: in force). `share` is that of a canary."""

    id: str
    site: str
    slot: str
    model: str
    model_name: str
    version: str
    stage: str
    share: float
    salt: str
    previous: str | None
    actor: str
    reason: str
    since: datetime
    until: datetime | None
    ended: str | None
    why: str | None
    held: bool
    verdict: dict[str, Any] | None

    @property
    def label(self) -> str:
        """Name, version and the beginning of its id, for people."""
        return f"{self.model_name} {self.version} ({self.model[:12]})".replace("  ", " ")

    def draws(self, who: str) -> bool:
        """Tell whether a patient (`whose`) sees this challenger; a larger share only adds patients."""
        return drawn(who, self.salt) < self.share


@dataclass(frozen=True)
class Slot:
    """What holds for a slot at a site: the champion, the challenger, and all rows that concern it, oldest first."""

    name: str
    champion: Deployment | None
    challenger: Deployment | None
    rows: tuple[Deployment, ...]
    site: str = EVERYWHERE

    @property
    def known(self) -> frozenset[str]:
        """The packages that ever were in this slot."""
        return frozenset(row.model for row in self.rows)

    @property
    def former(self) -> tuple[str, ...]:
        """The packages that were champion and were not rolled back, the latest first."""
        before = [row for row in self.rows if row.stage == CHAMPION and row.until and row.ended != ROLLED_BACK]
        return tuple(dict.fromkeys(row.model for row in reversed(before)))


def slot_of(package: Package) -> str:
    """Return the slot of a package: its task and its population."""
    return f"{package.task.name}/{package.meta.population}"


def population_of(slot: str) -> Population:
    """Return the population of a slot, which a package of it serves."""
    return cast(Population, slot.rpartition("/")[2])


def whose(site: str, patient: str, study: str) -> str:
    """Return a word for the patient of a study; without an identifier nobody knows whose it is: it is its own."""
    return f"{site} {patient.strip() or f'study {study}'}"


def drawn(who: str, salt: str) -> float:
    """Return the number that a patient or a study drew, uniform from 0 to 1 and always the same."""
    return int.from_bytes(hashlib.sha256(f"{salt} {who}".encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64


def history(connection: Connection, site: str | None = None) -> list[Deployment]:
    """Return the rows that concern a site, or all, oldest first."""
    found = [Deployment(*row) for row in connection.execute(_ALL)]
    return found if site is None else _of_site(found, site)


def _of_site(rows: Iterable[Deployment], site: str) -> list[Deployment]:
    return [row for row in rows if row.site in (EVERYWHERE, site)]


def slots(rows: Iterable[Deployment], site: str) -> dict[str, Slot]:
    """Return what holds at a site, by slot. `EVERYWHERE` gives what holds where a site has no row of its own."""
    groups: dict[str, list[Deployment]] = {}
    for row in _of_site(rows, site):
        groups.setdefault(row.slot, []).append(row)
    return {name: _slot(name, group, site) for name, group in groups.items()}


def _slot(name: str, rows: Sequence[Deployment], site: str) -> Slot:
    now = [row for row in rows if row.until is None]
    # The site's own champion is none of the business of those who would replace that of every site.
    own = any(row.site == site != EVERYWHERE and row.stage == CHAMPION for row in now)
    if own:
        now = [row for row in now if row.site == site]
    now.sort(key=lambda row: row.site != site)
    champion = next((row for row in now if row.stage == CHAMPION), None)
    challenger = next((row for row in now if row.stage != CHAMPION), None)
    return Slot(name, champion, challenger, tuple(rows), site)


def fingerprint(rows: Iterable[Deployment], site: str) -> str:
    """Return a word that changes when another package ranks the studies of a site; empty without a row."""
    told = [
        f"{row.id} {row.stage}"
        for slot in slots(rows, site).values()
        for row in (slot.champion, slot.challenger)
        if row is not None and row.stage != SHADOW
    ]
    return hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest() if told else ""


# ---------------------------------------------------------------------- whose word counts


@dataclass(frozen=True)
class Voices:
    """Whose word counts for one study.

    Attributes
    ----------
    orders : tuple of tuple of str
        For each slot its packages, first who is to speak, then who does when the one before has nothing to say.
    known : frozenset of str
        All packages of these slots; others always speak.
    unawaited : frozenset of str
        Packages whose jobs nobody waits for.
    silent : frozenset of str
        Packages whose word of this study never counted: no page tells it.
    """

    orders: tuple[tuple[str, ...], ...] = ()
    known: frozenset[str] = frozenset()
    unawaited: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()

    def choose(self, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the results that count, of rows with `model`, `suitable` and the `state` of the image."""
        stored = [result for result in results if result["state"] == "stored"]
        speaking = {self._speaker(order, stored) for order in self.orders}
        return [result for result in results if result["model"] in speaking or result["model"] not in self.known]

    def _speaker(self, order: tuple[str, ...], results: Sequence[dict[str, Any]]) -> str | None:
        """Return who speaks for a slot: who analysed the most images; who refused all only when everybody did."""
        seen = {model: [r for r in results if r["model"] == model] for model in order}
        said = [model for model in order if any(r["suitable"] for r in seen[model])]
        return max(said or order, key=lambda model: len(seen[model]), default=None)


def voices(connection: Connection, study: str) -> Voices:
    """Return whose word counts for a study; of a signed one, that of those whom the reader answered."""
    found = connection.execute(_OF_STUDY, {"key": study}).all()
    rows = [Deployment(*row[:-2]) for row in found]
    return heard(connection, rows, study, found[0].of, signed=found[0].reading == "signed") if found else Voices()


def heard(connection: Connection, rows: Sequence[Deployment], study: str, site: str, *, signed: bool) -> Voices:
    """Return the same by the rows that concern its site, for who has read them in this transaction."""
    if not rows:
        return Voices()
    canaries = [row for row in rows if row.stage == CANARY]
    units = set(connection.execute(_ARMS, {"key": study}).scalars()) if canaries else set()
    read = _answered(connection, study) if signed else ()
    orders, unawaited = [], set[str]()
    for slot in slots(rows, site).values():
        first = [model for model in read if model in slot.known]
        if slot.challenger is not None:
            if slot.challenger.stage == CANARY and slot.challenger.id in units:
                first.append(slot.challenger.model)
            else:
                unawaited.add(slot.challenger.model)
        champion = [slot.champion.model] if slot.champion else []
        orders.append(tuple(dict.fromkeys([*first, *champion, *slot.former])))
    known = frozenset(row.model for row in rows)
    spoke = {row.model for row in rows if row.stage == CHAMPION or row.id in units}
    silent = known.difference(spoke, *orders)
    return Voices(tuple(orders), known, frozenset(unawaited), silent)


def _answered(connection: Connection, study: str) -> list[str]:
    """Return the packages whose word the last reader had."""
    table = store.review.c
    wanted = sa.select(table.models).where(table.study == study, table.state == "signed")
    return list(connection.execute(wanted.order_by(table.signed_at.desc()).limit(1)).scalar() or ())


def unawaited(model: sa.ColumnElement[str], study: sa.ColumnElement[str], site: sa.ColumnElement[str]) -> Any:
    """Return the condition that nobody waits for what a package says of a study: it only challenges there."""
    table, own = store.deployment.alias("challenging"), store.deployment.alias("own")
    drew = sa.select(store.assignment.c.unit).where(
        store.assignment.c.unit == table.c.id,
        store.assignment.c.study == study,
        store.assignment.c.arm == CHALLENGER,
    )
    champions = sa.select(own.c.id).where(
        own.c.model == model, own.c.until.is_(None), own.c.stage == CHAMPION, own.c.site.in_((EVERYWHERE, site))
    )
    challenging = sa.select(table.c.id).where(
        table.c.model == model,
        table.c.until.is_(None),
        table.c.stage != CHAMPION,
        table.c.site.in_((EVERYWHERE, site)),
        ~drew.correlate_except(store.assignment).exists(),
    )
    return sa.and_(challenging.correlate_except(table).exists(), ~champions.correlate_except(own).exists())


def shadows() -> sa.Select[Any]:
    """Return the query for the packages that are in shadow somewhere."""
    return sa.select(_rows.model).where(_rows.until.is_(None), _rows.stage == SHADOW)


# ---------------------------------------------------------------------- who analyses what


def analysing(
    connection: Connection, rows: Iterable[Deployment], models: Sequence[str], site: str, received: datetime, study: str
) -> list[tuple[str, bool]]:
    """Return those of some packages that analyse an image of a site, each with whether somebody waits for it.

    Parameters
    ----------
    rows : iterable of Deployment
        What is deployed, and was: `history`, of this site or of all.
    models : sequence of str
        Those that are loaded.
    received : datetime
        When the image came; a challenger analyses what came since its stage began.
    """
    rows, here = _of_site(rows, site), slots(rows, site).values()
    known = {row.model for row in rows}
    champions = {slot.champion.model for slot in here if slot.champion}
    challengers = {s.challenger.model for s in here if s.challenger and s.challenger.since <= received}
    unheard = heard(connection, rows, study, site, signed=False).unawaited if challengers else frozenset()
    return [
        (model, model not in unheard)
        for model in models
        if model not in known or model in champions or model in challengers
    ]


def challenging(rows: Iterable[Deployment]) -> frozenset[str]:
    """Return the packages that challenge somewhere, and are champion nowhere."""
    now = [row for row in rows if row.until is None]
    return frozenset(row.model for row in now) - {row.model for row in now if row.stage == CHAMPION}


def wanted(rows: Iterable[Deployment], model: str, sites: Iterable[str]) -> dict[str, datetime | None] | None:
    """Return of which sites a package analyses images, and of those that came since when; None: all of every site."""
    rows = list(rows)
    if all(row.model != model for row in rows):
        return None
    found: dict[str, datetime | None] = {}
    for site in sites:
        for slot in slots(rows, site).values():
            if slot.champion and slot.champion.model == model:
                found[site] = None
            elif slot.challenger and slot.challenger.model == model:
                found[site] = slot.challenger.since
    return found


def assign(connection: Connection, rows: Iterable[Deployment], study: str, site: str, now: datetime) -> None:
    """Write down which arm a new study's patient drew, of each canary of its site; what came before draws nothing."""
    for slot in slots(rows, site).values():
        canary = slot.challenger
        if canary is None or canary.stage != CANARY:
            continue
        table = store.assignment
        key = {"study": study, "kind": CANARY, "unit": canary.id}
        there = sa.select(table.c.unit).where(*(table.c[name] == value for name, value in key.items()))
        of = connection.execute(sa.select(_studies.received_at, _studies.patient_id).where(_studies.id == study)).one()
        if of.received_at >= canary.since and connection.execute(there).first() is None:
            arm = CHALLENGER if canary.draws(whose(site, of.patient_id, study)) else CHAMPION
            connection.execute(table.insert().values(**key, arm=arm, block=slot.name, at=now))

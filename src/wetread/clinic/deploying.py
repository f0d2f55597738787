"""Changing which package does what for a slot: each change one transaction, with one audit row.

`improve.rollout` decides; the service changes something by itself only for safety (a challenger that fails is rolled
back) and once at its start (the models of the settings are the first champions). A change is a row that ends and one
that begins, so that the rows tell the whole story. Writers take turns, and two partial unique indexes hold what must:
one champion and one challenger of a slot in force.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import audit, store
from wetread.clinic.deployments import (
    CANARY,
    CHAMPION,
    EVERYWHERE,
    LATER,
    PROMOTED,
    REPLACED,
    RETIRED,
    ROLLED_BACK,
    SETTINGS,
    SHADOW,
    Deployment,
    Slot,
    history,
    slots,
)
from wetread.errors import ConflictError, NotFoundError

AGAIN = timedelta(minutes=10)  # a person who says within this once more to roll back means the same


@dataclass(frozen=True)
class Candidate:
    """A package as a slot knows it; `model` is its SHA-256."""

    slot: str
    model: str
    model_name: str
    version: str


@dataclass(frozen=True)
class Change:
    """What became of a slot: what was done (``unchanged`` when it was so already), and the row in force or that ended.

    `words` say it to a person.
    """

    done: str
    row: Deployment
    words: str

    @property
    def changed(self) -> bool:
        """Whether anything was."""
        return self.done != "unchanged"


def find(connection: Connection, site: str, name: str = "", model: str = "") -> Slot:
    """Return the slot that is meant, at a site or everywhere.

    Parameters
    ----------
    site : str
        `EVERYWHERE` or the name of one.
    name : str, optional
        By default the slot in which `model` is or was, else the only one in which something is to be decided, else the
        only one.
    model : str, optional
        Name of a package, or the beginning of its id.

    Raises
    ------
    NotFoundError
        When there is none.
    ConflictError
        When there are several.
    """
    there = slots(history(connection, site), site)
    if name:
        if name not in there:
            raise NotFoundError(f"slot {name[:64]!r}: nothing is deployed there; there is {_names(there)}")
        return there[name]
    found = [slot for slot in there.values() if not model or any(names(row, model) for row in slot.rows)]
    if len(found) > 1:
        found = [slot for slot in found if slot.challenger] or found
    if not found:
        raise NotFoundError(f"{f'model {model[:64]!r}' if model else 'no model'} is deployed; there is {_names(there)}")
    if len(found) > 1:
        raise ConflictError(f"which slot? name one with --slot: {', '.join(sorted(slot.name for slot in found))}")
    return found[0]


def names(row: Deployment, model: str) -> bool:
    """Tell whether somebody means this row's package by a name or the beginning of an id."""
    return row.model_name == model or (len(model) >= 4 and row.model.startswith(model.lower()))


def _names(there: Mapping[str, Slot]) -> str:
    return ", ".join(sorted(there)) or "none; `wetread rollout shadow` begins one"


# ---------------------------------------------------------------------- the settings


def first(
    connection: Connection, site: str, named: Sequence[Candidate], served: Collection[str], *, whole: bool
) -> list[Deployment]:
    """Make the models that the settings name champions of their slots; return the rows that began.

    Only a slot without a champion, or whose champion came from the settings, which now name another: what a rollout
    put into a slot stays there, whatever the settings say. Of two that are named for one slot, the first.

    Parameters
    ----------
    site : str
        Where the audit row goes.
    named : sequence of Candidate
        Those that are loaded.
    served : collection of str
        Packages that other live processes serve: these stay.
    whole : bool
        Whether all that the settings name are loaded; then what they named before and name no more is retired.
    """
    begun = []
    models, taken = {each.model for each in named}, set[str]()
    for each in named:
        if each.slot in taken:
            continue
        taken.add(each.slot)
        rows = [row for row in history(connection, EVERYWHERE) if row.slot == each.slot]
        champion = next((row for row in rows if row.until is None and row.stage == CHAMPION), None)
        if champion is not None and (
            champion.actor != SETTINGS or champion.model in models or champion.model in served
        ):
            continue
        if any(row.model == each.model and row.until is None for row in rows):
            continue  # it challenges there already
        if champion is not None:
            _end(connection, champion, REPLACED, "the settings name another")
        begun.append(_begin(connection, EVERYWHERE, each, CHAMPION, SETTINGS, "named in the settings",
                            previous=champion.model if champion else None))  # fmt: skip
        _audit(connection, site, SETTINGS, "model.deployed", begun[-1])
    for row in history(connection, EVERYWHERE) if whole else ():
        if row.until is None and row.actor == SETTINGS and row.slot not in taken and row.model not in served:
            _end(connection, row, RETIRED, "the settings name it no more")
            _audit(connection, site, SETTINGS, "model.retired", _read(connection, row.id))
    return begun


# ---------------------------------------------------------------------- the stages


def shadow(connection: Connection, site: str, package: Candidate, actor: str, reason: str, *, home: str) -> Change:
    """Let a package analyse beside the champion, unseen.

    Parameters
    ----------
    site : str
        `EVERYWHERE`, or the only site.
    home : str
        Where the audit row of a change for every site goes.

    Raises
    ------
    ConflictError
        When it is the champion, or another package challenges it.
    """
    slot = _slot(connection, site, package.slot)
    if slot.champion is not None and slot.champion.model == package.model:
        raise ConflictError(f"{slot.champion.label} is the champion of {slot.name} already; there is nothing to try")
    there = slot.challenger
    if there is not None and there.model == package.model:
        return Change("unchanged", there, f"{there.label} is in {there.stage} already")
    if there is not None:
        raise ConflictError(
            f"{there.label} is in {there.stage} in {slot.name}; promote it or roll it back before another is tried"
        )
    row = _begin(connection, site, package, SHADOW, actor, reason, previous=_model(slot.champion))
    _audit(connection, home, actor, "model.shadowed", row)
    return Change("shadow", row, f"{row.label} is in shadow in {slot.name}")


def canary(connection: Connection, slot: Slot, share: float, actor: str, reason: str, *, home: str) -> Change:
    """Let the challenger's word count for a share of the studies that come from now on, or for another share.

    Raises
    ------
    ConflictError
        When nothing challenges, or what does challenges at every site and the slot is of one.
    """
    row = challenger(slot)
    if row.stage == CANARY and row.share == share:
        return Change("unchanged", row, f"{row.label} is in canary with {share:.0%} already")
    if row.stage == CANARY:  # what a study drew stays; the same hash gives the larger share more of them
        table = store.deployment
        connection.execute(table.update().where(table.c.id == row.id).values(share=share, held=False))
        row = _read(connection, row.id)
    else:
        _end(connection, row, PROMOTED, reason)
        row = _begin(connection, row.site, _of(row), CANARY, actor, reason, previous=row.previous, share=share)
    _audit(connection, home, actor, "model.canaried", row, why=reason)
    return Change("canary", row, f"{row.label} is in canary in {slot.name}, for {share:.0%} of new studies")


def promote(connection: Connection, slot: Slot, actor: str, reason: str, *, home: str, model: str = "") -> Change:
    """Make the challenger the champion.

    Raises
    ------
    ConflictError
        When nothing challenges, or not `model` (name or beginning of an id), or at every site and the slot is of one.
    """
    champion = slot.champion
    if slot.challenger is None and champion and champion.actor != SETTINGS and (not model or names(champion, model)):
        return Change("unchanged", champion, f"{champion.label} is the champion already")
    row = challenger(slot, model)
    if champion is not None and champion.site == row.site:
        _end(connection, champion, REPLACED, f"{row.label} was promoted")
    _end(connection, row, PROMOTED, reason)
    new = _begin(connection, row.site, _of(row), CHAMPION, actor, reason, previous=_model(champion))
    if champion is not None:
        _forget(connection, champion)
    _hurry(connection, new.model)
    _tell(connection, home, actor, "model.promoted", new)
    return Change("promoted", new, f"{new.label} is the champion of {slot.name}")


def rollback(
    connection: Connection,
    slot: Slot,
    actor: str,
    reason: str,
    *,
    home: str,
    model: str = "",
    automatic: bool = False,
) -> Change:
    """End the challenger, or, when nothing challenges, bring the champion's predecessor back.

    A person who says it again within `AGAIN` means the same, and changes nothing: the answer says who is champion, and
    how to roll that back too. What another person, a verdict or the service rolled back is no reason to leave the
    champion where it is: who finds that harmful has said so for the first time.

    Parameters
    ----------
    model : str, optional
        Only this package: its name, or the beginning of its id. One that is rolled back already stays so.
    automatic : bool
        Whether no person decided it, but a verdict or the service.

    Raises
    ------
    ConflictError
        When `model` is in no stage that could be rolled back, or has no predecessor, or is every site's and the slot
        is of one.
    """
    row = slot.challenger
    if row is None or (model and not names(row, model)):
        row = slot.champion if slot.champion and (not model or names(slot.champion, model)) else None
    if row is None:
        gone = [each for each in slot.rows if each.ended == ROLLED_BACK and (not model or names(each, model))]
        again = gone[-1] if gone else None
    else:
        again = _again(connection, slot, actor, model) if row.stage == CHAMPION and not automatic else None
    if again is not None:
        return Change("unchanged", again, f"{again.label} was rolled back already ({again.why}); {_next(slot)}")
    if row is None:
        raise ConflictError(f"model {model[:64]!r} is neither champion nor challenger of {slot.name}")
    _own(slot, row)
    if row.stage != CHAMPION:
        _end(connection, row, ROLLED_BACK, reason)
        _forget(connection, row)
        done = _read(connection, row.id)
        _tell(connection, home, actor, "model.rolled_back", done, automatic=automatic)
        words = f"{row.label} was rolled back from {row.stage}; {_stays(slot.champion)}"
        return Change("rolled_back", done, words)
    before = _before(slot, row)
    if before is None:
        raise ConflictError(f"{row.label} took the place of nothing; turn it off instead (AI switch)")
    if slot.challenger is not None and slot.challenger.model == before.model:  # it challenged its successor meanwhile
        _end(connection, slot.challenger, PROMOTED, f"{row.label} was rolled back")
    _end(connection, row, ROLLED_BACK, reason)
    _forget(connection, row)
    elsewhere = _slot(connection, row.site, slot.name).champion
    if elsewhere is None or elsewhere.model != before.model:
        further = _model(_before(slot, before, row.model))
        why = f"{row.label} was rolled back: {reason}"
        _begin(connection, row.site, _of(before), CHAMPION, actor, why, previous=further)
        _hurry(connection, before.model)
    done = _read(connection, row.id)
    _tell(connection, home, actor, "model.rolled_back", done, automatic=automatic)
    words = f"{row.label} was rolled back from {row.stage}; {before.label} is the champion again"
    return Change("rolled_back", done, words)


def _again(connection: Connection, slot: Slot, actor: str, model: str) -> Deployment | None:
    """Return what this person has just rolled back, when nothing else happened in the slot since."""
    ended = [row for row in slot.rows if row.until]
    last = max(ended, key=lambda row: row.until or row.since, default=None)
    if last is None or last.until is None or last.ended != ROLLED_BACK or last.site != slot.site:
        return None
    if store.now() - last.until > AGAIN or (model and not names(last, model)):
        return None
    table = store.audit.c
    done = sa.select(table.actor, table.detail).where(table.object == last.model, table.action == "model.rolled_back")
    by = next((each for each in connection.execute(done) if each.detail["deployment"] == last.id), None)
    return last if by is not None and by.actor == actor and not by.detail["automatic"] else None


def _before(slot: Slot, row: Deployment, *gone: str) -> Deployment | None:
    """Return whom a champion took the place of, or whom that one had, when it is `gone` or was rolled back since.

    Each row is looked at once: who came back after a roll back is not led round in a circle.
    """
    champions = [each for each in slot.rows if each.stage == CHAMPION]
    last = {each.model: each for each in champions}
    back = {model for model, each in last.items() if each.ended == ROLLED_BACK} | {row.model, *gone}
    at, wanted = champions.index(row), row.previous
    # Those before it, the latest first; the others only in case that clocks differed.
    for each in (*reversed(champions[:at]), *reversed(champions[at + 1 :])):
        if each.model == wanted:
            if each.model not in back:
                return each
            wanted = each.previous
    return None


def _next(slot: Slot) -> str:
    """Say who is champion, and how it would be rolled back."""
    row = slot.champion
    back = row is not None and row.site == slot.site and _before(slot, row)
    return _stays(row) + (f"; --model {row.model[:12]} rolls that back, too" if row and back else "")


def hold(connection: Connection, slot: Slot, actor: str, reason: str, *, home: str) -> Change:
    """Keep the challenger where it is until a person moves it: no verdict promotes it."""
    row = challenger(slot)
    if row.held:
        return Change("unchanged", row, f"{row.label} is held already")
    table = store.deployment
    connection.execute(table.update().where(table.c.id == row.id).values(held=True))
    _audit(connection, home, actor, "model.held", row, why=reason)
    return Change("held", _read(connection, row.id), f"{row.label} stays in {row.stage} until somebody moves it")


def judged(connection: Connection, row: Deployment, verdict: Mapping[str, Any]) -> None:
    """Keep the last verdict with the row, for the pages; it changes nothing about who does what."""
    table = store.deployment
    connection.execute(table.update().where(table.c.id == row.id).values(verdict=dict(verdict)))


def fell(connection: Connection, model: str, reason: str, *, home: str, champions: bool = False) -> list[Change]:
    """Roll back a package that fails, wherever it challenges, by itself.

    Parameters
    ----------
    champions : bool
        Also where it is champion and took the place of another that can come back.
    """
    done = []
    for row in history(connection):
        if row.model != model or row.until is not None:
            continue
        slot = _slot(connection, row.site, row.slot)
        if row.stage == CHAMPION and not (champions and _before(slot, row)):
            continue
        done.append(rollback(connection, slot, "system", reason, home=home, model=model, automatic=True))
    return done


# ---------------------------------------------------------------------- rows


def _slot(connection: Connection, site: str, name: str) -> Slot:
    return slots(history(connection, site), site).get(name, Slot(name, None, None, (), site))


def challenger(slot: Slot, model: str = "") -> Deployment:
    """Return the row of who challenges, at the slot's own site.

    Raises
    ------
    ConflictError
        When nothing does, or not `model`, or when it challenges at every site and the slot is of one.
    """
    row = slot.challenger
    if row is None:
        raise ConflictError(f"nothing challenges the champion of {slot.name}; `wetread rollout shadow` begins it")
    if model and not names(row, model):
        raise ConflictError(f"model {model[:64]!r} does not challenge in {slot.name}; {row.label} does")
    _own(slot, row)
    return row


def _own(slot: Slot, row: Deployment) -> None:
    """Refuse to change at every site what is meant for one."""
    if row.site != slot.site:
        raise ConflictError(f"{row.label} is in {row.stage} at every site; it is every site's: leave --site out")


def _model(row: Deployment | None) -> str | None:
    return row.model if row else None


def _stays(champion: Deployment | None) -> str:
    return f"{champion.label} is the champion" if champion else "the slot has no champion"


def _of(row: Deployment) -> Candidate:
    return Candidate(row.slot, row.model, row.model_name, row.version)


def _read(connection: Connection, key: str) -> Deployment:
    return Deployment(*connection.execute(sa.select(store.deployment).where(store.deployment.c.id == key)).one())


def _begin(
    connection: Connection,
    site: str,
    package: Candidate,
    stage: str,
    actor: str,
    reason: str,
    *,
    previous: str | None = None,
    share: float = 0.0,
) -> Deployment:
    key = store.new_id()
    connection.execute(
        store.deployment.insert().values(
            id=key,
            site=site,
            slot=package.slot,
            model=package.model,
            model_name=package.model_name,
            version=package.version,
            stage=stage,
            share=1.0 if stage == CHAMPION else share,
            salt=secrets.token_hex(8),
            previous=previous,
            actor=actor,
            reason=reason[:500],
            since=store.now(),
        )
    )
    return _read(connection, key)


def _end(connection: Connection, row: Deployment, how: str, why: str) -> None:
    table = store.deployment
    connection.execute(table.update().where(table.c.id == row.id).values(until=store.now(), ended=how, why=why[:500]))


def _forget(connection: Connection, row: Deployment) -> None:
    """Take back the analyses that a package still owes where it no longer does anything."""
    jobs, images = store.job, store.instance.c
    sites = connection.execute(sa.select(store.site.c.name)).scalars()
    rows = history(connection)
    idle = [
        site
        for site in sites
        if row.site in (EVERYWHERE, site)
        and all(
            row.model not in (_model(slot.champion), _model(slot.challenger)) for slot in slots(rows, site).values()
        )
    ]
    owed = sa.select(images.id).where(images.site.in_(idle))
    connection.execute(
        jobs.delete().where(sa.text("job.state != 'done'"), jobs.c.model == row.model, jobs.c.instance.in_(owed))
    )


def _hurry(connection: Connection, model: str) -> None:
    """Put what a package owes where it is waited for: it did nothing but challenge until now."""
    jobs = store.job
    late = sa.text("job.state != 'done'"), jobs.c.model == model, jobs.c.floor >= LATER
    connection.execute(jobs.update().where(*late).values(floor=jobs.c.floor - LATER))


def _detail(row: Deployment) -> dict[str, Any]:
    detail = {name: getattr(row, name) for name in ("slot", "model", "model_name", "version", "stage", "previous")}
    return detail | {"site": row.site, "deployment": row.id, **({"share": row.share} if row.stage == CANARY else {})}


def _audit(
    connection: Connection, home: str, actor: str, action: str, row: Deployment, why: str = "", **more: Any
) -> None:
    detail = _detail(row) | {"reason": (why or row.why or row.reason)[:500], **more}
    audit.record(connection, row.site or home, actor, action, row.model, detail)


def _tell(connection: Connection, home: str, actor: str, action: str, row: Deployment, **more: Any) -> None:
    """Audit it once, with `more`, and tell every site that it concerns."""
    _audit(connection, home, actor, action, row, **more)
    wanted = sa.select(store.site.c.name)
    for site in connection.execute(wanted.where(store.site.c.name == row.site) if row.site else wanted).scalars().all():
        store.emit(connection, action, site, None, _detail(row) | {"by": actor, "reason": row.why or row.reason})

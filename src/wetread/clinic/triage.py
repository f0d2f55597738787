"""What is known about a study, put together again whenever something about it changes.

One function looks at a study's images, their results and what is still to come, and writes the study's state,
place and reason. It is called in the same transaction by whoever changed something: intake, worker, AI switch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from wetread.clinic import critical, deployments, keys, merging, priority, store, turns
from wetread.clinic.deployments import Deployment, Voices
from wetread.clinic.merging import View
from wetread.clinic.priority import Priority, Rule, Rules, Scored
from wetread.clinic.store import Store
from wetread.errors import Code

# When no model analysed an image, the reader is told the reason that says most about the image itself.
_TELLING = (
    Code.UNREADABLE,
    Code.TOO_LARGE,
    Code.NOT_RADIOGRAPH,
    Code.SCREENSHOT,
    Code.INVERTED,
    Code.NOT_CHEST,
    Code.LATERAL_ONLY,
    Code.FOR_PROCESSING,
    Code.MODEL_FAILED,
    Code.CHILD,
    Code.ADULT,
    Code.UNFAMILIAR,
    Code.REJECTED,
)
BY_ARRIVAL = "by arrival: an experiment compares the two orders"
FIRST_COME = "is off: first come, first served"  # why a study has its place when a switch is off
_VIEWS = ("PA", "AP", "LATERAL")
_TURNS = priority.rank(Priority.URGENT, False)  # of the studies that take turns
# Asked for each image, hence put together once: to make a statement costs more than to run it.
_images, _results = store.instance.c, store.image_result.c
_KEY: sa.BindParameter[Any] = sa.bindparam("key")
_KEYS: sa.BindParameter[Any] = sa.bindparam("keys", expanding=True)
_STUDY = sa.select(store.study).where(store.study.c.id == _KEY)
_SHOWN = (
    sa.select(_images.id, _images.view, _images.sha256, _images.received_at)
    .where(_images.study == _KEY, _images.state == "stored")
    .order_by(_images.received_at, _images.id)
)
_LATEST = (
    sa.select(*(column for column in _results if column.name != "maps"), _images.received_at, _images.state)
    .join(store.instance, _images.id == _results.instance)
    .where(_results.instance.in_(_KEYS))
    .order_by(_results.at, _results.id)
)
_WAITING = sa.select(store.job.c.model).where(store.job.c.instance.in_(_KEYS), store.job.c.state != "done")


@dataclass(frozen=True)
class Policy:
    """How studies are ranked: the site's rule, whether AI may reorder at all, and which models may not.

    `off` holds names of models, `held` the packages of those that turned themselves off: nobody waits for their jobs.
    `deployed` is the fingerprint of what is deployed, see `deployments`; `rows` are what it is of, as they are in this
    transaction, None where it has to be looked up. `by_arrival`: an experiment has the list in the order of arrival
    for now, whatever AI says.
    """

    rule: Rule = field(default_factory=Rule)
    ai: bool = True
    off: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    deployed: str = ""
    by_arrival: bool = False
    rows: tuple[Deployment, ...] | None = field(default=None, compare=False, repr=False)

    def deployments(self, connection: Connection, site: str) -> Sequence[Deployment]:
        """Return what is deployed, and was, at the policy's site."""
        return deployments.history(connection, site) if self.rows is None else self.rows

    @property
    def id(self) -> str:
        """A fingerprint: two policies that order alike have the same."""
        without = f" {sorted(self.off)}" if self.off else ""
        by = f" {self.deployed}" if self.deployed else ""
        by += " by arrival" if self.by_arrival else ""
        return hashlib.sha256(f"{self.ai} {self.rule.model_dump_json()}{without}{by}".encode()).hexdigest()


def refresh(connection: Connection, study: str, policy: Policy, now: datetime, *, anew: bool = False) -> None:
    """Write a study's analysis, priority, rank and reason from its images and their results.

    `anew` gives it another turn, when urgent and routine studies take turns and the rule has changed.
    """
    row = connection.execute(_STUDY, {"key": study}).one()
    images = shown(connection, study)
    ids = sorted(image.id for image in images)
    rows = policy.deployments(connection, row.site)
    voices = deployments.heard(connection, rows, study, row.site, signed=row.reading == "signed")
    results = _newest(connection, voices, ids)
    left = connection.execute(_WAITING, {"keys": ids}).scalars().all()
    left = [model for model in left if model not in voices.unawaited]
    waiting = [model for model in left if model not in policy.held]
    analysed = [result for result in results if result["suitable"]]
    if analysed:
        analysis, code, refusal = "analysed", None, None
    elif not images and (rejected := _rejected(connection, study)):
        analysis, code, refusal = "not_analysed", str(Code.REJECTED), f"all its images were rejected: {rejected}"
    elif waiting or not (results or left):
        analysis, code, refusal = "received", None, None
    elif not results:
        analysis, code, refusal = "not_analysed", str(Code.MODEL_FAILED), "the model turned itself of"
    else:
        worst = min(results, key=lambda r: (_TELLING.index(Code(r["code"])), r["model_name"]))
        analysis, code, refusal = "not_analysed", worst["code"], worst["reason"] or worst["code"]

    floor, told = Priority(row.floor), None
    current = [result for result in analysed if result["model_name"] not in policy.off]
    merged = merge(current)
    if policy.ai and analysed and not current:
        names = ", ".join(dict.fromkeys(str(result["model_name"]) for result in analysed))
        requested = "" if floor is Priority.ROUTINE else f"requested as {floor}; "
        decision = priority.Decision(floor, None, None, f"{requested}{names} {FIRST_COME}")
    elif policy.ai:
        decision = priority.decide(policy.rule, floor, scores(merged), refusal=refusal)
        told = decision.finding  # whatever the order, a critical finding is told
        if policy.by_arrival:
            decision = priority.Decision(floor, None, None, "; ".join(filter(None, (BY_ARRIVAL, refusal))))
    else:
        said = f"AI {FIRST_COME}"
        decision = priority.Decision(floor, None, None, said if refusal is None else f"{said}; {refusal}")
    due = priority.overdue_at(policy.rule, decision.priority, row.received_at)
    overdue = due <= now and row.reading != "signed" and row.listed
    reason = decision.reason
    if overdue:
        reason = priority.promoted(reason, policy.rule.cap(decision.priority))
    place = keys.place(row.received_at - decision.ahead)
    if policy.rule.turns(decision.priority, overdue) and row.listed and row.reading != "signed":
        waited = row.rank == _TURNS and row.priority == str(decision.priority) and row.analysis == analysis
        place = row.place if waited and not anew else _turn(connection, row, decision.priority, analysis, policy.rule)
    views = [view for view in _VIEWS if any(image.view == view for image in images)]
    connection.execute(
        store.study.update()
        .where(store.study.c.id == study)
        .values(
            images=len(images),
            views="+".join("LAT" if view == "LATERAL" else view for view in views),
            analysis=analysis,
            code=code,
            priority=str(decision.priority),
            finding=decision.finding,
            model=decision.model,
            reason=reason,
            overdue=overdue,
            overdue_at=due,
            rank=policy.rule.rank(decision.priority, overdue),
            place=place,
        )
    )
    if overdue and not row.overdue:
        store.emit(connection, "study.overdue", row.site, study, {"priority": str(decision.priority)})
    is_critical = told is not None and policy.rule.of(told) is Priority.CRITICAL
    if told and is_critical and row.reading != "signed" and row.listed:
        critical.raised(connection, row, told, now)
    if not waiting:
        _keep(connection, study, ids, merged, now)


def _turn(connection: Connection, row: Row[Any], cls: Priority, analysis: str, rule: Rule) -> float:
    """Return a study's place among those that take turns; what is still to be analysed has no turn of its own yet."""
    table, sites = store.study.c, store.site
    waiting = table.site == row.site, sa.text("study.reading != 'signed'"), sa.text("study.listed")
    heads = {}
    for each in turns.CLASSES:
        first = sa.select(table.place).where(*waiting, table.priority == str(each), table.rank == _TURNS)
        found = connection.execute(first.where(table.id != row.id).order_by(table.place).limit(1)).scalar()
        if found is not None:
            heads[each] = found
    had = connection.execute(sa.select(sites.c.turns).where(sites.c.name == row.site)).scalar() or {}
    known = {Priority(each): float(upto) for each, upto in had.items()}
    place, known = turns.take(rule.ratio or 1.0, cls, heads, known)
    if analysis != "received":
        then = {str(each): upto for each, upto in known.items()}
        connection.execute(sites.update().where(sites.c.name == row.site).values(turns=then))
    return place


def latest(connection: Connection, study: str, images: Sequence[str]) -> list[dict[str, Any]]:
    """Return the newest result of each model name for images of a study, without the maps, oldest first.

    Only of those whose word counts: what a challenger says of a study that it does not rank stays in the database.
    """
    return _newest(connection, deployments.voices(connection, study), images)


def _newest(connection: Connection, voices: Voices, images: Sequence[str]) -> list[dict[str, Any]]:
    rows = connection.execute(_LATEST, {"keys": list(images)})
    counted = voices.choose([dict(row) for row in rows.mappings()])
    return list({(row["instance"], row["model_name"]): row for row in counted}.values())


def merge(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put the images of a study together, as each model's package says; see `wetread.clinic.merging`."""
    models: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        models.setdefault(result["model"], []).append(result)
    return [
        {name: own[0][name] for name in ("model", "model_name", "version")} | merging.combine(own)
        for own in models.values()
    ]


def scores(merged: Sequence[Mapping[str, Any]]) -> list[Scored]:
    """Return all findings of all models as the priority rule takes them."""
    return [
        Scored(
            f"{model['model_name']} {model['version']}".strip()[:64],
            f["finding"],
            f["probability"],
            f["flagged"],
            f["call"],
        )
        for model in merged
        for f in model["findings"]
    ]


def shown(connection: Connection, study: str) -> Sequence[Row[Any]]:
    """Return the images of a study that are displayed and ranked, in order of arrival."""
    return list(connection.execute(_SHOWN, {"key": study}))


def views(connection: Connection, study: str) -> list[View]:
    """Return the same images as a model of studies chooses among them."""
    return [View(row.id, row.view, row.received_at, row.sha256) for row in shown(connection, study)]


def image_set(connection: Connection, study: str, images: Sequence[str]) -> str:
    """Return the name of a set of images: SHA-256 over their sorted ids, and over how many headers were corrected."""
    table = store.instance.c
    corrected = connection.execute(
        sa.select(sa.func.count()).where(table.study == study, table.state == "superseded")
    ).scalar_one()
    return hashlib.sha256("\n".join([*sorted(images), *([f"+{corrected}"] if corrected else [])]).encode()).hexdigest()


def _rejected(connection: Connection, study: str) -> str | None:
    table = store.instance.c
    return connection.execute(
        sa.select(table.reason).where(table.study == study, table.state == "rejected").order_by(table.received_at)
    ).scalar()


def _keep(
    connection: Connection, study: str, images: Sequence[str], merged: Sequence[Mapping[str, Any]], now: datetime
) -> None:
    """Keep the study's result, one for each (set of images, model)."""
    key = image_set(connection, study, images)
    table = store.study_result
    there = set(
        connection.execute(sa.select(table.c.model).where(table.c.study == study, table.c.images == key)).scalars()
    )
    for model in merged:
        if model["model"] not in there:
            values = {name: model[name] for name in ("model", "model_name", "abnormal", "findings")}
            connection.execute(table.insert().values(id=store.new_id(), study=study, images=key, at=now, **values))


def rerank(database: Store, policy: Policy, site: str) -> int:
    """Refresh every unread study of a site when its policy is not the one the list is ordered by; return how many.

    In pieces, so that intake and readers get their turn in between.
    """
    with database.read() as connection:
        if connection.execute(sa.select(store.site.c.policy).where(store.site.c.name == site)).scalar() == policy.id:
            return 0
        studies = connection.execute(
            sa.select(store.study.c.id)
            .where(store.study.c.site == site, sa.text("study.reading != 'signed'"))
            .order_by(store.study.c.received_at, store.study.c.id)
        )
        waiting = list(studies.scalars())
    with database.write() as connection:
        connection.execute(store.site.update().where(store.site.c.name == site).values(turns=None))
    for start in range(0, len(waiting), 100):
        with database.write() as connection:
            here = replace(policy, rows=tuple(deployments.history(connection, site)))  # by now there may be others
            for key in waiting[start : start + 100]:
                refresh(connection, key, here, store.now(), anew=True)
    with database.write() as connection:
        connection.execute(store.site.update().where(store.site.c.name == site).values(policy=policy.id))
        store.emit(connection, "worklist.reordered", site)
    return len(waiting)


def due(connection: Connection, now: datetime) -> list[Row[Any]]:
    """Return the unread studies that have reached their waiting cap and are not promoted yet."""
    table = store.study
    return list(
        connection.execute(
            sa.select(
                *(table.c[name] for name in ("id", "site", "priority", "reason", "finding", "received_at"))
            ).where(
                sa.text("study.reading != 'signed'"),
                table.c.overdue.is_(False),
                table.c.overdue_at <= now,
                table.c.listed.is_(True),
            )
        )
    )


def sweep(connection: Connection, rules: Rules, now: datetime) -> list[str]:
    """Promote the unread studies that have reached their waiting cap, raise the alarm for each, and return them."""
    table, found = store.study, due(connection, now)
    for row in found:
        cls, rule = Priority(row.priority), rules.of(row.site)
        connection.execute(
            table.update()
            .where(table.c.id == row.id)
            .values(
                overdue=True,
                rank=rule.rank(cls, True),
                place=keys.place(row.received_at - rule.ahead(row.finding, cls)),
                reason=priority.promoted(row.reason, rule.cap(cls)),
            )
        )
        store.emit(connection, "study.overdue", row.site, row.id, {"priority": row.priority})
    return [row.id for row in found]

"""What the database knows, for Prometheus: the same whichever process is asked.

Several processes work on one database and each is asked. What it says of the database must not be added up over them;
the rules in `deploy/prometheus` take the largest. What a process counts of its own is in `wetread.web.operations`. No
label names a patient, a study or a reader. Everything is read along an index of few rows: what waits, what is owed,
what came in a day; nothing grows with the history.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy.engine import Connection

from wetread.clinic import deployments, experiments, processes, store, switches
from wetread.clinic.accuracy import Accuracy
from wetread.clinic.experiments import Experiment
from wetread.evaluate.intervals import Interval

DAY = timedelta(days=1)
LATELY = 2 * DAY
MONTH = timedelta(days=30)  # a check for drift that is older says nothing of now
_UNREAD = sa.and_(sa.text("study.reading != 'signed'"), sa.text("study.listed"))  # as the indexes say it


class ClinicGauges:
    """The numbers of the database, in the registry of an application."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry, self._gauges = registry, list[Gauge]()
        self.unread = self._gauge("wetread_unread", "Unread studies.", "site", "priority", "analysis", "overdue")
        self.studies = self._gauge("wetread_studies", "Unread studies by state: unread, draft.", "site", "state")
        self.waiting = self._gauge("wetread_longest_wait_seconds", "Wait of the oldest unread study.", "site")
        self.received = self._gauge("wetread_received_day", "Studies that came in the last 24 h.", "site")
        self.signed = self._gauge("wetread_signed_day", "Studies that were signed in the last 24 h.", "site")
        self.jobs = self._gauge("wetread_jobs", "Analyses not yet done, and those set aside.", "state")
        self.oldest_job = self._gauge(
            "wetread_oldest_job_seconds", "How long ago the first image came that waits for an analysis.", "state"
        )
        self.critical = self._gauge(
            "wetread_critical",
            "Open critical findings, by what is owed (acknowledge, sign, tell) and whether its time is over.",
            *("site", "owed", "overdue"),
        )
        self.undelivered = self._gauge(
            "wetread_undelivered",
            "Outputs that have not arrived: queued, failed (tried again), given up.",
            *("kind", "state"),
        )
        self.owed_since = self._gauge(
            "wetread_oldest_undelivered_seconds", "For how long the oldest of them is owed.", "kind", "state"
        )
        self.processes = self._gauge("wetread_processes", "Processes that give a sign of life.", "kind")
        self.ai_off = self._gauge(
            "wetread_ai_off",
            "1 while a model, or all of a site's AI (model empty), is off; by whom: person, system.",
            *("site", "model", "by"),
        )
        of = "site", "model", "package"
        self.drift = self._gauge(
            "wetread_drift",
            "Largest effect of the newest check as a multiple of what matters; an alarm also wants a small p.",
            *(*of, "kind"),
        )
        self.drift_alarm = self._gauge("wetread_drift_alarm", "1 when the newest check found drift.", *of)
        self.unchecked = self._gauge(
            "wetread_drift_unchecked_seconds",
            "For how long the images of a deployed model were not checked for drift: since the newest window checked,"
            " or since its deployment.",
            *of,
        )
        self.live = self._gauge(
            "wetread_live",
            "How right a model was in 28 days by what readers signed; bound: value, low, high (95 %), or studies (n).",
            *(*of, "reads", "measure", "bound"),
        )
        self.blocks = self._gauge(
            "wetread_experiment_blocks", "Blocks of an experiment under way: planned, done.", "site", "state"
        )
        self.by_arrival = self._gauge(
            "wetread_experiment_by_arrival", "1 while an experiment has the list in the order of arrival.", "site"
        )
        self.stopped = self._gauge(
            "wetread_experiment_stopped_seconds", "When a guard ended the newest, in seconds since 1970.", "site"
        )

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        found = Gauge(name, text, labels, registry=self._registry)
        self._gauges.append(found)
        return found

    def measure(
        self, connection: Connection, now: datetime, accuracy: Mapping[str, Sequence[Accuracy]] | None = None
    ) -> None:
        """Take all numbers anew; how right the models are is counted elsewhere, by site."""
        for gauge in self._gauges:
            gauge.clear()
        self._list(connection, now)
        self._critical(connection, now)
        self._queues(connection, now)
        self._owed(connection, now)
        self._drift(connection, now)
        self._unchecked(connection, now)
        self._experiments(connection, now)
        for each in switches.everywhere(connection):
            self.ai_off.labels(each.site, each.model, "system" if each.by_itself else "person").set(1)
        for kind, count in processes.counted(connection):
            self.processes.labels(kind).set(count)

        for site, found in (accuracy or {}).items():
            self._live(site, found)

    def _live(self, site: str, found: Sequence[Accuracy]) -> None:
        whole = {"sensitivity": "present", "specificity": "absent", "auroc": "studies"}
        for one in found:
            counts = {"present": one.present, "absent": one.studies - one.present, "studies": one.studies}
            for measure, of in whole.items():
                labels = site, one.name, one.model[:12], one.reads, measure
                self.live.labels(*labels, "studies").set(counts[of])
                interval: Interval = getattr(one.measures, measure)
                for bound in ("value", "low", "high"):
                    if not math.isnan(number := getattr(interval, bound)):
                        self.live.labels(*labels, bound).set(number)

    def _list(self, connection: Connection, now: datetime) -> None:
        table, reviews = store.study.c, store.review.c
        for site in connection.execute(sa.select(store.site.c.name)).scalars().all():
            for gauge in (self.waiting, self.signed):
                gauge.labels(site).set(0)
            came = sa.select(sa.func.count()).where(table.site == site, table.received_at > now - DAY)
            self.received.labels(site).set(connection.execute(came).scalar_one())
        keys = table.site, table.priority, table.analysis, table.overdue
        for *labels, overdue, count in _counts(connection, keys, _UNREAD):
            self.unread.labels(*labels, str(overdue).lower()).set(count)
        for site, state, count in _counts(connection, (table.site, table.reading), _UNREAD):
            self.studies.labels(site, state).set(count)
        oldest = sa.select(table.site, sa.func.min(table.received_at)).where(_UNREAD).group_by(table.site)
        for site, since in connection.execute(oldest):
            self.waiting.labels(site).set((now - since).total_seconds())
        recent = sa.text("review.state = 'signed'"), reviews.signed_at > now - DAY, reviews.parent.is_(None)
        joined = store.review.join(store.study, table.id == reviews.study)
        for site, count in _counts(connection, (table.site,), *recent, of=joined):
            self.signed.labels(site).set(count)

    def _critical(self, connection: Connection, now: datetime) -> None:
        table = store.alert.c
        owed = sa.case(
            (table.confirmed_at.is_not(None), "tell"), (table.acknowledged_at.is_(None), "acknowledge"), else_="sign"
        )
        late = sa.case((table.step > 0, "true"), else_="false")  # the first step is taken when the time is over
        open_ = sa.text("alert.closed_at IS NULL"), table.told_at.is_(None)
        for *labels, count in _counts(connection, (table.site, owed, late), *open_):
            self.critical.labels(*labels).set(count)

    def _queues(self, connection: Connection, now: datetime) -> None:
        jobs, images = store.job.c, store.instance.c
        counts = {"queued": 0, "running": 0}
        # The first job is that of the first image, but for those that were made anew: near enough for an alarm.
        first: dict[str, int] = {}
        for state, count, job in connection.execute(
            # What waits behind everything on purpose, as of a model in shadow, is not late however old it is.
            sa.select(jobs.state, sa.func.count(), sa.func.min(sa.case((jobs.floor < deployments.LATER, jobs.id))))
            .where(sa.text("job.state != 'done'"))
            .group_by(jobs.state)
        ):
            counts[state] = count
            if job is not None:
                first[state] = job
        aside = sa.select(sa.func.count(jobs.id)).where(sa.text("job.state = 'done' AND job.error IS NOT NULL"))
        counts["aside"] = connection.execute(aside).scalar_one()
        for state, count in counts.items():
            self.jobs.labels(state).set(count)
        came = (
            sa.select(jobs.id, images.received_at)
            .join(store.instance, images.id == jobs.instance)
            .where(jobs.id.in_(first.values()))
        )
        since = {row.id: row.received_at for row in connection.execute(came)} if first else {}
        for state in ("queued", "running"):
            at = since.get(first.get(state, 0))
            self.oldest_job.labels(state).set((now - at).total_seconds() if at else 0)

    def _owed(self, connection: Connection, now: datetime) -> None:
        table = store.delivery.c
        keys, since = (table.kind, table.state), sa.func.min(table.created_at)
        # Each as one of the indexes has it: what is to be sent, and what was given up.
        unsent = sa.text("delivery.state IN ('queued', 'failed')")
        given_up = sa.and_(sa.text("delivery.state IN ('failed', 'given_up')"), table.state == "given_up")
        for where in (unsent, given_up):
            owed = sa.select(*keys, sa.func.count(), since).where(where).group_by(*keys)
            for kind, state, count, at in connection.execute(owed):
                self.undelivered.labels(kind, state).set(count)
                self.owed_since.labels(kind, state).set((now - at).total_seconds())

    def _drift(self, connection: Connection, now: datetime) -> None:
        table = store.drift_check.c
        newest = (
            sa.select(table.site, table.model, sa.func.max(table.at).label("at"))
            .where(table.at > now - MONTH)
            .group_by(table.site, table.model)
            .subquery()
        )
        same = (getattr(newest.c, name) == table[name] for name in ("site", "model", "at"))
        for row in connection.execute(sa.select(store.drift_check).join(newest, sa.and_(*same))):
            labels = row.site, row.report["model_name"], row.model[:12]
            largest: dict[str, float] = defaultdict(float)
            for source in row.report["sources"]:
                for change in source["changes"]:
                    largest[change["kind"]] = max(largest[change["kind"]], change["effect"] / change["limit"])
            for kind, effect in largest.items():
                self.drift.labels(*labels, kind).set(effect)
            self.drift_alarm.labels(*labels).set(row.verdict == "drift")

    def _unchecked(self, connection: Connection, now: datetime) -> None:
        """Tell it of every model that is in use; where it was given nothing of late there is nothing to be checked."""
        checks, images, results = store.drift_check.c, store.instance.c, store.image_result.c
        rows = deployments.history(connection)
        for site in connection.execute(sa.select(store.site.c.name)).scalars().all() if rows else ():
            for slot in deployments.slots(rows, site).values():
                for one in filter(None, (slot.champion, slot.challenger)):
                    given = (
                        sa.select(images.id)
                        .join(store.image_result, results.instance == images.id)
                        .where(images.site == site, images.received_at > now - LATELY, results.model == one.model)
                    )
                    if connection.execute(given.limit(1)).first() is None:
                        continue
                    newest = sa.select(sa.type_coerce(sa.func.max(checks.until), store.Moment())).where(
                        checks.site == site, checks.model == one.model
                    )
                    since = max(one.since, connection.execute(newest).scalar() or one.since)
                    self.unchecked.labels(site, one.model_name, one.model[:12]).set((now - since).total_seconds())

    def _experiments(self, connection: Connection, now: datetime) -> None:
        table = store.experiment
        for row in connection.execute(sa.select(table).order_by(table.c.started_at)).all():
            one = Experiment(*row)
            self.stopped.labels(one.site).set(one.ended_at.timestamp() if one.ended == "guard" and one.ended_at else 0)
            if one.ended_at is None:
                planned, block = int(one.plan["blocks"]), one.block(now)
                self.blocks.labels(one.site, "planned").set(planned)
                self.blocks.labels(one.site, "done").set(min(planned, block.number))
                self.by_arrival.labels(one.site).set(experiments.by_arrival(connection, one.site, now))


def _counts(
    connection: Connection, keys: Iterable[sa.ColumnElement[Any]], *where: sa.ColumnElement[bool] | sa.TextClause,
    of: sa.FromClause | None = None,
) -> list[Any]:  # fmt: skip
    """Return how many rows there are of each combination of keys."""
    columns = [key.label(f"key{n}") for n, key in enumerate(keys)]
    wanted = sa.select(*columns, sa.func.count())
    if of is not None:
        wanted = wanted.select_from(of)
    return list(connection.execute(wanted.where(*where).group_by(*columns)))

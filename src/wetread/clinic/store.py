"""The clinic's one database: its tables, and how a transaction is opened.

SQLite (WAL, ``synchronous=FULL``, ``BEGIN IMMEDIATE``, long busy timeout) by default, PostgreSQL when
configured. On both, writers take turns: on SQLite by its own lock, on PostgreSQL by one advisory lock, so
that the order of events is the order of commits and a follower of ``event.seq`` never misses one. What tells
nobody anything (leases of jobs, signs of life) need not wait for its turn on PostgreSQL: ``write(ordered=False)``.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Column, ForeignKey, Index, Table, UniqueConstraint
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from wetread.clinic import keys
from wetread.errors import ClinicError, ConfigError, FullError, hide

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Moment(sa.types.TypeDecorator[datetime]):
    """An instant in UTC; SQLite keeps no zone, so it is added again on the way out."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Refuse a naive time, which could mean anything, and turn the rest into UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored; use datetime.now(UTC)")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Return the instant with its zone."""
        return value if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Key = sa.String(36)
Name = sa.String(64)
# Compared by code points everywhere, as SQLite does, so that pages and prefixes mean the same.
Folded = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
# SQLite numbers rows only under INTEGER, PostgreSQL should not run out of them.
Serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _key_of(name: str) -> Any:
    """Return the default of a column of `keys.SOURCES`, from the value that it belongs to."""
    source, fold = keys.SOURCES[name]
    return lambda context: fold(context.get_current_parameters().get(source))


site = Table(
    "site",
    metadata,
    Column("name", Name, primary_key=True),
    Column("ai", sa.Boolean, nullable=False),
    Column("policy", sa.String(64), nullable=False),  # fingerprint of the rule by which the list is ordered now
    Column("created_at", Moment, nullable=False),
    Column("turns", sa.JSON),  # where urgent and routine studies stand that take turns, see `turns`
)
ai_switch = Table(
    "ai_switch",  # one row for each AI that is off: a model, or all of a site (model empty); see `switches`
    metadata,
    Column("site", Name, ForeignKey("site.name"), primary_key=True),
    Column("model", Name, primary_key=True),
    Column("package", Name, nullable=False),  # SHA-256, of a model that turned itself off; its jobs wait
    Column("actor", Name, nullable=False),
    Column("cause", Name, nullable=False),  # person, or what made it turn itself off
    Column("reason", sa.Text, nullable=False),
    Column("at", Moment, nullable=False),
)
account = Table(
    "account",
    metadata,
    Column("id", Key, primary_key=True),
    Column("site", Name, ForeignKey("site.name"), nullable=False),
    Column("name", Name, nullable=False),
    Column("login", sa.String(192), nullable=False, unique=True),  # the name as it is compared: one for all sites
    Column("role", Name, nullable=False),
    Column("password", sa.Text),  # Argon2id; none for who signs in elsewhere
    Column("issuer", sa.String(255)),  # of the identity provider, and the person's identifier there
    Column("subject", sa.String(255)),
    Column("created_at", Moment, nullable=False),
    Column("seen_at", Moment),
    Column("disabled_at", Moment),
    UniqueConstraint("site", "name"),
    UniqueConstraint("issuer", "subject"),
)
token = Table(
    "token",
    metadata,
    Column("id", Key, primary_key=True),
    Column("site", Name, ForeignKey("site.name"), nullable=False),
    Column("kind", Name, nullable=False),  # api, login (one use) or session (cookie)
    Column("name", Name, nullable=False),
    Column("role", Name, nullable=False),
    Column("hash", sa.String(64), nullable=False, unique=True),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment),
    Column("revoked_at", Moment),
    Column("account", Key, ForeignKey("account.id"), index=True),  # of a session that an account opened
    Column("scopes", sa.JSON),  # what a token may do of what its role may; none means all of it
    Column("seen_at", Moment),
)
attempt = Table(
    "attempt",  # failed log-ins, by account and by address, as a leaking bucket
    metadata,
    Column("key", sa.String(64), primary_key=True),
    Column("level", sa.Float, nullable=False),
    Column("at", Moment, nullable=False),
)
study = Table(
    "study",
    metadata,
    Column("id", Key, primary_key=True),
    Column("site", Name, ForeignKey("site.name"), nullable=False),
    Column("study_uid", Name, nullable=False),
    Column("patient_id", sa.Text, nullable=False),
    Column("patient_issuer", sa.Text),  # who gave that identifier, as far as the file says
    Column("patient_name", sa.Text, nullable=False),
    Column("birth_date", sa.String(10)),
    Column("sex", sa.String(1)),
    Column("age_years", sa.Float),
    Column("accession", sa.Text),
    Column("description", sa.Text),
    Column("acquired_at", sa.String(32)),
    Column("study_date", sa.String(8)),  # Study Date and Time as DICOM writes them, for queries
    Column("study_time", sa.String(16)),
    Column("views", Name, nullable=False),
    Column("images", sa.Integer, nullable=False),
    Column("cautions", sa.JSON, nullable=False),
    Column("received_at", Moment, nullable=False),
    Column("analysis", Name, nullable=False),  # received, analysed, not_analysed
    Column("code", Name),
    Column("reading", Name, nullable=False),  # unread, draft, signed
    Column("floor", Name, nullable=False),  # the priority that the requester gave
    Column("priority", Name, nullable=False),
    Column("finding", Name),
    Column("model", Name),
    Column("reason", sa.Text, nullable=False),
    Column("overdue", sa.Boolean, nullable=False),
    Column("overdue_at", Moment, nullable=False),
    Column("rank", sa.Integer, nullable=False),
    Column("listed", sa.Boolean, nullable=False, default=True),  # false: only documents so far, or merged away
    Column("merged_into", Key),
    Column("complete_at", Moment),  # when it counts as complete unless something comes; null when that is said
    # How often the patient was corrected or the study merged, and when last: outputs tell under which they went.
    Column("revision", sa.Integer, nullable=False, default=0, server_default="0"),
    Column("revised_at", Moment),
    Column("title", sa.Text, nullable=False, default="", server_default=""),  # description, or else the body part
    # What the list is sorted and searched by, see `keys`; `place` is the study's within its rank.
    *(
        Column(name, Folded, nullable=False, default=_key_of(name), server_default="")
        for name in ("name_key", "id_key", "accession_key", "title_key")
    ),
    Column("age_key", sa.Float, nullable=False, default=_key_of("age_key"), server_default=str(keys.AGELESS)),
    Column(
        "place",
        sa.Float,
        nullable=False,
        default=lambda context: keys.place(context.get_current_parameters()["received_at"]),
        server_default="0",
    ),
    UniqueConstraint("site", "study_uid", "patient_id"),
    Index("ix_study_site_study_date", "site", "study_date"),
    Index("ix_study_site_patient_id", "site", "patient_id"),
    Index("ix_study_site_patient_name_birth_date", "site", "patient_name", "birth_date"),
)
_quiet = study.c.complete_at.is_not(None)
Index("ix_study_complete_at", study.c.complete_at, sqlite_where=_quiet, postgresql_where=_quiet)
# The list in each of its orders: one walk along an index, which also holds what the list is filtered by, so that rows
# that are not wanted cost next to nothing. Unread and read studies are apart: history slows nobody down.
UNREAD, READ = (sa.text(f"reading {sign} 'signed' AND listed") for sign in ("!=", "="))
_FILTERED = (
    "priority",
    "analysis",
    "finding",
    "views",
    "overdue",
    "age_key",
    "title_key",
    "received_at",
    "reading",
    "listed",
)
ORDERS: dict[str, tuple[str, ...]] = {
    "priority": ("rank", "place", "id"),
    "due": ("overdue_at", "id"),
    "arrived": ("received_at", "id"),
    "patient": ("name_key", "received_at", "id"),
    "age": ("age_key", "received_at", "id"),
    "study": ("title_key", "received_at", "id"),
    "view": ("views", "received_at", "id"),
    "why": ("finding", "rank", "place", "id"),  # of what a finding ranked; the others have none to be sorted by
}
READ_ORDERS = ("arrived", "patient", "age", "study", "view")


def _listed(name: str, where: sa.TextClause, *columns: str) -> None:
    Index(name, *(study.c[column] for column in columns), sqlite_where=where, postgresql_where=where)


for _order, _columns in ORDERS.items():
    _more = [column for column in _FILTERED if column not in _columns]
    _listed(f"ix_study_unread_{_order}", UNREAD, "site", *_columns, *_more)
    if _order in READ_ORDERS:
        _listed(f"ix_study_read_{_order}", READ, "site", *_columns, *_more)
for _column in ("priority", "analysis"):  # few of many: found by themselves; a finding by the order `why`
    _listed(f"ix_study_unread_of_{_column}", UNREAD, "site", _column, "rank", "place", "id")
_listed("ix_study_read_of_priority", READ, "site", "priority", "received_at", "id")
_listed("ix_study_read_of_finding", READ, "site", "finding", "priority", "age_key", "views", "received_at", "id")
_listed("ix_study_unread_counts", UNREAD, "site", "priority", "analysis", "overdue")
for _column in ("id_key", "accession_key"):
    Index(f"ix_study_site_{_column}", study.c.site, study.c[_column])
_unread = study.c.reading != "signed"
Index(
    "ix_study_unread_overdue_overdue_at",
    study.c.overdue,
    study.c.overdue_at,
    sqlite_where=_unread,
    postgresql_where=_unread,
)
series = Table(
    "series",
    metadata,
    Column("id", Key, primary_key=True),
    Column("study", Key, ForeignKey("study.id"), nullable=False),
    Column("series_uid", Name, nullable=False),
    Column("modality", sa.String(16)),
    Column("body_part", sa.Text),
    Column("description", sa.Text),
    UniqueConstraint("study", "series_uid"),
)
instance = Table(
    "instance",
    metadata,
    Column("id", Key, primary_key=True),
    Column("site", Name, ForeignKey("site.name"), nullable=False),
    Column("study", Key, ForeignKey("study.id"), nullable=False, index=True),
    Column("series", Key, ForeignKey("series.id"), nullable=False, index=True),
    Column("sop_uid", Name, nullable=False),
    Column("sha256", sa.String(64), nullable=False, index=True),
    Column("bytes", sa.BigInteger, nullable=False),
    Column("format", Name, nullable=False),
    Column("name", sa.Text, nullable=False),
    Column("view", sa.String(16)),
    # stored; quarantined; superseded by a later header; copy with another file meta header; document (no image, or our
    # own output); rejected
    Column("state", Name, nullable=False),
    Column("reason", sa.Text),  # why it is not shown
    Column("pixels_sha256", sa.String(64)),  # of pixel data and what gives it meaning; known once two have one UID
    Column("sop_class", Name),
    Column("received_at", Moment, nullable=False),
    # What took it and who sent it, for drift; null where nobody says, and of what came before 0004.
    Column("device", Name),  # manufacturer and model
    Column("station", Name),
    Column("source", Name),  # as the audit has it: an AE title, a token, a folder
    UniqueConstraint("site", "sop_uid", "sha256"),
)
alias = Table(
    "alias",  # patient identifiers that were corrected or merged, so that a late image still finds its study
    metadata,
    Column("site", Name, ForeignKey("site.name"), primary_key=True),
    Column("study_uid", Name, primary_key=True),  # empty: of every study
    Column("patient_id", sa.String(256), primary_key=True),
    Column("now", sa.String(256), nullable=False),
    Column("at", Moment, nullable=False),
)
rejection = Table(
    "rejection",  # images rejected by a note or by hand, also before they came
    metadata,
    Column("site", Name, ForeignKey("site.name"), primary_key=True),
    Column("sop_uid", Name, primary_key=True),
    Column("study_uid", Name, nullable=False),
    Column("code", Name, nullable=False),
    Column("reason", sa.Text, nullable=False),
    Column("at", Moment, nullable=False),
)
image_result = Table(
    "image_result",
    metadata,
    Column("id", Key, primary_key=True),
    Column("instance", Key, ForeignKey("instance.id"), nullable=False),
    Column("model", Name, nullable=False),  # SHA-256 of the package
    Column("model_name", Name, nullable=False),
    Column("version", Name, nullable=False),
    Column("suitable", sa.Boolean, nullable=False),
    Column("code", Name),
    Column("reason", sa.Text, nullable=False),
    Column("cautions", sa.JSON, nullable=False),
    Column("caution_codes", sa.JSON, nullable=False, server_default=sa.text("'[]'")),
    Column("view", sa.String(16)),
    Column("abnormal", sa.Float),
    Column("point", Name, nullable=False),
    Column("findings", sa.JSON, nullable=False),
    Column("box", sa.JSON),
    Column("maps", sa.LargeBinary),
    Column("seconds", sa.Float, nullable=False),
    Column("at", Moment, nullable=False),
    Column("basis", sa.String(64)),  # SHA-256 of the file, or of both views, that it was made from
    Column("merging", sa.JSON),  # how the images of a study are put together, see triage.Merging
    # Whether the package allows research only; what is told of the result says so.
    Column("research_only", sa.Boolean, nullable=False, default=True, server_default=sa.true()),
    UniqueConstraint("instance", "model"),
)
image_trait = Table(
    "image_trait",  # what drift is looked for in; see `traits`
    metadata,
    Column("instance", Key, ForeignKey("instance.id"), primary_key=True),
    Column("model", Name, primary_key=True),
    Column("exposure", sa.JSON, nullable=False),
    Column("features", sa.LargeBinary),  # of the model, projected; none of what it refused unseen
    Column("at", Moment, nullable=False),
)
drift_check = Table(
    "drift_check",
    metadata,
    Column("id", Key, primary_key=True),
    Column("site", Name, ForeignKey("site.name"), nullable=False),
    Column("model", Name, nullable=False),
    Column("at", Moment, nullable=False),
    Column("since", Moment, nullable=False),  # the window that was looked at
    Column("until", Moment, nullable=False),
    Column("verdict", Name, nullable=False),  # drift, quiet, unknown (too little to say)
    Column("report", sa.JSON, nullable=False),
    Index("ix_drift_check_site", "site", "model", "at"),
)
deployment = Table(
    "deployment",  # which package does what for a slot, since when, and until when; see `deployments`
    metadata,
    Column("id", Key, primary_key=True),
    Column("site", Name, nullable=False),  # empty: every site
    Column("slot", sa.String(192), nullable=False),  # task/population
    Column("model", Name, nullable=False),  # SHA-256 of the package
    Column("model_name", Name, nullable=False),
    Column("version", Name, nullable=False),
    Column("stage", Name, nullable=False),  # shadow, canary, champion
    Column("share", sa.Float, nullable=False),  # of the studies that see a challenger
    Column("salt", Name, nullable=False),  # of the hash that chooses them
    Column("previous", Name),  # the package that it takes the place of, or would
    Column("actor", Name, nullable=False),
    Column("reason", sa.Text, nullable=False),
    Column("since", Moment, nullable=False),
    Column("until", Moment),  # none: in force
    Column("ended", Name),  # promoted, rolled_back, retired, replaced
    Column("why", sa.Text),  # it ended
    Column("held", sa.Boolean, nullable=False, default=False, server_default=sa.false()),  # by a person
    Column("verdict", sa.JSON(none_as_null=True)),  # the last one
    Index("ix_deployment_slot", "site", "slot", "since"),
)
for _what, _sign in (("champion", "="), ("challenger", "!=")):
    _in_force = sa.text(f"until IS NULL AND stage {_sign} 'champion'")
    Index(
        f"uq_deployment_{_what}",
        deployment.c.site,
        deployment.c.slot,
        unique=True,
        sqlite_where=_in_force,
        postgresql_where=_in_force,
    )
experiment = Table(
    "experiment",  # reordering against the order of arrival, by blocks of site and shift; see `experiments`
    metadata,
    Column("id", Key, primary_key=True),
    Column("site", Name, ForeignKey("site.name"), nullable=False),
    Column("plan", sa.JSON, nullable=False),
    Column("salt", Name, nullable=False),  # of the order of the arms
    Column("actor", Name, nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("ended_at", Moment),
    Column("ended", Name),  # complete, guard, person
    Column("reason", sa.Text, nullable=False),
)
_going = experiment.c.ended_at.is_(None)
Index("uq_experiment_going", experiment.c.site, unique=True, sqlite_where=_going, postgresql_where=_going)
assignment = Table(
    "assignment",  # which arm a study drew, once and for good
    metadata,
    Column("study", Key, ForeignKey("study.id"), primary_key=True),
    Column("kind", Name, primary_key=True),  # canary or experiment
    Column("unit", Key, primary_key=True),  # id of the deployment or of the experiment
    Column("arm", Name, nullable=False),
    Column("block", sa.String(192), nullable=False, default="", server_default=""),
    Column("at", Moment, nullable=False),
    Index("ix_assignment_unit", "unit", "arm"),
)
study_result = Table(
    "study_result",
    metadata,
    Column("id", Key, primary_key=True),
    Column("study", Key, ForeignKey("study.id"), nullable=False),
    Column("images", sa.String(64), nullable=False),  # SHA-256 over the sorted ids of the images
    Column("model", Name, nullable=False),
    Column("model_name", Name, nullable=False),
    Column("abnormal", sa.Float),
    Column("findings", sa.JSON, nullable=False),
    Column("at", Moment, nullable=False),
    UniqueConstraint("study", "images", "model"),
)
job = Table(
    "job",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("instance", Key, ForeignKey("instance.id"), nullable=False),
    Column("model", Name, nullable=False),
    Column("floor", sa.Integer, nullable=False),
    Column("state", Name, nullable=False),  # queued, running, done
    Column("tries", sa.Integer, nullable=False),
    Column("due_at", Moment, nullable=False),
    Column("lease_until", Moment),
    Column("worker", sa.Text),
    Column("error", sa.Text),
    UniqueConstraint("instance", "model"),
    sqlite_autoincrement=True,
)
_open = job.c.state != "done"
Index("ix_job_open", job.c.floor, job.c.id, sqlite_where=_open, postgresql_where=_open)
_aside = sa.and_(job.c.state == "done", job.c.error.is_not(None))  # given up; see `worker.retry`
Index("ix_job_aside", job.c.id, sqlite_where=_aside, postgresql_where=_aside)
process = Table(
    "process",
    metadata,
    Column("id", Key, primary_key=True),
    Column("kind", Name, nullable=False),  # serve or work
    Column("host", sa.Text, nullable=False),
    Column("pid", sa.Integer, nullable=False),
    Column("models", sa.JSON, nullable=False),  # ids of those that it serves
    Column("started_at", Moment, nullable=False),
    Column("seen_at", Moment, nullable=False),  # the last sign of life
)
removal = Table(  # files that no row needs any more: on their way out of the archive, or just gone
    "removal",
    metadata,
    Column("sha256", sa.String(64), primary_key=True),
    Column("at", Moment, nullable=False),
    Column("done", sa.Boolean, nullable=False),
)
claim = Table(
    "claim",
    metadata,
    Column("study", Key, ForeignKey("study.id"), primary_key=True),
    Column("reader", Name, nullable=False),
    Column("at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Column("handed_by", Name),  # who handed the study over; none once the reader has opened it
    Index("ix_claim_reader", "reader", "expires_at"),
)
draw = Table(
    "draw",  # of the random-audit sample, of each study that arrived while there was a share to draw; see `sample`
    metadata,
    Column("study", Key, ForeignKey("study.id"), primary_key=True),
    Column("share", sa.Float, nullable=False),
    Column("chosen", sa.Boolean, nullable=False),
    Column("at", Moment, nullable=False),
)
saved_filter = Table(
    "saved_filter",  # of the worklist; what was searched for is never kept
    metadata,
    Column("id", Key, primary_key=True),
    Column("site", Name, ForeignKey("site.name"), nullable=False),
    Column("reader", Name, nullable=False),
    Column("name", Name, nullable=False),
    Column("query", sa.JSON, nullable=False),
    Column("at", Moment, nullable=False),
    UniqueConstraint("site", "reader", "name"),
)
preference = Table(
    "preference",  # of a reader, such as their own keys
    metadata,
    Column("site", Name, ForeignKey("site.name"), primary_key=True),
    Column("reader", Name, primary_key=True),
    Column("name", Name, primary_key=True),
    Column("value", sa.JSON, nullable=False),
    Column("at", Moment, nullable=False),
)
review = Table(
    "review",
    metadata,
    Column("id", Key, primary_key=True),
    Column("study", Key, ForeignKey("study.id"), nullable=False, index=True),
    Column("reader", Name, nullable=False),
    Column("state", Name, nullable=False),  # draft, signed, withdrawn
    Column("parent", Key),  # the signed review that this is an addendum to
    Column("revision", sa.Integer, nullable=False, default=1, server_default="1"),  # of a draft: how often it was saved
    Column("writer", Key),  # of a draft: the page that saved it last
    Column("model_verdict", Name),  # right, wrong
    Column("normal", sa.Boolean, nullable=False),
    Column("note", sa.Text, nullable=False),
    Column("models", sa.JSON, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("signed_at", Moment),
    Column("withdrawn_at", Moment),
    Column("own_call", sa.JSON(none_as_null=True)),  # normal and findings, before the model's word was shown
    Column("own_call_at", Moment),
    # Whether the reader had the model's word before they made up their own mind.
    Column("anchored", sa.Boolean, nullable=False, default=True, server_default=sa.true()),
)
review_finding = Table(
    "review_finding",
    metadata,
    Column("review", Key, ForeignKey("review.id"), primary_key=True),
    Column("finding", Name, primary_key=True),
    Column("answer", Name, nullable=False),  # agree, disagree, unsure, or added by the reader
    Column("call", Name),  # what the model had said
    Column("probability", sa.Float),
    Column("model", Name),  # which one: SHA-256 of its package
)
# What the pages of figures look at is of some days: one walk along the newest.
_signed = sa.text("state = 'signed'")
Index("ix_review_signed_at", review.c.signed_at, sqlite_where=_signed, postgresql_where=_signed)
Index("ix_study_site_received_at", study.c.site, study.c.received_at)
Index("ix_instance_site_received_at", instance.c.site, instance.c.received_at)
_apart = sa.text("state = 'quarantined'")
Index("ix_instance_apart", instance.c.site, instance.c.received_at, sqlite_where=_apart, postgresql_where=_apart)
alert = Table(
    "alert",  # a critical finding, from when it is known until it was told or denied; see `critical`
    metadata,
    Column("id", Key, primary_key=True),
    Column("study", Key, ForeignKey("study.id"), nullable=False, index=True),
    Column("site", Name, ForeignKey("site.name"), nullable=False),
    Column("source", Name, nullable=False),  # ai or reader
    Column("finding", Name, nullable=False),
    Column("review", Key),  # by which it was confirmed
    Column("opened_at", Moment, nullable=False),
    Column("acknowledged_at", Moment),
    Column("confirmed_at", Moment),
    Column("told_at", Moment),
    Column("closed_at", Moment),
    Column("outcome", Name),  # communicated, denied, closed, merged
    Column("step", sa.Integer, nullable=False),  # how often it was escalated for what is owed now
    Column("next_at", Moment),  # when to look whether it is to be escalated
)
_still = alert.c.closed_at.is_(None)
Index("uq_alert_open", alert.c.study, unique=True, sqlite_where=_still, postgresql_where=_still)
Index("ix_alert_open_site", alert.c.site, alert.c.opened_at, sqlite_where=_still, postgresql_where=_still)
Index("ix_alert_next", alert.c.next_at, sqlite_where=_still, postgresql_where=_still)
communication = Table(
    "communication",  # what was done about it; never changed
    metadata,
    Column("id", Key, primary_key=True),
    Column("study", Key, ForeignKey("study.id"), nullable=False, index=True),
    Column("alert", Key, ForeignKey("alert.id")),  # none: told without one, or before the reader signed
    Column("kind", Name, nullable=False),  # acknowledged, communicated, escalated, closed
    Column("finding", Name, nullable=False),
    Column("review", Key),
    Column("actor", Name, nullable=False),
    Column("recipient", sa.Text, nullable=False),  # who was told
    Column("how", Name, nullable=False),  # phone, in person, message
    Column("read_back", sa.Boolean),
    Column("note", sa.Text, nullable=False),
    Column("at", Moment, nullable=False),  # when it happened, as far as the reader says
    Column("recorded_at", Moment, nullable=False),
    Column("stage", Name),  # of an escalation: acknowledge or tell
    Column("step", sa.Integer),
    UniqueConstraint("alert", "stage", "step"),
)
delivery = Table(
    "delivery",
    metadata,
    Column("id", Key, primary_key=True),
    Column("study", Key, ForeignKey("study.id"), nullable=False, index=True),
    Column("kind", Name, nullable=False),  # sr, sc, fhir, hl7, webhook
    Column("destination", sa.Text, nullable=False),  # an address without secrets
    Column("cause", sa.String(64), nullable=False),  # what it tells: fingerprint of results, or id of a review
    Column("detail", sa.JSON, nullable=False),  # for what; and what went out as whom, see `superseding`
    Column("state", Name, nullable=False),  # queued, failed (tried again when due), sent, given_up, nothing
    Column("tries", sa.Integer, nullable=False),
    Column("due_at", Moment, nullable=False),
    Column("lease_until", Moment),
    Column("error", sa.Text),
    Column("created_at", Moment, nullable=False),
    Column("sent_at", Moment),
    Column("revision", sa.Integer, nullable=False, default=0, server_default="0"),  # the study's that it tells
    UniqueConstraint("study", "kind", "destination", "cause"),
)
_unsent = sa.text("state IN ('queued', 'failed')")
Index("ix_delivery_unsent", delivery.c.destination, delivery.c.due_at, sqlite_where=_unsent, postgresql_where=_unsent)
_missing = sa.text("state IN ('failed', 'given_up')")
Index("ix_delivery_missing", delivery.c.study, sqlite_where=_missing, postgresql_where=_missing)
commitment = Table(  # of storage, asked for by a DICOM peer
    "commitment",
    metadata,
    Column("id", Key, primary_key=True),
    Column("site", Name, ForeignKey("site.name"), nullable=False),
    Column("ae", Name, nullable=False),
    Column("transaction", Name, nullable=False),
    Column("items", sa.JSON, nullable=False),  # pairs of SOP Class UID and SOP Instance UID
    Column("state", Name, nullable=False),  # pending, done, failed
    Column("tries", sa.Integer, nullable=False),
    Column("due_at", Moment, nullable=False),
    Column("error", sa.Text),
    Column("created_at", Moment, nullable=False),
    UniqueConstraint("site", "ae", "transaction"),
)
_pending = commitment.c.state == "pending"
Index("ix_commitment_pending", commitment.c.due_at, sqlite_where=_pending, postgresql_where=_pending)
pull = Table(  # studies to be fetched from another archive, see `wetread.clinic.pull_service`
    "pull",
    metadata,
    Column("id", Key, primary_key=True),
    Column("site", Name, ForeignKey("site.name"), nullable=False),
    Column("source", Name, nullable=False),  # the word that the setting `pull_sources` has for it
    Column("actor", Name, nullable=False),
    Column("state", Name, nullable=False),  # queued, running, done
    Column("wanted", sa.JSON, nullable=False),
    Column("outcomes", sa.JSON, nullable=False),
    Column("error", sa.Text),
    Column("created_at", Moment, nullable=False),
    Column("lease_until", Moment),
    Column("worker", sa.Text),
    Column("done_at", Moment),
)
Index("ix_pull_site", pull.c.site, pull.c.created_at)
_unfinished = pull.c.state != "done"
Index("ix_pull_open", pull.c.created_at, sqlite_where=_unfinished, postgresql_where=_unfinished)
event = Table(
    "event",
    metadata,
    Column("seq", Serial, primary_key=True),
    Column("at", Moment, nullable=False),
    Column("site", Name, nullable=False),
    Column("kind", Name, nullable=False),
    Column("study", Key, index=True),
    Column("payload", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)
audit = Table(
    "audit",
    metadata,
    Column("seq", Serial, primary_key=True),
    Column("at", Moment, nullable=False),
    Column("site", Name, nullable=False),
    Column("actor", Name, nullable=False),
    Column("action", Name, nullable=False),
    Column("object", Name, nullable=False, index=True),
    Column("detail", sa.JSON, nullable=False),
    Column("prev_hash", sa.String(64), nullable=False),
    Column("hash", sa.String(64), nullable=False),
    sqlite_autoincrement=True,
)

BUSY_TIMEOUT_MS = 30_000
_WRITERS_LOCK = 0x57E7  # any number, the same in every process
_VANISHED = "60s"


def now() -> datetime:
    """Return this instant in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """Return a random UUID as text."""
    return str(uuid.uuid4())


class Store:
    """The database, ready for use: opened, migrated to this version's schema.

    Parameters
    ----------
    url : str
        SQLAlchemy URL, ``sqlite:////path/clinic.db`` or ``postgresql+psycopg://…``.
    migrate : bool
        Bring an older schema up to date; false refuses it, and what is no database of ours.

    Raises
    ------
    ConfigError
        When the URL is none, or its driver is not installed.
    ClinicError
        When the database cannot be reached or migrated.
    """

    def __init__(self, url: str, *, migrate: bool = True) -> None:
        self.memo: dict[str, tuple[int, Any]] = {}  # site → number of the newest event, and what was counted then
        # Called with (connection, kind, study, payload) for each event, in its transaction: all or nothing.
        self.followers: list[Callable[[Connection, str, str | None, dict[str, Any]], None]] = []
        # SQLite lets waiting writers poll; a lock of our own wakes the next one at once.
        self._turn = threading.Lock()
        try:
            self.url = sa.make_url(url)
            self.engine = _engine(self.url)
        except (SQLAlchemyError, ModuleNotFoundError, ValueError) as error:
            raise ConfigError(
                f"database: not a usable SQLAlchemy URL ({hide(_line(error))}); see docs/clinic.md"
            ) from None
        try:
            self._migrate(change=migrate)
        except CommandError as error:
            self.engine.dispose()
            raise ClinicError(
                f"database: its schema is not of this version of Wetread ({_line(error)}); use the one that wrote it"
            ) from None
        except SQLAlchemyError as error:
            self.engine.dispose()
            raise ClinicError(
                f"database {hide(self.url.render_as_string())}: cannot be opened ({_line(error)}); "
                "check that it exists and may be written"
            ) from None

    @classmethod
    def open(cls, data: Path, url: str = "") -> Store:
        """Open the database at `url`, by default the SQLite file in the folder `data`, which is made."""
        if url:
            return cls(url)
        try:
            data.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(
                f"--data {data}: cannot be made ({error.strerror}); name a folder you may write"
            ) from None
        return cls(_in_folder(data))

    @classmethod
    def existing(cls, data: Path, url: str = "") -> Store:
        """Open a database that must be there, and of this version; nothing about it is changed."""
        if not url and not (data / "clinic.db").is_file():
            raise ConfigError(f"--data {data}: there is no clinic.db; name the data folder of a clinic")
        return cls(url or _in_folder(data), migrate=False)

    def _migrate(self, *, change: bool) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        if not change:
            with self.read() as connection:
                found = MigrationContext.configure(connection).get_current_revision()
            if found != (head := ScriptDirectory.from_config(config).get_current_head()):
                raise CommandError(f"{found or 'none'}, not {head}; `wetread serve` brings an older one up to date")
            return
        with self.write() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @property
    def shared(self) -> bool:
        """Whether several processes may work on this database: PostgreSQL, not SQLite."""
        return self.url.get_backend_name() == "postgresql"

    @contextmanager
    def write(self, *, ordered: bool = True) -> Iterator[Connection]:
        """Open a transaction that may write; committed at the end, undone by an exception.

        Parameters
        ----------
        ordered : bool
            One at a time over all processes: needed by whatever adds events or audit rows, or reads before it writes.

        Raises
        ------
        FullError
            When the database's disk is full.
        """
        try:
            with (
                self._turn if ordered or not self.shared else nullcontext(),
                self.engine.connect().execution_options(
                    wetread_write=True, wetread_followers=tuple(self.followers)
                ) as connection,
                connection.begin(),
            ):
                if self.shared:
                    # A machine that vanishes must not keep the others waiting for as long as TCP does.
                    wait = sa.func.set_config("idle_in_transaction_session_timeout", _VANISHED, True)
                    turn = [sa.func.pg_advisory_xact_lock(_WRITERS_LOCK)] if ordered else []
                    connection.execute(sa.select(wait, *turn))
                yield connection
        except OperationalError as error:
            if _is_full(error):
                raise FullError("database: its disk is full; make room, nothing of this was kept") from None
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that only reads: one consistent picture, never blocked by a writer."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def _in_folder(data: Path) -> str:
    return sa.URL.create("sqlite", database=str(data.resolve() / "clinic.db")).render_as_string()


def _engine(url: sa.URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        shared = sa.create_engine(url, pool_pre_ping=True, hide_parameters=True, pool_size=8, max_overflow=24)

        @sa.event.listens_for(shared, "connect")
        def _plan(connection: Any, _: Any) -> None:
            # A plan for any value at all is a bad one for a rare finding.
            with connection.cursor() as cursor:
                cursor.execute("SET plan_cache_mode = force_custom_plan")
            connection.commit()

        return shared
    engine = sa.create_engine(
        url,
        hide_parameters=True,  # they hold names, and errors are logged
        poolclass=sa.pool.QueuePool,
        pool_size=8,
        max_overflow=24,
        connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_MS / 1000},
    )

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        # pysqlite would begin transactions by its own rules; we begin them in `_begin`.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("wetread_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _is_full(error: OperationalError) -> bool:
    full = sqlite3.SQLITE_FULL, "53100"
    return getattr(error.orig, "sqlite_errorcode", None) in full or getattr(error.orig, "sqlstate", None) in full


def _line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


def emit(
    connection: Connection, kind: str, site: str, study: str | None = None, payload: Mapping[str, Any] | None = None
) -> None:
    """Add an event to the outbox, in the transaction of what it tells; the store's followers join in it."""
    row = {"at": now(), "site": site, "kind": kind, "study": study, "payload": json.loads(json.dumps(payload or {}))}
    connection.execute(event.insert(), row)
    for follow in connection.get_execution_options().get("wetread_followers", ()):
        follow(connection, kind, study, dict(payload or {}))


def ensure_site(connection: Connection, name: str) -> None:
    """Make the site when it is not there yet."""
    if connection.execute(sa.select(site.c.name).where(site.c.name == name)).first() is None:
        connection.execute(site.insert().values(name=name, ai=True, policy="", created_at=now()))

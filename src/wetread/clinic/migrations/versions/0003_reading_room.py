"""The reading room: a worklist in any order, filters that are kept, studies handed over."""

import hashlib
import unicodedata
from datetime import UTC
from urllib.parse import urlsplit

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add what the reading room needs to a database that may be full."""
    _revisions()
    _worklist()
    _webhooks()
    _pulls()
    _reviews()
    _figures()
    _safety()
    _told()


_UNREAD, _READ = "reading != 'signed' AND listed", "reading = 'signed' AND listed"
_FILTERED = [
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
]
_ORDERS = {
    "priority": ["rank", "place", "id"],
    "due": ["overdue_at", "id"],
    "arrived": ["received_at", "id"],
    "patient": ["name_key", "received_at", "id"],
    "age": ["age_key", "received_at", "id"],
    "study": ["title_key", "received_at", "id"],
    "view": ["views", "received_at", "id"],
}
_KEYS = ("name_key", "id_key", "accession_key", "title_key")
_AT_ONCE = 1000


def _worklist() -> None:
    """Keys to sort and search by beside the values, indexes for each order, claims handed over, kept filters."""
    folded = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.add_column("site", sa.Column("turns", sa.JSON()))
    op.add_column("study", sa.Column("title", sa.Text(), nullable=False, server_default=""))
    for name in _KEYS:
        op.add_column("study", sa.Column(name, folded, nullable=False, server_default=""))
    op.add_column("study", sa.Column("age_key", sa.Float(), nullable=False, server_default="999.0"))
    op.add_column("study", sa.Column("place", sa.Float(), nullable=False, server_default="0"))
    _fold()
    for name in ("site_rank_received_at_id", "site_priority_rank_received_at_id", "site_analysis_rank_received_at_id",
                 "site_priority_analysis_overdue"):  # fmt: skip
        op.drop_index(f"ix_study_unread_{name}", "study")
    op.drop_index("ix_study_read", "study")
    for order, columns in _ORDERS.items():
        more = [column for column in _FILTERED if column not in columns]
        _index(f"ix_study_unread_{order}", ["site", *columns, *more], _UNREAD)
        if order not in ("priority", "due"):
            _index(f"ix_study_read_{order}", ["site", *columns, *more], _READ)
    for column in ("priority", "analysis", "finding"):
        _index(f"ix_study_unread_of_{column}", ["site", column, "rank", "place", "id"], _UNREAD)
    _index("ix_study_read_of_priority", ["site", "priority", "received_at", "id"], _READ)
    wanted = ["site", "finding", "priority", "age_key", "views", "received_at", "id"]
    _index("ix_study_read_of_finding", wanted, _READ)
    if op.get_bind().dialect.name == "postgresql":  # a finding makes the class: the planner must not take chances
        op.execute("CREATE STATISTICS study_kinds (mcv) ON reading, priority, analysis, finding FROM study")
        op.execute("ALTER STATISTICS study_kinds SET STATISTICS 1000")
    _index("ix_study_unread_counts", ["site", "priority", "analysis", "overdue"], _UNREAD)
    for column in ("id_key", "accession_key"):
        op.create_index(f"ix_study_site_{column}", "study", ["site", column])
    op.add_column("claim", sa.Column("handed_by", sa.String(length=64)))
    op.create_index("ix_claim_reader", "claim", ["reader", "expires_at"])
    op.create_table(
        "saved_filter",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("site", sa.String(length=64), nullable=False),
        sa.Column("reader", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("query", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["site"], ["site.name"], name=op.f("fk_saved_filter_site")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saved_filter")),
        sa.UniqueConstraint("site", "reader", "name", name=op.f("uq_saved_filter_site_reader_name")),
    )


def _index(name: str, columns: list[str], where: str) -> None:
    op.create_index(name, "study", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def _fold() -> None:
    """Fill the keys of the studies that are there, some at a time. What folds them is as it was in this version."""

    def words(text: str | None) -> str:
        plain = (c for c in unicodedata.normalize("NFKD", text or "").casefold() if not unicodedata.combining(c))
        return " ".join("".join(c if c.isalnum() else " " for c in plain).split())

    connection, last = op.get_bind(), ""
    texts = ("id", "patient_id", "patient_name", "accession", "description")
    moment = sa.DateTime(timezone=True)
    study = sa.table(
        "study",
        *(sa.column(name, sa.Text()) for name in (*texts, "title", *_KEYS)),
        *(sa.column(name, sa.Float()) for name in ("age_years", "age_key", "place")),
        sa.column("received_at", moment),
    )
    series = sa.table("series", sa.column("study"), sa.column("body_part"))
    part = sa.select(sa.func.min(series.c.body_part)).where(series.c.study == study.c.id).scalar_subquery()
    columns = [study.c[name] for name in (*texts, "age_years", "received_at")]
    keys = ("title", *_KEYS, "age_key", "place")
    fill = (
        study.update()
        .where(study.c.id == sa.bindparam("key"))
        .values({name: sa.bindparam(f"new_{name}") for name in keys})
    )
    wanted = sa.select(*columns, part.label("part")).order_by(study.c.id).limit(_AT_ONCE)
    while rows := connection.execute(wanted.where(study.c.id > last)).all():
        last = rows[-1].id
        values = []
        for row in rows:
            title, at = row.description or row.part or "", row.received_at
            found = {
                "title": title,
                "name_key": words(row.patient_name),
                "id_key": words(row.patient_id).replace(" ", ""),
                "accession_key": words(row.accession).replace(" ", ""),
                "title_key": words(title),
                "age_key": 999.0 if row.age_years is None else row.age_years,
                "place": (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp(),
            }
            values.append({"key": row.id, **{f"new_{name}": value for name, value in found.items()}})
        connection.execute(fill, values)


def _revisions() -> None:
    """How often a study's patient was corrected, and under which of these an output went."""
    op.add_column("study", sa.Column("revision", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("study", sa.Column("revised_at", sa.DateTime(timezone=True)))
    op.add_column("delivery", sa.Column("revision", sa.Integer(), nullable=False, server_default="0"))


def _webhooks() -> None:
    """What stands for the address of a webhook, which may be a secret, in place of it. The audit cannot be changed."""

    def label(address: str) -> str:
        parts = urlsplit(address)
        return f"{parts.scheme}://{parts.netloc}/#{hashlib.sha256(address.encode()).hexdigest()[:8]}"

    connection = op.get_bind()
    delivery = sa.table("delivery", *(sa.column(name, sa.Text()) for name in ("kind", "destination", "error")))
    theirs = delivery.c.kind == "webhook"
    for address in connection.execute(sa.select(delivery.c.destination).where(theirs).distinct()).scalars().all():
        move = delivery.update().where(theirs, delivery.c.destination == address)
        error = sa.func.replace(delivery.c.error, address, label(address))
        connection.execute(move.values(destination=label(address), error=error))
    event = sa.table("event", sa.column("seq"), sa.column("kind", sa.Text()), sa.column("payload", sa.JSON()))
    told = sa.select(event.c.seq, event.c.payload).where(event.c.kind.startswith("delivery."))
    for row in connection.execute(told).all():
        if row.payload.get("kind") == "webhook":
            payload = row.payload | {"destination": label(row.payload["destination"])}
            connection.execute(event.update().where(event.c.seq == row.seq).values(payload=payload))


def _pulls() -> None:
    """Studies to be fetched from another archive, in the background."""
    name, moment = sa.String(64), sa.DateTime(timezone=True)
    op.create_table(
        "pull",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("site", name, sa.ForeignKey("site.name"), nullable=False),
        sa.Column("source", name, nullable=False),
        sa.Column("actor", name, nullable=False),
        sa.Column("state", name, nullable=False),
        sa.Column("wanted", sa.JSON(), nullable=False),
        sa.Column("outcomes", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("lease_until", moment),
        sa.Column("worker", sa.Text()),
        sa.Column("done_at", moment),
    )
    op.create_index("ix_pull_site", "pull", ["site", "created_at"])
    left = sa.text("state != 'done'")
    op.create_index("ix_pull_open", "pull", ["created_at"], sqlite_where=left, postgresql_where=left)


def _reviews() -> None:
    """Addenda, signatures taken back, drafts that tell which is newer, own calls, and what readers prefer."""
    name, moment = sa.String(64), sa.DateTime(timezone=True)
    op.add_column("review", sa.Column("parent", sa.String(36)))
    op.add_column("review", sa.Column("revision", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("review", sa.Column("writer", sa.String(36)))
    op.add_column("review", sa.Column("withdrawn_at", moment))
    op.add_column("review", sa.Column("own_call", sa.JSON()))
    op.add_column("review", sa.Column("own_call_at", moment))
    # Every study was shown with the model's word so far.
    op.add_column("review", sa.Column("anchored", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.create_table(
        "preference",
        sa.Column("site", name, sa.ForeignKey("site.name"), primary_key=True),
        sa.Column("reader", name, primary_key=True),
        sa.Column("name", name, primary_key=True),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.Column("at", moment, nullable=False),
    )


def _figures() -> None:
    """What the pages of figures walk along, and which model an answer was given to."""
    signed = sa.text("state = 'signed'")
    op.create_index("ix_review_signed_at", "review", ["signed_at"], sqlite_where=signed, postgresql_where=signed)
    for table in ("study", "instance"):
        op.create_index(f"ix_{table}_site_received_at", table, ["site", "received_at"])
    op.add_column("review_finding", sa.Column("model", sa.String(64)))
    only = "models ->> 0" if op.get_bind().dialect.name == "postgresql" else "json_extract(models, '$[0]')"
    # When one model had spoken, it was that one.
    asked = f"SELECT {only} FROM review WHERE review.id = review_finding.review AND json_array_length(models) = 1"  # noqa: S608
    op.execute(f"UPDATE review_finding SET model = ({asked}) WHERE call IS NOT NULL")  # noqa: S608


def _safety() -> None:
    """AI that is off by site and model, and critical findings until they were told."""
    name, moment, key = sa.String(64), sa.DateTime(timezone=True), sa.String(36)
    op.create_table(
        "ai_switch",
        sa.Column("site", name, sa.ForeignKey("site.name"), nullable=False),
        sa.Column("model", name, nullable=False),
        sa.Column("package", name, nullable=False),
        sa.Column("actor", name, nullable=False),
        sa.Column("cause", name, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.PrimaryKeyConstraint("site", "model", name=op.f("pk_ai_switch")),
    )
    op.execute(
        "INSERT INTO ai_switch (site, model, package, actor, cause, reason, at) "
        "SELECT name, '', '', 'unknown', 'person', '', CURRENT_TIMESTAMP FROM site WHERE NOT ai"
    )
    op.create_table(
        "alert",
        sa.Column("id", key, primary_key=True),
        sa.Column("study", key, sa.ForeignKey("study.id"), nullable=False),
        sa.Column("site", name, sa.ForeignKey("site.name"), nullable=False),
        sa.Column("source", name, nullable=False),
        sa.Column("finding", name, nullable=False),
        sa.Column("review", key),
        *(sa.Column(f"{what}_at", moment, nullable=what != "opened") for what in
          ("opened", "acknowledged", "confirmed", "told", "closed")),
        sa.Column("outcome", name),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("next_at", moment),
    )  # fmt: skip
    still = sa.text("closed_at IS NULL")
    op.create_index("ix_alert_study", "alert", ["study"])
    op.create_index("uq_alert_open", "alert", ["study"], unique=True, sqlite_where=still, postgresql_where=still)
    op.create_index("ix_alert_open_site", "alert", ["site", "opened_at"], sqlite_where=still, postgresql_where=still)
    op.create_index("ix_alert_next", "alert", ["next_at"], sqlite_where=still, postgresql_where=still)
    op.create_table(
        "communication",
        sa.Column("id", key, primary_key=True),
        sa.Column("study", key, sa.ForeignKey("study.id"), nullable=False),
        sa.Column("alert", key, sa.ForeignKey("alert.id")),
        sa.Column("kind", name, nullable=False),
        sa.Column("finding", name, nullable=False),
        sa.Column("review", key),
        sa.Column("actor", name, nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("how", name, nullable=False),
        sa.Column("read_back", sa.Boolean()),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("recorded_at", moment, nullable=False),
        sa.Column("stage", name),
        sa.Column("step", sa.Integer()),
        sa.UniqueConstraint("alert", "stage", "step", name=op.f("uq_communication_alert_stage_step")),
    )
    op.create_index("ix_communication_study", "communication", ["study"])


def _told() -> None:
    """What happened to a study, found by the study; and whose results are for research only, as all were so far."""
    op.create_index("ix_audit_object", "audit", ["object"])
    op.add_column("image_result", sa.Column("research_only", sa.Boolean(), nullable=False, server_default=sa.true()))

"""The closed loop: a worklist by every column."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add what the closed loop needs to a database that may be full."""
    _sorted()
    _told()
    _drift()
    _experiment()
    _rollout()
    _sampled()


def _sorted() -> None:
    """Let the list be sorted by what ranked a study."""
    columns = ["site", "finding", "rank", "place", "id", "priority", "analysis", "views", "overdue", "age_key",
               "title_key", "received_at", "reading", "listed"]  # fmt: skip
    where = sa.text("reading != 'signed' AND listed")
    op.drop_index("ix_study_unread_of_finding", "study")
    op.create_index("ix_study_unread_why", "study", columns, sqlite_where=where, postgresql_where=where)


def _told() -> None:
    """Know who gave a patient identifier, find what was kept apart, look again at what was acknowledged, not signed."""
    op.add_column("study", sa.Column("patient_issuer", sa.Text()))
    apart = sa.text("state = 'quarantined'")
    op.create_index(
        "ix_instance_apart", "instance", ["site", "received_at"], sqlite_where=apart, postgresql_where=apart
    )
    op.execute(
        "UPDATE alert SET next_at = acknowledged_at WHERE closed_at IS NULL AND told_at IS NULL"
        " AND confirmed_at IS NULL AND acknowledged_at IS NOT NULL"
    )


def _drift() -> None:
    """Keep of each image what drift is looked for in, and what was found."""
    moment = sa.DateTime(timezone=True)
    for name in ("device", "station", "source"):
        op.add_column("instance", sa.Column(name, sa.String(64)))
    op.create_table(
        "image_trait",
        sa.Column("instance", sa.String(36), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("exposure", sa.JSON(), nullable=False),
        sa.Column("features", sa.LargeBinary()),
        sa.Column("at", moment, nullable=False),
        sa.ForeignKeyConstraint(["instance"], ["instance.id"], name=op.f("fk_image_trait_instance")),
        sa.PrimaryKeyConstraint("instance", "model", name=op.f("pk_image_trait")),
    )
    op.create_table(
        "drift_check",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("site", sa.String(64), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("since", moment, nullable=False),
        sa.Column("until", moment, nullable=False),
        sa.Column("verdict", sa.String(64), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["site"], ["site.name"], name=op.f("fk_drift_check_site")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_drift_check")),
    )
    op.create_index("ix_drift_check_site", "drift_check", ["site", "model", "at"])


def _rollout() -> None:
    """Which package does what for a slot, and which arm a study drew."""
    moment, name, key = sa.DateTime(timezone=True), sa.String(64), sa.String(36)
    op.create_table(
        "deployment",
        sa.Column("id", key, nullable=False),
        sa.Column("site", name, nullable=False),
        sa.Column("slot", sa.String(192), nullable=False),
        *(sa.Column(column, name, nullable=False) for column in ("model", "model_name", "version", "stage")),
        sa.Column("share", sa.Float(), nullable=False),
        sa.Column("salt", name, nullable=False),
        sa.Column("previous", name),
        sa.Column("actor", name, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", moment, nullable=False),
        sa.Column("until", moment),
        sa.Column("ended", name),
        sa.Column("why", sa.Text()),
        sa.Column("held", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("verdict", sa.JSON()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployment")),
    )
    op.create_index("ix_deployment_slot", "deployment", ["site", "slot", "since"])
    for what, sign in (("champion", "="), ("challenger", "!=")):
        where = sa.text(f"until IS NULL AND stage {sign} 'champion'")
        op.create_index(
            f"uq_deployment_{what}", "deployment", ["site", "slot"], unique=True,
            sqlite_where=where, postgresql_where=where,
        )  # fmt: skip
    op.create_table(
        "assignment",
        sa.Column("study", key, nullable=False),
        sa.Column("kind", name, nullable=False),
        sa.Column("unit", key, nullable=False),
        sa.Column("arm", name, nullable=False),
        sa.Column("block", sa.String(192), nullable=False, server_default=""),
        sa.Column("at", moment, nullable=False),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_assignment_study")),
        sa.PrimaryKeyConstraint("study", "kind", "unit", name=op.f("pk_assignment")),
    )
    op.create_index("ix_assignment_unit", "assignment", ["unit", "arm"])


def _sampled() -> None:
    """Keep the draws of the random-audit sample."""
    op.create_table(
        "draw",
        sa.Column("study", sa.String(36), nullable=False),
        sa.Column("share", sa.Float(), nullable=False),
        sa.Column("chosen", sa.Boolean(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_draw_study")),
        sa.PrimaryKeyConstraint("study", name=op.f("pk_draw")),
    )


def _experiment() -> None:
    """Keep which order of the list is tried where."""
    moment, going = sa.DateTime(timezone=True), sa.text("ended_at IS NULL")
    op.create_table(
        "experiment",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("site", sa.String(64), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("salt", sa.String(64), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("started_at", moment, nullable=False),
        sa.Column("ended_at", moment),
        sa.Column("ended", sa.String(64)),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["site"], ["site.name"], name=op.f("fk_experiment_site")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_experiment")),
    )
    name, columns = "uq_experiment_going", ["site"]
    op.create_index(name, "experiment", columns, unique=True, sqlite_where=going, postgresql_where=going)

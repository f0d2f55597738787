"""The clinic's wire: what arrives by DICOM, what goes out, who may come in."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add what the wire needs to a database that may be full."""
    op.create_table(
        "delivery",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("study", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("cause", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=64), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_delivery_study")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
        sa.UniqueConstraint(
            "study", "kind", "destination", "cause", name=op.f("uq_delivery_study_kind_destination_cause")
        ),
    )
    op.create_index(op.f("ix_delivery_study"), "delivery", ["study"])
    op.create_index(
        "ix_delivery_unsent",
        "delivery",
        ["destination", "due_at"],
        sqlite_where=sa.text("state IN ('queued', 'failed')"),
        postgresql_where=sa.text("state IN ('queued', 'failed')"),
    )
    op.create_index(
        "ix_delivery_missing",
        "delivery",
        ["study"],
        sqlite_where=sa.text("state IN ('failed', 'given_up')"),
        postgresql_where=sa.text("state IN ('failed', 'given_up')"),
    )
    _access()
    _life()
    _processes()
    _queries()
    _commitment()
    with op.batch_alter_table("image_result") as table:
        table.add_column(sa.Column("caution_codes", sa.JSON(), nullable=False, server_default=sa.text("'[]'")))


def _access() -> None:
    """Accounts with passwords, tokens with scopes, counted attempts, and an audit that can only grow."""
    with op.batch_alter_table("account") as table:
        table.add_column(sa.Column("login", sa.String(length=192)))
        table.add_column(sa.Column("password", sa.Text()))
        table.add_column(sa.Column("issuer", sa.String(length=255)))
        table.add_column(sa.Column("subject", sa.String(length=255)))
        table.add_column(sa.Column("seen_at", sa.DateTime(timezone=True)))
    op.execute("UPDATE account SET login = id")  # version 1 made none that could log in
    with op.batch_alter_table("account") as table:
        table.alter_column("login", existing_type=sa.String(length=192), nullable=False)
        table.create_unique_constraint(op.f("uq_account_login"), ["login"])
        table.create_unique_constraint(op.f("uq_account_issuer_subject"), ["issuer", "subject"])
    with op.batch_alter_table("token") as table:
        table.add_column(sa.Column("account", sa.String(length=36)))
        table.add_column(sa.Column("scopes", sa.JSON()))
        table.add_column(sa.Column("seen_at", sa.DateTime(timezone=True)))
        table.create_foreign_key(op.f("fk_token_account"), "account", ["account"], ["id"])
        table.create_index(op.f("ix_token_account"), ["account"])
    op.create_table(
        "attempt",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("level", sa.Float(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_attempt")),
    )
    for statement in _APPEND_ONLY[op.get_bind().dialect.name]:
        op.execute(statement)


# SQLite's REPLACE removes a row without asking a trigger for DELETE, hence the one for INSERT.
_APPEND_ONLY = {
    "sqlite": (
        "CREATE TRIGGER audit_keeps_rows BEFORE DELETE ON audit "
        "BEGIN SELECT RAISE(ABORT, 'audit: rows can only be added'); END",
        "CREATE TRIGGER audit_keeps_contents BEFORE UPDATE ON audit "
        "BEGIN SELECT RAISE(ABORT, 'audit: rows can only be added'); END",
        "CREATE TRIGGER audit_replaces_nothing BEFORE INSERT ON audit "
        "WHEN EXISTS (SELECT 1 FROM audit WHERE seq >= NEW.seq) AND NEW.seq > 0 "
        "BEGIN SELECT RAISE(ABORT, 'audit: rows can only be added'); END",
    ),
    "postgresql": (
        "CREATE FUNCTION audit_refuses() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'audit: rows can only be added'; END $$",
        "CREATE TRIGGER audit_keeps_rows BEFORE UPDATE OR DELETE ON audit "
        "FOR EACH ROW EXECUTE FUNCTION audit_refuses()",
        "CREATE TRIGGER audit_keeps_all BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION audit_refuses()",
    ),
}


def _life() -> None:
    """What becomes of a study: complete, merged, rejected, its header corrected."""
    op.add_column("study", sa.Column("listed", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("study", sa.Column("merged_into", sa.String(length=36)))
    op.add_column("study", sa.Column("complete_at", sa.DateTime(timezone=True)))
    op.create_index("ix_study_site_patient_id", "study", ["site", "patient_id"])
    op.create_index("ix_study_site_patient_name_birth_date", "study", ["site", "patient_name", "birth_date"])
    op.create_index(
        "ix_study_complete_at",
        "study",
        ["complete_at"],
        sqlite_where=sa.text("complete_at IS NOT NULL"),
        postgresql_where=sa.text("complete_at IS NOT NULL"),
    )
    op.add_column("instance", sa.Column("reason", sa.Text()))
    op.add_column("instance", sa.Column("pixels_sha256", sa.String(length=64)))
    op.add_column("instance", sa.Column("sop_class", sa.String(length=64)))
    op.add_column("image_result", sa.Column("basis", sa.String(length=64)))
    op.add_column("image_result", sa.Column("merging", sa.JSON()))
    op.create_table(
        "alias",
        sa.Column("site", sa.String(length=64), nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("patient_id", sa.String(length=256), nullable=False),
        sa.Column("now", sa.String(length=256), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["site"], ["site.name"], name=op.f("fk_alias_site")),
        sa.PrimaryKeyConstraint("site", "study_uid", "patient_id", name=op.f("pk_alias")),
    )
    op.create_table(
        "rejection",
        sa.Column("site", sa.String(length=64), nullable=False),
        sa.Column("sop_uid", sa.String(length=64), nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("code", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["site"], ["site.name"], name=op.f("fk_rejection_site")),
        sa.PrimaryKeyConstraint("site", "sop_uid", name=op.f("pk_rejection")),
    )


def _processes() -> None:
    """Several processes on one database, images set aside, and bytes on their way out."""
    aside = sa.text("state = 'done' AND error IS NOT NULL")
    op.create_index("ix_job_aside", "job", ["id"], sqlite_where=aside, postgresql_where=aside)
    op.execute(  # version 1 kept no reason for these, and without one they could not be tried again
        "UPDATE job SET error = 'the analysis broke off' WHERE state = 'done' AND error IS NULL AND EXISTS (SELECT 1 "
        "FROM image_result r WHERE r.instance = job.instance AND r.model = job.model AND r.code = 'MODEL_FAILED')"
    )
    op.create_table(
        "process",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("models", sa.JSON(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_process")),
    )
    op.create_table(
        "removal",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("done", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_removal")),
    )


def _queries() -> None:
    """Study Date and Time for queries; older rows know the date of acquisition, which is nearly always the same."""
    op.add_column("study", sa.Column("study_date", sa.String(length=8)))
    op.add_column("study", sa.Column("study_time", sa.String(length=16)))
    op.create_index("ix_study_site_study_date", "study", ["site", "study_date"])
    op.create_index("ix_instance_series", "instance", ["series"])
    op.execute(
        "UPDATE study SET study_date = replace(substr(acquired_at, 1, 10), '-', ''), "
        "study_time = CASE WHEN length(acquired_at) >= 16 THEN replace(substr(acquired_at, 12, 5), ':', '') END "
        "WHERE acquired_at IS NOT NULL"
    )


def _commitment() -> None:
    """Storage commitments that DICOM peers asked for."""
    op.create_table(
        "commitment",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("site", sa.String(length=64), nullable=False),
        sa.Column("ae", sa.String(length=64), nullable=False),
        sa.Column("transaction", sa.String(length=64), nullable=False),
        sa.Column("items", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=64), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["site"], ["site.name"], name=op.f("fk_commitment_site")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commitment")),
        sa.UniqueConstraint("site", "ae", "transaction", name=op.f("uq_commitment_site_ae_transaction")),
    )
    pending = sa.text("state = 'pending'")
    op.create_index("ix_commitment_pending", "commitment", ["due_at"], sqlite_where=pending, postgresql_where=pending)

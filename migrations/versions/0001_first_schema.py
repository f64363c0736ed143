"""First schema: subjects, models, protocols, devices, jobs, measurements, tables.

Revision: 0001, after None
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# The same in SQLite as INTEGER; PostgreSQL had not been supported before it read so.
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ACTIVE = sa.text("state IN ('queued', 'leased')")


def upgrade() -> None:
    op.create_table(
        "model_files",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_model_files")),
    )
    op.create_table(
        "subjects",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_subjects")),
    )
    op.create_index("ix_subjects_key", "subjects", ["key"], unique=False)
    op.create_table(
        "models",
        sa.Column("subject_id", sa.String(length=64), nullable=False),
        sa.Column("precision", sa.String(length=20), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("conversion_s", sa.Double(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["sha256"], ["model_files.sha256"], name=op.f("fk_models_sha256")),
        sa.ForeignKeyConstraint(["subject_id"], ["subjects.id"], name=op.f("fk_models_subject_id")),
        sa.PrimaryKeyConstraint("subject_id", "precision", name=op.f("pk_models")),
    )
    op.create_index("ix_models_state_requested_at", "models", ["state", "requested_at"], unique=False)
    op.create_table(
        "protocols",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("precision", sa.String(length=20), nullable=False),
        sa.Column("reference_id", sa.String(length=64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["reference_id"], ["subjects.id"], name=op.f("fk_protocols_reference_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_protocols")),
    )
    op.create_table(
        "devices",
        sa.Column("serial", sa.String(length=100), nullable=False),
        sa.Column("model", sa.String(length=100), nullable=False),
        sa.Column("protocol_id", sa.String(length=64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("faults", sa.Integer(), nullable=False),
        sa.Column("last_fault", sa.Text(), nullable=True),
        sa.Column("blocked_until", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["protocol_id"], ["protocols.id"], name=op.f("fk_devices_protocol_id")),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_devices")),
    )
    op.create_index("ix_devices_model", "devices", ["model"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", ID, nullable=False),
        sa.Column("subject_id", sa.String(length=64), nullable=False),
        sa.Column("device_model", sa.String(length=100), nullable=False),
        sa.Column("protocol_id", sa.String(length=64), nullable=False),
        sa.Column("precision", sa.String(length=20), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("lease_token", sa.String(length=64), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("leased_by", sa.String(length=100), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["protocol_id"], ["protocols.id"], name=op.f("fk_jobs_protocol_id")),
        sa.ForeignKeyConstraint(["subject_id"], ["subjects.id"], name=op.f("fk_jobs_subject_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index("ix_jobs_claim", "jobs", ["device_model", "protocol_id", "state", "priority", "id"], unique=False)
    op.create_index("ix_jobs_lease_token", "jobs", ["lease_token"], unique=False)
    op.create_index(
        "uq_jobs_active",
        "jobs",
        ["subject_id", "device_model", "protocol_id"],
        unique=True,
        sqlite_where=ACTIVE,
        postgresql_where=ACTIVE,
    )
    op.create_table(
        "table_versions",
        sa.Column("id", ID, nullable=False),
        sa.Column("table_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("device_model", sa.String(length=100), nullable=False),
        sa.Column("protocol_id", sa.String(length=64), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["protocol_id"], ["protocols.id"], name=op.f("fk_table_versions_protocol_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_table_versions")),
        sa.UniqueConstraint("table_id", "version", name=op.f("uq_table_versions_table_id_version")),
    )
    op.create_table(
        "measurements",
        sa.Column("id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("subject_id", sa.String(length=64), nullable=False),
        sa.Column("device_model", sa.String(length=100), nullable=False),
        sa.Column("protocol_id", sa.String(length=64), nullable=False),
        sa.Column("device_serial", sa.String(length=100), nullable=False),
        sa.Column("latency_ms", sa.Double(), nullable=False),
        sa.Column("low_ms", sa.Double(), nullable=False),
        sa.Column("high_ms", sa.Double(), nullable=False),
        sa.Column("confidence", sa.Double(), nullable=False),
        sa.Column("verdict", sa.String(length=20), nullable=False),
        sa.Column("rounds", sa.Integer(), nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_measurements_job_id")),
        sa.ForeignKeyConstraint(["protocol_id"], ["protocols.id"], name=op.f("fk_measurements_protocol_id")),
        sa.ForeignKeyConstraint(["subject_id"], ["subjects.id"], name=op.f("fk_measurements_subject_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_measurements")),
        sa.UniqueConstraint("job_id", name=op.f("uq_measurements_job_id")),
    )
    op.create_index(
        "ix_measurements_device_model_protocol_id_subject_id_id",
        "measurements",
        ["device_model", "protocol_id", "subject_id", "id"],
        unique=False,
    )
    op.create_table(
        "wants",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("client", sa.String(length=100), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_wants_job_id")),
        sa.PrimaryKeyConstraint("job_id", "client", name=op.f("pk_wants")),
    )
    op.create_index("ix_wants_client", "wants", ["client"], unique=False)
    op.create_table(
        "table_entries",
        sa.Column("version_id", ID, nullable=False),
        sa.Column("measurement_id", ID, nullable=False),
        sa.ForeignKeyConstraint(["measurement_id"], ["measurements.id"], name=op.f("fk_table_entries_measurement_id")),
        sa.ForeignKeyConstraint(["version_id"], ["table_versions.id"], name=op.f("fk_table_entries_version_id")),
        sa.PrimaryKeyConstraint("version_id", "measurement_id", name=op.f("pk_table_entries")),
    )


def downgrade() -> None:
    op.drop_table("table_entries")
    op.drop_table("wants")
    op.drop_table("measurements")
    op.drop_table("table_versions")
    op.drop_table("jobs")
    op.drop_table("devices")
    op.drop_table("protocols")
    op.drop_table("models")
    op.drop_table("subjects")
    op.drop_table("model_files")

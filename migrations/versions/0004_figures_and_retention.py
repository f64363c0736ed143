"""What shows how a service fares, and what of a measurement is still kept.

Revision: 0004, after 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ACTIVE = "state IN ('queued', 'leased')"
PARTIAL_INDEXES = (
    ("ix_jobs_active", "jobs", ["state", "device_model", "priority", "created_at"], sa.text(ACTIVE)),
    ("ix_jobs_failed", "jobs", ["state", "device_model", "failed_at"], sa.text("state = 'failed'")),
    ("ix_jobs_expired", "jobs", ["device_model", "expiries"], sa.text("expiries > 0")),
    ("ix_measurements_samples", "measurements", ["measured_at"], sa.text("has_samples")),
    ("ix_measurements_evidence", "measurements", ["measured_at"], sa.text("has_evidence")),
)
COUNT = (
    "UPDATE devices SET measured_{0} = (SELECT count(*) FROM measurements"
    " WHERE device_serial = devices.serial AND verdict = '{0}')"
)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("expiries", sa.Integer(), nullable=False, server_default="0"))
    for verdict in ("steady", "unsteady"):
        op.add_column("devices", sa.Column(f"measured_{verdict}", sa.Integer(), nullable=False, server_default="0"))
        op.execute(COUNT.format(verdict))
    op.add_column("devices", sa.Column("last_measured_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(
        "UPDATE devices SET last_measured_at ="
        " (SELECT max(measured_at) FROM measurements WHERE device_serial = devices.serial)"
    )
    op.add_column("measurements", sa.Column("has_samples", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("measurements", sa.Column("has_evidence", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute("""UPDATE measurements SET has_evidence = true WHERE document LIKE '%"rejected":[{%'""")
    for name, table, columns, where in PARTIAL_INDEXES:
        op.create_index(name, table, columns, unique=False, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for name, table, _, _ in PARTIAL_INDEXES:
        op.drop_index(name, table_name=table)
    for table, names in {
        "jobs": ("failed_at", "expiries"),
        "devices": ("measured_steady", "measured_unsteady", "last_measured_at"),
        "measurements": ("has_samples", "has_evidence"),
    }.items():
        for name in names:
            op.drop_column(table, name)
    # The first schema knows no dropped models; one that failed is converted anew too when somebody asks for it.
    op.execute("UPDATE models SET state = 'failed', error = 'its file was not kept' WHERE state = 'dropped'")

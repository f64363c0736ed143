"""Jobs are claimed in the order of an index, and found by subject in another; a converter's deaths, and layers.

Revision: 0008, after 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

ACTIVE = sa.text("state IN ('queued', 'leased')")


def upgrade() -> None:
    op.drop_index("ix_jobs_claim", table_name="jobs")
    op.create_index(
        "ix_jobs_claim",
        "jobs",
        ["device_model", "protocol_id", "priority", "attempts", "id"],
        sqlite_where=ACTIVE,
        postgresql_where=ACTIVE,
    )
    op.create_index("ix_jobs_subject", "jobs", ["device_model", "protocol_id", "subject_id", "id"])
    op.add_column("jobs", sa.Column("layers", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("models", sa.Column("deaths", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("models", "deaths")
    op.drop_column("jobs", "layers")
    op.drop_index("ix_jobs_subject", table_name="jobs")
    op.drop_index("ix_jobs_claim", table_name="jobs")
    op.create_index("ix_jobs_claim", "jobs", ["device_model", "protocol_id", "state", "priority", "id"])

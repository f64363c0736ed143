"""Jobs are claimed in the order of an index, and found by subject in another.

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


def downgrade() -> None:
    op.drop_index("ix_jobs_subject", table_name="jobs")
    op.drop_index("ix_jobs_claim", table_name="jobs")
    op.create_index("ix_jobs_claim", "jobs", ["device_model", "protocol_id", "state", "priority", "id"])

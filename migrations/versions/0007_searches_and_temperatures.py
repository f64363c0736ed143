"""What the dashboard shows: searches that report themselves, and how warm a device was when it last measured.

Revision: 0007, after 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("devices", sa.Column("last_temperature_c", sa.Double(), nullable=True))
    op.create_table(
        "searches",
        sa.Column("owner", sa.String(50), nullable=False),
        sa.Column("id", sa.String(100), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("owner", "id", name="pk_searches"),
    )
    op.create_index("ix_searches_reported_at", "searches", ["reported_at"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_searches_reported_at", table_name="searches")
    op.drop_table("searches")
    op.drop_column("devices", "last_temperature_c")

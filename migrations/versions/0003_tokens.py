"""Tokens, and whose token a client that wants a measurement has.

Revision: 0003, after 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

VALID = sa.text("revoked_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "tokens",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_tokens")),
    )
    op.create_index("uq_tokens_valid_name", "tokens", ["name"], unique=True, sqlite_where=VALID, postgresql_where=VALID)
    op.drop_index("ix_wants_client", "wants")
    with op.batch_alter_table("wants") as batch:
        batch.add_column(sa.Column("owner", sa.String(length=50), nullable=False, server_default=""))
        batch.drop_constraint("pk_wants", type_="primary")
        batch.create_primary_key("pk_wants", ["job_id", "owner", "client"])
    with op.batch_alter_table("wants") as batch:
        batch.alter_column("owner", server_default=None, existing_type=sa.String(length=50), existing_nullable=False)
    op.create_index("ix_wants_client", "wants", ["owner", "client"], unique=False)


def downgrade() -> None:
    """Clients of one name become one, whosesoever tokens they had."""
    op.drop_index("ix_wants_client", "wants")
    op.execute(
        "DELETE FROM wants WHERE EXISTS (SELECT 1 FROM wants AS other WHERE other.job_id = wants.job_id"
        " AND other.client = wants.client AND other.owner < wants.owner)"
    )
    with op.batch_alter_table("wants") as batch:
        batch.drop_constraint("pk_wants", type_="primary")
        batch.drop_column("owner")
        batch.create_primary_key("pk_wants", ["job_id", "client"])
    op.create_index("ix_wants_client", "wants", ["client"], unique=False)
    op.drop_table("tokens")

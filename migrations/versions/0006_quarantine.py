"""What units have read of the reference operator, and which of them are in quarantine since they no longer do.

Revision: 0006, after 0005
"""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SLOT_S = 600  # one reading of a unit in ten minutes

measurements = sa.table(
    "measurements",
    sa.column("id", sa.BigInteger),
    sa.column("device_serial", sa.String),
    sa.column("protocol_id", sa.String),
    sa.column("measured_at", sa.DateTime(timezone=True)),
    sa.column("reference_ms", sa.Double),
)


def upgrade() -> None:
    op.add_column("devices", sa.Column("quarantine", sa.Text(), nullable=True))
    op.add_column("measurements", sa.Column("drifted", sa.Boolean(), nullable=False, server_default=sa.false()))
    readings = op.create_table(
        "reference_readings",
        sa.Column("device_serial", sa.String(100), nullable=False),
        sa.Column("protocol_id", sa.String(64), nullable=False),
        sa.Column("slot_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reference_ms", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["protocol_id"], ["protocols.id"], name=op.f("fk_reference_readings_protocol_id_protocols")
        ),
        sa.PrimaryKeyConstraint("device_serial", "protocol_id", "slot_at", name=op.f("pk_reference_readings")),
    )
    first: dict[tuple[str, str, datetime], float] = {}
    for row in op.get_bind().execute(sa.select(measurements).order_by(measurements.c.id)):
        at = row.measured_at if row.measured_at.tzinfo else row.measured_at.replace(tzinfo=UTC)
        begun = datetime.fromtimestamp(at.timestamp() // SLOT_S * SLOT_S, UTC)
        first.setdefault((row.device_serial, row.protocol_id, begun), row.reference_ms)
    kept = [
        {"device_serial": serial, "protocol_id": protocol_id, "slot_at": begun, "reference_ms": reference_ms}
        for (serial, protocol_id, begun), reference_ms in first.items()
    ]
    op.bulk_insert(readings, kept)


def downgrade() -> None:
    """An older program knows no drift: what a unit measured after it had changed counts there again, and goes on to."""
    op.drop_table("reference_readings")
    op.drop_column("measurements", "drifted")
    op.drop_column("devices", "quarantine")

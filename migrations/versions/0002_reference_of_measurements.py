"""Measurements have the floor of their reference readings as a column, by which units are compared.

Revision: 0002, after 0001
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BATCH = 200  # documents in memory at a time; each holds every sample of a measurement
INDEX = ("ix_measurements_units", "measurements")

measurements = sa.table(
    "measurements", sa.column("id", sa.BigInteger), sa.column("document", sa.Text), sa.column("reference_ms", sa.Double)
)
table_entries = sa.table("table_entries", sa.column("version_id"), sa.column("measurement_id"))
kept_entries = sa.table("kept_entries", sa.column("version_id"), sa.column("measurement_id"))


def upgrade() -> None:
    op.add_column("measurements", sa.Column("reference_ms", sa.Double(), nullable=True))
    _fill()
    _forbid_null()
    op.create_index(*INDEX, ["device_model", "protocol_id", "device_serial", "id", "reference_ms"], unique=False)


def downgrade() -> None:
    op.drop_index(*INDEX)
    op.drop_column("measurements", "reference_ms")


def _fill() -> None:
    """From the stored documents, which hold every reading."""
    connection, last = op.get_bind(), 0
    while rows := connection.execute(
        sa.select(measurements.c.id, measurements.c.document)
        .where(measurements.c.id > last)
        .order_by(measurements.c.id)
        .limit(BATCH)
    ).all():
        for row in rows:
            floor_ms = min(
                min(made["reference_before_ms"], made["reference_after_ms"])
                for made in json.loads(row.document)["rounds"]
            )
            connection.execute(sa.update(measurements).where(measurements.c.id == row.id).values(reference_ms=floor_ms))
        last = rows[-1].id


def _forbid_null() -> None:
    """SQLite can do so only by a new table in the place of the old one.

    It refuses to drop the old one while rows refer to it, and no transaction can turn that off. So what refers to
    measurements, the entries of published tables, is put aside meanwhile.
    """
    sqlite = op.get_context().dialect.name == "sqlite"
    if sqlite:
        op.execute("CREATE TABLE kept_entries AS SELECT version_id, measurement_id FROM table_entries")
        op.execute(sa.delete(table_entries))
    with op.batch_alter_table("measurements") as batch:
        batch.alter_column("reference_ms", existing_type=sa.Double(), nullable=False)
    if sqlite:
        op.execute(sa.insert(table_entries).from_select(["version_id", "measurement_id"], sa.select(kept_entries)))
        op.drop_table("kept_entries")

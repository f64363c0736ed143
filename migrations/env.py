"""Alembic's entry point: the service hands over its own connection (latency_service/database.py)."""

from alembic import context
from sqlalchemy import Connection

from latency_service.models import Base


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


run(context.config.attributes["connection"])

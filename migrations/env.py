"""Alembic's entry point: the service hands over its own connection, the alembic command makes one from a URL."""

from alembic import context
from sqlalchemy import Connection, create_engine

from latency_service.models import Base


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    url = context.get_x_argument(as_dictionary=True).get("url") or context.config.get_main_option("sqlalchemy.url")
    assert url is not None, "name the database: alembic -x url=sqlite:///padnas.db …"
    with create_engine(url).connect() as connection:
        run(connection)
        connection.commit()

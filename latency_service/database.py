"""The database: engine, transactions, and the check that its schema is the one this program was written for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session

from latency_service.errors import SchemaMismatch

BUSY_TIMEOUT_S = 30.0  # a writer waits this long for another one on SQLite


class Database:
    """One engine. `reading` and `writing` are the only ways to a session; `writing` commits once, at its end."""

    def __init__(self, url: str) -> None:
        """Raises ValueError for a URL that names no database."""
        self.url = url
        sqlite = url.startswith("sqlite")
        options: dict[str, Any] = {"connect_args": {"timeout": BUSY_TIMEOUT_S}} if sqlite else {"pool_pre_ping": True}
        try:
            self.engine = create_engine(url, **options)
        except (ArgumentError, ImportError) as error:
            raise ValueError(f"'{url}' is not a database URL that works here ({error}). Use sqlite:///FILE.") from error
        if sqlite and self.engine.url.database in (None, "", ":memory:"):
            raise ValueError(f"'{url}' is a database in memory, which ends with its connection. Use sqlite:///FILE.")
        if sqlite:
            _prepare_sqlite(self.engine)
        self._writing_engine = self.engine.execution_options(writes=True)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        with Session(self._writing_engine) as session, session.begin():
            yield session

    def migrate(self) -> None:
        """Bring the schema to this program's, from nothing or from an older one."""
        with self.engine.connect() as connection:
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()

    def is_empty(self) -> bool:
        return not inspect(self.engine).get_table_names()

    def check_schema(self) -> None:
        """Raise SchemaMismatch unless the database's schema is this program's."""
        expected = ScriptDirectory.from_config(_alembic_config()).get_current_head()
        with self.engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        if found != expected:
            raise SchemaMismatch(
                f"The database has schema {found or 'none'}, this program needs {expected}."
                f" Run: padnas-service migrate --database-url {self.engine.url.render_as_string(hide_password=True)}"
            )

    def dispose(self) -> None:
        self.engine.dispose()


def _alembic_config() -> Config:
    here = Path(__file__).parent
    installed = here / "migrations"  # inside a wheel
    config = Config()
    config.set_main_option("script_location", str(installed if installed.is_dir() else here.parent / "migrations"))
    return config


def _prepare_sqlite(engine: Engine) -> None:
    """Write-ahead log, foreign keys, and write transactions that take the lock when they begin.

    SQLite refuses at once to turn a reading transaction into a writing one when another has written in between; no
    timeout helps. A transaction that is going to write therefore says so with its first statement.
    """

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: Any) -> None:  # noqa: ARG001
        connection.isolation_level = None  # the driver must not begin transactions by itself
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

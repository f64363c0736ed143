"""The database: engine, transactions, and the check that its schema is the one this program was written for.

SQLite and PostgreSQL. What holds when many services write to one PostgreSQL is in docs/decisions/0015.
"""

import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    InvalidatePoolError,
    OperationalError,
    SQLAlchemyError,
    TimeoutError,
)
from sqlalchemy.orm import Session

from latency_service.errors import SchemaMismatch

BUSY_TIMEOUT_S = 30.0  # a writer waits this long for another one on SQLite
CONNECT_TIMEOUT_S = 5  # a PostgreSQL that is away is answered with 503, and asked again later
# A server that is silent, and not only refuses, is given up after so long: one that computes is not silent to TCP.
SILENCE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 25_000}  # s, ms
STATEMENT_TIMEOUT_S = 30  # what takes longer than a client waits for its answer is in nobody's interest
LOCK_TIMEOUT_S = 10
# A process answers with one core, which keeps fewer connections busy than it has threads; the others wait their turn.
# Four replicas fit in the 100 connections that PostgreSQL allows unless told otherwise.
POOL_SIZE, POOL_OVERFLOW, POOL_TIMEOUT_S = 10, 10, 10.0
MIGRATION_LOCK = 0x7AD_0A5  # any number that nobody else uses
AWAY = (OperationalError, InterfaceError, TimeoutError)  # the database's fault, which may pass, and not ours
USE = "Use sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE."


class Database:
    """One engine. `reading` and `writing` are the only ways to a session; `writing` commits once, at its end."""

    def __init__(self, url: str, *, password: str | None = None) -> None:
        """`password`: of PostgreSQL, where the URL has none. Raises ValueError for a URL that names no database."""
        self.engine = _engine(url, password)
        self.url = self.engine.url.render_as_string(hide_password=True)  # for people
        self.file = Path(self.engine.url.database or "") if self.engine.dialect.name == "sqlite" else None
        self._writing_engine = self.engine.execution_options(writes=True)
        # Under READ COMMITTED each statement sees what is committed when it begins, in a transaction or without: to
        # begin and end one around what is only read would be two more round trips.
        alone = {} if self.file is not None else {"isolation_level": "AUTOCOMMIT"}
        self._reading_engine = self.engine.execution_options(**alone)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with Session(self._reading_engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        with Session(self._writing_engine) as session, session.begin():
            yield session

    def migrate(self) -> None:
        """Bring the schema to this program's, from nothing or from an older one. Who comes second finds it done.

        Raises SchemaMismatch where a newer program has made it, and changes nothing then.

        In one transaction, which is begun here: Alembic would have one for each step on SQLite, and who came second
        would go on where it found the first one.
        """
        with self._writing_engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
            if (found := _schema_of(connection)) not in (None, *_known_schemas()):
                raise _mismatch(found)
            config = alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def is_empty(self) -> bool:
        return not inspect(self.engine).get_table_names()

    def check_schema(self) -> None:
        """Raise SchemaMismatch unless the database's schema is this program's.

        The sentence says nothing of the database but its schema: `/readyz` tells it to everybody.
        """
        with self.engine.connect() as connection:
            found = _schema_of(connection)
        if found != _known_schemas()[0]:
            raise _mismatch(found)

    def dispose(self) -> None:
        self.engine.dispose()


def _engine(text: str, password: str | None) -> Engine:
    try:
        url = make_url(text)
        if url.drivername in ("postgres", "postgresql"):  # as PostgreSQL's own tools and most providers write it
            url = url.set(drivername="postgresql+psycopg")
        if url.get_backend_name() == "sqlite":
            return _sqlite(url)
        if url.drivername == "postgresql+psycopg":
            return _postgresql(url.set(password=password) if url.password is None else url)
    except ImportError as error:
        raise ValueError("PostgreSQL needs a driver. Run: pip install 'pad-nas[postgresql]'") from error
    except ArgumentError as error:
        raise ValueError(f"'{text}' is not a database URL. {USE}") from error
    raise ValueError(f"'{url.drivername}' is not a database that works here. {USE}")


def _sqlite(url: URL) -> Engine:
    if url.database in (None, "", ":memory:"):
        raise ValueError(f"'{url}' is a database in memory, which ends with its connection. Use sqlite:///FILE.")
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_S})
    _prepare_sqlite(engine)
    return engine


def _postgresql(url: URL) -> Engine:
    """A connection that PostgreSQL has closed is not used, so that one which was restarted is found again."""
    settings = {
        "timezone": "UTC",  # also the far ends of the calendar can be read back
        "statement_timeout": f"{STATEMENT_TIMEOUT_S}s",
        "lock_timeout": f"{LOCK_TIMEOUT_S}s",
    }
    engine = create_engine(
        url,
        hide_parameters=True,  # in errors, which are logged: lease tokens are among them
        isolation_level="READ COMMITTED",
        pool_size=POOL_SIZE,
        max_overflow=POOL_OVERFLOW,
        pool_timeout=POOL_TIMEOUT_S,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            **SILENCE,
            "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
        },
    )
    event.listen(engine, "checkout", _refuse_closed)
    return engine


def _refuse_closed(connection: Any, *_: Any) -> None:
    """A server that ends says so on every connection, where nothing else comes unasked: no round trip is needed.

    Where it could not say so, the first statement fails, which is answered with 503, and all connections are made anew.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        raise InvalidatePoolError("PostgreSQL has closed the connection")


def reason(error: SQLAlchemyError) -> str:
    """What the database said, in one line; PostgreSQL takes several."""
    said = error.orig if isinstance(error, DBAPIError) else error
    return " ".join(str(said).split()).rstrip(".")


def alembic_config() -> Config:
    here = Path(__file__).parent
    installed = here / "migrations"  # inside a wheel
    config = Config()
    config.set_main_option("script_location", str(installed if installed.is_dir() else here.parent / "migrations"))
    return config


def _known_schemas() -> list[str]:
    """Revisions that this program can bring a database to or from, the one that it needs first."""
    return [schema.revision for schema in ScriptDirectory.from_config(alembic_config()).walk_revisions()]


def _schema_of(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _mismatch(found: str | None) -> SchemaMismatch:
    needed, *older = _known_schemas()
    return SchemaMismatch(
        f"The database has schema {found or 'none'}, this program needs {needed}. "
        + (
            "Run `padnas-service migrate` with the same database URL."
            if found is None or found in older
            else "A newer program has made it: install that version, or restore a backup."
        )
    )


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

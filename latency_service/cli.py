"""`padnas-service`: serve, migrate, token, device; and what keeps it going: status, prune, backup, restore."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
import uvicorn
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import DatabaseError

from latency_service import backup as backup_file
from latency_service import devices, drift, logs, retention, tokens
from latency_service import status as status_report
from latency_service.app import create_app, utc_now
from latency_service.converter import Converter
from latency_service.database import Database, reason
from latency_service.errors import SchemaMismatch, UnknownDevice
from latency_service.logs import LogFormat
from latency_service.settings import Settings

app = typer.Typer(
    help="The latency service: converts operators to TFLite, queues profiling jobs, keeps lookup tables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
token_app = typer.Typer(
    help="Tokens: who may use the service. It asks for them as soon as one was created, running services included.",
    no_args_is_help=True,
)
app.add_typer(token_app, name="token")
device_app = typer.Typer(help="Devices: what the service thinks of them.", no_args_is_help=True)
app.add_typer(device_app, name="device")
FROM_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where a service that listens everywhere is found from here
AGENT_STOP_S = 20.0  # time for the local agent to give its lease back

DatabaseUrl = Annotated[
    str,
    typer.Option(
        envvar="PADNAS_DATABASE_URL",
        help="sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE",
    ),
]


@app.callback()
def main() -> None:
    """Give `--help` to a command to see an example of it."""


@app.command(epilog="Example: padnas-service serve --with-local-agent")
def serve(
    database_url: DatabaseUrl = Settings.database_url,
    host: Annotated[str, typer.Option(help="address to listen on")] = Settings.host,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 for any free one")] = Settings.port,
    with_local_agent: Annotated[
        bool, typer.Option("--with-local-agent", help="also run an agent that measures on this machine")
    ] = False,
    convert: Annotated[
        bool,
        typer.Option(help="convert to TFLite; --no-convert needs no TensorFlow and leaves it to other services"),
    ] = Settings.converts,
    log_format: Annotated[
        LogFormat, typer.Option(help="what is logged on stderr: lines for people, or one JSON object a line")
    ] = LogFormat.TEXT,
) -> None:
    """Serve REST until stopped. An empty database gets its schema; an older one is refused.

    As long as no token was ever created, the service listens on this machine alone, and serves everybody there.
    """
    logs.configure(log_format)
    settings = Settings(database_url=database_url, host=host, port=port, converts=convert)
    with _prepared(database_url) as database, database.reading() as session:
        if not settings.this_machine_alone and not tokens.valid(session):
            _refuse(
                f"Without tokens the service listens on this machine alone, not on {host}. Use --host 127.0.0.1, or"
                " create one in the same database: padnas-service token create --role client --name NAME"
            )
    # After its own shutdown uvicorn raises the signal again; this makes it an exit with status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    with _listen(host, port) as listener:
        bound_port = listener.getsockname()[1]
        typer.echo(f"latency service on {_url(host, bound_port)}, database {database.url}")
        secret = tokens.new_secret()
        service = create_app(database, settings=settings, local_agent_secret=secret)
        config = uvicorn.Config(service, log_level="warning", log_config=None, access_log=False)
        own_url = _url(FROM_HERE.get(host, host), bound_port)
        with _local_agent(own_url, secret) if with_local_agent else contextlib.nullcontext() as agent:
            _Server(config, agent, service.state.parts.converter).run(sockets=[listener])


@app.command(epilog="Example: padnas-service migrate --database-url sqlite:///padnas.db")
def migrate(database_url: DatabaseUrl = Settings.database_url) -> None:
    """Bring a database's schema up to this program's."""
    database = _open(database_url)
    with _closing(database):
        database.migrate()
    typer.echo(f"{database.url} has the current schema")


@token_app.command("create", epilog="Example: padnas-service token create --role client --name ana")
def token_create(
    role: Annotated[tokens.Role, typer.Option(help="agent: measures; client: wants latencies; admin: everything")],
    name: Annotated[str, typer.Option(help="whose token it is; what a client wants is known by it")],
    database_url: DatabaseUrl = Settings.database_url,
) -> None:
    """Create a token and print it, this once. What to do with it goes to standard error."""
    with _prepared(database_url) as database, database.writing() as session:
        first = not tokens.needed(session)
        try:
            secret = tokens.create(session, name=name, role=role, now=utc_now())
        except ValueError as error:
            _refuse(str(error), status=1)
    typer.echo(f"Token '{name}', role {role}. It is stored nowhere and not shown again. {tokens.HOW_TO_SEND}", err=True)
    if first:
        typer.echo("It is the first one: from now on the service asks everybody for a token.", err=True)
    typer.echo(secret)


@token_app.command("list", epilog="Example: padnas-service token list --json")
def token_list(
    database_url: DatabaseUrl = Settings.database_url,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, for scripts")] = False,
) -> None:
    """List the valid tokens: name, role, when created, when last used (to the minute)."""
    with _existing(database_url) as database, database.reading() as session:
        rows, needed = tokens.valid(session), tokens.needed(session)
    if as_json:
        listed = [
            {
                "name": row.name,
                "role": row.role,
                "created_at": row.created_at.isoformat(),
                "last_used_at": row.last_used_at and row.last_used_at.isoformat(),
            }
            for row in rows
        ]
        typer.echo(json.dumps(listed))
    elif rows:
        lines = Table("name", "role", "created (UTC)", "last used (UTC)", box=None)
        for row in rows:
            used = f"{row.last_used_at:%Y-%m-%d %H:%M}" if row.last_used_at is not None else "never"
            lines.add_row(row.name, row.role, f"{row.created_at:%Y-%m-%d %H:%M}", used)
        Console(markup=False).print(lines)
    elif needed:
        typer.echo("No token is valid any more, so the service answers nobody. Create one: padnas-service token create")
    else:
        typer.echo("There are no tokens: the service answers everybody on this machine, and nobody else.")


@token_app.command("revoke", epilog="Example: padnas-service token revoke ana")
def token_revoke(
    name: Annotated[str, typer.Argument(help="a name of `token list`")],
    database_url: DatabaseUrl = Settings.database_url,
) -> None:
    """Revoke a token. Running services refuse it from the next request on."""
    with _existing(database_url) as database, database.writing() as session:
        try:
            tokens.revoke(session, name, now=utc_now())
        except ValueError as error:
            _refuse(str(error), status=1)
    typer.echo(f"The token '{name}' is revoked")


@device_app.command("release", epilog="Example: padnas-service device release 89AX0KCQ1")
def device_release(
    serial: Annotated[str, typer.Argument(help="a serial of `padnas-service status`")],
    database_url: DatabaseUrl = Settings.database_url,
) -> None:
    """End a unit's quarantine: it has changed for good. What it measured before counts no more."""
    with _existing(database_url) as database, database.writing() as session:
        try:
            outdated = drift.release(session, devices.known(session, serial, lock=True))
        except UnknownDevice as error:
            _refuse(str(error), status=1)
    typer.echo(
        f"{serial} is not in quarantine; nothing has changed"
        if outdated is None
        else f"{serial} measures again, and its history begins anew. Of its measurements {outdated} are older than the"
        " change and count no more; whoever asks for those operators has them measured again"
    )


@contextlib.contextmanager
def _prepared(database_url: str) -> Iterator[Database]:
    """A database with this program's schema, which an empty one is given."""
    database = _open(database_url)
    with _closing(database):
        if database.is_empty():
            database.migrate()
        database.check_schema()
        yield database


@app.command(epilog="Example: padnas-service status --database-url sqlite:///padnas.db")
def status(
    database_url: DatabaseUrl = Settings.database_url,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """How devices, queue, conversions and tables are, and what needs attention. Asks the database, not a service."""
    with _existing(database_url) as database, database.reading() as session:
        now = status_report.status(session, database=database.url, settings=Settings(), now=utc_now())
    typer.echo(now.model_dump_json(indent=2) if as_json else status_report.text_of(now))


@app.command(epilog="Example: padnas-service prune --keep-samples 90 --keep-evidence 365 --keep-models 30")
def prune(
    database_url: DatabaseUrl = Settings.database_url,
    keep_samples: Annotated[
        int | None, typer.Option(min=0, metavar="DAYS", help="older rounds keep one number instead of every sample")
    ] = None,
    keep_evidence: Annotated[
        int | None, typer.Option(min=0, metavar="DAYS", help="older rejected rounds are only counted")
    ] = None,
    keep_models: Annotated[
        int | None,
        typer.Option(min=0, metavar="DAYS", help="older TFLite files go, if nothing needs them and they can be remade"),
    ] = None,
    keep_given: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="DAYS", help="older TFLite files go that were sent here; measurements of them stay"
        ),
    ] = None,
) -> None:
    """Drop what is older than so many days; what is not named is kept. Latencies, intervals and tables always are.

    Services may run meanwhile. Let cron call it once a day.
    """
    if keep_samples is keep_evidence is keep_models is keep_given is None:
        _refuse("Say what is to be dropped, and from which age on: --keep-samples 90, for example.")
    with _existing(database_url) as database:
        if keep_samples is not None:
            changed = retention.drop_samples(database, before=utc_now() - timedelta(days=keep_samples))
            typer.echo(f"{changed:,} measurements keep one number a round, and no samples")
        if keep_evidence is not None:
            changed = retention.drop_evidence(database, before=utc_now() - timedelta(days=keep_evidence))
            typer.echo(f"{changed:,} measurements keep no rejected rounds")
        if keep_models is not None:
            freed = retention.drop_models(database, before=utc_now() - timedelta(days=keep_models))
            typer.echo(f"{freed.files:,} TFLite files dropped, {freed.size_bytes / 1e6:,.1f} MB")
        if keep_given is not None:
            freed = retention.drop_models(database, before=utc_now() - timedelta(days=keep_given), given=True)
            typer.echo(f"{freed.files:,} TFLite files that were sent here dropped, {freed.size_bytes / 1e6:,.1f} MB")


@app.command(epilog="Example: padnas-service backup padnas-monday.db")
def backup(
    file: Annotated[Path, typer.Argument(help="the backup; it must not exist yet")],
    database_url: DatabaseUrl = Settings.database_url,
) -> None:
    """Copy an SQLite database as it is now. Services may run meanwhile."""
    path = _sqlite_file(database_url, native="pg_dump --format=custom --file FILE DATABASE-URL")
    try:
        backup_file.back_up(path, file)
    except ValueError as error:
        _refuse(str(error), status=1)
    typer.echo(f"{file} is a copy of {path}, {file.stat().st_size / 1e6:,.1f} MB")


@app.command(epilog="Example: padnas-service restore padnas-monday.db --database-url sqlite:///padnas.db")
def restore(
    file: Annotated[Path, typer.Argument(help="a backup")], database_url: DatabaseUrl = Settings.database_url
) -> None:
    """Make an SQLite database of a backup, where there is none yet."""
    path = _sqlite_file(database_url, native="pg_restore --dbname DATABASE-URL FILE")
    try:
        backup_file.restore(file, path)
    except ValueError as error:
        _refuse(str(error), status=1)
    typer.echo(f"{path} is as {file} was")
    database = _open(database_url)
    try:
        database.check_schema()
    except SchemaMismatch as error:
        typer.echo(str(error))
    finally:
        database.dispose()


@contextlib.contextmanager
def _existing(database_url: str) -> Iterator[Database]:
    """A database with this program's schema. SQLite would make an empty one of a name that is none."""
    database = _open(database_url)
    path = database.file
    if path is not None and not path.is_file():
        _refuse(f"There is no database {path}. Name one with --database-url.", status=1)
    with _closing(database):
        database.check_schema()
        yield database


@contextlib.contextmanager
def _closing(database: Database) -> Iterator[None]:
    """What the database refuses is said in a sentence; it is closed in the end."""
    try:
        yield
    except SchemaMismatch as error:
        _refuse(str(error), status=1)
    except DatabaseError as error:
        _refuse(_cannot_open(database, error), status=1)
    finally:
        database.dispose()


def _sqlite_file(database_url: str, *, native: str) -> Path:
    database = _open(database_url)
    database.dispose()
    if database.file is None:
        _refuse(f"PostgreSQL has tools of its own for that, which work while services run: {native}", status=1)
    return database.file


def _cannot_open(database: Database, error: DatabaseError) -> str:
    return f"The database {database.url} cannot be opened: {reason(error)}."


def _open(database_url: str) -> Database:
    try:
        return Database(database_url, password=_password_of_environment())
    except ValueError as error:
        _refuse(str(error))


def _password_of_environment() -> str | None:
    """What the file says that PADNAS_DATABASE_PASSWORD_FILE names. Raises ValueError where it cannot be read."""
    path = os.environ.get("PADNAS_DATABASE_PASSWORD_FILE")
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(
            f"The password file {path} cannot be read: {why}. Mend PADNAS_DATABASE_PASSWORD_FILE."
        ) from error


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # whoever reads our first line may connect at once, and waits until we serve
    except OSError as error:
        listener.close()
        _refuse(f"Port {port} on {host} cannot be used: {error.strerror}. Choose another with --port.", status=1)
    return listener


@contextlib.contextmanager
def _local_agent(url: str, secret: str) -> Iterator[subprocess.Popen[bytes]]:
    """`padnas-agent run --device local` beside the service, ended with it at the latest."""
    # By the environment, since everybody can read a process's arguments. It never leaves the machine.
    environment = os.environ | {"PADNAS_TOKEN": secret, "PADNAS_TOKEN_OVER_HTTP": "yes"}
    command = [sys.executable, "-m", "device_agents", "run", "--service", url, "--device", "local"]
    # Its own session, so that Ctrl-C reaches it through us alone; a pipe, so that it ends with us, even by kill -9.
    agent = subprocess.Popen(
        [*command, "--stop-with-input"], stdin=subprocess.PIPE, start_new_session=True, env=environment
    )
    try:
        yield agent
    finally:
        agent.kill()
        agent.communicate()


class _Server(uvicorn.Server):
    """Serves until a local agent has given its lease back, when told to stop; a second signal does not wait."""

    def __init__(
        self, config: uvicorn.Config, agent: subprocess.Popen[bytes] | None, converter: Converter | None
    ) -> None:
        super().__init__(config)
        self._agent = agent
        self._converter = converter

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Requests that wait for a conversion would be waited for, which may take minutes."""
        if self._converter is not None:
            self._converter.give_up()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        agent, self._agent = self._agent, None
        if agent is None:
            super().handle_exit(sig, frame)
            return
        agent.terminate()
        threading.Thread(target=self._exit_after, args=(agent, sig)).start()

    def _exit_after(self, agent: subprocess.Popen[bytes], sig: int) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            agent.wait(AGENT_STOP_S)
        super().handle_exit(sig, None)


def _refuse(sentence: str, *, status: int = 2) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(status)


if __name__ == "__main__":
    app()

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from latency_service.cli import app
from latency_service.database import Database
from latency_service.status import Status

runner = CliRunner()


def test_migrate_makes_the_schema(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    result = runner.invoke(app, ["migrate", "--database-url", url])
    assert result.exit_code == 0
    database = Database(url)
    database.check_schema()
    database.dispose()


def test_serving_beyond_this_machine_without_tokens_is_refused_with_the_command_that_creates_one(
    database_url: str,
) -> None:
    result = runner.invoke(app, ["serve", "--host", "0.0.0.0", "--database-url", database_url])
    assert result.exit_code == 2
    assert "Without tokens the service listens on this machine alone, not on 0.0.0.0" in result.stderr
    assert "padnas-service token create --role client --name NAME" in result.stderr
    create_token(database_url, "ana")
    runner.invoke(app, ["token", "revoke", "ana", "--database-url", database_url])
    assert runner.invoke(app, ["serve", "--host", "0.0.0.0", "--database-url", database_url]).exit_code == 2


def create_token(database_url: str, name: str, role: str = "client") -> str:
    command = ["token", "create", "--role", role, "--name", name, "--database-url", database_url]
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.stderr
    return result.stdout.strip()


def test_a_token_is_printed_alone_once_and_stored_nowhere(database: Database, database_url: str) -> None:
    secret = create_token(database_url, "ana")
    listed = runner.invoke(app, ["token", "list", "--database-url", database_url])
    assert listed.stdout.split("\n")[1].split()[:2] == ["ana", "client"]
    assert listed.stdout.split("\n")[1].split()[-1] == "never"
    assert secret not in listed.output
    with database.reading() as session:
        (row,) = session.execute(text("SELECT * FROM tokens")).all()
    assert secret not in str(row)
    assert secret.removeprefix("padnas_") not in str(row)


def test_the_first_token_is_announced_as_what_closes_the_service(tmp_path: Path) -> None:
    command = ["token", "create", "--role", "admin", "--database-url", f"sqlite:///{tmp_path / 'new.db'}", "--name"]
    assert "from now on the service asks everybody for a token" in runner.invoke(app, [*command, "one"]).stderr
    assert "from now on" not in runner.invoke(app, [*command, "two"]).stderr


def test_tokens_are_listed_as_json_while_they_are_valid(database_url: str) -> None:
    command = ["token", "list", "--database-url", database_url]
    assert "There are no tokens" in runner.invoke(app, command).stdout
    create_token(database_url, "hub-1", "agent")
    (token,) = json.loads(runner.invoke(app, [*command, "--json"]).stdout)
    assert (token["name"], token["role"], token["last_used_at"]) == ("hub-1", "agent", None)
    revoked = runner.invoke(app, ["token", "revoke", "hub-1", "--database-url", database_url])
    assert revoked.stdout == "The token 'hub-1' is revoked\n"
    assert json.loads(runner.invoke(app, [*command, "--json"]).stdout) == []
    assert "No token is valid any more, so the service answers nobody" in runner.invoke(app, command).stdout


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["create", "--role", "agent", "--name", "ana"], "There is a token 'ana' already. Choose another name, or fi"),
        (["create", "--role", "agent", "--name", "a b"], "'a b' cannot be a token's name. Use 1 to 50 letters"),
        (["revoke", "bob"], "There is no valid token 'bob'. Valid are: ana."),
    ],
)
def test_what_cannot_be_done_with_a_token_is_a_sentence(database_url: str, command: list[str], sentence: str) -> None:
    create_token(database_url, "ana")
    result = runner.invoke(app, ["token", *command, "--database-url", database_url])
    assert result.exit_code == 1
    assert sentence in result.stderr


def test_a_role_that_there_is_not_is_wrong_use(database_url: str) -> None:
    command = ["token", "create", "--role", "root", "--name", "x", "--database-url", database_url]
    assert runner.invoke(app, command).exit_code == 2


def test_a_database_that_cannot_be_opened_is_a_sentence(tmp_path: Path) -> None:
    result = runner.invoke(app, ["serve", "--database-url", f"sqlite:///{tmp_path / 'no' / 'such' / 'folder.db'}"])
    assert result.exit_code == 1
    assert "cannot be opened: unable to open database file" in result.stderr


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_file_that_is_no_database_is_a_sentence_and_left_alone(tmp_path: Path, command: str) -> None:
    (tmp_path / "thesis.txt").write_text("years of work " * 100)
    result = runner.invoke(app, [command, "--database-url", f"sqlite:///{tmp_path / 'thesis.txt'}"])
    assert result.exit_code == 1
    assert "cannot be opened: file is not a database" in result.stderr
    assert (tmp_path / "thesis.txt").read_text().startswith("years of work")


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_postgresql_that_does_not_answer_is_a_sentence_without_its_password(tmp_path: Path, command: str) -> None:
    url = f"postgresql://me:secret@/db?host={tmp_path}"
    result = runner.invoke(app, [command, "--database-url", url])
    assert result.exit_code == 1
    assert "cannot be opened" in result.stderr
    assert "No such file or directory" in result.stderr
    assert "secret" not in result.output
    assert result.stderr.count("\n") == 1


def test_the_password_of_postgresql_comes_from_a_file(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the URL names another, it is not asked; SQLite has none."""
    monkeypatch.setenv("PADNAS_DATABASE_PASSWORD_FILE", str(tmp_path / "password"))
    (tmp_path / "password").write_text("wrong and not needed here\n")
    assert runner.invoke(app, ["migrate", "--database-url", database_url]).exit_code == 0
    (tmp_path / "password").unlink()
    result = runner.invoke(app, ["migrate", "--database-url", database_url])
    assert result.exit_code == 2
    assert "cannot be read: No such file or directory. Mend PADNAS_DATABASE_PASSWORD_FILE" in result.stderr


def test_serve_refuses_another_schema_with_the_command_that_mends_it(database: Database, database_url: str) -> None:
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    result = runner.invoke(app, ["serve", "--database-url", database_url])
    assert result.exit_code == 1
    assert "The database has schema 0001, this program needs" in result.stderr
    assert "Run `padnas-service migrate` with the same database URL" in result.stderr


def test_migrate_refuses_the_schema_of_a_newer_program(database: Database, database_url: str) -> None:
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    result = runner.invoke(app, ["migrate", "--database-url", database_url])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "A newer program has made it" in result.stderr


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_text_that_is_no_database_url_is_wrong_use(command: str) -> None:
    result = runner.invoke(app, [command, "--database-url", "padnas.db"])
    assert result.exit_code == 2
    assert "is not a database URL" in result.stderr


@pytest.mark.parametrize(
    "command",
    ["serve", "migrate", "token create", "token list", "token revoke", "status", "prune", "backup", "restore"],
)
def test_help_has_an_example(command: str) -> None:
    result = runner.invoke(app, [*command.split(), "--help"])
    assert f"Example: padnas-service {command}" in result.stdout


def test_the_log_of_serve_is_one_json_object_a_line_and_one_line_a_request(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "latency_service.cli", "serve", "--port", "0", "--log-format", "json"]
    service = subprocess.Popen(
        [*command, "--database-url", f"sqlite:///{tmp_path / 'new.db'}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert service.stdout is not None
    started = re.match(r"latency service on (\S+), database", service.stdout.readline())
    assert started is not None
    headers = {"X-Request-ID": "mine", "Authorization": "Bearer padnas_not_for_the_log"}
    assert httpx.get(f"{started[1]}/v1/devices", headers=headers).headers["X-Request-ID"] == "mine"
    service.send_signal(signal.SIGTERM)
    _, said = service.communicate(timeout=60)
    assert service.returncode == 0
    lines = [json.loads(line) for line in said.splitlines()]
    (about,) = [line for line in lines if "devices" in line["message"]]
    assert (about["request"], about["message"], about["status"]) == ("mine", "GET /v1/devices", 200)
    assert "padnas_not_for_the_log" not in said


def test_status_of_an_empty_database_says_what_to_do_next(database_url: str) -> None:
    result = runner.invoke(app, ["status", "--database-url", database_url])
    assert result.exit_code == 0
    assert "none has reported; start padnas-agent run" in result.stdout
    status = Status.model_validate_json(runner.invoke(app, ["status", "--json", "--database-url", database_url]).stdout)
    assert (status.units, status.attention) == ((), ())
    assert status.size_bytes > 50_000


@pytest.mark.parametrize("command", [["status"], ["prune", "--keep-models", "1"]])
def test_a_database_of_another_schema_is_refused_with_the_command_that_mends_it(
    database: Database, database_url: str, command: list[str]
) -> None:
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    result = runner.invoke(app, [*command, "--database-url", database_url])
    assert result.exit_code == 1
    assert "Run `padnas-service migrate` with the same database URL" in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["prune", "--keep-samples", "1"],
        ["backup", "copy.db"],
        ["token", "list"],
        ["token", "revoke", "ana"],
    ],
)
def test_a_database_that_does_not_exist_is_not_made(tmp_path: Path, command: list[str]) -> None:
    missing = tmp_path / "missing.db"
    result = runner.invoke(app, [*command, "--database-url", f"sqlite:///{missing}"])
    assert result.exit_code == 1
    assert f"There is no database {missing}" in result.stderr
    assert not missing.exists()


def test_prune_drops_nothing_that_is_not_named(database_url: str) -> None:
    result = runner.invoke(app, ["prune", "--database-url", database_url])
    assert result.exit_code == 2
    assert "Say what is to be dropped" in result.stderr
    options = ["--keep-samples", "90", "--keep-evidence", "365", "--keep-models", "30", "--keep-given", "30"]
    result = runner.invoke(app, ["prune", *options, "--database-url", database_url])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "0 measurements keep one number a round, and no samples",
        "0 measurements keep no rejected rounds",
        "0 TFLite files dropped, 0.0 MB",
        "0 TFLite files that were sent here dropped, 0.0 MB",
    ]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_backup_is_restored_from_the_command_line(database_url: str, tmp_path: Path) -> None:
    copy, restored = tmp_path / "copy.db", f"sqlite:///{tmp_path / 'restored.db'}"
    made = runner.invoke(app, ["backup", str(copy), "--database-url", database_url])
    assert made.exit_code == 0, made.stderr
    assert runner.invoke(app, ["restore", str(copy), "--database-url", restored]).exit_code == 0
    assert runner.invoke(app, ["status", "--database-url", restored]).exit_code == 0
    again = runner.invoke(app, ["restore", str(copy), "--database-url", restored])
    assert (again.exit_code, again.stdout) == (1, "")
    assert "restored.db exists already. Choose another name, or move it away first." in again.stderr


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_backup_of_an_older_schema_is_restored_and_says_how_to_go_on(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    runner.invoke(app, ["backup", str(tmp_path / "copy.db"), "--database-url", database_url])
    restored = f"sqlite:///{tmp_path / 'restored.db'}"
    result = runner.invoke(app, ["restore", str(tmp_path / "copy.db"), "--database-url", restored])
    assert result.exit_code == 0
    assert "Run `padnas-service migrate` with the same database URL" in result.stdout


@pytest.mark.parametrize(("command", "native"), [("backup", "pg_dump"), ("restore", "pg_restore")])
def test_postgresql_is_left_to_its_own_tools(command: str, native: str) -> None:
    result = runner.invoke(app, [command, "copy.db", "--database-url", "postgresql://me:secret@host/db"])
    assert result.exit_code == 1
    assert native in result.stderr

import json
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from latency_service.cli import app
from latency_service.database import Database

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


def test_serve_refuses_another_schema_with_the_command_that_mends_it(database: Database, database_url: str) -> None:
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    result = runner.invoke(app, ["serve", "--database-url", database_url])
    assert result.exit_code == 1
    assert "The database has schema 0000, this program needs" in result.stderr
    assert f"Run: padnas-service migrate --database-url {database.url}" in result.stderr


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_text_that_is_no_database_url_is_wrong_use(command: str) -> None:
    result = runner.invoke(app, [command, "--database-url", "padnas.db"])
    assert result.exit_code == 2
    assert "is not a database URL" in result.stderr


@pytest.mark.parametrize("command", ["serve", "migrate", "token create", "token list", "token revoke"])
def test_help_has_an_example(command: str) -> None:
    result = runner.invoke(app, [*command.split(), "--help"])
    assert f"Example: padnas-service {command}" in result.stdout

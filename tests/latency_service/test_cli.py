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


def test_serving_beyond_this_machine_is_refused() -> None:
    result = runner.invoke(app, ["serve", "--host", "0.0.0.0"])
    assert result.exit_code == 2
    assert "Without tokens the service listens on this machine alone, not on 0.0.0.0" in result.stderr


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


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_help_has_an_example(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert f"Example: padnas-service {command}" in result.stdout

import shutil
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from latency_service.database import Database
from latency_service.errors import SchemaMismatch
from latency_service.models import Base, DeviceRow, ModelFileRow


def test_migrations_and_models_agree(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_migrating_twice_changes_nothing(database: Database) -> None:
    database.migrate()
    database.check_schema()


def test_an_empty_database_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'empty.db'}")
    assert database.is_empty()
    with pytest.raises(SchemaMismatch, match="Run: padnas-service migrate --database-url sqlite:///"):
        database.check_schema()
    database.dispose()


def test_a_schema_of_another_version_is_refused(database: Database) -> None:
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    with pytest.raises(SchemaMismatch, match="has schema 0000, this program needs"):
        database.check_schema()


def test_writing_commits_once_at_its_end_or_not_at_all(database: Database) -> None:
    def stored() -> int:
        with database.reading() as session:
            return session.query(ModelFileRow).count()

    with database.writing() as session:
        session.add(ModelFileRow(sha256="a", content=b"x"))
        session.flush()
        assert stored() == 0
    assert stored() == 1
    with pytest.raises(IntegrityError), database.writing() as session:
        session.add_all([ModelFileRow(sha256="b", content=b"x"), ModelFileRow(sha256="a", content=b"x")])
    assert stored() == 1


def test_sqlite_writes_ahead_and_enforces_foreign_keys(migrated_sqlite: Path, tmp_path: Path) -> None:
    shutil.copy(migrated_sqlite, tmp_path / "copy.db")
    database = Database(f"sqlite:///{tmp_path / 'copy.db'}")
    with database.reading() as session:
        assert session.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert session.execute(text("PRAGMA foreign_keys")).scalar() == 1
        assert session.query(DeviceRow).count() == 0
    database.dispose()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="ends with its connection"):
        Database(url)


@pytest.mark.parametrize("url", ["padnas.db", "nosuch://host/db"])
def test_a_text_that_is_no_database_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"not a database URL that works here .* Use sqlite:///FILE"):
        Database(url)

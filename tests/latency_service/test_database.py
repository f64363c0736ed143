from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import DatabaseError, IntegrityError

from latency_contract.measurements import Measurement
from latency_contract.operators import IBConv
from latency_service.database import Database
from latency_service.errors import SchemaMismatch
from latency_service.models import Base, DeviceRow, ModelFileRow


def test_migrations_and_models_agree(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_migrating_twice_changes_nothing(database: Database) -> None:
    database.migrate()
    database.check_schema()


def test_measurements_of_the_first_schema_get_their_reference_and_tables_keep_them(
    database: Database, operator: Callable[..., IBConv], measurement: Callable[..., Measurement]
) -> None:
    """Down to the first schema, up again with published rows in it, and down once more."""
    alembic(database, command.downgrade, "0001")
    made = measurement(operator().id, reference_ms=0.9)
    lowest = made.rounds[3].model_copy(update={"reference_after_ms": 0.7})
    made = made.model_copy(update={"rounds": (*made.rounds[:3], lowest, *made.rounds[4:])})
    with database.writing() as session:
        insert = (
            "INSERT INTO subjects (id, kind, key, document) VALUES ('s', 'ibconv', 'k', '{}')",
            "INSERT INTO protocols (id, precision, reference_id, document) VALUES ('p', 'float32', 's', '{}')",
            "INSERT INTO table_versions (id, table_id, version, device_model, protocol_id, published_at)"
            " VALUES (1, 't', 1, 'Pixel 3', 'p', '2026-01-01 00:00:00')",
            *(
                "INSERT INTO jobs (id, subject_id, device_model, protocol_id, precision, state, priority, created_at,"
                f" attempts) VALUES ({n}, 's', 'Pixel 3', 'p', 'float32', 'done', 1, '2026-01-01 00:00:00', 1)"
                for n in (1, 2)
            ),
        )
        for statement in insert:
            session.execute(text(statement))
        for n, document in ((1, made), (2, measurement(operator().id, reference_ms=1.5))):
            session.execute(
                text(
                    "INSERT INTO measurements (id, job_id, subject_id, device_model, protocol_id, device_serial,"
                    " latency_ms, low_ms, high_ms, confidence, verdict, rounds, measured_at, document) VALUES"
                    " (:n, :n, 's', 'Pixel 3', 'p', 'A1', 1, 1, 1, 0.95, 'steady', 6, '2026-01-01 00:00:00', :document)"
                ),
                {"n": n, "document": document.model_dump_json()},
            )
            session.execute(text(f"INSERT INTO table_entries (version_id, measurement_id) VALUES (1, {n})"))
    rows = tables_with_rows(database)
    assert rows["measurements"] == rows["table_entries"] == 2

    database.migrate()
    database.check_schema()
    with database.reading() as session:
        stored = session.execute(text("SELECT id, reference_ms FROM measurements ORDER BY id")).all()
    assert [tuple(row) for row in stored] == [(1, 0.7), (2, 1.5)]
    assert tables_with_rows(database) == rows
    with pytest.raises(IntegrityError), database.writing() as session:
        session.execute(text("UPDATE measurements SET reference_ms = NULL"))
    with pytest.raises(IntegrityError), database.writing() as session:  # foreign keys still hold
        session.execute(text("DELETE FROM measurements"))

    alembic(database, command.downgrade, "0001")
    assert tables_with_rows(database) == rows
    with pytest.raises(DatabaseError, match="reference_ms"), database.reading() as session:
        session.execute(text("SELECT reference_ms FROM measurements"))


def alembic(database: Database, step: Callable[[Config, str], None], revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[2] / "migrations"))
    with database.engine.connect() as connection:
        config.attributes["connection"] = connection
        step(config, revision)
        connection.commit()


def tables_with_rows(database: Database) -> dict[str, int]:
    with database.reading() as session:
        names = inspect(database.engine).get_table_names()
        return {name: session.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in names}


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


def test_sqlite_writes_ahead_and_enforces_foreign_keys(database: Database) -> None:
    with database.reading() as session:
        assert session.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert session.execute(text("PRAGMA foreign_keys")).scalar() == 1
        assert session.query(DeviceRow).count() == 0


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="ends with its connection"):
        Database(url)


@pytest.mark.parametrize("url", ["padnas.db", "nosuch://host/db"])
def test_a_text_that_is_no_database_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"not a database URL that works here .* Use sqlite:///FILE"):
        Database(url)

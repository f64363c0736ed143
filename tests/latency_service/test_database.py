import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, inspect, select, text
from sqlalchemy.exc import DatabaseError, IntegrityError

from benchmarks.postgresql import PostgresqlServer, running_server
from latency_contract.devices import DeviceReport
from latency_contract.measurements import DeviceState, Measurement, RejectedRound
from latency_contract.operators import IBConv
from latency_service import devices, drift, latencies, tables, tokens
from latency_service.database import AWAY, SILENCE, Database, alembic_config
from latency_service.errors import SchemaMismatch
from latency_service.models import (
    Base,
    CalibrationRow,
    DeviceRow,
    JobRow,
    MeasurementRow,
    ModelFileRow,
    ModelRow,
    ReferenceReadingRow,
    SearchRow,
    SubjectRow,
    WantRow,
)
from latency_service.queue import OwnedJob
from latency_service.subjects import store_subjects
from tests.conftest import Clock

Make = Callable[..., IBConv]
Report = Callable[..., DeviceReport]


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
    assert rows.items() <= tables_with_rows(database).items()
    with pytest.raises(IntegrityError), database.writing() as session:
        session.execute(text("UPDATE measurements SET reference_ms = NULL"))
    with pytest.raises(IntegrityError), database.writing() as session:  # foreign keys still hold
        session.execute(text("DELETE FROM measurements"))

    alembic(database, command.downgrade, "0001")
    assert rows.items() <= tables_with_rows(database).items()
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


def test_an_empty_database_is_refused_with_the_command_that_mends_it(empty_url: str) -> None:
    database = Database(empty_url)
    assert database.is_empty()
    with pytest.raises(SchemaMismatch, match=r"schema none, .* Run `padnas-service migrate` with the same"):
        database.check_schema()
    database.dispose()


@pytest.mark.parametrize(("schema", "what_to_do"), [("0001", "Run `padnas-service migrate`"), ("9999", "A newer prog")])
def test_a_schema_of_another_version_is_refused(database: Database, schema: str, what_to_do: str) -> None:
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = :schema"), {"schema": schema})
    with pytest.raises(SchemaMismatch, match=f"has schema {schema}, this program needs .* {what_to_do}"):
        database.check_schema()


def test_the_schema_of_a_newer_program_is_left_as_it_is(database: Database) -> None:
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaMismatch, match="install that version, or restore a backup"):
        database.migrate()


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


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("padnas.db", r"'padnas.db' is not a database URL\. Use sqlite:///FILE or postgresql\+psycopg://USER"),
        ("nosuch://host/db", r"'nosuch' is not a database that works here\. Use sqlite:///FILE or postgresql"),
        (
            "postgresql+psycopg2://host/db",
            r"'postgresql\+psycopg2' is not .* works here\. .* postgresql\+psycopg://USER",
        ),
    ],
)
def test_a_text_that_is_no_database_url_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Database(url)


def test_postgresql_without_its_driver_is_refused_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ValueError, match=r"Run: pip install 'pad-nas\[postgresql\]'"):
        Database("postgresql://host/db")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_is_understood_however_its_url_begins(postgresql: PostgresqlServer, scheme: str) -> None:
    with postgresql.database() as url:
        database = Database(url.replace("postgresql+psycopg", scheme))
        database.check_schema()
        database.dispose()


def test_a_password_is_not_shown() -> None:
    assert Database("postgresql://me:secret@host/db").url == "postgresql+psycopg://me:***@host/db"


def test_a_password_from_elsewhere_is_used_where_the_url_has_none() -> None:
    assert Database("postgresql://me@host/db", password="secret").engine.url.password == "secret"
    assert Database("postgresql://me:own@host/db", password="secret").engine.url.password == "own"


def test_postgresql_waits_for_nobody_for_ever(postgresql: PostgresqlServer) -> None:
    with postgresql.database() as url:
        database = Database(url)
        with database.reading() as session:
            shown = [
                session.scalar(text(f"SHOW {name}"))
                for name in ("statement_timeout", "lock_timeout", "timezone", "transaction_isolation")
            ]
        database.dispose()
    assert shown == ["30s", "10s", "UTC", "read committed"]


def test_a_postgresql_that_is_silent_is_given_up(postgresql: PostgresqlServer) -> None:
    """The kernel does so, where it was told to; otherwise after a quarter of an hour, or two."""
    with postgresql.database() as url:
        database = Database(url)
        with database.engine.connect() as connection:
            told = connection.connection.dbapi_connection.info.get_parameters()  # type: ignore[union-attr]
        database.dispose()
    assert {name: int(told[name]) for name in SILENCE} == SILENCE


def test_a_postgresql_that_was_restarted_is_found_again() -> None:
    """A server of its own, since everybody else's would be cut off too."""
    with running_server() as server, server.database() as url:
        database = Database(url)
        with database.reading() as cut_off:
            cut_off.execute(text("SELECT 1"))
            with database.reading() as session:  # its connection waits in the pool
                session.execute(text("SELECT 1"))
            server.restart()
            with pytest.raises(AWAY):
                cut_off.execute(text("SELECT 1"))
        with database.reading() as session:
            assert session.scalar(text("SELECT 1")) == 1
        database.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
    else:
        with request.getfixturevalue("postgresql").database(template="template1") as url:
            yield url


def test_all_steps_of_a_migration_are_one_transaction(empty_url: str) -> None:
    """Else who comes second may find the first steps alone, and begin in the middle of another one's migration."""
    database, commits = Database(empty_url), list[object]()
    event.listen(database.engine, "commit", commits.append)
    database.migrate()
    assert len(commits) == 1
    database.dispose()


def test_services_that_start_at_once_on_an_empty_database_do_not_collide(empty_url: str) -> None:
    command = [sys.executable, "-m", "latency_service.cli", "migrate", "--database-url", empty_url]
    services = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(3)
    ]
    for service in services:
        said, _ = service.communicate(timeout=60)
        assert service.returncode == 0, said
    database = Database(empty_url)
    database.check_schema()
    database.dispose()


def test_ids_reach_as_far_as_the_contract_says(database: Database, clock: Clock, report: Report) -> None:
    far = 2**63 - 1
    with database.writing() as session:
        device = devices.report(session, report(), now=clock())
        subject_id = session.scalars(select(SubjectRow.id)).one()
        row = JobRow(
            id=far, subject_id=subject_id, device_model=device.model, protocol_id=device.protocol_id,
            precision="float32", state="queued", priority=0, created_at=clock(),
        )  # fmt: skip
        session.add(row)
    with database.reading() as session:
        assert session.get_one(JobRow, far).created_at == clock()
        assert session.get(JobRow, far - 1) is None


def test_migrations_go_back_and_forth_with_data_in_the_tables(
    database: Database, clock: Clock, report: Report, operator: Make, measurement: Callable[..., Measurement]
) -> None:
    """Step by step to the first schema and up again, nothing is lost that the first schema has a place for."""
    with database.writing() as session:
        devices.report(session, report(), now=clock())
        model, protocol = devices.resolve(session, "Pixel 3", protocol_id=None)
        store_subjects(session, [operator()])
        ids = {"subject_id": operator().id, "device_model": model, "protocol_id": protocol.id}
        job = JobRow(**ids, precision="float32", state="done", priority=1, created_at=clock())
        session.add(job)
        session.flush()
        made = measurement(operator().id)
        evidence = RejectedRound(round=made.rounds[0], reason="hot", before=DeviceState(), after=DeviceState())
        made = made.model_copy(update={"rejected": (evidence,)})
        owned = OwnedJob(job.id, operator().id, model, protocol.id, leased_by="A1", model_sha256=None)
        row = MeasurementRow(**latencies._measurement_values(owned, made))
        wants = [WantRow(job_id=job.id, owner=owner, client="me") for owner in ("", "ana", "bob")]
        session.add_all([row, *wants, ModelFileRow(sha256="a", content=b"\0x")])
        tokens.create(session, name="ana", role=tokens.Role.CLIENT, now=clock())
        dropped = ModelRow(subject_id=operator().id, precision="float32", state="dropped", requested_at=clock())
        session.add(dropped)
        session.flush()
        published = tables.publish(session, device_model=model, protocol=protocol, now=clock())
        drift.keep(session, session.get_one(DeviceRow, "A1"), protocol_id=protocol.id, reference_ms=7.0, now=clock())
        of_table = {"table_id": published.table_id, "table_version": 1}
        session.add(CalibrationRow(**of_table, calibrated_at=clock(), document="{}"))
        session.add(SearchRow(owner="ana", id="first", document="{}", reported_at=clock()))
    for revision in [*_older_revisions(), "head"]:
        with database.engine.begin() as connection:
            config = alembic_config()
            config.attributes["connection"] = connection
            (command.upgrade if revision == "head" else command.downgrade)(config, revision)
    database.check_schema()
    with database.reading() as session:
        assert tables.find(session, published.table_id, version=1) == published
        assert latencies.measurement(session, published.entries[0].measurement_id) == made
        assert session.get_one(ModelFileRow, "a").content == b"\0x"
        assert [(want.owner, want.client) for want in session.scalars(select(WantRow))] == [("", "me")]
        device = session.get_one(DeviceRow, "A1")  # the counters of a later schema begin with the rows that there are
        assert (device.measured_steady, device.measured_unsteady, device.last_measured_at) == (1, 0, made.measured_at)
        measured = session.scalars(select(MeasurementRow)).one()
        assert (measured.has_samples, measured.has_evidence) == (True, True)
        # The first schema has no place for these; readings begin anew with those of the measurements that there are.
        for later in (CalibrationRow, SearchRow):
            assert session.scalars(select(later)).first() is None
        assert session.scalars(select(ReferenceReadingRow.reference_ms)).all() == [measured.reference_ms]
        # An older program knows no dropped models, but converts anew what has failed.
        assert session.get_one(ModelRow, (operator().id, "float32")).state == "failed"
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_the_first_schema_is_removed_with_all_its_data(database: Database, clock: Clock, report: Report) -> None:
    with database.writing() as session:
        devices.report(session, report(), now=clock())
    with database.engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    with database.engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    database.migrate()
    database.check_schema()


def _older_revisions() -> list[str]:
    """From the one before the newest to the first."""
    script = ScriptDirectory.from_config(alembic_config())
    return [revision.revision for revision in script.walk_revisions()][1:]

import os
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from benchmarks.postgresql import PostgresqlServer
from latency_contract.devices import DeviceReport
from latency_contract.measurements import Measurement
from latency_contract.operators import IBConv
from latency_service import backup, devices, tables
from latency_service.database import Database
from latency_service.models import Base, ModelFileRow
from tests.conftest import Clock
from tests.latency_service.test_latencies import Laboratory, result

Make = Callable[..., IBConv]
PATIENCE_S = 20.0
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def table(
    database: Database,
    clock: Clock,
    report: Callable[..., DeviceReport],
    operator: Make,
    measurement: Callable[..., Measurement],
) -> str:
    """A published table in the database, as JSON."""
    laboratory = Laboratory(database, clock, report())
    laboratory.ask(*(operator(height=h) for h in (1, 2, 3)), queue_missing=True)
    lease = laboratory.leased()
    laboratory.accept(lease, *(result(lease, measurement, job=job) for job in range(3)))
    with database.writing() as session:
        model, protocol = devices.resolve(session, "Pixel 3", protocol_id=None)
        return tables.publish(session, device_model=model, protocol=protocol, now=clock()).model_dump_json()


def counts(database: Database) -> dict[str, int]:
    """Rows of every table."""
    with database.reading() as session:
        return {
            name: session.scalar(select(func.count()).select_from(rows)) or 0
            for name, rows in Base.metadata.tables.items()
        }


def table_in(database: Database) -> str:
    with database.reading() as session:
        (summary,) = tables.summaries(session)
        return tables.find(session, summary.table_id, version=1).model_dump_json()


class Writer:
    """Somebody who writes two rows a transaction, without a pause."""

    def __init__(self, database: Database) -> None:
        self._database, self._written, self._wrote, self._stop = database, 0, threading.Condition(), False
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        while not self._stop:
            with self._database.writing() as session:
                session.add(ModelFileRow(sha256=f"first {self._written}", content=os.urandom(2000)))
                session.flush()
                session.add(ModelFileRow(sha256=f"second {self._written}", content=os.urandom(2000)))
            with self._wrote:
                self._written += 1
                self._wrote.notify_all()

    def wait_for(self, more: int) -> int:
        """Until there are that many more transactions; says how many there have been."""
        with self._wrote:
            wanted = self._written + more
            assert self._wrote.wait_for(lambda: self._written >= wanted, PATIENCE_S), "the writer does not get on"
            return self._written

    def stop(self) -> None:
        self._stop = True
        self._thread.join()


@pytest.fixture
def writer(database: Database) -> Iterator[Writer]:
    writer = Writer(database)
    yield writer
    writer.stop()


@on_sqlite
def test_a_backup_taken_while_a_writer_writes_is_one_moment_of_the_database(
    database: Database, table: str, writer: Writer, tmp_path: Path
) -> None:
    assert database.file is not None
    before = writer.wait_for(20)
    backup.back_up(database.file, tmp_path / "copy.db")
    after = writer.wait_for(1)  # it has not been disturbed
    backup.restore(tmp_path / "copy.db", tmp_path / "restored.db")
    restored = Database(f"sqlite:///{tmp_path / 'restored.db'}")
    restored.check_schema()
    with restored.reading() as session:
        assert session.execute(text("PRAGMA integrity_check")).scalar() == "ok"
        assert session.execute(text("PRAGMA foreign_key_check")).all() == []
        names = session.scalars(select(ModelFileRow.sha256).where(ModelFileRow.sha256.like("% %"))).all()
    firsts, seconds = ({n.split()[1] for n in names if n.startswith(which)} for which in ("first", "second"))
    assert firsts == seconds == {str(n) for n in range(len(firsts))}
    assert before <= len(firsts) <= after
    assert table_in(restored) == table
    now, then = counts(database), counts(restored)
    assert {k: v for k, v in now.items() if k != "model_files"} == {k: v for k, v in then.items() if k != "model_files"}
    restored.dispose()


@on_sqlite
def test_a_backup_is_one_file(database: Database, tmp_path: Path) -> None:
    assert database.file is not None
    backup.back_up(database.file, tmp_path / "copy.db")
    assert [path.name for path in tmp_path.glob("copy.db*")] == ["copy.db"]


@on_sqlite
def test_nothing_that_exists_is_overwritten(database: Database, tmp_path: Path) -> None:
    assert database.file is not None
    (tmp_path / "thesis.txt").write_text("years of work")
    for into in (backup.back_up, backup.restore):
        with pytest.raises(ValueError, match=r"thesis.txt exists already. Choose another name"):
            into(database.file, tmp_path / "thesis.txt")
    (tmp_path / "new.db-wal").write_text("of another database")
    with pytest.raises(ValueError, match=r"new.db-wal exists already"):
        backup.restore(database.file, tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@on_sqlite
def test_a_damaged_backup_is_not_restored(database: Database, tmp_path: Path) -> None:
    assert database.file is not None
    with database.writing() as session:
        session.add(ModelFileRow(sha256="a", content=os.urandom(100_000)))
    backup.back_up(database.file, damaged := tmp_path / "damaged.db")
    with damaged.open("r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xff" * 20 * 4096)
    with pytest.raises(ValueError, match=r"damaged.db (is damaged|cannot be copied)"):
        backup.restore(damaged, tmp_path / "restored.db")
    assert list(tmp_path.glob("restored.db*")) == []


def test_what_is_no_database_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no database .*nothing.db"):
        backup.back_up(tmp_path / "nothing.db", tmp_path / "copy.db")
    (tmp_path / "thesis.txt").write_text("years of work" * 100)
    with pytest.raises(ValueError, match="file is not a database"):
        backup.back_up(tmp_path / "thesis.txt", tmp_path / "copy.db")
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE songs (title)")
    with pytest.raises(ValueError, match=r"other.db is no database of this service"):
        backup.restore(tmp_path / "other.db", tmp_path / "copy.db")
    assert list(tmp_path.glob("*copy.db*")) == []


@on_postgresql
def test_postgresql_is_dumped_and_restored_by_its_own_tools(
    database: Database,
    database_url: str,
    table: str,
    writer: Writer,
    postgresql: PostgresqlServer,
    tmp_path: Path,
) -> None:
    """The commands of the guide."""
    tools = postgresql.tools
    if not (tools / "pg_dump").is_file():
        pytest.skip("this PostgreSQL came without pg_dump and pg_restore")
    writer.wait_for(20)
    native = database_url.replace("postgresql+psycopg://", "postgresql://")
    dump = tmp_path / "padnas.dump"
    subprocess.run([tools / "pg_dump", "--format=custom", "--file", dump, native], check=True)
    with postgresql.database(template="template0") as empty_url:
        into = empty_url.replace("postgresql+psycopg://", "postgresql://")
        subprocess.run([tools / "pg_restore", "--exit-on-error", "--no-owner", "--dbname", into, dump], check=True)
        restored = Database(empty_url)
        restored.check_schema()
        with restored.reading() as session:
            names = session.scalars(select(ModelFileRow.sha256).where(ModelFileRow.sha256.like("% %"))).all()
        assert len(names) >= 40
        assert len(names) % 2 == 0
        assert table_in(restored) == table
        assert {k: v for k, v in counts(restored).items() if k != "model_files"} == {
            k: v for k, v in counts(database).items() if k != "model_files"
        }
        restored.dispose()

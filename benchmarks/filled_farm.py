"""A farm without devices, for benchmarks of the service alone: operators whose models are made, jobs, measurements.

A model here is a few bytes, which nobody fetches; a measurement is one number a round, as phones report it. So what a
benchmark takes the time of is the service and its database.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import delete, insert, select, text
from sqlalchemy.orm import Session

from benchmarks.postgresql import running_server
from latency_contract.canonical import canonical_json
from latency_contract.devices import DeviceKind, DeviceReport
from latency_contract.estimators import UNKNOWN
from latency_contract.jobs import JobState
from latency_contract.measurements import DeviceState, Measurement, Provenance, Round
from latency_contract.operators import IBConv
from latency_contract.protocols import Protocol
from latency_service import devices, model_files
from latency_service.database import Database
from latency_service.models import JobRow, MeasurementRow, ModelFileRow, ModelRow, ModelState, SubjectRow, WantRow

DEVICE_MODEL = "Pixel 3"
PROTOCOL = Protocol(runtime="benchmark_model", runtime_version="2.3.0")
MODEL = b"\0\0\0\0TFL3"
MODEL_SHA256 = model_files.sha256_of(MODEL)
ROUNDS = PROTOCOL.stopping.min_rounds
ROWS_AT_ONCE = 1000


@contextmanager
def durable_postgresql() -> Iterator[str]:
    """URL of an empty, migrated database of a server that writes to disk what it says it has written."""
    with running_server(durable=True) as server, server.database() as url:
        yield url


@contextmanager
def empty_sqlite(folder: Path) -> Iterator[str]:
    """URL of an empty, migrated database; its folder is removed in the end."""
    folder.mkdir()
    url = f"sqlite:///{folder / 'farm.db'}"
    database = Database(url)
    database.migrate()
    database.dispose()
    yield url
    shutil.rmtree(folder)


def serial(number: int) -> str:
    return f"phone-{number}"


def operators(number: int) -> list[IBConv]:
    """So many different small operators."""
    return [
        IBConv(
            height=1 + index % 64,
            width=1 + index // 64 % 64,
            in_channels=8 * (1 + index // 64**2),
            out_channels=8,
            kernel=3,
            stride=1,
            expansion=3,
            residual=False,
        )
        for index in range(number)
    ]


def enrol(session: Session, serials: Sequence[str]) -> None:
    """Units of one device model, whose protocol's reference operator is converted."""
    for serial in serials:
        description = DeviceReport(
            serial=serial, model=DEVICE_MODEL, kind=DeviceKind.ANDROID, soc="SDM845", os_build="12", protocol=PROTOCOL
        )
        devices.report(session, description, now=datetime.now(UTC))
    store_converted(session, [PROTOCOL.reference])


def store_converted(session: Session, subjects: Sequence[IBConv]) -> None:
    """Subjects with their models."""
    now = datetime.now(UTC)
    stored = set(session.scalars(select(SubjectRow.id)))
    fresh = [subject for subject in subjects if subject.id not in stored]
    if session.get(ModelFileRow, MODEL_SHA256) is None:
        session.execute(insert(ModelFileRow).values(sha256=MODEL_SHA256, content=MODEL))
    _insert(
        session, SubjectRow, [{"id": s.id, "kind": s.kind, "key": s.key, "document": canonical_json(s)} for s in fresh]
    )
    session.execute(delete(ModelRow).where(ModelRow.subject_id.in_([s.id for s in subjects][:ROWS_AT_ONCE])))
    made = {"precision": PROTOCOL.precision, "state": ModelState.READY, "requested_at": now, "sha256": MODEL_SHA256}
    _insert(session, ModelRow, [{"subject_id": subject.id, "attempts": 1, **made} for subject in subjects])


def fill_queue(session: Session, subjects: Sequence[IBConv]) -> None:
    """One queued job for each subject, and nothing else in the queue or measured."""
    for row in (MeasurementRow, WantRow, JobRow):
        session.execute(delete(row))
    queued = {
        "device_model": DEVICE_MODEL,
        "protocol_id": PROTOCOL.id,
        "precision": PROTOCOL.precision,
        "state": JobState.QUEUED,
        "priority": 0,
        "created_at": datetime.now(UTC),
    }
    _insert(session, JobRow, [{"subject_id": subject.id, **queued} for subject in subjects])
    job_ids = session.scalars(select(JobRow.id))
    _insert(session, WantRow, [{"job_id": job_id, "owner": "", "client": "benchmark"} for job_id in job_ids])


def refresh_statistics(database: Database) -> None:
    """As PostgreSQL does by itself in the minutes after much was written."""
    if database.file is None:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))


def measurement(subject_id: str, *, serial: str) -> Measurement:
    """What a phone reports of a subject: one number a round."""
    now = datetime.now(UTC)
    rounds = tuple(
        Round(
            started_at=now,
            samples_ms=(1 + number / 1000,),
            summary_of=50,
            reference_before_ms=1.0,
            reference_after_ms=1.0,
        )
        for number in range(ROUNDS)
    )
    state = DeviceState(governor="schedutil", frequency_khz=2_803_200, max_frequency_khz=2_803_200, temperature_c=41.5)
    provenance = Provenance(
        device_serial=serial, os_build="12", soc="SDM845", model_sha256=MODEL_SHA256, runner="benchmark_model",
        runner_sha256="1" * 64, core_mask="80", before=state, after=state, unreadable=state.unreadable,
        started_at=now, finished_at=now,
    )  # fmt: skip
    return Measurement.from_rounds(
        rounds,
        subject_id=subject_id,
        stopping=PROTOCOL.stopping,
        provenance=provenance,
        pooled=UNKNOWN,
        quiet_reference_ms=1.0,
    )


def _insert(session: Session, table: type, rows: Sequence[dict[str, object]]) -> None:
    for start in range(0, len(rows), ROWS_AT_ONCE):
        session.execute(insert(table), rows[start : start + ROWS_AT_ONCE])

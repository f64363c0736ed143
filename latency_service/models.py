"""The database's rows. Documents that travel are stored as the JSON they travel in; columns are what is searched."""

from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ACTIVE_STATES = "state IN ('queued', 'leased')"
VALID_TOKEN = "revoked_at IS NULL"
MAX_TOKEN_NAME = 50  # characters
FAILED_STATE = "state = 'failed'"
EVER_EXPIRED = "expiries > 0"


# Ids reach to 2^63 on the wire. SQLite numbers rows by itself only in a column of type INTEGER, which reaches as far.
Id = BigInteger().with_variant(Integer(), "sqlite")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC, also where the database (SQLite) forgets time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime}  # noqa: RUF012


class SubjectRow(Base):
    """An operator or network that somebody asked about."""

    __tablename__ = "subjects"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    key: Mapped[str] = mapped_column(String(200), index=True)
    document: Mapped[str] = mapped_column(Text)


class ModelState(StrEnum):
    PENDING = "pending"  # waits for a converter
    CONVERTING = "converting"  # a converter has it until `claimed_until`
    READY = "ready"  # its bytes are stored
    FAILED = "failed"  # it cannot be converted; `error` says why
    DROPPED = "dropped"  # its bytes were not kept; whoever asks for the subject has them made anew


class ModelRow(Base):
    """The TFLite model of a subject in one precision."""

    __tablename__ = "models"

    subject_id: Mapped[str] = mapped_column(ForeignKey("subjects.id"), primary_key=True)
    precision: Mapped[str] = mapped_column(String(20), primary_key=True)
    state: Mapped[str] = mapped_column(String(20))
    requested_at: Mapped[datetime]
    claimed_until: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    deaths: Mapped[int] = mapped_column(default=0)  # of a converter's process on it
    sha256: Mapped[str | None] = mapped_column(ForeignKey("model_files.sha256"))
    conversion_s: Mapped[float | None]
    error: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (Index(None, "state", "requested_at"),)


class ModelFileRow(Base):
    """The bytes of a TFLite file under their hash."""

    __tablename__ = "model_files"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    content: Mapped[bytes] = mapped_column(LargeBinary)


class ProtocolRow(Base):
    __tablename__ = "protocols"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    precision: Mapped[str] = mapped_column(String(20))
    reference_id: Mapped[str] = mapped_column(ForeignKey("subjects.id"))
    document: Mapped[str] = mapped_column(Text)


class DeviceRow(Base):
    """One unit. `blocked_until` is its circuit breaker."""

    __tablename__ = "devices"

    serial: Mapped[str] = mapped_column(String(100), primary_key=True)
    model: Mapped[str] = mapped_column(String(100), index=True)
    protocol_id: Mapped[str] = mapped_column(ForeignKey("protocols.id"))
    document: Mapped[str] = mapped_column(Text)
    last_seen_at: Mapped[datetime]
    faults: Mapped[int] = mapped_column(default=0)
    last_fault: Mapped[str | None] = mapped_column(Text)
    blocked_until: Mapped[datetime | None]
    # Accepted measurements by verdict: counting them would take longer with each. A report writes this row anyway.
    measured_steady: Mapped[int] = mapped_column(default=0)
    measured_unsteady: Mapped[int] = mapped_column(default=0)
    last_measured_at: Mapped[datetime | None]
    quarantine: Mapped[str | None] = mapped_column(Text)  # the whole Quarantine (drift.py)
    last_temperature_c: Mapped[float | None]  # after that; None where the device does not say


class JobRow(Base):
    """One subject to be measured on one device model under one protocol. Written by queue.py alone."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    subject_id: Mapped[str] = mapped_column(ForeignKey("subjects.id"))
    device_model: Mapped[str] = mapped_column(String(100))
    protocol_id: Mapped[str] = mapped_column(ForeignKey("protocols.id"))
    precision: Mapped[str] = mapped_column(String(20))  # the protocol's, to find the model
    state: Mapped[str] = mapped_column(String(20))
    priority: Mapped[int]  # smaller is sooner
    created_at: Mapped[datetime]
    attempts: Mapped[int] = mapped_column(default=0)  # leases that it may have brought to a bad end
    lease_token: Mapped[str | None] = mapped_column(String(64), index=True)
    lease_expires_at: Mapped[datetime | None]
    leased_by: Mapped[str | None] = mapped_column(String(100))
    error: Mapped[str | None] = mapped_column(Text)
    failed_at: Mapped[datetime | None]
    expiries: Mapped[int] = mapped_column(default=0)  # leases whose deadline passed
    layers: Mapped[int] = mapped_column(default=1)  # in which the first who asked may use it

    __table_args__ = (
        # One subject is never queued twice for the same table.
        Index(
            "uq_jobs_active", "subject_id", "device_model", "protocol_id", unique=True,
            sqlite_where=text(ACTIVE_STATES), postgresql_where=text(ACTIVE_STATES),
        ),
        # In the order in which jobs are claimed: what a lease costs does not grow with the queue.
        Index(
            "ix_jobs_claim", "device_model", "protocol_id", "priority", "attempts", "id",
            sqlite_where=text(ACTIVE_STATES), postgresql_where=text(ACTIVE_STATES),
        ),
        Index("ix_jobs_subject", "device_model", "protocol_id", "subject_id", "id"),
        # For figures (overview.py). SQLite reads rows for a condition on a column that the index does not hold.
        Index(
            "ix_jobs_active", "state", "device_model", "priority", "created_at",
            sqlite_where=text(ACTIVE_STATES), postgresql_where=text(ACTIVE_STATES),
        ),
        Index(
            "ix_jobs_failed", "state", "device_model", "failed_at",
            sqlite_where=text(FAILED_STATE), postgresql_where=text(FAILED_STATE),
        ),
        Index(
            "ix_jobs_expired", "device_model", "expiries",
            sqlite_where=text(EVER_EXPIRED), postgresql_where=text(EVER_EXPIRED),
        ),
    )  # fmt: skip


class WantRow(Base):
    """A client that wants a job's result. A queued job that nobody wants is cancelled."""

    __tablename__ = "wants"

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    owner: Mapped[str] = mapped_column(String(MAX_TOKEN_NAME), primary_key=True, default="")  # its token's name
    client: Mapped[str] = mapped_column(String(100), primary_key=True)

    __table_args__ = (Index("ix_wants_client", "owner", "client"),)


class MeasurementRow(Base):
    """An accepted result, kept for good. A job has at most one."""

    __tablename__ = "measurements"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), unique=True)
    subject_id: Mapped[str] = mapped_column(ForeignKey("subjects.id"))
    device_model: Mapped[str] = mapped_column(String(100))
    protocol_id: Mapped[str] = mapped_column(ForeignKey("protocols.id"))
    device_serial: Mapped[str] = mapped_column(String(100))
    latency_ms: Mapped[float]
    low_ms: Mapped[float]
    high_ms: Mapped[float]
    confidence: Mapped[float]
    verdict: Mapped[str] = mapped_column(String(20))
    rounds: Mapped[int]
    measured_at: Mapped[datetime]
    reference_ms: Mapped[float]  # smallest reading of the reference operator in its rounds
    document: Mapped[str] = mapped_column(Text)  # the whole Measurement, with every sample until it is pruned
    has_samples: Mapped[bool] = mapped_column(default=True)
    has_evidence: Mapped[bool] = mapped_column(default=False)  # rejected rounds
    drifted: Mapped[bool] = mapped_column(default=False)  # its unit was not as usual: it is kept, and does not count

    __table_args__ = (
        Index(None, "device_model", "protocol_id", "subject_id", "id"),
        # Holds all that units are compared by, so that no document is read for it.
        Index("ix_measurements_units", "device_model", "protocol_id", "device_serial", "id", "reference_ms"),
        Index(
            "ix_measurements_samples", "measured_at",
            sqlite_where=text("has_samples"), postgresql_where=text("has_samples"),
        ),
        Index(
            "ix_measurements_evidence", "measured_at",
            sqlite_where=text("has_evidence"), postgresql_where=text("has_evidence"),
        ),
    )  # fmt: skip


class ReferenceReadingRow(Base):
    """What a unit read of the reference operator, once in a while: its history (drift.py)."""

    __tablename__ = "reference_readings"

    device_serial: Mapped[str] = mapped_column(String(100), primary_key=True)
    protocol_id: Mapped[str] = mapped_column(ForeignKey("protocols.id"), primary_key=True)
    slot_at: Mapped[datetime] = mapped_column(primary_key=True)  # begin of the slot that it is the first reading in
    reference_ms: Mapped[float]


class TableVersionRow(Base):
    __tablename__ = "table_versions"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    table_id: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    device_model: Mapped[str] = mapped_column(String(100))
    protocol_id: Mapped[str] = mapped_column(ForeignKey("protocols.id"))
    published_at: Mapped[datetime]

    __table_args__ = (UniqueConstraint("table_id", "version"),)


class TableEntryRow(Base):
    """A measurement that belongs to a published table version."""

    __tablename__ = "table_entries"

    version_id: Mapped[int] = mapped_column(ForeignKey("table_versions.id"), primary_key=True)
    measurement_id: Mapped[int] = mapped_column(ForeignKey("measurements.id"), primary_key=True)


class CalibrationRow(Base):
    """A calibration of a published table version. Rows are only ever added."""

    __tablename__ = "calibrations"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    table_id: Mapped[str] = mapped_column(String(64))
    table_version: Mapped[int]
    calibrated_at: Mapped[datetime]
    document: Mapped[str] = mapped_column(Text)  # the whole Calibration

    __table_args__ = (
        ForeignKeyConstraint(
            ["table_id", "table_version"],
            ["table_versions.table_id", "table_versions.version"],
            name="fk_calibrations_table_id_table_version_table_versions",
        ),
        Index(None, "table_id", "table_version"),
    )


class SearchRow(Base):
    """A search that reports itself: its last word."""

    __tablename__ = "searches"

    owner: Mapped[str] = mapped_column(String(MAX_TOKEN_NAME), primary_key=True)  # its token's name
    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    document: Mapped[str] = mapped_column(Text)
    reported_at: Mapped[datetime] = mapped_column(index=True)


class TokenRow(Base):
    """Who may use the service, and as what. Revoked tokens are kept: where one was ever made, one is needed."""

    __tablename__ = "tokens"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)  # of the token, which is stored nowhere
    name: Mapped[str] = mapped_column(String(MAX_TOKEN_NAME))
    role: Mapped[str] = mapped_column(String(20))
    created_at: Mapped[datetime]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]

    __table_args__ = (
        Index(
            "uq_tokens_valid_name", "name", unique=True,
            sqlite_where=text(VALID_TOKEN), postgresql_where=text(VALID_TOKEN),
        ),
    )  # fmt: skip

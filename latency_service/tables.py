"""Lookup tables: immutable published versions of what was measured on a device model under a protocol."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, func, select, true
from sqlalchemy.orm import Session, defer

from latency_contract.operators import Conv, Head, IBConv, subject_adapter
from latency_contract.protocols import Protocol
from latency_contract.tables import Table, TableEntry, TableSummary, table_id
from latency_service.errors import UnknownTable
from latency_service.latencies import latency_of
from latency_service.models import MeasurementRow, ProtocolRow, SubjectRow, TableEntryRow, TableVersionRow
from latency_service.subjects import load_protocol


def publish(session: Session, *, device_model: str, protocol: Protocol, now: datetime) -> Table:
    """A new version with the newest measurement of every operator; the last version where nothing has changed.

    Measurements by a unit that had drifted do not count, and stay in the versions that have them.

    Raises:
        UnknownTable: nothing has been measured yet, so there is nothing to publish.
    """
    # One publishes at a time, and who comes second is given what the first has published.
    session.get_one(ProtocolRow, protocol.id, with_for_update={"key_share": True})
    newest = (
        select(func.max(MeasurementRow.id))
        .join(SubjectRow, SubjectRow.id == MeasurementRow.subject_id)
        .where(
            MeasurementRow.device_model == device_model,
            MeasurementRow.protocol_id == protocol.id,
            MeasurementRow.drifted.is_(False),
            SubjectRow.kind.in_(("ibconv", "conv", "head")),
        )
        .group_by(MeasurementRow.subject_id)
    )
    measurement_ids = set(session.scalars(newest))
    if not measurement_ids:
        raise UnknownTable(
            f"Nothing has been measured on {device_model} under this protocol, so there is no table to publish."
            " Ask for operators with `queue_missing` first, or run `padnas-client table build`."
        )
    identity = table_id(device_model=device_model, protocol_id=protocol.id)
    last = session.scalar(
        select(TableVersionRow)
        .where(TableVersionRow.table_id == identity)
        .order_by(TableVersionRow.version.desc())
        .limit(1)
    )
    if last is not None and set(_measurement_ids(session, last)) == measurement_ids:
        return _table(session, last)
    row = TableVersionRow(
        table_id=identity,
        version=1 if last is None else last.version + 1,
        device_model=device_model,
        protocol_id=protocol.id,
        published_at=now,
    )
    session.add(row)
    session.flush()
    session.add_all(TableEntryRow(version_id=row.id, measurement_id=m) for m in sorted(measurement_ids))
    session.flush()
    return _table(session, row)


def find(session: Session, identity: str, *, version: int | None) -> Table:
    """A published version, the last one by default. Raises UnknownTable."""
    rows = select(TableVersionRow).where(TableVersionRow.table_id == identity)
    if version is not None:
        rows = rows.where(TableVersionRow.version == version)
    row = session.scalar(rows.order_by(TableVersionRow.version.desc()).limit(1))
    if row is None:
        which = "" if version is None else f" version {version} of"
        raise UnknownTable(f"There is no{which} table {identity}. GET /v1/tables lists the published ones.")
    return _table(session, row)


def summaries(session: Session) -> list[TableSummary]:
    """Every published version, newest first."""
    return _summaries(session, true())


def _summaries(session: Session, condition: ColumnElement[bool]) -> list[TableSummary]:
    rows = session.execute(
        select(TableVersionRow, func.count(TableEntryRow.measurement_id))
        .join(TableEntryRow, TableEntryRow.version_id == TableVersionRow.id)
        .where(condition)
        .group_by(TableVersionRow.id)
        .order_by(TableVersionRow.id.desc())
    )
    return [
        TableSummary(
            table_id=row.table_id,
            device_model=row.device_model,
            protocol_id=row.protocol_id,
            version=row.version,
            published_at=row.published_at,
            entries=entries,
        )
        for row, entries in rows
    ]


def latest(session: Session, *, limit: int, device_model: str | None = None) -> list[TableSummary]:
    """The last version of each table, the one published last first."""
    last = select(func.max(TableVersionRow.id).label("id")).group_by(TableVersionRow.table_id)
    if device_model is not None:
        last = last.where(TableVersionRow.device_model == device_model)
    page = last.order_by(func.max(TableVersionRow.id).desc()).limit(limit).subquery()
    return _summaries(session, TableVersionRow.id.in_(select(page.c.id)))


def _measurement_ids(session: Session, row: TableVersionRow) -> Sequence[int]:
    return session.scalars(select(TableEntryRow.measurement_id).where(TableEntryRow.version_id == row.id)).all()


def _table(session: Session, row: TableVersionRow) -> Table:
    measured = session.execute(
        select(MeasurementRow, SubjectRow)
        .join(TableEntryRow, TableEntryRow.measurement_id == MeasurementRow.id)
        .join(SubjectRow, SubjectRow.id == MeasurementRow.subject_id)
        .where(TableEntryRow.version_id == row.id)
        .options(defer(MeasurementRow.document, raiseload=True))  # every sample of every entry
    )
    entries: list[TableEntry] = []
    for measurement, subject in measured:
        operator = subject_adapter.validate_json(subject.document)
        assert isinstance(operator, IBConv | Conv | Head)
        latency = dict(latency_of(measurement))
        entries.append(TableEntry(**latency, key=subject.key, subject_id=subject.id, operator=operator))
    return Table(
        table_id=row.table_id,
        version=row.version,
        device_model=row.device_model,
        protocol=load_protocol(session, row.protocol_id),
        published_at=row.published_at,
        entries=tuple(sorted(entries, key=lambda entry: entry.key)),  # no database's collation: the bytes are hashed
    )

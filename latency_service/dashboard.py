"""What each page of the dashboard shows, in a number of queries that does not grow with what there is."""

from collections.abc import Sequence
from datetime import datetime
from statistics import median
from typing import Generic, NamedTuple, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from latency_contract.calibrations import Calibration, newest
from latency_contract.comparisons import Compared, KnownLatency, compare_latencies
from latency_contract.devices import Unit as UnitReading
from latency_contract.devices import UnitComparison
from latency_contract.measurements import Measurement
from latency_contract.tables import Table, TableSummary
from latency_service import calibrations, devices, latencies, searches, tables, units
from latency_service import status as service_status
from latency_service.heat_map import HeatMap, Line, heat_map
from latency_service.models import DeviceRow, MeasurementRow, SubjectRow
from latency_service.overview import Leased, leased
from latency_service.searches import ReportedSearch
from latency_service.settings import Settings
from latency_service.status import Status, Unit

UNITS = 25  # on one page
LINES = 40
OPERATORS = 50
FAILURES = 20
AT_WORK = 20
SEARCHES = 10
TABLES = 50  # on the front page
COMPARABLE = 500  # tables that can be chosen to be compared
ATTENTION = 8  # sentences

T = TypeVar("T")


class Page(NamedTuple, Generic[T]):
    items: Sequence[T]
    number: int  # from 1
    last: int
    total: int


def page_of(items: Sequence[T], number: int, *, size: int) -> Page[T]:
    """A page beyond the last is the last."""
    last = max(1, -(-len(items) // size))
    number = min(number, last)
    return Page(items[(number - 1) * size : number * size], number, last, len(items))


class Front(NamedTuple):
    status: Status
    units: Page[Unit]
    waiting: int  # jobs
    leased: int
    at_work: Sequence[Leased]
    searches: Sequence[ReportedSearch]
    tables: Sequence[TableSummary]


def front(session: Session, *, database: str, settings: Settings, page: int, now: datetime) -> Front:
    status = service_status.status(session, database=database, settings=settings, now=now, shown_failures=FAILURES)
    # Who needs attention first; among equals, the one seen last.
    ordered = sorted(status.units, key=lambda unit: service_status.condition(unit.device, now).well)
    return Front(
        status,
        page_of(ordered, page, size=UNITS),
        sum(entry.jobs for entry in status.queue if entry.state == "queued"),
        sum(entry.jobs for entry in status.queue if entry.state == "leased"),
        leased(session, limit=AT_WORK, now=now),
        searches.recent(session, limit=SEARCHES),
        tables.latest(session, limit=TABLES),
    )


class DeviceModel(NamedTuple):
    name: str
    units: Page[Unit]
    comparison: UnitComparison  # of those that measure under the protocol of the unit seen last
    compared: Page[UnitReading]
    tables: Sequence[TableSummary]


def device_model(session: Session, name: str, *, settings: Settings, page: int, now: datetime) -> DeviceModel:
    """Raises UnknownDevice."""
    model, protocol = devices.resolve(session, name, protocol_id=None)
    rows = session.scalars(select(DeviceRow).where(DeviceRow.model == model).order_by(DeviceRow.serial)).all()
    shown = page_of(rows, page, size=UNITS)
    compared = units.compare(session, device_model=model, protocol_id=protocol.id)
    return DeviceModel(
        model,
        Page([service_status.unit(row, settings=settings, now=now) for row in shown.items], *shown[1:]),
        compared,
        # Who is odd first.
        page_of(sorted(compared.units, key=lambda unit: not unit.odd), page, size=UNITS),
        tables.latest(session, limit=TABLES, device_model=model),
    )


class TableView(NamedTuple):
    table: Table
    heat_map: HeatMap
    lines: Page[Line]
    calibrations: Sequence[Calibration]  # the newest for each set of operators


def table(session: Session, table_id: str, *, version: int | None, page: int) -> TableView:
    """Raises UnknownTable."""
    found = tables.find(session, table_id, version=version)
    drawn = heat_map(found.entries)
    calibrated = newest(calibrations.history(session, found))
    return TableView(found, drawn, page_of(drawn.lines, page, size=LINES), calibrated)


class MeasurementView(NamedTuple):
    number: int
    key: str
    device_model: str
    measurement: Measurement


def measurement(session: Session, number: int) -> MeasurementView:
    """Raises UnknownMeasurement."""
    whole = latencies.measurement(session, number)
    key, model = session.execute(
        select(SubjectRow.key, MeasurementRow.device_model)
        .join(SubjectRow, SubjectRow.id == MeasurementRow.subject_id)
        .where(MeasurementRow.id == number)
    ).one()
    return MeasurementView(number, key, model, whole)


class ComparisonView(NamedTuple):
    first: Table
    second: Table
    operators: Page[Compared]
    significant: int
    median_ratio: float | None
    only_first: int
    only_second: int


def comparison(session: Session, first_id: str, second_id: str, *, page: int) -> ComparisonView:
    """The last versions of two tables, operator by operator. Raises UnknownTable."""
    first, second = (tables.find(session, table_id, version=None) for table_id in (first_id, second_id))
    compared = compare_latencies(_known(first), _known(second))
    return ComparisonView(
        first,
        second,
        page_of(compared, page, size=OPERATORS),
        sum(one.significant for one in compared),
        median(one.ratio.value for one in compared) if compared else None,
        len(first.entries) - len(compared),
        len(second.entries) - len(compared),
    )


def comparable(session: Session) -> list[TableSummary]:
    return sorted(tables.latest(session, limit=COMPARABLE), key=lambda summary: summary.device_model)


def _known(table: Table) -> dict[str, KnownLatency]:
    return {entry.key: KnownLatency.of_measured(entry) for entry in table.entries}

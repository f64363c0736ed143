"""Versions of a table, on a real database; the measurements are made by hand."""

from collections.abc import Callable

import pytest

from latency_contract.devices import DeviceReport
from latency_contract.jobs import JobState
from latency_contract.measurements import Measurement
from latency_contract.operators import IBConv
from latency_contract.tables import Table
from latency_service import devices, tables
from latency_service.database import Database
from latency_service.errors import UnknownTable
from latency_service.models import JobRow, MeasurementRow
from latency_service.subjects import store_subjects
from tests.conftest import Clock

Make = Callable[..., IBConv]
MakeMeasurement = Callable[..., Measurement]


@pytest.fixture
def shop(database: Database, clock: Clock, report: Callable[..., DeviceReport], measurement: MakeMeasurement) -> "Shop":
    with database.writing() as session:
        devices.report(session, report(), now=clock())
    return Shop(database, clock, measurement)


class Shop:
    def __init__(self, database: Database, clock: Clock, measurement: MakeMeasurement) -> None:
        self.database, self.clock, self.measurement = database, clock, measurement

    def measure(self, operator: IBConv, milliseconds: float) -> None:
        made = self.measurement(operator.id, [milliseconds * (1 + n / 1000) for n in range(6)])
        with self.database.writing() as session:
            store_subjects(session, [operator])
            _, protocol = devices.resolve(session, "Pixel 3", protocol_id=None)
            table = {"subject_id": operator.id, "device_model": "Pixel 3", "protocol_id": protocol.id}
            job = JobRow(**table, precision="float32", state=JobState.DONE, priority=1, created_at=self.clock())
            session.add(job)
            session.flush()
            session.add(
                MeasurementRow(
                    **table, job_id=job.id, device_serial="A1", latency_ms=made.latency_ms, low_ms=made.low_ms,
                    high_ms=made.high_ms, confidence=made.confidence, verdict=made.verdict, rounds=6,
                    measured_at=self.clock(), reference_ms=1.0, document=made.model_dump_json(),
                )
            )  # fmt: skip

    def publish(self) -> Table:
        with self.database.writing() as session:
            model, protocol = devices.resolve(session, "Pixel 3", protocol_id=None)
            return tables.publish(session, device_model=model, protocol=protocol, now=self.clock())

    def version(self, identity: str, number: int | None) -> Table:
        with self.database.reading() as session:
            return tables.find(session, identity, version=number)


def test_nothing_measured_is_nothing_to_publish(shop: Shop) -> None:
    with pytest.raises(UnknownTable, match="Nothing has been measured on Pixel 3"):
        shop.publish()


def test_publishing_what_has_not_changed_gives_the_same_version(shop: Shop, operator: Make, clock: Clock) -> None:
    shop.measure(operator(), 1.0)
    first = shop.publish()
    clock.advance(3600)
    assert shop.publish() == first


def test_a_published_version_never_changes(shop: Shop, operator: Make) -> None:
    shop.measure(operator(height=1), 1.0)
    first = shop.publish()
    shop.measure(operator(height=1), 2.0)
    shop.measure(operator(height=2), 3.0)
    second = shop.publish()
    assert (first.version, second.version) == (1, 2)
    assert [entry.latency_ms for entry in second.entries] == [2.0, 3.0]
    again = shop.version(first.table_id, 1)
    assert again == first
    assert again.content_hash == first.content_hash
    assert shop.version(first.table_id, None) == second


def test_entries_are_ordered_by_key_and_found_by_subject(shop: Shop, operator: Make) -> None:
    for height in (3, 1, 2):
        shop.measure(operator(height=height), height)
    table = shop.publish()
    assert [entry.key for entry in table.entries] == sorted(entry.key for entry in table.entries)
    assert table.by_subject[operator(height=2).id].latency_ms == 2.0


def test_an_unknown_version_is_refused(shop: Shop, operator: Make) -> None:
    shop.measure(operator(), 1.0)
    with pytest.raises(UnknownTable, match="There is no version 7 of table"):
        shop.version(shop.publish().table_id, 7)

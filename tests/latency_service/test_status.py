from collections.abc import Callable
from datetime import timedelta
from random import Random

import pytest

from latency_contract.devices import DeviceReport
from latency_contract.jobs import Failed
from latency_contract.measurements import Measurement
from latency_contract.operators import IBConv
from latency_contract.protocols import REFERENCE_OPERATOR, Protocol
from latency_service import conversion_queue, devices, queue, tables
from latency_service.database import Database
from latency_service.models import DeviceRow
from latency_service.settings import Settings
from latency_service.status import Status, status, text_of
from tests.conftest import Clock
from tests.latency_service.test_latencies import Laboratory, result

Make = Callable[..., IBConv]
MakeMeasurement = Callable[..., Measurement]


@pytest.fixture
def laboratory(database: Database, clock: Clock, report: Callable[..., DeviceReport]) -> Laboratory:
    return Laboratory(database, clock, report())


def seen(database: Database, clock: Clock) -> Status:
    with database.reading() as session:
        return status(session, database="sqlite:///padnas.db", settings=Settings(), now=clock())


def test_all_is_well(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make, measurement: MakeMeasurement
) -> None:
    laboratory.ask(operator(), queue_missing=True)
    lease = laboratory.leased()
    laboratory.accept(lease, result(lease, measurement))
    with database.writing() as session:
        model, protocol = devices.resolve(session, "Pixel 3", protocol_id=None)
        tables.publish(session, device_model=model, protocol=protocol, now=clock())
    clock.advance(30)
    now = seen(database, clock)
    assert (now.attention, now.failures, now.queue) == ((), (), ())
    assert (now.tables, now.table_versions) == (1, 1)
    text = text_of(now)
    assert "needs attention\n  nothing\n" in text
    assert "  Pixel 3  A1  at work; 1 measurement, the last 30 s ago\n" in text
    assert "  1 table in 1 version, the last published 30 s ago" in text


def test_what_is_wrong_comes_first_and_says_why(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make
) -> None:
    laboratory.ask(operator(height=1), operator(height=2), queue_missing=True)
    lease = laboratory.leased()
    laboratory.accept(lease, Failed(job_id=lease.jobs[0].job_id, error="no such\nkernel " + "x" * 200))
    with database.writing() as session:
        queue.release(session, lease.token, device_fault="51 °C", suspects=(), max_attempts=5, now=clock())
        devices.open_breaker(
            session.get_one(DeviceRow, "A1"), fault="51 °C", settings=Settings(), random=Random(0), now=clock()
        )
        conversion_queue.request(session, [operator(height=2).id], precision="int8", now=clock())
        conversion = conversion_queue.claim(session, claim_s=60, now=clock())
        assert conversion is not None
        conversion_queue.fail(session, conversion, error="no int8", now=clock())
    now = seen(database, clock)
    failed = operator(height=1).key
    assert now.attention == (
        "Pixel 3 A1 rests after 1 fault in a row: 51 °C",
        f"1 job failed since yesterday, the last {failed}: no such kernel {'x' * 85}…",
        "1 subject cannot be converted; asking for one again tries again",
    )
    text = text_of(now)
    assert "Pixel 3  A1  rests for 5 s more; nothing measured yet" in text
    assert "Pixel 3: 1 queued for tables, the oldest 0 s old" in text
    assert "0 wait, 1 failed" in text


def test_jobs_that_no_agent_would_take_need_attention(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make
) -> None:
    laboratory.ask(operator(height=1), operator(height=2), queue_missing=True)
    assert seen(database, clock).attention == ()
    clock.advance(3 * 3600)
    now = seen(database, clock)
    assert now.attention == ("2 jobs for Pixel 3, and no agent of one is at work: start padnas-agent there",)
    assert "Pixel 3  A1  silent for 3 h; nothing measured yet" in text_of(now)
    assert "2 queued for tables, the oldest 3 h old" in text_of(now)


def test_jobs_under_a_protocol_that_no_agent_at_work_has_need_attention(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make, report: Callable[..., DeviceReport]
) -> None:
    """The one agent was started anew with another runtime."""
    laboratory.ask(operator(height=1), operator(height=2), queue_missing=True)
    newer = report(protocol=Protocol(runtime="litert", runtime_version="9.0.0"))
    with database.writing() as session:
        devices.report(session, newer, now=clock())
    laboratory.convert_all()
    (sentence,) = seen(database, clock).attention
    assert sentence.startswith(
        f"2 jobs for Pixel 3 under protocol {report().protocol.id[:8]} (litert 2.3.0), and every"
    )


def test_conversions_that_no_service_makes_need_attention(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make
) -> None:
    laboratory.ask(operator(), queue_missing=True)
    with database.writing() as session:
        conversion_queue.request(session, [operator().id], precision="int8", now=clock())
    assert seen(database, clock).attention == ()
    clock.advance(61)
    (sentence,) = seen(database, clock).attention
    assert sentence.startswith("1 subject to convert, the oldest for 61 s, and no service does: start one without --no")
    with database.writing() as session:
        assert conversion_queue.claim(session, claim_s=60, now=clock()) is not None
        conversion_queue.request(session, [REFERENCE_OPERATOR.id], precision="int8", now=clock())
    clock.advance(59)
    assert seen(database, clock).attention == ()


def test_a_conversion_whose_converter_is_gone_needs_attention(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make
) -> None:
    """It may be the last, so that nothing else waits."""
    laboratory.ask(operator(), queue_missing=True)
    with database.writing() as session:
        conversion_queue.request(session, [operator().id], precision="int8", now=clock())
        assert conversion_queue.claim(session, claim_s=60, now=clock()) is not None
    clock.advance(59)
    assert seen(database, clock).attention == ()
    clock.advance(2)
    (sentence,) = seen(database, clock).attention
    assert sentence.startswith("1 subject to convert, the oldest for 61 s, and no service does")


def test_what_failed_earlier_than_yesterday_is_no_news(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make
) -> None:
    laboratory.ask(*(operator(height=h) for h in range(1, 6)), queue_missing=True)
    lease = laboratory.leased()
    laboratory.accept(lease, *(Failed(job_id=job.job_id, error="no such kernel") for job in lease.jobs))
    now = seen(database, clock)
    assert (now.failed_recently, len(now.failures)) == (5, 3)
    clock.advance(timedelta(days=1, seconds=1).total_seconds())
    now = seen(database, clock)
    assert (now.failed_recently, now.failures) == (0, ())


def test_status_travels_as_json(laboratory: Laboratory, database: Database, clock: Clock, operator: Make) -> None:
    laboratory.ask(operator(), queue_missing=True)
    now = seen(database, clock)
    assert Status.model_validate_json(now.model_dump_json()) == now

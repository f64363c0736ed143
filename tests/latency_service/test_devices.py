from collections.abc import Callable
from datetime import timedelta
from random import Random

import pytest

from latency_contract.devices import DeviceReport
from latency_contract.protocols import Protocol
from latency_service import devices
from latency_service.database import Database
from latency_service.errors import UnknownDevice, UnknownProtocol
from latency_service.models import DeviceRow
from latency_service.settings import Settings
from tests.conftest import Clock

SETTINGS = Settings()
Report = Callable[..., DeviceReport]


def test_a_device_is_found_by_model_by_serial_and_whatever_the_case(
    database: Database, clock: Clock, report: Report
) -> None:
    with database.writing() as session:
        devices.report(session, report(), now=clock())
        for name in ("Pixel 3", "A1", "pixel 3"):
            model, protocol = devices.resolve(session, name, protocol_id=None)
            assert (model, protocol.id) == ("Pixel 3", report().protocol.id)


def test_an_unknown_device_is_refused_with_the_known_ones(database: Database, clock: Clock, report: Report) -> None:
    with database.writing() as session:
        with pytest.raises(UnknownDevice, match="No agent has reported one; start `padnas-agent run`"):
            devices.resolve(session, "Pixel 9", protocol_id=None)
        devices.report(session, report(), now=clock())
        with pytest.raises(UnknownDevice, match=r"no device 'Pixel 9'. Known device models: Pixel 3\."):
            devices.resolve(session, "Pixel 9", protocol_id=None)


def test_a_protocol_that_nobody_measures_under_is_refused(database: Database, clock: Clock, report: Report) -> None:
    with database.writing() as session:
        devices.report(session, report(), now=clock())
        with pytest.raises(UnknownProtocol, match="No device measures under protocol 0000"):
            devices.resolve(session, "Pixel 3", protocol_id="0" * 64)


def test_the_protocol_of_a_model_is_that_of_the_unit_seen_last(
    database: Database, clock: Clock, report: Report
) -> None:
    newer = Protocol(runtime="litert", runtime_version="9.9.9")
    with database.writing() as session:
        devices.report(session, report(), now=clock())
        clock.advance(1)
        devices.report(session, report(serial="A2", protocol=newer), now=clock())
        assert devices.resolve(session, "Pixel 3", protocol_id=None)[1].id == newer.id


def test_an_agent_silent_for_too_long_is_not_at_work(database: Database, clock: Clock, report: Report) -> None:
    with database.writing() as session:
        row = devices.report(session, report(), now=clock())
        for seconds, alive in ((SETTINGS.alive_s, True), (1.0, False)):
            clock.advance(seconds)
            assert devices.shown(row, settings=SETTINGS, now=clock()).alive is alive
            units = devices.at_work(
                session, device_model="Pixel 3", protocol_id=row.protocol_id, settings=SETTINGS, now=clock()
            )
            assert units == (alive, None)


def test_a_faulty_device_rests_twice_as_long_each_time_up_to_the_cap(
    database: Database, clock: Clock, report: Report
) -> None:
    random = Random(0)
    with database.writing() as session:
        row = devices.report(session, report(), now=clock())
        for longest_s in (5, 10, 20, 40, 80, 160, 320, 640, 900, 900):
            devices.open_breaker(row, fault="hung", settings=SETTINGS, random=random, now=clock())
            assert row.blocked_until is not None
            rest_s = (row.blocked_until - clock()).total_seconds()
            assert longest_s / 2 <= rest_s <= longest_s
            clock.advance(rest_s)


def test_devices_that_fail_together_come_back_one_by_one(database: Database, clock: Clock, report: Report) -> None:
    """Twenty phones on a hub that lost its power."""
    random = Random(0)
    back = set()
    with database.writing() as session:
        for number in range(20):
            row = devices.report(session, report(serial=f"A{number}"), now=clock())
            devices.open_breaker(row, fault="unplugged", settings=SETTINGS, random=random, now=clock())
            back.add(row.blocked_until)
    assert len(back) == 20


def test_a_fault_told_again_during_the_rest_counts_once(database: Database, clock: Clock, report: Report) -> None:
    random = Random(0)
    with database.writing() as session:
        row = devices.report(session, report(), now=clock())
        devices.open_breaker(row, fault="offline", settings=SETTINGS, random=random, now=clock())
        until = row.blocked_until
        clock.advance(1)
        devices.take_fault(row, fault="unauthorized", settings=SETTINGS, random=random, now=clock())
        assert (row.faults, row.blocked_until, row.last_fault) == (1, until, "unauthorized")
        assert row.last_seen_at == clock()


def test_an_agent_is_told_what_is_left_of_the_rest_but_not_to_be_silent_for_too_long(
    database: Database, clock: Clock, report: Report
) -> None:
    with database.writing() as session:
        row = devices.report(session, report(), now=clock())
        assert devices.rest_s(row, settings=SETTINGS, now=clock()) == 0
        row.blocked_until = clock() + timedelta(seconds=3.2)
        assert devices.rest_s(row, settings=SETTINGS, now=clock()) == 4
        row.blocked_until = clock() + timedelta(hours=1)
        assert devices.rest_s(row, settings=SETTINGS, now=clock()) == SETTINGS.alive_s / 3
        clock.advance(3600)
        assert devices.rest_s(row, settings=SETTINGS, now=clock()) == 0


def test_a_thousand_idle_agents_are_told_to_wait_longer_than_one_and_not_all_equally_long(
    database: Database, clock: Clock, report: Report
) -> None:
    random = Random(0)

    def waits_s(number: int) -> list[int]:
        with database.reading() as session:
            return [devices.idle_wait_s(session, settings=SETTINGS, random=random, now=clock()) for _ in range(number)]

    with database.writing() as session:
        first = devices.report(session, report(), now=clock())
        fields = {"model": first.model, "protocol_id": first.protocol_id, "document": first.document, "faults": 0}
    assert set(waits_s(20)) == {SETTINGS.idle_poll_s}
    with database.writing() as session:
        session.add_all(DeviceRow(serial=f"B{n}", last_seen_at=clock(), **fields) for n in range(999))
    drawn = waits_s(100)
    assert 10 * sum(1 / wait_s for wait_s in drawn) < 1.25 * SETTINGS.idle_polls_per_s
    assert len(set(drawn)) > 20
    with database.writing() as session:
        session.add_all(DeviceRow(serial=f"C{n}", last_seen_at=clock(), **fields) for n in range(3000))
    assert max(waits_s(100)) <= SETTINGS.alive_s / 2  # one answer may be lost, and the agent still counts as alive
    clock.advance(SETTINGS.alive_s + 1)
    assert set(waits_s(20)) == {SETTINGS.idle_poll_s}


def test_reporting_again_does_not_close_the_breaker(database: Database, clock: Clock, report: Report) -> None:
    """An agent that restarts after every fault would hammer its phone."""
    with database.writing() as session:
        row = devices.report(session, report(), now=clock())
        devices.open_breaker(row, fault="x", settings=SETTINGS, random=Random(0), now=clock())
        assert devices.report(session, report(), now=clock()).blocked_until is not None

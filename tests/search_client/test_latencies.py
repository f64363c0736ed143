"""The client's questions to a live service; the device's answers are given by hand."""

import re
import time
from collections.abc import Callable

import httpx
import pytest

from benchmarks.faulty_wire import Fault, FaultyWire
from latency_contract import connection as connection_module
from latency_contract.connection import NotThisService, ServiceConnection, ServiceRefused, ServiceUnreachable
from latency_contract.devices import Device, DeviceReport
from latency_contract.operators import IBConv
from latency_contract.protocols import Protocol
from latency_contract.tables import MAX_QUERY, Purpose
from search_client import latencies
from search_client.errors import NoAgent, NoSuchDevice, NotMeasurable
from search_client.latencies import LatencyService, find_table, kept_measurement
from tests.search_client.conftest import Agent

Make = Callable[..., IBConv]


def test_what_is_asked_for_is_measured_and_published(service: LatencyService, agent: Agent, operator: Make) -> None:
    operators = [operator(height=1), operator(height=2)]
    service.request(operators, purpose=Purpose.TABLE)
    assert not service.complete(operators)
    agent(lambda subject: float(subject.height))
    seen: list[int] = []
    measured = service.measured(operators, purpose=Purpose.SEARCH, on_progress=seen.append)
    assert [latency.latency_ms for latency in measured] == [1.0, 2.0]
    assert seen[-1] == 2
    assert service.complete(operators)
    table = service.publish()
    assert service.published() == table
    assert {entry.operator for entry in table.entries} == set(operators)


def test_a_subject_that_fails_is_named_with_its_reason(service: LatencyService, agent: Agent, operator: Make) -> None:
    agent(lambda subject: "no such kernel" if subject.height == 2 else 1.0)
    with pytest.raises(NotMeasurable, match=r"1 of 2 subjects cannot be measured .* no such kernel.* Take them out"):
        service.measured([operator(height=1), operator(height=2)], purpose=Purpose.SEARCH, on_progress=lambda _: None)


def test_without_an_agent_it_is_said_after_a_moment(
    service: LatencyService, operator: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device reported and fell silent; the moment is made short."""
    monkeypatch.setattr(latencies, "NO_AGENT_S", 0.1)
    monkeypatch.setattr(LatencyService, "_ask", _as_if_no_agent(LatencyService._ask))
    with pytest.raises(NoAgent, match=r"no agent is at work there. Start `padnas-agent run`, or use --wait"):
        service.measured([operator()], purpose=Purpose.SEARCH, on_progress=lambda _: None)


def test_while_devices_are_at_work_and_none_measures_it_is_said_why(
    connection: ServiceConnection, phone: str, operator: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that there is rests after a fault; once it has been said twice, the operator is asked for no more."""
    monkeypatch.setattr(latencies, "SAY_AGAIN_S", 0.1)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            raise TimeoutError

    service = LatencyService(connection, device=phone, client=phone, say=say)
    connection.request("POST", f"/v1/devices/{phone}/faults", json={"fault": "the cable is out"})
    with pytest.raises(TimeoutError):
        service.measured([operator()], purpose=Purpose.SEARCH, on_progress=lambda _: None)
    service.release()
    assert re.fullmatch(
        rf"waiting for 1 latencies of {phone}: {phone} rests for \d s after a fault: the cable .*", said[1]
    )


def test_a_search_without_an_agent_is_ended_before_it_trains(
    service: LatencyService, operator: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latencies, "NO_AGENT_S", 0.1)
    monkeypatch.setattr(LatencyService, "_ask", _as_if_no_agent(LatencyService._ask))
    with pytest.raises(NoAgent, match="1 subjects are still to be measured"):
        service.request([operator()], purpose=Purpose.SEARCH)


def test_what_failed_is_said_while_the_supernet_trains(service: LatencyService, agent: Agent, operator: Make) -> None:
    agent(lambda _: "no such kernel")
    service.request([operator()], purpose=Purpose.SEARCH)

    def look_until_complete() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not service.complete([operator()]):
            time.sleep(0.02)

    with pytest.raises(NotMeasurable, match="no such kernel"):
        look_until_complete()


def test_an_address_that_is_no_service_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, connection: ServiceConnection
) -> None:
    monkeypatch.setattr(connection, "request", lambda *_, **__: httpx.Response(200, content=b"<html>"))
    with pytest.raises(NotThisService, match="does not list devices"):
        latencies.known_devices(connection)


def test_with_wait_an_agent_is_waited_for(
    connection: ServiceConnection,
    phone: str,
    agent: Agent,
    operator: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(latencies, "NO_AGENT_S", 0.0)
    monkeypatch.setattr(LatencyService, "_ask", _as_if_no_agent(LatencyService._ask))
    waiting = LatencyService(connection, device=phone, client=phone, wait=True)
    looks: list[int] = []

    def on_progress(done: int) -> None:
        looks.append(done)
        if len(looks) == 2:
            agent(lambda _: 1.0)

    assert len(waiting.measured([operator()], purpose=Purpose.SEARCH, on_progress=on_progress)) == 1


def test_with_wait_a_service_that_is_away_is_waited_for(
    service_url: str, phone: str, agent: Agent, operator: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time until it was said once."""
    monkeypatch.setattr(connection_module, "PATIENCE_S", 0.1)
    monkeypatch.setattr(latencies, "SAY_AGAIN_S", 0.0)
    agent(lambda _: 1.0)
    said: list[str] = []
    with (
        FaultyWire(int(service_url.rpartition(":")[2])) as wire,
        ServiceConnection(f"http://127.0.0.1:{wire.port}") as connection,
    ):

        def say(line: str) -> None:
            said.append(line)
            wire.heal()

        def away() -> None:
            wire.inject(Fault.REFUSE)
            wire.inject(Fault.CUT)

        away()
        waiting = LatencyService(connection, device=phone, client=phone, wait=True, say=say)
        assert len(said) == 1
        waiting.measured([operator()], purpose=Purpose.TABLE, on_progress=lambda _: None)
        away()
        with pytest.raises(ServiceUnreachable):  # whoever trains meanwhile does not wait
            waiting.complete([operator()])
        table = waiting.publish()
        assert len(said) == 2
        away()
        assert waiting.published() == table
    assert len(said) == 3
    assert all("waiting: The service at" in line and "does not answer" in line for line in said)


def test_with_wait_a_device_that_nobody_has_reported_yet_is_waited_for(
    connection: ServiceConnection, phone: str, report: Callable[..., DeviceReport]
) -> None:
    new = f"{phone} new"
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        connection.ask("PUT", "/v1/devices/late-1", Device, body=report(serial="late-1", model=new))

    assert LatencyService(connection, device=new, client=phone, wait=True, say=say).device.serial == "late-1"
    assert len(said) == 1
    assert f"waiting: There is no device '{new}'. The service knows:" in said[0]
    with pytest.raises(NoSuchDevice, match="There is no device 'another'"):
        LatencyService(connection, device="another", client=phone)


def test_more_operators_than_one_question_holds_are_asked_about_in_several(
    service: LatencyService, operator: Make
) -> None:
    many = [operator(height=1 + n % 50, width=1 + n // 50) for n in range(MAX_QUERY + 1)]
    assert len({one.id for one in many}) == MAX_QUERY + 1
    assert not service.complete(many)
    assert service.release(many) == 0


def test_a_device_model_with_an_at_sign_is_named_like_any_other(
    connection: ServiceConnection, measured_units: Callable[[str, dict[str, float]], None]
) -> None:
    model = "CPU E5-2680 v4 @ 2.40GHz"
    measured_units(model, {"at-sign": 1.0})
    service = LatencyService(connection, device=model, client="at-sign")
    versions = [service.publish(), service.publish()]
    assert find_table(connection, model) == versions[1]
    assert find_table(connection, f"{model}@1") == versions[0]


def _as_if_no_agent(ask: Callable[..., object]) -> Callable[..., object]:
    """The service's answers, saying that no agent is at work."""
    return lambda *args, **kwargs: ask(*args, **kwargs).model_copy(update={"device_alive": False})  # type: ignore[attr-defined]


def test_releasing_cancels_what_only_this_search_wants(service: LatencyService, operator: Make) -> None:
    service.request([operator(height=1), operator(height=2)], purpose=Purpose.SEARCH)
    assert service.release([operator(height=1)]) == 1
    assert service.release() == 1
    assert service.release() == 0


def test_a_device_is_found_whatever_the_case_and_by_serial(connection: ServiceConnection, phone: str) -> None:
    assert LatencyService(connection, device=phone.upper(), client="x").device.model == phone


def test_of_several_units_of_a_model_one_with_the_protocol_asked_for_is_taken(
    connection: ServiceConnection, phone: str, report: Callable[..., DeviceReport]
) -> None:
    """The other one was seen last."""
    newer = report(serial=f"{phone}-2", model=phone, protocol=Protocol(runtime="litert", runtime_version="9.0.0"))
    connection.ask("PUT", f"/v1/devices/{newer.serial}", Device, body=newer)
    assert LatencyService(connection, device=phone, client="x").device.serial == newer.serial
    protocol_id = report().protocol.id
    assert LatencyService(connection, device=phone, client="x", protocol_id=protocol_id).device.serial == phone
    unheard_of = LatencyService(connection, device=phone, client="x", protocol_id="0" * 64)
    assert unheard_of.device.serial == newer.serial


def test_an_unknown_device_is_refused_with_the_known_ones(connection: ServiceConnection, phone: str) -> None:
    with pytest.raises(NoSuchDevice, match=f"There is no device 'Pixel 99'. The service knows: .*{phone}"):
        LatencyService(connection, device="Pixel 99", client="x")


def test_where_there_are_several_devices_one_must_be_chosen(
    connection: ServiceConnection, phone: str, report: Callable[..., DeviceReport]
) -> None:
    other = f"other-{phone}"
    connection.ask("PUT", f"/v1/devices/{other}", Device, body=report(serial=other, model=other))
    with pytest.raises(NoSuchDevice, match=r"knows several devices: .* Choose one with --device"):
        LatencyService(connection, device=None, client="x")


def test_service_without_any_device_is_said_after_a_moment(
    connection: ServiceConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latencies, "NO_AGENT_S", 0.1)
    monkeypatch.setattr(latencies, "known_devices", lambda _: [])
    started = time.monotonic()
    with pytest.raises(NoSuchDevice, match="No agent has reported a device to the service"):
        LatencyService(connection, device=None, client="x")
    assert time.monotonic() - started < 30


def test_a_table_is_found_by_device_id_and_version(
    service: LatencyService, agent: Agent, operator: Make, connection: ServiceConnection, phone: str
) -> None:
    agent(lambda subject: float(subject.height))
    versions = []
    for height in (1, 2):
        service.measured([operator(height=height)], purpose=Purpose.TABLE, on_progress=lambda _: None)
        versions.append(service.publish())
    identity = versions[0].table_id
    assert find_table(connection, phone.upper()) == versions[1]
    assert find_table(connection, f"{phone}@1") == versions[0]
    assert find_table(connection, identity[:8]) == versions[1]
    assert find_table(connection, f"{identity}@2") == versions[1]
    with pytest.raises(ValueError, match=f"There is no table 'nothing'. The service has: .*{phone} .{identity[:12]}"):
        find_table(connection, "nothing")
    with pytest.raises(ValueError, match="'two' is no version of a table"):
        find_table(connection, f"{phone}@two")
    with pytest.raises(ServiceRefused, match="There is no version 3"):
        find_table(connection, f"{phone}@3")


def test_tables_of_one_device_under_several_protocols_are_told_apart(
    service: LatencyService,
    agent: Agent,
    operator: Make,
    connection: ServiceConnection,
    phone: str,
    report: Callable[..., DeviceReport],
) -> None:
    agent(lambda subject: float(subject.height))
    service.measured([operator()], purpose=Purpose.TABLE, on_progress=lambda _: None)
    service.publish()
    newer = report(serial=phone, model=phone, protocol=Protocol(runtime="litert", runtime_version="9.0.0"))
    connection.ask("PUT", f"/v1/devices/{phone}", Device, body=newer)
    updated = LatencyService(connection, device=phone, client=phone)
    updated.measured([operator()], purpose=Purpose.TABLE, on_progress=lambda _: None)
    second = updated.publish()
    one = r"[0-9a-f]{12} \(version 1, 20[0-9-]+ [0-9:]+, 1 operators\)"
    with pytest.raises(ValueError, match=f"has several tables, one a protocol: {one}, {one}. Name one by its id."):
        find_table(connection, phone)
    assert find_table(connection, second.table_id[:12]) == second


def test_a_measurement_opens_to_its_rounds(
    service: LatencyService, agent: Agent, operator: Make, phone: str, connection: ServiceConnection
) -> None:
    agent(lambda _: 2.0)
    (latency,) = service.measured([operator()], purpose=Purpose.TABLE, on_progress=lambda _: None)
    measurement = kept_measurement(connection, latency.measurement_id)
    assert (measurement.latency_ms, len(measurement.rounds)) == (2.0, 6)
    assert measurement.provenance.device_serial == phone

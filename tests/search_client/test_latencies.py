"""The client's questions to a live service; the device's answers are given by hand."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from latency_contract.connection import NotThisService, ServiceConnection
from latency_contract.devices import Device, DeviceReport
from latency_contract.jobs import Failed, Lease, LeaseReport, LeaseRequest, Measured
from latency_contract.measurements import Measurement
from latency_contract.operators import IBConv
from latency_contract.protocols import Protocol
from latency_contract.tables import Purpose, Table, TableEntry
from search_client import latencies
from search_client.errors import IncompleteTable, NoAgent, NoSuchDevice, NotMeasurable
from search_client.latencies import LatencyService, additive_latency, predict
from search_client.spaces import SearchSpace, load_space
from tests.conftest import START

TINY = str(Path(__file__).parent / "tiny.toml")
Make = Callable[..., IBConv]
MakeMeasurement = Callable[..., Measurement]


@pytest.fixture
def space() -> SearchSpace:
    return load_space(TINY)


@pytest.fixture
def phone(connection: ServiceConnection, report: Callable[..., DeviceReport], request: pytest.FixtureRequest) -> str:
    """A device model of the test's own."""
    name: str = request.node.name
    connection.ask("PUT", f"/v1/devices/{name}", Device, body=report(serial=name, model=name))
    return name


@pytest.fixture
def service(connection: ServiceConnection, phone: str) -> LatencyService:
    return LatencyService(connection, device=phone, client=phone)


@pytest.fixture
def agent(
    service_url: str, phone: str, measurement: MakeMeasurement
) -> Iterator[Callable[[Callable[[IBConv], float | str]], None]]:
    """Starts an agent that answers every job with milliseconds, or with the sentence of a failure."""
    over = threading.Event()
    threads: list[threading.Thread] = []

    def serve(answer: Callable[[IBConv], float | str]) -> None:
        with ServiceConnection(service_url) as connection:
            while not over.wait(0.02):
                response = connection.request("POST", "/v1/leases", body=LeaseRequest(serial=phone, max_jobs=64))
                if response.status_code == 204:
                    continue
                lease = Lease.model_validate_json(response.content)
                outcomes: list[Measured | Failed] = []
                for job in lease.jobs:
                    assert isinstance(job.subject, IBConv)
                    ms = answer(job.subject)
                    if isinstance(ms, str):
                        outcomes.append(Failed(job_id=job.job_id, error=ms))
                        continue
                    medians = [ms * (1 + n / 1000) for n in range(6)]
                    made = measurement(job.subject.id, medians, model_sha256=job.model_sha256, serial=phone)
                    outcomes.append(Measured(job_id=job.job_id, measurement=made))
                report = LeaseReport(outcomes=tuple(outcomes))
                connection.request("POST", f"/v1/leases/{lease.token}/report", body=report)

    def start(answer: Callable[[IBConv], float | str]) -> None:
        thread = threading.Thread(target=serve, args=(answer,))
        threads.append(thread)
        thread.start()

    yield start
    over.set()
    for thread in threads:
        thread.join()


def table_of(space: SearchSpace, milliseconds: Callable[[IBConv], float]) -> Table:
    """A table in which stem and head take 1 ms, and everything is known to a tenth."""
    entries = []
    for number, operator in enumerate(space.operators()):
        ms = milliseconds(operator) if isinstance(operator, IBConv) else 1.0
        entries.append(
            TableEntry(
                measurement_id=number, latency_ms=ms, low_ms=0.9 * ms, high_ms=1.1 * ms, confidence=0.95,
                verdict="steady", rounds=6, device_serial="A1", measured_at=START, key=operator.key,
                subject_id=operator.id, operator=operator,
            )
        )  # fmt: skip
    return Table(
        table_id="0" * 64,
        version=1,
        device_model="Pixel 3",
        protocol=Protocol(runtime="litert", runtime_version="2.3.0"),
        published_at=START,
        entries=tuple(entries),
    )


def test_what_is_asked_for_is_measured_and_published(
    service: LatencyService, agent: Callable[[Callable[[IBConv], float | str]], None], operator: Make
) -> None:
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


def test_a_subject_that_fails_is_named_with_its_reason(
    service: LatencyService, agent: Callable[[Callable[[IBConv], float | str]], None], operator: Make
) -> None:
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


def test_a_search_without_an_agent_is_ended_before_it_trains(
    service: LatencyService, operator: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latencies, "NO_AGENT_S", 0.1)
    monkeypatch.setattr(LatencyService, "_ask", _as_if_no_agent(LatencyService._ask))
    with pytest.raises(NoAgent, match="1 subjects are still to be measured"):
        service.request([operator()], purpose=Purpose.SEARCH)


def test_what_failed_is_said_while_the_supernet_trains(
    service: LatencyService, agent: Callable[[Callable[[IBConv], float | str]], None], operator: Make
) -> None:
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
    agent: Callable[[Callable[[IBConv], float | str]], None],
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


def test_latencies_of_a_space_are_summed_with_identity_for_nothing(space: SearchSpace) -> None:
    table = table_of(space, lambda operator: operator.expansion * operator.kernel)
    additive = additive_latency(space, table)
    rng = np.random.default_rng(0)
    for _ in range(20):
        architecture = space.sample(rng)
        genes = [layer.choices.index(choice) for layer, choice in zip(space.layers, architecture, strict=True)]
        predicted = predict(space.network(architecture), table).latency_ms
        assert additive.of(np.array([genes]))[0] == pytest.approx(predicted)


def test_errors_of_different_operators_add_as_squares_and_of_equal_ones_directly(space: SearchSpace) -> None:
    """Every half-width is a tenth. Layers 3 and 4 are alike, so one operator may occur twice."""
    table = table_of(space, lambda _: 3.0)
    different = ("IBConv_K3_E1", "IBConv_K3_E1", "IBConv_K3_E1", "IBConv_K3_E2")
    prediction = predict(space.network(different), table)
    assert prediction.latency_ms == pytest.approx(14.0)
    assert prediction.high_ms - 14.0 == pytest.approx(math.sqrt(2 * 0.1**2 + 4 * 0.3**2))
    alike = ("IBConv_K3_E1", "IBConv_K3_E1", "IBConv_K3_E1", "IBConv_K3_E1")
    prediction = predict(space.network(alike), table)
    assert 14.0 - prediction.low_ms == pytest.approx(math.sqrt(2 * 0.1**2 + 2 * 0.3**2 + 0.6**2))


def test_an_operator_that_is_not_in_the_table_has_no_latency(space: SearchSpace) -> None:
    table = table_of(space, lambda _: 1.0)
    short = table.model_copy(update={"entries": table.entries[:-1]})
    with pytest.raises(IncompleteTable, match=r"does not hold Head_.* Build it for this space"):
        additive_latency(space, short)


def test_service_without_any_device_is_said_after_a_moment(
    connection: ServiceConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latencies, "NO_AGENT_S", 0.1)
    monkeypatch.setattr(latencies, "known_devices", lambda _: [])
    started = time.monotonic()
    with pytest.raises(NoSuchDevice, match="No agent has reported a device to the service"):
        LatencyService(connection, device=None, client="x")
    assert time.monotonic() - started < 30

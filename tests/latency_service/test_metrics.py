from collections.abc import Callable, Iterator
from random import Random

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from latency_contract.connection import ServiceConnection
from latency_contract.devices import Device, DeviceReport
from latency_contract.measurements import Measurement
from latency_contract.operators import IBConv
from latency_service import devices
from latency_service.database import Database
from latency_service.metrics import Metrics
from latency_service.models import DeviceRow
from latency_service.settings import Settings
from tests.conftest import Clock
from tests.latency_service.test_app import ask, lease
from tests.latency_service.test_latencies import Laboratory, result
from tests.latency_service.test_overview import statements

Make = Callable[..., IBConv]
Report = Callable[..., DeviceReport]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def laboratory(database: Database, clock: Clock, report: Report) -> Laboratory:
    return Laboratory(database, clock, report())


@pytest.fixture
def http(service_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service_url) as client:
        yield client


def service(database: Database, clock: Clock) -> Metrics:
    metrics = Metrics()
    metrics.read(database, settings=Settings(), clock=clock)
    return metrics


def samples(page: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_the_figures_of_the_database_are_those_of_the_queue_and_the_devices(
    laboratory: Laboratory,
    database: Database,
    clock: Clock,
    operator: Make,
    measurement: Callable[..., Measurement],
) -> None:
    laboratory.ask(*(operator(height=h) for h in (1, 2, 3)), queue_missing=True)
    batch = laboratory.leased()
    laboratory.accept(batch, result(batch, measurement, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    laboratory.ask(operator(height=4), queue_missing=True)
    clock.advance(7)
    with database.writing() as session:
        row = session.get_one(DeviceRow, "A1")
        devices.open_breaker(row, fault="hot", settings=Settings(), random=Random(0), now=clock())
    found = samples(service(database, clock).page().decode())
    jobs = {"device_model": "Pixel 3", "priority": "table"}
    assert value(found, "padnas_jobs", state="queued", **jobs) == 1
    assert value(found, "padnas_jobs", state="leased", **jobs) == 2
    assert value(found, "padnas_oldest_queued_job_seconds", device_model="Pixel 3") == 7
    unit = {"device_model": "Pixel 3", "serial": "A1"}
    assert value(found, "padnas_measurements_total", verdict="steady", **unit) == 1
    assert value(found, "padnas_measurements_total", verdict="unsteady", **unit) == 0
    states = [value(found, f"padnas_device_{name}", **unit) for name in ("alive", "blocked", "faults")]
    assert states == [1, 1, 1]
    assert value(found, "padnas_models", state="pending") == 0
    assert ("padnas_lease_expiries_total", frozenset({("device_model", "Pixel 3")})) not in found
    clock.advance(Settings().lease_s + 1)
    with database.writing() as session:
        session.get_one(DeviceRow, "A1").blocked_until = None
    laboratory.leased()  # what nobody has begun comes first
    laboratory.leased()
    found = samples(service(database, clock).page().decode())
    assert value(found, "padnas_lease_expiries_total", device_model="Pixel 3") == 1
    clock.advance(Settings().alive_s + 1)
    found = samples(service(database, clock).page().decode())
    states = [value(found, f"padnas_device_{name}", **unit) for name in ("alive", "blocked", "faults")]
    assert states == [0, 0, 1]


def test_services_on_one_database_say_the_same_of_it(
    laboratory: Laboratory, database: Database, database_url: str, clock: Clock, operator: Make
) -> None:
    laboratory.ask(operator(), queue_missing=True)
    second = Database(database_url)
    pages = [service(each, clock).page().decode() for each in (database, second)]
    second.dispose()
    shared = [
        [line for line in page.splitlines() if line.startswith(("padnas_jobs", "padnas_dev", "padnas_meas"))]
        for page in pages
    ]
    assert shared[0] == shared[1]
    assert len(shared[0]) > 5


def test_every_figure_says_whose_it_is(database: Database, clock: Clock) -> None:
    page = service(database, clock).page().decode()
    helps = [line for line in page.splitlines() if line.startswith("# HELP padnas_") and "_created" not in line]
    assert len(helps) >= 12  # families without a sample included
    for line in helps:
        assert ("From the database" in line) != ("Of this process" in line)


def test_one_scrape_is_five_queries(laboratory: Laboratory, database: Database, clock: Clock, operator: Make) -> None:
    metrics = service(database, clock)
    laboratory.ask(*(operator(height=h) for h in range(1, 30)), queue_missing=True)
    with statements(database) as sent:
        metrics.page()
    assert len(sent) == 5


def test_a_database_that_is_away_leaves_the_figures_of_the_process(tmp_path_factory: pytest.TempPathFactory) -> None:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('away') / 'no' / 'such.db'}")
    found = samples(service(database, Clock()).page().decode())
    database.dispose()
    assert value(found, "padnas_database_up") == 0
    assert value(found, "padnas_database_errors_total") == 0


def test_requests_are_counted_by_route_and_conversions_by_result(
    http: httpx.Client,
    connection: ServiceConnection,
    report: Report,
    operator: Make,
    request: pytest.FixtureRequest,
) -> None:
    name = request.function.__name__
    phone = report(serial=name, model=name)
    connection.ask("PUT", f"/v1/devices/{name}", Device, body=phone)
    ask(connection, phone, operator(height=5, width=7), queue_missing=True)
    lease(connection, phone)
    http.get("/v1/no/such/path")
    http.request("PROPFIND", "/v1/no/such/path")
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = samples(answer.text)
    count = "padnas_request_duration_seconds_count"
    assert value(found, count, method="PUT", route="/v1/devices/{serial}", status="200") >= 1
    assert value(found, count, method="GET", route="unmatched", status="404") >= 1
    assert value(found, count, method="other", route="unmatched", status="404") >= 1
    assert not any("no/such" in route for _, labels in found for _, route in labels)
    assert value(found, "padnas_conversions_total", result="ready") >= 1
    assert value(found, "padnas_conversion_duration_seconds_count") >= 1
    assert value(found, "process_resident_memory_bytes") > 1e6
    assert value(found, "padnas_jobs", device_model=name, state="leased", priority="table") == 1

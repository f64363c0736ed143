"""The REST interface, over a real wire to a live service with a real converter."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import httpx
import pytest

from latency_contract.connection import ServiceConnection, ServiceRefused
from latency_contract.devices import Device, DeviceFaultReport, DeviceReport, UnitComparison
from latency_contract.jobs import Lease, LeaseReport, LeaseRequest, Measured
from latency_contract.measurements import Measurement
from latency_contract.operators import Conv, Head, IBConv, Network
from latency_contract.tables import (
    LatencyAnswer,
    LatencyEntry,
    LatencyQuery,
    LatencyRelease,
    LatencyStatus,
    Released,
    Table,
    TablePublication,
)
from latency_service.database import Database
from tests.conftest import LIVE_SETTINGS, live_service

Make = Callable[..., IBConv]
Report = Callable[..., DeviceReport]
MakeMeasurement = Callable[..., Measurement]
PATIENCE_S = 60.0  # for TensorFlow to be imported and an operator converted


@pytest.fixture
def http(service_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service_url) as client:
        yield client


@pytest.fixture
def phone(connection: ServiceConnection, report: Report, request: pytest.FixtureRequest) -> DeviceReport:
    """A device model of the test's own, so that tests sharing the service do not meet."""
    name = request.function.__name__
    described = report(serial=name, model=name)
    connection.ask("PUT", f"/v1/devices/{name}", Device, body=described)
    return described


def ask(
    connection: ServiceConnection, phone: DeviceReport, *subjects: IBConv | Network, queue_missing: bool = False
) -> LatencyAnswer:
    query = LatencyQuery(device=phone.model, subjects=subjects, queue_missing=queue_missing, client="test")
    return connection.ask("POST", "/v1/latencies/query", LatencyAnswer, body=query)


def lease(connection: ServiceConnection, phone: DeviceReport, *, patience_s: float = PATIENCE_S) -> Lease:
    """Ask as an agent does until there is work."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        response = connection.request("POST", "/v1/leases", body=LeaseRequest(serial=phone.serial))
        if response.status_code == 200:
            return Lease.model_validate_json(response.content)
        assert int(response.headers["Retry-After"]) >= 1
        time.sleep(0.1)
    raise AssertionError("no work came")


def test_the_service_answers_while_the_converter_warms_up(http: httpx.Client) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json()["database"] == "ok"


def test_a_process_whose_threads_all_wait_for_the_database_is_alive(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that asks must not give it up: a silent database would take every replica away."""
    silent, waiting = threading.Event(), threading.Semaphore(0)

    def wait(_: Database) -> None:
        waiting.release()
        silent.wait(PATIENCE_S)

    monkeypatch.setattr(Database, "check_schema", wait)
    with ThreadPoolExecutor(60) as threads:
        asked = [threads.submit(httpx.get, f"{http.base_url}/readyz", timeout=PATIENCE_S) for _ in range(60)]
        try:
            for _ in range(40):  # as many threads as anyio has
                assert waiting.acquire(timeout=PATIENCE_S)
            assert http.get("/healthz").json() == {"status": "ok"}
            assert not any(answer.done() for answer in asked)
        finally:
            silent.set()


def test_a_service_that_converts_nothing_says_who_does_and_leaves_it_to_them(
    database_url: str, report: Report, operator: Make
) -> None:
    """Asked there, converted by another service on the same database."""
    phone = report(serial="elsewhere")
    with (
        live_service(database_url, settings=replace(LIVE_SETTINGS, converts=False)) as url,
        ServiceConnection(url) as connection,
    ):
        assert httpx.get(f"{url}/readyz").json() == {"database": "ok", "converter": "elsewhere"}
        refused = httpx.post(f"{url}/v1/conversions", content=b"a network")
        assert (refused.status_code, refused.json()["error"]) == (421, "ConvertsElsewhere")
        connection.ask("PUT", f"/v1/devices/{phone.serial}", Device, body=phone)
        ask(connection, phone, operator(), queue_missing=True)
        with live_service(database_url):
            assert [job.subject for job in lease(connection, phone).jobs] == [operator()]


def test_an_operator_travels_from_question_to_published_table(
    connection: ServiceConnection,
    http: httpx.Client,
    phone: DeviceReport,
    operator: Make,
    measurement: MakeMeasurement,
) -> None:
    """The whole path of a latency: asked for, converted, leased, measured, looked up, published, fetched as CSV."""
    assert ask(connection, phone, operator(), queue_missing=True).entries[0].status == LatencyStatus.QUEUED
    batch = lease(connection, phone)
    (job,) = batch.jobs
    assert connection.request("GET", f"/v1/models/{job.model_sha256}").content[4:8] == b"TFL3"
    made = measurement(job.subject.id, model_sha256=job.model_sha256, serial=phone.serial)
    report = LeaseReport(outcomes=(Measured(job_id=job.job_id, measurement=made),))
    response = connection.request("POST", f"/v1/leases/{batch.token}/report", body=report)
    assert response.json() == {"remaining": 0}

    one = connection.ask("GET", f"/v1/devices/{phone.model}/latencies/{operator().key}", LatencyEntry)
    assert one.latency is not None
    assert one.latency.latency_ms == made.latency_ms
    assert connection.ask("GET", f"/v1/measurements/{one.latency.measurement_id}", Measurement) == made

    table = connection.ask("POST", "/v1/tables", Table, body=TablePublication(device=phone.model))
    assert (table.version, [entry.operator for entry in table.entries]) == (1, [operator()])
    path = f"/v1/tables/{table.table_id}"
    answer = http.get(path)
    assert Table.model_validate_json(answer.content) == table
    assert http.get(path, headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304
    csv = http.get(f"{path}/versions/1", params={"format": "csv"})
    assert csv.headers["content-type"].startswith("text/csv")
    assert csv.headers["ETag"] != answer.headers["ETag"]
    assert f"{operator().key},{made.latency_ms}" in csv.text
    assert table.table_id in [summary["table_id"] for summary in http.get("/v1/tables").json()]


def test_a_device_with_a_slash_in_its_name_is_found(
    connection: ServiceConnection, report: Report, operator: Make
) -> None:
    name = "AMD Ryzen 7 w/ Radeon 780M Graphics"
    connection.ask("PUT", "/v1/devices/slash", Device, body=report(serial="slash", model=name))
    one = connection.ask("GET", f"/v1/devices/{name}/latencies/{operator().key}", LatencyEntry)
    assert one.status == LatencyStatus.MISSING


def test_a_whole_network_is_queued_like_an_operator(
    connection: ServiceConnection, phone: DeviceReport, operator: Make
) -> None:
    stem = Conv(height=16, width=16, in_channels=3, out_channels=8, kernel=3, stride=2)
    head = Head(height=8, width=8, in_channels=8, hidden_channels=16, out_channels=10)
    network = Network(operators=(stem, operator(), head))
    ask(connection, phone, network, queue_missing=True)
    assert lease(connection, phone).jobs[0].subject == network


def test_what_a_client_releases_is_cancelled(
    connection: ServiceConnection, phone: DeviceReport, operator: Make
) -> None:
    ask(connection, phone, operator(height=3), queue_missing=True)
    release = LatencyRelease(client="test", subject_ids=(operator(height=3).id,))
    assert connection.ask("POST", "/v1/latencies/release", Released, body=release) == Released(cancelled=1)
    assert ask(connection, phone, operator(height=3)).entries[0].status == LatencyStatus.MISSING


def test_a_lease_given_back_is_leased_again(connection: ServiceConnection, phone: DeviceReport, operator: Make) -> None:
    ask(connection, phone, operator(), queue_missing=True)
    first = lease(connection, phone)
    connection.request("POST", f"/v1/leases/{first.token}/release", json={})
    second = lease(connection, phone)
    assert second.jobs == first.jobs
    with pytest.raises(ServiceRefused, match="This lease has ended") as refusal:
        connection.request("POST", f"/v1/leases/{first.token}/renew")
    assert (refusal.value.error, refusal.value.status) == ("StaleLease", 409)
    connection.request("POST", f"/v1/leases/{second.token}/renew")


def test_a_device_fault_is_shown_with_the_device(
    connection: ServiceConnection, phone: DeviceReport, operator: Make
) -> None:
    ask(connection, phone, operator(), queue_missing=True)
    batch = lease(connection, phone)
    connection.request("POST", f"/v1/leases/{batch.token}/release", json={"device_fault": "the phone is at 51 °C"})
    device = connection.ask("GET", f"/v1/devices/{phone.serial}", Device)
    assert (device.faults, device.last_fault) == (1, "the phone is at 51 °C")
    assert device.blocked_until is not None
    assert connection.request("POST", "/v1/leases", body=LeaseRequest(serial=phone.serial)).status_code == 204


def test_a_fault_of_any_characters_and_length_is_kept(
    connection: ServiceConnection, phone: DeviceReport, operator: Make
) -> None:
    """What a dying program says is not made of text alone, and PostgreSQL stores no NUL."""
    ask(connection, phone, operator(), queue_missing=True)
    batch = lease(connection, phone)
    fault = ("core dumped: \0\x01\U0001f525 " * 400)[:4000]
    connection.request("POST", f"/v1/leases/{batch.token}/release", json={"device_fault": fault})
    device = connection.ask("GET", f"/v1/devices/{phone.serial}", Device)
    assert device.last_fault == fault.replace("\0", "\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize("length", [100, 101])
def test_a_name_is_refused_by_the_contract_before_the_database_has_to(
    http: httpx.Client, report: Report, length: int
) -> None:
    name = "é" * length
    described = report().model_dump(mode="json") | {"serial": name, "model": name}
    response = http.put(f"/v1/devices/{name}", json=described)
    assert response.status_code == (200 if length == 100 else 422)


def test_a_suspect_keeps_its_attempt_and_its_neighbour_does_not(
    connection: ServiceConnection, phone: DeviceReport, operator: Make, http: httpx.Client
) -> None:
    ask(connection, phone, operator(height=2), operator(height=3), queue_missing=True)
    batch = lease(connection, phone)
    while len(batch.jobs) < 2:  # the second was still being converted
        http.post(f"/v1/leases/{batch.token}/release", json={}).raise_for_status()
        batch = lease(connection, phone)
    release = f"/v1/leases/{batch.token}/release"
    suspect = batch.jobs[0]
    stranger = http.post(release, json={"device_fault": "the phone rebooted", "suspects": [2**62]})
    assert (stranger.status_code, stranger.json()["error"]) == (409, "StaleLease")
    baseless = http.post(release, json={"suspects": [suspect.job_id]})
    assert baseless.status_code == 422
    assert "suspects are named together with the device_fault" in baseless.json()["detail"]
    said = {"device_fault": "the phone rebooted", "suspects": [suspect.job_id]}
    assert http.post(release, json=said).status_code == 204
    # Another unit, which does not rest: the untried first, then the suspect alone.
    other = phone.model_copy(update={"serial": f"{phone.serial}-2"})
    connection.ask("PUT", f"/v1/devices/{other.serial}", Device, body=other)
    attempts = [[(job.job_id, job.attempt) for job in lease(connection, other).jobs] for _ in range(2)]
    assert attempts == [[(batch.jobs[1].job_id, 1)], [(suspect.job_id, 2)]]


def test_an_agent_without_a_lease_reports_a_fault_and_is_told_how_long_to_rest(
    connection: ServiceConnection, phone: DeviceReport, operator: Make
) -> None:
    ask(connection, phone, operator(), queue_missing=True)
    batch = lease(connection, phone)
    report = DeviceFaultReport(fault="the phone is unauthorized")
    path = f"/v1/devices/{phone.serial}/faults"
    connection.ask("POST", path, Device, body=report)
    device = connection.ask("POST", path, Device, body=report)  # the first answer was lost
    assert (device.faults, device.last_fault) == (1, "the phone is unauthorized")
    assert device.blocked_until is not None
    before = datetime.now(UTC)
    response = connection.request("POST", "/v1/leases", body=LeaseRequest(serial=phone.serial))
    assert response.status_code == 204
    least_s, most_s = ((device.blocked_until - then).total_seconds() for then in (datetime.now(UTC), before))
    assert max(1, math.ceil(least_s)) <= int(response.headers["Retry-After"]) <= max(1, math.ceil(most_s))
    connection.request("POST", f"/v1/leases/{batch.token}/renew")  # its lease goes on


def test_units_of_a_model_are_compared_and_the_odd_one_is_named(
    connection: ServiceConnection,
    measured_units: Callable[[str, dict[str, float]], None],
    report: Report,
) -> None:
    model = "Pixel 3 w/ units"
    measured_units(model, {"unit-1": 1.0, "unit-2": 1.01, "unit-3": 1.2})
    comparison = connection.ask("GET", f"/v1/devices/{model}/units", UnitComparison)
    assert (comparison.device_model, comparison.protocol_id) == (model, report().protocol.id)
    shown = [(unit.serial, unit.measurements, unit.reference_ms, unit.odd) for unit in comparison.units]
    assert shown == [("unit-1", 6, 1.0, False), ("unit-2", 6, 1.01, False), ("unit-3", 6, 1.2, True)]
    assert comparison.spread_pct == pytest.approx(100 * 0.2 / 1.01)
    reason = comparison.units[2].reason
    assert reason is not None
    assert reason.startswith("It is 18.8 % slower than unit-2")
    by_serial = connection.ask("GET", "/v1/devices/unit-1/units", UnitComparison)
    assert by_serial == comparison


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error", "sentence"),
    [
        ("GET", "/v1/devices/nobody/units", None, 404, "UnknownDevice", "There is no device 'nobody'"),
        ("POST", "/v1/devices/nobody/faults", {"fault": "x"}, 404, "UnknownDevice", "No unit with serial 'nobody'"),
        ("POST", "/v1/devices/nobody/faults", {"fault": ""}, 422, "MalformedRequest", "at least 1 character"),
        ("GET", "/v1/devices/x/latencies/IBConv_K3", None, 404, "UnknownOperator", "a key reads like IBConv_K3_E6"),
        ("GET", "/v1/devices/nobody", None, 404, "UnknownDevice", "No unit with serial 'nobody' has reported"),
        ("GET", f"/v1/tables/{'0' * 64}", None, 404, "UnknownTable", "GET /v1/tables lists the published ones"),
        ("GET", f"/v1/models/{'0' * 64}", None, 404, "UnknownModel", "There is no model with SHA-256"),
        ("GET", "/v1/measurements/99999", None, 404, "UnknownMeasurement", "There is no measurement 99999"),
        ("POST", "/v1/leases", {"serial": "nobody"}, 404, "UnknownDevice", "No unit with serial 'nobody'"),
        ("POST", "/v1/leases", {}, 422, "MalformedRequest", "serial: Field required"),
        ("POST", "/v1/latencies/query", {"device": "x", "subjects": []}, 422, "MalformedRequest", "at least 1 item"),
        (
            "POST",
            f"/v1/leases/{'0' * 32}/report",
            {"outcomes": [{"outcome": "failed", "job_id": 2**63, "error": "x"}]},
            422,
            "MalformedRequest",
            "job_id: Input should be less than",
        ),
        (
            "POST",
            f"/v1/leases/{'0' * 32}/report",
            {"outcomes": [{"outcome": "failed", "job_id": 2**63 - 1, "error": "x"}]},
            409,
            "StaleLease",
            f"Job {2**63 - 1} is not, or no longer, part of this lease",
        ),
        ("GET", f"/v1/measurements/{2**63 - 1}", None, 404, "UnknownMeasurement", "There is no measurement 9223372"),
        ("GET", f"/v1/tables/{'0' * 64}/versions/{2**31 - 1}", None, 404, "UnknownTable", "There is no version 21474"),
        ("GET", "/v1/devices/a%00b", None, 422, "MalformedRequest", "serial: String should match pattern"),
        ("GET", "/v1/devices/a%00b/latencies/IBConv_K3", None, 404, "UnknownOperator", "a key reads like"),
        ("POST", "/v1/leases", {"serial": "a\0b"}, 422, "MalformedRequest", "serial: String should match pattern"),
        ("POST", "/v1/tables", {"device": "a\0b"}, 404, "UnknownDevice", "There is no device"),
        ("POST", "/v1/latencies/release", {"client": "a\0b"}, 422, "MalformedRequest", "client: String should match"),
        ("GET", "/v2", None, 404, "HttpError", "GET /v2: Not Found"),
        ("DELETE", "/v1/devices", None, 405, "HttpError", "DELETE /v1/devices: Method Not Allowed"),
    ],
)
def test_every_refusal_is_a_named_sentence(
    http: httpx.Client, method: str, path: str, body: object, status: int, error: str, sentence: str
) -> None:
    response = http.request(method, path, json=body)
    assert response.status_code == status
    assert response.json()["error"] == error
    assert sentence in response.json()["detail"]


def test_an_operator_out_of_bounds_is_refused_by_name_of_the_field(http: httpx.Client, operator: Make) -> None:
    subject = operator().model_dump(mode="json") | {"in_channels": 10**9}
    response = http.post("/v1/latencies/query", json={"device": "x", "subjects": [subject]})
    assert response.status_code == 422
    assert "in_channels: Input should be less than or equal to 8192" in response.json()["detail"]


def test_a_measurement_whose_number_was_altered_is_refused(
    http: httpx.Client, operator: Make, measurement: MakeMeasurement
) -> None:
    document = measurement(operator().id).model_dump(mode="json") | {"latency_ms": 0.5}
    outcome = {"outcome": "measured", "job_id": 1, "measurement": document}
    response = http.post(f"/v1/leases/{'0' * 32}/report", json={"outcomes": [outcome]})
    assert response.status_code == 422
    assert "do not follow from the rounds" in response.json()["detail"]


def test_every_endpoint_that_takes_a_body_documents_an_example(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["description"], f"{method} {path} says nothing"
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    assert "example" in str(parameter), f"{method} {path} has no example of {parameter['name']}"
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is not None:
                assert "example" in str(content), f"{method} {path} has no example"


def test_a_body_that_is_no_text_is_malformed(http: httpx.Client) -> None:
    json = {"Content-Type": "application/json"}
    refused = http.post("/v1/latencies/query", content=b"\xff\xfe{", headers=json)
    assert (refused.status_code, refused.json()["error"]) == (422, "MalformedRequest")


def test_however_deep_a_subject_is_nested_it_is_malformed(http: httpx.Client) -> None:
    """About as deep as what reads it can go, which depends on what called it."""
    for depth in range(900, 1000, 5):
        body = f'{{"device": "x", "subjects": [{{"kind": {"[" * depth}{"]" * depth}}}]}}'
        refused = http.post("/v1/latencies/query", content=body, headers={"Content-Type": "application/json"})
        assert (refused.status_code, refused.json()["error"]) == (422, "MalformedRequest"), depth

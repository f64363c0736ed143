"""Over a real wire, on a live service."""

import io
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from latency_contract.connection import ServiceConnection
from latency_contract.devices import Device, DeviceReport
from latency_contract.jobs import LeaseReport, Measured
from latency_contract.measurements import Measurement
from latency_contract.operators import IBConv
from latency_service import logs, tables
from latency_service.logs import LogFormat
from tests.latency_service.test_app import ask, lease

Make = Callable[..., IBConv]
Report = Callable[..., DeviceReport]
PATIENCE_S = 10.0
OURS = {"latency_service.request_log"}
SECRET = "padnas_not_for_any_log_0123456789"


class Log:
    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def of(self, request_id: str, *, lines: int = 1) -> list[dict[str, Any]]:
        """The service's own lines about a request. They are written when its answer has been sent: waited for."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            written = [json.loads(line) for line in self.text.splitlines(keepends=True) if line.endswith("\n")]
            ours = [line for line in written if line.get("request") == request_id and line["logger"] in OURS]
            if len(ours) >= lines:
                return ours
            time.sleep(0.01)
        raise AssertionError(f"no {lines} lines about {request_id} in: {self.text}")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    """Everything that is logged meanwhile, at every level."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpcore").setLevel(logging.INFO)  # the test's own side of the wire
    handler = logs.handler(LogFormat.JSON, stream := io.StringIO())
    logging.getLogger().addHandler(handler)
    yield Log(stream)
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def http(service_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service_url) as client:
        yield client


def test_a_sane_request_id_is_kept_and_another_is_replaced(http: httpx.Client, log: Log) -> None:
    assert http.get("/v1/devices", headers={"X-Request-ID": "run-7.a"}).headers["X-Request-ID"] == "run-7.a"
    (line,) = log.of("run-7.a")
    assert (line["message"], line["status"], line["level"]) == ("GET /v1/devices", 200, "info")
    assert line["duration_ms"] > 0
    for insane in (b"", b"a b", b"x" * 65, "é".encode(), b'{"level": 1}'):
        given = http.get("/healthz", headers=[(b"X-Request-ID", insane)]).headers["X-Request-ID"]
        assert len(given) == 32
        assert log.of(given)


def test_a_refusal_has_its_request_id_and_names_the_template_of_its_route(http: httpx.Client, log: Log) -> None:
    answer = http.post(f"/v1/leases/{'ab' * 16}/renew", headers={"X-Request-ID": "r1"})
    assert (answer.status_code, answer.headers["X-Request-ID"]) == (409, "r1")
    (line,) = log.of("r1")
    assert (line["message"], line["status"], line["lease"]) == ("POST /v1/leases/{token}/renew", 409, "abababab…")


def test_the_story_of_a_lease_is_told_without_any_token_in_full(
    http: httpx.Client,
    connection: ServiceConnection,
    log: Log,
    report: Report,
    operator: Make,
    measurement: Callable[..., Measurement],
    request: pytest.FixtureRequest,
) -> None:
    name = request.function.__name__
    phone = report(serial=name, model=name)
    connection.ask("PUT", f"/v1/devices/{name}", Device, body=phone)
    ask(connection, phone, operator(), queue_missing=True)
    batch = lease(connection, phone)
    token, (job,) = batch.token, batch.jobs
    headers = {"X-Request-ID": "story", "Authorization": f"Bearer {SECRET}"}
    made = measurement(job.subject.id, model_sha256=job.model_sha256, serial=name)
    body = LeaseReport(outcomes=(Measured(job_id=job.job_id, measurement=made),)).model_dump(mode="json")
    http.post(f"/v1/leases/{token}/renew", headers=headers).raise_for_status()
    http.post(f"/v1/leases/{token}/report", headers=headers, json=body).raise_for_status()
    assert http.get(f"/v1/lease/{token}", headers=headers).status_code == 404
    renewed, reported, lost = log.of("story", lines=3)
    assert (renewed["serial"], renewed["lease"]) == (name, logs.short(token))
    assert (reported["lease"], reported["jobs"]) == (logs.short(token), [job.job_id])
    assert (lost["message"], lost["path"]) == ("GET unmatched", f"/v1/lease/{logs.short(token)}")
    leased = [line for line in log.text.splitlines() if '"POST /v1/leases"' in line and f'"serial": "{name}"' in line]
    assert json.loads(leased[-1])["jobs"] == [job.job_id]
    assert SECRET not in log.text
    assert [line for line in log.text.splitlines() if token in line and '"logger": "httpx"' not in line] == []


def test_a_caller_who_hangs_up_in_the_middle_of_a_body_is_no_mistake_of_the_service(service_url: str, log: Log) -> None:
    head = "POST /v1/latencies/query HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-ID: gone\r\nContent-Length: 99\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", urlsplit(service_url).port)) as caller:
        caller.sendall(head.encode())
    (line,) = log.of("gone")
    assert (line["message"], line["status"], line["level"]) == ("POST /v1/latencies/query", 499, "info")


def test_what_goes_as_it_should_all_day_long_is_not_worth_a_line(
    http: httpx.Client, connection: ServiceConnection, log: Log, report: Report, request: pytest.FixtureRequest
) -> None:
    name = request.function.__name__
    connection.ask("PUT", f"/v1/devices/{name}", Device, body=report(serial=name, model=name))
    headers = {"X-Request-ID": "quiet"}
    assert http.post("/v1/leases", json={"serial": name}, headers=headers).status_code == 204
    for path in ("/healthz", "/readyz", "/metrics"):
        assert http.get(path, headers=headers).status_code == 200
    assert [line["level"] for line in log.of("quiet", lines=4)] == ["debug"] * 4


def test_a_mistake_of_the_service_is_a_sentence_with_the_id_under_which_the_log_has_the_traceback(
    http: httpx.Client, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistake(*_: object) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(tables, "summaries", mistake)
    answer = http.get("/v1/tables", headers={"X-Request-ID": "oops"})
    assert (answer.status_code, answer.json()["error"]) == (500, "InternalError")
    assert answer.headers["X-Request-ID"] == "oops"
    thrown, line = log.of("oops", lines=2)
    assert "ZeroDivisionError: of ours" in thrown["traceback"]
    assert (line["level"], line["status"]) == ("warning", 500)

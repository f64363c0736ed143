"""TFLite files that are given to be measured: over the wire to a live service, and on a database."""

from collections.abc import Callable, Iterator

import httpx
import pytest

from latency_contract.connection import ServiceConnection, ServiceRefused
from latency_contract.devices import Device, DeviceReport
from latency_contract.jobs import Lease, LeaseReport, LeaseRequest, Measured
from latency_contract.measurements import Measurement
from latency_contract.model_files import TFLiteModel
from latency_contract.tables import LatencyAnswer, LatencyQuery, LatencyStatus, TablePublication
from latency_service import conversion_queue, devices, latencies, model_files
from latency_service.database import Database
from latency_service.errors import InvalidModel, UnknownModel
from tests.conftest import Clock, sha256

FILE = b"\x1c\x00\x00\x00TFL3 and whatever follows"


@pytest.fixture
def http(service_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service_url) as client:
        yield client


def test_an_unknown_model_is_refused(database: Database) -> None:
    with pytest.raises(UnknownModel, match="no model with SHA-256 0000"), database.reading() as session:
        model_files.content(session, "0" * 64)


def test_bytes_of_another_hash_are_refused() -> None:
    with pytest.raises(InvalidModel, match=r"the address says 0000.*Send the file again"):
        model_files.check("0" * 64, FILE)


@pytest.mark.parametrize("content", [b"", b"TFL3", b"PK\x03\x04 an archive", b"\x08\x00\x00\x00ONNX"])
def test_what_is_no_tflite_file_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidModel, match="This is no TFLite file"):
        model_files.check(sha256(content), content)


def test_a_file_is_ready_without_a_conversion(
    database: Database, clock: Clock, report: Callable[..., DeviceReport]
) -> None:
    with database.writing() as session:
        devices.report(session, report(), now=clock())
        file = TFLiteModel(sha256=model_files.sha256_of(FILE))
        model_files.store(session, file.sha256, FILE)
        model, protocol = devices.resolve(session, "Pixel 3", protocol_id=None)
        query = LatencyQuery(device=model, subjects=(file, file), queue_missing=True)
        missing = latencies.look_up(session, query.subjects, device_model=model, protocol=protocol)
        for _ in range(2):
            entries = latencies.queue_missing(
                session, query, missing, device_model=model, protocol=protocol, now=clock()
            )
            assert [entry.status for entry in entries] == [LatencyStatus.QUEUED] * 2
        converted = conversion_queue.converted(session, [file.id], precision="float32")
        assert converted == {file.id: (file, file.sha256)}
        conversion = conversion_queue.claim(session, claim_s=1.0, now=clock())
        assert conversion is not None, "the protocol's reference operator"
        assert conversion_queue.claim(session, claim_s=1.0, now=clock()) is None


def test_a_file_given_twice_is_stored_once(http: httpx.Client) -> None:
    for _ in range(2):
        response = http.put(f"/v1/models/{sha256(FILE)}", content=FILE)
        assert TFLiteModel.model_validate_json(response.content) == TFLiteModel(sha256=sha256(FILE))
    assert http.get(f"/v1/models/{sha256(FILE)}").content == FILE


@pytest.mark.parametrize(
    ("address", "content", "status", "error"),
    [
        ("0" * 64, FILE, 422, "InvalidModel"),
        (sha256(b"x"), b"x", 422, "InvalidModel"),
        ("nothing", FILE, 422, "MalformedRequest"),
    ],
)
def test_a_file_that_is_refused_is_not_kept(
    http: httpx.Client, address: str, content: bytes, status: int, error: str
) -> None:
    response = http.put(f"/v1/models/{address}", content=content)
    assert (response.status_code, response.json()["error"]) == (status, error)
    assert http.get(f"/v1/models/{'0' * 64}").status_code == 404


def test_asking_for_a_file_that_was_never_given_says_how_to_give_it(
    connection: ServiceConnection, report: Callable[..., DeviceReport]
) -> None:
    connection.ask("PUT", "/v1/devices/bare", Device, body=report(serial="bare", model="bare"))
    query = LatencyQuery(device="bare", subjects=(TFLiteModel(sha256="0" * 64),), queue_missing=True)
    with pytest.raises(ServiceRefused, match=r"Send them first, with PUT /v1/models/0000") as refusal:
        connection.ask("POST", "/v1/latencies/query", LatencyAnswer, body=query)
    assert (refusal.value.error, refusal.value.status) == ("UnknownModel", 404)


def test_a_measured_file_is_in_no_table(
    connection: ServiceConnection, report: Callable[..., DeviceReport], measurement: Callable[..., Measurement]
) -> None:
    """A table holds operators, from which networks are predicted; a file is like a whole network."""
    connection.ask("PUT", "/v1/devices/files", Device, body=report(serial="files", model="files"))
    connection.request("PUT", f"/v1/models/{sha256(FILE)}", content=FILE)
    query = LatencyQuery(device="files", subjects=(TFLiteModel(sha256=sha256(FILE)),), queue_missing=True)
    connection.ask("POST", "/v1/latencies/query", LatencyAnswer, body=query)
    while (response := connection.request("POST", "/v1/leases", body=LeaseRequest(serial="files"))).status_code == 204:
        pass  # the reference operator is being converted
    lease = Lease.model_validate_json(response.content)
    (job,) = lease.jobs
    assert (job.subject, job.model_sha256) == (query.subjects[0], sha256(FILE))
    made = measurement(job.subject.id, model_sha256=job.model_sha256, serial="files")
    outcome = LeaseReport(outcomes=(Measured(job_id=job.job_id, measurement=made),))
    connection.request("POST", f"/v1/leases/{lease.token}/report", body=outcome)
    (entry,) = connection.ask("POST", "/v1/latencies/query", LatencyAnswer, body=query).entries
    assert (entry.status, entry.key) == (LatencyStatus.MEASURED, f"TFLite_{sha256(FILE)[:12]}")
    with pytest.raises(ServiceRefused, match="no table to publish"):
        connection.request("POST", "/v1/tables", body=TablePublication(device="files"))

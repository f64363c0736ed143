"""Calibrations over the wire, on both databases; a unit answers with made-up latencies."""

import time
from collections.abc import Callable, Sequence

import pytest
from sqlalchemy import update

from latency_contract.calibrations import MIN_NETWORKS, Calibration, CalibrationRequest
from latency_contract.canonical import content_hash
from latency_contract.connection import ServiceConnection, ServiceRefused
from latency_contract.devices import Device, DeviceReport
from latency_contract.jobs import LeasedJob, Measured
from latency_contract.measurements import Measurement
from latency_contract.operators import IBConv, Network
from latency_contract.predictions import Prediction, PredictionQuery, add_up, predicted
from latency_contract.tables import LatencyQuery, Table, TablePublication
from latency_service import calibrations, devices, tables
from latency_service.database import Database
from latency_service.errors import CannotCalibrate
from latency_service.models import MeasurementRow
from tests.agents import answer_lease
from tests.conftest import Clock
from tests.latency_service.test_latencies import Laboratory, result

SLOPE = 1.1  # networks take so many times the sum of their operators, and a constant
CONSTANT_MS = 0.2


class Phone:
    """A unit of a model of its own, whose operators take as many milliseconds as they have kernel and expansion."""

    def __init__(self, connection: ServiceConnection, name: str, measurement: Callable[..., Measurement]) -> None:
        self.connection, self.name, self.measurement = connection, name, measurement

    def measure(self, subjects: Sequence[IBConv | Network]) -> None:
        query = LatencyQuery(device=self.name, subjects=tuple(subjects), queue_missing=True)
        self.connection.request("POST", "/v1/latencies/query", body=query)
        left = len(subjects)
        while left:
            answered = answer_lease(self.connection, self.name, self._answer)
            if not answered:  # still being converted
                time.sleep(0.02)
            left -= answered

    def _answer(self, job: LeasedJob) -> Measured:
        assert isinstance(job.subject, IBConv | Network)
        ms = latency_ms(job.subject)
        medians = [ms * (1 + n / 10_000) for n in range(6)]
        made = self.measurement(job.subject.id, medians, model_sha256=job.model_sha256, serial=self.name)
        return Measured(job_id=job.job_id, measurement=made)

    def publish(self) -> Table:
        return self.connection.ask("POST", "/v1/tables", Table, body=TablePublication(device=self.name))

    def calibrate(self, table: Table, request: CalibrationRequest) -> Calibration:
        return self.connection.ask("POST", f"{_path(table)}/calibrations", Calibration, body=request)

    def history(self, table: Table) -> list[Calibration]:
        documents = self.connection.request("GET", f"{_path(table)}/calibrations").json()
        return [Calibration.model_validate(document) for document in documents]

    def predict(self, table: Table, network: Network) -> Prediction:
        query = PredictionQuery(networks=(network,))
        (document,) = self.connection.request("POST", f"/v1/tables/{table.table_id}/predictions", body=query).json()
        return Prediction.model_validate(document)


def _path(table: Table) -> str:
    return f"/v1/tables/{table.table_id}/versions/{table.version}"


def latency_ms(subject: IBConv | Network) -> float:
    if isinstance(subject, IBConv):
        return subject.kernel + subject.expansion / 10
    operators = [latency_ms(operator) for operator in subject.operators if isinstance(operator, IBConv)]
    return CONSTANT_MS + SLOPE * sum(operators) * (1 + 0.001 * (len(operators) % 3))


@pytest.fixture
def phone(
    connection: ServiceConnection,
    report: Callable[..., DeviceReport],
    measurement: Callable[..., Measurement],
    request: pytest.FixtureRequest,
) -> Phone:
    name = f"phone-{request.node.originalname[:80]}-{content_hash(request.node.name)[:8]}"
    connection.ask("PUT", f"/v1/devices/{name}", Device, body=report(serial=name, model=name))
    return Phone(connection, name, measurement)


@pytest.fixture
def operators(operator: Callable[..., IBConv]) -> list[IBConv]:
    return [operator(kernel=kernel, expansion=expansion) for kernel in (3, 5) for expansion in (1, 2)]


@pytest.fixture
def networks(operators: list[IBConv]) -> list[Network]:
    """Of one operator more each time, so that their sums differ."""
    return [Network(operators=tuple((operators * 4)[: 2 + n])) for n in range(MIN_NETWORKS + 2)]


def request_for(operators: Sequence[IBConv], networks: Sequence[Network]) -> CalibrationRequest:
    return CalibrationRequest(
        space="handmade", operator_ids=tuple(o.id for o in operators), network_ids=tuple(n.id for n in networks)
    )


def test_a_calibration_is_fitted_to_measured_networks_kept_and_used_for_predictions(
    phone: Phone, operators: list[IBConv], networks: list[Network], operator: Callable[..., IBConv]
) -> None:
    """Once; the same again is the same; it outlives a version that has more."""
    phone.measure(operators)
    table = phone.publish()
    unseen = Network(operators=tuple(reversed(operators)))
    before = phone.predict(table, unseen)
    assert not before.calibrated
    assert before.latency_ms == pytest.approx(sum(map(latency_ms, operators)))

    phone.measure(networks)
    asked = request_for(operators, networks)
    made = phone.calibrate(table, asked)
    assert (made.table_id, made.table_version, made.space) == (table.table_id, table.version, "handmade")
    assert [one.latency_ms for one in made.networks] == pytest.approx([latency_ms(one) for one in networks])
    assert made.coefficients[1] == pytest.approx(SLOPE, rel=0.02)
    assert phone.calibrate(table, asked) == made
    assert phone.history(table) == [made]

    after = phone.predict(table, unseen)
    assert after.calibrated
    added = add_up(unseen.operators, table.by_subject)
    assert after == predicted(added, made)
    assert after.low_ms is not None
    assert after.high_ms is not None
    assert after.low_ms < latency_ms(unseen) < after.high_ms

    phone.measure([operator(kernel=7)])
    larger = phone.publish()
    assert larger.version == table.version + 1
    assert phone.history(larger) == [made]
    with_the_new = Network(operators=(*operators, operator(kernel=7)))
    assert not phone.predict(larger, with_the_new).calibrated
    fewer = phone.calibrate(larger, request_for(operators, networks[1:]))
    assert phone.history(larger) == [fewer, made]
    assert phone.history(table) == [made]


def test_only_measured_networks_of_the_operators_asked_for_make_a_calibration(
    phone: Phone, operators: list[IBConv], networks: list[Network], operator: Callable[..., IBConv]
) -> None:
    phone.measure(operators)
    table = phone.publish()
    with pytest.raises(ServiceRefused, match="12 of 12 networks are not measured"):
        phone.calibrate(table, request_for(operators, networks))
    phone.measure(networks)
    for asked, reason in (
        (request_for([*operators, operator(kernel=7)], networks), "does not hold operator"),
        (request_for(operators[:3], networks), "none of the operators to calibrate for"),
        (request_for(operators, networks[:1] * MIN_NETWORKS), "Only 1 networks are named"),
    ):
        with pytest.raises(ServiceRefused, match=reason):
            phone.calibrate(table, asked)
    assert phone.history(table) == []
    with pytest.raises(ServiceRefused, match="does not hold IBConv_K7"):
        phone.predict(table, Network(operators=(operator(kernel=7),)))


def test_a_network_that_was_measured_on_a_unit_which_had_drifted_makes_no_calibration(
    database: Database,
    clock: Clock,
    report: Callable[..., DeviceReport],
    measurement: Callable[..., Measurement],
    operators: list[IBConv],
    networks: list[Network],
) -> None:
    """Without a wire: what counts is asked of the database."""
    laboratory = Laboratory(database, clock, report())
    for subjects in (operators, networks):
        laboratory.ask(*subjects, queue_missing=True)
        lease = laboratory.leased()
        for number, job in enumerate(lease.jobs):
            assert isinstance(job.subject, IBConv | Network)
            medians_ms = [latency_ms(job.subject) * (1 + n / 10_000) for n in range(6)]
            laboratory.accept(lease, result(lease, measurement, *medians_ms, job=number))
    with database.writing() as session:
        model, protocol = devices.resolve(session, "Pixel 3", protocol_id=None)
        table = tables.publish(session, device_model=model, protocol=protocol, now=clock())
        session.execute(update(MeasurementRow).where(MeasurementRow.subject_id == networks[0].id).values(drifted=True))
    with database.writing() as session, pytest.raises(CannotCalibrate, match=f"1 of {len(networks)} networks are not"):
        calibrations.calibrate(session, table, request_for(operators, networks), now=clock())

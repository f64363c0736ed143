"""Units that leave their history, on both databases; the clock is moved by hand."""

from collections.abc import Callable
from datetime import timedelta
from random import Random

import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from latency_contract.devices import Device, DeviceReport, Quarantine
from latency_contract.measurements import Measurement, Round
from latency_contract.operators import IBConv
from latency_contract.protocols import Protocol
from latency_contract.tables import LatencyStatus
from latency_service import devices, drift, latencies, tables
from latency_service.cli import app
from latency_service.database import Database
from latency_service.drift import IN_A_ROW, NEEDED, RECENT, SLOT, keep
from latency_service.errors import StaleLease, WrongMeasurement
from latency_service.metrics import Metrics
from latency_service.models import DeviceRow, MeasurementRow, ReferenceReadingRow
from latency_service.settings import Settings
from latency_service.status import status, text_of
from tests.conftest import START, Clock
from tests.latency_service.test_latencies import SETTINGS, Laboratory, result

Make = Callable[..., IBConv]


class Unit(Laboratory):
    """One unit that measures one operator after the other."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        report: DeviceReport,
        *,
        operator: Make,
        measurement: Callable[..., Measurement],
    ) -> None:
        super().__init__(database, clock, report)
        self.operator, self.make, self.asked = operator, measurement, 0

    def measure(self, reference_ms: float) -> IBConv:
        """One more operator. A unit in quarantine has nothing to measure it with."""
        self.asked += 1
        wanted = self.operator(height=self.asked)
        self.ask(wanted, queue_missing=True)
        lease = self.leased()
        self.accept(lease, result(lease, self._made, reference_ms=reference_ms))
        return wanted

    def _made(self, *arguments: object, **options: object) -> Measurement:
        return self.make(*arguments, at=self.clock(), **options)

    def live(self, readings: list[float]) -> None:
        """Have measured once in ten minutes, and then not for an hour."""
        with self.database.writing() as session:
            device = session.get_one(DeviceRow, "A1")
            for reference_ms in readings:
                keep(session, device, protocol_id=device.protocol_id, reference_ms=reference_ms, now=self.clock())
                self.clock.advance(SLOT.total_seconds())
        self.clock.advance(RECENT.total_seconds())

    @property
    def quarantine(self) -> Quarantine | None:
        with self.database.reading() as session:
            return devices.quarantine_of(session.get_one(DeviceRow, "A1"))

    @property
    def held(self) -> Quarantine:
        held = self.quarantine
        assert held is not None
        return held

    def check_is_due(self) -> bool:
        with self.database.reading() as session:
            return drift.check_due(session, session.get_one(DeviceRow, "A1"), now=self.clock()) is not None

    def check(self, reference_ms: float, *, rounds: int = 6) -> None:
        made = Round(
            started_at=self.clock(),
            samples_ms=(reference_ms,),
            reference_before_ms=reference_ms,
            reference_after_ms=reference_ms,
        )
        with self.database.writing() as session:
            row = session.get_one(DeviceRow, "A1")
            drift.take_check(session, row, [made] * rounds, settings=SETTINGS, now=self.clock())


@pytest.fixture
def unit(
    database: Database,
    clock: Clock,
    report: Callable[..., DeviceReport],
    operator: Make,
    measurement: Callable[..., Measurement],
) -> Unit:
    return Unit(database, clock, report(), operator=operator, measurement=measurement)


def test_a_unit_that_is_slower_than_its_history_is_quarantined_with_what_to_do(unit: Unit) -> None:
    unit.live([1.0] * NEEDED)
    since = unit.clock()
    for _ in range(IN_A_ROW):
        assert unit.quarantine is None
        unit.measure(1.12)
        unit.clock.advance(60)
    assert unit.held.reason == (
        f"reference operator 12.0 % slower than in the last 30 days since {since:%Y-%m-%d %H:%M} UTC: is it hot, on"
        " battery, or is something else running? Look with `padnas-agent doctor`; it is released when a check is as"
        " usual again, or, if it is to stay so, by `padnas-service device release A1`"
    )
    assert (unit.held.low_ms, unit.held.usual_ms, unit.held.high_ms) == pytest.approx((1 / 1.04, 1.0, 1.04))
    assert unit.held.since == since


def test_a_unit_that_is_faster_is_too(unit: Unit) -> None:
    """Beside what it measured before, what it measures now would be too fast."""
    unit.live([1.0] * NEEDED)
    for _ in range(IN_A_ROW):
        unit.measure(0.8)
    assert unit.held.reason.startswith("reference operator 20.0 % faster than in the last 30 days since ")
    assert "was its governor, its frequency cap or its system changed?" in unit.held.reason


@pytest.mark.parametrize("readings", [[1.3, 1.3, 1.0], [0.7, 1.0, 0.7, 1.0], [1.3, 0.7, 1.3], [1.03] * 5])
def test_outliers_alone_and_what_the_target_allows_quarantine_nobody(unit: Unit, readings: list[float]) -> None:
    unit.live([1.0] * NEEDED)
    for reference_ms in readings:
        unit.measure(reference_ms)
    assert unit.quarantine is None


def test_a_unit_that_scatters_is_held_against_its_own_spread(unit: Unit) -> None:
    random = Random(0)
    unit.live([1 + random.uniform(0, 0.2) for _ in range(2 * NEEDED)])
    for _ in range(IN_A_ROW):
        unit.measure(1.25)
    assert unit.quarantine is None
    for _ in range(IN_A_ROW):
        unit.measure(2.0)
    assert unit.quarantine is not None


def test_what_a_unit_measures_becomes_its_history_once_in_ten_minutes(unit: Unit, database: Database) -> None:
    for reference_ms in (1.0, 2.0, 3.0, 4.0):
        unit.measure(reference_ms)
        unit.clock.advance(SLOT.total_seconds() / 2)
    with database.reading() as session:
        rows = session.query(ReferenceReadingRow).order_by(ReferenceReadingRow.slot_at)
        assert [(row.slot_at - START, row.reference_ms) for row in rows] == [(SLOT * 0, 1.0), (SLOT, 3.0)]


def test_a_unit_with_little_history_is_not_quarantined(unit: Unit) -> None:
    """Little: fewer than NEEDED readings that are ten minutes apart and an hour old, however many measurements."""
    unit.live([1.0] * (NEEDED - 1))
    for reference_ms in [1.0] * 5 + [2.0] * 5:
        unit.measure(reference_ms)
    assert unit.quarantine is None


def test_a_slow_change_within_an_hour_does_not_become_the_measure_of_itself(unit: Unit) -> None:
    unit.live([1.0] * NEEDED)
    for step in range(6):
        unit.measure(1 + 0.02 * step)  # 4 % after twenty minutes; three more are needed to be sure
        unit.clock.advance(SLOT.total_seconds())
    assert unit.quarantine is not None


def test_a_unit_in_quarantine_gets_no_jobs_and_the_rest_of_its_lease_goes_back(unit: Unit, operator: Make) -> None:
    unit.live([1.0] * NEEDED)
    for _ in range(IN_A_ROW - 1):
        unit.measure(1.2)
    operators = [operator(height=100 + n) for n in range(3)]
    unit.ask(*operators, queue_missing=True)
    lease = unit.leased()
    assert unit.accept(lease, result(lease, unit._made, reference_ms=1.2)) == 0
    assert [entry.status for entry in unit.ask(*operators)][1:] == [LatencyStatus.QUEUED] * 2
    with pytest.raises(StaleLease):
        unit.accept(lease, result(lease, unit._made, job=1, reference_ms=1.2))
    assert unit.lease() is None


def test_what_was_measured_while_it_drifted_is_kept_and_is_missing_again(unit: Unit, database: Database) -> None:
    unit.live([1.0] * NEEDED)
    good = unit.measure(1.0)
    drifted = [unit.measure(1.2) for _ in range(IN_A_ROW)]
    assert [entry.status for entry in unit.ask(good, *drifted)] == [LatencyStatus.MEASURED] + [
        LatencyStatus.MISSING
    ] * IN_A_ROW
    with database.writing() as session:
        model, protocol = devices.resolve(session, "Pixel 3", protocol_id=None)
        table = tables.publish(session, device_model=model, protocol=protocol, now=unit.clock())
        assert good.id in table.by_subject
        assert not {one.id for one in drifted} & set(table.by_subject)
        made = session.query(MeasurementRow).where(MeasurementRow.drifted).all()
        assert {row.subject_id for row in made} == {one.id for one in drifted}
        assert latencies.measurement(session, made[0].id).subject_id == made[0].subject_id
    unit.check(1.0)
    unit.ask(*drifted, queue_missing=True)
    lease = unit.leased()
    unit.accept(lease, *(result(lease, unit._made, job=n) for n in range(IN_A_ROW)))
    assert all(entry.status == LatencyStatus.MEASURED for entry in unit.ask(*drifted))


def quarantined(unit: Unit) -> Unit:
    unit.live([1.0] * NEEDED)
    for _ in range(IN_A_ROW):
        unit.measure(1.2)
    return unit


def test_a_check_is_due_after_a_minute_and_ends_the_quarantine_when_it_is_as_usual(unit: Unit) -> None:
    quarantined(unit)
    assert not unit.check_is_due()
    unit.clock.advance(SETTINGS.check_backoff_s)
    assert unit.check_is_due()
    unit.check(1.03)
    assert unit.quarantine is None
    assert not unit.check_is_due()
    unit.measure(1.0)


def test_the_next_check_waits_twice_as_long_up_to_an_hour_and_the_reason_follows(unit: Unit) -> None:
    quarantined(unit)
    waits = []
    for _ in range(8):
        unit.check(1.1)
        waits.append((unit.held.check_at - unit.clock()).total_seconds())
    assert waits == [120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert unit.held.failed_checks == 8
    assert unit.held.reason.startswith("reference operator 10.0 % slower")


def test_a_check_of_fewer_rounds_than_a_measurement_is_refused(unit: Unit) -> None:
    """The smallest of fewer readings is larger by chance."""
    with pytest.raises(WrongMeasurement, match="A check has at least 6 rounds under this protocol, not 5"):
        quarantined(unit).check(1.0, rounds=5)


def test_a_device_that_rests_after_a_fault_is_not_checked(unit: Unit) -> None:
    quarantined(unit)
    unit.clock.advance(SETTINGS.check_backoff_s)
    with unit.database.writing() as session:
        row = session.get_one(DeviceRow, "A1")
        devices.open_breaker(row, fault="51 °C", settings=SETTINGS, random=Random(0), now=unit.clock())
    assert not unit.check_is_due()


def test_a_unit_that_has_changed_for_good_begins_its_history_anew(unit: Unit) -> None:
    """What counts is what it measured since it changed: no table holds numbers of two devices."""

    def known() -> list[LatencyStatus]:
        return [entry.status for entry in unit.ask(before, *since)]

    before = unit.measure(1.0)
    unit.live([1.0] * NEEDED)
    since = [unit.measure(1.1) for _ in range(IN_A_ROW)]
    assert unit.quarantine is not None
    assert known() == [LatencyStatus.MEASURED, *[LatencyStatus.MISSING] * IN_A_ROW]
    with unit.database.writing() as session:
        assert drift.release(session, session.get_one(DeviceRow, "A1")) == 1
    assert known() == [LatencyStatus.MISSING, *[LatencyStatus.MEASURED] * IN_A_ROW]
    for _ in range(2 * IN_A_ROW):
        unit.measure(1.2)
    assert unit.quarantine is None


def test_another_runtime_has_a_history_of_its_own(unit: Unit, report: Callable[..., DeviceReport]) -> None:
    quarantined(unit)
    for version, is_held in (("2.3.0", True), ("2.4.0", False)):
        newer = Protocol(runtime="litert", runtime_version=version)
        with unit.database.writing() as session:
            devices.report(session, report(protocol=newer), now=unit.clock())
        assert (unit.quarantine is not None) == is_held


def test_readings_older_than_thirty_days_are_dropped(unit: Unit, database: Database) -> None:
    unit.live([1.0] * NEEDED)
    unit.clock.advance(timedelta(days=30).total_seconds())
    unit.measure(1.5)
    with database.reading() as session:
        assert [row.reference_ms for row in session.query(ReferenceReadingRow)] == [1.5]


def test_an_agent_need_not_ask_while_its_device_is_in_quarantine(unit: Unit) -> None:
    quarantined(unit)
    with unit.database.reading() as session:
        row = session.get_one(DeviceRow, "A1")
        assert devices.rest_s(row, settings=Settings(alive_s=600.0), now=unit.clock()) == 60
        assert devices.rest_s(row, settings=SETTINGS, now=unit.clock()) == 40  # or it would count as gone


def test_whoever_waits_is_told_why_nobody_measures(unit: Unit, report: Callable[..., DeviceReport]) -> None:
    def said() -> str | None:
        with unit.database.reading() as session:
            protocol_id = report().protocol.id
            units = devices.at_work(
                session, device_model="Pixel 3", protocol_id=protocol_id, settings=SETTINGS, now=unit.clock()
            )
            assert units.alive
            return units.standstill

    assert said() is None
    quarantined(unit)
    assert said() == f"A1 is in quarantine: {unit.held.reason}"
    with unit.database.writing() as session:
        devices.report(session, report(serial="A2"), now=unit.clock())
    assert said() is None  # another unit measures
    with unit.database.writing() as session:
        other = session.get_one(DeviceRow, "A2")
        devices.open_breaker(other, fault="51 °C", settings=SETTINGS, random=Random(0), now=unit.clock())
    assert "; A2 rests for 5 s after a fault: 51 °C" in (said() or "")


def test_status_and_metrics_show_a_quarantine(unit: Unit) -> None:
    metrics = Metrics()
    metrics.read(unit.database, settings=SETTINGS, clock=unit.clock)
    figure = 'padnas_device_quarantined{device_model="Pixel 3",serial="A1"}'
    assert f"{figure} 0.0" in metrics.page().decode()
    quarantined(unit)
    unit.check(1.2)
    assert f"{figure} 1.0" in metrics.page().decode()
    with unit.database.reading() as session:
        now = status(session, database="sqlite:///padnas.db", settings=SETTINGS, now=unit.clock())
    assert now.attention == (f"Pixel 3 A1 is in quarantine: {unit.held.reason}",)
    assert "  Pixel 3  A1  in quarantine, checked in vain 1 time; 3 measurements, " in text_of(now)


def test_a_unit_is_released_by_hand(unit: Unit, database_url: str) -> None:
    quarantined(unit)
    release = ["device", "release", "--database-url", database_url]
    unknown = CliRunner().invoke(app, [*release, "A9"])
    assert (unknown.exit_code, unit.quarantine is None) == (1, False)
    assert "No unit with serial 'A9' has reported" in unknown.stderr
    result = CliRunner().invoke(app, [*release, "A1"])
    assert (result.exit_code, unit.quarantine) == (0, None)
    assert result.stdout == (
        "A1 measures again, and its history begins anew. Of its measurements 0 are older than the change and count no"
        " more; whoever asks for those operators has them measured again\n"
    )


def test_a_unit_that_is_in_no_quarantine_keeps_its_history_when_it_is_released(unit: Unit, database_url: str) -> None:
    unit.live([1.0] * NEEDED)
    result = CliRunner().invoke(app, ["device", "release", "--database-url", database_url, "A1"])
    assert (result.exit_code, result.stdout) == (0, "A1 is not in quarantine; nothing has changed\n")
    with unit.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(ReferenceReadingRow)) == NEEDED


def test_a_unit_is_shown_with_its_quarantine(unit: Unit) -> None:
    quarantined(unit)
    with unit.database.reading() as session:
        shown: Device = devices.shown(session.get_one(DeviceRow, "A1"), settings=SETTINGS, now=unit.clock())
    assert shown.quarantine == unit.held
    assert shown.quarantine is not None
    assert shown.quarantine.since >= START

"""Drift between measurements: a unit that no longer reads of the reference operator what it used to is quarantined.

Of each unit one reading in ten minutes is kept as its history; the newest measurements are held against it. A unit in
quarantine gets no jobs. Its agent measures the reference operator alone, at growing intervals, until that is as usual
again, or an admin says that it has changed for good (docs/decisions/0023).
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import takewhile
from typing import Any, NamedTuple

from sqlalchemy import Integer, Select, and_, bindparam, delete, func, select, update
from sqlalchemy.orm import Session

from latency_contract.canonical import canonical_json
from latency_contract.devices import Quarantine
from latency_contract.fences import Fences, fences, tolerance_of
from latency_contract.jobs import DeviceCheck
from latency_contract.measurements import Round
from latency_contract.protocols import Protocol
from latency_service import conversion_queue, devices, queue, units
from latency_service.errors import WrongMeasurement
from latency_service.models import DeviceRow, MeasurementRow, ReferenceReadingRow
from latency_service.settings import Settings
from latency_service.subjects import insert_if_absent, load_protocol

SLOT = timedelta(minutes=10)  # the first reading in each is kept, so that a busy hour weighs no more than a quiet one
HISTORY = timedelta(days=30)  # older readings are those of a younger battery, and are dropped
RECENT = timedelta(hours=1)  # no history yet: what changes over some minutes must not become the measure of itself
NEEDED = 12  # readings, so two hours of measuring at least; with fewer nobody knows what is usual
IN_A_ROW = 3  # measurements outside on the same side; one alone may have met a burst of load
NOT_IN_SESSION = {"synchronize_session": False}  # rows that are changed where they are
LOOKED_BACK = 100  # newest measurements, to find the first that is outside


class _Made(NamedTuple):
    """A measurement, as far as it is looked at here."""

    id: int
    reference_ms: float
    measured_at: datetime


class Drift(NamedTuple):
    """What speaks for a quarantine."""

    quarantine: Quarantine
    measurement_ids: tuple[int, ...]  # made since the unit changed


def watch(
    session: Session, device: DeviceRow, *, protocol: Protocol, settings: Settings, now: datetime
) -> Drift | None:
    """Hold a unit's newest stored measurements against its history, which the last of them becomes part of.

    None where one of the IN_A_ROW newest is as usual, or one is slower and one faster than that, or where the unit has
    fewer than NEEDED readings. A lone outlier does nothing but widen the fences a little.
    """
    newest = _newest(session, device, protocol_id=protocol.id, count=IN_A_ROW)
    if newest:
        keep(session, device, protocol_id=protocol.id, reference_ms=newest[0].reference_ms, now=now)
    usual = _usual(session, device, protocol=protocol, now=now)
    sides = {usual.outside(reading.reference_ms) for reading in newest} if usual is not None else set()
    if usual is None or len(newest) < IN_A_ROW or len(sides) > 1 or sides == {0}:
        return None
    looked_back = _newest(session, device, protocol_id=protocol.id, count=LOOKED_BACK)
    in_a_row = list(takewhile(lambda reading: {usual.outside(reading.reference_ms)} == sides, looked_back))
    since = in_a_row[-1].measured_at
    quarantine = Quarantine(
        protocol_id=protocol.id,
        reason=_sentence(device.serial, newest[0].reference_ms, usual.middle, since=since),
        since=since,
        imposed_at=now,
        low_ms=usual.low,
        usual_ms=usual.middle,
        high_ms=usual.high,
        check_at=now + timedelta(seconds=settings.check_backoff_s),
    )
    return Drift(quarantine, tuple(reading.id for reading in in_a_row))


def impose(session: Session, device: DeviceRow, drift: Drift) -> None:
    """No more jobs for a unit. What it measured since it changed is kept, and counts no more: it is missing again."""
    device.quarantine = canonical_json(drift.quarantine)
    made = update(MeasurementRow).where(MeasurementRow.id.in_(drift.measurement_ids))
    session.execute(made.values(drifted=True), execution_options=NOT_IN_SESSION)
    session.execute(
        delete(ReferenceReadingRow).where(
            ReferenceReadingRow.device_serial == device.serial,
            ReferenceReadingRow.protocol_id == drift.quarantine.protocol_id,
            ReferenceReadingRow.slot_at > drift.quarantine.since - SLOT,
        )
    )


def keep(session: Session, device: DeviceRow, *, protocol_id: str, reference_ms: float, now: datetime) -> None:
    """The first reading of a slot is kept; where there is a new one, what is too old goes."""
    begun = datetime.fromtimestamp(now.timestamp() // SLOT.total_seconds() * SLOT.total_seconds(), UTC)
    kept = session.execute(
        insert_if_absent(session, ReferenceReadingRow)
        .values(device_serial=device.serial, protocol_id=protocol_id, slot_at=begun, reference_ms=reference_ms)
        .on_conflict_do_nothing()
        .returning(ReferenceReadingRow.slot_at)
    ).first()
    if kept is not None:
        session.execute(
            delete(ReferenceReadingRow).where(
                ReferenceReadingRow.device_serial == device.serial,
                ReferenceReadingRow.protocol_id == protocol_id,
                ReferenceReadingRow.slot_at <= now - HISTORY,
            )
        )


def check_due(session: Session, device: DeviceRow, *, now: datetime) -> DeviceCheck | None:
    """What an agent is to measure in the place of jobs. Its device may have to rest first."""
    quarantine = devices.quarantine_of(device)
    if quarantine is None or now < quarantine.check_at or devices.at_rest(device, now):
        return None
    protocol, sha256 = conversion_queue.with_reference(session, device.protocol_id)
    if sha256 is None:
        return None
    return DeviceCheck(protocol=protocol, reference_sha256=sha256, reason=quarantine.reason)


def take_check(
    session: Session, device: DeviceRow, rounds: Sequence[Round], *, settings: Settings, now: datetime
) -> None:
    """A check that is passed ends the quarantine; one that is not puts the next one off, twice as long as before.

    Raises:
        WrongMeasurement: it has fewer rounds than a measurement, whose smallest reading would be larger by chance.
    """
    device.last_seen_at = now
    quarantine = devices.quarantine_of(device)
    if quarantine is None:
        return
    needed = load_protocol(session, quarantine.protocol_id).stopping.min_rounds
    if len(rounds) < needed:
        raise WrongMeasurement(f"A check has at least {needed} rounds under this protocol, not {len(rounds)}.")
    reference_ms = units.reference_floor_ms(rounds)
    if not Fences(quarantine.low_ms, quarantine.usual_ms, quarantine.high_ms).outside(reference_ms):
        device.quarantine = None
        return
    failed = quarantine.failed_checks + 1
    wait_s = min(settings.check_backoff_s * 2.0 ** min(failed, 30), settings.check_backoff_max_s)
    device.quarantine = canonical_json(
        Quarantine.model_validate(
            dict(quarantine)
            | {
                "failed_checks": failed,
                "check_at": now + timedelta(seconds=wait_s),
                "reason": _sentence(device.serial, reference_ms, quarantine.usual_ms, since=quarantine.since),
            }
        )
    )


def release(session: Session, device: DeviceRow) -> int | None:
    """Somebody says that the unit has changed for good: what it reads since then is usual.

    So what it measured since then counts again, and what it measured before does not: one table must not hold numbers
    of two devices. Returns how many were measured before; None where it is not in quarantine.
    """
    quarantine = devices.quarantine_of(device)
    if quarantine is None:
        return None
    device.quarantine = None
    of_unit = (MeasurementRow.device_serial == device.serial, MeasurementRow.protocol_id == quarantine.protocol_id)
    before = MeasurementRow.measured_at < quarantine.since
    session.execute(update(MeasurementRow).where(*of_unit).values(drifted=before), execution_options=NOT_IN_SESSION)
    session.execute(
        delete(ReferenceReadingRow).where(
            ReferenceReadingRow.device_serial == device.serial,
            ReferenceReadingRow.protocol_id == quarantine.protocol_id,
        )
    )
    return session.scalar(select(func.count()).select_from(MeasurementRow).where(*of_unit, before)) or 0


def _usual(session: Session, device: DeviceRow, *, protocol: Protocol, now: datetime) -> Fences | None:
    """None where there is too little history."""
    asked = {"serial": device.serial, "protocol": protocol.id, "since": now - HISTORY, "until": now - RECENT}
    history = session.execute(_history(), asked).scalars().all()
    return fences(history, tolerance=tolerance_of(protocol.stopping.target)) if len(history) >= NEEDED else None


def _newest(session: Session, device: DeviceRow, *, protocol_id: str, count: int) -> list[_Made]:
    """Measurements of a unit that count, the newest first."""
    asked = {"model": device.model, "protocol": protocol_id, "serial": device.serial, "most": count}
    rows = session.execute(_newest_of_unit(), asked)
    return [_Made(*row) for row in rows]


@cache
def _history() -> Select[float]:
    readings = ReferenceReadingRow.metadata.tables[ReferenceReadingRow.__tablename__].c
    return select(readings.reference_ms).where(
        readings.device_serial == bindparam("serial"),
        readings.protocol_id == bindparam("protocol"),
        readings.slot_at > bindparam("since"),
        readings.slot_at <= bindparam("until"),
    )


@cache
def _newest_of_unit() -> Select[*tuple[Any, ...]]:
    made = MeasurementRow.metadata.tables[MeasurementRow.__tablename__].c
    counts = and_(queue.of_table(made), made.device_serial == bindparam("serial"), made.drifted.is_(False))
    columns = [made[name] for name in _Made._fields]
    return select(*columns).where(counts).order_by(made.id.desc()).limit(bindparam("most", type_=Integer))


def _sentence(serial: str, reference_ms: float, usual_ms: float, *, since: datetime) -> str:
    apart_pct = 100 * (reference_ms / usual_ms - 1)
    how, causes = (
        ("slower", "is it hot, on battery, or is something else running?")
        if apart_pct > 0
        else ("faster", "was its governor, its frequency cap or its system changed?")
    )
    return (
        f"reference operator {abs(apart_pct):.1f} % {how} than in the last {HISTORY.days} days"
        f" since {since:%Y-%m-%d %H:%M} UTC: {causes} Look with `padnas-agent doctor`; it is released when a check is"
        f" as usual again, or, if it is to stay so, by `padnas-service device release {serial}`"
    )

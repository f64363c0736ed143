"""Devices: who reported them, which are at work, and the circuit breaker that lets a faulty one rest."""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from random import Random
from typing import Any, NamedTuple

from sqlalchemy import BindParameter, ColumnElement, Select, Update, bindparam, func, or_, select, update
from sqlalchemy.orm import Session

from latency_contract.canonical import canonical_json
from latency_contract.devices import Device, DeviceReport, Quarantine
from latency_contract.measurements import Verdict
from latency_contract.protocols import Protocol
from latency_service import conversion_queue, queue
from latency_service.errors import UnknownDevice
from latency_service.models import DeviceRow, ProtocolRow, UtcDateTime
from latency_service.settings import Settings
from latency_service.subjects import insert_if_absent, load_protocol, read_protocol, store_protocol

DEVICES = DeviceRow.metadata.tables[DeviceRow.__tablename__]  # without the session's bookkeeping


def report(session: Session, description: DeviceReport, *, now: datetime) -> DeviceRow:
    """An agent that starts says which unit it drives, and what that unit measures under."""
    protocol = description.protocol
    store_protocol(session, protocol)
    conversion_queue.request(session, [protocol.reference.id], precision=protocol.precision, now=now)
    queue.expire_leases_of(session, description.serial, now=now)
    said = {
        "model": description.model,
        "protocol_id": protocol.id,
        "document": canonical_json(description),
        "last_seen_at": now,
    }
    session.execute(
        insert_if_absent(session, DeviceRow)
        .values(serial=description.serial, faults=0, **said)
        .on_conflict_do_update(index_elements=[DeviceRow.serial], set_=said)
    )
    row = session.get_one(DeviceRow, description.serial, populate_existing=True)
    if (held := quarantine_of(row)) is not None and held.protocol_id != protocol.id:
        row.quarantine = None  # another runtime takes other times, and has a history of its own
    return row


def take_fault(row: DeviceRow, *, fault: str, settings: Settings, random: Random, now: datetime) -> None:
    """An agent without a lease says that it cannot use its unit. Jobs are not concerned."""
    row.last_seen_at = now
    open_breaker(row, fault=fault, settings=settings, random=random, now=now)


def known(session: Session, serial: str, *, lock: bool = False) -> DeviceRow:
    """`lock`: nobody else changes it until this session ends. Raises UnknownDevice for a unit that never reported."""
    row = session.get(DeviceRow, serial, with_for_update=lock)
    if row is None:
        raise UnknownDevice(f"No unit with serial '{serial}' has reported. Send PUT /v1/devices/{serial} first.")
    return row


def everyone(session: Session) -> Sequence[DeviceRow]:
    """Every unit that has ever reported, the one seen last first."""
    return session.scalars(select(DeviceRow).order_by(DeviceRow.last_seen_at.desc())).all()


def resolve(session: Session, name: str, *, protocol_id: str | None) -> tuple[str, Protocol]:
    """Device model and protocol that a person means by a model's or a unit's name.

    The protocol is the one asked for, else the one of the unit that was seen last.

    Raises:
        UnknownDevice: no unit of that name has ever reported.
        UnknownProtocol: no unit has ever measured under that protocol.
    """
    for meant in () if "\0" in name else (_named(), _named_in_any_case()):  # PostgreSQL knows no such text
        if found := session.execute(meant, {"name": name, "in_small": name.lower()}).first():
            if protocol_id is None or protocol_id == found.protocol_id:
                return found.model, read_protocol(found.document)
            return found.model, load_protocol(session, protocol_id)
    models = session.scalars(select(DeviceRow.model).distinct().order_by(DeviceRow.model)).all()
    raise UnknownDevice(
        f"There is no device '{name}'. "
        + (
            f"Known device models: {', '.join(models)}."
            if models
            else "No agent has reported one; start `padnas-agent run`."
        )
    )


@cache
def _named() -> Select[*tuple[Any, ...]]:
    name: BindParameter[str] = bindparam("name")
    return _seen_last().where(or_(DEVICES.c.model == name, DEVICES.c.serial == name))


@cache
def _named_in_any_case() -> Select[*tuple[Any, ...]]:
    return _seen_last().where(func.lower(DEVICES.c.model) == bindparam("in_small"))


def _seen_last() -> Select[*tuple[Any, ...]]:
    protocols = ProtocolRow.metadata.tables[ProtocolRow.__tablename__]
    unit = select(DEVICES.c.model, DEVICES.c.protocol_id, protocols.c.document).join_from(DEVICES, protocols)
    return unit.order_by(DEVICES.c.last_seen_at.desc()).limit(1)


class AtWork(NamedTuple):
    """Of the units of one table."""

    alive: bool  # the agent of any
    standstill: str | None  # where one is: why none of them measures


def at_work(session: Session, *, device_model: str, protocol_id: str, settings: Settings, now: datetime) -> AtWork:
    asked = {"model": device_model, "protocol": protocol_id, "since": _alive_since(settings, now), "moment": now}
    if session.scalar(_measuring(), asked) is not None:
        return AtWork(alive=True, standstill=None)
    rows = session.scalars(select(DeviceRow).where(*_alive_of_table()).order_by(DeviceRow.serial), asked).all()
    return AtWork(alive=bool(rows), standstill="; ".join(_why_idle(row, now) for row in rows) or None)


def _why_idle(row: DeviceRow, now: datetime) -> str:
    if (held := quarantine_of(row)) is not None:
        return f"{row.serial} is in quarantine: {held.reason}"
    assert row.blocked_until is not None, "it measures"
    seconds = math.ceil((row.blocked_until - now).total_seconds())
    return f"{row.serial} rests for {seconds} s after a fault: {row.last_fault}"


@cache
def _measuring() -> Select[str]:
    rested = or_(DeviceRow.blocked_until.is_(None), DeviceRow.blocked_until <= bindparam("moment", type_=UtcDateTime()))
    return select(DeviceRow.serial).where(*_alive_of_table(), DeviceRow.quarantine.is_(None), rested).limit(1)


@cache
def _how_many_are_alive() -> Select[int]:
    return select(func.count()).select_from(DeviceRow).where(_alive())


def _alive_of_table() -> tuple[ColumnElement[bool], ...]:
    return DeviceRow.model == bindparam("model"), DeviceRow.protocol_id == bindparam("protocol"), _alive()


def _alive() -> ColumnElement[bool]:
    """Units whose agents speak."""
    return DeviceRow.last_seen_at >= bindparam("since", type_=UtcDateTime())


def _alive_since(settings: Settings, now: datetime) -> datetime:
    return now - timedelta(seconds=settings.alive_s)


def note_seen(session: Session, serial: str, *, now: datetime) -> None:
    """An agent has asked for work."""
    session.execute(_seen(), {"unit": serial, "moment": now})


def idle_wait_s(session: Session, *, settings: Settings, random: Random, now: datetime) -> int:
    """How long an agent without work waits: a thousand wait longer than one, and not all equally long.

    The mean grows with the number of agents at work, to a third of `alive_s`: an answer may be lost before an agent
    counts as gone. Drawn between half of the mean and one and a half times of it.
    """
    alive = session.scalar(_how_many_are_alive(), {"since": _alive_since(settings, now)}) or 0
    mean_s = max(settings.idle_poll_s, alive / settings.idle_polls_per_s)
    mean_s = min(mean_s, max(settings.idle_poll_s, settings.alive_s / 3))
    return random.randint(math.ceil(mean_s / 2), math.floor(mean_s * 3 / 2))


def open_breaker(row: DeviceRow, *, fault: str, settings: Settings, random: Random, now: datetime) -> None:
    """After the n-th fault in a row a device rests, between half and the whole of

        c(n) = min(fault_backoff_s * 2^(n-1), fault_backoff_max_s)

    drawn evenly: 2.5 to 5 s, 5 to 10 s, 10 to 20 s, and from the ninth fault on 7.5 to 15 minutes. Twenty phones on
    a hub that lost its power come back one by one, not in one moment. A fault that is told while the device rests is
    taken for the same one told again, as after an answer that was lost: it neither counts nor prolongs the rest.
    """
    row.last_fault = fault
    if at_rest(row, now):
        return
    row.faults += 1
    longest_s = min(settings.fault_backoff_s * 2.0 ** min(row.faults - 1, 30), settings.fault_backoff_max_s)
    row.blocked_until = now + timedelta(seconds=longest_s * random.uniform(0.5, 1.0))


def rest_s(row: DeviceRow, *, settings: Settings, now: datetime) -> int:
    """For how long an agent need not ask because its device rests or is in quarantine; 0 where it is neither.

    What is left of it, in whole seconds upwards, but at most a third of `alive_s`: two questions may be lost before the
    agent counts as gone.
    """
    held = quarantine_of(row)
    ends = (row.blocked_until or now, now if held is None else held.check_at)
    return math.ceil(min(max((max(ends) - now).total_seconds(), 0), settings.alive_s / 3))


def quarantine_of(row: DeviceRow) -> Quarantine | None:
    return None if row.quarantine is None else Quarantine.model_validate_json(row.quarantine)


def at_rest(row: DeviceRow, now: datetime) -> bool:
    return row.blocked_until is not None and row.blocked_until > now


def note_measured(
    session: Session, serial: str, verdicts: Sequence[Verdict], *, temperature_c: float | None, now: datetime
) -> None:
    """More accepted measurements, which left the device so warm. The database adds: two reports at once are two.

    A device that delivers is well again: its breaker closes. Its last fault stays on record.
    """
    more = {"steady": verdicts.count(Verdict.STEADY), "unsteady": verdicts.count(Verdict.UNSTEADY)}
    session.execute(_measured(), {"unit": serial, "moment": now, "degrees": temperature_c, **more})


@cache
def _seen() -> Update:
    return update(DEVICES).where(DEVICES.c.serial == bindparam("unit")).values(last_seen_at=bindparam("moment"))


@cache
def _measured() -> Update:
    return (
        update(DEVICES)
        .where(DEVICES.c.serial == bindparam("unit"))
        .values(
            measured_steady=DEVICES.c.measured_steady + bindparam("steady"),
            measured_unsteady=DEVICES.c.measured_unsteady + bindparam("unsteady"),
            last_measured_at=bindparam("moment"),
            last_temperature_c=bindparam("degrees"),
            last_seen_at=bindparam("moment"),
            faults=0,
            blocked_until=None,
        )
    )


def shown(row: DeviceRow, *, settings: Settings, now: datetime) -> Device:
    description = DeviceReport.model_validate_json(row.document)
    return Device(
        **dict(description),
        alive=row.last_seen_at >= _alive_since(settings, now),
        last_seen_at=row.last_seen_at,
        faults=row.faults,
        last_fault=row.last_fault,
        blocked_until=row.blocked_until if at_rest(row, now) else None,
        quarantine=quarantine_of(row),
    )

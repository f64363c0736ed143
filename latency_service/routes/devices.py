"""Devices: those that have reported, and the report itself."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query

from latency_contract.devices import Device, DeviceFaultReport, DeviceReport, Serial, UnitComparison
from latency_contract.jobs import CheckReport
from latency_contract.protocols import Protocol
from latency_service import devices, drift, units
from latency_service.errors import UnknownDevice
from latency_service.routes.access import GuardedRoute
from latency_service.routes.dependencies import Reading, Service, Writing, refusals

router = APIRouter(route_class=GuardedRoute, prefix="/v1/devices", tags=["devices"])

REPORT_EXAMPLE = DeviceReport(
    serial="89AX0KCQ1",
    model="Pixel 3",
    kind="android",
    soc="Snapdragon 845",
    os_build="google/blueline/blueline:12",
    protocol=Protocol(runtime="litert", runtime_version="2.3.0"),
).model_dump(mode="json")

CHECK_EXAMPLE = {
    "rounds": 6
    * [
        {
            "started_at": "2026-01-01T00:00:00Z",
            "samples_ms": [0.21],
            "summary_of": 100,
            "reference_before_ms": 0.21,
            "reference_after_ms": 0.21,
        }
    ]
}


@router.get("", responses=refusals())
def all_devices(session: Reading, service: Service) -> list[Device]:
    """Every unit that has ever reported, the one seen last first."""
    now = service.clock()
    return [devices.shown(row, settings=service.settings, now=now) for row in devices.everyone(session)]


@router.get("/{serial}", responses=refusals(404))
def one_device(serial: Annotated[Serial, Path(examples=["89AX0KCQ1"])], session: Reading, service: Service) -> Device:
    """One unit by its serial."""
    return devices.shown(devices.known(session, serial), settings=service.settings, now=service.clock())


@router.put("/{serial}", responses=refusals(404))
def report_device(
    serial: Annotated[Serial, Path(examples=["89AX0KCQ1"])],
    report: Annotated[DeviceReport, Body(examples=[REPORT_EXAMPLE])],
    session: Writing,
    service: Service,
) -> Device:
    """An agent says which unit it drives and what it measures under. Say it again after every start."""
    if serial != report.serial:
        raise UnknownDevice(
            f"The address names unit '{serial}', the report unit '{report.serial}'; use the same for both."
        )
    row = devices.report(session, report, now=service.clock())
    if service.converter is not None:
        service.converter.wake()
    return devices.shown(row, settings=service.settings, now=service.clock())


@router.post("/{serial}/faults", responses=refusals(404))
def report_fault(
    serial: Annotated[Serial, Path(examples=["89AX0KCQ1"])],
    report: Annotated[DeviceFaultReport, Body(examples=[{"fault": "the phone is unauthorized"}])],
    session: Writing,
    service: Service,
) -> Device:
    """An agent that holds no lease cannot reach or use its unit. The answer's `blocked_until` says until when it rests.

    Jobs are not concerned: a fault under a lease is said when the lease is given back. Said again during the rest, it
    changes nothing but `last_fault`.
    """
    row, now = devices.known(session, serial, lock=True), service.clock()
    devices.take_fault(row, fault=report.fault, settings=service.settings, random=service.random, now=now)
    return devices.shown(row, settings=service.settings, now=now)


@router.post("/{serial}/checks", responses=refusals(404, 409))
def report_check(
    serial: Annotated[Serial, Path(examples=["89AX0KCQ1"])],
    report: Annotated[CheckReport, Body(examples=[CHECK_EXAMPLE])],
    session: Writing,
    service: Service,
) -> Device:
    """What a unit in quarantine reads of the reference operator. As usual: it is released. Else: the next check."""
    row, now = devices.known(session, serial, lock=True), service.clock()
    drift.take_check(session, row, report.rounds, settings=service.settings, now=now)
    return devices.shown(row, settings=service.settings, now=now)


@router.delete("/{serial}/quarantine", responses=refusals(404))
def release_device(
    serial: Annotated[Serial, Path(examples=["89AX0KCQ1"])], session: Writing, service: Service
) -> Device:
    """The unit has changed for good: it measures again, a new history begins, and older numbers of it count no more.

    Where it is not in quarantine, nothing changes.
    """
    row = devices.known(session, serial, lock=True)
    drift.release(session, row)
    return devices.shown(row, settings=service.settings, now=service.clock())


@router.get("/{device:path}/units", responses=refusals(404))
def compare_units(
    device: Annotated[str, Path(examples=["Pixel 3"])],
    session: Reading,
    protocol_id: Annotated[str | None, Query(pattern=r"^[0-9a-f]{64}$")] = None,
) -> UnitComparison:
    """The units of one model side by side, by their readings of the reference operator, and which one is odd."""
    device_model, protocol = devices.resolve(session, device, protocol_id=protocol_id)
    return units.compare(session, device_model=device_model, protocol_id=protocol.id)

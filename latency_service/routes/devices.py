"""Devices: those that have reported, and the report itself."""

from typing import Annotated

from fastapi import APIRouter, Body, Path

from latency_contract.devices import Device, DeviceReport, Serial
from latency_contract.protocols import Protocol
from latency_service import devices
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
    service.converter.wake()
    return devices.shown(row, settings=service.settings, now=service.clock())

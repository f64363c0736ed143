"""Devices: what an agent says of the unit it drives, and what the service knows of it."""

from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, Field

from latency_contract.canonical import Contract
from latency_contract.protocols import Protocol

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w .,:;()+@#&/'-]+$")]


Serial = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w.:-]+$")]


class DeviceKind(StrEnum):
    LOCAL = "local"  # the machine that the agent runs on
    ANDROID = "android"  # a phone over ADB
    BOARD = "board"  # a Linux board over ADB


class DeviceReport(Contract):
    """One unit, as its agent describes it when it starts."""

    serial: Serial  # of this unit, for good
    model: Name  # units of one model share their tables
    kind: DeviceKind
    soc: Annotated[str, Field(max_length=200)]
    os_build: Annotated[str, Field(max_length=300)]
    protocol: Protocol  # what this unit measures under


class Device(DeviceReport):
    """One unit, as the service sees it."""

    alive: bool  # its agent spoke to the service within the last minute and a half
    last_seen_at: AwareDatetime
    faults: int  # of the device in a row, since the last accepted measurement
    last_fault: str | None
    blocked_until: AwareDatetime | None  # the circuit breaker: no lease before this time

"""Devices: what an agent says of the unit it drives, and what the service knows of it."""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, Field

from latency_contract.canonical import Contract, Sha256
from latency_contract.measurements import Milliseconds
from latency_contract.protocols import Protocol

MAX_REASON = 4000  # characters of a fault or failure; longer ones are cut by whoever reports them

# Output of a dying program may hold a NUL, which PostgreSQL does not store.
Reason = Annotated[
    str, Field(min_length=1, max_length=MAX_REASON), AfterValidator(lambda text: text.replace("\0", "\ufffd"))
]
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


class Quarantine(Contract):
    """A unit whose reference operator no longer takes as long as it used to: no jobs before a check is passed."""

    protocol_id: Sha256  # that it measured under
    reason: Reason  # a sentence: what was seen, and what to do
    since: AwareDatetime  # the first of the readings in a row that are outside
    imposed_at: AwareDatetime
    low_ms: Milliseconds  # a check is passed between these two
    usual_ms: Milliseconds  # median of its history
    high_ms: Milliseconds
    failed_checks: Annotated[int, Field(ge=0)] = 0
    check_at: AwareDatetime  # no check is due before


class Device(DeviceReport):
    """One unit, as the service sees it."""

    alive: bool  # its agent spoke to the service within the last two minutes
    last_seen_at: AwareDatetime
    faults: int  # of the device in a row, since the last accepted measurement
    last_fault: str | None
    blocked_until: AwareDatetime | None  # the circuit breaker: no lease before this time
    quarantine: Quarantine | None = None  # no jobs, but checks


class DeviceFaultReport(Contract):
    """An agent cannot reach or use its unit, and holds no lease that it could give back."""

    fault: Reason  # a sentence


class Unit(Contract):
    """One unit's speed, by its readings of the reference operator. What is not known yet is None."""

    serial: str
    measurements: int  # the newest ones, which this is drawn from
    reference_ms: Milliseconds  # median over measurements of the smallest reading
    low_ms: Milliseconds | None  # interval of that median; None: too few measurements to compare the unit by
    high_ms: Milliseconds | None
    relative: float | None  # to the median of the units compared; above 1 is slower
    odd: bool  # do not trust its numbers before the cause is known
    reason: str | None  # a sentence: why it is odd, or why that cannot be said


class UnitComparison(Contract):
    """The units of one device model that have measured under one protocol, side by side."""

    device_model: str
    protocol_id: Sha256
    units: tuple[Unit, ...]  # the fastest first
    spread_pct: float | None  # slowest minus fastest unit, of their median; None with fewer than two compared

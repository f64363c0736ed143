"""Units of one device model side by side: is one of them slower or faster than its like?

Every round of every measurement is framed by readings of the protocol's reference operator, on whatever subject; so
units are compared by what they have read anyway, and nothing is measured twice (docs/decisions/0014).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from latency_contract.devices import Unit, UnitComparison
from latency_contract.measurements import Round
from latency_service.models import MeasurementRow

COUNTED = 100  # newest measurements of each unit: how it is now, not how it was before its battery aged
CONFIDENCE = 0.95  # of the interval of a unit's reading
MIN_MEASUREMENTS = 6  # with five, smallest to largest hold the median with 1 - 2 / 2^5 = 93.75 % only
# Protocols ask for intervals within 2 % of the number by default, so that of two faithful numbers of one latency, the
# one may lie 4 % from the other. Units that differ by more than 5 % do not belong into one table.
ODD_LIMIT = 0.05


class Reading(NamedTuple):
    """A unit's reading of the reference operator, with its interval."""

    reference_ms: float
    low_ms: float
    high_ms: float


def reference_floor_ms(rounds: Sequence[Round]) -> float:
    """The smallest reading of the reference operator in the rounds that count; noise only ever adds time."""
    return min(min(r.reference_before_ms, r.reference_after_ms) for r in rounds)


def compare(session: Session, *, device_model: str, protocol_id: str) -> UnitComparison:
    """Every unit of a model that has measured under a protocol; what was measured as it drifted counts no more."""
    age = func.row_number().over(partition_by=MeasurementRow.device_serial, order_by=MeasurementRow.id.desc())
    newest = (
        select(MeasurementRow.device_serial, MeasurementRow.reference_ms, age.label("age"))
        .where(
            MeasurementRow.device_model == device_model,
            MeasurementRow.protocol_id == protocol_id,
            MeasurementRow.drifted.is_(False),
        )
        .subquery()
    )
    rows = session.execute(
        select(newest.c.device_serial, newest.c.reference_ms)
        .where(newest.c.age <= COUNTED)
        .order_by(newest.c.device_serial)
    )
    floors_ms = {serial: [row.reference_ms for row in of_unit] for serial, of_unit in groupby(rows, lambda row: row[0])}
    return comparison(floors_ms, device_model=device_model, protocol_id=protocol_id)


def comparison(floors_ms: Mapping[str, Sequence[float]], *, device_model: str, protocol_id: str) -> UnitComparison:
    """From the floors of each unit's measurements, by serial, to what is said of the units.

    A unit is compared from MIN_MEASUREMENTS on. Two are alike unless they differ by more than ODD_LIMIT and by more
    than their intervals explain. A unit is normal when it is alike with more than half of all, itself included; odd,
    where there are normal ones, is who is alike with none of them.

    Cases: of two units that differ none is normal, so none is odd; nor is any where two agree on one latency and two on
    another, or where all differ. Of three, the one that differs from the two that agree is odd.
    """
    readings = {serial: reading(floors) for serial, floors in floors_ms.items() if len(floors) >= MIN_MEASUREMENTS}
    normal = {
        serial: own
        for serial, own in readings.items()
        if 2 * sum(_alike(own, other) for other in readings.values()) > len(readings)
    }
    middle_ms = median(r.reference_ms for r in readings.values()) if readings else math.nan
    units = []
    for serial, floors in floors_ms.items():
        own = readings.get(serial)
        units.append(
            Unit(
                serial=serial,
                measurements=len(floors),
                reference_ms=median(floors),
                low_ms=None if own is None else own.low_ms,
                high_ms=None if own is None else own.high_ms,
                relative=None if own is None else own.reference_ms / middle_ms,
                odd=own is not None and _is_odd(own, normal),
                reason=_reason(own, normal, measurements=len(floors)),
            )
        )
    units.sort(key=lambda unit: (unit.reference_ms, unit.serial))
    levels_ms = [r.reference_ms for r in readings.values()]
    return UnitComparison(
        device_model=device_model,
        protocol_id=protocol_id,
        units=tuple(units),
        spread_pct=100 * (max(levels_ms) - min(levels_ms)) / middle_ms if len(levels_ms) > 1 else None,
    )


def reading(floors_ms: Sequence[float]) -> Reading:
    """Median of a unit's floors, and its interval from order statistics.

    Of n independent floors x_1 <= … <= x_n, the number below the true median is binomial (n, 1/2), whatever their
    distribution. With the largest k for which P(Bin(n, 1/2) < k) <= (1 - CONFIDENCE) / 2, the interval from x_k to
    x_(n+1-k) holds the median with at least that confidence (David and Nagaraja, "Order Statistics", 3rd edition 2003,
    section 7.1). Measurements of one lease share the moment, so where a unit changes from hour to hour the interval is
    too narrow until it has measured for hours; ODD_LIMIT is there for that too.

    Raises:
        ValueError: fewer than MIN_MEASUREMENTS floors, whose whole range is no such interval.
    """
    ordered = sorted(floors_ms)
    n = len(ordered)
    if n < MIN_MEASUREMENTS:
        raise ValueError(f"an interval needs at least {MIN_MEASUREMENTS} measurements, got {n}")
    k, below = 1, 1 / 2**n  # P(Bin(n, 1/2) < k)
    while below + math.comb(n, k) / 2**n <= (1 - CONFIDENCE) / 2:
        below += math.comb(n, k) / 2**n
        k += 1
    return Reading(median(ordered), ordered[k - 1], ordered[n - k])


def _alike(one: Reading, other: Reading) -> bool:
    fast, slow = sorted((one, other))
    return slow.reference_ms <= fast.reference_ms * (1 + ODD_LIMIT) or slow.low_ms <= fast.high_ms


def _is_odd(own: Reading, normal: Mapping[str, Reading]) -> bool:
    return bool(normal) and not any(_alike(own, other) for other in normal.values())


def _reason(own: Reading | None, normal: Mapping[str, Reading], *, measurements: int) -> str | None:
    if own is None:
        return f"It has {measurements} measurements so far; a unit is compared from {MIN_MEASUREMENTS} on."
    if not normal:
        return "The units differ, and no latency is that of more than half of them. Let another unit measure."
    if not _is_odd(own, normal):
        return None
    ratios = {serial: own.reference_ms / other.reference_ms for serial, other in normal.items()}
    nearest = min(ratios, key=lambda serial: abs(math.log(ratios[serial])))
    apart_pct = 100 * (ratios[nearest] - 1)
    return (
        f"It is {abs(apart_pct):.1f} % {'slower' if apart_pct > 0 else 'faster'} than {nearest}, the nearest of"
        f" {len(normal)} units that agree. Look at its temperature, battery, case and OS build."
    )

"""Units side by side: the rule on floors made by hand, and the reading of them from a real database."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_contract.devices import DeviceReport, Unit, UnitComparison
from latency_contract.jobs import JobState
from latency_contract.measurements import Measurement
from latency_contract.operators import IBConv
from latency_service import devices, units
from latency_service.database import Database
from latency_service.models import JobRow, MeasurementRow
from latency_service.subjects import store_subjects
from tests.conftest import Clock

Make = Callable[..., IBConv]
MakeMeasurement = Callable[..., Measurement]


def compared(**floors_ms: Sequence[float]) -> UnitComparison:
    return units.comparison(floors_ms, device_model="Pixel 3", protocol_id="0" * 64)


def near(level_ms: float, *, count: int = 20, scatter: float = 0.01) -> list[float]:
    """Floors scattered evenly around a level."""
    return [level_ms * (1 + scatter * (2 * n / (count - 1) - 1)) for n in range(count)]


def odd(comparison: UnitComparison) -> list[str]:
    return [unit.serial for unit in comparison.units if unit.odd]


def unit(comparison: UnitComparison, serial: str) -> Unit:
    (found,) = (unit for unit in comparison.units if unit.serial == serial)
    return found


def test_a_unit_is_compared_by_the_median_of_its_floors() -> None:
    fast, slow = compared(A=near(1.0), B=near(1.02)).units
    assert (fast.serial, fast.measurements) == ("A", 20)
    assert fast.reference_ms == pytest.approx(1.0)
    assert fast.relative == pytest.approx(1 / 1.01)
    assert slow.relative == pytest.approx(1.02 / 1.01)


def test_the_spread_is_from_fastest_to_slowest_of_their_median() -> None:
    assert compared(A=near(1.0), B=near(1.02), C=near(1.1)).spread_pct == pytest.approx(100 * 0.1 / 1.02)
    assert compared(A=near(1.0)).spread_pct is None
    assert compared().spread_pct is None


@pytest.mark.parametrize(
    ("levels_ms", "expected"),
    [
        ([1.0, 1.0, 1.2], ["C"]),
        ([1.2, 1.2, 1.0], ["C"]),  # faster than its like is odd too
        ([1.0, 1.01, 1.02, 1.3], ["D"]),
        ([1.0, 1.0, 1.0, 1.2, 1.3], ["D", "E"]),
        ([1.0, 1.0, 1.04], []),  # within the limit
        ([1.0, 1.04, 1.08], []),  # both ends agree with the middle
        ([1.0, 1.2], []),  # which of the two?
        ([1.0, 1.0, 1.2, 1.2], []),  # which two of the four?
        ([1.0, 1.2, 1.4], []),  # who is to be believed?
        ([1.0], []),
    ],
)
def test_odd_is_who_agrees_with_none_of_those_that_agree_with_most(levels_ms: list[float], expected: list[str]) -> None:
    floors_ms = {"ABCDE"[n]: near(level_ms) for n, level_ms in enumerate(levels_ms)}
    assert odd(compared(**floors_ms)) == expected


def test_an_odd_unit_is_named_with_a_reason_that_says_where_to_look() -> None:
    comparison = compared(A=near(1.0), B=near(1.01), C=near(1.2))
    assert unit(comparison, "A").reason is None
    assert unit(comparison, "C").reason == (
        "It is 18.8 % slower than B, the nearest of 2 units that agree. Look at its temperature, battery, case and OS"
        " build."
    )


def test_of_two_units_that_differ_nobody_can_say_which_one_is_odd() -> None:
    for one in compared(A=near(1.0), B=near(1.2)).units:
        assert not one.odd
        assert one.reason == (
            "The units differ, and no latency is that of more than half of them. Let another unit measure."
        )


def test_a_difference_that_the_intervals_explain_makes_nobody_odd() -> None:
    """The third unit's readings lie all over the place; by their median alone it would be odd."""
    wide = [0.9, 0.9, 0.9, 1.2, 1.2, 1.2, 1.2]
    comparison = compared(A=near(1.0), B=near(1.0), C=wide)
    assert unit(comparison, "C").relative == pytest.approx(1.2)
    assert odd(comparison) == []


def test_a_unit_with_few_measurements_is_shown_but_neither_compared_nor_compared_with() -> None:
    comparison = compared(A=near(1.0), B=near(1.0), C=[2.0] * 5)
    few = unit(comparison, "C")
    assert (few.reference_ms, few.low_ms, few.high_ms, few.relative, few.odd) == (2.0, None, None, None, False)
    assert few.reason == "It has 5 measurements so far; a unit is compared from 6 on."
    assert comparison.spread_pct == pytest.approx(0)


@pytest.mark.parametrize(
    ("count", "ranks"),
    # Smallest and largest rank of the 95 % interval of a median, as tabulated for the sign test.
    [(6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (15, (4, 12)), (20, (6, 15)), (25, (8, 18)), (100, (40, 61))],
)
def test_the_interval_of_a_median_has_the_ranks_of_the_sign_test(count: int, ranks: tuple[int, int]) -> None:
    reading = units.reading([float(n) for n in range(count, 0, -1)])
    assert (reading.low_ms, reading.high_ms) == ranks


def test_fewer_than_six_measurements_have_no_interval() -> None:
    with pytest.raises(ValueError, match="needs at least 6 measurements, got 5"):
        units.reading([1.0] * 5)


@given(st.lists(st.integers(0, 12), max_size=8))
def test_fewer_than_half_of_the_units_are_odd(steps: list[int]) -> None:
    """Units in steps of 3 %, so that neighbours are alike and groups form by chance."""
    comparison = compared(**{f"U{n}": near(1.03**step, scatter=0.001) for n, step in enumerate(steps)})
    assert 2 * len(odd(comparison)) < max(len(steps), 1)
    assert all(unit.reason for unit in comparison.units if unit.odd)


@given(st.lists(st.floats(0.1, 10.0), min_size=6, max_size=200))
def test_the_interval_holds_the_median(floors_ms: list[float]) -> None:
    reading = units.reading(floors_ms)
    assert min(floors_ms) <= reading.low_ms <= reading.reference_ms <= reading.high_ms <= max(floors_ms)


def test_the_floor_is_the_smallest_reading_before_or_after_any_round(
    operator: Make, measurement: MakeMeasurement
) -> None:
    made = measurement(operator().id, reference_ms=1.0)
    for change in ({"reference_before_ms": 0.8}, {"reference_after_ms": 0.8}):
        rounds = (*made.rounds[:2], made.rounds[2].model_copy(update=change), *made.rounds[3:])
        assert units.reference_floor_ms(rounds) == 0.8


class Shelf:
    """Units of "Pixel 3" whose measurements are stored by hand."""

    def __init__(self, database: Database, clock: Clock, report: Callable[..., DeviceReport]) -> None:
        self.database, self.clock = database, clock
        self.protocol_id = report().protocol.id
        with database.writing() as session:
            devices.report(session, report(), now=clock())

    def store(self, made: Measurement, operator: IBConv, *, model: str = "Pixel 3", drifted: bool = False) -> None:
        with self.database.writing() as session:
            store_subjects(session, [operator])
            table = {"subject_id": operator.id, "device_model": model, "protocol_id": self.protocol_id}
            job = JobRow(**table, precision="float32", state=JobState.DONE, priority=1, created_at=self.clock())
            session.add(job)
            session.flush()
            session.add(
                MeasurementRow(
                    **table, job_id=job.id, device_serial=made.provenance.device_serial, latency_ms=made.latency_ms,
                    low_ms=made.low_ms, high_ms=made.high_ms, confidence=made.confidence, verdict=made.verdict,
                    rounds=6, measured_at=self.clock(), reference_ms=units.reference_floor_ms(made.rounds),
                    document=made.model_dump_json(), drifted=drifted,
                )
            )  # fmt: skip

    def compare(self) -> UnitComparison:
        with self.database.reading() as session:
            return units.compare(session, device_model="Pixel 3", protocol_id=self.protocol_id)


@pytest.fixture
def shelf(database: Database, clock: Clock, report: Callable[..., DeviceReport]) -> Shelf:
    return Shelf(database, clock, report)


def test_units_are_read_from_what_they_measured_newest_first_and_no_other_model(
    shelf: Shelf, operator: Make, measurement: MakeMeasurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "COUNTED", 6)
    made = operator()
    for reference_ms in [9.0] * 3 + [1.0] * 6:  # the oldest three no longer count
        shelf.store(measurement(made.id, serial="A1", reference_ms=reference_ms), made)
    for _ in range(2):
        shelf.store(measurement(made.id, serial="A2", reference_ms=2.0), made)
    shelf.store(measurement(made.id, serial="other", reference_ms=3.0), made, model="Pixel 4")
    shown = [(unit.serial, unit.measurements, unit.reference_ms) for unit in shelf.compare().units]
    assert shown == [("A1", 6, 1.0), ("A2", 2, 2.0)]


def test_a_model_that_nothing_was_measured_on_has_no_units(shelf: Shelf) -> None:
    comparison = shelf.compare()
    assert (comparison.units, comparison.spread_pct) == ((), None)


def test_what_a_unit_measured_as_it_drifted_is_not_compared(
    shelf: Shelf, operator: Make, measurement: MakeMeasurement
) -> None:
    made = operator()
    for serial in ("A1", "A2", "A3"):
        for _ in range(6):
            shelf.store(measurement(made.id, serial=serial, reference_ms=1.0), made)
    for _ in range(20):
        shelf.store(measurement(made.id, serial="A3", reference_ms=2.0), made, drifted=True)
    assert odd(shelf.compare()) == []
    assert unit(shelf.compare(), "A3").measurements == 6

"""Steps of a runner, as lists that came over a wire, and the visits they make."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from device_agents.errors import DeviceFault
from device_agents.turns import Crashes, Refused, TurnReader, Visit, parse_step
from latency_contract.protocols import BlockStatistic

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
TURN: list[list[object]] = [
    ["state", {"temperature_c": 30.0}],
    ["started", -1],
    ["ran", -1, 0.0, [1.0, 3.0, 1.1], None],
    ["started", 0],
    ["ran", 0, 0.5, [5.0], 50, 0.1],
    ["started", -1],
    ["ran", -1, 0.6, [1.2], None, 0.02],
    ["state", {"temperature_c": 31.0}],
    ["started", 1],
    ["ran", 1, 0.7, [7.0, 7.1], None],
    ["started", -1],
    ["ran", -1, 0.8, [1.3], None],
    ["state", {"temperature_c": 32.0}],
    ["done"],
]


def read(steps: list[list[object]]) -> tuple[list[Visit | Refused], TurnReader]:
    reader = TurnReader(BEGAN, BlockStatistic.MEDIAN)
    results = [reader.read(parse_step(step)) for step in steps]
    return [result for result in results if result is not None], reader


def test_a_visit_has_the_reference_and_the_state_on_both_sides() -> None:
    (first, second), reader = read(TURN)
    assert isinstance(first, Visit)
    assert isinstance(second, Visit)
    assert (first.position, first.samples_ms, first.summary_of) == (0, [5.0], 50)
    assert first.took_s == pytest.approx(0.12)
    assert first.started_at == BEGAN + timedelta(seconds=0.5)
    assert (first.reference_before_ms, first.reference_after_ms) == (1.1, 1.2)
    assert (first.before.temperature_c, first.after.temperature_c) == (30.0, 31.0)
    assert (second.reference_before_ms, second.reference_after_ms) == (1.2, 1.3)
    assert (second.before.temperature_c, second.after.temperature_c) == (31.0, 32.0)
    assert reader.done


@pytest.mark.parametrize("count", range(len(TURN)))
def test_a_turn_that_was_cut_off_gives_its_whole_visits_and_says_what_was_running(count: int) -> None:
    results, reader = read(TURN[:count])
    assert len(results) == (count > 7) + (count > 12)
    last = TURN[count - 1] if count else [""]
    assert reader.running == (last[1] if last[0] == "started" else None)
    assert not reader.done


def test_a_refused_model_has_no_visit_and_its_neighbours_have_theirs() -> None:
    results, _ = read([*TURN[:4], ["refused", 0, "no such operation"], *TURN[8:]])
    assert results[0] == Refused("refused", 0, "no such operation")
    assert isinstance(results[1], Visit)
    assert results[1].position == 1


def test_a_reference_that_is_refused_is_the_devices_fault() -> None:
    with pytest.raises(DeviceFault, match="The reference operator does not run here: no such operation"):
        read([*TURN[:2], ["refused", -1, "no such operation"]])


def test_a_block_without_reference_readings_is_never_a_visit() -> None:
    with pytest.raises(DeviceFault, match="out of order"):
        read([TURN[0], *TURN[3:5], TURN[7]])


@pytest.mark.parametrize("step", [[], ["ran"], ["ran", 0, 0.0, "fast", None], ["slept", 1], {"ran": 0}, None, 7])
def test_what_no_runner_says_is_the_devices_fault(step: object) -> None:
    with pytest.raises(DeviceFault, match="unintelligible"):
        parse_step(step)


def test_a_model_is_at_fault_at_its_second_crash_in_a_row() -> None:
    crashes, model = Crashes(), Path("model.tflite")
    assert crashes.crashed(model, 3, "was ended by signal 11") is None
    crashes.ran(model)
    assert crashes.crashed(model, 3, "was ended by signal 11") is None
    assert crashes.crashed(Path("other.tflite"), 4, "was ended by signal 11") is None
    expected = Refused("refused", 3, "The runner was ended by signal 11 on this model, twice.")
    assert crashes.crashed(model, 3, "was ended by signal 11") == expected

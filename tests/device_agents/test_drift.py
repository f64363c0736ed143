from random import Random

import pytest

from device_agents.drift import LATELY_S, NEEDED, REMEMBERED, Brackets, QuietReadings
from latency_contract.measurements import Round
from latency_contract.protocols import Protocol
from tests.conftest import START

PROTOCOL = Protocol(runtime="litert", runtime_version="2.3.0")  # a target of 2 %, so readings may differ by 4 %


def judged(brackets: Brackets, before_ms: float, after_ms: float) -> str | None:
    made = Round(started_at=START, samples_ms=(1.0,), reference_before_ms=before_ms, reference_after_ms=after_ms)
    return brackets.disagreement(made, protocol=PROTOCOL)


def after(ratios: list[float]) -> Brackets:
    """What has seen rounds whose readings differed so."""
    brackets = Brackets()
    for ratio in ratios:
        judged(brackets, 1.0, ratio)
    return brackets


@pytest.mark.parametrize(("before_ms", "after_ms"), [(1.0, 1.1), (1.1, 1.0)])
def test_a_round_in_which_a_quiet_device_changed_is_rejected_with_what_was_read(
    before_ms: float, after_ms: float
) -> None:
    reason = judged(after([1.0] * NEEDED), before_ms, after_ms)
    assert reason is not None
    assert reason.startswith(f"the reference operator took {before_ms:.4g} ms before and {after_ms:.4g} ms after,")
    assert reason.endswith("here -3.8 to +4.0 % is usual")


def test_what_the_protocols_target_allows_is_no_disagreement_however_quiet_the_device_was() -> None:
    assert judged(after([1.0] * NEEDED), 1.0, 1.039) is None


def test_a_device_that_scatters_is_judged_by_its_own_spread() -> None:
    random = Random(0)
    scattered = after([1 + random.uniform(-0.1, 0.1) for _ in range(100)])
    assert judged(scattered, 1.0, 1.15) is None
    assert judged(scattered, 1.0, 1.8) is not None


def test_nothing_is_rejected_before_it_is_known_what_is_usual() -> None:
    assert judged(after([1.0] * (NEEDED - 1)), 1.0, 9.0) is None


def test_a_device_that_has_come_to_scatter_more_widely_is_soon_judged_by_that() -> None:
    brackets, random = after([1.0] * REMEMBERED), Random(0)
    rejected = [judged(brackets, 1.0, 1 + random.uniform(-0.1, 0.1)) is not None for _ in range(REMEMBERED)]
    assert any(rejected[:100])
    assert not any(rejected[-100:])


def test_a_quiet_moment_is_remembered_for_a_while() -> None:
    now_s = 0.0
    quiet = QuietReadings(lambda: now_s)
    assert quiet.smallest_ms is None
    for reading_ms in (1.2, 1.0, 1.5, 1.1):
        now_s += 1.0
        quiet.note(Round(started_at=START, samples_ms=(1.0,), reference_before_ms=reading_ms, reference_after_ms=9.0))
    assert quiet.smallest_ms == 1.0
    now_s = LATELY_S + 2.5
    assert quiet.smallest_ms == 1.1
    now_s = 10 * LATELY_S
    assert quiet.smallest_ms == 1.1  # there is no better one

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from latency_contract.measurements import DeviceState, Measurement, RejectedRound, Round, Verdict
from latency_contract.protocols import BlockStatistic, StoppingRule
from tests.conftest import START

Make = Callable[..., Measurement]
SUBJECT = "a" * 64


def altered(measurement: Measurement, **changes: Any) -> dict[str, Any]:
    return measurement.model_dump(mode="json") | changes


def test_latency_is_the_minimum_of_the_round_medians(measurement: Make) -> None:
    assert measurement(SUBJECT, [1.2, 1.0, 1.1, 1.3]).latency_ms == 1.0


def test_verdict_says_whether_the_interval_is_inside_the_target(measurement: Make) -> None:
    assert measurement(SUBJECT, [1.0, 1.0001, 1.0002, 1.0003]).verdict == Verdict.STEADY
    assert measurement(SUBJECT, [1.0, 1.5, 2.0, 2.5]).verdict == Verdict.UNSTEADY


def test_json_round_trip(measurement: Make) -> None:
    original = measurement(SUBJECT)
    assert Measurement.model_validate_json(original.model_dump_json()) == original


def test_a_number_that_does_not_follow_from_its_rounds_is_refused(measurement: Make) -> None:
    with pytest.raises(ValidationError, match="do not follow from the rounds"):
        Measurement.model_validate(altered(measurement(SUBJECT), latency_ms=0.9))


def test_an_interval_that_does_not_follow_from_its_rounds_is_refused(measurement: Make) -> None:
    with pytest.raises(ValidationError, match="do not follow from the rounds"):
        Measurement.model_validate(altered(measurement(SUBJECT), high_ms=1.0))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), "fast", None, 1e9])
def test_a_reading_that_is_no_latency_is_refused(measurement: Make, bad: Any) -> None:
    document = measurement(SUBJECT).model_dump(mode="json")
    document["rounds"][2]["samples_ms"] = [bad]
    with pytest.raises(ValidationError, match=r"rounds\.2\.samples_ms\.0"):
        Measurement.model_validate(document)


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"])
def test_a_time_that_no_calendar_in_utc_has_is_refused(measurement: Make, moment: str) -> None:
    document = measurement(SUBJECT).model_dump(mode="json")
    document["provenance"]["finished_at"] = moment
    with pytest.raises(ValidationError, match="not between the years 1 and 9999 in UTC"):
        Measurement.model_validate(document)


def test_a_measurement_without_enough_rounds_is_refused(measurement: Make) -> None:
    document = measurement(SUBJECT).model_dump(mode="json")
    with pytest.raises(ValidationError, match="at least 4"):
        Measurement.model_validate(document | {"rounds": document["rounds"][:3]})


@pytest.mark.parametrize("samples_ms", [(1.0,), (1.0, 1.1), (3.0, 1.0, 2.0), (0.1, 0.2, 0.30000000000000004, 0.7)])
def test_a_round_summed_up_has_the_same_value_and_the_number_of_its_runs(samples_ms: tuple[float, ...]) -> None:
    original = Round(started_at=START, samples_ms=samples_ms, reference_before_ms=1.0, reference_after_ms=2.0)
    summary = Round.model_validate_json(original.summary().model_dump_json())
    assert (summary.block_ms, summary.summary_of) == (original.block_ms, len(samples_ms))
    assert (summary.reference_before_ms, summary.reference_after_ms) == (1.0, 2.0)
    assert summary.summary() == summary


def test_a_measurement_without_samples_and_evidence_is_valid_and_says_what_it_had(measurement: Make) -> None:
    original = measurement(SUBJECT)
    rejected = RejectedRound(round=original.rounds[0], reason="hot", before=DeviceState(), after=DeviceState())
    lighter = original.model_copy(update={"rejected": (rejected,) * 3}).without_samples().without_evidence()
    assert Measurement.model_validate_json(lighter.model_dump_json()) == lighter
    assert lighter.without_evidence().rejected_dropped == 3
    assert lighter.latency_ms == original.latency_ms


@pytest.mark.parametrize(
    ("statistic", "runs", "stands"),
    [
        (BlockStatistic.P5, 1, 1.0),
        (BlockStatistic.P5, 20, 1.0),
        (BlockStatistic.P5, 21, 2.0),
        (BlockStatistic.P5, 100, 5.0),
        (BlockStatistic.MEDIAN, 21, 11.0),
        (BlockStatistic.MEAN, 4, 2.5),
    ],
)
def test_what_stands_for_a_block_is_what_the_protocol_says(statistic: BlockStatistic, runs: int, stands: float) -> None:
    """Of runs of 1, 2, 3, … ms, in any order."""
    samples_ms = tuple(float(n) for n in reversed(range(1, runs + 1)))
    made = Round(
        started_at=START,
        samples_ms=samples_ms,
        statistic=statistic,
        reference_before_ms=1.0,
        reference_after_ms=1.0,
    )
    assert made.block_ms == stands
    assert made.summary().block_ms == stands
    assert made.summary().statistic == statistic


@pytest.mark.parametrize(("reference_ms", "verdict"), [(1.04, Verdict.STEADY), (1.06, Verdict.UNSTEADY)])
def test_a_number_that_comes_from_no_quiet_moment_is_not_steady(
    measurement: Make, reference_ms: float, verdict: Verdict
) -> None:
    made = measurement("1" * 64, reference_ms=reference_ms, quiet_reference_ms=1.0)
    assert (made.verdict, made.was_quiet) == (verdict, verdict == Verdict.STEADY)
    assert Measurement.model_validate_json(made.without_samples().model_dump_json()).was_quiet == made.was_quiet
    assert made.verdict_under(StoppingRule()) == verdict

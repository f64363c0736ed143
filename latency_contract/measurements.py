"""Measurement: a latency with its interval, the rounds behind it and where it comes from.

A measurement is valid only if its number follows from its rounds. A subject that could not be measured has a
failure (see jobs.py) and no measurement; there is no number to mistake for a latency.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from latency_contract.canonical import Contract, Sha256
from latency_contract.estimators import MIN_ROUNDS, Estimate, Spread, floor_estimate, repetition_estimate
from latency_contract.protocols import BlockStatistic, StoppingRule

MAX_LATENCY_MS = 600_000.0  # ten minutes; anything slower is a hung device, not a latency
MAX_ROUNDS = 1000
MAX_SAMPLES = 10_000  # in one block
MAX_REJECTED = 100  # rounds kept as evidence of what disturbed a measurement
QUIET = 1.05  # of the reference operator's smallest reading, by which a moment is quiet

Milliseconds = Annotated[float, Field(gt=0, le=MAX_LATENCY_MS, allow_inf_nan=False)]


def _in_utc(moment: datetime) -> datetime:
    try:
        moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("this time is not between the years 1 and 9999 in UTC") from error
    return moment


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class Verdict(StrEnum):
    STEADY = "steady"  # the interval is inside the protocol's target, and its number comes from a quiet moment
    UNSTEADY = "unsteady"  # not so, though the cap on rounds was reached


class Round(Contract):
    """One block of timed runs, with a block of the reference operator before and after it."""

    started_at: AwareDatetime
    samples_ms: Annotated[tuple[Milliseconds, ...], Field(min_length=1, max_length=MAX_SAMPLES)]
    summary_of: Annotated[int, Field(ge=1)] | None = (
        None  # runs behind one number: its program gave, or was kept of it, no more
    )
    statistic: BlockStatistic = BlockStatistic.MEDIAN  # what of a block's samples stands for it, as in the protocol
    reference_before_ms: Milliseconds  # the same of the reference operator's block
    reference_after_ms: Milliseconds

    @cached_property
    def block_ms(self) -> float:
        """What stands for the block."""
        return self.statistic.of(self.samples_ms)

    @model_validator(mode="after")
    def _one_number_sums_up(self) -> Self:
        if self.summary_of is not None and len(self.samples_ms) != 1:
            raise ValueError(f"a summary of {self.summary_of} runs is one number, not {len(self.samples_ms)}")
        return self

    def summary(self) -> "Round":
        """The same round as one number, which says how many runs it stands for."""
        return Round(
            started_at=self.started_at,
            samples_ms=(self.block_ms,),
            summary_of=self.summary_of or len(self.samples_ms),
            statistic=self.statistic,
            reference_before_ms=self.reference_before_ms,
            reference_after_ms=self.reference_after_ms,
        )


class DeviceState(Contract):
    """What can disturb a measurement, as it was at one moment. None where the device does not let it be read."""

    governor: str | None = None  # of the measuring core, as are the frequencies
    frequency_khz: int | None = None
    max_frequency_khz: int | None = None  # the cap of the moment; below the core's own maximum when throttled
    temperature_c: float | None = None  # of the hottest processor core
    thermal_status: int | None = None  # Android's, 0 none to 6 shutdown
    cooling_state: int | None = None  # of the processor's cooling devices the highest; above 0 they slow it down
    battery_pct: int | None = None
    battery_c: float | None = None
    charging: bool | None = None
    screen_on: bool | None = None

    @property
    def unreadable(self) -> tuple[str, ...]:
        return tuple(name for name, value in self if value is None)


class Provenance(Contract):
    """Where a number comes from."""

    device_serial: str
    os_build: str
    soc: str
    model_sha256: Sha256  # of the TFLite file
    runner: str  # the program that timed the runs, and its version
    runner_sha256: Sha256  # of the binary that executed the model
    core_mask: str  # hexadecimal, verified after pinning
    before: DeviceState
    after: DeviceState
    unreadable: tuple[str, ...]  # readings, and so gates, that the device does not have
    started_at: Moment
    finished_at: Moment


class RejectedRound(Contract):
    """A round that does not count, and why: the device was too hot, throttled, or changed in the middle."""

    round: Round
    reason: Annotated[str, Field(min_length=1, max_length=1000)]
    before: DeviceState
    after: DeviceState


class Measurement(Contract):
    subject_id: Sha256
    latency_ms: Milliseconds
    low_ms: Milliseconds
    high_ms: Milliseconds
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    verdict: Verdict
    rounds: Annotated[tuple[Round, ...], Field(min_length=MIN_ROUNDS, max_length=MAX_ROUNDS)]
    rejected: Annotated[tuple[RejectedRound, ...], Field(max_length=MAX_REJECTED)] = ()  # evidence; not in the number
    pooled: Spread | None = None  # of the subjects measured with it; None: before decision 20, with narrower intervals
    quiet_reference_ms: Milliseconds | None = None  # smallest reading of the reference then; None: not known
    rejected_dropped: Annotated[int, Field(ge=0)] = 0  # rejected rounds that are no longer kept
    provenance: Provenance

    @classmethod
    def from_rounds(
        cls,
        rounds: tuple[Round, ...],
        *,
        subject_id: str,
        stopping: StoppingRule,
        provenance: Provenance,
        pooled: Spread,
        quiet_reference_ms: float | None = None,
        rejected: tuple[RejectedRound, ...] = (),
        rejected_dropped: int = 0,
    ) -> "Measurement":
        """The measurement that these rounds make under a stopping rule; `pooled` is UNKNOWN for a lease of one."""
        estimate = estimate_of(rounds, pooled=pooled, confidence=stopping.confidence)
        return cls(
            subject_id=subject_id,
            latency_ms=estimate.latency_ms,
            low_ms=estimate.low_ms,
            high_ms=estimate.high_ms,
            confidence=stopping.confidence,
            verdict=verdict_of(rounds, estimate, stopping=stopping, quiet_reference_ms=quiet_reference_ms),
            rounds=rounds,
            pooled=pooled,
            quiet_reference_ms=quiet_reference_ms,
            rejected=rejected,
            rejected_dropped=rejected_dropped,
            provenance=provenance,
        )

    def without_samples(self) -> "Measurement":
        """One number a round, from which latency and interval follow as before."""
        return Measurement.model_validate(dict(self) | {"rounds": tuple(r.summary() for r in self.rounds)})

    def without_evidence(self) -> "Measurement":
        """No rejected rounds, but how many there were."""
        dropped = self.rejected_dropped + len(self.rejected)
        return Measurement.model_validate(dict(self) | {"rejected": (), "rejected_dropped": dropped})

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.latency_ms, self.low_ms, self.high_ms)

    @property
    def was_quiet(self) -> bool:
        return was_quiet(self.rounds, self.estimate, self.quiet_reference_ms)

    def verdict_under(self, stopping: StoppingRule) -> Verdict:
        """The one that is due to it."""
        return verdict_of(self.rounds, self.estimate, stopping=stopping, quiet_reference_ms=self.quiet_reference_ms)

    @property
    def measured_at(self) -> datetime:
        return self.provenance.finished_at

    @model_validator(mode="after")
    def _follows_from_its_rounds(self) -> Self:
        expected = estimate_of(self.rounds, pooled=self.pooled, confidence=self.confidence)
        stated = self.estimate
        if not all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(stated, expected, strict=True)):
            raise ValueError(f"latency and interval {tuple(stated)} do not follow from the rounds, {tuple(expected)}")
        return self


def estimate_of(rounds: tuple[Round, ...], *, pooled: Spread | None, confidence: float) -> Estimate:
    blocks_ms = [r.block_ms for r in rounds]
    if pooled is None:
        return floor_estimate(blocks_ms, confidence=confidence)
    return repetition_estimate(blocks_ms, pooled=pooled, confidence=confidence)


def was_quiet(rounds: Sequence[Round], estimate: Estimate, quiet_reference_ms: float | None) -> bool:
    """Whether a round as good as the smallest lies between two quick readings of the reference operator.

    Rounds alone cannot show what none of them was free of (docs/decisions/0033).
    """
    if quiet_reference_ms is None:
        return True  # of a time when nobody asked
    # A lease may take longer than a quiet moment is remembered: the measurement has its own.
    smallest_ms = min(quiet_reference_ms, *(min(r.reference_before_ms, r.reference_after_ms) for r in rounds))
    return any(
        r.block_ms <= estimate.high_ms and max(r.reference_before_ms, r.reference_after_ms) <= QUIET * smallest_ms
        for r in rounds
    )


def verdict_of(
    rounds: Sequence[Round], estimate: Estimate, *, stopping: StoppingRule, quiet_reference_ms: float | None
) -> Verdict:
    narrow = estimate.relative_half_width <= stopping.target
    return Verdict.STEADY if narrow and was_quiet(rounds, estimate, quiet_reference_ms) else Verdict.UNSTEADY

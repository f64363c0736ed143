"""Measurement: a latency with its interval, the rounds behind it and where it comes from.

A measurement is valid only if its number follows from its rounds. A subject that could not be measured has a
failure (see jobs.py) and no measurement; there is no number to mistake for a latency.
"""

import math
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from statistics import median
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from latency_contract.canonical import Contract, Sha256
from latency_contract.estimators import MIN_ROUNDS, Estimate, floor_estimate
from latency_contract.protocols import StoppingRule

MAX_LATENCY_MS = 600_000.0  # ten minutes; anything slower is a hung device, not a latency
MAX_ROUNDS = 1000
MAX_SAMPLES = 10_000  # in one block

Milliseconds = Annotated[float, Field(gt=0, le=MAX_LATENCY_MS, allow_inf_nan=False)]


def _in_utc(moment: datetime) -> datetime:
    try:
        moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("this time is not between the years 1 and 9999 in UTC") from error
    return moment


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class Verdict(StrEnum):
    STEADY = "steady"  # the interval is inside the protocol's target
    UNSTEADY = "unsteady"  # it is not, though the cap on rounds was reached


class Round(Contract):
    """One block of timed runs, with a block of the reference operator before and after it."""

    started_at: AwareDatetime
    samples_ms: Annotated[tuple[Milliseconds, ...], Field(min_length=1, max_length=MAX_SAMPLES)]
    reference_before_ms: Milliseconds  # median of the reference operator's block
    reference_after_ms: Milliseconds

    @cached_property
    def median_ms(self) -> float:
        return median(self.samples_ms)


class Provenance(Contract):
    """Where a number comes from. A reading that the device does not give is None and named in `unreadable`."""

    device_serial: str
    os_build: str
    soc: str
    model_sha256: Sha256  # of the TFLite file
    runner: str  # the program that timed the runs, and its version
    runner_sha256: Sha256  # of the binary that executed the model
    core_mask: str  # hexadecimal, verified after pinning
    governor: str | None
    frequency_before_khz: int | None
    frequency_after_khz: int | None
    temperature_before_c: float | None
    temperature_after_c: float | None
    unreadable: tuple[str, ...]
    started_at: Moment
    finished_at: Moment


class Measurement(Contract):
    subject_id: Sha256
    latency_ms: Milliseconds
    low_ms: Milliseconds
    high_ms: Milliseconds
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    verdict: Verdict
    rounds: Annotated[tuple[Round, ...], Field(min_length=MIN_ROUNDS, max_length=MAX_ROUNDS)]
    provenance: Provenance

    @classmethod
    def from_rounds(
        cls, rounds: tuple[Round, ...], *, subject_id: str, stopping: StoppingRule, provenance: Provenance
    ) -> "Measurement":
        """The measurement that these rounds make under a stopping rule."""
        estimate = estimate_of(rounds, confidence=stopping.confidence)
        return cls(
            subject_id=subject_id,
            latency_ms=estimate.latency_ms,
            low_ms=estimate.low_ms,
            high_ms=estimate.high_ms,
            confidence=stopping.confidence,
            verdict=Verdict.STEADY if estimate.relative_half_width <= stopping.target else Verdict.UNSTEADY,
            rounds=rounds,
            provenance=provenance,
        )

    @property
    def measured_at(self) -> datetime:
        return self.provenance.finished_at

    @model_validator(mode="after")
    def _follows_from_its_rounds(self) -> Self:
        expected = estimate_of(self.rounds, confidence=self.confidence)
        stated = Estimate(self.latency_ms, self.low_ms, self.high_ms)
        if not all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(stated, expected, strict=True)):
            raise ValueError(f"latency and interval {tuple(stated)} do not follow from the rounds, {tuple(expected)}")
        return self


def estimate_of(rounds: tuple[Round, ...], *, confidence: float) -> Estimate:
    return floor_estimate([r.median_ms for r in rounds], confidence=confidence)

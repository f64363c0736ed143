"""Rounds: in which order a batch of subjects is run, and when each has been run enough.

Every round of a subject is one block of runs between two blocks of the reference operator. Rounds of different
subjects take turns, so that a slow minute of the device falls on all of them a little and on none of them entirely:

    reference A reference B reference C reference A reference B …

It knows no device: what runs a block is declared here and implemented elsewhere.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import NamedTuple
from typing import Protocol as Interface

from pydantic import ValidationError

from device_agents.errors import DeviceFault, SubjectFault
from latency_contract.errors import validation_sentence
from latency_contract.jobs import MAX_REASON, Failed, LeasedJob, Measured
from latency_contract.measurements import Measurement, Provenance, Round, estimate_of
from latency_contract.protocols import Protocol

Outcome = Measured | Failed


class Readings(NamedTuple):
    """State of the device's processor at one moment. None where it cannot be read."""

    governor: str | None
    frequency_khz: int | None
    temperature_c: float | None

    @property
    def unreadable(self) -> tuple[str, ...]:
        return tuple(name for name, value in self._asdict().items() if value is None)


class Identity(NamedTuple):
    """What does not change while an agent drives a device."""

    serial: str
    os_build: str
    soc: str
    runner: str
    runner_sha256: str
    core_mask: str


class MeasuringDevice(Interface):
    """What a device must be able to do to be measured on."""

    @property
    def identity(self) -> Identity: ...

    def readings(self) -> Readings: ...

    def run_block(self, model: Path, *, warmup_ms: float, block_ms: float, min_runs: int, max_runs: int) -> list[float]:
        """Load a TFLite file and run it: milliseconds of each timed run. Raises SubjectFault or DeviceFault."""
        ...


@dataclass
class _Progress:
    job: LeasedJob
    started_at: datetime
    readings_before: Readings
    rounds: list[Round] = field(default_factory=list)


def measure(
    jobs: Sequence[LeasedJob],
    *,
    protocol: Protocol,
    models: Mapping[str, Path],
    reference: Path,
    device: MeasuringDevice,
    check: Callable[[], None],
) -> Iterator[list[Outcome]]:
    """Run rounds until every job has an outcome; yields the outcomes of each turn as they come.

    `models` are the jobs' TFLite files by SHA-256. `check` is called before every round and ends the batch by raising.

    Raises:
        DeviceFault: the device's, or the reference operator does not run; jobs without an outcome are unharmed.
    """
    pending = [_Progress(job, datetime.now(UTC), device.readings()) for job in jobs]
    while pending:
        before_ms = _reference_ms(device, reference, protocol)
        outcomes: dict[int, Outcome] = {}
        for progress in pending:
            check()
            started_at = datetime.now(UTC)
            try:
                samples = _block(device, models[progress.job.model_sha256], protocol.block_ms, protocol)
            except SubjectFault as fault:
                outcomes[progress.job.job_id] = Failed(job_id=progress.job.job_id, error=str(fault)[:MAX_REASON])
                continue
            after_ms = _reference_ms(device, reference, protocol)
            progress.rounds.append(_round(started_at, samples, before_ms=before_ms, after_ms=after_ms))
            before_ms = after_ms
            if _enough(progress.rounds, protocol):
                measurement = _measurement(progress, protocol, device)
                outcomes[progress.job.job_id] = Measured(job_id=progress.job.job_id, measurement=measurement)
        pending = [progress for progress in pending if progress.job.job_id not in outcomes]
        yield list(outcomes.values())


def _enough(rounds: Sequence[Round], protocol: Protocol) -> bool:
    """The stopping rule: inside the target after `min_rounds`, or at the cap."""
    rule = protocol.stopping
    if len(rounds) < rule.min_rounds:
        return False
    if len(rounds) >= rule.max_rounds:
        return True
    return estimate_of(tuple(rounds), confidence=rule.confidence).relative_half_width <= rule.target


def _block(device: MeasuringDevice, model: Path, block_ms: float, protocol: Protocol) -> list[float]:
    return device.run_block(
        model,
        warmup_ms=protocol.warmup_ms,
        block_ms=block_ms,
        min_runs=protocol.min_runs,
        max_runs=protocol.max_runs,
    )


def _reference_ms(device: MeasuringDevice, reference: Path, protocol: Protocol) -> float:
    try:
        return median(_block(device, reference, protocol.reference_block_ms, protocol))
    except SubjectFault as fault:
        raise DeviceFault(f"The reference operator does not run here: {fault}") from fault


def _round(started_at: datetime, samples: Sequence[float], *, before_ms: float, after_ms: float) -> Round:
    """Raises DeviceFault for a reading that cannot be a time: 0, negative, infinite or not a number."""
    try:
        return Round(
            started_at=started_at,
            samples_ms=tuple(samples),
            reference_before_ms=before_ms,
            reference_after_ms=after_ms,
        )
    except ValidationError as error:
        reasons = validation_sentence(error.errors())
        raise DeviceFault(f"The device gave readings that cannot be times: {reasons}") from error


def _measurement(progress: _Progress, protocol: Protocol, device: MeasuringDevice) -> Measurement:
    before, after, identity = progress.readings_before, device.readings(), device.identity
    provenance = Provenance(
        device_serial=identity.serial,
        os_build=identity.os_build,
        soc=identity.soc,
        model_sha256=progress.job.model_sha256,
        runner=identity.runner,
        runner_sha256=identity.runner_sha256,
        core_mask=identity.core_mask,
        governor=after.governor,
        frequency_before_khz=before.frequency_khz,
        frequency_after_khz=after.frequency_khz,
        temperature_before_c=before.temperature_c,
        temperature_after_c=after.temperature_c,
        unreadable=after.unreadable,
        started_at=progress.started_at,
        finished_at=datetime.now(UTC),
    )
    return Measurement.from_rounds(
        tuple(progress.rounds),
        subject_id=progress.job.subject.id,
        stopping=protocol.stopping,
        provenance=provenance,
    )

"""Rounds: how often each subject of a batch is run, and when each has been run enough.

Rounds of different subjects take turns (turns.py), so that a slow minute of the device falls on all of them a little
and on none of them entirely. It knows no device: what runs turns is declared here and implemented elsewhere.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from typing import Protocol as Interface

from pydantic import ValidationError

from device_agents.drift import Brackets
from device_agents.errors import BracketsDisagree, DeviceFault
from device_agents.turns import Plan, Refused, Visit
from latency_contract.errors import validation_sentence
from latency_contract.estimators import MIN_ROUNDS, Spread, half_spread, pooled_spread
from latency_contract.jobs import MAX_REASON, Failed, LeasedJob, Measured
from latency_contract.measurements import (
    MAX_REJECTED,
    DeviceState,
    Measurement,
    Provenance,
    RejectedRound,
    Round,
    estimate_of,
)
from latency_contract.protocols import Protocol

log = logging.getLogger(__name__)

FRUITLESS = 3  # calls in a row in which the device finished no round, after which it is at fault

Outcome = Measured | Failed


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

    def wait_until_fit(self, check: Callable[[], None]) -> None:
        """Return when nothing speaks against measuring. Raises DeviceFault when that takes too long."""
        ...

    def run(self, plan: Plan, check: Callable[[], None]) -> Iterator[Visit | Refused]:
        """Run a plan; what comes of it, in order. May end before the plan does, after a disturbance that is over.

        Raises DeviceFault. `check` is called every second at least, and ends the run by raising.
        """
        ...


@dataclass
class _Progress:
    job: LeasedJob
    started_at: datetime
    rounds: list[Round] = field(default_factory=list)
    rejected: list[RejectedRound] = field(default_factory=list)
    disagreements: int = 0  # rounds rejected since their reference readings disagree
    before: DeviceState | None = None
    after: DeviceState | None = None
    refusal: str | None = None

    @property
    def medians_ms(self) -> list[float]:
        return [r.block_ms for r in self.rounds]


def measure(
    jobs: Sequence[LeasedJob],
    *,
    protocol: Protocol,
    models: Mapping[str, Path],
    reference: Path,
    device: MeasuringDevice,
    check: Callable[[], None],
    brackets: Brackets,
) -> Iterator[list[Outcome]]:
    """Run rounds until every job has an outcome; yields outcomes as they come.

    `models` are the jobs' TFLite files by SHA-256, named by it. `brackets` has seen the device's rounds before.

    Raises:
        BracketsDisagree: more rounds of a job were rejected for that than may count.
        DeviceFault: the device's, or the reference operator does not run; jobs without an outcome are unharmed.
    """
    lease = [_Progress(job, datetime.now(UTC)) for job in jobs]
    pending = _judged(lease, protocol, _pooled(lease))
    began, blocks_s = time.monotonic(), 0.0
    fruitless = 0
    while pending:
        check()
        device.wait_until_fit(check)
        wanted = [(models[p.job.model_sha256], rounds) for p, rounds in pending]
        rejection: str | None = None
        came = 0
        for result in device.run(Plan(reference, wanted, protocol), check):
            progress, _ = pending[result.position]
            if isinstance(result, Refused):
                progress.refusal = result.reason
                came += 1
                continue
            blocks_s += result.took_s
            made = _round(result)
            disagreement = None if result.rejected else brackets.disagreement(made, protocol=protocol)
            if reason := result.rejected or disagreement:
                rejection = reason
                progress.rejected.append(
                    RejectedRound(round=made, reason=reason, before=result.before, after=result.after)
                )
                progress.disagreements += disagreement is not None
                if progress.disagreements > protocol.stopping.max_rounds:
                    raise _unsteady(progress, reason, suspect=models[progress.job.model_sha256])
            else:
                progress.rounds.append(made)
                progress.before = progress.before or result.before
                progress.after = result.after
                came += 1
        fruitless = 0 if came else fruitless + 1
        if fruitless >= FRUITLESS:
            raise DeviceFault(f"The device finished no round in {FRUITLESS} attempts: {rejection or 'it was cut off'}.")
        pooled = _pooled(lease)
        judged = _judged([p for p, _ in pending], protocol, pooled)
        pending = [(p, rounds) for p, rounds in judged if rounds]
        yield [_outcome(p, protocol, pooled, device.identity) for p, rounds in judged if not rounds]
    log.info("%d subjects in %.3f s, %.3f s of it inside blocks", len(jobs), time.monotonic() - began, blocks_s)


def _pooled(lease: Sequence[_Progress]) -> Spread:
    """What the rounds so far say of the spread of any subject of the lease."""
    return pooled_spread([half_spread(p.medians_ms) for p in lease if len(p.rounds) >= MIN_ROUNDS])


def check_rounds(
    reference: Path, *, protocol: Protocol, device: MeasuringDevice, check: Callable[[], None]
) -> list[Round]:
    """As many rounds of the reference operator itself as a measurement has at least, whatever they say.

    Raises:
        DeviceFault: the device's, or it finishes too few in FRUITLESS attempts.
    """
    rounds: list[Round] = []
    rejection = "it was cut off"
    for _ in range(FRUITLESS):
        device.wait_until_fit(check)
        for result in device.run(Plan(reference, [(reference, protocol.stopping.min_rounds)], protocol), check):
            if isinstance(result, Refused):
                raise DeviceFault(f"The reference operator does not run here: {result.reason}")
            if result.rejected is None:
                rounds.append(_round(result))
            else:
                rejection = result.rejected
        if len(rounds) >= protocol.stopping.min_rounds:
            return rounds
    raise DeviceFault(f"The device finished too few rounds in {FRUITLESS} attempts: {rejection}.")


def _judged(lease: Sequence[_Progress], protocol: Protocol, pooled: Spread) -> list[tuple[_Progress, int]]:
    """Each subject with the rounds that it still wants."""
    return [(progress, _rounds_wanted(progress, protocol, pooled)) for progress in lease]


def _rounds_wanted(progress: _Progress, protocol: Protocol, pooled: Spread) -> int:
    """How many more: 0 inside the target after `min_rounds`, at the cap, or where the device refuses the model.

    In between, as many as would bring the interval inside the target if rounds go on as before (a floor's half-width
    falls as 1/n at best), but at most as many again, since that is a guess. So the widest interval gets the most
    rounds, and a device over ADB, which pays for every time it is asked, is asked seldom.
    """
    if progress.refusal is not None:
        return 0
    rule = protocol.stopping
    done = len(progress.rounds)
    if done < rule.min_rounds:
        return rule.min_rounds - done
    estimate = estimate_of(tuple(progress.rounds), pooled=pooled, confidence=rule.confidence)
    width = estimate.relative_half_width
    if width <= rule.target or done >= rule.max_rounds:
        return 0
    promising = max(math.ceil(done * width / rule.target) - done, 1)
    return min(promising, done, rule.max_rounds - done)


def _round(visit: Visit) -> Round:
    """Raises DeviceFault for a reading that cannot be a time: 0, negative, infinite or not a number."""
    try:
        return Round(
            started_at=visit.started_at,
            samples_ms=tuple(visit.samples_ms),
            summary_of=visit.summary_of,
            reference_before_ms=visit.reference_before_ms,
            reference_after_ms=visit.reference_after_ms,
        )
    except ValidationError as error:
        reasons = validation_sentence(error.errors())
        raise DeviceFault(f"The device gave readings that cannot be times: {reasons}") from error


def _unsteady(progress: _Progress, reason: str, *, suspect: Path) -> BracketsDisagree:
    return BracketsDisagree(
        f"{progress.disagreements} rounds of {progress.job.subject.key} were rejected and {len(progress.rounds)} count;"
        f" of the last, {reason}. Is the device hot, on battery, or is something else running?"
        " `padnas-agent doctor` looks.",
        suspect=suspect,
    )


def _outcome(progress: _Progress, protocol: Protocol, pooled: Spread, identity: Identity) -> Outcome:
    if progress.refusal is not None:
        return Failed(job_id=progress.job.job_id, error=progress.refusal[:MAX_REASON])
    before, after = progress.before, progress.after
    assert before is not None, "there are rounds"
    assert after is not None, "there are rounds"
    provenance = Provenance(
        device_serial=identity.serial,
        os_build=identity.os_build,
        soc=identity.soc,
        model_sha256=progress.job.model_sha256,
        runner=identity.runner,
        runner_sha256=identity.runner_sha256,
        core_mask=identity.core_mask,
        before=before,
        after=after,
        unreadable=after.unreadable,
        started_at=progress.started_at,
        finished_at=datetime.now(UTC),
    )
    measurement = Measurement.from_rounds(
        tuple(progress.rounds),
        subject_id=progress.job.subject.id,
        stopping=protocol.stopping,
        provenance=provenance,
        pooled=pooled,
        rejected=tuple(progress.rejected[-MAX_REJECTED:]),
    )
    return Measured(job_id=progress.job.job_id, measurement=measurement)

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

from device_agents.drift import Brackets, QuietReadings
from device_agents.errors import BracketsDisagree, DeviceFault
from device_agents.turns import Plan, Refused, Visit
from latency_contract.errors import validation_sentence
from latency_contract.estimators import MIN_ROUNDS, Estimate, Spread, half_spread, pooled_spread
from latency_contract.jobs import MAX_REASON, Failed, LeasedJob, Measured
from latency_contract.measurements import (
    MAX_REJECTED,
    DeviceState,
    Measurement,
    Provenance,
    RejectedRound,
    Round,
    Verdict,
    estimate_of,
    verdict_of,
)
from latency_contract.protocols import BlockStatistic, Protocol, StoppingRule

log = logging.getLogger(__name__)

PART_S = 60.0  # of a plan, after which the device is looked at: on one that grows too hot, the rest waits
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
    unreadable: set[str] = field(default_factory=set)  # readings that some round was without
    refusal: str | None = None

    @property
    def blocks_ms(self) -> list[float]:
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
    quiet: QuietReadings,
    clock_s: Callable[[], float] = time.monotonic,
) -> Iterator[list[Outcome]]:
    """Run rounds until every job has an outcome; yields outcomes as they come.

    `models` are the jobs' TFLite files by SHA-256, named by it. `brackets` and `quiet` know its earlier rounds.

    Raises:
        BracketsDisagree: more rounds of a job were rejected for that than may count.
        DeviceFault: the device's, or the reference operator does not run; jobs without an outcome are unharmed.
    """
    lease = [_Progress(job, datetime.now(UTC)) for job in jobs]
    pending = [(progress, protocol.stopping.min_rounds) for progress in lease]
    began_s, blocks_s = clock_s(), 0.0
    fruitless = 0
    while pending:
        check()
        wanted = [(models[p.job.model_sha256], rounds) for p, rounds in pending]
        rejection: str | None = None
        came = 0
        for result in _in_parts(device, Plan(reference, wanted, protocol), check):
            progress, _ = pending[result.position]
            if isinstance(result, Refused):
                progress.refusal = result.reason
                came += 1
                continue
            blocks_s += result.took_s
            made = round_of(result, protocol.statistic)
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
                quiet.note(made)
                progress.rounds.append(made)
                progress.before = progress.before or result.before
                progress.after = result.after
                progress.unreadable.update(result.before.unreadable, result.after.unreadable)
                came += 1
        fruitless = 0 if came else fruitless + 1
        if fruitless >= FRUITLESS:
            raise DeviceFault(f"The device finished no round in {FRUITLESS} attempts: {rejection or 'it was cut off'}.")
        known = _known(lease, quiet)
        judged = _judged(lease, [p for p, _ in pending], protocol, known, spent_s=clock_s() - began_s)
        pending = [(p, rounds) for p, rounds in judged if rounds]
        yield [_outcome(p, protocol, known, device.identity) for p, rounds in judged if not rounds]
    log.info("%d subjects in %.3f s, %.3f s of it inside blocks", len(jobs), clock_s() - began_s, blocks_s)


def _in_parts(device: MeasuringDevice, plan: Plan, check: Callable[[], None]) -> Iterator[Visit | Refused]:
    """Run a plan in parts of whole turns, each once the device is fit; ends with the first that ends early.

    Raises DeviceFault.
    """
    protocol = plan.protocol
    round_s = (2 * protocol.warmup_ms + protocol.block_ms + protocol.reference_block_ms) / 1000
    turns = max(1, int(PART_S / round_s / len(plan.models)))
    left = [rounds for _, rounds in plan.models]
    while any(left):
        due = [position for position, rounds in enumerate(left) if rounds]
        part = plan._replace(models=[(plan.model(position), min(left[position], turns)) for position in due])
        device.wait_until_fit(check)
        refused, expected, came = set[int](), sum(rounds for _, rounds in part.models), 0
        for result in device.run(part, check):
            position = due[result.position]
            if isinstance(result, Refused):
                refused.add(position)
                expected -= part.models[result.position][1]
            else:
                came += 1
            yield result._replace(position=position)
        for position, (_, rounds) in zip(due, part.models, strict=True):
            left[position] = 0 if position in refused else left[position] - rounds
        if came < expected:
            return


class _Known(NamedTuple):
    """What the rounds so far say of any subject."""

    pooled: Spread
    quiet_reference_ms: float | None  # the reference operator's smallest reading of late


def _known(lease: Sequence[_Progress], quiet: QuietReadings) -> _Known:
    spreads = [half_spread(p.blocks_ms) for p in lease if len(p.rounds) >= MIN_ROUNDS]
    return _Known(pooled_spread(spreads), quiet.smallest_ms)


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
                rounds.append(round_of(result, protocol.statistic))
            else:
                rejection = result.rejected
        if len(rounds) >= protocol.stopping.min_rounds:
            return rounds
    raise DeviceFault(f"The device finished too few rounds in {FRUITLESS} attempts: {rejection}.")


def _judged(
    lease: Sequence[_Progress], pending: Sequence[_Progress], protocol: Protocol, known: _Known, *, spent_s: float
) -> list[tuple[_Progress, int]]:
    """Each pending subject with the rounds that it still gets; 0: it is finished."""
    rule = protocol.stopping
    if rule.budget_s is None:
        return [(progress, _towards_target(progress, rule, known)) for progress in pending]
    made = sum(len(progress.rounds) + len(progress.rejected) for progress in lease)
    affordable = int((rule.budget_s * len(lease) / spent_s - 1) * made)
    return list(zip(pending, _to_the_widest(pending, rule, known.pooled, affordable), strict=True))


def _to_the_widest(pending: Sequence[_Progress], rule: StoppingRule, pooled: Spread, affordable: int) -> list[int]:
    """Rounds for each: those that it lacks of the fewest, and of the affordable ones each to the interval that would be
    widest by then, as a floor's half-width falls as 1/n at best; as many times as wide as it has layers, in which its
    error is made again. None beyond the cap."""
    more = [_lacking(progress, rule) for progress in pending]
    widths = {
        i: _estimate(progress, rule, pooled).relative_half_width
        for i, progress in enumerate(pending)
        if _may_stop(progress, rule)
    }

    def expected(i: int) -> float:
        done = len(pending[i].rounds)
        return pending[i].job.layers * widths[i] * done / (done + more[i])

    for _ in range(affordable - sum(more)):
        able = [i for i in widths if len(pending[i].rounds) + more[i] < rule.max_rounds]
        if not able:
            break
        more[max(able, key=expected)] += 1
    return more


def _towards_target(progress: _Progress, rule: StoppingRule, known: _Known) -> int:
    """How many more: 0 where it is steady after `min_rounds`, at the cap, or where the device refuses the model.

    In between, as many as would bring the interval inside the target if rounds go on as before (a floor's half-width
    falls as 1/n at best), but at least half as many again, and at most as many, since that is a guess. So the widest
    interval gets the most rounds, few looks are taken of which one may be lucky, and a device over ADB, which pays for
    every time it is asked, is asked seldom.
    """
    if not _may_stop(progress, rule):
        return _lacking(progress, rule)
    done, estimate = len(progress.rounds), _estimate(progress, rule, known.pooled)
    verdict = verdict_of(progress.rounds, estimate, stopping=rule, quiet_reference_ms=known.quiet_reference_ms)
    if verdict == Verdict.STEADY or done >= rule.max_rounds:
        return 0
    width = estimate.relative_half_width
    promising = max(math.ceil(done * width / rule.target) - done, done // 2)
    return min(promising, done, rule.max_rounds - done)


def _lacking(progress: _Progress, rule: StoppingRule) -> int:
    """Rounds that it has to have, whatever they say."""
    return 0 if progress.refusal is not None else max(rule.min_rounds - len(progress.rounds), 0)


def _may_stop(progress: _Progress, rule: StoppingRule) -> bool:
    """Whether it has an interval that may be looked at."""
    return progress.refusal is None and len(progress.rounds) >= rule.min_rounds


def _estimate(progress: _Progress, rule: StoppingRule, pooled: Spread) -> Estimate:
    return estimate_of(tuple(progress.rounds), pooled=pooled, confidence=rule.confidence)


def round_of(visit: Visit, statistic: BlockStatistic) -> Round:
    """Raises DeviceFault for a reading that cannot be a time: 0, negative, infinite or not a number."""
    try:
        return Round(
            started_at=visit.started_at,
            samples_ms=tuple(visit.samples_ms),
            summary_of=visit.summary_of,
            statistic=statistic,
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


def _outcome(progress: _Progress, protocol: Protocol, known: _Known, identity: Identity) -> Outcome:
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
        unreadable=tuple(name for name in DeviceState.model_fields if name in progress.unreadable),
        started_at=progress.started_at,
        finished_at=datetime.now(UTC),
    )
    measurement = Measurement.from_rounds(
        tuple(progress.rounds),
        subject_id=progress.job.subject.id,
        stopping=protocol.stopping,
        provenance=provenance,
        pooled=known.pooled,
        quiet_reference_ms=known.quiet_reference_ms,
        rejected=tuple(progress.rejected[-MAX_REJECTED:]),
        rejected_dropped=len(progress.rejected[:-MAX_REJECTED]),
    )
    return Measured(job_id=progress.job.job_id, measurement=measurement)

"""The order of rounds and the stopping rule, on a device whose readings are scripted."""

from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest

from device_agents.errors import DeviceFault, Stopped, SubjectFault
from device_agents.rounds import Identity, Outcome, Readings, measure
from latency_contract.jobs import MAX_REASON, Failed, LeasedJob, Measured
from latency_contract.measurements import Verdict
from latency_contract.operators import IBConv
from latency_contract.protocols import Protocol, StoppingRule

Make = Callable[..., IBConv]
REFERENCE = Path("reference")
PROTOCOL = Protocol(
    runtime="litert", runtime_version="2.3.0", stopping=StoppingRule(target=0.02, min_rounds=5, max_rounds=8)
)


class Scripted:
    """A device that answers each block from its model's script, and writes down what it ran."""

    def __init__(self, **scripts: Iterator[float | Exception]) -> None:
        self.scripts = {"reference": repeat(1.0), **scripts}
        self.ran: list[str] = []
        self.identity = Identity("A1", "12", "SDM845", "scripted", "1" * 64, "80")

    def readings(self) -> Readings:
        return Readings("performance", None, 31.5)

    def run_block(self, model: Path, *, warmup_ms: float, block_ms: float, min_runs: int, max_runs: int) -> list[float]:  # noqa: ARG002
        self.ran.append(model.name)
        answer = next(self.scripts[model.name])
        if isinstance(answer, Exception):
            raise answer
        return [answer * 1.5, answer, answer * 0.9]  # the median is the answer


def jobs(operator: Make, count: int = 1) -> tuple[list[LeasedJob], dict[str, Path]]:
    """Jobs whose models are called a, b, c …"""
    leased = [
        LeasedJob(job_id=n, subject=operator(height=n), model_sha256=f"{n:064x}", attempt=1)
        for n in range(1, count + 1)
    ]
    return leased, {job.model_sha256: Path("abcdef"[job.job_id - 1]) for job in leased}


def run(
    device: Scripted, operator: Make, *, count: int = 1, check: Callable[[], None] = lambda: None
) -> dict[int, Outcome]:
    leased, models = jobs(operator, count)
    turns = measure(leased, protocol=PROTOCOL, models=models, reference=REFERENCE, device=device, check=check)
    return {outcome.job_id: outcome for outcome in chain.from_iterable(turns)}


def measured(outcome: Outcome) -> Measured:
    assert isinstance(outcome, Measured)
    return outcome


def test_rounds_of_subjects_take_turns_between_blocks_of_the_reference(operator: Make) -> None:
    device = Scripted(a=repeat(1.0), b=repeat(2.0))
    run(device, operator, count=2)
    assert device.ran == ["reference", "a", "reference", "b", "reference"] * 5


def test_a_steady_subject_stops_at_the_fewest_rounds(operator: Make) -> None:
    outcome = measured(run(Scripted(a=repeat(1.0)), operator)[1]).measurement
    assert (outcome.verdict, len(outcome.rounds), outcome.latency_ms) == (Verdict.STEADY, 5, 1.0)


def test_a_noisy_subject_gets_more_rounds_until_it_is_steady(operator: Make) -> None:
    noisy = chain([1.3, 1.6, 1.0, 1.2], repeat(1.001))
    outcome = measured(run(Scripted(a=noisy), operator)[1]).measurement
    assert outcome.verdict == Verdict.STEADY
    assert len(outcome.rounds) == 6


def test_a_subject_that_never_settles_is_unsteady_at_the_cap(operator: Make) -> None:
    outcome = measured(run(Scripted(a=iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])), operator)[1]).measurement
    assert (outcome.verdict, len(outcome.rounds)) == (Verdict.UNSTEADY, 8)


def test_a_finished_subject_leaves_the_turns_to_the_others(operator: Make) -> None:
    device = Scripted(a=repeat(1.0), b=iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]))
    outcomes = run(device, operator, count=2)
    assert (device.ran.count("a"), device.ran.count("b")) == (5, 8)
    assert len(outcomes) == 2


def test_every_round_keeps_its_samples_and_its_reference_readings(operator: Make) -> None:
    device = Scripted(reference=iter([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9]), a=repeat(4.0))
    rounds = measured(run(device, operator)[1]).measurement.rounds
    assert rounds[0].samples_ms == (6.0, 4.0, 3.6)
    assert [(r.reference_before_ms, r.reference_after_ms) for r in rounds[:2]] == [(1.0, 1.1), (1.2, 1.3)]


def test_provenance_names_what_could_not_be_read(operator: Make) -> None:
    provenance = measured(run(Scripted(a=repeat(1.0)), operator)[1]).measurement.provenance
    assert provenance.unreadable == ("frequency_khz",)
    assert (provenance.governor, provenance.temperature_after_c, provenance.core_mask) == ("performance", 31.5, "80")


def test_a_subjects_fault_fails_it_alone(operator: Make) -> None:
    device = Scripted(a=chain([1.0], repeat(SubjectFault("segmentation fault"))), b=repeat(1.0))
    outcomes = run(device, operator, count=2)
    assert outcomes[1] == Failed(job_id=1, error="segmentation fault")
    assert isinstance(outcomes[2], Measured)


def test_a_reference_that_does_not_run_is_the_devices_fault(operator: Make) -> None:
    with pytest.raises(DeviceFault, match="The reference operator does not run here: illegal instruction"):
        run(Scripted(reference=repeat(SubjectFault("illegal instruction")), a=repeat(1.0)), operator)


@pytest.mark.parametrize("reading", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_reading_is_never_a_measurement(operator: Make, reading: float) -> None:
    with pytest.raises(DeviceFault, match="readings that cannot be times") as fault:
        run(Scripted(a=repeat(reading)), operator)
    assert len(str(fault.value)) < MAX_REASON


def test_the_check_before_every_round_can_end_the_batch(operator: Make) -> None:
    def check() -> None:
        if device.ran.count("a") == 3:
            raise Stopped("enough")

    device = Scripted(a=repeat(1.0))
    with pytest.raises(Stopped):
        run(device, operator, check=check)
    assert device.ran.count("a") == 3

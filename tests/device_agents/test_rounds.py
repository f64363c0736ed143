"""The order of rounds and the stopping rule, on a device whose readings are scripted."""

from collections.abc import Callable, Iterator
from itertools import chain, cycle, repeat
from pathlib import Path

import pytest

from device_agents import rounds
from device_agents.drift import NEEDED, Brackets, QuietReadings
from device_agents.errors import BracketsDisagree, DeviceFault, Stopped, SubjectFault
from device_agents.rounds import FRUITLESS, Outcome, check_rounds, measure
from device_agents.turns import Visit
from latency_contract.devices import DeviceKind, DeviceReport
from latency_contract.jobs import MAX_REASON, Failed, LeasedJob, Measured
from latency_contract.measurements import DeviceState, Verdict
from latency_contract.operators import IBConv
from latency_contract.protocols import Protocol, StoppingRule
from tests.device_agents.scripted_device import ScriptedDevice

Make = Callable[..., IBConv]
REFERENCE = Path("reference")
PROTOCOL = Protocol(
    runtime="litert", runtime_version="2.3.0", stopping=StoppingRule(target=0.02, min_rounds=5, max_rounds=8)
)
REPORT = DeviceReport(
    serial="A1", model="Pixel 3", kind=DeviceKind.ANDROID, soc="SDM845", os_build="12", protocol=PROTOCOL
)


def scripted(**scripts: Iterator[float | Exception]) -> ScriptedDevice:
    """A device that answers each block from its model's script."""
    scripts = {"reference": repeat(1.0), **scripts}

    def answer(model: Path) -> float:
        answer = next(scripts[model.name])
        if isinstance(answer, Exception):
            raise answer
        return answer

    state = DeviceState(governor="performance", temperature_c=31.5)
    return ScriptedDevice(answer, report=REPORT, state=lambda: state)


def jobs(operator: Make, count: int = 1) -> tuple[list[LeasedJob], dict[str, Path]]:
    """Jobs whose models are called a, b, c …"""
    leased = [
        LeasedJob(job_id=n, subject=operator(height=n), model_sha256=f"{n:064x}", attempt=1)
        for n in range(1, count + 1)
    ]
    return leased, {job.model_sha256: Path("abcdef"[job.job_id - 1]) for job in leased}


def run(
    device: ScriptedDevice,
    operator: Make,
    *,
    count: int = 1,
    leased: list[LeasedJob] | None = None,
    check: Callable[[], None] = lambda: None,
    brackets: Brackets | None = None,
    quiet: QuietReadings | None = None,
    protocol: Protocol = PROTOCOL,
) -> dict[int, Outcome]:
    made, models = jobs(operator, count if leased is None else len(leased))
    leased = made if leased is None else leased
    turns = measure(
        leased,
        protocol=protocol,
        models=models,
        reference=REFERENCE,
        device=device,
        check=check,
        brackets=Brackets() if brackets is None else brackets,
        quiet=QuietReadings() if quiet is None else quiet,
        clock_s=lambda: float(len(device.ran)),  # a block takes a second
    )
    return {outcome.job_id: outcome for outcome in chain.from_iterable(turns)}


def measured(outcome: Outcome) -> Measured:
    assert isinstance(outcome, Measured)
    return outcome


def test_rounds_of_subjects_take_turns_between_blocks_of_the_reference(operator: Make) -> None:
    device = scripted(a=repeat(1.0), b=repeat(2.0))
    run(device, operator, count=2)
    assert device.ran == ["reference", *["a", "reference", "b", "reference"] * 5]


def test_a_steady_subject_stops_at_the_fewest_rounds(operator: Make) -> None:
    outcome = measured(run(scripted(a=repeat(1.0)), operator)[1]).measurement
    assert (outcome.verdict, len(outcome.rounds), outcome.latency_ms) == (Verdict.STEADY, 5, 1.0)


def test_a_noisy_subject_gets_more_rounds_until_it_is_steady(operator: Make) -> None:
    noisy = chain([1.3, 1.6, 1.0, 1.2], repeat(1.001))
    outcome = measured(run(scripted(a=noisy), operator)[1]).measurement
    assert outcome.verdict == Verdict.STEADY
    assert len(outcome.rounds) == 8


def test_how_many_more_rounds_are_run_follows_from_the_interval(operator: Make) -> None:
    """A wide interval asks for as many rounds again, then the device is asked how it stands."""
    device = scripted(a=iter([1.0, 1.2, 1.4, 1.6, 1.8, 1.0, 1.0, 1.0]))
    run(device, operator)
    assert device.waits == 2  # 5 rounds, and the three that are left to the cap


def test_one_round_more_is_never_asked_for(operator: Make) -> None:
    """Five rounds with an interval 2.2 % wide on each side: a sixth would do if all went on as before."""
    almost = chain([1.0, 1.0025, 1.005, 1.0075, 1.01], repeat(1.0))
    outcome = measured(run(scripted(a=almost), operator)[1]).measurement
    assert (outcome.verdict, len(outcome.rounds)) == (Verdict.STEADY, 7)


def test_a_subject_that_was_never_run_in_a_quiet_moment_goes_on_until_it_is(operator: Make) -> None:
    """As beside a load that lasts: rounds agree with each other, and none is free of it."""
    device = scripted(a=chain([1.6] * 5, repeat(1.0)), reference=chain([1.0], [2.0] * 5, repeat(1.0)))
    outcome = measured(run(device, operator)[1]).measurement
    assert outcome.latency_ms == 1.0
    assert len(outcome.rounds) > 5


def test_what_was_never_run_in_a_quiet_moment_is_unsteady_however_its_rounds_agree(operator: Make) -> None:
    device = scripted(a=repeat(1.6), reference=chain([1.0], repeat(2.0)))
    outcome = measured(run(device, operator)[1]).measurement
    assert (outcome.verdict, len(outcome.rounds), outcome.quiet_reference_ms) == (Verdict.UNSTEADY, 8, 1.0)


def test_a_lease_that_was_loaded_as_a_whole_is_judged_by_a_quiet_moment_before_it(operator: Make) -> None:
    quiet = QuietReadings()
    run(scripted(a=repeat(1.0)), operator, quiet=quiet)
    loaded = scripted(a=repeat(1.07), reference=repeat(1.07))
    outcome = measured(run(loaded, operator, quiet=quiet)[1]).measurement
    assert (outcome.verdict, outcome.quiet_reference_ms) == (Verdict.UNSTEADY, 1.0)


def test_a_subject_that_never_settles_is_unsteady_at_the_cap(operator: Make) -> None:
    outcome = measured(run(scripted(a=iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])), operator)[1]).measurement
    assert (outcome.verdict, len(outcome.rounds)) == (Verdict.UNSTEADY, 8)


def test_a_finished_subject_leaves_the_turns_to_the_others(operator: Make) -> None:
    device = scripted(a=repeat(1.0), b=iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]))
    outcomes = run(device, operator, count=2)
    assert (device.ran.count("a"), device.ran.count("b")) == (5, 8)
    assert len(outcomes) == 2


def within(budget_s: float, *, max_rounds: int = 100) -> Protocol:
    stopping = StoppingRule(target=0.02, min_rounds=5, max_rounds=max_rounds, budget_s=budget_s)
    return Protocol.model_validate(dict(PROTOCOL) | {"stopping": stopping})


def test_a_budget_goes_to_the_widest_intervals(operator: Make) -> None:
    device = scripted(a=cycle([1.0, 1.01, 1.02]), b=cycle([1.0, 1.2, 1.4]), c=repeat(1.0))
    outcomes = run(device, operator, count=3, protocol=within(30))
    a, b, c = (len(measured(outcomes[job_id]).measurement.rounds) for job_id in (1, 2, 3))
    assert b > a >= c == 5
    assert 75 <= len(device.ran) <= 90  # of 3 * 30 s


def test_a_budget_goes_to_what_many_layers_use(operator: Make) -> None:
    device = scripted(a=cycle([1.0, 1.2, 1.4]), b=cycle([1.0, 1.2, 1.4]))
    leased, _ = jobs(operator, 2)
    leased[1] = leased[1].model_copy(update={"layers": 4})
    outcomes = run(device, operator, leased=leased, protocol=within(60))
    a, b = (len(measured(outcomes[job_id]).measurement.rounds) for job_id in (1, 2))
    assert b > 2 * a


def test_a_budget_is_not_ended_by_the_target(operator: Make) -> None:
    outcome = measured(run(scripted(a=repeat(1.0)), operator, protocol=within(40))[1]).measurement
    assert outcome.verdict == Verdict.STEADY
    assert 15 <= len(outcome.rounds) <= 20  # two blocks a second each


def test_a_budget_that_is_too_small_gives_the_fewest_rounds(operator: Make) -> None:
    outcome = measured(run(scripted(a=cycle([1.0, 1.5])), operator, protocol=within(1))[1]).measurement
    assert (outcome.verdict, len(outcome.rounds)) == (Verdict.UNSTEADY, 5)


def test_a_large_budget_ends_at_the_cap(operator: Make) -> None:
    outcome = measured(run(scripted(a=repeat(1.0)), operator, protocol=within(1000, max_rounds=30))[1]).measurement
    assert len(outcome.rounds) == 30


def test_every_round_keeps_its_samples_and_its_reference_readings(operator: Make) -> None:
    device = scripted(reference=iter([1.0, 1.01, 1.02, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9]), a=repeat(4.0))
    rounds = measured(run(device, operator)[1]).measurement.rounds
    assert rounds[0].samples_ms == (6.0, 4.0, 3.6)
    assert [(r.reference_before_ms, r.reference_after_ms) for r in rounds[:2]] == [(1.0, 1.01), (1.01, 1.02)]


def test_provenance_names_what_could_not_be_read(operator: Make) -> None:
    provenance = measured(run(scripted(a=repeat(1.0)), operator)[1]).measurement.provenance
    assert set(provenance.unreadable) == set(DeviceState.model_fields) - {"governor", "temperature_c"}
    assert (provenance.before.governor, provenance.after.temperature_c) == ("performance", 31.5)
    assert provenance.core_mask == "80"


def test_a_subjects_fault_fails_it_alone(operator: Make) -> None:
    device = scripted(a=chain([1.0], repeat(SubjectFault("segmentation fault"))), b=repeat(1.0))
    outcomes = run(device, operator, count=2)
    assert outcomes[1] == Failed(job_id=1, error="segmentation fault")
    assert isinstance(outcomes[2], Measured)


def test_a_reference_that_does_not_run_is_the_devices_fault(operator: Make) -> None:
    with pytest.raises(DeviceFault, match="The reference operator does not run here: illegal instruction"):
        run(scripted(reference=repeat(SubjectFault("illegal instruction")), a=repeat(1.0)), operator)


@pytest.mark.parametrize("reading", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_reading_is_never_a_measurement(operator: Make, reading: float) -> None:
    with pytest.raises(DeviceFault, match="readings that cannot be times") as fault:
        run(scripted(a=repeat(reading)), operator)
    assert len(str(fault.value)) < MAX_REASON


def test_the_check_before_every_round_can_end_the_batch(operator: Make) -> None:
    def check() -> None:
        if device.ran.count("a") == 3:
            raise Stopped("enough")

    device = scripted(a=repeat(1.0))
    with pytest.raises(Stopped):
        run(device, operator, check=check)
    assert device.ran.count("a") == 3


def test_a_rejected_round_is_evidence_and_does_not_count(operator: Make) -> None:
    def reject(visit: Visit) -> str | None:
        return "the phone is at 51 °C" if visit.reference_before_ms == 2.0 else None

    device = scripted(reference=chain([1.0, 2.0], repeat(1.0)), a=chain([5.0, 7.0], repeat(5.0)))
    device.reject = reject
    outcome = measured(run(device, operator)[1]).measurement
    assert outcome.latency_ms == outcome.high_ms == 5.0
    assert len(outcome.rounds) == 5
    assert [(r.reason, r.round.block_ms) for r in outcome.rejected] == [("the phone is at 51 °C", 7.0)]
    assert device.waits == 2  # before the first turns, and before the round that was missing


def test_a_device_whose_every_round_is_rejected_is_at_fault(operator: Make) -> None:
    device = scripted(a=repeat(1.0))
    device.reject = lambda _: "the phone is at 51 °C"
    with pytest.raises(DeviceFault, match="finished no round in 3 attempts: the phone is at 51 °C"):
        run(device, operator)
    assert device.waits == 3


def known_device(operator: Make) -> Brackets:
    """What an agent remembers of a quiet device."""
    brackets = Brackets()
    for _ in range(NEEDED // PROTOCOL.stopping.min_rounds):
        run(scripted(a=repeat(1.0)), operator, brackets=brackets)
    return brackets


def test_a_round_in_which_the_device_changed_is_evidence_and_is_run_again(operator: Make) -> None:
    """Neither a step to another speed nor one reading that is too fast leaves a trace in the number."""
    for readings, rejected in (([1.0, 1.0, 1.2], 1), ([1.0, 1.0, 0.5, 1.0], 2)):
        device = scripted(reference=chain(readings, repeat(readings[-1])), a=chain([5.0, 7.0], repeat(5.0)))
        made = measured(run(device, operator, brackets=known_device(operator))[1]).measurement
        assert (len(made.rounds), len(made.rejected), made.high_ms) == (5, rejected, 5.0)
        assert made.rejected[0].reason.startswith("the reference operator took 1 ms before and ")


def test_a_device_that_changes_with_every_round_gives_the_lease_back_and_names_the_model(operator: Make) -> None:
    readings = chain.from_iterable([1.0, 1.0, 1.3] for _ in repeat(None))
    with pytest.raises(BracketsDisagree, match=r"9 rounds of IBConv_\S+ were rejected and 3 count") as fault:
        run(scripted(reference=readings, a=repeat(1.0)), operator, brackets=known_device(operator))
    assert fault.value.suspect == Path("a")
    assert "`padnas-agent doctor` looks" in str(fault.value)


def test_a_check_is_as_many_rounds_of_the_reference_as_a_measurement_has_at_least() -> None:
    device = scripted(reference=iter([1.0 + n / 10 for n in range(11)]))
    rounds = check_rounds(REFERENCE, protocol=PROTOCOL, device=device, check=lambda: None)
    assert [(r.reference_before_ms, r.block_ms, r.reference_after_ms) for r in rounds[:2]] == [
        (1.0, 1.1, 1.2),
        (1.2, 1.3, 1.4),
    ]
    assert (len(rounds), device.waits) == (5, 1)


def test_a_check_that_comes_to_nothing_is_the_devices_fault() -> None:
    device = scripted()
    device.reject = lambda _: "the phone is at 51 °C"
    with pytest.raises(DeviceFault, match="finished too few rounds in 3 attempts: the phone is at 51 °C"):
        check_rounds(REFERENCE, protocol=PROTOCOL, device=device, check=lambda: None)
    assert device.waits == FRUITLESS
    with pytest.raises(DeviceFault, match="The reference operator does not run here: illegal instruction"):
        check_rounds(
            REFERENCE,
            protocol=PROTOCOL,
            device=scripted(reference=repeat(SubjectFault("illegal instruction"))),
            check=lambda: None,
        )


def test_a_long_plan_is_run_in_parts_and_the_device_looked_at_between_them(
    operator: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "PART_S", 0.15)  # two turns of two models
    device = scripted(a=repeat(2.0), b=repeat(3.0))
    outcomes = run(device, operator, count=2)
    assert device.waits == 3  # for five rounds of each
    assert [len(measured(outcome).measurement.rounds) for outcome in outcomes.values()] == [5, 5]


def test_a_refused_model_has_no_further_parts(operator: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "PART_S", 0.0)  # one turn
    device = scripted(a=iter([SubjectFault("no such operation")]), b=repeat(3.0))
    outcomes = run(device, operator, count=2)
    assert device.ran.count("a") == 1
    assert [outcomes[n].outcome for n in (1, 2)] == ["failed", "measured"]


def test_a_reading_that_one_round_was_without_is_named_as_unreadable(operator: Make) -> None:
    device = scripted(a=repeat(1.0))
    whole = DeviceState(governor="performance", temperature_c=31.5)
    states = chain([whole, whole, DeviceState(governor="performance")], repeat(whole))
    device.state = lambda: next(states)
    provenance = measured(run(device, operator)[1]).measurement.provenance
    assert "temperature_c" not in provenance.after.unreadable
    assert "temperature_c" in provenance.unreadable
    assert "governor" not in provenance.unreadable


def test_evidence_beyond_its_limit_is_counted(operator: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "MAX_REJECTED", 1)
    rejections = chain(["the phone is at 51 °C", "the phone is at 52 °C"], repeat(None))
    device = scripted(a=repeat(1.0))
    device.reject = lambda _: next(rejections)
    made = measured(run(device, operator)[1]).measurement
    assert ([one.reason for one in made.rejected], made.rejected_dropped) == (["the phone is at 52 °C"], 1)

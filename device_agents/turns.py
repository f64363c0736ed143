"""Turns: what a runner is told to do, what it says it did, and how its steps make rounds.

A turn runs one block of every subject, each between two blocks of the reference operator, with the device's state read
in between:

    state R A R state B R state C R state …

The next one goes on from there, or begins with a block of the reference operator in a process of its own.

A runner (litert_runner.py, or a script around benchmark_model) writes down each step as it goes. When it ends in the
middle, the steps so far still count, and the last one says whose block it was.
"""

import signal
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from device_agents.errors import DeviceFault
from device_agents.litert_runner import REFERENCE
from latency_contract.measurements import DeviceState
from latency_contract.protocols import BlockStatistic, Delegate, Protocol

BLOCK_LIMIT_S = 120  # to load, warm up and run one block, beside the block's own length; one that takes longer hangs
MAX_RUN_S = 1e7  # of one plan; a runner that says more has no clock


class Plan(NamedTuple):
    """Which TFLite files to run, and how many rounds of each."""

    reference: Path
    models: Sequence[tuple[Path, int]]
    protocol: Protocol

    def model(self, position: int) -> Path:
        return self.reference if position == REFERENCE else self.models[position][0]

    def document(self, *, core: int | None, place: str | None = None) -> dict[str, Any]:
        """What litert_runner.py reads; `place` is the folder of the files where they are not where they are here."""

        def name(path: Path) -> str:
            return str(path) if place is None else f"{place}/{path.name}"

        return {
            "core": core,
            "reference": name(self.reference),
            "models": [(name(path), rounds) for path, rounds in self.models],
            "warmup_ms": self.protocol.warmup_ms,
            "block_ms": self.protocol.block_ms,
            "reference_block_ms": self.protocol.reference_block_ms,
            "min_runs": self.protocol.min_runs,
            "max_runs": self.protocol.max_runs,
            "block_limit_s": block_limit_s(self.protocol),
            "xnnpack": self.protocol.delegate is Delegate.XNNPACK,
        }


def block_limit_s(protocol: Protocol) -> int:
    longest_ms = protocol.warmup_ms + max(protocol.block_ms, protocol.reference_block_ms)
    return BLOCK_LIMIT_S + int(longest_ms / 1000)


class Pinned(NamedTuple):
    step: Literal["pinned"]
    cores: list[int]  # that the kernel allows the runner


class Started(NamedTuple):
    step: Literal["started"]
    position: int  # of the plan's models; REFERENCE for the reference operator


class Ran(NamedTuple):
    step: Literal["ran"]
    position: int
    at_s: Annotated[float, Field(ge=0, le=MAX_RUN_S)]  # since the runner began
    samples_ms: Annotated[list[float], Field(min_length=1)]  # of each run, or one number
    summary_of: int | None  # that sums up so many
    took_s: float | None = None  # loading and warming up included; None of a process of its own


class Refused(NamedTuple):
    """The model is at fault: it cannot be loaded or run, or it ends the runner."""

    step: Literal["refused"]
    position: int
    reason: str


class Crash(NamedTuple):
    """The block ended its process, and the runner goes on: one that has a process for each."""

    step: Literal["crash"]
    position: int
    how: str  # to be read after "the runner"


class State(NamedTuple):
    step: Literal["state"]
    state: DeviceState


class Done(NamedTuple):
    step: Literal["done"]


Step = Pinned | Started | Ran | Refused | Crash | State | Done

_step: TypeAdapter[Step] = TypeAdapter(Step)


def parse_step(step: object) -> Step:
    """Raises DeviceFault for what no runner says."""
    try:
        return _step.validate_python(step)
    except ValidationError as error:
        raise DeviceFault(f"The runner says something unintelligible: {str(step)[:500]}") from error


class Visit(NamedTuple):
    """One round of one subject, with the device's state before and after it."""

    position: int  # of the plan's models
    started_at: datetime
    samples_ms: list[float]
    summary_of: int | None
    reference_before_ms: float
    reference_after_ms: float
    before: DeviceState
    after: DeviceState
    took_s: float  # inside blocks: its own and that of the reference operator after it, as far as the runner says
    rejected: str | None = None  # why it does not count


class TurnReader:
    """Puts a runner's steps together to visits."""

    def __init__(self, began_at: datetime, statistic: BlockStatistic) -> None:
        """`statistic`: what stands for a block of the reference operator."""
        self.running: int | None = None  # position of the block that was begun last and has not ended
        self.done = False
        self._began_at = began_at
        self._statistic = statistic
        self._state: DeviceState | None = None
        self._reference_ms: list[float] = []  # before and, in time, after the block
        self._block: Ran | None = None
        self._took_s = 0.0

    def read(self, step: Step) -> Visit | Refused | None:
        """What a step completes, if anything.

        Raises:
            DeviceFault: the reference operator does not run, or the steps come in an order that no runner has.
        """
        match step:
            case Started():
                self.running = step.position
            case Refused(position=position) if position == REFERENCE:
                raise DeviceFault(f"The reference operator does not run here: {step.reason}")
            case Refused():
                self.running = None
                return step
            case Crash():
                self.running = None
            case Ran(position=position) if position == REFERENCE:
                self.running = None
                self._took_s += step.took_s or 0.0
                self._reference_ms.append(self._statistic.of(step.samples_ms))
            case Ran():
                self.running = None
                self._block = step
                self._took_s += step.took_s or 0.0
            case State():
                return self._after_block(step.state)
            case Done():
                self.done = True
        return None

    def _after_block(self, state: DeviceState) -> Visit | None:
        before, self._state = self._state, state
        block, self._block = self._block, None
        if block is None:  # the turns begin, or a block came to nothing
            self._reference_ms = self._reference_ms[-1:]
            return None
        if before is None or len(self._reference_ms) != 2:
            raise DeviceFault("The runner's steps are out of order: a block has no reference readings around it.")
        first_ms, self._reference_ms = self._reference_ms[0], self._reference_ms[1:]
        took_s, self._took_s = self._took_s, 0.0
        return Visit(
            position=block.position,
            started_at=self._began_at + timedelta(seconds=block.at_s),
            samples_ms=block.samples_ms,
            summary_of=block.summary_of,
            reference_before_ms=first_ms,
            reference_after_ms=self._reference_ms[0],
            before=before,
            after=state,
            took_s=took_s,
        )


def ending(status: int | None) -> str:
    """How a runner ended, from its exit status, negative for a signal; to be read after "the runner"."""
    if status == -signal.SIGALRM:
        return "did not finish a block in time"
    if status is not None and status < 0:
        return f"was ended by signal {-status}"
    return f"exited with status {status}"


class Crashes:
    """Which models ended the runner. Once may be chance; twice in a row is the model's fault."""

    def __init__(self) -> None:
        self._last: set[str] = set()

    def ran(self, model: Path) -> None:
        self._last.discard(model.name)

    def crashed(self, model: Path, position: int, how: str) -> Refused | None:
        """The model's refusal after its second crash. Raises DeviceFault where that is the reference operator."""
        if model.name not in self._last:
            self._last.add(model.name)
            return None
        self._last.discard(model.name)
        if position == REFERENCE:
            raise DeviceFault(f"The reference operator does not run here: the runner {how} on it, twice.")
        return Refused("refused", position, f"The runner {how} on this model, twice.")

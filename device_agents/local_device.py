"""This machine as a device: what it is, what state it is in, and the pinned runner process that measures on it."""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from device_agents import litert_runner
from device_agents.errors import DeviceFault
from device_agents.rounds import Identity
from device_agents.turns import Crashes, Done, Pinned, Plan, Ran, Refused, Step, TurnReader, Visit, ending, parse_step
from latency_contract.devices import DeviceKind, DeviceReport
from latency_contract.measurements import DeviceState
from latency_contract.protocols import BlockStatistic, Cores, Protocol

RUNTIME = "litert"
DISTRIBUTION = "ai-edge-litert"
START_S = 60.0  # for the runner to start
GRACE_S = 10.0  # after which a runner that should have ended a hanging block itself is ended
CPU = Path("/sys/devices/system/cpu")


class LocalDevice:
    """One core of this machine. Only one agent at a time may have it."""

    def __init__(self) -> None:
        """Raises DeviceFault where the runtime is missing or another agent measures here."""
        library = _runtime_library()
        self.core = fastest_core()
        self._runner: _Runner | None = None
        self._crashes = Crashes()
        self._lock = _lock_machine()
        self.identity = Identity(
            serial=machine_serial(),
            os_build=platform.platform(),
            soc=f"{processor_name()}, {os.cpu_count()} cores",
            runner=f"{DISTRIBUTION} {runtime_version()} (Python {platform.python_version()})",
            runner_sha256=hashlib.sha256(library.read_bytes()).hexdigest(),
            core_mask="" if self.core is None else f"{1 << self.core:x}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._runner is not None:
            self._runner.end()
        os.close(self._lock)

    @property
    def report(self) -> DeviceReport:
        return DeviceReport(
            serial=self.identity.serial,
            model=processor_name(),
            kind=DeviceKind.LOCAL,
            soc=self.identity.soc,
            os_build=self.identity.os_build,
            protocol=litert_protocol(runtime_version(), core_mask=self.identity.core_mask),
        )

    def state(self) -> DeviceState:
        return DeviceState(**litert_runner.state(self.core))

    def check(self) -> None:
        """This machine is here."""

    def wait_until_fit(self, check: Callable[[], None]) -> None:
        """Nothing is waited for: what a computer's state does to a block shows in its rounds."""

    def run(self, plan: Plan, check: Callable[[], None]) -> Iterator[Visit | Refused]:
        """Run a plan. A runner that dies or hangs ends the run; a model on which that happens twice is refused.

        Raises:
            DeviceFault: the runner cannot be started or pinned, or the reference operator does not run.
        """
        runner = self._runner = self._runner or _Runner(self.core)
        reader = TurnReader(datetime.now(UTC), plan.protocol.statistic)
        try:
            for step in runner.steps(plan.document(core=self.core), check):
                result = reader.read(step)
                if result is not None:
                    yield result
                if isinstance(step, Ran):
                    self._crashes.ran(plan.model(step.position))
        except RunnerEnded as end:
            if reader.running is not None:
                refused = self._crashes.crashed(plan.model(reader.running), reader.running, str(end))
                if refused is not None:
                    yield refused
        finally:
            if not reader.done:  # it died, or is in the middle of what nobody waits for any more
                runner.end()
                self._runner = None


def litert_protocol(version: str, *, core_mask: str) -> Protocol:
    """What litert_runner.py measures under, here and on boards. No mask: on systems that cannot pin."""
    return Protocol(
        runtime=RUNTIME,
        runtime_version=version,
        cores=Cores.ONE_LARGE if core_mask else Cores.UNPINNED,
        core_mask=core_mask,
        statistic=BlockStatistic.P5,
    )


class RunnerEnded(Exception):
    """How the runner ended, to be read after "the runner"."""


class _Runner:
    """The child process and the pipe to it."""

    def __init__(self, core: int | None) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=litert_runner.serve, args=(theirs, core), daemon=True)
        self._process.start()
        theirs.close()
        try:
            pinned = self._receive(START_S, check=lambda: None)
        except RunnerEnded as end:
            self.end()
            raise DeviceFault(f"The runner {end} when it was started.") from end
        if core is not None and pinned != Pinned("pinned", [core]):
            self.end()
            raise DeviceFault(f"The runner was to be pinned to core {core}, but the kernel lets it run on {pinned}.")

    def steps(self, plan: dict[str, Any], check: Callable[[], None]) -> Iterator[Step]:
        """What the runner does of a plan, to its end. Raises RunnerEnded."""
        with contextlib.suppress(BrokenPipeError):  # it has ended; receiving tells how
            self._pipe.send(plan)
        limit_s = plan["block_limit_s"] + GRACE_S
        step: Step | None = None
        while not isinstance(step, Done):
            step = self._receive(limit_s, check=check)
            yield step

    def end(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def _receive(self, timeout_s: float, *, check: Callable[[], None]) -> Step:
        deadline = time.monotonic() + timeout_s
        try:
            while not self._pipe.poll(1.0):
                check()
                if time.monotonic() > deadline:
                    raise RunnerEnded(f"did not answer within {timeout_s:.0f} s")
            check()
            return parse_step(self._pipe.recv())
        except (EOFError, ConnectionResetError) as error:
            self._process.join()
            raise RunnerEnded(ending(self._process.exitcode)) from error


def fastest_core() -> int | None:
    """The core with the highest maximal frequency, the last of equals (the first serves most interrupts).

    None on systems that cannot pin a process.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    return max(os.sched_getaffinity(0), key=lambda core: (maximal_khz(core), core))


def maximal_khz(core: int) -> int:
    """0 where it cannot be read; then all cores are taken to be equal."""
    return int(litert_runner.text_of(CPU / f"cpu{core}/cpufreq/cpuinfo_max_freq") or 0)


def processor_name() -> str:
    return processor_name_in(litert_runner.text_of(Path("/proc/cpuinfo")) or "", machine=platform.machine())


def processor_name_in(info: str, *, machine: str) -> str:
    """What the kernel calls the processor in /proc/cpuinfo, in letters that a device's name may have.

    An ARM kernel may name only implementer and part; they still tell one processor from another.
    """
    named = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", info, re.MULTILINE)
    arm = re.findall(r"^CPU (?:implementer|part)\s*:\s*(\S+)$", info, re.MULTILINE)
    name = named.group(1) if named else " ".join(dict.fromkeys([machine, *arm]))
    return as_name(name)


def as_name(text: str) -> str:
    """Without what a device's name may not have (latency_contract.devices)."""
    return re.sub(r"[^\w .,:;()+@#&/'-]", "", text).strip()[:100]


def machine_serial() -> str:
    return serial_of(litert_runner.text_of(Path("/etc/machine-id")) or platform.node())


def serial_of(machine_id: str) -> str:
    """A name for a machine that stays the same, and does not tell its name on the network."""
    return f"host-{hashlib.sha256(machine_id.encode()).hexdigest()[:12]}"


def runtime_version() -> str:
    return importlib.metadata.version(DISTRIBUTION)


def runtime_is_installed() -> bool:
    return importlib.util.find_spec("ai_edge_litert") is not None


def _runtime_library() -> Path:
    """The native library that executes models. Raises DeviceFault where LiteRT is not installed."""
    package = importlib.util.find_spec("ai_edge_litert")
    if package is None or package.origin is None:
        raise DeviceFault("LiteRT is not installed here. Install the agent with: pip install 'pad-nas[agent]'")
    libraries = sorted(Path(package.origin).parent.glob("libpywrap_litert_common*"))
    if not libraries:
        raise DeviceFault("This build of LiteRT has no libpywrap_litert_common; its provenance cannot be recorded.")
    return libraries[0]


def _lock_machine() -> int:
    """Two agents on one machine would disturb each other's measurements."""
    path = Path(tempfile.gettempdir()) / "padnas-local-device.lock"
    try:
        if not path.exists():  # whoever comes first; others may not write to it, and need not
            with contextlib.suppress(FileExistsError):
                made = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL)
                os.fchmod(made, 0o444)  # for every user of this machine, whatever the umask
                os.close(made)
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DeviceFault(f"The lock file {path} cannot be opened: {error.strerror}. Remove it.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the kernel when this process ends
    except BlockingIOError as error:
        os.close(descriptor)
        raise DeviceFault(
            f"Another agent already measures on this machine (it holds {path}). Stop it, or use it instead."
        ) from error
    return descriptor

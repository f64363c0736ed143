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
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from device_agents import litert_runner
from device_agents.errors import DeviceFault, SubjectFault
from device_agents.litert_runner import Refusal, RunBlock
from device_agents.rounds import Identity, Readings
from latency_contract.devices import DeviceKind, DeviceReport
from latency_contract.protocols import Cores, Protocol

RUNTIME = "litert"
DISTRIBUTION = "ai-edge-litert"
START_S = 60.0  # for the runner to start
BLOCK_S = 120.0  # to load a model, beside the block's own length; one that hangs longer is at fault
CPU = Path("/sys/devices/system/cpu")


class LocalDevice:
    """One core of this machine. Only one agent at a time may have it."""

    def __init__(self) -> None:
        """Raises DeviceFault where the runtime is missing or another agent measures here."""
        library = _runtime_library()
        self.core = fastest_core()
        self._runner: _Runner | None = None
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
            protocol=Protocol(
                runtime=RUNTIME,
                runtime_version=runtime_version(),
                cores=Cores.UNPINNED if self.core is None else Cores.ONE_LARGE,
            ),
        )

    def readings(self) -> Readings:
        frequency = CPU / f"cpu{self.core}/cpufreq"
        khz = _read(frequency / "scaling_cur_freq")
        zones = [_read(zone) for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
        temperatures = [int(text) / 1000 for text in zones if text is not None]
        return Readings(
            governor=_read(frequency / "scaling_governor"),
            frequency_khz=None if khz is None else int(khz),
            temperature_c=max(temperatures, default=None),
        )

    def run_block(self, model: Path, *, warmup_ms: float, block_ms: float, min_runs: int, max_runs: int) -> list[float]:
        """Milliseconds of each timed run. A runner that dies or hangs is started again and asked once more.

        Raises:
            SubjectFault: the model was refused, or the runner died or hung on it twice.
            DeviceFault: the runner cannot be started or pinned.
        """
        request = RunBlock(str(model), warmup_ms, block_ms, min_runs, max_runs)
        for attempt in (1, 2):
            self._runner = self._runner or _Runner(self.core)
            try:
                answer = self._runner.ask(request, timeout_s=BLOCK_S + (warmup_ms + block_ms) / 1000)
            except RunnerEnded as end:
                self._runner = None
                if attempt == 2:
                    raise SubjectFault(f"The runner {end} on this model, twice.") from end
                continue
            if isinstance(answer, Refusal):
                raise SubjectFault(f"LiteRT refuses this model: {answer.reason}")
            return [nanoseconds / 1e6 for nanoseconds in answer]
        raise AssertionError("the loop returns or raises")


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
            allowed = self._receive(START_S)
        except RunnerEnded as end:
            raise DeviceFault(f"The runner {end} when it was started.") from end
        if core is not None and allowed != [core]:
            self.end()
            raise DeviceFault(f"The runner was to be pinned to core {core}, but the kernel lets it run on {allowed}.")

    def ask(self, request: RunBlock, *, timeout_s: float) -> list[int] | Refusal:
        """Samples in nanoseconds, or the refusal of the model. Raises RunnerEnded."""
        with contextlib.suppress(BrokenPipeError):  # it has ended; receiving tells how
            self._pipe.send(request)
        answer: list[int] | Refusal = self._receive(timeout_s)
        return answer

    def end(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def _receive(self, timeout_s: float) -> Any:
        try:
            if not self._pipe.poll(timeout_s):
                self.end()
                raise RunnerEnded(f"did not answer within {timeout_s:.0f} s")
            return self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join()
            code = self._process.exitcode
            self.end()
            how = f"was ended by signal {-code}" if code is not None and code < 0 else f"exited with status {code}"
            raise RunnerEnded(how) from error


def fastest_core() -> int | None:
    """The core with the highest maximal frequency, the last of equals (the first serves most interrupts).

    None on systems that cannot pin a process.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    return max(os.sched_getaffinity(0), key=lambda core: (maximal_khz(core), core))


def maximal_khz(core: int) -> int:
    """0 where it cannot be read; then all cores are taken to be equal."""
    return int(_read(CPU / f"cpu{core}/cpufreq/cpuinfo_max_freq") or 0)


def processor_name() -> str:
    """What the kernel calls the processor, in letters that a device's name may have.

    An ARM kernel may name only implementer and part; they still tell one processor from another.
    """
    info = _read(Path("/proc/cpuinfo")) or ""
    named = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", info, re.MULTILINE)
    arm = re.findall(r"^CPU (?:implementer|part)\s*:\s*(\S+)$", info, re.MULTILINE)
    name = named.group(1) if named else " ".join(dict.fromkeys([platform.machine(), *arm]))
    return re.sub(r"[^\w .,:;()+@#&/'-]", "", name).strip()[:100]


def machine_serial() -> str:
    """A name for this machine that stays the same, and does not tell its name on the network."""
    named = _read(Path("/etc/machine-id")) or platform.node()
    return f"host-{hashlib.sha256(named.encode()).hexdigest()[:12]}"


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
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
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


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None

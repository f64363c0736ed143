"""A device at the far end of ADB: a phone, or a Linux board. Few round trips, whatever happens to the cable.

Of a plan's files the device is sent those that its cache lacks, all at once; then one shell command runs the plan and
writes each step to a file, and that file is fetched. When the link breaks in the middle, it is built up again, what
still runs is ended, and the steps that were written down count.

On the device there is one folder:

    cache/          models and programs by their SHA-256, bounded, kept
    run-TOKEN-N/    steps and output of this agent's N-th plan; removed with the next plan, the agent, or by another one

A plan has a folder of its own: when the link breaks before it has begun, what an earlier one wrote is not there to be
taken for it.
"""

import contextlib
import io
import logging
import re
import secrets
import tarfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol as Interface
from typing import Self

from device_agents.adb import AdbLink, Output
from device_agents.enrolment import Enrolment, enrol
from device_agents.errors import (
    AgentError,
    CommandHung,
    DeviceChanged,
    DeviceFault,
    DeviceFull,
    DeviceRebooted,
    LinkLost,
    PathRefused,
)
from device_agents.gates import BOARD, PHONE, crossed, not_fit, parse_readings, readings_script
from device_agents.litert_runner import CANNOT_WRITE, NO_INPUT, REFERENCE
from device_agents.rounds import Identity
from device_agents.turns import (
    BLOCK_LIMIT_S,
    Crash,
    Crashes,
    Pinned,
    Plan,
    Ran,
    Refused,
    Started,
    Step,
    TurnReader,
    Visit,
    ending,
)
from latency_contract.devices import DeviceReport
from latency_contract.measurements import DeviceState

log = logging.getLogger(__name__)

ANDROID_FOLDER = "/data/local/tmp/padnas"  # the one place where Android lets the shell keep and execute files
BOARD_FOLDER = "/var/tmp/padnas"
CACHE_LIMIT_KB = 256 * 1024
SPARE_KB = 64 * 1024  # left free: a phone whose storage is full kills programs and wears out its flash
SCRIPT_S = 30.0  # for scripts that only look or tidy up
RECONNECT_S = 90.0  # a link that is not back by then is the device's fault; a phone that reboots is
RECONNECT_PAUSE_S = 0.5
COOLING_S = 900.0  # a device that is not fit to measure by then gives its lease back
COOLING_PAUSE_S = 5.0
BLOCK_OVERHEAD_S = 3.0  # of a block, to start a process on a slow phone and to read its state; an upper bound
BUSY = 75  # exit status of our script (sysexits.h: EX_TEMPFAIL)

FILE_NAME = re.compile(r"[0-9a-f]{64}(\.tflite|\.py)?")


class RemoteRunner(Interface):
    """A program that runs plans on the device, started in the run folder. It reads `plan` and writes `steps`."""

    @property
    def programs(self) -> Mapping[str, bytes]:
        """Files that it needs in the cache, by name: their SHA-256 and perhaps a suffix."""
        ...

    @property
    def command(self) -> str: ...

    def plan_text(self, plan: Plan) -> str:
        """What goes into `plan`; a model is `../cache/NAME`."""
        ...

    def steps(self, text: str, plan: Plan) -> Iterator[Step]:
        """The steps in what it wrote, which may end anywhere. Raises DeviceFault for what it cannot have written."""
        ...


class AdbDevice:
    """One core of a device over ADB."""

    def __init__(
        self,
        link: AdbLink,
        enrolment: Enrolment,
        runner: RemoteRunner,
        *,
        identity: Identity,
        report: DeviceReport,
        folder: str,
    ) -> None:
        """`link` is connected. Nothing is changed on the device before the first plan."""
        self.identity = identity
        self.report = report
        self.enrolment = enrolment
        self._link = link
        self._runner = runner
        self._folder = folder
        self._own_runs = f"{folder}/run-{secrets.token_hex(4)}"  # what the names of this agent's folders begin with
        self._run_number = 0
        self._left_behind: str | None = f"{folder}/run-"  # the same of runs that may still have to be ended
        self._crashes = Crashes()
        self._present: set[str] = set()  # names of files that are in the cache for certain
        self._fit = False  # as the last block's readings say
        self._limits = PHONE if enrolment.android else BOARD
        # A phone's cap is its core's maximum unless it is throttled; a board's owner may have set another one.
        self._max_khz = enrolment.max_khz if enrolment.android else None

    @property
    def _run_folder(self) -> str:
        """Of the present plan, on the device."""
        return f"{self._own_runs}-{self._run_number}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave nothing on the device but the cache, if it can be reached. It is not waited for."""
        with contextlib.suppress(AgentError):
            self._end_runs(self._own_runs, patience_s=0.0)
        self._link.close()

    def check(self) -> None:
        """Raises DeviceFault where the device does not answer, DeviceChanged where it is not the one it was."""
        self._on_device("true", patience_s=0.0)

    def wait_until_fit(self, check: Callable[[], None]) -> None:
        """Return when nothing speaks against measuring, as the device's own readings say.

        Raises:
            DeviceFault: it takes longer than COOLING_S, or the device does not answer.
        """
        deadline = time.monotonic() + COOLING_S
        said = None
        while not self._fit:
            reason = self.waits_for(self.state(check))
            if reason is None:
                return
            if time.monotonic() > deadline:
                raise DeviceFault(f"The device is not fit to measure after {COOLING_S / 60:.0f} minutes: {reason}.")
            if reason != said:
                log.info("waiting for %s: %s", self.report.serial, reason)
                said = reason
            _pause(COOLING_PAUSE_S, check)

    def run(self, plan: Plan, check: Callable[[], None]) -> Iterator[Visit | Refused]:
        """Run a plan on the device. Ends early where the link broke and is back, where it took too long, or a model
        ended the runner.

        Raises:
            DeviceFault: the link does not come back, or the device cannot store or run what it must.
            DeviceRebooted: it did so in the middle; the model that ran is suspected.
        """
        self._fit = False
        status: int | None = None  # of the runner; None where it was cut off
        rebooted = False
        began_at = datetime.now(UTC)
        try:
            if self._left_behind is not None:
                self._end_runs(self._left_behind, check=check)
            self._left_behind = self._own_runs  # until this plan has come to its end
            self._run_number += 1
            arriving = self._send(plan, check)
            began_at = datetime.now(UTC)
            try:
                status = self._execute(plan, arriving, check)
            except CommandHung as late:
                log.warning("%s Its rounds so far count.", late)
            text = self._steps_so_far()
            self._left_behind = None if status is not None else self._own_runs
        except LinkLost as loss:
            rebooted = self._reconnect(loss, check)
            text = self._steps_so_far()
            with contextlib.suppress(DeviceFault):
                self._end_runs(self._own_runs, check=check)
        except Exception:
            with contextlib.suppress(AgentError):
                self._end_runs(self._own_runs, patience_s=0.0)
            raise
        reader = TurnReader(began_at, plan.protocol.statistic)
        try:
            yield from self._results(plan, reader, text)
            if rebooted:
                suspect = None if reader.running is None else plan.model(reader.running)
                raise DeviceRebooted("The device rebooted in the middle of a run.", suspect=suspect)
            if status and not reader.done:
                refused = self._blame(plan, reader.running, status)
                if refused is not None:
                    yield refused
        except DeviceFault:
            self._present = set()  # somebody else may have cleared the cache; the next plan looks
            raise

    def _results(self, plan: Plan, reader: TurnReader, text: str) -> Iterator[Visit | Refused]:
        fit = True
        for step in self._runner.steps(text, plan):
            if isinstance(step, Started | Ran | Refused | Crash) and not REFERENCE <= step.position < len(plan.models):
                raise DeviceFault(f"The runner speaks of a model that it was not given: {step}")
            if isinstance(step, Pinned) and step.cores != [self.enrolment.core]:
                raise DeviceFault(
                    f"The runner was to be pinned to core {self.enrolment.core}, but the kernel lets it run on"
                    f" {step.cores}."
                )
            result = reader.read(step)
            if isinstance(step, Ran):
                self._crashes.ran(plan.model(step.position))
            if isinstance(step, Crash):
                result = self._crashes.crashed(plan.model(step.position), step.position, step.how)
            if isinstance(result, Visit):
                result = result._replace(rejected=self._crossed(result))
                fit = fit and result.rejected is None
            if result is not None:
                yield result
        self._fit = fit and reader.done

    def _blame(self, plan: Plan, running: int | None, status: int) -> Refused | None:
        """The runner ended by itself before it was done."""
        if status == NO_INPUT:
            raise DeviceFault("Files that were sent to the device are not there any more. They are sent again.")
        how = ending(128 - status if status > 128 else status)  # a shell's status for a signal
        if running is None:
            output = self._on_device(f"tail -n 20 {self._run_folder}/output").text.strip()
            raise DeviceFault(f"The runner {how} before it ran anything. It said: {output[-2000:] or 'nothing'}")
        return self._crashes.crashed(plan.model(running), running, how)

    def _send(self, plan: Plan, check: Callable[[], None]) -> Mapping[str, bytes]:
        """The plan, and of the files that it needs those that the device lacks: they are returned, by name."""
        programs = self._runner.programs
        paths = {path.name: path for path in (plan.reference, *(model for model, _ in plan.models))}
        needed = {*paths, *programs}
        assert all(FILE_NAME.fullmatch(name) for name in needed), needed
        if not needed <= self._present:
            sizes = {name: len(programs[name]) if name in programs else paths[name].stat().st_size for name in needed}
            self._look_into_cache(sizes, check)
        missing = sorted(needed - self._present)
        files = {name: programs[name] if name in programs else paths[name].read_bytes() for name in missing}
        self._link.push(_archive(files, self._runner.plan_text(plan)), f"{self._run_folder}/files.tar")
        return files

    def _look_into_cache(self, sizes: Mapping[str, int], check: Callable[[], None]) -> None:
        """Which files of these sizes in bytes are there and whole; makes room for the others.

        Raises:
            DeviceFull: there is none.
        """
        names = " ".join(sorted(sizes))
        output = self._on_device(
            f"""
            mkdir -p {self._run_folder} {self._folder}/cache && cd {self._folder}/cache || exit {CANNOT_WRITE}
            sha256sum {names} 2>/dev/null
            size() {{ echo "@used $(du -sk .)"; echo "@free $(df -k . | tail -n 1)"; }}
            size
            """,
            check=check,
        )
        self._must_store(output)
        self._present = {name for name in sizes if _hashes_to_its_name(name, output.text)}
        if sizes.keys() <= self._present:
            return
        # Twice: as they arrive, in one archive, and unpacked.
        arriving_kb = 2 * sum(size for name, size in sizes.items() if name not in self._present) // 1024
        used_kb, free_kb = _kilobytes(output.text, "@used"), _kilobytes(output.text, "@free")
        if used_kb + arriving_kb < CACHE_LIMIT_KB and free_kb - arriving_kb > SPARE_KB:
            return
        log.info("clearing the cache of %s", self.report.serial)
        output = self._on_device(
            f"""
            cd {self._folder}/cache || exit {CANNOT_WRITE}
            for file in *; do case " {names} " in *" $file "*) ;; *) rm -f "$file" ;; esac; done
            echo "@free $(df -k . | tail -n 1)"
            """,
            check=check,
        )
        free_kb = _kilobytes(output.text, "@free")
        if free_kb - arriving_kb < SPARE_KB:
            raise DeviceFull(
                f"The device has {free_kb // 1024} MB free in {self._folder}; free"
                f" {(SPARE_KB + arriving_kb) // 1024} MB at least."
            )

    def _execute(self, plan: Plan, arriving: Collection[str], check: Callable[[], None]) -> int:
        """Unpack, verify and run; returns the runner's exit status.

        Raises:
            DeviceFault: something cannot be stored, arrived damaged, or another agent is measuring there.
        """
        names = " ".join(sorted(arriving))
        store = (
            f"mv -f files/* ../cache/ && cd ../cache && sha256sum {names} && cd {self._run_folder}" if names else ":"
        )
        rounds = sum(rounds for _, rounds in plan.models)
        block_s = (plan.protocol.warmup_ms + plan.protocol.block_ms) / 1000 + BLOCK_OVERHEAD_S
        # The lock is held by whatever the parentheses start, and let go by the kernel when that has ended.
        output = self._link.run(
            f"""
            cd {self._run_folder} && echo "$$ {self.enrolment.boot_id}" >pid || exit {CANNOT_WRITE}
            rm -rf {self._own_runs}-{self._run_number - 1}
            tar xf files.tar && rm -f files.tar && {store} || exit {CANNOT_WRITE}
            (
            if command -v flock >/dev/null; then flock -n 9 || exit {BUSY}; fi
            {self._runner.command} >output 2>&1
            ) 9>{self._folder}/lock
            """,
            limit_s=2 * rounds * block_s + BLOCK_LIMIT_S,
            check=check,
        )
        self._must_store(output)
        if output.status == BUSY:
            raise DeviceFault("Another agent is measuring on this device. Stop it, or leave the device to it.")
        damaged = [name for name in arriving if not _hashes_to_its_name(name, output.text)]
        if damaged:
            raise DeviceFault(f"{len(damaged)} files arrived damaged on the device. Try another cable or network.")
        self._present |= set(arriving)
        return output.status

    def _must_store(self, output: Output) -> None:
        if output.status == CANNOT_WRITE:
            raise DeviceFault(
                f"The device cannot store files in {self._folder}: {output.text.strip()[-500:]}"
                " Is its storage full or read-only?"
            )

    def _steps_so_far(self) -> str:
        """What the runner has written, where it has begun to."""
        try:
            return self._link.pull(f"{self._run_folder}/steps").decode(errors="replace")
        except PathRefused:
            return ""

    def _end_runs(
        self, beginning: str, *, check: Callable[[], None] = lambda: None, patience_s: float | None = None
    ) -> None:
        """End what is running for the plans whose folders begin so, and remove these folders.

        A process of that number is ended only if it was started since the device booted, by us.
        """
        self._on_device(
            f"""
            cd {self._folder} 2>/dev/null || exit 0
            for file in {beginning}*/pid; do
            read pid boot <"$file" 2>/dev/null || continue
            [ "$boot" = "$(cat /proc/sys/kernel/random/boot_id)" ] || continue
            grep -q {self._folder} /proc/$pid/cmdline 2>/dev/null || continue
            kill -9 -- -$pid 2>/dev/null || kill -9 $pid
            done
            rm -rf {beginning}*
            """,
            check=check,
            patience_s=patience_s,
        )
        self._present = set()

    def _crossed(self, visit: Visit) -> str | None:
        governor = self.enrolment.state.governor
        return crossed(visit.before, visit.after, limits=self._limits, max_khz=self._max_khz, governor=governor)

    def waits_for(self, state: DeviceState) -> str | None:
        """What in a state speaks against measuring."""
        governor = self.enrolment.state.governor
        return not_fit(state, limits=self._limits, max_khz=self._max_khz, governor=governor)

    def state(self, check: Callable[[], None] = lambda: None) -> DeviceState:
        script = readings_script(core=self.enrolment.core, android=self.enrolment.android)
        return parse_readings(self._on_device(f"{script}\nreadings 2>/dev/null", check=check).text)

    def _on_device(
        self, script: str, *, check: Callable[[], None] = lambda: None, patience_s: float | None = None
    ) -> Output:
        """Run a short script; once more if the link breaks under it and comes back."""
        try:
            return self._link.run(script, limit_s=SCRIPT_S, check=check)
        except LinkLost as loss:
            self._reconnect(loss, check, patience_s)
            return self._link.run(script, limit_s=SCRIPT_S, check=check)

    def _reconnect(self, loss: LinkLost, check: Callable[[], None], patience_s: float | None = None) -> bool:
        """Build the link up again within RECONNECT_S, or in one attempt; returns whether the device rebooted meanwhile.

        Raises what keeps it from coming.
        """
        log.warning("the link to %s broke (%s); building it up again", self.report.serial, loss)
        deadline = time.monotonic() + (RECONNECT_S if patience_s is None else patience_s)
        while True:
            try:
                self._link.connect()
                now = enrol(lambda script: self._link.run(script, limit_s=SCRIPT_S, check=check))
                break
            except DeviceFault as fault:
                if time.monotonic() > deadline:
                    raise fault from loss
                _pause(RECONNECT_PAUSE_S, check)
        self._present = set()
        rebooted = now.boot_id != self.enrolment.boot_id
        if now.lasting != self.enrolment.lasting:
            raise DeviceChanged(
                f"{self._link.target} was {self.enrolment.model} {self.enrolment.serial} with"
                f" {self.enrolment.os_build}; now {now.model} {now.serial} with {now.os_build} answers there."
                " Start the agent again."
            )
        self.enrolment = now
        return rebooted


def _pause(seconds: float, check: Callable[[], None]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        check()
        time.sleep(min(0.5, seconds))


def _archive(files: Mapping[str, bytes], plan: str) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in {
            **{f"files/{name}": content for name, content in files.items()},
            "plan": plan.encode(),
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def _hashes_to_its_name(name: str, output: str) -> bool:
    """Whether sha256sum said of a file that its content has the hash by which it is called."""
    return f"{name[:64]}  {name}" in output


def _kilobytes(output: str, mark: str) -> int:
    """From a line `@used KB PLACE` of du, or `@free DEVICE TOTAL USED FREE SHARE% PLACE` of df."""
    for line in output.splitlines():
        words = line.split()
        if words[:1] == [mark]:
            shares = [n for n, word in enumerate(words) if word.endswith("%")]
            number = words[shares[0] - 1] if shares else words[1]
            if number.isdigit():
                return int(number)
    raise DeviceFault(f"The device does not say how much it stores: {output.strip()[:500]}")

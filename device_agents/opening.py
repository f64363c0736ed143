"""From `adb:HOST:PORT` or `usb:SERIAL` to a device that can measure: connect, see what it is, choose its runner.

given a benchmark_model     it is sent there, tried once, and used: on phones, and on boards if one wants
a board with LiteRT         litert_runner.py in the board's own Python
"""

import contextlib
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from device_agents.adb import DEFAULT_KEY, AdbLink, AdbTarget, Output
from device_agents.adb_device import ANDROID_FOLDER, BOARD_FOLDER, AdbDevice
from device_agents.benchmark_model import Build, build_of, elf_machine, fault_of, has_result_file, identify, words
from device_agents.benchmark_output import Program
from device_agents.enrolment import Enrolment, LiteRT, enrol
from device_agents.errors import DeviceFault
from device_agents.local_device import DISTRIBUTION, litert_protocol
from device_agents.remote_benchmark_model import RemoteBenchmarkModel
from device_agents.remote_litert import RemoteLiteRT
from device_agents.rounds import Identity
from latency_contract.devices import DeviceKind, DeviceReport
from latency_contract.protocols import Protocol

PROBE_MODEL = Path(__file__).parent / "probe.tflite"  # one ReLU, to see what a program prints
PROBE_S = 60.0
FOLDER = re.compile(r"/[\w./-]{1,200}", re.ASCII)
NAMES = {Program.TFLITE: "TensorFlow Lite benchmark_model", Program.LITERT: "LiteRT benchmark_model"}
RUNTIMES = {Program.TFLITE: "tflite-benchmark-model", Program.LITERT: "litert-benchmark-model"}

# Of a program that is a process for each block, and whose clock counts whole microseconds. Starting it takes a phone
# some tens of milliseconds, so blocks are longer than in a process that stays.
PHONE_BLOCKS = {"warmup_ms": 20.0, "block_ms": 100.0, "reference_block_ms": 30.0}
PROBE = Protocol(runtime="probe", runtime_version="1", **PHONE_BLOCKS)


def open_device(
    target: AdbTarget, *, keys: Path = DEFAULT_KEY, benchmark_binary: Path | None, folder: str | None = None
) -> AdbDevice:
    """Connect and find out how to measure there. `folder` on the device keeps models; None: the usual place.

    Raises:
        DeviceFault: it cannot be reached, or is not fit; the sentence says what is missing.
        ValueError: the binary is for another kind of processor, or the folder cannot be one.
    """
    if folder is not None and not FOLDER.fullmatch(folder):
        raise ValueError(f"'{folder}' cannot be a folder on the device: use letters, digits and _ . / - only.")
    link = AdbLink(target, keys=keys)
    link.connect()
    try:
        return _open(link, benchmark_binary, folder)
    except BaseException:
        link.close()
        raise


def _open(link: AdbLink, benchmark_binary: Path | None, folder: str | None) -> AdbDevice:
    def shell(script: str) -> Output:
        return link.run(script, limit_s=PROBE_S)

    enrolment = enrol(shell)
    folder = folder or (ANDROID_FOLDER if enrolment.android else BOARD_FOLDER)
    if benchmark_binary is not None:
        return _with_benchmark_model(link, shell, enrolment, benchmark_binary.read_bytes(), folder)
    if enrolment.litert is not None:
        return _with_litert(link, enrolment, enrolment.litert, folder)
    raise DeviceFault(
        f"{link.target} has no runtime to measure with. "
        + (
            "Give it one with --benchmark-binary PATH: TensorFlow Lite's or LiteRT's benchmark_model, built for Android"
            f" and {enrolment.abi}."
            if enrolment.android
            else "Install ai-edge-litert for its python3, or give a benchmark_model with --benchmark-binary PATH."
        )
    )


def _with_litert(link: AdbLink, enrolment: Enrolment, litert: LiteRT, folder: str) -> AdbDevice:
    """As this machine is measured, so that a board and a computer of one kind have one protocol."""
    protocol = litert_protocol(litert.version, core_mask=enrolment.core_mask)
    runner = f"{DISTRIBUTION} {litert.version} (Python {litert.python})"
    return AdbDevice(
        link,
        enrolment,
        RemoteLiteRT(core=enrolment.core),
        identity=_identity(enrolment, runner=runner, sha256=litert.sha256),
        report=_report(enrolment, protocol),
        folder=folder,
    )


def _with_benchmark_model(
    link: AdbLink, shell: Callable[[str], Output], enrolment: Enrolment, binary: bytes, folder: str
) -> AdbDevice:
    if not binary.startswith(b"#!"):  # a script is for any processor
        abi = elf_machine(binary)
        if abi != enrolment.abi:
            raise ValueError(
                f"The benchmark_model given is built for {abi}, but {link.target} is {enrolment.abi}. Give one for it."
            )
    sha256 = hashlib.sha256(binary).hexdigest()
    build = _tried(link, shell, binary, f"{folder}/cache/{sha256}", abi=enrolment.abi)
    protocol = Protocol(
        runtime=RUNTIMES[build.program],
        runtime_version=sha256[:12],
        core_mask=enrolment.core_mask,
        statistic=build.statistic,
        **PHONE_BLOCKS,
    )
    return AdbDevice(
        link,
        enrolment,
        RemoteBenchmarkModel(binary, build, enrolment),
        identity=_identity(enrolment, runner=_name(build), sha256=sha256),
        report=_report(enrolment, protocol),
        folder=folder,
    )


def _name(build: Build) -> str:
    return f"{NAMES[build.program]}{'' if build.says_xnnpack else ' (does not say whether XNNPACK ran)'}"


def _tried(link: AdbLink, shell: Callable[[str], Output], binary: bytes, path: str, *, abi: str) -> Build:
    """Send the program to where its blocks will start it, and see what it is and what it prints of one.

    Raises:
        DeviceFault: it cannot be started there, or nothing can be made of what it says.
    """
    probe = f"{path}-probe"
    there = shell(f"test -x {path} && sha256sum {path}")
    if there.status != 0 or not there.text.startswith(hashlib.sha256(binary).hexdigest()):
        link.push(binary, path, executable=True)
    try:
        link.push(PROBE_MODEL.read_bytes(), probe)
        help_text = shell(f"timeout {PROBE_S:.0f} {path} --help 2>&1").text
        program = identify(help_text)
        result = f"{path}-result" if has_result_file(help_text) else None
        arguments = words(program, PROBE, graph=probe, block_ms=1.0, max_s=PROBE_S / 2, result_file=result)
        output = shell(f"timeout {PROBE_S:.0f} {path} {' '.join(arguments)} 2>&1")
        if output.status != 0:
            raise DeviceFault(str(fault_of(output.status, output.text, abi=abi)))
        content = None if result is None else link.pull(result)
    finally:
        with contextlib.suppress(DeviceFault):
            shell(f"rm -f {path}-*")
    return build_of(help_text, text=output.text, result_file=content, min_runs=PROBE.min_runs)


def _identity(enrolment: Enrolment, *, runner: str, sha256: str) -> Identity:
    return Identity(
        serial=enrolment.serial,
        os_build=enrolment.os_build,
        soc=enrolment.soc,
        runner=runner,
        runner_sha256=sha256,
        core_mask=enrolment.core_mask,
    )


def _report(enrolment: Enrolment, protocol: Protocol) -> DeviceReport:
    return DeviceReport(
        serial=enrolment.serial,
        model=enrolment.model,
        kind=DeviceKind.ANDROID if enrolment.android else DeviceKind.BOARD,
        soc=enrolment.soc,
        os_build=enrolment.os_build,
        protocol=protocol,
    )

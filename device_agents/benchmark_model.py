"""The two programs called `benchmark_model`: which one it is, what it is told, and whose fault it is when it fails.

No input or output here: texts and bytes come in, words and verdicts go out. What they print is benchmark_output.py's.
"""

import re
from typing import NamedTuple

from device_agents.benchmark_output import BlockSummary, Program, UnparsableOutput, ending_of, parse_text
from device_agents.errors import AgentError, DeviceFault, SubjectFault, Unexplained
from latency_contract.protocols import BlockStatistic, Delegate, Protocol


class Crashed(SubjectFault):
    """The program was ended from outside; the text is to be read after "the runner".

    Once may be chance, as when Android needs memory; twice in a row is the model's fault (turns.Crashes).
    """


_OF_BOTH = ("graph", "num_threads", "num_runs", "min_secs", "max_secs", "warmup_runs", "warmup_min_secs")
_FLAGS = {  # that a build must have, in the order in which they tell the programs apart
    Program.LITERT: (*_OF_BOTH, "use_cpu", "use_gpu", "use_npu"),
    Program.TFLITE: (*_OF_BOTH, "use_xnnpack"),
}


def identify(help_text: str) -> Program:
    """Which program it is, from what `--help` prints (its status is then 1 in both).

    Raises:
        DeviceFault: it is neither, or so old that what it measures could not be said.
    """
    for program, flags in _FLAGS.items():
        if all(_has_flag(help_text, flag) for flag in flags):
            return program
    raise DeviceFault(
        "This program is neither TensorFlow Lite's benchmark_model, of 2020 or later, nor LiteRT's. "
        f"Give another one with --benchmark-binary. To --help it answers: {ending_of(help_text)}"
    )


def has_result_file(help_text: str) -> bool:
    """Whether the build can write its result to a file."""
    return _has_flag(help_text, "result_file_path")


def words(
    program: Program,
    protocol: Protocol,
    *,
    graph: str,
    block_ms: float,
    max_s: float,
    result_file: str | None = None,
) -> list[str]:
    """The arguments for one block under a protocol: `block_ms` of runs, no fewer than the protocol's fewest.

    `max_s` ends a block even with fewer runs. XNNPACK is always said: left out, the runtime decides by itself.

    Raises:
        ValueError: the program has no such delegate, or a path could mean something to a shell.
    """
    for path in [graph] if result_file is None else [graph, result_file]:
        if not re.fullmatch(r"[A-Za-z0-9_./-]+", path):
            raise ValueError(f"{path!r} cannot be a path on a device: use letters, digits and _ . / - only")
    return [
        f"--graph={graph}",
        f"--num_threads={protocol.threads}",
        *_delegate_words(program, protocol.delegate),
        f"--num_runs={protocol.min_runs}",
        f"--min_secs={_decimal(block_ms / 1000)}",
        f"--max_secs={_decimal(max_s)}",
        "--warmup_runs=1",
        f"--warmup_min_secs={_decimal(protocol.warmup_ms / 1000)}",
        *([] if result_file is None else [f"--result_file_path={result_file}"]),
    ]


def _delegate_words(program: Program, delegate: Delegate) -> list[str]:
    match program, delegate:
        case Program.TFLITE, Delegate.XNNPACK:
            return ["--use_xnnpack=true"]
        case Program.TFLITE, Delegate.NONE:
            return ["--use_xnnpack=false"]
        case Program.LITERT, Delegate.XNNPACK:  # which is what its CPU is
            return ["--use_cpu=true", "--use_gpu=false", "--use_npu=false"]
    raise ValueError(f"the benchmark_model of {program} cannot measure with delegate {delegate.value!r}; use 'xnnpack'")


def _has_flag(help_text: str, flag: str) -> bool:
    return f"--{flag}=" in help_text


def _decimal(seconds: float) -> str:
    return f"{seconds:.6f}"


class Build(NamedTuple):
    """What a build of a program gives, found once, so that all blocks of a table are of one kind."""

    program: Program
    has_result_file: bool
    statistic: BlockStatistic
    says_xnnpack: bool = False  # whether XNNPACK runs a model

    def summary(self, text: str, result_file: bytes | None, *, min_runs: int) -> BlockSummary:
        """A block run with XNNPACK, from all that was printed, and from the result file if the build has one.

        Raises:
            SubjectFault: XNNPACK runs no part of the model.
            UnparsableOutput: they give no latency, or another statistic than the build's.
        """
        if self.says_xnnpack and not _ran_on_xnnpack(text):
            raise SubjectFault("XNNPACK runs no part of this model.")
        if self.has_result_file and result_file is None:
            raise UnparsableOutput("it wrote no result file, though it can", text)
        block = parse_text(self.program, text, result_file=result_file, min_runs=min_runs)
        if block.statistic != self.statistic:
            raise UnparsableOutput(f"it gives the {block.statistic}, not the {self.statistic} as before", text)
        return block


def build_of(help_text: str, *, text: str, result_file: bytes | None, min_runs: int) -> Build:
    """What a build gives, from what `--help` prints and what a first block gave.

    Raises:
        DeviceFault: the program is unknown, or has no XNNPACK.
        UnparsableOutput: the block gives no latency.
    """
    program = identify(help_text)
    block = parse_text(program, text, result_file=result_file, min_runs=min_runs)
    ran_on_xnnpack = _ran_on_xnnpack(text)
    if ran_on_xnnpack is False:
        raise DeviceFault("This build of benchmark_model does not run models with XNNPACK. Give one that does.")
    build = Build(program, has_result_file(help_text), block.statistic, says_xnnpack=bool(ran_on_xnnpack))
    build.summary(text, result_file, min_runs=min_runs)
    return build


def _ran_on_xnnpack(text: str) -> bool | None:
    """Whether XNNPACK ran a model, or part of it; None where the build does not say.

    What TensorFlow Lite's program says of each delegate that it was told to apply (benchmark_tflite_model.cc), with
    "w/ the delegate" in older builds. That a delegate was created says nothing of the model.
    """
    if "XNNPACK delegate is explicitly applied, the model graph will not be executed" in text:
        return False
    return True if _ON_XNNPACK.search(text) else None


_ON_XNNPACK = re.compile(r"pplied XNNPACK delegate, and the model graph will be (?:completely|partially) executed")

TIMED_OUT = 124  # the status of `timeout` when it has ended a program
_NOT_STARTED = (126, 127)  # a shell's, for a program that cannot be executed or is not there
_WRONG_BINARY = re.compile(
    r"not executable|exec format error|cannot execute|inaccessible or not found|CANNOT LINK EXECUTABLE"
    r"|error while loading shared libraries|unexpected e_machine|syntax error:",
    re.IGNORECASE,
)
_MODEL_IS_GONE = re.compile(r"Could not open '|File not found: ")
_WRONG_USE = re.compile(r"^(?:ERROR: )?usage: |Failed to parse flag|Unconsumed cmdline flags", re.MULTILINE)
_REFUSES = re.compile(
    r"Benchmarking failed\.|Failed to (?:load model|initialize the interpreter|apply|allocate tensors|compile model"
    r"|create (?:in|out)put buffer)|Didn't find op for builtin opcode|unresolved custom op|Run failed"
)


def fault_of(status: int, text: str, *, abi: str) -> AgentError:
    """Whose fault it is that the program ended with a status other than 0, `text` being all that it printed.

    `abi` is the device's, as Android names it. A status may be a shell's (128 and the signal) or Python's (minus the
    signal). What is not known to be the model's fault is the device's.
    """
    assert status != 0
    if status in _NOT_STARTED or _WRONG_BINARY.search(text):
        return DeviceFault(
            f"benchmark_model cannot be started on this device: {ending_of(text)}. "
            f"Give --benchmark-binary a build for its ABI, {abi}."
        )
    if status == TIMED_OUT:
        return Crashed("did not finish a block in time")
    signal = -status if status < 0 else status - 128
    if 1 <= signal <= 64:
        return Crashed(f"was ended by signal {signal}")
    if _MODEL_IS_GONE.search(text):
        return DeviceFault(f"The model's file is not on the device any more: {ending_of(text)}")
    if _WRONG_USE.search(text):
        return DeviceFault(f"This build of benchmark_model does not take its arguments: {ending_of(text)}")
    if _REFUSES.search(text):
        return SubjectFault(f"benchmark_model refuses this model: {ending_of(text)}")
    return Unexplained(f"benchmark_model ended with status {status}: {ending_of(text)}")


_ABIS = {  # by word size in bits and `e_machine` of an ELF header
    (64, 183): "arm64-v8a",
    (32, 40): "armeabi-v7a",
    (64, 62): "x86_64",
    (32, 3): "x86",
}


def elf_machine(content: bytes) -> str:
    """The ABI that a binary is built for, as Android names it (ro.product.cpu.abi).

    Raises:
        ValueError: it is no binary of any Android device.
    """
    if content[:4] != b"\x7fELF" or len(content) < 20:
        raise ValueError("this is no program for a device (no ELF file). Give the benchmark_model binary, not an .apk")
    bits = {1: 32, 2: 64}.get(content[4], 0)
    machine = int.from_bytes(content[18:20], "big" if content[5] == 2 else "little")
    if content[5] != 1 or (bits, machine) not in _ABIS:
        raise ValueError(
            f"this program is for another kind of processor (ELF machine {machine}); "
            f"benchmark_model is built for {', '.join(_ABIS.values())}"
        )
    return _ABIS[bits, machine]

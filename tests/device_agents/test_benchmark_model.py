"""The programs called benchmark_model: which one, told what, at fault or not; and a stand-in that really runs."""

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from device_agents.benchmark_model import (
    TIMED_OUT,
    Build,
    Crashed,
    build_of,
    elf_machine,
    fault_of,
    has_result_file,
    identify,
    words,
)
from device_agents.benchmark_output import BlockSummary, Program, UnparsableOutput, parse_text
from device_agents.errors import DeviceFault, SubjectFault
from latency_contract.operators import IBConv
from latency_contract.protocols import BlockStatistic, Delegate, Protocol
from latency_service.tflite_converter import convert
from tests.device_agents import benchmark_outputs
from tests.device_agents.benchmark_outputs import SHAPES, result_file

STAND_IN = Path(__file__).parent / "pixel3" / "bin" / "benchmark_model"
PROTOCOL = Protocol(runtime="tflite", runtime_version="2.17.0", warmup_ms=1.0, min_runs=7)
WARMUP = [83235, 79500, 79700]
RUNS = [79449, 77385, 79600, 88213, 81350]

# As Flags::Usage prints it (tensorflow/lite/tools/command_line_flags.cc), the flags that matter here only.
HEAD = "INFO: STARTING!\nERROR: usage: ./benchmark_model <flags>\nFlags:\n"
SHARED = "".join(
    f"\t{flag:<26}\t{kind}\toptional\tsee also\n"
    for flag, kind in {
        "--num_runs=50": "int32", "--min_secs=1": "float", "--max_secs=150": "float", "--num_threads=-1": "int32",
        "--warmup_runs=1": "int32", "--warmup_min_secs=0.5": "float", "--graph=": "string",
    }.items()
)  # fmt: skip
XNNPACK = "\t--use_xnnpack=false       \tbool\toptional\texplicitly apply the XNNPACK delegate.\n"
CHIPS = "".join(f"\t--use_{chip}=false\tbool\toptional\tWhether to use it.\n" for chip in ("cpu", "gpu", "npu"))
RESULT_FILE = "\t--result_file_path=       \tstring\toptional\tPath to save the benchmark result.\n"
TAIL = "\nERROR: Benchmarking failed.\n"


# Which program it is


@pytest.mark.parametrize(
    ("flags", "program"),
    [(SHARED + XNNPACK, Program.TFLITE), (SHARED + CHIPS, Program.LITERT), (SHARED + XNNPACK + CHIPS, Program.LITERT)],
)
def test_the_programs_are_told_apart_by_their_flags(flags: str, program: Program) -> None:
    assert identify(HEAD + flags + TAIL) is program
    assert not has_result_file(HEAD + flags + TAIL)
    assert has_result_file(HEAD + flags + RESULT_FILE + TAIL)


@pytest.mark.parametrize(
    "help_text",
    [
        "",
        "benchmark_model: unknown option --help",
        HEAD + SHARED + TAIL,  # of TensorFlow Lite before it had XNNPACK
        HEAD + "\t--graph=\tstring\toptional\tgraph file name\n\t--num_threads=-1\tint32\n" + TAIL,  # TensorFlow's own
    ],
)
def test_any_other_program_is_the_devices_fault(help_text: str) -> None:
    with pytest.raises(DeviceFault, match="is neither TensorFlow Lite's benchmark_model") as caught:
        identify(help_text)
    assert "Give another one with --benchmark-binary" in str(caught.value)


# What it is told


def test_a_block_of_tensorflow_lite_in_words() -> None:
    arguments = words(
        Program.TFLITE, PROTOCOL, graph="/data/local/tmp/padnas/ab12", block_ms=25, max_s=145, result_file="/tmp/r.pb"
    )
    assert arguments == [
        "--graph=/data/local/tmp/padnas/ab12",
        "--num_threads=1",
        "--use_xnnpack=true",
        "--num_runs=7",
        "--min_secs=0.025000",
        "--max_secs=145.000000",
        "--warmup_runs=1",
        "--warmup_min_secs=0.001000",
        "--result_file_path=/tmp/r.pb",
    ]


def test_litert_is_told_its_cpu_instead_of_xnnpack() -> None:
    arguments = words(Program.LITERT, PROTOCOL, graph="m", block_ms=25, max_s=145)
    assert arguments[2:5] == ["--use_cpu=true", "--use_gpu=false", "--use_npu=false"]
    assert not any("xnnpack" in word or "result_file" in word for word in arguments)


def test_no_xnnpack_is_said_too() -> None:
    protocol = PROTOCOL.model_copy(update={"delegate": Delegate.NONE})
    assert "--use_xnnpack=false" in words(Program.TFLITE, protocol, graph="m", block_ms=25, max_s=145)


@pytest.mark.parametrize(
    ("program", "delegate"),
    [(Program.TFLITE, Delegate.GPU), (Program.LITERT, Delegate.GPU), (Program.LITERT, Delegate.NONE)],
)
def test_a_delegate_that_cannot_be_had_is_refused(program: Program, delegate: Delegate) -> None:
    protocol = PROTOCOL.model_copy(update={"delegate": delegate})
    with pytest.raises(ValueError, match=f"cannot measure with delegate '{delegate}'"):
        words(program, protocol, graph="m", block_ms=25, max_s=145)


@pytest.mark.parametrize("seconds", [0.000001, 0.00001, 0.1, 60.0, 600_000.0])
def test_seconds_are_plain_decimals(seconds: float) -> None:
    arguments = words(Program.TFLITE, PROTOCOL, graph="m", block_ms=seconds * 1000, max_s=seconds)
    for name in ("min_secs", "max_secs"):
        (value,) = [word.removeprefix(f"--{name}=") for word in arguments if word.startswith(f"--{name}=")]
        assert "e" not in value
        assert float(value) == seconds


@pytest.mark.parametrize("path", ["", "a b", "a;reboot", "$(reboot)", "a\nb", "`a`", "a'b", "ä"])
def test_a_path_that_a_shell_could_mistake_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="cannot be a path on a device"):
        words(Program.TFLITE, PROTOCOL, graph=path, block_ms=25, max_s=145)
    with pytest.raises(ValueError, match="cannot be a path on a device"):
        words(Program.TFLITE, PROTOCOL, graph="m", block_ms=25, max_s=145, result_file=path)


# What a build gives


@pytest.mark.parametrize(
    ("shape", "flags", "file", "build"),
    [
        ("tflite", XNNPACK + RESULT_FILE, True, Build(Program.TFLITE, True, BlockStatistic.MEDIAN)),
        ("tflite", XNNPACK, False, Build(Program.TFLITE, False, BlockStatistic.MEDIAN)),
        ("tflite of 2020", XNNPACK, False, Build(Program.TFLITE, False, BlockStatistic.MEAN)),
        ("tflite without percentiles", XNNPACK + RESULT_FILE, True, Build(Program.TFLITE, True, BlockStatistic.MEDIAN)),
        ("litert", CHIPS + RESULT_FILE, True, Build(Program.LITERT, True, BlockStatistic.MEDIAN)),
    ],
)
def test_a_build_is_known_after_its_help_and_one_block(shape: str, flags: str, file: bool, build: Build) -> None:
    text, content = benchmark_outputs.text(SHAPES[shape], WARMUP, RUNS), result_file(WARMUP, RUNS) if file else None
    assert build_of(HEAD + SHARED + flags + TAIL, text=text, result_file=content, min_runs=5) == build
    latency_ms = 79.6 if build.statistic is BlockStatistic.MEDIAN else 81.1994
    assert build.summary(text, content, min_runs=5) == BlockSummary(latency_ms, build.statistic, 5)


def test_a_result_file_that_is_missing_is_the_devices_fault() -> None:
    text = benchmark_outputs.text(SHAPES["tflite"], WARMUP, RUNS)
    with pytest.raises(UnparsableOutput, match="wrote no result file"):
        build_of(HEAD + SHARED + XNNPACK + RESULT_FILE + TAIL, text=text, result_file=None, min_runs=5)


def test_median_and_mean_are_not_mixed() -> None:
    build = Build(Program.TFLITE, has_result_file=False, statistic=BlockStatistic.MEDIAN)
    with pytest.raises(UnparsableOutput, match="it gives the mean, not the median as before"):
        build.summary(benchmark_outputs.text(SHAPES["tflite of 2020"], WARMUP, RUNS), None, min_runs=5)


# Whose fault it is


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (126, "/system/bin/sh: ./benchmark_model: not executable: 64-bit ELF file"),
        (126, "sh: 1: ./benchmark_model: Exec format error"),
        (127, "/system/bin/sh: ./benchmark_model: inaccessible or not found"),
        (127, ""),
        (1, 'CANNOT LINK EXECUTABLE "./benchmark_model": library "libc++_shared.so" not found'),
        (134, 'CANNOT LINK EXECUTABLE "./benchmark_model": cannot locate symbol "__aeabi_x"'),
        (2, "./benchmark_model: syntax error: '(' unexpected"),
    ],
)
def test_a_binary_that_does_not_start_is_the_devices_fault(status: int, text: str) -> None:
    fault = fault_of(status, text, abi="arm64-v8a")
    assert type(fault) is DeviceFault
    assert str(fault).startswith("benchmark_model cannot be started on this device")
    assert str(fault).endswith("Give --benchmark-binary a build for its ABI, arm64-v8a.")


@pytest.mark.parametrize(
    ("status", "how"),
    [
        (137, "was ended by signal 9"),
        (139, "was ended by signal 11"),
        (134, "was ended by signal 6"),
        (-9, "was ended by signal 9"),
        (TIMED_OUT, "did not finish a block in time"),
    ],
)
def test_a_program_that_was_ended_may_be_the_subjects_fault(status: int, how: str) -> None:
    fault = fault_of(status, "INFO: STARTING!\n", abi="arm64-v8a")
    assert isinstance(fault, Crashed)
    assert str(fault) == how


@pytest.mark.parametrize(
    "text",
    [
        "ERROR: Failed to load model m.tflite\nERROR: Benchmarking failed.\n",
        "ERROR: Didn't find op for builtin opcode 'ADD' version '9'.\nERROR: Failed to initialize the interpreter\n",
        "ERROR: Encountered unresolved custom op: Flex.\nERROR: Failed to allocate tensors!\n",
        "ERROR: [benchmark_litert_model.cc:170] Failed to compile model.\nERROR: Benchmarking failed.\n",
        "Benchmarking failed.\n",
    ],
)
def test_a_model_that_is_refused_is_the_subjects_fault(text: str) -> None:
    fault = fault_of(1, text, abi="arm64-v8a")
    assert type(fault) is SubjectFault
    assert str(fault).startswith("benchmark_model refuses this model: ")
    assert text.strip().rpartition("\n")[2] in str(fault)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "ERROR: Could not open 'm'.\nERROR: Failed to load model m\n",
            "on the device any more",
        ),
        ("ERROR: File not found: m\nERROR: Failed to load model.\n", "on the device any more"),
        (
            "ERROR: Failed to parse flag 'num_runs' against argv '--num_runs=x'\n",
            "arguments",
        ),
        (HEAD + SHARED + TAIL, "arguments"),
        ("", r"ended with status 1: \(nothing was printed\)"),
        ("something else", "ended with status 1: something else"),
    ],
)
def test_any_other_failure_is_the_devices_fault(text: str, reason: str) -> None:
    fault = fault_of(1, text, abi="arm64-v8a")
    assert not isinstance(fault, SubjectFault)
    with pytest.raises(DeviceFault, match=reason):
        raise fault


# What a binary is built for


def elf(*, bits: int, machine: int, little: bool = True) -> bytes:
    order = "<" if little else ">"
    identity = b"\x7fELF" + bytes([bits // 32, 1 if little else 2, 1]) + bytes(9)
    return identity + struct.pack(order + "HHI", 3, machine, 1) + bytes(40)


@pytest.mark.parametrize(
    ("bits", "machine", "abi"), [(64, 183, "arm64-v8a"), (32, 40, "armeabi-v7a"), (64, 62, "x86_64"), (32, 3, "x86")]
)
def test_the_abi_of_a_binary_is_read_from_its_header(bits: int, machine: int, abi: str) -> None:
    assert elf_machine(elf(bits=bits, machine=machine)) == abi


def test_the_abi_of_a_real_binary() -> None:
    machine = {"x86_64": "x86_64", "aarch64": "arm64-v8a"}[os.uname().machine]
    assert elf_machine(Path(sys.executable).resolve().read_bytes()) == machine


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04apk", b"#!/bin/sh\n", b"\x7fELF\x02"])
def test_what_is_no_binary_has_no_abi(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"no ELF file.*not an \.apk"):
        elf_machine(content)


@pytest.mark.parametrize(
    "content", [elf(bits=64, machine=243), elf(bits=32, machine=62), elf(bits=64, machine=21, little=False)]
)
def test_a_binary_for_another_processor_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="another kind of processor"):
        elf_machine(content)


# A program that really runs: the stand-in


@pytest.fixture
def model(tmp_path: Path, operator: Callable[..., IBConv]) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(convert(operator(height=16, width=16, in_channels=16, out_channels=16)))
    return path


def run(*arguments: str, mode: str = "") -> tuple[int, str]:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PADNAS_STANDIN": mode, "PYTHONWARNINGS": "",
    }  # fmt: skip
    ended = subprocess.run(
        [STAND_IN, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
    )
    return ended.returncode, ended.stdout.decode(errors="replace")


def one_block(model: Path, program: Program, *, mode: str = "", result: Path | None = None) -> tuple[int, str]:
    arguments = words(
        program, PROTOCOL, graph=str(model), block_ms=20, max_s=60, result_file=None if result is None else str(result)
    )
    return run(*arguments, mode=mode)


@pytest.mark.parametrize("mode", ["", "litert", "old"])
def test_a_real_run_of_each_build_is_read(model: Path, tmp_path: Path, mode: str) -> None:
    status, help_text = run("--help", mode=mode)
    assert status == 1
    program = identify(help_text)
    assert program is (Program.LITERT if mode == "litert" else Program.TFLITE)
    result = tmp_path / "result.pb" if has_result_file(help_text) else None
    assert (result is None) == (mode == "old")

    status, text = one_block(model, program, mode=mode, result=result)
    assert status == 0, text
    content = None if result is None else result.read_bytes()
    build = build_of(help_text, text=text, result_file=content, min_runs=PROTOCOL.min_runs)
    assert build.statistic is (BlockStatistic.MEAN if mode == "old" else BlockStatistic.MEDIAN)
    summary = build.summary(text, content, min_runs=PROTOCOL.min_runs)
    assert summary.runs >= PROTOCOL.min_runs
    assert 0 < summary.latency_ms < 1000


def test_the_fewest_runs_are_run_and_no_more_where_no_time_is_asked_for(model: Path) -> None:
    _, text = run(*words(Program.TFLITE, PROTOCOL, graph=str(model), block_ms=0.001, max_s=60))
    assert parse_text(Program.TFLITE, text, min_runs=7).runs == 7


def test_runs_that_the_longest_time_cut_short_are_refused(model: Path) -> None:
    _, text = run(*words(Program.TFLITE, PROTOCOL, graph=str(model), block_ms=20, max_s=0.000001))
    with pytest.raises(UnparsableOutput, match="it is of 1 runs, where 7 were asked for"):
        parse_text(Program.TFLITE, text, min_runs=7)


def test_xnnpack_is_applied_only_where_it_is_asked_for(model: Path) -> None:
    for delegate in (Delegate.XNNPACK, Delegate.NONE):
        protocol = PROTOCOL.model_copy(update={"delegate": delegate})
        _, text = run(*words(Program.TFLITE, protocol, graph=str(model), block_ms=5, max_s=60))
        assert ("XNNPACK delegate for CPU" in text) == (delegate is Delegate.XNNPACK)


def test_a_build_that_does_not_know_a_flag_is_found_out(model: Path) -> None:
    _, text = one_block(model, Program.TFLITE, mode="litert")
    with pytest.raises(UnparsableOutput, match=r"does not know what it was told .*--use_xnnpack=true"):
        Build(Program.LITERT, has_result_file=False, statistic=BlockStatistic.MEDIAN).summary(text, None, min_runs=1)


def test_noise_instead_of_a_result_is_found_out(model: Path) -> None:
    status, text = one_block(model, Program.TFLITE, mode="garbage")
    assert status == 0
    with pytest.raises(UnparsableOutput, match="no line with count="):
        Build(Program.TFLITE, has_result_file=False, statistic=BlockStatistic.MEDIAN).summary(text, None, min_runs=1)


def test_a_corrupt_model_is_refused_by_the_program(model: Path) -> None:
    model.write_bytes(b"\x00" * 16 + model.read_bytes()[16:])
    fault = fault_of(*one_block(model, Program.TFLITE), abi="arm64-v8a")
    assert type(fault) is SubjectFault
    assert "Failed to load model" in str(fault)


def test_a_model_that_is_gone_is_not_its_own_fault(tmp_path: Path) -> None:
    fault = fault_of(*one_block(tmp_path / "gone.tflite", Program.TFLITE), abi="arm64-v8a")
    assert type(fault) is DeviceFault
    assert "not on the device any more" in str(fault)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_program_that_is_killed_has_crashed(model: Path, number: int) -> None:
    fault = fault_of(*one_block(model, Program.TFLITE, mode=f"signal:{number}"), abi="arm64-v8a")
    assert isinstance(fault, Crashed)
    assert str(fault) == f"was ended by signal {number}"

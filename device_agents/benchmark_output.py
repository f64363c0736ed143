"""What the two programs called `benchmark_model` print and write: from an output to the latency of one block.

TensorFlow Lite's and LiteRT's share their loop, its lines with `count=` and their result file; they differ in the lines
that close an output. Neither gives the single runs, so a block is one number: the median where the build reports it,
else the mean. What does not agree with itself is an error that carries the output, never a number.
"""

import math
import re
import struct
from enum import StrEnum
from typing import NamedTuple

from device_agents.errors import Unexplained
from latency_contract.measurements import MAX_LATENCY_MS
from latency_contract.protocols import BlockStatistic

SHOWN = 1000  # characters of an output, its last, that an error shows
SHOWN_LINES = 6
SIX_DIGITS = 5.1e-6  # how far, of itself, a number may be from the one that was printed with six digits


class Program(StrEnum):
    TFLITE = "tflite"  # of TensorFlow Lite, and of the directory `tflite` of LiteRT: runs the interpreter
    LITERT = "litert"  # of LiteRT: runs its compiled models, and has --use_npu


class UnparsableOutput(Unexplained):
    """An output that gives no latency, or one that contradicts itself; `output` is its end."""

    def __init__(self, why: str, output: str) -> None:
        self.output = output[-SHOWN:]
        super().__init__(f"The output of benchmark_model gives no latency: {why}. It ends: {ending_of(output)}")


class BlockSummary(NamedTuple):
    """One block of runs."""

    latency_ms: float
    statistic: BlockStatistic
    runs: int


class _Runs(NamedTuple):
    """What both sources say of some runs, in the programs' own unit."""

    runs: int
    min_us: int
    max_us: int
    avg_us: float
    std_us: int  # cut off to whole microseconds
    p5_us: int | None
    median_us: int | None
    p95_us: int | None
    first_us: int = 0  # not in a result file

    @property
    def avg_slack_us(self) -> float:
        """How far the mean may be off."""
        return self.avg_us * SIX_DIGITS


_N = r"[0-9]{1,18}"
_R = r"[0-9]{1,6}(?:\.[0-9]{1,6})?(?:e\+[0-9]{2})?"  # as C++ prints a double: 35, 79732.4, 1.3818e+06
_LOG = r"(?:INFO: )?(?:\[[\w.]+:[0-9]+\] )?"  # as newer builds begin a line; LiteRT's table tells its source line too
_ROW = r"(?:Warmup|Inference) \((?:first|avg|min|max)\)"
_MARKS = re.compile(rf"{_LOG}(?:count=|(?:Average i|I)nference timings in us: |{_ROW}:)")
_RUNS = re.compile(
    rf"{_LOG}count=(?P<count>{_N})"
    rf"(?: first=(?P<first>{_N}) curr=(?P<last>{_N}) min=(?P<min>{_N}) max=(?P<max>{_N}) avg=(?P<avg>{_R})"
    rf" std=(?P<std>{_N})| curr=(?P<only>{_N})(?P<all_same>\(all same\))?)"
    rf"(?: p5=(?P<p5>{_N}) median=(?P<median>{_N}) p95=(?P<p95>{_N}))?"
)
_CLOSING = re.compile(
    rf"{_LOG}Inference timings in us: Init: {_N}, First inference: (?P<first>{_N}), Warmup \(avg\): (?P<warmup>{_R}),"
    rf" Inference \(avg\): (?P<runs>{_R})"
)
_OLD_CLOSING = re.compile(  # the oldest say "no stats" for "Inference"
    rf"{_LOG}Average inference timings in us: Warmup: (?P<warmup>{_R}), Init: {_N},"
    rf" (?:Inference|no stats): (?P<runs>{_R})"
)
_TABLE_ROW = re.compile(rf"{_LOG}(?P<name>{_ROW}): +(?P<ms>{_N}\.[0-9]{{2}}) ms(?: \((?P<count>{_N}) runs\))?")


def parse_text(program: Program, text: str, *, min_runs: int, result_file: bytes | None = None) -> BlockSummary:
    """A block, from stdout and stderr together (a shell's `2>&1`), and from the result file if there is one.

    The number is that of the second line with `count=`; the first is of the warm-up. The closing lines repeat part of
    both and must agree with them, and so must the result file with all.

    Raises:
        UnparsableOutput: anything is missing, doubled, contradictory, or of fewer runs than asked for.
    """
    runs = _read_text(program, text, min_runs=min_runs)
    if result_file is not None:
        written = _read_result_file(result_file, min_runs=min_runs)
        if not _are_the_same(runs, written):
            raise UnparsableOutput("its result file is of other runs than its text", text)
        runs = written if runs.median_us is None else runs
    return _summary(runs, text)


def _read_text(program: Program, text: str, *, min_runs: int) -> _Runs:
    lines = [line.strip() for line in text.split("\n")]
    if unknown := [line for line in lines if "Unconsumed cmdline flags" in line]:
        raise UnparsableOutput(f"it does not know what it was told ({unknown[0][:200]})", text)
    marked = [line for line in lines if _MARKS.match(line)]
    if len(marked) < 3:
        raise UnparsableOutput("it has no line with count= for warm-up and runs each, and closing lines", text)
    warmup, runs = (_read_count_line(line, text) for line in marked[:2])
    agrees = _closing_line_agrees if program is Program.TFLITE else _table_agrees
    if not agrees(marked[2:], warmup, runs):
        raise UnparsableOutput("its closing lines are missing, or contradict its lines with count=", text)
    if (warmup.median_us is None) != (runs.median_us is None):
        raise UnparsableOutput("one of its lines with count= has no median, though the other has", text)
    _check(runs, text, min_runs=min_runs)
    return runs


def _read_count_line(line: str, text: str) -> _Runs:
    match = _RUNS.fullmatch(line)
    if match is None:
        raise UnparsableOutput(f"a line is not understood: {line[:200]}", text)
    numbers = {name: int(value) for name, value in match.groupdict().items() if value is not None and value.isdigit()}
    p5_us, median_us, p95_us = (numbers.get(name) for name in ("p5", "median", "p95"))
    if match["only"] is None:
        return _Runs(
            numbers["count"], numbers["min"], numbers["max"], float(match["avg"]), numbers["std"],
            p5_us, median_us, p95_us, numbers["first"],
        )  # fmt: skip
    only_us = numbers["only"]
    if (numbers["count"] > 1) != (match["all_same"] is not None):
        raise UnparsableOutput(f"a line is cut off: {line[:200]}", text)
    return _Runs(numbers["count"], only_us, only_us, only_us, 0, p5_us, median_us, p95_us, only_us)


def _closing_line_agrees(lines: list[str], warmup: _Runs, runs: _Runs) -> bool:
    """Whether there is one closing line, of TensorFlow Lite's program, with the very means of the lines above."""
    match = _CLOSING.fullmatch(lines[0]) or _OLD_CLOSING.fullmatch(lines[0])
    if match is None or len(lines) != 1:
        return False
    first = match.groupdict().get("first")
    return (
        float(match["warmup"]) == _as_printed(warmup.avg_us)
        and float(match["runs"]) == _as_printed(runs.avg_us)
        and first in (None, str(warmup.first_us))
    )


def _table_agrees(lines: list[str], warmup: _Runs, runs: _Runs) -> bool:
    """Whether there is LiteRT's table, in milliseconds with two decimals, with the numbers of the lines above."""
    rows = [_TABLE_ROW.fullmatch(line) for line in lines]
    expected = [
        ("Warmup (first)", warmup.first_us, None),
        ("Warmup (avg)", warmup.avg_us, str(warmup.runs)),
        ("Inference (avg)", runs.avg_us, str(runs.runs)),
        ("Inference (min)", runs.min_us, None),
        ("Inference (max)", runs.max_us, None),
    ]
    return len(rows) == len(expected) and all(
        row is not None
        and (row["name"], row["count"]) == (name, count)
        and abs(float(row["ms"]) - us / 1000) <= 0.00501 + us / 1000 * SIX_DIGITS
        for row, (name, us, count) in zip(rows, expected, strict=True)
    )


def _as_printed(avg_us: float) -> float:
    return float(f"{avg_us:g}")  # six digits


# The result file is a message tflite.tools.benchmark.BenchmarkResult in protobuf's wire format. It is read here, as
# strictly as a latency wants: protobuf's own reader takes the last of two values for a field.
_LATENCY, _MISC = 2, 4  # fields of the result
_AVG, _MIN, _MAX, _STD, _MEDIAN, _P5, _P95 = range(1, 8)  # fields of its latencies, milliseconds as 32-bit floats
_NUM_RUNS = 2  # field of its other metrics


def parse_result_file(content: bytes, *, min_runs: int) -> BlockSummary:
    """A block, from the result file, which is the same of both programs.

    Raises:
        UnparsableOutput: it is cut off, has other fields, contradicts itself, or is of fewer runs than asked for.
    """
    runs = _read_result_file(content, min_runs=min_runs)
    return _summary(runs, content.hex())


def _read_result_file(content: bytes, *, min_runs: int) -> _Runs:
    try:
        result = _fields(content)
        latency, misc = _fields(_bytes(result, _LATENCY)), _fields(_bytes(result, _MISC))
        runs = _Runs(
            runs=_whole(misc, _NUM_RUNS),
            min_us=_whole_us(latency, _MIN),
            max_us=_whole_us(latency, _MAX),
            avg_us=_milliseconds(latency, _AVG) * 1000,
            std_us=_whole_us(latency, _STD),
            p5_us=_whole_us(latency, _P5),
            median_us=_whole_us(latency, _MEDIAN),
            p95_us=_whole_us(latency, _P95),
        )
    except ValueError as error:
        raise UnparsableOutput(f"its result file {error}", content.hex()) from error
    _check(runs, content.hex(), min_runs=min_runs)
    return runs


def _whole_us(fields: dict[int, int | bytes], number: int) -> int:
    """All times but the mean are whole microseconds, divided by 1000 and then rounded to 32 bits."""
    us = round(_milliseconds(fields, number) * 1000)
    if _float32(us / 1000) != fields[number]:
        raise ValueError(f"has a time (field {number}) that is not of whole microseconds")
    return us


def _milliseconds(fields: dict[int, int | bytes], number: int) -> float:
    content = _bytes(fields, number)
    if len(content) != 4:
        raise ValueError(f"has a field {number} that is no 32-bit float")
    milliseconds: float = struct.unpack("<f", content)[0]
    if not math.isfinite(milliseconds):
        raise ValueError(f"has a time (field {number}) that is {milliseconds}")
    return milliseconds


def _float32(milliseconds: float) -> bytes:
    return struct.pack("<f", milliseconds)


def _bytes(fields: dict[int, int | bytes], number: int) -> bytes:
    match fields.get(number):
        case bytes() as content:
            return content
    raise ValueError(f"has no field {number}")


def _whole(fields: dict[int, int | bytes], number: int) -> int:
    match fields.get(number):
        case int() as whole:
            return whole
    raise ValueError(f"has no field {number}")


def _fields(message: bytes) -> dict[int, int | bytes]:
    """The fields of a message by their numbers: whole numbers (wire type 0), all else as its bytes (1, 2, 5).

    Raises ValueError.
    """
    fields: dict[int, int | bytes] = {}
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if number in fields:
            raise ValueError(f"has field {number} twice")
        if wire_type == 0:
            fields[number], position = _varint(message, position)
            continue
        if wire_type == 2:
            size, position = _varint(message, position)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError("is not protobuf")
        if position + size > len(message):
            raise ValueError("is cut off")
        fields[number] = message[position : position + size]
        position += size
    return fields


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A whole number in groups of seven bits, lowest first, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if position == len(message):
            raise ValueError("is cut off")
        number |= (message[position] & 0x7F) << shift
        position += 1
        if message[position - 1] < 0x80:
            return number, position
    raise ValueError("is not protobuf")


def _are_the_same(printed: _Runs, written: _Runs) -> bool:
    """Whether a text and a result file are of the same runs; 32 bits are exact below 16 s only."""
    whole_us = [(printed.min_us, written.min_us), (printed.max_us, written.max_us)]
    if printed.median_us is not None and written.median_us is not None:
        whole_us.append((printed.median_us, written.median_us))
    return (
        printed.runs == written.runs
        and all(_float32(ours / 1000) == _float32(theirs / 1000) for ours, theirs in whole_us)
        and abs(printed.avg_us - written.avg_us) <= printed.avg_slack_us
    )


def _check(runs: _Runs, output: str, *, min_runs: int) -> None:
    """What is true of any runs: their order statistics are in order, and mean and median are close.

    No median is further from the mean than one standard deviation (Hotelling and Solomons, 1932).
    """
    slack_us = runs.avg_slack_us
    ordered = [us for us in (runs.min_us, runs.p5_us, runs.median_us, runs.p95_us, runs.max_us) if us is not None]
    if ordered != sorted(ordered) or not runs.min_us - slack_us <= runs.avg_us <= runs.max_us + slack_us:
        raise UnparsableOutput("its smallest, middle and largest are not in this order", output)
    if runs.median_us is not None and abs(runs.avg_us - runs.median_us) > runs.std_us + 1 + slack_us:
        raise UnparsableOutput("its median is further from its mean than its deviation allows", output)
    if not min_runs <= runs.runs < 2**31:
        raise UnparsableOutput(f"it is of {runs.runs} runs, where {min_runs} were asked for", output)


def _summary(runs: _Runs, output: str) -> BlockSummary:
    """The number that stands for runs that agree with themselves."""
    if runs.median_us is None:
        latency_ms, statistic = runs.avg_us / 1000, BlockStatistic.MEAN
    else:
        latency_ms, statistic = runs.median_us / 1000, BlockStatistic.MEDIAN
    if not 0 < latency_ms <= MAX_LATENCY_MS:
        raise UnparsableOutput(f"{latency_ms} ms is no latency", output)
    return BlockSummary(latency_ms, statistic, runs.runs)


def ending_of(text: str) -> str:
    """The last lines of an output in one line, for a sentence."""
    lines = [line.strip() for line in text[-SHOWN:].split("\n") if line.strip()]
    return " | ".join(lines[-SHOWN_LINES:]) or "(nothing was printed)"

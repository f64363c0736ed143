"""What benchmark_model prints and writes gives the right latency, or an error that carries it."""

import contextlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from device_agents.benchmark_output import (
    SHOWN,
    BlockSummary,
    Program,
    UnparsableOutput,
    parse_result_file,
    parse_text,
)
from latency_contract.protocols import BlockStatistic
from tests.device_agents import benchmark_outputs
from tests.device_agents.benchmark_outputs import SHAPES, Shape, deviation, mean, percentile, result_file

WARMUP = [83235, 79500, 79700]
RUNS = [79449, 77385, 79600, 88213, 81350]

every_shape = st.sampled_from(list(SHAPES.values()))
some_us = st.integers(1, 20_000_000)
samples = st.one_of(
    st.lists(some_us, min_size=1, max_size=30),  # anything
    st.builds(lambda us, count: [us] * count, some_us, st.integers(1, 30)),  # all the same
    st.builds(  # as they are
        lambda us, extra: [us + more for more in extra], some_us, st.lists(st.integers(0, 300), min_size=2, max_size=30)
    ),
)


def expected(shape: Shape, runs_us: list[int]) -> BlockSummary:
    if shape.percentiles:
        return BlockSummary(percentile(runs_us, 50) / 1000, BlockStatistic.MEDIAN, len(runs_us))
    mean_us = runs_us[0] if min(runs_us) == max(runs_us) else float(f"{mean(runs_us):g}")
    return BlockSummary(mean_us / 1000, BlockStatistic.MEAN, len(runs_us))


def parsed(shape: Shape, text: str, *, min_runs: int = 1, file: bytes | None = None) -> BlockSummary | None:
    """None for an output that gives no latency; whatever else is raised fails the test."""
    with contextlib.suppress(UnparsableOutput):
        return parse_text(shape.program, text, min_runs=min_runs, result_file=file)
    return None


# Right outputs


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_the_number_is_that_of_the_runs_and_not_of_the_warm_up(shape: Shape) -> None:
    text = benchmark_outputs.text(shape, WARMUP, RUNS)
    summary = parse_text(shape.program, text, min_runs=5)
    if shape.percentiles:
        assert summary == BlockSummary(79.6, BlockStatistic.MEDIAN, 5)
    else:
        assert summary == BlockSummary(81.1994, BlockStatistic.MEAN, 5)


@given(every_shape, samples, samples)
@example(SHAPES["tflite"], [1_400_000], [1_381_799, 1_381_801])  # avg=1.3818e+06 is below the smallest
@example(SHAPES["tflite of 2020"], [1_400_000], [1_381_801, 1_381_802])
def test_every_shape_gives_the_number_of_any_runs(shape: Shape, warmup: list[int], runs: list[int]) -> None:
    text = benchmark_outputs.text(shape, warmup, runs)
    assert parse_text(shape.program, text, min_runs=len(runs)) == expected(shape, runs)


@given(samples, samples)
def test_a_result_file_gives_the_same_number_as_the_text(warmup: list[int], runs: list[int]) -> None:
    file = result_file(warmup, runs)
    assert parse_result_file(file, min_runs=1).latency_ms == pytest.approx(percentile(runs, 50) / 1000, rel=1e-7)
    for name in ("tflite", "litert"):
        text = benchmark_outputs.text(SHAPES[name], warmup, runs)
        assert parsed(SHAPES[name], text, file=file) == expected(SHAPES[name], runs)


@given(st.lists(st.integers(1, 16_000_000), min_size=1, max_size=30))
def test_a_result_file_below_16_seconds_is_exact(runs: list[int]) -> None:
    assert parse_result_file(result_file([1], runs), min_runs=1).latency_ms == percentile(runs, 50) / 1000


def test_a_text_without_median_takes_that_of_the_result_file() -> None:
    shape = SHAPES["tflite without percentiles"]
    text = benchmark_outputs.text(shape, WARMUP, RUNS)
    summary = parsed(shape, text, file=result_file(WARMUP, RUNS))
    assert summary == BlockSummary(79.6, BlockStatistic.MEDIAN, 5)


# Wrong outputs


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (" max=88213 ", " max=88", "not understood"),
        ("STARTING!", "Unconsumed cmdline flags: --use_xnnpack=true", "does not know what it was told"),
        ("Inference (avg): 81199.4", "Inference (avg): 81199.3", "contradict"),
        ("Inference (avg): 81199.4", "Inference (avg): nan", "contradict"),
        ("Inference (avg): 81199.4", "Inference (avg): 81199.4 or so", "contradict"),
        ("First inference: 83235", "First inference: 83236", "contradict"),
        ("median=79600", "median=88214", "not in this order"),
        ("median=79600", "median=77386", "further from its mean"),
        ("median=79600", "median=-79600", "not understood"),
        ("avg=81199.4 std=", "avg=inf std=", "not understood"),
        ("min=77385", "min=81200", "not in this order"),
        ("count=5 ", "count=0 ", "it is of 0 runs"),
        ("count=5 ", "count=99999999999 ", "it is of 99999999999 runs"),
        ("count=5 first=79449 curr=81350 min=77385 max=88213 avg=81199.4 std=3725 ", "count=5 curr=79600 ", "cut off"),
        ("std=3725 p5=77385 median=79600 p95=88213", "std=3725", "has no median"),
    ],
)
def test_a_text_that_contradicts_itself_is_refused(old: str, new: str, why: str) -> None:
    text = benchmark_outputs.text(SHAPES["tflite"], WARMUP, RUNS)
    assert old in text
    with pytest.raises(UnparsableOutput, match=why):
        parse_text(Program.TFLITE, text.replace(old, new), min_runs=1)


def test_no_runs_are_no_latency() -> None:
    text = benchmark_outputs.text(SHAPES["tflite"], WARMUP, RUNS)
    for line in ("count=0", "count=0 p5=0 median=0 p95=0"):
        changed = text.replace(benchmark_outputs.count_line(RUNS, percentiles=True), line)
        with pytest.raises(UnparsableOutput, match=f"not understood: INFO: {line}"):
            parse_text(Program.TFLITE, changed, min_runs=1)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("us", [0, 700_000_000])
def test_nothing_and_ten_minutes_are_no_latency(shape: Shape, us: int) -> None:
    with pytest.raises(UnparsableOutput, match="ms is no latency"):
        parse_text(shape.program, benchmark_outputs.text(shape, [1], [us] * 5), min_runs=1)
    with pytest.raises(UnparsableOutput, match="ms is no latency"):
        parse_result_file(result_file([1], [us] * 5), min_runs=1)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_fewer_runs_than_asked_for_are_refused(shape: Shape) -> None:
    with pytest.raises(UnparsableOutput, match="of 5 runs, where 6 were asked for"):
        parse_text(shape.program, benchmark_outputs.text(shape, WARMUP, RUNS), min_runs=6)
    with pytest.raises(UnparsableOutput, match="of 5 runs, where 6 were asked for"):
        parse_result_file(result_file(WARMUP, RUNS), min_runs=6)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_the_other_programs_output_is_refused(shape: Shape) -> None:
    other = Program.LITERT if shape.program is Program.TFLITE else Program.TFLITE
    with pytest.raises(UnparsableOutput, match="closing lines"):
        parse_text(other, benchmark_outputs.text(shape, WARMUP, RUNS), min_runs=1)


def test_a_result_file_of_earlier_runs_is_refused() -> None:
    text = benchmark_outputs.text(SHAPES["tflite"], WARMUP, RUNS)
    for earlier in ([*RUNS[:-1], 81360], [*RUNS, RUNS[0]], [*RUNS[:2], 79601, *RUNS[3:]]):
        with pytest.raises(UnparsableOutput, match="of other runs than its text"):
            parse_text(Program.TFLITE, text, min_runs=1, result_file=result_file(WARMUP, earlier))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), -79.6, 0.0])
def test_a_time_in_a_result_file_that_is_no_time_is_refused(number: float) -> None:
    median = struct.pack("<f", 79.6)
    content = result_file(WARMUP, RUNS).replace(b"\x2d" + median, b"\x2d" + struct.pack("<f", number))
    assert content != result_file(WARMUP, RUNS)
    with pytest.raises(UnparsableOutput):
        parse_result_file(content, min_runs=1)


def test_a_result_file_that_is_cut_off_is_refused() -> None:
    content = result_file(WARMUP, RUNS)
    assert parse_result_file(content, min_runs=1)
    for length in range(len(content)):
        with pytest.raises(UnparsableOutput):
            parse_result_file(content[:length], min_runs=1)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"", b"\x12\x00", "has field 2 twice"),
        (b"\x2d" + struct.pack("<f", 79.6), b"\x2d" + struct.pack("<f", 79.6001), "not of whole microseconds"),
        (b"\x2d" + struct.pack("<f", 79.6), b"\x35" + struct.pack("<f", 79.6), "has field 6 twice"),
        (b"\x2d" + struct.pack("<f", 79.6), b"\x28\xd0\x86\x03\x30", "has"),
        (b"\x10\x05", b"\x10\x00", "it is of 0 runs"),
        (b"\x10\x05", b"\x78\x05", "has no field 2"),
        (b"\x10\x05", b"\x14\x05", "is not protobuf"),
    ],
)
def test_a_result_file_that_was_changed_is_refused(old: bytes, new: bytes, why: str) -> None:
    content = result_file(WARMUP, RUNS)
    assert old in content
    with pytest.raises(UnparsableOutput, match=why):
        parse_result_file(content.replace(old, new, 1), min_runs=1)


def test_the_error_carries_the_end_of_the_output() -> None:
    with pytest.raises(UnparsableOutput, match=r"It ends: (x \| ){4}two \| last line$") as caught:
        parse_text(Program.TFLITE, "x\n" * 10_000 + "\ntwo\n\nlast line\n", min_runs=1)
    assert caught.value.output.endswith("last line\n")
    assert len(caught.value.output) == SHOWN


# Damaged outputs

noise = st.one_of(
    st.sampled_from(["INFO: Created TensorFlow Lite XNNPACK delegate for CPU.", "count=", "INFO: ", "\x00", "\u2028"]),
    st.text(max_size=20),
)


def beginning_of(line: str) -> st.SearchStrategy[str]:
    """As far as anywhere, or as between two words."""
    return st.one_of(
        st.integers(0, len(line)).map(lambda end: line[:end]),
        st.integers(0, line.count(" ")).map(lambda words: " ".join(line.split(" ")[:words])),
    )


@st.composite
def damaged_lines(draw: st.DrawFn, text: str) -> str:
    """The text with a few of its lines lost, doubled, swapped, cut off, or with noise among them."""
    lines = text.split("\n")
    for _ in range(draw(st.integers(1, 3))):
        at, other = draw(st.tuples(*[st.integers(0, len(lines) - 1)] * 2))
        match draw(st.sampled_from(["lose", "double", "swap", "cut", "end", "noise"])):
            case "lose" if len(lines) > 1:
                del lines[at]
            case "double":
                lines.insert(other, lines[at])
            case "swap":
                lines[at], lines[other] = lines[other], lines[at]
            case "cut":
                lines[at] = draw(beginning_of(lines[at]))
            case "end":
                lines = [*lines[:at], draw(beginning_of(lines[at]))]
            case "noise":
                lines.insert(at, draw(noise))
    return "\n".join(lines)


@st.composite
def damaged_characters(draw: st.DrawFn, text: str) -> str:
    """The text with some characters in one place lost, replaced, or with others put in; or a digit for another."""
    begin = text.rindex("count=")
    end = text.index("\n", begin)
    if draw(st.booleans()):
        at = draw(st.sampled_from([at for at in range(begin, end) if text[at].isdigit()]))
        return text[:at] + draw(st.sampled_from("0123456789")) + text[at + 1 :]
    at = draw(st.one_of(st.integers(0, len(text)), st.integers(begin, end)))
    put_in = draw(st.one_of(noise, st.text("0123456789.e+ =", max_size=3)))
    return text[:at] + put_in + text[at + draw(st.integers(0, 4)) :]


@settings(max_examples=500)
@given(st.data(), every_shape, samples, samples)
def test_damaged_lines_never_give_another_number(
    data: st.DataObject, shape: Shape, warmup: list[int], runs: list[int]
) -> None:
    assume(abs(mean(warmup) - mean(runs)) > 20 + mean(runs) * 1e-5)  # or nobody could tell them apart once swapped
    text = benchmark_outputs.text(shape, warmup, runs)
    summary = parsed(shape, data.draw(damaged_lines(text)))
    assert summary in (None, expected(shape, runs))


@settings(max_examples=500)
@given(st.data(), st.sampled_from(["tflite", "litert"]), samples, samples)
def test_damaged_characters_never_give_another_number_where_there_is_a_result_file(
    data: st.DataObject, name: str, warmup: list[int], runs: list[int]
) -> None:
    assume(max(runs) < 16_000_000)
    shape, file = SHAPES[name], result_file(warmup, runs)
    text = data.draw(damaged_characters(benchmark_outputs.text(shape, warmup, runs)))
    assert parsed(shape, text, file=file) in (None, expected(shape, runs))


@settings(max_examples=500)
@given(st.data(), every_shape, samples, samples)
def test_damaged_characters_without_a_result_file_go_no_further_than_one_deviation(
    data: st.DataObject, shape: Shape, warmup: list[int], runs: list[int]
) -> None:
    """A digit of the median for another digit cannot be seen in the text alone; the mean beside it bounds it."""
    text = benchmark_outputs.text(shape, warmup, runs)
    damaged = data.draw(damaged_characters(text))
    assume(f" std={deviation(runs)}" in damaged)
    summary = parsed(shape, damaged)
    if summary is not None:
        slack_ms = (deviation(runs) + 1 + mean(runs) * 2e-5) / 1000
        assert abs(summary.latency_ms - mean(runs) / 1000) <= slack_ms


@settings(max_examples=500)
@given(st.data(), samples, samples)
def test_a_damaged_result_file_never_gives_another_number_than_its_text(
    data: st.DataObject, warmup: list[int], runs: list[int]
) -> None:
    shape, content = SHAPES["tflite"], result_file(warmup, runs)
    at = data.draw(st.integers(0, len(content) - 1))
    damaged = content[:at] + data.draw(st.binary(max_size=4)) + content[at + data.draw(st.integers(0, 4)) :]
    text = benchmark_outputs.text(shape, warmup, runs)
    assert parsed(shape, text, file=damaged) in (None, expected(shape, runs))


# Nonsense

pieces = st.sampled_from(
    [
        "INFO: ", "count=", "count=5", " first=", " curr=", "9", " min=", " max=", " avg=", "1e+06", "nan", " std=",
        " median=", "(all same)", "\n", "\r\n", "-1", "Inference timings in us: ", "Inference (avg): ",
        "Average inference timings in us: ", " ms (5 runs)",
    ]
)  # fmt: skip


@given(st.sampled_from(Program), st.one_of(st.text(), st.lists(pieces, max_size=60).map("".join)))
@example(Program.TFLITE, "")
@example(Program.TFLITE, "count=" + "9" * 5000)
def test_any_other_text_is_refused(program: Program, text: str) -> None:
    with pytest.raises(UnparsableOutput):
        parse_text(program, text, min_runs=0)


def _nested(content: bytes) -> bytes:
    return bytes([0x12, len(content)]) + content + b"\x22\x02\x10\x05"


refused_bytes: list[Callable[[bytes], bytes]] = [bytes, _nested]


@given(st.sampled_from(refused_bytes), st.binary(max_size=100))
@example(bytes, b"")
@example(bytes, b"\xff" * 20)
def test_any_other_bytes_are_refused(wrap: Callable[[bytes], bytes], content: bytes) -> None:
    with pytest.raises(UnparsableOutput):
        parse_result_file(wrap(content), min_runs=0)

"""What benchmark_model prints and writes of given runs, in every shape that its builds have had.

Written after `Stat::OutputToStream` (TensorFlow's util/stats_calculator.h) and the listeners of both programs; the
result file by protobuf's own writer.
"""

from functools import cache
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from device_agents.benchmark_output import Program

INIT_US = 38467


class Shape(NamedTuple):
    program: Program = Program.TFLITE
    prefix: str = "INFO: "
    percentiles: bool = True
    closing: str = "Inference timings in us: Init: {init}, First inference: {first}, Warmup (avg): {warmup:g}, "
    closing_end: str = "Inference (avg): {runs:g}"
    line_end: str = "\n"


OLD_CLOSING = "Average inference timings in us: Warmup: {warmup:g}, Init: {init}, "
SHAPES = {
    "tflite": Shape(),
    "tflite with Windows line ends": Shape(line_end="\r\n"),
    "tflite without percentiles": Shape(percentiles=False),
    "tflite of 2020": Shape(prefix="", percentiles=False, closing=OLD_CLOSING, closing_end="Inference: {runs:g}"),
    "tflite of 2019": Shape(prefix="", percentiles=False, closing=OLD_CLOSING, closing_end="no stats: {runs:g}"),
    "litert": Shape(program=Program.LITERT),
    "litert without percentiles": Shape(program=Program.LITERT, percentiles=False),
}


def text(shape: Shape, warmup_us: list[int], runs_us: list[int]) -> str:
    log = shape.prefix
    lines = [
        f"{log}STARTING!",
        "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.",
        f"{log}The input model file size (MB): 4.2761",
        f"{log}Initialized session in 38.467ms.",
    ]
    for us, min_runs, min_s in ((warmup_us, 1, "0.002"), (runs_us, 5, "0.025")):
        lines.append(
            f"{log}Running benchmark for at least {min_runs} iterations and at least {min_s} seconds but terminate if"
            " exceeding 150 seconds."
        )
        lines += [log + count_line(us, percentiles=shape.percentiles), ""]
    if shape.program is Program.LITERT:
        lines += table(warmup_us, runs_us)
    else:
        numbers = {"init": INIT_US, "first": warmup_us[0], "warmup": mean(warmup_us), "runs": mean(runs_us)}
        lines.append(log + (shape.closing + shape.closing_end).format(**numbers))
        lines.append(f"{log}Memory footprint delta from the start of the tool (MB): init=5.5 overall=9.25")
    return shape.line_end.join([*lines, ""])


def count_line(us: list[int], *, percentiles: bool) -> str:
    if not us:
        line = "count=0"
    elif min(us) == max(us):
        line = f"count={len(us)} curr={us[-1]}{'(all same)' if len(us) > 1 else ''}"
    else:
        line = f"count={len(us)} first={us[0]} curr={us[-1]} min={min(us)} max={max(us)}"
        line += f" avg={mean(us):g} std={deviation(us)}"
    if percentiles:
        line += "".join(f" {name}={percentile(us, at)}" for name, at in (("p5", 5), ("median", 50), ("p95", 95)))
    return line


def table(warmup_us: list[int], runs_us: list[int]) -> list[str]:
    rows = [
        "",
        "========== BENCHMARK RESULTS ==========",
        f"Model initialization: {INIT_US / 1000:.2f} ms",
        f"Warmup (first):       {warmup_us[0] / 1000:.2f} ms",
        f"Warmup (avg):         {mean(warmup_us) / 1000:.2f} ms ({len(warmup_us)} runs)",
        f"Inference (avg):      {mean(runs_us) / 1000:.2f} ms ({len(runs_us)} runs)",
        f"Inference (min):      {min(runs_us) / 1000:.2f} ms",
        f"Inference (max):      {max(runs_us) / 1000:.2f} ms",
        f"Inference (std):      {deviation(runs_us) / 1000:.2f}",
        "======================================",
    ]
    return [row if row.startswith("==") else f"INFO: [benchmark_litert_model.h:80] {row}" for row in rows]


def result_file(warmup_us: list[int], runs_us: list[int]) -> bytes:
    result = _result_class()()
    latency = result.latency_metrics
    latency.init_ms, latency.first_inference_ms = INIT_US / 1000, warmup_us[0] / 1000
    latency.average_warm_up_ms, latency.avg_ms = mean(warmup_us) / 1000, mean(runs_us) / 1000
    latency.min_ms, latency.max_ms = min(runs_us) / 1000, max(runs_us) / 1000
    latency.stddev_ms = deviation(runs_us) / 1000
    latency.p5_ms, latency.median_ms, latency.p95_ms = (percentile(runs_us, at) / 1000 for at in (5, 50, 95))
    result.memory_metrics.init_footprint_kb, result.memory_metrics.overall_footprint_kb = 5632, 9472
    result.misc_metrics.model_size_mb = 4.2761
    result.misc_metrics.num_runs, result.misc_metrics.num_warmup_runs = len(runs_us), len(warmup_us)
    content: bytes = result.SerializeToString()
    return content


def mean(us: list[int]) -> float:
    return sum(us) / len(us)


def deviation(us: list[int]) -> int:
    """Variance and its root are both cut off to whole numbers."""
    return int(int(max(sum(v * v for v in us) / len(us) - mean(us) ** 2, 0)) ** 0.5)


def percentile(us: list[int], at: int) -> int:
    return sorted(us)[len(us) * at // 100] if us else 0


@cache
def _result_class() -> Any:
    """tensorflow/lite/tools/benchmark/proto/benchmark_result.proto"""
    float_ms, whole = descriptor_pb2.FieldDescriptorProto.TYPE_FLOAT, descriptor_pb2.FieldDescriptorProto.TYPE_INT64
    names = ["avg", "min", "max", "stddev", "median", "p5", "p95", "init", "first_inference", "average_warm_up"]
    file = descriptor_pb2.FileDescriptorProto(name="benchmark_result.proto", package="tflite.tools.benchmark")
    for message, fields in {
        "LatencyMetrics": [(f"{name}_ms", float_ms) for name in names],
        "MemoryMetrics": [("init_footprint_kb", whole), ("overall_footprint_kb", whole), ("peak_mem_mb", float_ms)],
        "MiscMetrics": [("model_size_mb", float_ms), ("num_runs", whole), ("num_warmup_runs", whole)],
    }.items():
        described = file.message_type.add(name=message)
        for number, (name, kind) in enumerate(fields, start=1):
            described.field.add(name=name, number=number, type=kind, label=1)
    result = file.message_type.add(name="BenchmarkResult")
    result.field.add(name="name", number=1, type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING, label=1)
    for number, part in enumerate(("Latency", "Memory", "Misc"), start=2):
        result.field.add(
            name=f"{part.lower()}_metrics",
            number=number,
            type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
            type_name=f".tflite.tools.benchmark.{part}Metrics",
            label=1,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tflite.tools.benchmark.BenchmarkResult"))

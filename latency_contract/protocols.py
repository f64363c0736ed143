"""Protocol: everything that changes a latency besides the subject and the device model.

Two numbers are comparable only under one protocol; its hash therefore names the table that a number belongs to.
"""

from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from statistics import fmean, median
from typing import Annotated, Literal

from pydantic import Field

from latency_contract.canonical import Contract, content_hash
from latency_contract.operators import IBConv

# One mid-sized operator, about as costly as a typical layer of a mobile network, measured around every block of
# runs. Its readings tell a slow device from a slow operator.
REFERENCE_OPERATOR = IBConv(
    height=14, width=14, in_channels=80, out_channels=80, kernel=3, stride=1, expansion=3, residual=True
)


class Delegate(StrEnum):
    XNNPACK = "xnnpack"  # optimised CPU kernels, the default of LiteRT
    NONE = "none"  # the runtime's built-in kernels
    GPU = "gpu"  # the phone's GPU


class Precision(StrEnum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"  # full integer quantisation


class Cores(StrEnum):
    ONE_LARGE = "one_large"  # pinned to one core of the fastest cluster, as the paper measures
    UNPINNED = "unpinned"  # wherever the scheduler puts it; for systems that cannot pin


class BlockStatistic(StrEnum):
    """The number that stands for a block of runs. Those of the same runs differ; a table has one kind."""

    P5 = "p5"  # fifth percentile: a run that was hardly disturbed, of programs that report every run (decision 32)
    MEDIAN = "median"
    MEAN = "mean"  # of programs that report no median, as older builds of benchmark_model

    def of(self, samples_ms: Sequence[float]) -> float:
        """Of the runs of a block, or of the one number that sums them up."""
        match self:
            case BlockStatistic.P5:
                return sorted(samples_ms)[(len(samples_ms) - 1) // 20]
            case BlockStatistic.MEDIAN:
                return median(samples_ms)
            case BlockStatistic.MEAN:
                return fmean(samples_ms)


class StoppingRule(Contract):
    """When a subject has been measured enough.

    A subject is finished when the half-width of its interval is within `target` of the estimate and one of its rounds
    met a quiet moment (measurements.py), but not before `min_rounds`; at `max_rounds` it is finished with verdict
    `unsteady`. What is known of its spread from the others in its lease counts, so that few rounds that lie close by
    chance are no reason to stop (estimators.py).

    With `budget_s`, time ends it and the target makes nothing but the verdict: a lease of n subjects is measured for
    n times so long. Each has `min_rounds`, whatever they take; further rounds go to the widest intervals, each taken
    as many times as there are layers that may use the subject (LatencyQuery).
    """

    target: Annotated[float, Field(gt=0, lt=1)] = 0.02  # half-width relative to the estimate
    confidence: Annotated[float, Field(gt=0.5, le=0.999999)] = 0.95
    min_rounds: Annotated[int, Field(ge=4, le=1000)] = 6
    max_rounds: Annotated[int, Field(ge=4, le=1000)] = 48
    budget_s: Annotated[float, Field(gt=0, le=3600)] | None = None


class Protocol(Contract):
    runtime: Annotated[str, Field(min_length=1, max_length=40, examples=["litert"])]
    runtime_version: Annotated[str, Field(min_length=1, max_length=40, examples=["2.3.0"])]
    delegate: Delegate = Delegate.XNNPACK
    precision: Precision = Precision.FLOAT32
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    cores: Cores = Cores.ONE_LARGE
    core_mask: Annotated[str, Field(pattern=r"^[0-9a-f]{0,16}$")] = ""  # which core that is, hexadecimal; "": any
    statistic: BlockStatistic = BlockStatistic.MEDIAN
    reference: IBConv = REFERENCE_OPERATOR
    warmup_ms: Annotated[float, Field(ge=0, le=10_000)] = 2.0  # untimed runs that open every block, one at least
    block_ms: Annotated[float, Field(gt=0, le=60_000)] = 25.0  # timed runs of one block
    reference_block_ms: Annotated[float, Field(gt=0, le=60_000)] = 3.0  # timed runs of one block of the reference
    min_runs: Annotated[int, Field(ge=3, le=1000)] = 5  # timed runs of one block, however slow the subject
    max_runs: Annotated[int, Field(ge=3, le=10_000)] = 1000  # and however fast; each is kept with the measurement
    stopping: StoppingRule = StoppingRule()
    rules: Literal[2, 3] = 3  # by which rounds are run and make a number (decisions 20, 31); others start another table

    @cached_property
    def id(self) -> str:
        """Hash of the canonical JSON."""
        return content_hash(self)

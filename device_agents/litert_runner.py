"""The process that runs models: LiteRT's interpreter with one thread, pinned to one core.

It does what it is told through a pipe and nothing else, so that a model which brings it down brings nothing else
down. The one module that imports LiteRT.
"""

import gc
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

INPUT_SEED = 0  # every run of every model sees the same image of normally distributed values


class RunBlock(NamedTuple):
    path: str  # of a TFLite file
    warmup_ms: float
    block_ms: float
    min_runs: int
    max_runs: int


class Refusal(NamedTuple):
    """The model cannot be loaded or run."""

    reason: str


def serve(pipe: Connection, core: int | None) -> None:
    """Answer each RunBlock with its samples in ns, or a Refusal, until the other end closes.

    The first message sent is the list of cores that the kernel allows this process, read back after pinning.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the agent's to answer
    if core is not None:
        os.sched_setaffinity(0, {core})
    pipe.send(sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [])
    gc.disable()  # nothing here makes cycles, and a collection in the middle of a block would be timed
    while True:
        try:
            request: RunBlock = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(_run_block(request))
        except (ValueError, RuntimeError, MemoryError) as error:
            pipe.send(Refusal(f"{type(error).__name__}: {error}"))


def _load(path: str) -> Callable[[], None]:
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(model_path=path, num_threads=1)  # applies XNNPACK by default
    interpreter.allocate_tensors()
    for tensor in interpreter.get_input_details():
        values = np.random.default_rng(INPUT_SEED).standard_normal(tensor["shape"], dtype=np.float32)
        interpreter.set_tensor(tensor["index"], values)
    interpreter.invoke()  # XNNPACK packs the weights in the first run
    run: Callable[[], None] = interpreter.invoke
    return run


def _run_block(request: RunBlock) -> list[int]:
    """Load the model, warm up, then time runs until `block_ms` is over: at least `min_runs`, at most `max_runs`.

    Where the model's memory happens to lie changes its latency by some percent. Loading it anew for every block
    makes that a difference between rounds, which the interval sees, and not one between measurements.
    """
    invoke = _load(request.path)
    now = time.perf_counter_ns
    warm_until = now() + int(request.warmup_ms * 1e6)
    while now() < warm_until:
        invoke()
    samples: list[int] = []
    end = now() + int(request.block_ms * 1e6)
    started = now()
    while (started < end and len(samples) < request.max_runs) or len(samples) < request.min_runs:
        invoke()
        finished = now()
        samples.append(finished - started)
        started = finished
    return samples

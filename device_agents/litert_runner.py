"""The process that runs models: LiteRT's interpreter with one thread, pinned to one core.

It is given a plan of turns and tells its steps one by one: on this machine through a pipe (`serve`), on a Linux board
as a script that reads a file and writes one (`main`). Every turn runs in a fork of this process, which has LiteRT
loaded, so that what differs between one process and the next differs between rounds (docs/decisions/0020, 0030). A
model that brings it down brings nothing else down, and the last step says which model that was. It imports nothing of
this package, because a board has only this file. The one module that imports LiteRT.
"""

import contextlib
import ctypes
import gc
import json
import math
import os
import pickle
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

INPUT_SEED = 0  # every run of every model sees the same image of normally distributed values
INPUT_VALUES = 2**20  # drawn once, for all models that need no more; that takes some milliseconds
LONG_RUN_NS = 1_000_000  # a look at the thread's clock takes a thousandth of it; schedulers' slices are no shorter
REFERENCE = -1  # index of the reference operator among a plan's models
NO_INPUT = 66  # exit status where a file of the plan is missing (sysexits.h: EX_NOINPUT)
CANNOT_WRITE = 73  # exit status of whoever cannot store its steps (sysexits.h: EX_CANTCREAT)
CPU = Path("/sys/devices/system/cpu")
THERMAL = Path("/sys/class/thermal")
POSSIBLE_CPU_C = (1.0, 130.0)  # a zone without a sensor says something else
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

Step = list[Any]  # its kind, then what turns.py says of it
Invoke = Callable[[], None]  # runs a model once


def serve(pipe: Connection, core: int | None) -> None:
    """Answer each plan with its steps, until the other end closes."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a process with threads is not to be forked
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the agent's to answer
    pipe.send(pin(core))
    while True:
        try:
            plan = pipe.recv()
        except EOFError:
            return
        for step in run(plan, core):
            pipe.send(step)


def main(plan_file: str, result_file: str) -> None:
    """Run the plan in one file; every step is a line of the other, written before the next one is begun.

    Ends with CANNOT_WRITE where the device is full, with NO_INPUT where a file is gone: neither is a model's fault.
    """
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a process with threads is not to be forked
    plan = json.loads(Path(plan_file).read_text())
    if not all(os.path.exists(path) for path in (plan["reference"], *(path for path, _ in plan["models"]))):
        sys.exit(NO_INPUT)
    with Path(result_file).open("wb", buffering=0) as result:
        for step in chain([pin(plan["core"])], run(plan, plan["core"])):
            line = json.dumps(step).encode() + b"\n"
            try:
                written = result.write(line)  # to the kernel, which keeps it whatever becomes of this process
            except OSError:
                sys.exit(CANNOT_WRITE)
            if written != len(line):
                sys.exit(CANNOT_WRITE)


def pin(core: int | None) -> Step:
    """Keep this process on one core; tells the cores that the kernel allows it, read back after pinning."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    return ["pinned", sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []]


def run(plan: dict[str, Any], core: int | None) -> Iterator[Step]:
    """The plan's turns: each model that still has rounds left, between two blocks of the reference operator.

    A plan has `reference` and `models` (path and rounds of each) and the protocol's `warmup_ms`, `block_ms`,
    `reference_block_ms`, `min_runs`, `max_runs`; whether XNNPACK is to run them (`xnnpack`); and `block_limit_s`, after
    which a block has hung.

    The order of a turn is drawn anew: where a model's memory lies depends on what its process has run before, and is to
    differ between its rounds as it would between repetitions.
    """
    gc.disable()  # nothing here makes cycles, and a collection in the middle of a block would be timed
    began = time.monotonic()
    refused = set[int]()
    yield ["state", state(core)]
    # What LiteRT prepares once in a process is prepared here, for all forks.
    yield ["started", REFERENCE]
    prepared = _attempt(REFERENCE, plan, lambda: ["loaded", load(plan["reference"], xnnpack=plan["xnnpack"])])
    if prepared[0] == "refused":
        yield prepared
        yield ["done"]
        return
    del prepared
    for turn in range(max(rounds for _, rounds in plan["models"])):
        due = [i for i, (_, rounds) in enumerate(plan["models"]) if turn < rounds and i not in refused]
        if not due or REFERENCE in refused:
            break
        random.shuffle(due)
        for step in _in_fork(lambda due=due: _turn(plan, due, core, began)):  # type: ignore[misc]
            if step[0] == "refused":
                refused.add(step[1])
            yield step
    yield ["done"]


def _turn(plan: dict[str, Any], due: list[int], core: int | None, began: float) -> Iterator[Step]:
    """A block of each model that is due, loaded for it; the reference operator is loaded once.

    Told are the beginnings at once, the rest between models: whoever reads it may share the core.
    """
    kept = cache(lambda path: load(path, xnnpack=plan["xnnpack"]))

    def block(index: int) -> Step:
        at_s = time.monotonic() - began
        if index == REFERENCE:
            samples_ms = _run_block(kept(plan["reference"]), plan, plan["reference_block_ms"])
        else:
            invoke = load(plan["models"][index][0], xnnpack=plan["xnnpack"])
            samples_ms = _run_block(invoke, plan, plan["block_ms"])
        return ["ran", index, at_s, samples_ms, None, time.monotonic() - began - at_s]

    def blocks(*indices: int) -> Iterator[Step]:
        ended: list[Step] = []
        for index in indices:
            yield ["started", index]
            ended.append(_attempt(index, plan, lambda index=index: block(index)))  # type: ignore[misc]
            if ended[-1][0] == "refused":
                break
        yield from ended
        if ended[-1][0] == "ran":
            yield ["state", state(core)]

    yield from blocks(REFERENCE)
    for index in due:
        yield from blocks(index, REFERENCE)


def _attempt(index: int, plan: dict[str, Any], step: Callable[[], Step]) -> Step:
    """A step, or that the model is refused. Ends this process where it takes too long."""
    try:
        with _alarm(plan["block_limit_s"]):
            return step()
    except (ValueError, RuntimeError, MemoryError) as error:
        return ["refused", index, f"LiteRT refuses this model: {type(error).__name__}: {error}"]
    except NotDelegated as error:
        return ["refused", index, str(error)]


def _in_fork(steps: Callable[[], Iterator[Step]]) -> Iterator[Step]:
    """What a fork of this process tells. If a signal ends it, the same ends this process, in the same block.

    This process sleeps meanwhile, so that both can be pinned to one core.
    """
    if not hasattr(os, "fork"):
        yield from steps()
        return
    read_end, write_end = os.pipe()
    runner = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _end_with(runner)
        with os.fdopen(write_end, "wb") as pipe:
            for step in steps():
                pickle.dump(step, pipe)
                pipe.flush()
        os._exit(0)
    os.close(write_end)
    try:
        with os.fdopen(read_end, "rb") as pipe, contextlib.suppress(EOFError, pickle.UnpicklingError):
            while True:  # until it ends, perhaps in the middle of a step
                yield pickle.load(pipe)
    finally:
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    elif status:
        os._exit(os.WEXITSTATUS(status))


def _end_with(runner: int) -> None:
    """Have the kernel end this process when the runner is ended (Linux: prctl, PR_SET_PDEATHSIG)."""
    if LIBC is not None:
        LIBC.prctl(1, signal.SIGKILL)
    if os.getppid() != runner:  # it was ended before that
        os._exit(1)


def state(core: int | None) -> dict[str, Any]:
    """What of the processor's state can be read here; the names are those of DeviceState.

    Which zones and cooling devices count is as in gates.py, by which a board that waits to cool down is judged.
    """
    frequency = CPU / f"cpu{core}/cpufreq"
    celsius = {
        zone: millidegrees / 1000
        for zone in THERMAL.glob("thermal_zone*")
        if (millidegrees := _number(zone / "temp")) is not None
        and POSSIBLE_CPU_C[0] <= millidegrees / 1000 <= POSSIBLE_CPU_C[1]
    }
    of_processor = [degrees for zone, degrees in celsius.items() if _is_processors(zone)]
    cooling = [_number(device / "cur_state") for device in THERMAL.glob("cooling_device*") if _is_processors(device)]
    return {
        "governor": text_of(frequency / "scaling_governor"),
        "frequency_khz": _number(frequency / "scaling_cur_freq"),
        "max_frequency_khz": _number(frequency / "scaling_max_freq"),
        "temperature_c": max(of_processor or celsius.values(), default=None),
        "cooling_state": max((level for level in cooling if level is not None), default=None),
    }


def _is_processors(place: Path) -> bool:
    return "cpu" in (text_of(place / "type") or "").lower()


@contextlib.contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    """Ends this process when time is up: nothing else ends a model that hangs inside the runtime."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)
    try:
        yield
    finally:
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def _run_block(invoke: Invoke, plan: dict[str, Any], block_ms: float) -> list[float]:
    """Warm up, then time runs until `block_ms` is over: milliseconds of each.

    Of long runs, that is the time for which this thread had its core: what another program has taken meanwhile is not
    in it (docs/decisions/0031). Of short ones few meet another program, and what stands for a block does not see them.
    """
    now = time.perf_counter_ns
    warm_from = warm_to = now()
    shortest = math.inf
    while warm_to < warm_from + plan["warmup_ms"] * 1e6 or math.isinf(shortest):
        before = warm_to
        invoke()
        warm_to = now()
        shortest = min(shortest, warm_to - before)
    if sys.platform == "linux" and shortest > LONG_RUN_NS:
        now = time.thread_time_ns
    samples: list[int] = []
    started = now()
    end = started + int(block_ms * 1e6)
    while (started < end and len(samples) < plan["max_runs"]) or len(samples) < plan["min_runs"]:
        invoke()
        finished = now()
        samples.append(finished - started)
        started = finished
    return [nanoseconds / 1e6 for nanoseconds in samples]


class NotDelegated(Exception):
    """XNNPACK does not run what the protocol says that it runs, or the other way round."""


def load(path: str, *, xnnpack: bool) -> Invoke:
    """What runs the model once.

    Where the model's memory happens to lie changes its latency by some percent. Loading it anew for every block makes
    that a difference between rounds, which the interval sees, and not one between measurements.

    Raises:
        NotDelegated: XNNPACK does not run what it is to run.
        ValueError, RuntimeError: LiteRT refuses the model.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter: Any = Interpreter(model_path=path, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    for tensor in interpreter.get_input_details():
        size = math.prod(tensor["shape"])
        interpreter.set_tensor(tensor["index"], _input_values(max(size, INPUT_VALUES))[:size].reshape(tensor["shape"]))
    delegated = any(op["op_name"] == "DELEGATE" for op in interpreter._get_ops_details())
    if delegated != xnnpack:
        raise NotDelegated(f"XNNPACK runs {'a part' if delegated else 'no part'} of this model.")
    invoke: Invoke = interpreter.invoke
    return invoke


@cache
def _input_values(count: int) -> Any:
    """The first of them are the same, however many there are."""
    import numpy as np

    return np.random.default_rng(INPUT_SEED).standard_normal(count, dtype=np.float32)


def text_of(path: Path) -> str | None:
    """What a file of the system says; None where it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> int | None:
    text = text_of(path) or ""
    return int(text) if text.isdigit() else None


if __name__ == "__main__":
    main(*sys.argv[1:])

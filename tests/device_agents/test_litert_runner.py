"""The runner's own code, in this process; what it does in one of its own is tested through its devices."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from device_agents import litert_runner
from device_agents.litert_runner import CANNOT_WRITE, NO_INPUT, REFERENCE, main, run
from device_agents.turns import Plan
from latency_contract.operators import IBConv
from latency_contract.protocols import Protocol
from latency_service.tflite_converter import convert

# The runner as a board has it, on a plan and with what its blocks are made to do.
SCRIPT = """
import os, signal, sys, time
from device_agents import litert_runner
runner = os.getpid()
def block(invoke, plan, block_ms):
{body}
litert_runner._run_block = block
litert_runner.main(*sys.argv[1:])
"""


@pytest.fixture
def model(tmp_path: Path, operator: Callable[..., IBConv]) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(convert(operator(height=16, width=16, in_channels=16, out_channels=16)))
    return path


def ended(model: Path, body: str, *, block_limit_s: int = 60) -> tuple[int, list[list[Any]]]:
    """Exit status and steps of a runner that was given two rounds of one model."""
    protocol = Protocol(runtime="litert", runtime_version="2.3.0")
    plan = Plan(model, [(model, 2)], protocol).document(core=None) | {"block_limit_s": block_limit_s}
    files = [model.parent / "plan", model.parent / "steps"]
    files[0].write_text(json.dumps(plan))
    command = [sys.executable, "-c", SCRIPT.format(body=body), *map(str, files)]
    status = subprocess.run(command, stderr=subprocess.DEVNULL, timeout=60).returncode
    return status, [json.loads(line) for line in files[1].read_text().splitlines()]


def test_every_turn_runs_in_a_process_of_its_own_between_its_reference_blocks(model: Path) -> None:
    status, steps = ended(model, "    return [float(os.getpid())]")
    assert status == 0
    blocks = [(step[1], step[3][0]) for step in steps if step[0] == "ran"]
    turns = [blocks[:3], blocks[3:]]
    assert [[position for position, _ in turn] for turn in turns] == [[REFERENCE, 0, REFERENCE]] * 2
    assert [len({process for _, process in turn}) for turn in turns] == [1, 1]
    assert turns[0][0][1] != turns[1][0][1]


def test_a_block_that_ends_its_process_ends_the_runner_likewise(model: Path) -> None:
    status, steps = ended(model, "    os.kill(os.getpid(), signal.SIGSEGV)")
    assert status == -signal.SIGSEGV
    assert steps[-1] == ["started", litert_runner.REFERENCE]
    status, _ = ended(model, "    os._exit(3)")
    assert status == 3


def test_a_block_that_hangs_ends_the_runner_by_its_alarm(model: Path) -> None:
    status, steps = ended(model, "    signal.pause()", block_limit_s=1)
    assert status == -signal.SIGALRM
    assert steps[-1] == ["started", litert_runner.REFERENCE]


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_block_ends_with_a_runner_that_is_killed(model: Path) -> None:
    body = f"""
    open({str(model.parent / "child")!r}, "w").write(str(os.getpid()))
    os.kill(runner, signal.SIGKILL)
    time.sleep(60)"""
    status, _ = ended(model, body)
    assert status == -signal.SIGKILL
    child = int((model.parent / "child").read_text())
    gone = not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert gone or psutil.wait_procs([psutil.Process(child)], timeout=10)[0]


def test_a_refused_model_leaves_no_alarm_that_would_end_the_waiting_runner(tmp_path: Path) -> None:
    missing = tmp_path / "missing.tflite"
    plan = Plan(missing, [(missing, 1)], Protocol(runtime="litert", runtime_version="2.3.0"))
    try:
        steps = list(run(plan.document(core=None), None))
        assert signal.alarm(0) == 0
    finally:
        gc.enable()
    assert [step[0] for step in steps] == ["state", "started", "refused", "done"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file on which no write finds space")
def test_a_full_device_is_told_from_a_model_that_fails(tmp_path: Path) -> None:
    model = tmp_path / "model.tflite"
    model.touch()
    plan = Plan(model, [(model, 1)], Protocol(runtime="litert", runtime_version="2.3.0"))
    (tmp_path / "plan").write_text(json.dumps(plan.document(core=None)))
    with pytest.raises(SystemExit) as ended:
        main(str(tmp_path / "plan"), "/dev/full")
    assert ended.value.code == CANNOT_WRITE


def test_a_board_that_lacks_a_file_says_so_before_it_runs_anything(tmp_path: Path) -> None:
    missing = tmp_path / "missing.tflite"
    plan = Plan(missing, [(missing, 1)], Protocol(runtime="litert", runtime_version="2.3.0"))
    (tmp_path / "plan").write_text(json.dumps(plan.document(core=None)))
    with pytest.raises(SystemExit) as ended:
        main(str(tmp_path / "plan"), str(tmp_path / "steps"))
    assert ended.value.code == NO_INPUT
    assert not (tmp_path / "steps").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="times by the wall clock alone")
@pytest.mark.parametrize(("slept_s", "in_it"), [(0.02, False), (0.0002, True)])
def test_what_a_long_run_waits_for_its_core_is_not_in_it(slept_s: float, *, in_it: bool) -> None:
    """Sleeping stands in for waiting: in neither does the thread have its core."""
    limits = {"warmup_ms": 50.0, "min_runs": 5, "max_runs": 5}
    samples_ms = litert_runner._run_block(lambda: time.sleep(slept_s), limits, block_ms=1.0)
    assert len(samples_ms) == 5
    assert (min(samples_ms) > 1000 * slept_s) == in_it

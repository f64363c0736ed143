"""The runner's own code, in this process; what it does in one of its own is tested through its devices."""

import gc
import signal
from pathlib import Path

from device_agents.litert_runner import run
from device_agents.turns import Plan
from latency_contract.protocols import Protocol


def test_a_refused_model_leaves_no_alarm_that_would_end_the_waiting_runner(tmp_path: Path) -> None:
    missing = tmp_path / "missing.tflite"
    plan = Plan(missing, [(missing, 1)], Protocol(runtime="litert", runtime_version="2.3.0"))
    try:
        steps = list(run(plan.document(core=None), None))
        assert signal.alarm(0) == 0
    finally:
        gc.enable()
    assert [step[0] for step in steps] == ["state", "started", "refused", "done"]

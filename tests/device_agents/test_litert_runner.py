"""The runner's own code, in this process; what it does in one of its own is tested through its devices."""

import gc
import json
import os
import signal
from pathlib import Path

import pytest

from device_agents.litert_runner import CANNOT_WRITE, main, run
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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file on which no write finds space")
def test_a_full_device_is_told_from_a_model_that_fails(tmp_path: Path) -> None:
    missing = tmp_path / "missing.tflite"
    plan = Plan(missing, [(missing, 1)], Protocol(runtime="litert", runtime_version="2.3.0"))
    (tmp_path / "plan").write_text(json.dumps(plan.document(core=None)))
    with pytest.raises(SystemExit) as ended:
        main(str(tmp_path / "plan"), "/dev/full")
    assert ended.value.code == CANNOT_WRITE

"""What is said of processes that are watched."""

import subprocess
import sys
import time

from benchmarks.processes import PeakMemory

FORKS = """
import os, sys
held = bytearray(os.urandom(100_000_000))
for _ in range(5):
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
print("forked", flush=True)
sys.stdin.read()
"""


def test_memory_that_forks_share_is_counted_once() -> None:
    with subprocess.Popen([sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"forked\n"
        with PeakMemory(program.pid) as memory:
            while not memory.own_mb:
                time.sleep(0.05)
        program.communicate()
    assert 100 < memory.own_mb < 200
    assert memory.agent_mb == 0

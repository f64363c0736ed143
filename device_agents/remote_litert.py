"""LiteRT's Python interpreter on a Linux board: litert_runner.py, sent there as it is."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from device_agents import litert_runner
from device_agents.errors import DeviceFault
from device_agents.turns import Plan, Step, parse_step


class RemoteLiteRT:
    """Runs plans on a board whose python3 has `ai-edge-litert`."""

    def __init__(self, *, core: int) -> None:
        source = Path(litert_runner.__file__).read_bytes()
        self._core = core
        self._name = f"{hashlib.sha256(source).hexdigest()}.py"
        self.programs = {self._name: source}
        self.command = f"python3 ../cache/{self._name} plan steps"

    def plan_text(self, plan: Plan) -> str:
        return json.dumps(plan.document(core=self._core, place="../cache"))

    def steps(self, text: str, plan: Plan) -> Iterator[Step]:
        """A line that was cut off is not a step."""
        del plan  # the lines say everything
        for line in text.splitlines(keepends=True):
            if line.endswith("\n"):
                yield parse_step(_json(line))


def _json(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DeviceFault(f"The runner says something unintelligible: {line[:500]}") from error

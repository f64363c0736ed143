"""A device whose every block takes what a script says: for rules that no real device could be made to show."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from device_agents.errors import DeviceFault, SubjectFault
from device_agents.litert_runner import REFERENCE
from device_agents.rounds import Identity
from device_agents.turns import Plan, Ran, Refused, Started, State, Step, TurnReader, Visit
from latency_contract.devices import DeviceReport
from latency_contract.measurements import DeviceState


class ScriptedDevice:
    """`behave` is given a model's file and gives its milliseconds, or raises its fault or the device's."""

    def __init__(
        self, behave: Callable[[Path], float], *, report: DeviceReport, state: Callable[[], DeviceState] = DeviceState
    ) -> None:
        self.behave = behave
        self.state = state
        self.report = report
        self.identity = Identity(report.serial, "12", "SDM845", "scripted", "1" * 64, "80")
        self.ran: list[str] = []  # names of the models, in order
        self.reject: Callable[[Visit], str | None] = lambda _: None
        self.waits = 0
        self.away: str | None = None  # why it cannot be reached

    def check(self) -> None:
        if self.away is not None:
            raise DeviceFault(self.away)

    def wait_until_fit(self, check: Callable[[], None]) -> None:
        check()
        self.waits += 1

    def run(self, plan: Plan, check: Callable[[], None]) -> Iterator[Visit | Refused]:
        reader = TurnReader(datetime.now(UTC), plan.protocol.statistic)
        for step in self._steps(plan):
            check()
            result = reader.read(step)
            if isinstance(result, Visit):
                result = result._replace(rejected=self.reject(result))
            if result is not None:
                yield result

    def _steps(self, plan: Plan) -> Iterator[Step]:
        refused = set[int]()
        yield State("state", self.state())
        yield from self._block(plan, REFERENCE)
        for turn in range(max(rounds for _, rounds in plan.models)):
            for position, (_, rounds) in enumerate(plan.models):
                if turn >= rounds or position in refused:
                    continue
                for step in self._block(plan, position):
                    yield step
                    if isinstance(step, Refused):
                        refused.add(position)
                if position not in refused:
                    yield from self._block(plan, REFERENCE)
                    yield State("state", self.state())

    def _block(self, plan: Plan, position: int) -> Iterator[Step]:
        yield Started("started", position)
        model = plan.model(position)
        self.ran.append(model.name)
        try:
            ms = self.behave(model)
        except SubjectFault as fault:
            yield Refused("refused", position, str(fault))
        else:
            yield Ran("ran", position, 0.0, [ms * 1.5, ms, ms * 0.9], None)  # the median is the answer

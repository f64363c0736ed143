"""What can go wrong with a measurement, by whose fault it is. Each fault is answered differently.

AgentError
├── SubjectFault      the model does not load, ends or hangs the runner: its job fails
├── DeviceFault       the device cannot measure now: the lease is given back and the device rests
│   ├── LinkLost      nothing reaches it: unplugged, cut, silent, or its bytes arrive damaged
│   ├── DeviceOffline it is there, and does not answer yet
│   ├── Unauthorized  nobody has accepted this computer's key on its screen
│   ├── DeviceFull    it has no space left
│   ├── CommandHung   a command did not end in time, or printed without end; it was ended
│   ├── PathRefused   it does not give or take this file
│   ├── Unexplained   benchmark_model failed, or printed what is no latency, and does not say why
│   └── SuspectedFault the model that ran at the time may have caused it
│       ├── DeviceRebooted
│       └── BracketsDisagree too many rounds were rejected: the device changes while the model runs
├── AgentOutdated     the service is of another version: the agent ends
├── DeviceChanged     another device answers in its place, or it has another system now: the agent ends
├── LeaseLost         the service gave the jobs to another device: they are dropped here
└── Stopped           somebody ended the agent: the lease is given back
"""

from pathlib import Path


class AgentError(Exception):
    """The text is a sentence for people."""


class SubjectFault(AgentError):
    pass


class DeviceFault(AgentError):
    pass


class LinkLost(DeviceFault):
    pass


class DeviceOffline(DeviceFault):
    pass


class Unauthorized(DeviceFault):
    pass


class DeviceFull(DeviceFault):
    pass


class CommandHung(DeviceFault):
    pass


class PathRefused(DeviceFault):
    pass


class Unexplained(DeviceFault):
    pass


class SuspectedFault(DeviceFault):
    def __init__(self, sentence: str, *, suspect: Path | None) -> None:
        super().__init__(sentence)
        self.suspect = suspect  # the TFLite file that ran at the time


class DeviceRebooted(SuspectedFault):
    pass


class BracketsDisagree(SuspectedFault):
    pass


class AgentOutdated(AgentError):
    pass


class DeviceChanged(AgentError):
    pass


class LeaseLost(AgentError):
    pass


class Stopped(AgentError):
    pass

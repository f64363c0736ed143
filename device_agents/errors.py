"""What can go wrong with a measurement, by whose fault it is. Each fault is answered differently.

AgentError
├── SubjectFault   the model does not load, ends or hangs the runner: its job fails
├── DeviceFault    the device cannot measure now: the lease is given back and the device rests
├── LeaseLost      the service gave the jobs to another device: they are dropped here
└── Stopped        somebody ended the agent: the lease is given back
"""


class AgentError(Exception):
    """The text is a sentence for people."""


class SubjectFault(AgentError):
    pass


class DeviceFault(AgentError):
    pass


class LeaseLost(AgentError):
    pass


class Stopped(AgentError):
    pass

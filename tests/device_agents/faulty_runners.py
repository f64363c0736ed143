"""Stand-ins for the runner process, for faults that cannot be caused otherwise. Light to import in a new process."""

import os
import signal
from multiprocessing.connection import Connection


class CannotPin:
    """A kernel that ignores the pin: the runner is allowed other cores than it asked for."""

    @staticmethod
    def serve(pipe: Connection, core: int | None) -> None:
        del core
        pipe.send(["pinned", [0, 1, 2]])


class Dies:
    """A model that brings LiteRT down: the runner kills itself in the middle of the second model's block."""

    @staticmethod
    def serve(pipe: Connection, core: int | None) -> None:
        pipe.send(["pinned", [core]])
        pipe.recv()
        pipe.send(["started", 1])
        os.kill(os.getpid(), signal.SIGKILL)


class DiesOnTheReference:
    @staticmethod
    def serve(pipe: Connection, core: int | None) -> None:
        pipe.send(["pinned", [core]])
        pipe.recv()
        pipe.send(["started", -1])
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs:
    """A model that never ends, and a runner that cannot even be ended by its own alarm."""

    @staticmethod
    def serve(pipe: Connection, core: int | None) -> None:
        pipe.send(["pinned", [core]])
        pipe.recv()
        pipe.send(["started", 1])
        signal.pause()


class Babbles:
    """A runner that says what no runner says."""

    @staticmethod
    def serve(pipe: Connection, core: int | None) -> None:
        pipe.send(["pinned", [core]])
        pipe.recv()
        pipe.send(["ran", 0, "soon"])
        signal.pause()

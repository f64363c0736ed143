"""Stand-ins for the runner process, for faults that cannot be caused otherwise. Light to import in a new process."""

import os
import signal
from multiprocessing.connection import Connection


class CannotPin:
    """A kernel that ignores the pin: the runner is allowed other cores than it asked for."""

    @staticmethod
    def serve(pipe: Connection, core: int | None) -> None:
        del core
        pipe.send([0, 1, 2])


class Dies:
    """A model that brings LiteRT down: the runner kills itself when it is asked to run."""

    @staticmethod
    def serve(pipe: Connection, core: int | None) -> None:
        pipe.send([core])
        pipe.recv()
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs:
    """A model that never ends."""

    @staticmethod
    def serve(pipe: Connection, core: int | None) -> None:
        pipe.send([core])
        pipe.recv()
        signal.pause()

"""A wire on 127.0.0.1 between an agent and a device, that fails when it is told to."""

import contextlib
import select
import socket
import struct
import threading
import time
from enum import StrEnum
from typing import NamedTuple, Self

LOOK_S = 0.02  # between two looks at what is wrong
CHUNK = 1 << 16
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing throws away what is under way


class Fault(StrEnum):
    CUT = "cut"  # both ends see a reset; later connections are good
    HALF_CLOSE = "half_close"  # one direction ends, the other goes on; later connections are good
    STALL = "stall"  # nothing passes, until healed
    SLOW = "slow"  # bytes trickle, until healed
    CORRUPT = "corrupt"  # one byte of what passes next is changed
    REFUSE = "refuse"  # new connections are reset at once, until healed


class Direction(StrEnum):
    TO_DEVICE = "to_device"
    FROM_DEVICE = "from_device"


class _Order(NamedTuple):
    fault: Fault
    after_bytes: int
    direction: Direction


class _Cut(Exception):
    pass


class FaultyWire:
    """Connect to `port`, and reach the device that listens on `device_port` of 127.0.0.1."""

    def __init__(self, device_port: int) -> None:
        self.struck = threading.Event()  # the fault that was ordered last has met a connection, or bytes under way
        self._device_port = device_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._order: _Order | None = None
        self._ordered: Fault | None = None  # the last one, whether or not it has struck
        self._lasting: Fault | None = None
        self._bytes_per_s = 0.0
        self._cuts = 0  # orders to cut at once
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def inject(
        self,
        fault: Fault,
        *,
        after_bytes: int = 0,
        direction: Direction = Direction.FROM_DEVICE,
        bytes_per_s: float = 50_000.0,
    ) -> None:
        """Let a fault happen: at once, or once so many bytes more have passed in a direction.

        The direction is also the one that CORRUPT and HALF_CLOSE are about.
        """
        with self._lock:
            self.struck.clear()
            self._bytes_per_s = bytes_per_s
            self._ordered = fault
            self._order = _Order(fault, after_bytes, direction)
            if after_bytes == 0 and fault not in (Fault.CORRUPT, Fault.HALF_CLOSE):
                self._carry_out()

    def heal(self) -> None:
        """From now on everything passes. What a stall has held up comes late."""
        with self._lock:
            self._order = self._lasting = None

    def _carry_out(self) -> None:
        assert self._order is not None
        if self._order.fault == Fault.CUT:
            self._cuts += 1
        elif self._order.fault in (Fault.STALL, Fault.SLOW, Fault.REFUSE):
            self._lasting = self._order.fault
        self._order = None

    def _strikes(self, fault: Fault) -> None:
        if fault == self._ordered:
            self.struck.set()

    def _listen(self) -> None:
        while not self._over.is_set():
            if not select.select([self._listener], [], [], LOOK_S)[0]:
                continue
            agent, _ = self._listener.accept()
            cuts = self._cuts
            device = None
            if self._lasting == Fault.REFUSE:
                self._strikes(Fault.REFUSE)
            else:
                with contextlib.suppress(OSError):  # the device is off
                    device = socket.create_connection(("127.0.0.1", self._device_port))
            if device is None:
                agent.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                agent.close()
                continue
            self._threads.append(threading.Thread(target=self._carry, args=(agent, device, cuts)))
            self._threads[-1].start()

    def _carry(self, agent: socket.socket, device: socket.socket, cuts: int) -> None:
        """One connection, until both ends have closed or it is cut: there have been more cuts than at its start."""
        open_ways = {agent: (Direction.TO_DEVICE, device), device: (Direction.FROM_DEVICE, agent)}
        for end in open_ways:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while open_ways and not self._over.is_set():
                if self._cuts != cuts:
                    raise _Cut
                waiting = select.select(list(open_ways), [], [], LOOK_S)[0]
                if self._lasting == Fault.STALL:
                    if waiting:
                        self._strikes(Fault.STALL)
                    time.sleep(LOOK_S)
                    continue
                for source in waiting:
                    direction, sink = open_ways[source]
                    chunk = source.recv(CHUNK)
                    if not chunk or not self._pass(chunk, direction, sink, cuts):
                        sink.shutdown(socket.SHUT_WR)
                        del open_ways[source]
        except (_Cut, OSError) as end_of_it:  # an end that was reset resets the other
            if isinstance(end_of_it, _Cut):
                self._strikes(Fault.CUT)
            for end in (agent, device):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        finally:
            agent.close()
            device.close()

    def _pass(self, chunk: bytes, direction: Direction, sink: socket.socket, cuts: int) -> bool:
        """Whether the way stays open."""
        with self._lock:
            order = self._order if self._order is not None and self._order.direction == direction else None
            before = chunk if order is None else chunk[: order.after_bytes]
            after = chunk[len(before) :]
            if order is not None and after:
                self._carry_out()
            elif order is not None:
                self._order = order._replace(after_bytes=order.after_bytes - len(chunk))
        self._send(before, sink, cuts)
        if not after:
            return True
        assert order is not None
        if order.fault == Fault.CUT:
            raise _Cut
        if order.fault in (Fault.HALF_CLOSE, Fault.CORRUPT):
            self._strikes(order.fault)
        if order.fault == Fault.HALF_CLOSE:
            return False
        if order.fault == Fault.CORRUPT:
            after = bytes([after[0] ^ 0xFF]) + after[1:]
        self._send(after, sink, cuts)
        return True

    def _send(self, data: bytes, sink: socket.socket, cuts: int) -> None:
        """Raises _Cut where the wire is cut meanwhile. A stall holds data back."""
        while data:
            if self._over.is_set() or self._cuts != cuts:
                raise _Cut
            if self._lasting == Fault.STALL:
                self._strikes(Fault.STALL)
                time.sleep(LOOK_S)
                continue
            step = len(data)
            if self._lasting == Fault.SLOW:
                self._strikes(Fault.SLOW)
                time.sleep(LOOK_S)
                step = max(1, int(self._bytes_per_s * LOOK_S))
            if select.select([], [sink], [], LOOK_S)[1]:
                sent = sink.send(data[:step], socket.MSG_DONTWAIT)
                data = data[sent:]

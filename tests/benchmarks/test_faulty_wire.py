import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.faulty_wire import Direction, Fault, FaultyWire

PATIENCE_S = 20.0


@pytest.fixture
def far_end() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        yield server


@pytest.fixture
def wire(far_end: socket.socket) -> Iterator[FaultyWire]:
    with FaultyWire(far_end.getsockname()[1]) as wire:
        yield wire


@contextmanager
def connected(wire: FaultyWire, far_end: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The agent's end and the device's."""
    with socket.create_connection(("127.0.0.1", wire.port), PATIENCE_S) as agent:
        device, _ = far_end.accept()
        device.settimeout(PATIENCE_S)
        with device:
            yield agent, device


def receive(end: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer where the end comes before."""
    received = b""
    while len(received) < size and (piece := end.recv(size - len(received))):
        received += piece
    return received


def is_refused(wire: FaultyWire) -> None:
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection(("127.0.0.1", wire.port), PATIENCE_S) as agent,
    ):
        agent.recv(1)


def test_without_a_fault_everything_passes_both_ways(wire: FaultyWire, far_end: socket.socket) -> None:
    with connected(wire, far_end) as (agent, device):
        agent.sendall(b"there")
        device.sendall(b"back")
        assert (receive(device, 5), receive(agent, 4)) == (b"there", b"back")


def test_a_cut_resets_both_ends(wire: FaultyWire, far_end: socket.socket) -> None:
    with connected(wire, far_end) as (agent, device):
        wire.inject(Fault.CUT)
        for end in (agent, device):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
    with connected(wire, far_end) as (agent, device):
        agent.sendall(b"later connections are good")
        assert receive(device, 5) == b"later"


def test_a_fault_waits_for_its_byte(wire: FaultyWire, far_end: socket.socket) -> None:
    with connected(wire, far_end) as (agent, device):
        wire.inject(Fault.CORRUPT, after_bytes=3, direction=Direction.TO_DEVICE)
        device.sendall(b"other direction")
        assert receive(agent, 15) == b"other direction"
        assert not wire.struck.is_set()
        agent.sendall(b"ab")
        agent.sendall(b"cdef")
        assert receive(device, 6) == b"abc" + bytes([ord("d") ^ 0xFF]) + b"ef"
        assert wire.struck.is_set()


def test_a_half_closed_wire_passes_the_other_way(wire: FaultyWire, far_end: socket.socket) -> None:
    with connected(wire, far_end) as (agent, device):
        wire.inject(Fault.HALF_CLOSE, after_bytes=2, direction=Direction.FROM_DEVICE)
        device.sendall(b"abcd")
        assert receive(agent, 4) == b"ab"
        assert agent.recv(1) == b""
        agent.sendall(b"still")
        assert receive(device, 5) == b"still"


def test_what_a_stall_holds_up_comes_once_it_is_healed(wire: FaultyWire, far_end: socket.socket) -> None:
    with connected(wire, far_end) as (agent, device):
        wire.inject(Fault.STALL)
        agent.sendall(b"late")
        device.settimeout(0.1)
        with pytest.raises(TimeoutError):
            device.recv(1)
        device.settimeout(PATIENCE_S)
        wire.heal()
        assert receive(device, 4) == b"late"


def test_a_refusing_wire_keeps_the_connections_that_it_has(wire: FaultyWire, far_end: socket.socket) -> None:
    with connected(wire, far_end) as (agent, device):
        wire.inject(Fault.REFUSE)
        is_refused(wire)
        agent.sendall(b"kept")
        assert receive(device, 4) == b"kept"
    wire.heal()
    with connected(wire, far_end) as (agent, device):
        device.sendall(b"again")
        assert receive(agent, 5) == b"again"


def test_a_wire_whose_device_is_off_refuses(wire: FaultyWire, far_end: socket.socket) -> None:
    far_end.close()
    is_refused(wire)

import hashlib
import os
import random
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from adb_shell.exceptions import UsbReadFailedError

from benchmarks.debian_adbd import Adbd, adb_client
from benchmarks.faulty_wire import Direction, Fault, FaultyWire
from device_agents import adb
from device_agents.adb import AdbLink, AdbTarget, Output, parse_target, usb_targets
from device_agents.errors import (
    CommandHung,
    DeviceFault,
    DeviceFull,
    DeviceOffline,
    LinkLost,
    PathRefused,
    Stopped,
    Unauthorized,
)
from tests.device_agents.key_demanding_device import KeyDemandingDevice

Linked = Callable[[int], AdbLink]

SIZES = (0, 1, 5_000_000)
PATIENCE_S = 20.0  # for a process to end


def content_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def process_ends(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def device(adbd: Adbd, linked: Linked) -> AdbLink:
    return linked(adbd.port)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONNECT_S", "AUTHORISE_S", "STALL_S"):
        monkeypatch.setattr(adb, name, 2.0)
    monkeypatch.setattr(adb, "LOOK_S", 0.05)


@pytest.mark.parametrize(
    "text", ["adb:192.168.1.7:5555", "adb:phone-7.local:1", "adb:[fe80::1]:5555", "usb", "usb:89AX0"]
)
def test_a_target_reads_as_it_was_written(text: str) -> None:
    assert str(parse_target(text)) == text


def test_an_address_in_brackets_is_one_without_them() -> None:
    assert parse_target("adb:[::1]:5555") == AdbTarget(host="::1", port=5555)


@pytest.mark.parametrize(
    "text",
    ["", "local", "adb", "adb:", "adb:host", "adb:host:", "adb:host:0", "adb:host:65536", "adb::5", "usb:", "usb:a b"],
)
def test_what_is_no_target_is_answered_with_what_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"Say adb:HOST:PORT, as adb:192\.168\.1\.7:5555, or usb, or usb:SERIAL"):
        parse_target(text)


@pytest.mark.parametrize("status", [0, 1, 3, 127, 255])
def test_a_script_tells_its_exit_status(device: AdbLink, status: int) -> None:
    assert device.run(f"echo said; exit {status}", limit_s=10) == Output(status, "said\n")


def test_the_last_command_of_several_lines_decides(device: AdbLink) -> None:
    assert device.run("echo one\n# two\nfor n in 3 4; do\n  echo $n\ndone\nfalse", limit_s=10) == Output(
        1, "one\n3\n4\n"
    )


def test_both_outputs_are_seen_in_order(device: AdbLink) -> None:
    assert device.run("echo a; echo b >&2; printf c", limit_s=10) == Output(0, "a\nb\nc")


def test_what_looks_like_an_exit_status_in_the_output_is_output(device: AdbLink) -> None:
    assert device.run("echo RC=7; exit 2", limit_s=10) == Output(2, "RC=7\n")


def test_a_script_reads_nothing(device: AdbLink) -> None:
    assert device.run("cat; echo done", limit_s=10) == Output(0, "done\n")


def test_output_that_is_no_text_does_no_harm(device: AdbLink) -> None:
    assert device.run(r"printf '\377\000ok'", limit_s=10) == Output(0, "\ufffd\0ok")


def test_large_output_arrives_whole(device: AdbLink) -> None:
    output = device.run("seq 100000", limit_s=20)
    assert output.text == "".join(f"{n}\n" for n in range(1, 100001))


def test_a_shell_stays_until_what_it_printed_has_arrived(device: AdbLink, tmp_path: Path) -> None:
    """Linux throws away what is on the way to a terminal's reader when its shell ends: one command in 350 lost its last
    line."""
    look = "setsid -f sh -c 'sleep 1; cut -d\\  -f3 /proc/'$$'/stat >state; kill -CONT '$PPID"
    assert device.run(f"{look}\nkill -STOP $PPID; echo said", limit_s=20) == Output(0, "said\n")
    assert (tmp_path / "device" / "state").read_text() == "S\n"  # not a zombie


def test_a_device_without_frames_is_understood_too(device: AdbLink) -> None:
    """As before Android 7."""
    assert device._device is not None
    device._device._has_frames = False
    assert device.run("echo a; echo b; exit 3", limit_s=10) == Output(3, "a\nb\n")


def test_output_without_end_is_ended(device: AdbLink) -> None:
    with pytest.raises(CommandHung, match=f"printed more than {adb.MAX_OUTPUT_BYTES} bytes"):
        device.run("yes", limit_s=60)
    assert device.run("echo again", limit_s=10).text == "again\n"


def test_a_shell_that_is_killed_has_no_exit_status(device: AdbLink) -> None:
    with pytest.raises(DeviceFault, match=r"ended without an exit status, after: 'last words"):
        device.run("echo last words; kill -9 $$", limit_s=10)


def test_a_script_that_hangs_is_ended_with_everything_it_started(device: AdbLink, tmp_path: Path) -> None:
    with pytest.raises(CommandHung, match=r"did not end within 0\.5 s and was ended"):
        device.run("sleep 600 & echo $! >child; echo $$ >shell; sleep 600", limit_s=0.5)
    assert process_ends(int((tmp_path / "device" / "shell").read_text()))
    assert process_ends(int((tmp_path / "device" / "child").read_text()))
    assert device.run("echo again", limit_s=10).text == "again\n"


def test_what_the_check_raises_ends_the_script(device: AdbLink, tmp_path: Path) -> None:
    shell = tmp_path / "device" / "shell"

    def check() -> None:
        if shell.exists() and shell.read_text():
            raise Stopped("enough")

    with pytest.raises(Stopped, match="enough"):
        device.run("echo $$ >shell; sleep 600", limit_s=600, check=check)
    assert process_ends(int(shell.read_text()))
    assert device.run("echo again", limit_s=10).text == "again\n"


@pytest.mark.parametrize("size", SIZES)
def test_what_is_pushed_is_pulled(device: AdbLink, tmp_path: Path, size: int) -> None:
    path = tmp_path / "new folder" / "model"
    device.push(content_of(size), str(path))
    assert device.pull(str(path)) == path.read_bytes() == content_of(size)


def test_a_pushed_program_can_be_executed(device: AdbLink, tmp_path: Path) -> None:
    (tmp_path / "program").write_text("#!/bin/sh\necho ran\n")
    device.push(tmp_path / "program", str(tmp_path / "pushed"), executable=True)
    device.push(tmp_path / "program", str(tmp_path / "plain"))
    assert device.run(f"{tmp_path}/pushed", limit_s=10).text == "ran\n"
    assert not (tmp_path / "plain").stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize("size", SIZES)
def test_debians_own_adb_sees_what_was_pushed(adbd: Adbd, device: AdbLink, tmp_path: Path, size: int) -> None:
    path = tmp_path / "model"
    device.push(content_of(size), str(path))
    serial = f"127.0.0.1:{adbd.port}"
    with adb_client(tmp_path) as client:
        client("connect", serial)
        assert (
            client("-s", serial, "shell", f"sha256sum {path}").split()[0]
            == hashlib.sha256(content_of(size)).hexdigest()
        )
        client("-s", serial, "pull", str(path), str(tmp_path / "pulled"))
    assert (tmp_path / "pulled").read_bytes() == content_of(size)


def test_a_file_that_is_not_there_is_refused(device: AdbLink) -> None:
    with pytest.raises(PathRefused, match="does not give /no/such/file: open failed: No such file or directory"):
        device.pull("/no/such/file")
    assert device.run("echo again", limit_s=10).text == "again\n"


def test_a_place_where_nothing_can_be_written_is_refused(device: AdbLink) -> None:
    with pytest.raises(PathRefused, match="does not take /proc/no/such/file"):
        device.push(b"content", "/proc/no/such/file")
    assert device.run("echo again", limit_s=10).text == "again\n"


def test_a_file_without_end_is_refused(device: AdbLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb, "MAX_PULL_BYTES", 1_000_000)
    with pytest.raises(PathRefused, match=r"/dev/zero on .* has more than 1000000 bytes"):
        device.pull("/dev/zero")
    assert device.run("echo again", limit_s=10).text == "again\n"


@pytest.mark.parametrize("size", [1, 5_000_000])
def test_a_full_device_says_so(device: AdbLink, tmp_path: Path, size: int) -> None:
    full = tmp_path / "full"
    try:
        os.mknod(full, stat.S_IFCHR | 0o600, os.makedev(1, 7))  # as /dev/full: no write finds space
    except PermissionError:
        pytest.skip("only root makes a device file, and this test wants one on which every write finds no space")
    with pytest.raises(DeviceFull, match="No space left on device"):
        device.push(content_of(size), str(full))
    assert device.run("echo again", limit_s=10).text == "again\n"


def over_the_wire(link: AdbLink, kind: str, folder: Path) -> None:
    """Millions of bytes, by each of the three ways."""
    if kind == "run":
        link.run("head -c 900000 /dev/zero; sleep 600", limit_s=3)
    elif kind == "push":
        link.push(content_of(5_000_000), str(folder / "pushed"))
    else:
        (folder / "large").write_bytes(content_of(5_000_000))
        link.pull(str(folder / "large"))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["run", "push", "pull"])
@pytest.mark.parametrize("fault", [Fault.CUT, Fault.HALF_CLOSE, Fault.STALL, Fault.CORRUPT])
def test_a_wire_that_fails_is_lost_and_can_be_connected_again(
    wire: FaultyWire, linked: Linked, tmp_path: Path, fault: Fault, kind: str
) -> None:
    link = linked(wire.port)
    direction = Direction.TO_DEVICE if kind == "push" else Direction.FROM_DEVICE
    wire.inject(fault, after_bytes=500_000, direction=direction)
    with pytest.raises(LinkLost):
        over_the_wire(link, kind, tmp_path)
    assert wire.struck.is_set()
    with pytest.raises(LinkLost, match="Connect first"):
        link.run("true", limit_s=10)
    wire.heal()
    link.connect()
    link.push(b"content", str(tmp_path / "after"))
    assert link.pull(str(tmp_path / "after")) == b"content"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("direction", list(Direction))
def test_whatever_byte_is_changed_there_is_an_output_or_the_device_is_at_fault(
    wire: FaultyWire, tmp_path: Path, direction: Direction
) -> None:
    """Bytes of the greeting, of headers and of contents. What comes from the device has check sums, so is right."""
    outputs, faults = set(), 0
    for after_bytes in range(1, 240, 7):
        wire.inject(Fault.CORRUPT, after_bytes=after_bytes, direction=direction)
        link = AdbLink(parse_target(f"adb:127.0.0.1:{wire.port}"), keys=tmp_path / "adbkey")
        try:
            link.connect()
            outputs.add(link.run(f"echo {'x' * 20}; exit 4", limit_s=0.5))
        except DeviceFault:
            faults += 1
        finally:
            wire.heal()
            link.close()
    assert faults
    assert direction == Direction.TO_DEVICE or outputs == {Output(4, "x" * 20 + "\n")}


def test_a_device_that_cannot_hash_is_asked_for_the_size(debian_adbd: Path, linked: Linked, tmp_path: Path) -> None:  # noqa: ARG001
    """As before Android 6."""
    (tmp_path / "no programs").mkdir()
    with Adbd(tmp_path / "device", environment={"PATH": str(tmp_path / "no programs")}) as adbd:
        link = linked(adbd.port)
        assert link.run("sha256sum /dev/null", limit_s=10).status == adb.COMMAND_NOT_FOUND
        link.push(content_of(5_000_000), str(tmp_path / "pushed"))
        assert link._holds(content_of(5_000_000), str(tmp_path / "pushed"))
        assert not link._holds(content_of(4_999_999), str(tmp_path / "pushed"))


@pytest.mark.usefixtures("impatient")
def test_a_device_that_dies_in_the_middle_is_lost_and_found_after_its_start(adbd: Adbd, device: AdbLink) -> None:
    with pytest.raises(LinkLost):
        device.run("sleep 600", limit_s=60, check=adbd.kill)
    with pytest.raises(LinkLost, match="Connection refused"):
        device.connect()
    adbd.start()
    device.connect()
    assert device.run("echo again", limit_s=10).text == "again\n"


def test_a_script_ends_when_its_wire_is_cut(wire: FaultyWire, linked: Linked, tmp_path: Path) -> None:
    link, shell = linked(wire.port), tmp_path / "device" / "shell"

    def cut() -> None:
        if shell.exists() and shell.read_text():
            wire.inject(Fault.CUT)

    with pytest.raises(LinkLost):
        link.run("echo $$ >shell; sleep 600", limit_s=60, check=cut)
    assert process_ends(int(shell.read_text()))


def test_a_slow_wire_is_waited_for(wire: FaultyWire, linked: Linked, tmp_path: Path) -> None:
    link = linked(wire.port)
    wire.inject(Fault.SLOW, bytes_per_s=1_000_000)
    link.push(content_of(500_000), str(tmp_path / "pushed"))
    assert link.pull(str(tmp_path / "pushed")) == content_of(500_000)


@pytest.mark.usefixtures("impatient")
def test_a_wire_that_trickles_is_lost(
    wire: FaultyWire, linked: Linked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adb, "SLOWEST_BYTES_PER_S", 1_000_000)
    link = linked(wire.port)
    wire.inject(Fault.SLOW, bytes_per_s=1000)
    with pytest.raises(LinkLost, match="stopped answering"):
        link.push(content_of(1_000_000), str(tmp_path / "pushed"))


def test_a_port_that_refuses_is_lost_until_it_does_not(wire: FaultyWire, linked: Linked) -> None:
    link = linked(wire.port)
    wire.inject(Fault.REFUSE)
    assert link.run("echo still there", limit_s=10).text == "still there\n"
    with pytest.raises(LinkLost):
        link.connect()
    wire.heal()
    link.connect()
    assert link.run("echo again", limit_s=10).text == "again\n"


@pytest.mark.usefixtures("impatient")
def test_a_device_that_accepts_and_says_nothing_is_offline(wire: FaultyWire, linked: Linked) -> None:
    link = linked(wire.port)
    wire.inject(Fault.STALL)
    with pytest.raises(DeviceOffline, match=r"does not answer\. Wait until it has started"):
        link.connect()


def test_what_does_not_speak_adb_is_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                connection.recv(1 << 16)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(LinkLost, match=r"cannot be read .*Unknown command"):
            AdbLink(AdbTarget("127.0.0.1", server.getsockname()[1])).connect()
        thread.join()


@pytest.mark.usefixtures("impatient")
def test_a_device_that_does_not_know_the_key_is_unauthorized_until_somebody_accepts(
    adbd: Adbd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = tmp_path / "keys" / "adbkey"
    with KeyDemandingDevice(adbd.port) as phone:
        link = AdbLink(AdbTarget("127.0.0.1", phone.port), keys=key)
        with pytest.raises(Unauthorized, match=rf"does not know the key {key}. Look at its screen"):
            link.connect()
        phone.accept.set()
        link.connect()
        assert link.run("echo accepted", limit_s=10).text == "accepted\n"
        link.close()
    assert caplog.messages == [f"Made the ADB key {key}. Each phone asks on its screen whether to trust it: accept."]
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert [path.name for path in sorted(key.parent.iterdir())] == ["adbkey", "adbkey.pub"]


def test_a_device_that_knows_the_key_asks_nobody(adbd: Adbd, tmp_path: Path) -> None:
    key = tmp_path / "adbkey"
    adb._make_key(key)
    made = key.read_bytes()
    with KeyDemandingDevice(adbd.port, known=(key,)) as phone:
        link = AdbLink(AdbTarget("127.0.0.1", phone.port), keys=key)
        link.connect()
        assert link.run("echo known", limit_s=10).text == "known\n"
        link.close()
    assert key.read_bytes() == made


def test_a_key_that_cannot_be_read_is_a_sentence(adbd: Adbd, tmp_path: Path) -> None:
    key = tmp_path / "adbkey"
    key.write_text("not a key")
    with (
        KeyDemandingDevice(adbd.port) as phone,
        pytest.raises(Unauthorized, match=f"The ADB key {key} cannot be used .*Move it away"),
    ):
        AdbLink(AdbTarget("127.0.0.1", phone.port), keys=key).connect()


class PhoneAtUsb:
    """adb_shell's transport for USB as it is used, its bytes over TCP: a read ends when all is there, or time is up."""

    def __init__(self, serial: str, port: int) -> None:
        self.serial_number = serial
        self._port = port
        self._socket: socket.socket | None = None

    def connect(self, transport_timeout_s: float) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port), transport_timeout_s)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def bulk_read(self, numbytes: int, transport_timeout_s: float) -> bytes:
        assert self._socket is not None
        self._socket.settimeout(transport_timeout_s)
        received = b""
        try:
            while len(received) < numbytes:
                piece = self._socket.recv(numbytes - len(received))
                if not piece:
                    raise UsbReadFailedError("no device", SimpleNamespace(value=-4))
                received += piece
        except TimeoutError as error:
            timeout = SimpleNamespace(value=adb.LIBUSB_TIMEOUT, received=bytearray(received))
            raise UsbReadFailedError("timeout", timeout) from error
        return received

    def bulk_write(self, data: bytes, transport_timeout_s: float) -> int:
        assert self._socket is not None
        self._socket.settimeout(transport_timeout_s)
        return self._socket.send(data)


@pytest.fixture
def at_usb(adbd: Adbd, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Serials of the phones that are plugged in."""
    serials = ["89AX0"]
    phones = SimpleNamespace(find_all_adb_devices=lambda: (PhoneAtUsb(serial, adbd.port) for serial in serials))
    monkeypatch.setattr(adb, "UsbTransport", phones)
    return serials


@pytest.mark.usefixtures("at_usb", "impatient")
@pytest.mark.parametrize("text", ["usb", "usb:89AX0"])
def test_a_phone_at_usb_does_what_one_at_tcp_does(adbd: Adbd, tmp_path: Path, text: str) -> None:
    link = AdbLink(parse_target(text))
    link.connect()
    assert link.run("sleep 0.2; echo said; exit 3", limit_s=10) == Output(3, "said\n")
    link.push(content_of(5_000_000), str(tmp_path / "pushed"))
    assert link.pull(str(tmp_path / "pushed")) == content_of(5_000_000)
    with pytest.raises(LinkLost):
        link.run("sleep 600", limit_s=60, check=adbd.kill)


def test_of_several_phones_one_has_to_be_chosen(at_usb: list[str]) -> None:
    at_usb.append("9B2Y1")
    assert usb_targets() == ([parse_target("usb:89AX0"), parse_target("usb:9B2Y1")], [])
    with pytest.raises(LinkLost, match=r"Several phones are plugged in\. Choose: usb:89AX0, usb:9B2Y1\."):
        AdbLink(parse_target("usb")).connect()


def test_a_phone_that_is_not_plugged_in_is_lost(at_usb: list[str]) -> None:
    at_usb.clear()
    assert usb_targets() == ([], [])
    with pytest.raises(LinkLost, match="usb:89AX0 is not plugged in"):
        AdbLink(parse_target("usb:89AX0")).connect()


def test_without_the_systems_library_usb_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb, "UsbTransport", None)
    assert usb_targets() == ([], [])
    with pytest.raises(LinkLost, match=r"apt install libusb-1\.0-0"):
        AdbLink(parse_target("usb")).connect()

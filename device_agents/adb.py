"""A connection to one device's `adbd`, by TCP or USB: run a script, push a file, pull a file. The one module with
`adb_shell`; whatever goes wrong there, or on the wire, leaves here as a fault of the device.

The wires are our own: `adb_shell` waits for an answer before it sends the second half of a message, ignores that only a
part was sent, and cannot be told to look at anything else while it waits (decision 13).
"""

import contextlib
import hashlib
import io
import logging
import os
import re
import secrets
import shlex
import socket
import stat
import struct
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from adb_shell import constants, exceptions
from adb_shell.adb_device import AdbDevice
from adb_shell.adb_message import AdbMessage
from adb_shell.auth.keygen import keygen, write_public_keyfile
from adb_shell.auth.sign_cryptography import CryptographySigner
from adb_shell.transport.base_transport import BaseTransport

from device_agents.errors import (
    AgentError,
    CommandHung,
    DeviceFault,
    DeviceFull,
    DeviceOffline,
    LinkLost,
    PathRefused,
    Unauthorized,
)

try:
    from adb_shell.transport.usb_transport import UsbTransport
except (ImportError, OSError):  # the system has no libusb
    UsbTransport = None

log = logging.getLogger(__name__)

DEFAULT_KEY = Path("~/.android/adbkey")  # where Google's `adb` keeps its own, so that a phone accepts both at once
MAX_OUTPUT_BYTES = 1 << 20  # of one script
MAX_SCRIPT_BYTES = 100_000  # below what a kernel takes as one argument, 128 KiB
MAX_PULL_BYTES = 64 << 20
MAX_GREETING_BYTES = 1 << 12
CONNECT_S = 5.0  # to open a connection, and again for the device's greeting
AUTHORISE_S = 5.0  # that somebody at the phone has to accept the key; later is early enough for the next try
STALL_S = 10.0  # without a byte, while a file is under way
SLOWEST_BYTES_PER_S = 50_000  # a file that travels more slowly than this is not waited for
KEEPALIVE_S = 5  # between two questions of the kernel's, of which the third without an answer ends a connection
LOOK_S = 0.5  # between two looks at the deadline and at what the caller checks
NO_LIMIT_S = 1e9  # for adb_shell, whose limits are not needed
COMMAND_NOT_FOUND = 127  # a shell's exit status
FRAME = struct.Struct("<BI")  # what starts one: what it is, and how long its content is
STDIN, OUTPUTS = 0, (1, 2)  # what a frame is
MAX_LAST_LINE_BYTES = 32  # with which a shell tells the exit status
LIBUSB_TIMEOUT = -7  # LIBUSB_ERROR_TIMEOUT


class AdbTarget(NamedTuple):
    """Where a device is. Without a host: at USB, and without a serial the only one there."""

    host: str = ""
    port: int = 0
    serial: str = ""

    def __str__(self) -> str:
        """As users write it."""
        if self.host:
            return f"adb:[{self.host}]:{self.port}" if ":" in self.host else f"adb:{self.host}:{self.port}"
        return f"usb:{self.serial}" if self.serial else "usb"


def parse_target(text: str) -> AdbTarget:
    """From `adb:HOST:PORT`, `usb` or `usb:SERIAL`.

    Raises:
        ValueError: it is none of these.
    """
    if text == "usb":
        return AdbTarget()
    if usb := re.fullmatch(r"usb:([\w.:-]{1,100})", text):
        return AdbTarget(serial=usb[1])
    tcp = re.fullmatch(r"adb:(\[[0-9a-fA-F:.]+\]|[\w.-]+):(\d{1,5})", text)
    if tcp and 0 < int(tcp[2]) < 1 << 16:
        return AdbTarget(host=tcp[1].strip("[]"), port=int(tcp[2]))
    raise ValueError(f"'{text}' names no device. Say adb:HOST:PORT, as adb:192.168.1.7:5555, or usb, or usb:SERIAL.")


class Output(NamedTuple):
    """What a script left: its exit status, and what it printed to both outputs."""

    status: int
    text: str


def _nothing() -> None: ...


class AdbLink:
    """A connection to one device. Not for several threads."""

    def __init__(self, target: AdbTarget, *, keys: Path = DEFAULT_KEY) -> None:
        self.target = target
        self._key = _Key(keys)
        self._wire: _Wire | None = None
        self._device: _Device | None = None

    def connect(self) -> None:
        """Anew, if there is a connection; the device ends what still ran over the old one, once it notices.

        Raises:
            LinkLost: nothing is there.
            DeviceOffline: something is there, and does not answer.
            Unauthorized: the device does not know the key, and nobody accepts it now.
        """
        self.close()
        wire = _TcpWire(self.target) if self.target.host else _UsbWire(self.target)
        device = _Device(wire, banner="padnas-agent")
        asked = False

        def asks_for_consent(_: AdbDevice) -> None:
            nonlocal asked
            asked = True
            wire.allow(AUTHORISE_S)

        self._wire = wire
        try:
            with _translated(self.target):
                wire.allow(CONNECT_S)
                device.connect([self._key], None, AUTHORISE_S, NO_LIMIT_S, asks_for_consent)
                device.greeted(wire.greeting)
        except _Late as late:
            self.close()
            if asked:
                raise Unauthorized(
                    f"{self.target} does not know the key {self._key.path}. Look at its screen, tick 'Always allow' "
                    "and accept; where it asks nothing, unplug it, or turn USB debugging off and on again."
                ) from late
            raise DeviceOffline(f"{self.target} does not answer. Wait until it has started, or restart it.") from late
        except BaseException:
            self.close()
            raise
        self._device = device

    def close(self) -> None:
        if self._wire is not None:
            _quietly(self._wire.close)
        self._wire = self._device = None

    def run(self, script: str, *, limit_s: float, check: Callable[[], None] = _nothing) -> Output:
        """What the device's shell makes of one command or of several lines.

        Nothing that came over a wire may be part of a script: it is fixed words, numbers and hashes. It reads nothing,
        and prints to a terminal. `check` is called about twice a second; what it raises ends the script. A script that
        is ended gets SIGHUP, with everything it started, and the connection is made anew. The same happens on the
        device when the connection is lost, or this process ends.

        Raises:
            CommandHung: it did not end within `limit_s`, or printed more than MAX_OUTPUT_BYTES.
            LinkLost: nobody knows how it ended.
            DeviceFault: its shell was killed.
        """
        # Older devices tell no exit status of their own. The shell stays until its last line has arrived: when it ends,
        # Linux throws away what nobody has read from its terminal yet.
        last_line = f"RC{secrets.token_hex(4)}="
        command = f"(\n{script}\n) </dev/null; echo {last_line}$?; read answer"
        assert len(command.encode()) <= MAX_SCRIPT_BYTES, "push it as a file"
        device, wire = self._connection()
        printed, status = bytearray(), None
        try:
            with _translated(self.target):
                wire.allow(limit_s, check=check)
                for piece in device.shell_output(command):
                    if status is not None:
                        continue  # the echo of the answer
                    printed += piece
                    if len(printed) > MAX_OUTPUT_BYTES:
                        raise CommandHung(
                            f"A command on {self.target} was ended, as it printed more than {MAX_OUTPUT_BYTES} bytes."
                        )
                    status = re.search(rf"{last_line}(\d{{1,3}})\r?\n\Z".encode(), printed[-MAX_LAST_LINE_BYTES:])
                    if status is not None:
                        device.answer_shell()
        except LinkLost:
            self.close()
            raise
        except _Late as late:
            try:
                self.connect()  # which tells a silent command from a silent device
            except DeviceFault as fault:
                raise LinkLost(f"{self.target} stopped answering. {fault}") from late
            raise CommandHung(f"A command on {self.target} did not end within {limit_s:g} s and was ended.") from late
        except BaseException:
            with contextlib.suppress(DeviceFault):
                self.connect()
            raise
        if status is None:
            last_words = _text(printed[-200:])
            raise DeviceFault(f"The shell of {self.target} ended without an exit status, after: {last_words!r}")
        text = _text(printed[: -len(status[0])]).replace("\r\n", "\n")  # a terminal's line ends
        return Output(int(status[1]), text)

    def push(self, content: bytes | Path, path: str, *, executable: bool = False) -> None:
        """Write a file on the device, with the folders that it is in. It arrives as it is, or there is an exception;
        after LinkLost, a part of it may be there. The path is of our own making, as scripts are.

        Raises:
            DeviceFull: the device has no space for it.
            PathRefused: the device does not take it.
            LinkLost: the connection did not live to its end.
        """
        data = content if isinstance(content, bytes) else content.read_bytes()
        mode = stat.S_IFREG | (0o755 if executable else 0o644)
        with self._transfer(len(data)) as device:
            try:
                device.push(io.BytesIO(data), path, mode, read_timeout_s=NO_LIMIT_S)
            except exceptions.PushFailedError as error:
                reason = _text(error.args[0]).removeprefix("write failed: ")
                fault = DeviceFull if "No space left" in reason or "quota" in reason else PathRefused
                raise fault(f"{self.target} does not take {path}: {reason}.") from error
        if not self._holds(data, path):
            self.close()
            raise LinkLost(f"{path} arrived damaged on {self.target}. Connect and push it again.")

    def pull(self, path: str) -> bytes:
        """The content of a file on the device.

        Raises:
            PathRefused: there is no such file, or it is larger than MAX_PULL_BYTES.
            LinkLost: the connection did not live to its end.
        """
        content = _BoundedFile()
        with self._transfer(MAX_PULL_BYTES) as device:
            try:
                device.pull(path, content, read_timeout_s=NO_LIMIT_S)
            except exceptions.AdbCommandFailureException as error:
                reason = str(error).removeprefix("Command failed: ")
                raise PathRefused(f"{self.target} does not give {path}: {reason}.") from error
            except _TooLong as error:
                raise PathRefused(f"{path} on {self.target} has more than {MAX_PULL_BYTES} bytes.") from error
        return content.getvalue()

    def _holds(self, data: bytes, path: str) -> bool:
        """Newer devices ignore the check sums of what they are sent. Those before Android 6 cannot hash a file."""
        limit_s = STALL_S + len(data) / SLOWEST_BYTES_PER_S
        asked = self.run(f"sha256sum {shlex.quote(path)}", limit_s=limit_s)
        if asked.status != COMMAND_NOT_FOUND:
            return asked.text.startswith(hashlib.sha256(data).hexdigest())
        with self._transfer(0) as device:
            _, size, _ = device.stat(path, read_timeout_s=NO_LIMIT_S)
        return bool(size == len(data))

    @contextlib.contextmanager
    def _transfer(self, size: int) -> Iterator["_Device"]:
        device, wire = self._connection()
        try:
            with _translated(self.target):
                wire.allow(STALL_S + size / SLOWEST_BYTES_PER_S, stall_s=STALL_S)
                yield device
        except _Late as late:
            self.close()
            raise LinkLost(f"{self.target} stopped answering while a file was under way.") from late
        except LinkLost:
            self.close()
            raise
        except DeviceFault:
            self.connect()  # adb_shell leaves the stream of a refused file open
            raise

    def _connection(self) -> tuple["_Device", "_Wire"]:
        if self._device is None or self._wire is None:
            raise LinkLost(f"There is no connection to {self.target}. Connect first.")
        return self._device, self._wire


class _Late(Exception):
    """A wire's deadline has passed."""


class _TooLong(Exception):
    pass


class _BoundedFile(io.BytesIO):
    def write(self, piece: Any) -> int:
        if self.tell() + len(piece) > MAX_PULL_BYTES:
            raise _TooLong
        return super().write(piece)


class _Device(AdbDevice):  # type: ignore[misc]
    """adb_shell's protocol, with what is missing in it."""

    _has_frames = False
    _shell: Any = None  # adb_shell's, of the last one opened

    def greeted(self, greeting: bytes) -> None:
        """Once connected, with what the device said until then.

        It has named the size of its messages: damaged, it would have adb_shell reserve gigabytes.
        """
        self._has_frames = b"shell_v2" in greeting
        if not constants.MAX_LEGACY_ADB_DATA <= self._maxdata <= constants.MAX_ADB_DATA:
            raise ValueError(f"a message size of {self._maxdata}")

    def shell_output(self, command: str) -> Iterator[bytes]:
        """A terminal's, piece by piece; from frames where the device has them (since Android 7).

        adb_shell knows the older form alone. In that one, newer devices let a script run on when its stream is closed.
        """
        service = b"shell,v2,pty" if self._has_frames else b"shell"
        self._shell = self._open(b"%s:%s" % (service, command.encode()), NO_LIMIT_S, NO_LIMIT_S, None)
        pieces = self._read_until_close(self._shell)
        yield from _contents_of_frames(pieces) if self._has_frames else pieces

    def answer_shell(self) -> None:
        """Types a line."""
        line = FRAME.pack(STDIN, 1) + b"\n" if self._has_frames else b"\n"
        self._io_manager.send(
            AdbMessage(constants.WRTE, self._shell.local_id, self._shell.remote_id, line), self._shell
        )

    def _filesync_flush(self, adb_info: Any, filesync_info: Any) -> None:
        """Also keeps what the device says while a file is sent to it: adb_shell drops that, and with it the reason of
        a device that is full, and then waits for it in vain."""
        data = filesync_info.send_buffer[: filesync_info.send_idx]
        self._io_manager.send(AdbMessage(constants.WRTE, adb_info.local_id, adb_info.remote_id, data), adb_info)
        command = None
        while command != constants.OKAY:
            command, said = self._read_until([constants.OKAY, constants.WRTE], adb_info)
            filesync_info.recv_buffer += said
        filesync_info.send_idx = 0


def _contents_of_frames(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """What was printed, of output that is framed."""
    framed = bytearray()
    for piece in pieces:
        framed += piece
        while len(framed) >= FRAME.size:
            kind, length = FRAME.unpack_from(framed)
            if length > MAX_OUTPUT_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            if len(framed) < FRAME.size + length:
                break
            if kind in OUTPUTS:
                yield bytes(framed[FRAME.size : FRAME.size + length])
            del framed[: FRAME.size + length]


class _Wire(BaseTransport):  # type: ignore[misc]
    """Bytes to and from a device, as adb_shell asks for them, until the caller's deadline."""

    def __init__(self, target: AdbTarget) -> None:
        self.greeting = b""  # what was received first
        self._target = target
        self.allow(0.0)

    def allow(self, limit_s: float, *, stall_s: float | None = None, check: Callable[[], None] = _nothing) -> None:
        """What follows may take `limit_s`, and be silent for `stall_s`."""
        self._moved = self._looked = time.monotonic()
        self._deadline = self._moved + limit_s
        self._stall_s = limit_s if stall_s is None else stall_s
        self._check = check

    def bulk_read(self, numbytes: int, transport_timeout_s: float | None) -> bytes:  # noqa: ARG002
        """At least one byte. Raises _Late, and what the check raises."""
        if numbytes > constants.MAX_ADB_DATA:
            raise ValueError(f"a message of {numbytes} bytes")
        while True:
            self._look()
            if received := self._receive(numbytes):
                self._moved = time.monotonic()
                if len(self.greeting) < MAX_GREETING_BYTES:
                    self.greeting += received
                return received

    def bulk_write(self, data: bytes, transport_timeout_s: float | None) -> int:  # noqa: ARG002
        """All of it. Raises _Late, and what the check raises."""
        rest = memoryview(data)
        while rest:
            self._look()
            if sent := self._send(rest):
                self._moved = time.monotonic()
                rest = rest[sent:]
        return len(data)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            self._check()
        if now >= self._deadline or now - self._moved >= self._stall_s:
            raise _Late

    @abstractmethod
    def _receive(self, numbytes: int) -> bytes:
        """Something, or nothing within LOOK_S."""

    @abstractmethod
    def _send(self, data: memoryview) -> int:
        """How many bytes were sent; 0 within LOOK_S."""


class _TcpWire(_Wire):
    _socket: socket.socket | None = None

    def connect(self, transport_timeout_s: float | None) -> None:  # noqa: ARG002
        address = (self._target.host, self._target.port)
        try:
            self._socket = socket.create_connection(address, timeout=CONNECT_S)
        except OSError as error:
            raise LinkLost(
                f"{self._target} cannot be reached: {error.strerror or error}. Is it on, in this network, and does "
                "it listen there (adb tcpip 5555)?"
            ) from error
        # Without this, the second half of each message waits 40 ms for the first to be acknowledged.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A network that is gone says nothing: the kernel asks after it, also while a script is silent.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        self._socket.settimeout(LOOK_S)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _receive(self, numbytes: int) -> bytes:
        assert self._socket is not None
        try:
            received = self._socket.recv(numbytes)
        except TimeoutError:
            return b""
        if not received:
            raise LinkLost(f"{self._target} closed the connection.")
        return received

    def _send(self, data: memoryview) -> int:
        assert self._socket is not None
        try:
            return self._socket.send(data)
        except TimeoutError:
            return 0


class _UsbWire(_Wire):
    _usb: Any = None

    def connect(self, transport_timeout_s: float | None) -> None:  # noqa: ARG002
        if missing := why_no_usb():
            raise LinkLost(missing)
        opened, faults = _usb_phones()
        phones = {serial: phone for serial, phone in opened if self._target.serial in ("", serial)}
        if not phones and faults:
            raise faults[0]  # it may be this one
        if not phones:
            raise LinkLost(f"{self._target} is not plugged in, or USB debugging is not enabled on it.")
        if len(phones) > 1:
            raise LinkLost(f"Several phones are plugged in. Choose: {', '.join(f'usb:{s}' for s in sorted(phones))}.")
        self._usb = next(iter(phones.values()))
        with _usb_opened():
            self._usb.connect(CONNECT_S)

    def close(self) -> None:
        if self._usb is not None:
            self._usb.close()
        self._usb = None

    def _receive(self, numbytes: int) -> bytes:
        try:
            return bytes(self._usb.bulk_read(numbytes, LOOK_S))
        except exceptions.UsbReadFailedError as error:
            if getattr(error.usb_error, "value", None) == LIBUSB_TIMEOUT:
                return bytes(error.usb_error.received)  # what came until then, which may be the start of a message
            raise

    def _send(self, data: memoryview) -> int:
        return int(self._usb.bulk_write(bytes(data), STALL_S))


def why_no_usb() -> str | None:
    """Why phones at USB cannot be seen from here."""
    if UsbTransport is not None:
        return None
    return (
        "Phones at USB need the system library libusb-1.0, which is missing here. Install it (on Debian: apt install "
        "libusb-1.0-0), or connect them by TCP."
    )


def usb_targets() -> tuple[list[AdbTarget], list[LinkLost]]:
    """Phones that are plugged in with USB debugging enabled, and why others do not even tell their serial.

    Raises:
        LinkLost: they cannot be listed.
    """
    if why_no_usb():
        return [], []
    opened, faults = _usb_phones()
    return [AdbTarget(serial=serial) for serial, _ in opened], faults


def _usb_phones() -> tuple[list[tuple[str, Any]], list[LinkLost]]:
    """Serials, and adb_shell's transports; and why others cannot be opened to ask for their serial."""
    opened: list[tuple[str, Any]] = []
    faults: list[LinkLost] = []
    with _usb_opened():
        found = list(UsbTransport.find_all_adb_devices())
    for phone in found:
        try:
            with _usb_opened():
                opened.append((phone.serial_number, phone))
        except LinkLost as fault:
            faults.append(fault)
    return opened, faults


@contextlib.contextmanager
def _usb_opened() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise LinkLost(
            f"A phone at USB cannot be opened: {error}. Another program may hold it (adb kill-server), or you may not "
            "use it (on Debian: apt install android-sdk-platform-tools-common; then plug it in again)."
        ) from error


@contextlib.contextmanager
def _translated(target: AdbTarget) -> Iterator[None]:
    """Every foreign exception becomes LinkLost: damaged bytes may end in any of them."""
    try:
        yield
    except (AgentError, _Late):
        raise
    except (OSError, exceptions.UsbReadFailedError, exceptions.UsbWriteFailedError) as error:
        raise LinkLost(f"The connection to {target} broke: {getattr(error, 'strerror', None) or error}.") from error
    except Exception as error:
        raise LinkLost(f"{target} sent what cannot be read ({type(error).__name__}: {error}).") from error


def _quietly(close: Callable[[], None]) -> None:
    """A connection that cannot even be closed is closed."""
    with contextlib.suppress(Exception):
        close()


def _text(content: bytes | bytearray) -> str:
    return content.decode(errors="replace")


class _Key:
    """By which phones know this computer. It is read, and made where it is absent, once a device asks for it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def Sign(self, data: bytes) -> bytes:  # noqa: N802  adb_shell's name
        return bytes(self._signer.Sign(data))

    def GetPublicKey(self) -> bytes:  # noqa: N802
        return bytes(self._signer.GetPublicKey())

    @cached_property
    def _signer(self) -> CryptographySigner:
        """Raises Unauthorized where there can be no key."""
        key = self.path.expanduser()
        try:
            _make_key(key)
            return CryptographySigner(str(key))
        except (OSError, ValueError, TypeError) as error:
            raise Unauthorized(
                f"The ADB key {key} cannot be used ({error}). Move it away; a new one is made."
            ) from error


def _make_key(key: Path) -> None:
    """Where it is absent. Several agents may come here at once: the first one's key stays."""
    public = key.with_name(f"{key.name}.pub")
    if key.exists() and public.exists():
        return
    key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=key.parent) as folder:  # which nobody else can look into
        new = Path(folder) / "key"
        if not key.exists():
            keygen(str(new))
            new.chmod(0o600)
            with contextlib.suppress(FileExistsError):
                os.link(new, key)
                log.warning("Made the ADB key %s. Each phone asks on its screen whether to trust it: accept.", key)
        write_public_keyfile(str(key), str(new) + ".pub")
        os.replace(str(new) + ".pub", public)

"""Debian's real `adbd`, and its `adb`, from Debian 13 on: the far end of ADB for tests and benchmarks.

On Debian 12 and 13 the packages come from the machine's own sources (debian_packages.py). This `adbd` is a shell for
whoever reaches its port, as the user who starts it: it asks for no key (whether to ask is compiled in), so it is made
to listen on 127.0.0.1 only.

What a script finds there: PATH and any other variable are those that `adbd` was given, but HOME, SHELL, USER, LOGNAME,
HOSTNAME and TERM are set anew and TMPDIR is /data/local/tmp; it starts in the folder in which `adbd` was started.
"""

import contextlib
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from benchmarks.debian_packages import CannotInstall, unpacked
from benchmarks.processes import free_port

SUITE = "trixie"  # Debian 13, the first that has adbd 34
PACKAGES = (
    "adbd", "adb", "android-libbase", "android-liblog", "android-libcutils", "android-libziparchive",
    "android-libboringssl", "libprotobuf32t64", "libc6", "libstdc++6", "libgcc-s1", "libbrotli1", "liblz4-1",
    "libzstd1", "libsystemd0", "libcap2", "libgcrypt20", "libgpg-error0", "liblzma5", "libfmt10", "zlib1g",
    "libabsl20240722", "libusb-1.0-0", "libudev1",
)  # fmt: skip
START_S = 20.0
# In front of a command: it is killed when the thread ends that has started it, however that comes.
DIES_WITH_US = ("/usr/bin/setpriv", "--pdeathsig", "KILL")
LOOPBACK = bytes(10) + b"\xff\xff" + socket.inet_aton("127.0.0.1")  # as an IPv6 address


def installed() -> Path:
    """The folder into which everything is unpacked; done the first time.

    Raises:
        CannotInstall: this machine is not a Debian with packages in reach.
    """
    return unpacked("adbd", PACKAGES, suite=SUITE, finish=_listen_on_loopback)


def _listen_on_loopback(root: Path) -> None:
    libc = next(root.glob("usr/lib/*-linux-gnu/libc.so.6"))
    libc.write_bytes(listening_on_loopback(libc.read_bytes()))


def listening_on_loopback(libc: bytes) -> bytes:
    """A C library in which "any address" is 127.0.0.1.

    adbd listens on any address and cannot be told otherwise. It reads that address from the variable `in6addr_any` of
    the C library, and has this copy for itself. Written after elf(5), for 64-bit little-endian.
    """
    patched = bytearray(libc)
    sections_at = struct.unpack_from("<Q", libc, 0x28)[0]
    size, number = struct.unpack_from("<HH", libc, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", libc, sections_at + n * size) for n in range(number)]
    for _, kind, _, _, start, length, names, _, _, entry in sections:
        if kind != 11:  # SHT_DYNSYM
            continue
        for at in range(start, start + length, entry):
            name, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", libc, at)
            if libc.startswith(b"in6addr_any\0", sections[names][4] + name):
                offset = value - sections[section][3] + sections[section][4]
                assert libc[offset : offset + 16] == bytes(16), "this is not the address that was meant"
                patched[offset : offset + 16] = LOOPBACK
                return bytes(patched)
    raise CannotInstall("This C library has no in6addr_any, so adbd could be reached from the network.")


class Adbd:
    """A running `adbd` on 127.0.0.1. What it prints goes to `adbd.log` in its folder, where its shells start."""

    def __init__(self, folder: Path, *, programs: Path | None = None, environment: Mapping[str, str] = {}) -> None:
        """`programs`: a folder whose commands its shells find before the system's."""
        self.port = 0
        self._folder = folder
        self._log = folder / "adbd.log"
        path = os.environ.get("PATH", os.defpath)
        self._environment = {"PATH": path if programs is None else f"{programs}:{path}"} | dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """On the port that it had, or on a free one."""
        again = self.port != 0
        for _ in range(1 if again else 5):  # a free port may be taken by others before adbd takes it
            self.port = self.port if again else free_port()
            # Where whoever started us ignores hang-ups, as under nohup, the device's shells would ignore them too.
            command = [*DIES_WITH_US, "/usr/bin/env", "--default-signal=HUP", *_command(installed(), "adbd")]
            with self._log.open("ab") as output:
                self._process = subprocess.Popen(
                    command,
                    cwd=self._folder,
                    env=self._environment | {"ADBD_PORT": str(self.port)},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            if _answers(self._process, self.port):
                return
            self.kill()
        raise AssertionError(f"adbd does not start:\n{self._log.read_text()}")

    def kill(self) -> None:
        """kill -9. As in a phone that loses power, its shells end with it; `start` boots it again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None


def _command(root: Path, program: str) -> list[str]:
    """Started with the libraries of its own release."""
    libraries = next(root.glob("usr/lib/*-linux-gnu"))
    loader = next(libraries.glob("ld-linux-*.so.*"))
    binary = root / "usr/lib/android-sdk/platform-tools" / program
    return [str(loader), "--library-path", f"{libraries}:{libraries / 'android'}", str(binary)]


def _answers(process: "subprocess.Popen[bytes]", port: int) -> bool:
    """Whether a process comes to listen on a port, before it ends or time is up."""
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
        time.sleep(0.02)
    return False


@contextmanager
def adb_client(folder: Path) -> Iterator["AdbClient"]:
    """Debian's `adb`, with a server of its own that keeps its key in `folder`."""
    port = free_port()
    environment = os.environ | {"HOME": str(folder), "ANDROID_ADB_SERVER_PORT": str(port), "ADB_MDNS": "0"}
    command = _command(installed(), "adb")
    with (folder / "adb.log").open("ab") as output:
        server = subprocess.Popen(
            [*DIES_WITH_US, *command, "nodaemon", "server"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        assert _answers(server, port), (folder / "adb.log").read_text()
        yield AdbClient(command, environment)
    finally:
        server.kill()
        server.wait()


class AdbClient:
    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = command
        self._environment = environment

    def __call__(self, *arguments: str) -> str:
        """What one command prints. Raises CalledProcessError where it fails."""
        done = subprocess.run(
            [*self._command, *arguments], env=self._environment, capture_output=True, timeout=60, check=True
        )
        return done.stdout.decode()

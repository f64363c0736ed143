"""A stand-in for a phone that demands a key, as Debian's `adbd` was built not to: it asks for the key on the real wire,
checks the signature, and hands whom it knows on to an `adbd`."""

import contextlib
import os
import select
import socket
import threading
from pathlib import Path
from typing import Self

from adb_shell.adb_message import AdbMessage, unpack
from adb_shell.constants import AUTH, AUTH_RSAPUBLICKEY, AUTH_SIGNATURE, AUTH_TOKEN, MESSAGE_SIZE
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import load_pem_private_key

TOKEN_BYTES = 20
LOOK_S = 0.02


class HungUp(Exception):
    pass


class KeyDemandingDevice:
    """Knows the keys of `known`; `accept` is the press on its screen, for whoever asks after it, and `withdraw` the one
    on "Revoke USB debugging authorisations"."""

    def __init__(self, adbd_port: int, *, known: tuple[Path, ...] = ()) -> None:
        self.accept = threading.Event()
        self._adbd_port = adbd_port
        self._known = known
        self._withdrawals = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()

    def withdraw(self) -> None:
        """It knows no key any more, and hangs up on everybody."""
        self._known = ()
        self.accept.clear()
        self._withdrawals += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _listen(self) -> None:
        while not self._over.is_set():
            if select.select([self._listener], [], [], LOOK_S)[0]:
                host, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(host,)))
                self._threads[-1].start()

    def _serve(self, host: socket.socket) -> None:
        with host, contextlib.suppress(HungUp, ConnectionError):  # the same, with bytes under way
            _, _, greeting = _read(host)
            withdrawals = self._withdrawals
            if not self._lets_in(host):
                return
            with socket.create_connection(("127.0.0.1", self._adbd_port)) as adbd:
                adbd.sendall(greeting)
                other = {host: adbd, adbd: host}
                while not self._over.is_set() and self._withdrawals == withdrawals:
                    for end in select.select(list(other), [], [], LOOK_S)[0]:
                        data = end.recv(1 << 16)
                        if not data:
                            return
                        other[end].sendall(data)

    def _lets_in(self, host: socket.socket) -> bool:
        token = os.urandom(TOKEN_BYTES)
        for expected in (AUTH_SIGNATURE, AUTH_RSAPUBLICKEY):
            ask = AdbMessage(AUTH, AUTH_TOKEN, 0, token)
            host.sendall(ask.pack() + token)
            kind, content, _ = _read(host)
            assert kind == expected
            if kind == AUTH_SIGNATURE and any(_signed(content, token, key) for key in self._known):
                return True
        while not self._over.is_set() and not self.accept.is_set():  # it asks on its screen
            if select.select([host], [], [], LOOK_S)[0]:
                return False  # the host has given up
        return self.accept.is_set()


def _read(host: socket.socket) -> tuple[int, bytes, bytes]:
    """First argument and content of a message, and all of it."""
    header = host.recv(MESSAGE_SIZE, socket.MSG_WAITALL)
    if not header:
        raise HungUp
    _, kind, _, length, _ = unpack(header)
    content = host.recv(length, socket.MSG_WAITALL)
    return kind, content, header + content


def _signed(signature: bytes, token: bytes, key: Path) -> bool:
    private = load_pem_private_key(key.read_bytes(), None)
    assert isinstance(private, RSAPrivateKey)
    try:
        private.public_key().verify(signature, token, PKCS1v15(), Prehashed(SHA1()))
    except InvalidSignature:
        return False
    return True

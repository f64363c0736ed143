"""Which phones and boards can be reached over ADB from here, and in what state are they?"""

import logging
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from device_agents.adb import DEFAULT_KEY, AdbLink, AdbTarget, parse_target, usb_targets
from device_agents.errors import DeviceFault, LinkLost, Unauthorized

log = logging.getLogger(__name__)

ASK_S = 5.0  # for a device to say what it is
WHO = """
getprop ro.product.model 2>/dev/null || uname -m
getprop ro.serialno 2>/dev/null || cat /etc/machine-id 2>/dev/null
"""
AT_ONCE = 32  # connections that are tried at the same time


class State(StrEnum):
    READY = "ready"  # it does what it is told
    UNAUTHORIZED = "unauthorized"  # somebody has to accept the key on its screen
    OFFLINE = "offline"  # it is there, and does not do what it is told
    UNREACHABLE = "unreachable"  # nothing is there


class Reachable(NamedTuple):
    target: AdbTarget
    state: State
    model: str  # empty where it cannot be known
    advice: str  # what to do, where it is not ready
    serial: str = ""  # by which the same device is known at USB and at its address; empty where it cannot be known


def parse_addresses(texts: Sequence[str]) -> list[AdbTarget]:
    """From `HOST:PORT`; several in one text are separated by commas.

    Raises:
        ValueError: one of them is no such address.
    """
    addresses = [address.strip() for text in texts for address in text.split(",")]
    return [parse_target(f"adb:{address}") for address in dict.fromkeys(addresses) if address]


def reachable(
    tcp: Sequence[str], *, keys: Path = DEFAULT_KEY, without: Collection[str] = frozenset()
) -> list[Reachable]:
    """The devices at these addresses, and every phone at USB. Where USB cannot be looked at, `why_no_usb` says why.

    Those that are named in `without` are not spoken to, as somebody may be measuring there.

    Raises:
        ValueError: one of the addresses is none.
    """
    targets = parse_addresses(tcp)
    try:
        at_usb, faults = usb_targets()
    except LinkLost as fault:
        at_usb, faults = [], [fault]
    targets += at_usb
    not_opened = [Reachable(AdbTarget(), State.UNREACHABLE, "", str(fault)) for fault in faults]
    others = [target for target in targets if str(target) not in without]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return [*threads.map(lambda target: _look_at(target, keys), others), *not_opened]


class ReadyDevices:
    """Names those devices that are ready and have no worker yet, each once, also where it is reached in two ways; says
    of the others once why they are not ready.
    """

    def __init__(self, tcp: Sequence[str], *, keys: Path) -> None:
        """Raises ValueError where one of the addresses is none."""
        parse_addresses(tcp)
        self._tcp = tcp
        self._keys = keys
        self._said: dict[AdbTarget, str] = {}  # what about: its state, or where else it is measured
        self._serials: dict[str, str] = {}  # of the devices that were named

    def __call__(self, at_work: Collection[str]) -> list[str]:
        ready = []
        taken = {self._serials[name]: name for name in at_work if name in self._serials}
        for device in reachable(self._tcp, keys=self._keys, without=at_work):
            name = str(device.target)
            if device.state != State.READY:
                self._say_once(device.target, device.state, f"{name} is {device.state}: {device.advice}")
            elif device.serial in taken:
                other = taken[device.serial]
                sentence = f"{name} is measured on as {other} already. Start the agent again to change over."
                self._say_once(device.target, other, sentence)
            else:
                self._said.pop(device.target, None)
                ready.append(name)
                if device.serial:
                    self._serials[name] = device.serial
                    taken[device.serial] = name
        return ready

    def _say_once(self, target: AdbTarget, subject: str, sentence: str) -> None:
        if self._said.get(target) != subject:
            log.warning("%s", sentence)
        self._said[target] = subject


def _look_at(target: AdbTarget, keys: Path) -> Reachable:
    link = AdbLink(target, keys=keys)
    try:
        link.connect()
        asked = link.run(WHO, limit_s=ASK_S)
        model, _, serial = asked.text.strip().partition("\n")
        return Reachable(target, State.READY, model.strip(), "", serial.strip())
    except Unauthorized as fault:
        return Reachable(target, State.UNAUTHORIZED, "", str(fault))
    except LinkLost as fault:
        return Reachable(target, State.UNREACHABLE, "", str(fault))
    except DeviceFault as fault:
        return Reachable(target, State.OFFLINE, "", str(fault))
    finally:
        link.close()

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

ASK_S = 5.0  # for a device to name its model
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
    """Names those devices that are ready and have no worker yet; says of the others once why they are not ready."""

    def __init__(self, tcp: Sequence[str], *, keys: Path) -> None:
        """Raises ValueError where one of the addresses is none."""
        parse_addresses(tcp)
        self._tcp = tcp
        self._keys = keys
        self._said: dict[AdbTarget, State] = {}

    def __call__(self, at_work: Collection[str]) -> list[str]:
        try:
            found = reachable(self._tcp, keys=self._keys, without=at_work)
        except LinkLost as fault:
            log.warning("%s", fault)
            return []
        for device in found:
            if device.state != State.READY and self._said.get(device.target) != device.state:
                log.warning("%s is %s: %s", device.target, device.state, device.advice)
            self._said[device.target] = device.state
        return [str(device.target) for device in found if device.state == State.READY]


def _look_at(target: AdbTarget, keys: Path) -> Reachable:
    link = AdbLink(target, keys=keys)
    try:
        link.connect()
        asked = link.run("getprop ro.product.model 2>/dev/null || uname -m", limit_s=ASK_S)
        return Reachable(target, State.READY, asked.text.strip(), "")
    except Unauthorized as fault:
        return Reachable(target, State.UNAUTHORIZED, "", str(fault))
    except LinkLost as fault:
        return Reachable(target, State.UNREACHABLE, "", str(fault))
    except DeviceFault as fault:
        return Reachable(target, State.OFFLINE, "", str(fault))
    finally:
        link.close()

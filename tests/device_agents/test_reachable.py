import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.debian_adbd import Adbd
from benchmarks.faulty_wire import Fault, FaultyWire
from device_agents import adb
from device_agents.adb import AdbLink, AdbTarget, parse_target
from device_agents.errors import LinkLost
from device_agents.reachable import Reachable, ReadyDevices, State, parse_addresses, reachable
from tests.device_agents.key_demanding_device import KeyDemandingDevice


def test_addresses_are_separated_by_commas_and_asked_once() -> None:
    assert parse_addresses(["a:1, b:2", "b:2", ""]) == [parse_target("adb:a:1"), parse_target("adb:b:2")]


def test_what_is_no_address_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="'adb:phone' names no device"):
        parse_addresses(["phone"])


def test_each_device_is_listed_with_its_state(
    adbd: Adbd, wire: FaultyWire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adb, "CONNECT_S", 1.0)
    monkeypatch.setattr(adb, "AUTHORISE_S", 1.0)
    monkeypatch.setattr(adb, "UsbTransport", SimpleNamespace(find_all_adb_devices=lambda: iter(())))
    wire.inject(Fault.STALL)
    with KeyDemandingDevice(adbd.port) as phone:
        addresses = [f"127.0.0.1:{port}" for port in (adbd.port, phone.port, wire.port, 1)]
        found = reachable(addresses, keys=tmp_path / "adbkey")
    assert [str(one.target) for one in found] == [f"adb:{address}" for address in addresses]
    assert [one.state for one in found] == [State.READY, State.UNAUTHORIZED, State.OFFLINE, State.UNREACHABLE]
    assert ["accept" in found[1].advice, "restart it" in found[2].advice, "refused" in found[3].advice] == [True] * 3
    assert found[0].advice == ""


class LockedPhone:
    @property
    def serial_number(self) -> str:
        raise RuntimeError("LIBUSB_ERROR_ACCESS [-3]")


def test_a_phone_at_usb_that_may_not_be_opened_is_listed_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb, "UsbTransport", SimpleNamespace(find_all_adb_devices=lambda: iter([LockedPhone()])))
    [found] = reachable([])
    assert (str(found.target), found.state) == ("usb", State.UNREACHABLE)
    assert "LIBUSB_ERROR_ACCESS [-3]. Another program may hold it (adb kill-server)" in found.advice
    with pytest.raises(LinkLost, match="LIBUSB_ERROR_ACCESS"):
        AdbLink(AdbTarget(serial="89AX0")).connect()


def test_a_phone_at_usb_that_may_not_be_opened_keeps_no_other_away(monkeypatch: pytest.MonkeyPatch) -> None:
    phones = [LockedPhone(), SimpleNamespace(serial_number="89AX0")]
    monkeypatch.setattr(adb, "UsbTransport", SimpleNamespace(find_all_adb_devices=lambda: iter(phones)))
    targets, faults = adb.usb_targets()
    assert targets == [AdbTarget(serial="89AX0")]
    assert ["LIBUSB_ERROR_ACCESS" in str(fault) for fault in faults] == [True]


def test_a_phone_names_its_model(debian_adbd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setattr(adb, "UsbTransport", None)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "getprop").write_text(
        '#!/bin/sh\ncase "$1" in ro.product.model) echo "Pixel 3" ;; ro.serialno) echo 89AX0 ;; esac\n'
    )
    (programs / "getprop").chmod(0o755)
    with Adbd(tmp_path / "device", programs=programs) as phone:
        assert reachable([f"127.0.0.1:{phone.port}"], keys=tmp_path / "adbkey") == [
            Reachable(parse_target(f"adb:127.0.0.1:{phone.port}"), State.READY, "Pixel 3", "", "89AX0")
        ]


def test_a_device_that_is_reached_in_two_ways_gets_one_worker(
    adbd: Adbd, wire: FaultyWire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(adb, "UsbTransport", None)
    ways = [f"127.0.0.1:{port}" for port in (adbd.port, wire.port)]
    ready = ReadyDevices(ways, keys=tmp_path / "adbkey")
    first = ready([])
    assert first == [f"adb:{ways[0]}"]
    assert (ready(first), ready(first)) == ([], [])
    said = f"adb:{ways[1]} is measured on as adb:{ways[0]} already. Start the agent again to change over."
    assert [record.message for record in caplog.records if "already" in record.message] == [said]


def test_a_device_with_a_worker_is_not_spoken_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb, "UsbTransport", None)
    with socket.create_server(("127.0.0.1", 0)) as measuring:
        measuring.settimeout(0)
        address = f"127.0.0.1:{measuring.getsockname()[1]}"
        assert ReadyDevices([address], keys=tmp_path / "adbkey")([f"adb:{address}"]) == []
        with pytest.raises(BlockingIOError):
            measuring.accept()

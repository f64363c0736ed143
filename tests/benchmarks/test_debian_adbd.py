import os
from pathlib import Path

import pytest

from benchmarks.debian_adbd import Adbd, listening_on_loopback
from benchmarks.debian_packages import CannotInstall


def test_a_library_that_names_no_address_is_not_used() -> None:
    with pytest.raises(CannotInstall, match="could be reached from the network"):
        listening_on_loopback(b"\x7fELF" + bytes(100))


def listening_addresses(port: int) -> list[str]:
    """Hexadecimal, as in proc_net_tcp(5)."""
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [line[1].split(":")[0] for line in lines if line[3] == "0A" and line[1].endswith(f":{port:04X}")]


def test_adbd_listens_on_loopback_only_and_restarts_on_its_port(debian_adbd: Path, tmp_path: Path) -> None:  # noqa: ARG001
    with Adbd(tmp_path) as adbd:
        port = adbd.port
        assert listening_addresses(port) == ["0000000000000000FFFF00000100007F"]  # ::ffff:127.0.0.1
        adbd.kill()
        assert listening_addresses(port) == []
        adbd.start()
        assert adbd.port == port
        assert listening_addresses(port) == ["0000000000000000FFFF00000100007F"]
    assert os.listdir(tmp_path) == ["adbd.log"]

import os
import threading
from pathlib import Path

import pytest

from benchmarks import debian_adbd
from benchmarks.debian_adbd import Adbd, CannotInstall, installed, listening_on_loopback, with_suite


def test_lines_of_sources_change_their_suite_only() -> None:
    text = (
        "# deb http://commented.example/debian bookworm main\n"
        "deb http://mirror.example/debian bookworm main contrib # ours\n"
        "deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian stable main\n"
        "deb http://mirror.example/debian bookworm-updates main\n"
        "deb http://mirror.example/other bookworm contrib\n"
        "deb-src http://mirror.example/debian bookworm main\n"
    )
    assert with_suite(text, ".list", old="bookworm", new="trixie") == (
        "deb http://mirror.example/debian trixie main\n"
        "deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian trixie main\n"
    )


def test_stanzas_of_sources_change_their_suite_only() -> None:
    text = (
        "Types: deb deb-src\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main contrib\nSigned-By:\n -----BEGIN\n .\n -----END\n\n"
        "Types: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\nComponents: main\n\n"
        "Types: deb\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\nEnabled: no\n"
    )
    assert with_suite(text, ".sources", old="bookworm", new="trixie") == (
        "types: deb\nuris: http://mirror.example/debian\nsuites: trixie\ncomponents: main\n"
        "signed-by:\n -----BEGIN\n .\n -----END\n"
    )


@pytest.mark.parametrize("suffix", [".list", ".sources"])
def test_a_file_without_the_suite_says_nothing(suffix: str) -> None:
    assert with_suite("", suffix, old="bookworm", new="trixie") == ""


def test_two_runs_at_once_unpack_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, folders, calls = threading.Barrier(2), [], []

    def unpack(folder: Path) -> None:
        calls.append(folder)
        (folder / "root").mkdir()

    def run() -> None:
        both.wait()
        folders.append(installed())

    monkeypatch.setenv("PADNAS_CACHE", str(tmp_path))
    monkeypatch.setattr(debian_adbd, "_unpack", unpack)
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert folders[0] == folders[1]
    assert folders[0].is_dir()


def test_what_was_stopped_half_way_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        (folder / "root").mkdir()
        raise CannotInstall("the disk is full")

    monkeypatch.setenv("PADNAS_CACHE", str(tmp_path))
    (tmp_path / "adbd" / "half-killed" / "root").mkdir(parents=True)
    monkeypatch.setattr(debian_adbd, "_unpack", fail)
    with pytest.raises(CannotInstall, match="the disk is full"):
        installed()
    assert [path.name for path in (tmp_path / "adbd").iterdir()] == ["lock"]
    monkeypatch.setattr(debian_adbd, "_unpack", lambda folder: (folder / "root").mkdir())
    assert installed().is_dir()


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

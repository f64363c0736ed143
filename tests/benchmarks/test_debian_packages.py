import threading
from pathlib import Path

import pytest

from benchmarks import debian_packages
from benchmarks.debian_packages import CannotInstall, unpacked, with_suite


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

    def unpack(folder: Path, *_: object, **__: object) -> None:
        calls.append(folder)
        (folder / "root").mkdir()

    def run() -> None:
        both.wait()
        folders.append(unpacked("tool", ["tool"]))

    monkeypatch.setenv("PADNAS_CACHE", str(tmp_path))
    monkeypatch.setattr(debian_packages, "_unpack", unpack)
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert folders[0] == folders[1]
    assert folders[0].is_dir()


def test_what_was_stopped_half_way_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, *_: object, **__: object) -> None:
        (folder / "root").mkdir()
        raise CannotInstall("the disk is full")

    monkeypatch.setenv("PADNAS_CACHE", str(tmp_path))
    (tmp_path / "tool" / "half-killed" / "root").mkdir(parents=True)
    monkeypatch.setattr(debian_packages, "_unpack", fail)
    with pytest.raises(CannotInstall, match="the disk is full"):
        unpacked("tool", ["tool"])
    assert [path.name for path in (tmp_path / "tool").iterdir()] == ["lock"]
    monkeypatch.setattr(debian_packages, "_unpack", lambda folder, *_, **__: (folder / "root").mkdir())
    folder = unpacked("tool", ["tool"], finish=lambda root: (root / "changed").touch())
    assert (folder / "changed").exists()

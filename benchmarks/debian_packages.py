"""Programs of Debian for tests and benchmarks: packages unpacked into a cache folder once, and nothing installed.

They come from the machine's own sources, with the suite changed where another release of Debian has what is needed.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

INSTALL_S = 110.0  # for each of apt's commands


class CannotInstall(Exception):
    """The text says why."""


def unpacked(
    name: str, packages: Sequence[str], *, suite: str | None = None, finish: Callable[[Path], None] = lambda _: None
) -> Path:
    """The folder `name` of the cache with these packages, of the machine's own suite by default; made the first time.

    Two runs at once do it once, and one that is killed half-way leaves nothing that looks done. `finish` changes what
    was unpacked before anybody sees it.

    Raises:
        CannotInstall: this machine is not a Debian with packages in reach.
    """
    codename = _codename()
    suite = suite or codename
    cache = Path(os.environ.get("PADNAS_CACHE", "~/.cache/pad-nas")).expanduser() / name
    folder = cache / f"{suite}-{platform.machine()}-{hashlib.sha256(' '.join(packages).encode()).hexdigest()[:8]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            for left_behind in cache.glob("half-*"):
                shutil.rmtree(left_behind)
            half = Path(tempfile.mkdtemp(prefix="half-", dir=cache))
            try:
                _unpack(half, packages, codename=codename, suite=suite)
                finish(half / "root")
                (half / "root").rename(folder)
            finally:
                shutil.rmtree(half, ignore_errors=True)
    return folder


def _unpack(folder: Path, packages: Sequence[str], *, codename: str, suite: str) -> None:
    sources = folder / "sources"
    archives = folder / "archives"
    for path in (sources, archives, folder / "lists" / "partial", folder / "cache" / "archives" / "partial"):
        path.mkdir(parents=True)
    (folder / "status").touch()  # as if nothing were installed
    written = [
        (sources / f"{n}{path.suffix}").write_text(text)
        for n, path in enumerate(_source_files(Path("/etc/apt")))
        if (text := with_suite(path.read_text(), path.suffix, old=codename, new=suite))
    ]
    if not written:
        raise CannotInstall(f"No source of packages in /etc/apt is for {codename} main.")
    options = [
        "-oDir::Etc::SourceList=/dev/null", f"-oDir::Etc::SourceParts={sources}", f"-oDir::State::Lists={folder}/lists",
        f"-oDir::State::status={folder}/status", f"-oDir::Cache={folder}/cache", "-oAPT::Sandbox::User=root",
        "-oAcquire::Retries=2",
    ]  # fmt: skip
    update = _finished(["apt-get", *options, "update"], archives)  # one source of several may fail, and be none we need
    download = _finished(["apt-get", *options, "download", *packages], archives)
    if download.returncode:
        raise CannotInstall(f"{', '.join(packages)} cannot be downloaded:\n{update.stdout}\n{download.stdout}")
    for archive in sorted(archives.glob("*.deb")):
        unpacked = _finished(["dpkg", "-x", str(archive), str(folder / "root")], archives)
        if unpacked.returncode:
            raise CannotInstall(f"{archive.name} cannot be unpacked: {unpacked.stdout}")


def _codename() -> str:
    """The machine's Debian release. Raises CannotInstall where it is none."""
    try:
        release = platform.freedesktop_os_release()
    except OSError as error:
        raise CannotInstall("This system does not say what it is.") from error
    if release["ID"] != "debian" or release.get("VERSION_CODENAME") not in ("bookworm", "trixie"):
        raise CannotInstall(f"Packages come from Debian 12 or 13; this is {release.get('PRETTY_NAME', 'another')}.")
    return release["VERSION_CODENAME"]


def _finished(command: Sequence[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotInstall(f"{command[0]}: {error}") from error


def _source_files(apt: Path) -> list[Path]:
    parts = [*apt.glob("sources.list.d/*.list"), *apt.glob("sources.list.d/*.sources")]
    return [path for path in [apt / "sources.list", *sorted(parts)] if path.is_file()]


def with_suite(text: str, suffix: str, *, old: str, new: str) -> str:
    """What a file of sources says about `main` of suite `old`, said of suite `new`; nothing else of it.

    Both forms that apt reads: lines (`.list`) and stanzas (`.sources`). Updates and security have suites of their own.
    """
    names = {old, "stable", "oldstable"}
    if suffix == ".list":
        lines = re.findall(r"^\s*deb\s+((?:\[[^]]*\]\s+)?\S+)\s+(\S+)\s+([^#\n]+)", text, re.MULTILINE)
        kept = [source for source, suite, parts in lines if suite in names and "main" in parts.split()]
        return "".join(f"deb {source} {new} main\n" for source in kept)
    stanzas = []
    for stanza in re.split(r"\n\s*\n", re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)):
        fields = {name.lower(): value for name, value in re.findall(r"^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.M)}
        if (
            "deb" in fields.get("types", "").split()
            and names & set(fields.get("suites", "").split())
            and "main" in fields.get("components", "").split()
            and fields.get("enabled", "yes").strip() != "no"
        ):
            fields |= {"types": " deb", "suites": f" {new}", "components": " main"}
            stanzas.append("".join(f"{name}:{value}\n" for name, value in fields.items()))
    return "\n".join(stanzas)

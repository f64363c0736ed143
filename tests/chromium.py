"""Debian's Chromium for tests of pages, installed by apt where it is missing and this may be done."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

INSTALL_S = 200.0
PACKAGES = ("chromium", "fonts-dejavu-core")


class CannotInstall(Exception):
    """The text says why."""


def installed() -> str:
    """Its path. Two runs at once install it once. Raises CannotInstall."""
    with (Path(tempfile.gettempdir()) / f"padnas-chromium-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if shutil.which("chromium") is None:
            _install()
    path = shutil.which("chromium")
    if path is None:
        raise CannotInstall("apt-get has installed chromium, and there is none.")
    return path


def _install() -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise CannotInstall("There is no Chromium here. Run as root: apt-get install chromium")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "-qq", "-oDPkg::Lock::Timeout=100", "install", "-y", "--no-install-recommends", *PACKAGES]
    for command in (["apt-get", "-qq", "update"], install):  # one source of several may not answer, and be none we need
        try:
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                timeout=INSTALL_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise CannotInstall(f"{' '.join(command)} takes longer than {INSTALL_S:.0f} s.") from error
    if done.returncode:
        raise CannotInstall(f"Chromium cannot be installed:\n{done.stdout}")

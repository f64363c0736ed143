"""A Pixel 3 as a shell sees it, replayed from the files in pixel3/. The scripts that run on it are those of a phone."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from device_agents.adb import Output

PIXEL3 = Path(__file__).parent / "pixel3"
PROGRAMS = PIXEL3 / "bin"  # first in PATH


class ReplayedPhone:
    """Its state is a folder of its own, which the test may change."""

    def __init__(self, folder: Path, *, shell: Sequence[str] = ("sh",)) -> None:
        self.folder = folder
        self._shell = shell
        shutil.copytree(PIXEL3 / "state", folder, symlinks=True)

    @property
    def environment(self) -> dict[str, str]:
        """What a shell needs; the stand-in for benchmark_model runs in this Python, which has LiteRT."""
        path = f"{PROGRAMS}:{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
        return {"PADNAS_PIXEL3": str(self.folder), "PATH": path}

    def __call__(self, script: str) -> Output:
        """Run a script on it."""
        done = subprocess.run(
            [*self._shell, "-c", script],
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
        return Output(done.returncode, done.stdout.decode(errors="replace"))

    def change(self, name: str, old: str, new: str, *, after: int | None = None) -> None:
        """Replace a text in one of its files: now, or once its state has been read so many times."""
        text = (self.folder / name).read_text()
        assert old in text, f"{name} has no {old!r}"
        file = self.folder / ("" if after is None else f"after-{after}") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace(old, new))

    def hide(self, *names: str) -> None:
        """What of it cannot be read, files or folders."""
        for name in names:
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

"""Files that are written whole or not at all, whenever the machine stops."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields the file to write. It becomes `path` at the end; if anything is raised, `path` stays as it was."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        yield unfinished
        _flush(unfinished)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()  # on a full disk, others need its room
        raise
    os.replace(unfinished, path)
    _flush(path.parent)


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Copies of an SQLite database, taken while services use it. PostgreSQL has tools of its own for that."""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

BESIDE = ("-wal", "-shm", "-journal")  # what SQLite keeps beside a database; of another one, it would be taken for ours
OURS = "SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'"


def back_up(source: Path, target: Path) -> None:
    """Write the database as it is at one moment to a file of its own, whole or not at all; writers do not wait.

    Raises:
        ValueError: there is no database, the target exists, or the copy is damaged.
    """
    _refuse_existing(target)
    _copy(source, target)


def restore(source: Path, target: Path) -> None:
    """Make a database of a backup, where there is none.

    Raises:
        ValueError: there is no backup, a database is in its place, or the backup is damaged.
    """
    _refuse_existing(target)
    for end in BESIDE:
        _refuse_existing(target.with_name(target.name + end))
    _copy(source, target)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise ValueError(f"{path} exists already. Choose another name, or move it away first.")


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise ValueError(f"There is no database {source}.")
    part = target.with_name(target.name + ".part")
    try:
        part.unlink(missing_ok=True)
        # All pages in one step: the writes of others cannot make it begin anew.
        with closing(_connect(source)) as original, closing(sqlite3.connect(part)) as copy:
            original.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, nothing beside it
            if copy.execute(OURS).fetchone() == (0,):
                raise ValueError(f"{source} is no database of this service.")
            for check, sound in (("integrity_check", [("ok",)]), ("foreign_key_check", [])):
                if (found := copy.execute(f"PRAGMA {check}").fetchall()) != sound:
                    raise ValueError(f"{source} is damaged ({check}: {found[0]}). Use another backup.")
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)
    except (sqlite3.Error, OSError) as error:
        raise ValueError(f"{source} cannot be copied to {target}: {error}.") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _connect(path: Path) -> sqlite3.Connection:
    """Never makes a new file."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=30)

"""A search's directory: plain files, each written whole or not at all, from which a search goes on after any stop.

config.toml  data.json  table.json  measured.json  report.html  figures/  final.json
stage-K/  space.json  training.jsonl  supernet.safetensors  history.jsonl  distribution.json
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter

from latency_contract.tables import Latency, Table
from search_client import config
from search_client.config import SearchConfig
from search_client.durable_files import write_text
from search_client.errors import AnotherSearch
from search_client.pruning import OperatorDistribution
from search_client.search_problem import Evaluated
from search_client.spaces import SearchSpace
from search_client.training import EpochRecord

BEFORE_THE_SETTINGS = {".lock", "config.toml.unfinished"}  # what a search leaves that was stopped in its first write


class RunDirectory:
    """Open it for one search; a second process that opens it is refused."""

    def __init__(self, path: Path, settings: SearchConfig) -> None:
        """Make the directory, or take up the search in it.

        Raises:
            AnotherSearch: the directory belongs to a search with other settings, or one is running in it.
        """
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path)
        saved = path / "config.toml"
        if saved.exists() and self._has_something_to_lose():
            _must_be_the_same(config.load(saved), settings, path)
            return
        if not saved.exists() and any(entry.name not in BEFORE_THE_SETTINGS for entry in path.iterdir()):
            raise AnotherSearch(f"{path} holds files, but none of a search. Choose an empty or a new directory.")
        for leftover in (path / "data.json", path / "stage-1" / "space.json"):
            leftover.unlink(missing_ok=True)
        write_text(saved, settings.to_toml())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def _has_something_to_lose(self) -> bool:
        """Until something is measured or trained, settings may still be corrected."""
        return (self.path / "table.json").exists() or (self.path / "stage-1" / "supernet.safetensors").exists()

    @property
    def final(self) -> Path:
        """Exists exactly when the search is finished."""
        return self.path / "final.json"

    def record_data(self, name: str, sha256: str) -> None:
        """Raises AnotherSearch if the search began with other images."""
        _write_or_match(self.path / "data.json", {"name": name, "sha256": sha256})

    def measured(self) -> dict[str, Latency]:
        """Latencies of whole networks by their ids, as far as they were measured."""
        path = self.path / "measured.json"
        return TypeAdapter(dict[str, Latency]).validate_json(path.read_text()) if path.exists() else {}

    def save_measured(self, latencies: Mapping[str, Latency]) -> None:
        write_json(self.path / "measured.json", {key: one.model_dump(mode="json") for key, one in latencies.items()})

    @property
    def table(self) -> Table | None:
        path = self.path / "table.json"
        return Table.model_validate_json(path.read_text()) if path.exists() else None

    @property
    def device_model(self) -> str | None:
        """The device that this search began with; None while it has no table."""
        table = self.table
        return None if table is None else table.device_model

    def save_table(self, table: Table) -> None:
        write_text(self.path / "table.json", table.model_dump_json(indent=1))

    def stage(self, number: int) -> "StageDirectory":
        return StageDirectory(self.path / f"stage-{number}")

    @property
    def figures(self) -> Path:
        path = self.path / "figures"
        path.mkdir(exist_ok=True)
        return path


class StageDirectory:
    """One stage: the space, the supernet trained in it, the search on that supernet, and what the search used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        return self.path / "supernet.safetensors"

    def record_space(self, space: SearchSpace) -> None:
        """Raises AnotherSearch if this stage began with another space."""
        _write_or_match(self.path / "space.json", space.to_json() | {"size": space.size})

    def append_epoch(self, record: EpochRecord) -> None:
        _append_lines(self.path / "training.jsonl", [asdict(record)])

    def history(self) -> list[Evaluated]:
        """What was evaluated before this search was stopped. A line that was cut off is dropped, and forgotten."""
        path = self.path / "history.jsonl"
        if not path.exists():
            return []
        whole, separator, _ = path.read_text().rpartition("\n")
        write_text(path, whole + separator)
        lines = [json.loads(line) for line in whole.splitlines()]
        return [Evaluated(**line | {"architecture": tuple(line["architecture"])}) for line in lines]

    def append_history(self, evaluated: Sequence[Evaluated]) -> None:
        _append_lines(self.path / "history.jsonl", [asdict(item) for item in evaluated])

    def save_distribution(self, distribution: OperatorDistribution, space: SearchSpace) -> None:
        named = {layer.name: choices for layer, choices in zip(space.layers, distribution, strict=True)}
        write_json(self.path / "distribution.json", named)


def write_json(path: Path, value: Any) -> None:
    """Readable JSON whose bytes depend on the value alone."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def _write_or_match(path: Path, value: Any) -> None:
    """Write a file that says what a search was begun with, or see that it says the same."""
    if not path.exists():
        write_json(path, value)
    elif json.loads(path.read_text()) != value:
        raise AnotherSearch(
            f"{path} says that this search began with something else than what is there now."
            " Restore what has changed since, or use another --out."
        )


def _append_lines(path: Path, values: Sequence[Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(value) + "\n" for value in values)
        file.flush()
        os.fsync(file.fileno())


def _must_be_the_same(saved: SearchConfig, asked: SearchConfig, path: Path) -> None:
    before, now = saved.model_dump(mode="json"), asked.model_dump(mode="json")
    different = [
        f"{name} is {before[name]} there and {now[name]} here"
        for name in before
        if name not in config.CHANGE_NO_RESULT and before[name] != now[name]
    ]
    if different:
        raise AnotherSearch(
            f"{path} belongs to another search: {'; '.join(different)}."
            " Use its settings to go on with it, or another --out."
        )


def _lock(path: Path) -> int:
    """Held until this process ends, however it ends."""
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise AnotherSearch(f"A search is running in {path}. Wait for it, or use another --out.") from error
    return descriptor

"""A search's directory: plain files, each written whole or not at all, from which a search goes on after any stop.

config.toml  data.json  decoding.json  table.json  measured.json  report.html  figures/  tensorboard/
final.json  standalone/
stage-K/  space.json  table.json  training.jsonl  supernet.safetensors  history.jsonl  search.jsonl  distribution.json
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter

from latency_contract.tables import Latency
from search_client import config
from search_client.config import SearchConfig
from search_client.data import ImageData
from search_client.decoding import DecodingPass
from search_client.durable_files import write_text
from search_client.errors import AnotherSearch, InvalidData
from search_client.imported_tables import AnyTable, read_table
from search_client.progress import ConsoleProgress
from search_client.pruning import OperatorDistribution
from search_client.search_problem import Evaluated
from search_client.spaces import SearchSpace
from search_client.training import EpochRecord

BEFORE_THE_SETTINGS = {".lock", "config.toml.unfinished"}  # what a search leaves that was stopped in its first write


@dataclass(frozen=True)
class GenerationRecord:
    """What one generation of a search cost; generations that a resumed search only looks up are not recorded."""

    generation: int
    evaluated: int  # architectures
    seconds: float
    oracle_seconds: float  # of these, spent on accuracies


class RunFiles:
    """The files of a search, to be read; it may still be running."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def final(self) -> Path:
        """Exists exactly when the search is finished."""
        return self.path / "final.json"

    def config(self) -> SearchConfig:
        """Raises ValueError where there is no search."""
        if not (self.path / "config.toml").exists():
            raise ValueError(f"{self.path} holds no search. Give a directory that `padnas-client search` wrote.")
        return config.load(self.path / "config.toml")

    def finished(self) -> dict[str, Any]:
        """What `final.json` holds. Raises ValueError where there is no finished search."""
        if not self.final.exists():
            raise ValueError(
                f"{self.path} does not hold a finished search: there is no final.json."
                " Go on with the search by the command that began it."
            )
        return dict(json.loads(self.final.read_text()))

    def architecture(self, name: str) -> dict[str, Any]:
        """One of the final architectures. Raises ValueError where there is none of this name."""
        finals = {one["name"]: one for one in self.finished()["architectures"]}
        if name not in finals:
            raise ValueError(f"{self.path} has no architecture '{name}'. It has {', '.join(finals)}.")
        return dict(finals[name])

    def images(self, progress: ConsoleProgress) -> ImageData:
        """What a finished search was trained on and scored with.

        Raises:
            InvalidData: they cannot be read, are not what they were, or there were none.
        """
        settings, side = self.config(), self.stage(1).space().stem.height
        images = settings.load_data(input_size=side, known=self.decoding(), progress=progress)
        if images.fingerprint != self.finished()["data_sha256"]:
            raise InvalidData(
                f"The search in {self.path} saw other images than '{settings.data}' holds now. Restore them."
            )
        return images

    def decoding(self) -> DecodingPass | None:
        """What an earlier pass over all images found; None if there was none."""
        path = self.path / "decoding.json"
        return TypeAdapter(DecodingPass).validate_json(path.read_text()) if path.exists() else None

    def measured(self) -> dict[str, Latency]:
        """Latencies of whole networks by their ids, as far as they were measured."""
        path = self.path / "measured.json"
        return TypeAdapter(dict[str, Latency]).validate_json(path.read_text()) if path.exists() else {}

    @property
    def table(self) -> AnyTable | None:
        path = self.path / "table.json"
        return read_table(path) if path.exists() else None

    def stage(self, number: int) -> "StageDirectory":
        return StageDirectory(self.path / f"stage-{number}")

    def stages(self) -> "list[StageDirectory]":
        """Those that have begun, in order."""
        numbers = range(1, 1 + len(list(self.path.glob("stage-*"))))
        return [self.stage(number) for number in numbers]

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def standalone(self) -> Path:
        """One directory for each architecture that was trained alone."""
        return self.path / "standalone"


class RunDirectory(RunFiles):
    """Open it for one search; a second process that opens it is refused."""

    def __init__(self, path: Path, settings: SearchConfig) -> None:
        """Make the directory, or take up the search in it.

        Raises:
            AnotherSearch: the directory belongs to a search with other settings, or one is running in it.
        """
        super().__init__(path)
        path.mkdir(parents=True, exist_ok=True)
        self._lock = lock(path)
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

    def stage(self, number: int) -> "StageDirectory":
        stage = super().stage(number)
        stage.path.mkdir(exist_ok=True)
        return stage

    def record_data(self, record: Mapping[str, Any]) -> None:
        """Raises AnotherSearch if the search began with other images."""
        write_or_match(self.path / "data.json", record)

    def save_decoding(self, decoding: DecodingPass) -> None:
        """Kept apart from what belongs to a search's settings: these may be corrected without another pass."""
        write_json(self.path / "decoding.json", asdict(decoding))

    def save_measured(self, latencies: Mapping[str, Latency]) -> None:
        write_json(self.path / "measured.json", {key: one.model_dump(mode="json") for key, one in latencies.items()})

    def save_table(self, table: AnyTable) -> None:
        write_text(self.path / "table.json", table.model_dump_json(indent=1))


class StageDirectory:
    """One stage: the space, the supernet trained in it, the search on that supernet, and what the search used."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoint(self) -> Path:
        return self.path / "supernet.safetensors"

    def space(self) -> SearchSpace:
        return SearchSpace.from_json(json.loads((self.path / "space.json").read_text()))

    def record_space(self, space: SearchSpace) -> None:
        """Raises AnotherSearch if this stage began with another space."""
        write_or_match(self.path / "space.json", space.to_json() | {"size": space.size})

    @property
    def table(self) -> AnyTable | None:
        """The one that this stage was searched with; None where that is the search's."""
        path = self.path / "table.json"
        return read_table(path) if path.exists() else None

    def save_table(self, table: AnyTable) -> None:
        write_text(self.path / "table.json", table.model_dump_json(indent=1))

    def epochs(self) -> list[EpochRecord]:
        return epochs(self.path)

    def save_epochs(self, records: Sequence[EpochRecord]) -> None:
        save_epochs(self.path, records)

    def history(self) -> list[Evaluated]:
        """What was evaluated so far. A line that was cut off is dropped."""
        lines = [json.loads(line) for line in _whole_lines(self.path / "history.jsonl")]
        return [Evaluated(**line | {"architecture": tuple(line["architecture"])}) for line in lines]

    def append_history(self, evaluated: Sequence[Evaluated]) -> None:
        _append_lines(self.path / "history.jsonl", [asdict(item) for item in evaluated])

    def generations(self) -> list[GenerationRecord]:
        return [GenerationRecord(**json.loads(line)) for line in _whole_lines(self.path / "search.jsonl")]

    def append_generation(self, record: GenerationRecord) -> None:
        _append_lines(self.path / "search.jsonl", [asdict(record)])

    def distribution(self) -> OperatorDistribution:
        named = json.loads((self.path / "distribution.json").read_text())
        return tuple(named.values())

    def save_distribution(self, distribution: OperatorDistribution, space: SearchSpace) -> None:
        named = {layer.name: choices for layer, choices in zip(space.layers, distribution, strict=True)}
        write_json(self.path / "distribution.json", named)


def epochs(directory: Path) -> list[EpochRecord]:
    """What `training.jsonl` says of a training; empty where there was none."""
    path = directory / "training.jsonl"
    return [EpochRecord(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def save_epochs(directory: Path, records: Sequence[EpochRecord]) -> None:
    """`training.jsonl`: all epochs so far, one a line."""
    write_text(directory / "training.jsonl", "".join(json.dumps(asdict(record)) + "\n" for record in records))


def write_json(path: Path, value: Any) -> None:
    """Readable JSON whose bytes depend on the value alone."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_or_match(path: Path, value: Any) -> None:
    """Write a file that says what a search was begun with, or see that it says the same."""
    if not path.exists():
        write_json(path, value)
    elif json.loads(path.read_text()) != value:
        raise AnotherSearch(
            f"{path} says that this search began with something else than what is there now."
            " Restore what has changed since, or use another --out."
        )


def _whole_lines(path: Path) -> list[str]:
    """Lines up to the last one that was written whole."""
    return path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []


def _ends_with_a_line(path: Path) -> bool:
    """Or is empty."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        return file.read() in (b"", b"\n")


def _append_lines(path: Path, values: Sequence[Any]) -> None:
    """Add lines; what is left of one that was cut off when a process was killed goes."""
    if path.exists() and not _ends_with_a_line(path):
        write_text(path, "".join(line + "\n" for line in _whole_lines(path)))
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(value) + "\n" for value in values)
        file.flush()
        os.fsync(file.fileno())


def _must_be_the_same(saved: SearchConfig, asked: SearchConfig, path: Path) -> None:
    different = differences(
        saved.model_dump(mode="json", exclude=config.CHANGE_NO_RESULT),
        asked.model_dump(mode="json", exclude=config.CHANGE_NO_RESULT),
    )
    if different:
        raise AnotherSearch(
            f"{path} belongs to another search: {different}. Use its settings to go on with it, or another --out."
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Settings that are not the same, for a message; empty where all are."""
    names = dict.fromkeys([*there, *here])
    return "; ".join(
        f"{name} is {there.get(name)} there and {here.get(name)} here"
        for name in names
        if there.get(name) != here.get(name)
    )


def lock(path: Path) -> int:
    """Held until this process ends, however it ends."""
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise AnotherSearch(f"A search is running in {path}. Wait for it, or use another --out.") from error
    return descriptor

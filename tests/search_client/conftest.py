"""What tests of the client share: photos, an agent whose answers are given by hand, finished searches.

The searches were never run; the real writers wrote them.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from latency_contract.connection import ServiceConnection
from latency_contract.devices import Device, DeviceReport
from latency_contract.jobs import Failed, LeasedJob, Measured
from latency_contract.measurements import Measurement
from latency_contract.operators import IBConv, Network
from search_client.analyses import StandAlone
from search_client.config import SearchConfig, resolve
from search_client.latencies import LatencyService
from search_client.pad_nas import most_accurate
from search_client.pruning import operator_distribution, prune
from search_client.run_directory import GenerationRecord, RunDirectory, save_epochs, write_json
from search_client.search_problem import Evaluated
from search_client.spaces import SearchSpace
from search_client.training import EpochRecord
from tests.agents import answer_lease

TINY = str(Path(__file__).parent / "tiny.toml")
EVALUATED = 40  # architectures a stage

RunMaker = Callable[..., Path]
Agent = Callable[[Callable[[IBConv], float | str]], None]  # given what each operator takes, or why it fails


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The networks here are so small that threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def photos() -> Callable[[int], list[Image.Image]]:
    """So many different parts of scikit-learn's two photos, of different sizes."""
    samples = [Image.fromarray(pixels) for pixels in load_sample_images().images]

    def make(count: int) -> list[Image.Image]:
        rng = np.random.default_rng(0)
        parts = []
        for index in range(count):
            width, height = (int(side) for side in rng.integers(40, 90, size=2))
            left, top = int(rng.integers(640 - width)), int(rng.integers(427 - height))
            parts.append(samples[index % 2].crop((left, top, left + width, top + height)))
        return parts

    return make


@pytest.fixture
def photo_folder(tmp_path: Path, photos: Callable[[int], list[Image.Image]]) -> Callable[..., Path]:
    """A directory of photos in ImageNet's layout, as JPEG and PNG files."""

    def make(*, train: int, val: int, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
        parts = iter(photos((train + val) * len(classes)))
        for part, count in (("train", train), ("val", val)):
            for name in classes:
                directory = tmp_path / "photos" / part / name
                directory.mkdir(parents=True)
                for index in range(count):
                    next(parts).save(directory / f"{index}.{'png' if index % 3 == 0 else 'JPEG'}")
        return tmp_path / "photos"

    return make


@pytest.fixture
def phone(connection: ServiceConnection, report: Callable[..., DeviceReport], request: pytest.FixtureRequest) -> str:
    """A device model of the test's own."""
    name: str = request.node.name
    connection.ask("PUT", f"/v1/devices/{name}", Device, body=report(serial=name, model=name))
    return name


@pytest.fixture
def service(connection: ServiceConnection, phone: str) -> LatencyService:
    return LatencyService(connection, device=phone, client=phone)


@pytest.fixture
def agent(service_url: str, phone: str, measurement: Callable[..., Measurement]) -> Iterator[Agent]:
    """Starts an agent that answers every job with milliseconds, or with the sentence of a failure.

    A network takes as long as its first operator.
    """
    over = threading.Event()
    threads: list[threading.Thread] = []

    def outcome(answer: Callable[[IBConv], float | str], job: LeasedJob) -> Measured | Failed:
        subject = job.subject.operators[0] if isinstance(job.subject, Network) else job.subject
        assert isinstance(subject, IBConv)
        ms = answer(subject)
        if isinstance(ms, str):
            return Failed(job_id=job.job_id, error=ms)
        medians = [ms * (1 + n / 1000) for n in range(6)]
        made = measurement(job.subject.id, medians, model_sha256=job.model_sha256, serial=phone)
        return Measured(job_id=job.job_id, measurement=made)

    def serve(answer: Callable[[IBConv], float | str]) -> None:
        with ServiceConnection(service_url) as connection:
            while not over.wait(0.02):
                answer_lease(connection, phone, partial(outcome, answer))

    def start(answer: Callable[[IBConv], float | str]) -> None:
        thread = threading.Thread(target=serve, args=(answer,))
        threads.append(thread)
        thread.start()

    yield start
    over.set()
    for thread in threads:
        thread.join()


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    return lambda name, **options: finished_run(tmp_path / name, **options)


def finished_run(
    path: Path,
    *,
    trained: bool = True,
    alone: int = 0,
    device_model: str = "Pixel 3",
    extra_settings: dict[str, Any] | None = None,
    imported: bool = False,
    classes: int | None = None,
    finals: int = 3,
    **settings: Any,
) -> Path:
    """The directory of a search whose accuracies grow with latency, and with every pruning.

    Args:
        trained: whether there was a supernet to train.
        alone: architectures that were trained alone; their accuracies rank nearly as the one-shot ones do.
        extra_settings: in `final.json` only, for settings that this version does not know.
        imported: latencies came from an imported table without intervals, and nothing was measured.
    """
    config = resolve({"space": TINY, "data": "digits"} | settings, file=None)
    rng = np.random.default_rng(config.seed)
    with RunDirectory(path, config) as directory:
        space = config.load_space(classes=classes)
        stages = []
        for number in range(1, config.stages):
            stage = directory.stage(number)
            stage.record_space(space)
            if trained:
                stage.save_epochs(_epochs(config.epochs[number - 1], stage=number, rng=rng))
            evaluated = _evaluated(space, stage=number, rng=rng)
            stage.append_history(evaluated)
            for generation in range(4):
                stage.append_generation(GenerationRecord(generation, EVALUATED // 4, 3.0 + generation, 2.0))
            distribution = operator_distribution(space, evaluated)
            stage.save_distribution(distribution, space)
            best = max(item.accuracy for item in evaluated)
            stages.append({"stage": number, "size": space.size, "evaluated": EVALUATED, "best_accuracy": best})
            if number + 1 < config.stages:
                space = prune(space, distribution, threshold=0.05)
        for place, item in enumerate(most_accurate(evaluated, count=alone), start=1):
            _train_alone(directory.standalone / str(place), space, item, rng=rng)
        final = _final(config, space, most_accurate(evaluated, count=finals), stages, device_model=device_model)
        final["config"] |= extra_settings or {}
        if imported:
            _make_imported(final)
        write_json(directory.final, final)
    return path


def _epochs(count: int, *, stage: int, rng: np.random.Generator) -> list[EpochRecord]:
    top = 0.4 + 0.12 * stage
    accuracies = top - 0.3 / stage**2 * np.exp(-np.arange(1, count + 1) / (0.3 * count)) + rng.normal(0, 0.006, count)
    return [
        EpochRecord(epoch, 1.0, float(accuracy), float(accuracy), 0.1, 12.5)
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]


def _evaluated(space: SearchSpace, *, stage: int, rng: np.random.Generator) -> list[Evaluated]:
    """Distinct architectures; fewer where the space holds no more."""
    found: dict[tuple[str, ...], Evaluated] = {}
    for draw in range(20 * EVALUATED):
        architecture = space.sample(rng)
        macs = space.network(architecture).macs
        share = 1 - np.exp(-macs / space.network(tuple(layer.choices[0] for layer in space.layers)).macs)
        accuracy = float(np.clip(0.3 + 0.1 * stage + 0.4 * share + rng.normal(0, 0.02), 0, 1))
        found.setdefault(architecture, Evaluated(architecture, 40 + 40 * float(share), accuracy, draw % 4))
        if len(found) == EVALUATED:
            break
    return list(found.values())


def _train_alone(path: Path, space: SearchSpace, item: Evaluated, *, rng: np.random.Generator) -> None:
    network = space.network(item.architecture)
    accuracy = float(0.5 + 0.4 * item.accuracy + rng.normal(0, 0.008))
    result = StandAlone(
        name=path.name,
        choices=dict(zip((layer.name for layer in space.layers), item.architecture, strict=True)),
        one_shot_accuracy=item.accuracy,
        validation_accuracy=accuracy + 0.01,
        test_accuracy=accuracy,
        predicted_latency_ms=item.latency_ms,
        macs=network.macs,
        parameters=network.parameters,
    )
    path.mkdir(parents=True)
    write_json(path / "result.json", asdict(result))
    save_epochs(path, _epochs(3, stage=3, rng=rng))


def _final(
    config: SearchConfig, space: SearchSpace, found: list[Evaluated], stages: list[dict[str, Any]], *, device_model: str
) -> dict[str, Any]:
    def latency(value: float) -> dict[str, Any]:
        return {"latency_ms": value, "low_ms": 0.99 * value, "high_ms": 1.01 * value}

    networks = [space.network(item.architecture) for item in found]
    return {
        "config": config.model_dump(mode="json", exclude={"device"}),
        "device_model": device_model,
        "table": {"table_id": "a" * 64, "version": 7},
        "protocol": {
            "runtime": "litert", "runtime_version": "2.3.0", "delegate": "xnnpack", "precision": "float32",
            "threads": 1, "cores": "one_large", "stopping": {"confidence": 0.95},
        },
        "latency_bounds_ms": [50.0, 70.0],
        "stages": stages,
        "architectures": [
            {
                "name": str(place),
                "choices": dict(zip((layer.name for layer in space.layers), item.architecture, strict=True)),
                "predicted_latency": latency(item.latency_ms),
                "measured_latency": latency(1.02 * item.latency_ms) | {"verdict": "steady"},
                "one_shot_accuracy": item.accuracy,
                "one_shot_test_accuracy": item.accuracy - 0.01,
                "macs": network.macs,
                "parameters": network.parameters,
            }
            for place, (item, network) in enumerate(zip(found, networks, strict=True), start=1)
        ],
    }  # fmt: skip


def _make_imported(final: dict[str, Any]) -> None:
    files = [{"name": "theirs.csv", "sha256": "0" * 64}]
    source = {"files": files, "format": "csv", "imported_at": "2026-02-03T00:00:00Z", "stated_by": "its <b>authors</b>"}
    final |= {"table": {"imported": source, "content_sha256": "1" * 64}, "protocol": None}
    for one in final["architectures"]:
        one["measured_latency"] = None
        one["predicted_latency"] |= {"low_ms": None, "high_ms": None}

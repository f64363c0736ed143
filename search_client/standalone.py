"""Stand-alone training: architectures that a search found, trained from scratch, for what they are really worth.

Each has a directory with network.json, settings.json, training.jsonl, tensorboard/, checkpoint.safetensors,
weights.safetensors and, once it is finished, result.json.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from latency_contract.canonical import content_hash
from latency_contract.operators import Network
from search_client.analyses import accuracy_of
from search_client.ces import pareto_front
from search_client.data import ImageData
from search_client.durable_files import written_whole
from search_client.networks import build_network
from search_client.progress import ConsoleProgress
from search_client.run_directory import RunFiles, lock, save_epochs, write_json, write_or_match
from search_client.search_problem import Evaluated
from search_client.spaces import Architecture, SearchSpace
from search_client.tensorboard import tensorboard
from search_client.training import EpochRecord, TrainingRecipe, accuracy, train_network


@dataclass(frozen=True)
class Found:
    """An architecture that a search has evaluated."""

    name: str
    architecture: Architecture
    latency_ms: float  # predicted
    one_shot_accuracy: float  # or the published one


def final_architecture(run: RunFiles, name: str) -> Found:
    """One of the final architectures. Raises ValueError where there is none of this name."""
    final = run.architecture(name)
    predicted = final["predicted_latency"]
    return Found(name, tuple(final["choices"].values()), predicted["latency_ms"], accuracy_of(final))


def spread_along_front(evaluated: Sequence[Evaluated], *, count: int) -> list[Found]:
    """Architectures at about equal distances of latency on the Pareto front (section 4.3, Kendall Rank Analysis).

    Fewer than `count` where the front has fewer.
    """
    front = pareto_front(evaluated)
    low_ms, high_ms = front[0].latency_ms, front[-1].latency_ms
    chosen: list[Evaluated] = []
    for place in range(min(count, len(front))):
        wanted_ms = low_ms + (high_ms - low_ms) * place / max(count - 1, 1)
        rest = [item for item in front if item not in chosen]
        chosen.append(min(rest, key=lambda item: abs(item.latency_ms - wanted_ms)))
    chosen.sort(key=lambda item: item.latency_ms)
    return [
        Found(f"front-{place:02}", item.architecture, item.latency_ms, item.accuracy)
        for place, item in enumerate(chosen, start=1)
    ]


def train_alone(
    found: Found,
    space: SearchSpace,
    data: ImageData,
    *,
    recipe: TrainingRecipe,
    seed: int,
    directory: Path,
    progress: ConsoleProgress,
) -> dict[str, Any]:
    """Train one architecture and score it on the test images; killed and called again, it goes on where it was.

    The validation images are not trained on, so that one-shot and stand-alone accuracy are of the same images.

    Returns:
        What `result.json` holds.

    Raises:
        AnotherSearch: the directory was begun with other settings, or somebody trains in it.
        TrainingDiverged, InvalidCheckpoint: as `train_network`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    held = lock(directory)
    try:
        network = space.network(found.architecture)
        settings = asdict(recipe) | {"seed": seed, "network": network.id, "data_sha256": data.fingerprint}
        write_or_match(directory / "settings.json", settings)
        write_json(directory / "network.json", network.model_dump(mode="json"))
        result = directory / "result.json"
        if not result.exists():
            validation, test = _train_and_score(
                found.name, network, data, recipe=recipe, seed=seed, directory=directory, progress=progress
            )
            layers = (layer.name for layer in space.layers)
            document = {
                "name": found.name,
                "choices": dict(zip(layers, found.architecture, strict=True)),
                "one_shot_accuracy": found.one_shot_accuracy,
                "validation_accuracy": validation,
                "test_accuracy": test,
                "predicted_latency_ms": found.latency_ms,
                "macs": network.macs,
                "parameters": network.parameters,
            }
            write_json(result, document)  # the last file: where it is, the training is finished
        return dict(json.loads(result.read_text()))
    finally:
        os.close(held)


def _train_and_score(
    name: str,
    network: Network,
    data: ImageData,
    *,
    recipe: TrainingRecipe,
    seed: int,
    directory: Path,
    progress: ConsoleProgress,
) -> tuple[float, float]:
    """Accuracy on validation and on test images."""
    torch.manual_seed(int(content_hash([seed, "stand-alone weights"])[:8], 16))
    module = build_network(network).to("cuda" if torch.cuda.is_available() else "cpu")
    with (
        progress.task(f"training '{name}'", recipe.epochs) as advance,
        tensorboard(directory / "tensorboard") as log,
    ):

        def on_epoch(records: Sequence[EpochRecord]) -> None:
            save_epochs(directory, records)
            log(records[-1])
            last = records[-1]
            advance(last.epoch, f"loss {last.loss:.3f}, validation accuracy {last.validation_accuracy:.1%}")

        train_network(
            module, data, recipe=recipe, seed=seed, checkpoint=directory / "checkpoint.safetensors", on_epoch=on_epoch
        )
    with written_whole(directory / "weights.safetensors") as unfinished:
        save_file({key: value.contiguous() for key, value in module.state_dict().items()}, unfinished)
    return accuracy(module, data.validation), accuracy(module, data.test)

"""Stand-alone training: architectures that a search found, trained from scratch, for what they are really worth.

Each has a directory with network.json, settings.json, training.jsonl, tensorboard/, checkpoint.safetensors,
weights.safetensors and, once it is finished, result.json.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from latency_contract.canonical import content_hash
from latency_contract.operators import Network
from search_client.analyses import accuracy_of
from search_client.ces import pareto_front
from search_client.data import ImageData
from search_client.errors import AnotherSearch
from search_client.networks import build_network
from search_client.progress import ConsoleProgress
from search_client.run_directory import RunFiles, differences, lock, save_epochs, write_json
from search_client.search_problem import Evaluated
from search_client.spaces import Architecture, SearchSpace
from search_client.tensorboard import tensorboard
from search_client.training import EpochRecord, TrainingRecipe, accuracy, save_tensors, train_network

CHECKPOINT = "checkpoint.safetensors"


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

    Fewer than `count` where the front has fewer. An architecture has the same name however many there are.
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
        Found(f"front-{content_hash(item.architecture)[:8]}", item.architecture, item.latency_ms, item.accuracy)
        for item in chosen
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
        result = directory / "result.json"
        if result.exists() or (directory / CHECKPOINT).exists():
            _must_be_the_same(json.loads((directory / "settings.json").read_text()), settings, directory)
        else:  # until something is trained, settings may still be corrected
            write_json(directory / "settings.json", settings)
        write_json(directory / "network.json", network.model_dump(mode="json"))
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

        train_network(module, data, recipe=recipe, seed=seed, checkpoint=directory / CHECKPOINT, on_epoch=on_epoch)
    save_tensors(directory / "weights.safetensors", module.state_dict())
    return accuracy(module, data.validation), accuracy(module, data.test)


def _must_be_the_same(there: Mapping[str, Any], here: Mapping[str, Any], directory: Path) -> None:
    """Raises AnotherSearch."""
    if different := differences(there, here):
        raise AnotherSearch(
            f"{directory} was trained with other settings: {different}."
            " Use those to go on with it, remove it to begin anew, or use another --out."
        )

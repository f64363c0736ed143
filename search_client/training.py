"""Training of a supernet, one uniformly sampled path a step (Single Path One-Shot, Guo et al. 2019), or of one network.

The randomness of an epoch comes from (seed, epoch) alone and every epoch ends with a checkpoint, so training that is
killed at any moment and started again ends with the same weights, bit for bit.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from search_client.data import ImageData
from search_client.durable_files import written_whole
from search_client.errors import InvalidCheckpoint, TrainingDiverged
from search_client.gpu_memory import enough_gpu_memory
from search_client.images import ImageSet
from search_client.supernet import Supernet

SCORING_BATCH_SIZE = 250  # images; of no influence on the result
VALIDATION_STREAM = 1  # keeps the paths that are validated apart from those that are trained


@dataclass(frozen=True)
class TrainingRecipe:
    """Momentum SGD with a learning rate that falls linearly to 0. Defaults: section 4.1 of the paper."""

    epochs: int
    learning_rate: float  # of the first step
    batch_size: int = 1024
    momentum: float = 0.9
    weight_decay: float = 4e-5  # of every weight
    label_smoothing: float = 0.1
    max_gradient_norm: float | None = None  # None: gradients are not clipped

    def __post_init__(self) -> None:
        for name, value, valid in (
            ("epochs", self.epochs, self.epochs >= 1),
            ("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf),
            ("batch_size", self.batch_size, self.batch_size >= 2),
            ("momentum", self.momentum, 0 <= self.momentum < 1),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf),
            ("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1),
            ("max_gradient_norm", self.max_gradient_norm, self.max_gradient_norm is None or self.max_gradient_norm > 0),
        ):
            if not valid:
                raise ValueError(f"A training recipe cannot have {name} = {value}.")


@dataclass(frozen=True)
class EpochRecord:
    epoch: int  # counted from 1
    loss: float  # mean over the epoch's steps
    train_accuracy: float  # of the paths as they were trained, in [0, 1]
    validation_accuracy: float  # of a supernet: mean over paths sampled anew for every batch, with its statistics
    learning_rate: float  # of the epoch's last step
    seconds: float


OnEpoch = Callable[[Sequence[EpochRecord]], None]  # hears of all epochs so far, also of those that a checkpoint brings


def train_supernet(
    supernet: Supernet, data: ImageData, *, recipe: TrainingRecipe, seed: int, checkpoint: Path, on_epoch: OnEpoch
) -> None:
    """Train a supernet in place (line 1 or 8 of Algorithm 1), going on from `checkpoint` where it exists.

    Weights change only on the sampled path. The last batch of an epoch is dropped if it is incomplete, unless it is
    the only one.

    Raises:
        TrainingDiverged: the loss is not finite; the checkpoint of the last good epoch stays.
        InvalidCheckpoint: the checkpoint is damaged or belongs to another supernet.
    """

    def sampled_path(x: Tensor, rng: np.random.Generator) -> Tensor:
        return supernet(x, supernet.space.sample(rng))  # type: ignore[no-any-return]

    def validation_accuracy(rng: np.random.Generator) -> float:
        batches = _whole_batches(data.validation, recipe.batch_size)
        return _accuracy(batches, forward=lambda x: sampled_path(x, rng), device=_device(supernet))

    _train(
        supernet,
        data,
        forward=sampled_path,
        validate=validation_accuracy,
        recipe=recipe,
        seed=seed,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
    )


def train_network(
    network: nn.Module, data: ImageData, *, recipe: TrainingRecipe, seed: int, checkpoint: Path, on_epoch: OnEpoch
) -> None:
    """Train one network in place, from scratch, like a supernet in every other respect. Raises the same."""

    def validation_accuracy(_rng: np.random.Generator) -> float:
        return accuracy(network, data.validation)

    _train(
        network,
        data,
        forward=lambda x, _rng: network(x),
        validate=validation_accuracy,
        recipe=recipe,
        seed=seed,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
    )


def accuracy(network: nn.Module, images: ImageSet) -> float:
    """Share of images (0 to 1) that a trained network names correctly, with its running statistics."""
    network.eval()
    batches = images.batches(torch.arange(len(images.labels)), batch_size=SCORING_BATCH_SIZE)
    share = _accuracy(batches, forward=network, device=_device(network))
    network.train()
    return share


@enough_gpu_memory("Train with a smaller --batch-size and learning rates smaller by the same factor, in another --out.")
def _train(
    module: nn.Module,
    data: ImageData,
    *,
    forward: Callable[[Tensor, np.random.Generator], Tensor],
    validate: Callable[[np.random.Generator], float],
    recipe: TrainingRecipe,
    seed: int,
    checkpoint: Path,
    on_epoch: OnEpoch,
) -> None:
    device = _device(module)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # in the stubs, only for tensors
    optimizer = torch.optim.SGD(
        module.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    records = _restore(checkpoint, module, optimizer) if checkpoint.exists() else []
    if records:
        on_epoch(records)
    images = len(data.train.labels)
    batch_size = min(recipe.batch_size, images)
    steps = images // batch_size  # of one epoch
    module.train()
    for epoch in range(len(records) + 1, recipe.epochs + 1):
        started = time.perf_counter()
        rng = np.random.default_rng([seed, epoch])
        order = torch.from_numpy(rng.permutation(images)[: steps * batch_size])
        batches = data.train.augmented_batches(order, batch_size=batch_size, seed=[seed, epoch])
        loss_sum, correct = 0.0, 0
        for step, (images_of_batch, labels) in enumerate(batches):
            x, y = images_of_batch.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            rate = learning_rate(recipe, step=(epoch - 1) * steps + step, total_steps=recipe.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            # A GPU computes convolutions in bfloat16 about twice as fast; a CPU stays at float32.
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                logits = forward(x, rng)
                loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
            loss_value = loss.item()
            if not math.isfinite(loss_value):
                raise TrainingDiverged(
                    f"The loss became {loss_value} in epoch {epoch}, step {step + 1} (learning rate {rate:.4g},"
                    f" batch size {batch_size}). Try a learning rate a few times smaller, or a larger batch."
                )
            optimizer.zero_grad(set_to_none=True)  # no gradient, no step: other paths neither decay nor coast
            loss.backward()  # type: ignore[no-untyped-call]
            if recipe.max_gradient_norm is not None:
                nn.utils.clip_grad_norm_(module.parameters(), recipe.max_gradient_norm)
            optimizer.step()
            loss_sum += loss_value
            correct += int((logits.argmax(dim=1) == y).sum())
        record = EpochRecord(
            epoch=epoch,
            loss=loss_sum / steps,
            train_accuracy=correct / (steps * batch_size),
            validation_accuracy=validate(np.random.default_rng([seed, epoch, VALIDATION_STREAM])),
            learning_rate=rate,
            seconds=time.perf_counter() - started,
        )
        records = [*records, record]
        _save(checkpoint, module, optimizer, records=records)
        on_epoch(records)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _whole_batches(images: ImageSet, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Without an incomplete last one, whose statistics would be another; at least one."""
    count = len(images.labels)
    batch_size = min(batch_size, count)
    return images.batches(torch.arange(count // batch_size * batch_size), batch_size=batch_size)


@torch.no_grad()
def _accuracy(
    batches: Iterator[tuple[Tensor, Tensor]], *, forward: Callable[[Tensor], Tensor], device: torch.device
) -> float:
    correct, count = 0, 0
    for x, labels in batches:
        predictions = forward(x.to(device)).argmax(dim=1).cpu()
        correct += int((predictions == labels).sum())
        count += len(labels)
    return correct / count


def learning_rate(recipe: TrainingRecipe, *, step: int, total_steps: int) -> float:
    """Linear from the recipe's learning rate at step 0 to 0 after the last step."""
    return recipe.learning_rate * (1 - step / total_steps)


def _save(checkpoint: Path, module: nn.Module, optimizer: torch.optim.SGD, *, records: Sequence[EpochRecord]) -> None:
    """Write weights and momentum; whenever the machine stops, the old or the new checkpoint is there, whole."""
    tensors = {f"weights.{name}": value for name, value in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        if parameter in optimizer.state:  # a choice that no step has sampled has no momentum
            tensors[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"]
    save_tensors(checkpoint, tensors, metadata={"records": json.dumps([asdict(record) for record in records])})


def save_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None) -> None:
    """A file written whole or not at all. Raises OSError."""
    try:
        with written_whole(path) as unfinished:
            save_file({name: value.contiguous() for name, value in tensors.items()}, unfinished, metadata=metadata)
    except SafetensorError as error:
        raise OSError(
            f"{path} cannot be written: {error}. What was trained before stays; the same command goes on from there."
        ) from error


def weights_in(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict among the tensors of a checkpoint."""
    prefix = "weights."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore(checkpoint: Path, module: nn.Module, optimizer: torch.optim.SGD) -> list[EpochRecord]:
    """Load weights and momentum; the epochs that they have behind them."""
    try:
        with safe_open(checkpoint, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            records = [EpochRecord(**record) for record in json.loads(file.metadata()["records"])]
        module.load_state_dict(weights_in(tensors))
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise InvalidCheckpoint(
            f"Training cannot go on from {checkpoint}: {error}. Delete the file to train from the start."
        ) from error
    for name, parameter in module.named_parameters():
        if (momentum := tensors.get(f"momentum.{name}")) is not None:
            kept = torch.empty_like(parameter)  # in the parameter's own memory format
            optimizer.state[parameter]["momentum_buffer"] = kept.copy_(momentum)
    return records

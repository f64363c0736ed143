"""Training of a supernet: one uniformly sampled path a step (Single Path One-Shot, Guo et al. 2019).

The randomness of an epoch comes from (seed, epoch) alone and every epoch ends with a checkpoint, so training that is
killed at any moment and started again ends with the same weights, bit for bit.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from search_client.data import ImageData
from search_client.durable_files import written_whole
from search_client.errors import InvalidCheckpoint, TrainingDiverged
from search_client.supernet import Supernet


@dataclass(frozen=True)
class TrainingRecipe:
    """Momentum SGD with a learning rate that falls linearly to 0. Defaults: section 4.1 of the paper."""

    epochs: int
    learning_rate: float  # of the first step
    batch_size: int = 1024
    momentum: float = 0.9
    weight_decay: float = 4e-5  # of every weight
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        for name, value, valid in (
            ("epochs", self.epochs, self.epochs >= 1),
            ("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf),
            ("batch_size", self.batch_size, self.batch_size >= 2),
            ("momentum", self.momentum, 0 <= self.momentum < 1),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf),
            ("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1),
        ):
            if not valid:
                raise ValueError(f"A training recipe cannot have {name} = {value}.")


@dataclass(frozen=True)
class EpochRecord:
    epoch: int  # counted from 1
    loss: float  # mean over the epoch's steps
    train_accuracy: float  # of the sampled paths, in [0, 1]
    learning_rate: float  # of the epoch's last step
    seconds: float


def train_supernet(
    supernet: Supernet,
    data: ImageData,
    *,
    recipe: TrainingRecipe,
    seed: int,
    checkpoint: Path,
    on_epoch: Callable[[EpochRecord], None],
) -> None:
    """Train in place (line 1 or 8 of Algorithm 1), going on from `checkpoint` where it exists.

    Weights change only on the sampled path. The last batch of an epoch is dropped if it is incomplete, unless it is
    the only one. `on_epoch` hears of every epoch that this call trains, after its checkpoint is on disk.

    Raises:
        TrainingDiverged: the loss is not finite; the checkpoint of the last good epoch stays.
        InvalidCheckpoint: the checkpoint is damaged or belongs to another supernet.
    """
    device = next(supernet.parameters()).device
    optimizer = torch.optim.SGD(
        supernet.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    epochs_done = _restore(checkpoint, supernet, optimizer) if checkpoint.exists() else 0
    images = len(data.train.labels)
    batch_size = min(recipe.batch_size, images)
    steps = images // batch_size  # of one epoch
    supernet.train()
    for epoch in range(epochs_done + 1, recipe.epochs + 1):
        started = time.perf_counter()
        rng = np.random.default_rng([seed, epoch])
        order = torch.from_numpy(rng.permutation(images)[: steps * batch_size])
        batches = data.train.augmented_batches(order, batch_size=batch_size, seed=[seed, epoch])
        loss_sum, correct = 0.0, 0
        for step, (images_of_batch, labels) in enumerate(batches):
            x, y = images_of_batch.to(device), labels.to(device)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step=(epoch - 1) * steps + step, total_steps=recipe.epochs * steps)
            logits = supernet(x, supernet.space.sample(rng))
            loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
            loss_value = loss.item()
            if not math.isfinite(loss_value):
                raise TrainingDiverged(
                    f"The loss became {loss_value} in epoch {epoch}, step {step + 1} (learning rate"
                    f" {optimizer.param_groups[0]['lr']:.4g}, batch size {batch_size})."
                    " Try a learning rate a few times smaller, or a larger batch."
                )
            optimizer.zero_grad(set_to_none=True)  # no gradient, no step: other paths neither decay nor coast
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += loss_value
            correct += int((logits.argmax(dim=1) == y).sum())
        _save(checkpoint, supernet, optimizer, epoch=epoch)
        on_epoch(
            EpochRecord(
                epoch=epoch,
                loss=loss_sum / steps,
                train_accuracy=correct / (steps * batch_size),
                learning_rate=optimizer.param_groups[0]["lr"],
                seconds=time.perf_counter() - started,
            )
        )


def learning_rate(recipe: TrainingRecipe, *, step: int, total_steps: int) -> float:
    """Linear from the recipe's learning rate at step 0 to 0 after the last step."""
    return recipe.learning_rate * (1 - step / total_steps)


def _save(checkpoint: Path, supernet: Supernet, optimizer: torch.optim.SGD, *, epoch: int) -> None:
    """Write weights and momentum; whenever the machine stops, the old or the new checkpoint is there, whole."""
    tensors = {f"weights.{name}": value for name, value in supernet.state_dict().items()}
    for name, parameter in supernet.named_parameters():
        if parameter in optimizer.state:  # a choice that no step has sampled has no momentum
            tensors[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"].contiguous()
    try:
        with written_whole(checkpoint) as unfinished:
            save_file(tensors, unfinished, metadata={"epoch": str(epoch)})
    except SafetensorError as error:
        raise OSError(f"{checkpoint} cannot be written: {error}. The checkpoint of the last epoch stays.") from error


def _restore(checkpoint: Path, supernet: Supernet, optimizer: torch.optim.SGD) -> int:
    """Load weights and momentum; the number of epochs that they have behind them."""
    try:
        with safe_open(checkpoint, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            epoch = int(file.metadata()["epoch"])
        weights = {
            name.removeprefix("weights."): value for name, value in tensors.items() if name.startswith("weights.")
        }
        supernet.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise InvalidCheckpoint(
            f"Training cannot go on from {checkpoint}: {error}. Delete the file to train this stage from its start."
        ) from error
    for name, parameter in supernet.named_parameters():
        if (momentum := tensors.get(f"momentum.{name}")) is not None:
            optimizer.state[parameter]["momentum_buffer"] = momentum.to(parameter.device)
    return epoch

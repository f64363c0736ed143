"""Training curves for TensorBoard: `tensorboard --logdir runs`. The numbers themselves are in `training.jsonl`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tensorboardX import SummaryWriter

from search_client.training import EpochRecord


@contextmanager
def tensorboard(directory: Path) -> Iterator[Callable[[EpochRecord], None]]:
    """What to tell of every epoch. A training that goes on adds another file of events to the directory."""
    # The library names files by the second: trainings that go on within one would write over each other's.
    with SummaryWriter(str(directory), filename_suffix=f".{time.time_ns()}") as writer:

        def log(record: EpochRecord) -> None:
            writer.add_scalar("loss/train", record.loss, record.epoch)
            writer.add_scalar("accuracy/train", record.train_accuracy, record.epoch)
            writer.add_scalar("accuracy/validation", record.validation_accuracy, record.epoch)
            writer.add_scalar("learning_rate", record.learning_rate, record.epoch)

        yield log

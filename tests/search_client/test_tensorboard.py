from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from search_client.tensorboard import tensorboard
from search_client.training import EpochRecord


def test_tensorboard_reads_the_curves_of_a_training_that_went_on(tmp_path: Path) -> None:
    for epoch in (1, 2):  # each by a process of its own
        with tensorboard(tmp_path) as log:
            log(EpochRecord(epoch, 2.0 / epoch, 0.25, 0.5 * epoch, 0.125, seconds=1.0))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert curves == {
        "loss/train": [(1, 2.0), (2, 1.0)],
        "accuracy/train": [(1, 0.25), (2, 0.25)],
        "accuracy/validation": [(1, 0.5), (2, 1.0)],
        "learning_rate": [(1, 0.125), (2, 0.125)],
    }

"""Where the accuracies of a search come from: a supernet that is trained for every stage, or a published table."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from latency_contract.canonical import content_hash
from search_client.config import SearchConfig
from search_client.decoding import DecodingPass
from search_client.known_optimum import KnownOptimum
from search_client.oracle import AccuracyOracle, SupernetOracle
from search_client.progress import ConsoleProgress
from search_client.run_directory import RunDirectory
from search_client.search_problem import AdditiveLatency, Evaluated, LatencyBounds
from search_client.spaces import SearchSpace
from search_client.supernet import Supernet
from search_client.tabular_oracle import load_oracle
from search_client.tensorboard import tensorboard
from search_client.training import EpochRecord, train_supernet
from search_client.worker_processes import cores

ORACLE_BATCH_SIZE = 64  # images that pass through a candidate at a time; 128 of the demo's take half again as long


class TrainedSupernets:
    """One-shot accuracies of supernets, each of which inherits the weights of the one before."""

    def __init__(
        self,
        config: SearchConfig,
        directory: RunDirectory,
        progress: ConsoleProgress,
        *,
        between_epochs: Callable[[], None],
    ) -> None:
        """Loads the images. Raises InvalidData, or AnotherSearch where the directory was begun with other images."""

        def keep(found: DecodingPass) -> None:
            directory.save_decoding(found)
            if found.damaged:
                progress.say(f"{directory.path / 'decoding.json'} names all images that do not decode.")

        self.data = config.load_data(
            input_size=config.load_space().stem.height, known=directory.decoding(), on_decoded=keep, progress=progress
        )
        directory.record_data(self.data.record())
        self.space = config.load_space(classes=self.data.classes)
        self.fingerprint = self.data.fingerprint
        self.description = f"on {self.data.name} ({len(self.data.train.labels):,} training images)"
        self._config = config
        self._directory = directory
        self._progress = progress
        self._between_epochs = between_epochs
        self._supernet: Supernet | None = None  # of the last stage

    def oracle(self, number: int, space: SearchSpace) -> SupernetOracle:
        """Train the supernet of a stage (lines 1 and 8 of Algorithm 1), and ask it."""
        torch.manual_seed(stage_seed(self._config, "initial weights", number))
        supernet = Supernet(space)
        if self._supernet is not None:
            supernet.inherit(self._supernet)
        self._supernet = supernet.to("cuda" if torch.cuda.is_available() else "cpu")
        self._train(number)
        return self._asked("validation")

    def of_finals(self, finals: Sequence[Evaluated]) -> list[dict[str, float]]:
        """What `final.json` says of the accuracy of each."""
        tested = self._asked("test").evaluate([item.architecture for item in finals])
        return [
            {"one_shot_accuracy": item.accuracy, "one_shot_test_accuracy": test_accuracy}
            for item, test_accuracy in zip(finals, tested, strict=True)
        ]

    def in_hindsight(self, found: Sequence[Evaluated], **_: Any) -> dict[str, float]:  # noqa: ARG002
        """Nothing: the best that there is, is not known."""
        return {}

    def _train(self, number: int) -> None:
        assert self._supernet is not None
        stage, recipe = self._directory.stage(number), self._config.training(number)
        # One core stays free for an agent on this machine, which measures meanwhile: threads that wait for each other
        # on a core that is taken train several times more slowly. The search has all cores, as the table is complete.
        threads = torch.get_num_threads()
        torch.set_num_threads(min(threads, max(1, cores() - 1)))
        with (
            self._progress.task(f"stage {number}: training", recipe.epochs) as advance,
            tensorboard(self._directory.tensorboard / f"stage-{number}") as log,
        ):

            def on_epoch(records: Sequence[EpochRecord]) -> None:
                stage.save_epochs(records)
                log(records[-1])
                advance(records[-1].epoch, f"loss {records[-1].loss:.3f}, accuracy {records[-1].train_accuracy:.1%}")
                self._between_epochs()

            train_supernet(
                self._supernet,
                self.data,
                recipe=recipe,
                seed=stage_seed(self._config, "training", number),
                checkpoint=stage.checkpoint,
                on_epoch=on_epoch,
            )
        torch.set_num_threads(threads)

    def _asked(self, split: Literal["validation", "test"]) -> SupernetOracle:
        assert self._supernet is not None
        return SupernetOracle(
            self._supernet,
            self.data,
            calibration_images=self._config.calibration_images,
            batch_size=ORACLE_BATCH_SIZE,
            memory_mb=self._config.evaluation_memory_mb,
            split=split,
            seed=self._config.seed,
        )


class PublishedTable:
    """Accuracies that somebody else published: nothing is trained, and the best that there is, is known."""

    def __init__(self, config: SearchConfig, directory: RunDirectory) -> None:
        """Raises InvalidData, or AnotherSearch where the directory was begun with another table."""
        assert config.oracle is not None
        self.space = config.load_space()
        self._table = load_oracle(config.oracle, self.space)
        directory.record_data({"name": self._table.name, "sha256": self._table.fingerprint})
        self.fingerprint = self._table.fingerprint
        self.description = f"with the accuracies of {self._table.name}"

    def oracle(self, number: int, space: SearchSpace) -> AccuracyOracle:  # noqa: ARG002
        return self._table

    def of_finals(self, finals: Sequence[Evaluated]) -> list[dict[str, float]]:
        return [{"accuracy": item.accuracy} for item in finals]

    def in_hindsight(
        self, found: Sequence[Evaluated], *, latency: AdditiveLatency, bounds: LatencyBounds
    ) -> dict[str, float]:
        """How far what was found is from the best of the whole space within the bounds."""
        optimum = KnownOptimum.of(self.space, latency=latency, oracle=self._table, bounds=bounds)
        return {"regret": optimum.regret(found), "hypervolume_ratio": optimum.hypervolume_ratio(found)}


def stage_seed(config: SearchConfig, purpose: str, stage: int) -> int:
    """A random stream of its own for every purpose and stage."""
    return int(content_hash([config.seed, purpose, stage])[:8], 16)

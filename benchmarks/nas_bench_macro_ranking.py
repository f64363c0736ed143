"""Does pruning the space make a supernet rank networks better? Kendall's tau against the accuracies of NAS-Bench-Macro.

I-, P- and PAD-Supernet (2, 3 and 4 stages) are trained on CIFAR-10 for equally many epochs in all, then rank the same
sample of distinct architectures, all from the space that PAD-NAS designed, by one-shot accuracy; the truth is the
published accuracy after stand-alone training. P and PAD share their first stage. Where there is a GPU, the recipe is
the paper's and the results file is NAME.gpu.json; on a CPU, images are smaller, channels fewer and epochs fewer
(`settings` says how). Searches are constrained by MACs, in the middle third. Figures (range: over seeds):

    tau_i, tau_p, tau_pad          Kendall's tau over the sample
    tau_macs, tau_parameters       of these alone, over the same sample: the floor
    tau_i_everywhere               I-Supernet over a sample of the whole space
    tau_macs_everywhere            MACs alone over that sample
    size_p, size_pad               architectures left in the pruned spaces, of 6,561
    accuracy_i, accuracy_p, accuracy_pad    mean one-shot accuracy over the sample
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau

from benchmarks.additive_macs import additive_macs
from benchmarks.results_file import Figure, record
from benchmarks.shared_data import shared_file
from search_client.ces import constrained_evolutionary_search
from search_client.data import ImageData, load_data
from search_client.oracle import SupernetOracle
from search_client.pad_nas import latency_bounds
from search_client.pruning import operator_distribution, prune
from search_client.search_problem import SearchBudget, SearchProblem
from search_client.spaces import Architecture, SearchSpace, load_space
from search_client.supernet import Supernet
from search_client.tabular_oracle import distinct_architectures
from search_client.training import EpochRecord, TrainingRecipe, train_supernet

SEEDS = (0, 1, 2)
SAMPLE = 100  # architectures
FIRST_LEARNING_RATE = 0.5 / 1024  # for each image of a batch, as in the paper
LATER_LEARNING_RATE = 0.1 / 1024


@dataclass(frozen=True)
class Scale:
    input_size: int  # pixels of a side
    width: float
    train_per_class: int | None  # images; None: all
    validation_per_class: int
    calibration_images: int
    batch_size: int
    epochs: int  # in all: I trains so many, P twice a half, PAD a half, a third and a sixth
    population: int
    iterations: int


IN_FULL = Scale(32, 1.0, None, 500, 2048, 256, 240, 64, 20)
ON_A_CPU = Scale(16, 0.5, 500, 50, 512, 128, 36, 24, 8)
QUICK = Scale(16, 0.5, 30, 10, 64, 64, 6, 8, 2)


def run(*, quick: bool) -> None:
    bundle, table = shared_file("cifar10_full_jpegbytes.npz"), shared_file("nas-bench-macro_cifar10.json")
    gpu = torch.cuda.is_available()
    scale = QUICK if quick else IN_FULL if gpu else ON_A_CPU
    published = {digits: entry["mean_acc"] for digits, entry in json.loads(table.read_text()).items()}
    figures: dict[str, list[float]] = {}
    for seed in SEEDS[: 1 if quick else None]:
        data = load_data(
            f"cifar10:{bundle}",
            input_size=scale.input_size,
            validation_per_class=scale.validation_per_class,
            train_per_class=scale.train_per_class,
            seed=seed,
        )
        for name, value in _Trial(scale, data, published, seed).figures().items():
            figures.setdefault(name, []).append(value)
            print(f"seed {seed}: {name} {value:.4g}", flush=True)
    units = {"size": "architectures", "accuracy": "share"}
    record(
        "nas_bench_macro_ranking.gpu" if gpu else "nas_bench_macro_ranking",
        settings={"seeds": list(SEEDS), "sample": SAMPLE, "data": "CIFAR-10 as JPEG of quality 75"} | asdict(scale),
        figures={name: Figure.over(values, units.get(name.split("_")[0], "tau")) for name, values in figures.items()},
        save=not quick,
    )


@dataclass(frozen=True)
class _Trial:
    """The three supernets of one seed."""

    scale: Scale
    data: ImageData
    published: dict[str, float]  # architecture string -> accuracy in percent
    seed: int

    def figures(self) -> dict[str, float]:
        space = load_space("nas-bench-macro", input_size=self.scale.input_size, width=self.scale.width)
        epochs = self.scale.epochs
        initial = self._trained(space, parent=None, epochs=epochs)
        first = self._trained(space, parent=None, epochs=epochs // 2)
        pruned = self._pruned(first)
        once = self._trained(pruned, parent=first, epochs=epochs // 2)
        second = self._trained(pruned, parent=first, epochs=epochs // 3)
        designed = self._pruned(second)
        twice = self._trained(designed, parent=second, epochs=epochs // 6)

        sample, everywhere = self._sample(designed), self._sample(space)
        truth, truth_everywhere = self._truth(space, sample), self._truth(space, everywhere)
        networks = [space.network(architecture) for architecture in sample]
        accuracies = {
            name: self._oracle(supernet).evaluate(sample)
            for name, supernet in (("i", initial), ("p", once), ("pad", twice))
        }
        return {
            **{f"tau_{name}": _tau(of_sample, truth) for name, of_sample in accuracies.items()},
            "tau_macs": _tau([network.macs for network in networks], truth),
            "tau_parameters": _tau([network.parameters for network in networks], truth),
            "tau_i_everywhere": _tau(self._oracle(initial).evaluate(everywhere), truth_everywhere),
            "tau_macs_everywhere": _tau([space.network(one).macs for one in everywhere], truth_everywhere),
            "size_p": pruned.size,
            "size_pad": designed.size,
            **{f"accuracy_{name}": float(np.mean(of_sample)) for name, of_sample in accuracies.items()},
        }

    def _trained(self, space: SearchSpace, *, parent: Supernet | None, epochs: int) -> Supernet:
        torch.manual_seed(self.seed)
        supernet = Supernet(space)
        if parent is not None:
            supernet.inherit(parent)
        supernet.to("cuda" if torch.cuda.is_available() else "cpu")
        rate = self.scale.batch_size * (FIRST_LEARNING_RATE if parent is None else LATER_LEARNING_RATE)

        def on_epoch(records: Sequence[EpochRecord]) -> None:
            last = records[-1]
            print(f"  epoch {last.epoch} of {epochs}: loss {last.loss:.3f}, {last.seconds:.0f} s", flush=True)

        with tempfile.TemporaryDirectory() as folder:
            train_supernet(
                supernet,
                self.data,
                recipe=TrainingRecipe(epochs=epochs, learning_rate=rate, batch_size=self.scale.batch_size),
                seed=self.seed,
                checkpoint=Path(folder) / "checkpoint",
                on_epoch=on_epoch,
            )
        return supernet

    def _oracle(self, supernet: Supernet) -> SupernetOracle:
        return SupernetOracle(supernet, self.data, calibration_images=self.scale.calibration_images, seed=self.seed)

    def _pruned(self, supernet: Supernet) -> SearchSpace:
        """Lines 3 to 7 of Algorithm 1, in the middle third of what the whole space attains."""
        space = supernet.space
        whole = load_space("nas-bench-macro", input_size=self.scale.input_size, width=self.scale.width)
        bounds = latency_bounds(None, None, attainable_ms=additive_macs(whole).attainable())
        budget = SearchBudget(self.scale.population, self.scale.iterations)
        evaluated = constrained_evolutionary_search(
            SearchProblem(space, additive_macs(space), self._oracle(supernet), bounds, budget),
            seed=self.seed,
            on_generation=lambda _generation, _newest: None,
        )
        return prune(space, operator_distribution(space, evaluated))

    def _sample(self, space: SearchSpace) -> list[Architecture]:
        distinct = distinct_architectures(space)
        chosen = np.random.default_rng(self.seed).permutation(len(distinct))[:SAMPLE]
        return [distinct[index] for index in chosen]

    def _truth(self, space: SearchSpace, architectures: Sequence[Architecture]) -> list[float]:
        strings = [
            "".join(str(layer.choices.index(choice)) for layer, choice in zip(space.layers, architecture, strict=True))
            for architecture in architectures
        ]
        return [self.published[string] for string in strings]


def _tau(one: Sequence[float], other: Sequence[float]) -> float:
    return float(kendalltau(one, other).statistic)

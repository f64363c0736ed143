"""Does a supernet train as fast as networks? Its steps against a plain loop over networks of the same architectures.

Between two epochs of `train_supernet`, networks of the very architectures that it has just trained take one step each,
on as many of the same images, each with an optimizer of its own. Ratios are images per second of the supernet's steps
over those of the plain steps that follow; the first epochs, in which memory is allocated, are left out. Figures:

    step_ratio             in `basic`
    step_ratio_small       in `nas-bench-macro`
    step_ratio_compiled    there, with every operator of the supernet compiled by torch.compile; the networks are not
    compile_s              what compiling took: the first epochs' time beyond that of the last ones
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.results_file import Figure, Target, record
from search_client.data import ImageData, load_data
from search_client.networks import build_network
from search_client.spaces import Architecture, SearchSpace, load_space
from search_client.supernet import Supernet
from search_client.training import EpochRecord, TrainingRecipe, train_supernet

REPETITIONS = 5  # epochs that count
REHEARSALS = 4  # epochs before: by then nearly every operator was trained and validated
BATCH_SIZE = 32
INPUT_SIZE = 96  # pixels of a side, in `basic`


def run(*, quick: bool) -> None:
    input_size = 32 if quick else INPUT_SIZE
    repetitions = 2 if quick else REPETITIONS
    small = load_space("nas-bench-macro")
    ratios = {
        "step_ratio": _Epochs(load_space("basic", input_size=input_size, classes=10), repetitions).ratios(),
        "step_ratio_small": _Epochs(small, repetitions).ratios(),
    }
    compiled = _Epochs(small, repetitions, compiled=True)
    ratios["step_ratio_compiled"] = compiled.ratios()
    figures = {name: Figure.over(values, "ratio") for name, values in ratios.items()}
    record(
        "supernet_step.gpu" if torch.cuda.is_available() else "supernet_step",
        settings={
            "input_size": input_size,
            "batch_size": BATCH_SIZE,
            "repetitions": repetitions,
            "threads": torch.get_num_threads(),
        },
        figures=figures | {"compile_s": Figure.over([compiled.excess_s()], "s")},
        targets={"step_ratio": Target(">=", 0.95)},
        save=not quick,
    )


class _Recording(Supernet):
    """Remembers which paths were trained."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space)
        self.trained: list[Architecture] = []

    def forward(self, x: Tensor, architecture: Architecture) -> Tensor:
        if torch.is_grad_enabled():
            self.trained.append(architecture)
        return super().forward(x, architecture)


class _Epochs:
    """One training of a supernet, and plain steps between its epochs."""

    def __init__(self, space: SearchSpace, repetitions: int, *, compiled: bool = False) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._supernet = _Recording(space).to(device)
        if compiled:
            torch._dynamo.config.recompile_limit = 1000  # all operators share the code of one `forward`
            operators = [choice for layer in self._supernet.layers for choice in layer.children()]
            for module in (self._supernet.stem, *operators, self._supernet.head):
                module.compile()
        # Validation, of the time of an epoch too, is on one image of each class.
        self._data = load_data(
            "digits", input_size=space.stem.height, validation_per_class=1, train_per_class=50, seed=0
        )
        self.supernet_s: list[float] = []
        self.plain_s: list[float] = []
        with tempfile.TemporaryDirectory() as folder:
            train_supernet(
                self._supernet,
                self._data,
                recipe=TrainingRecipe(REHEARSALS + repetitions, learning_rate=0.01, batch_size=BATCH_SIZE),
                seed=0,
                checkpoint=Path(folder) / "checkpoint",
                on_epoch=self._plain_steps,
            )

    def ratios(self) -> list[float]:
        pairs = zip(self.plain_s[REHEARSALS:], self.supernet_s[REHEARSALS:], strict=True)
        return [plain_s / supernet_s for plain_s, supernet_s in pairs]

    def excess_s(self) -> float:
        return sum(self.supernet_s[:REHEARSALS]) - REHEARSALS * median(self.supernet_s[REHEARSALS:])

    def _plain_steps(self, records: Sequence[EpochRecord]) -> None:
        self.supernet_s.append(records[-1].seconds)
        trained, self._supernet.trained = self._supernet.trained, []
        self.plain_s.append(_plain_steps_s(self._supernet.space, trained, self._data))


def _plain_steps_s(space: SearchSpace, architectures: Sequence[Architecture], data: ImageData) -> float:
    """Seconds of one step of each network. Its first step, which allocates memory, is not the one that counts."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    networks = [build_network(space.network(architecture), affine=False) for architecture in architectures]
    for network in networks:
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizers = [
        torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=4e-5) for network in networks
    ]
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        order = torch.randperm(len(data.train.labels))[: len(architectures) * BATCH_SIZE]
        batches = data.train.augmented_batches(order, batch_size=BATCH_SIZE, seed=[0])
        for network, optimizer, (x, y) in zip(networks, optimizers, batches, strict=True):
            _plain_step(network, optimizer, x.to(device), y.to(device))
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return seconds


def _plain_step(network: nn.Module, optimizer: torch.optim.SGD, x: Tensor, y: Tensor) -> None:
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=x.device.type == "cuda"):
        loss = F.cross_entropy(network(x), y, label_smoothing=0.1)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()

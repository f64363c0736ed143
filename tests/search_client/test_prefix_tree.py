import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from latency_contract.operators import Network
from search_client.networks import InvertedBottleneck
from search_client.prefix_tree import PrefixTree
from search_client.spaces import IDENTITY, Architecture, SearchSpace, load_space
from search_client.supernet import Supernet

BATCH_SIZE = 16
PLENTY = 10**9  # bytes; more than all outputs of these networks


@pytest.fixture(params=["tiny.toml", "tiny_se.toml"])
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return load_space(str(Path(__file__).with_name(request.param)))


@pytest.fixture
def supernet(space: SearchSpace) -> Supernet:
    torch.manual_seed(0)
    return Supernet(space)


@pytest.fixture
def batches(space: SearchSpace) -> list[Tensor]:
    """The last one is smaller."""
    images = torch.randn(2 * BATCH_SIZE + 5, 3, space.stem.height, space.stem.width)
    return list(torch.split(images.contiguous(memory_format=torch.channels_last), BATCH_SIZE))


def population(space: SearchSpace, *, size: int = 20, seed: int = 0) -> list[Architecture]:
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(size)]


@torch.no_grad()
def alone(supernet: Supernet, architecture: Architecture, batches: Sequence[Tensor]) -> list[Tensor]:
    """Logits of one candidate that was calibrated on the same batches, by `Supernet.candidate`."""
    candidate = supernet.candidate(architecture).train()
    for batch in batches:
        candidate(batch)
    candidate.eval()
    return [candidate(batch) for batch in batches]


@torch.no_grad()
def together(
    supernet: Supernet, architectures: Sequence[Architecture], batches: Sequence[Tensor], *, held_bytes: int = PLENTY
) -> dict[Architecture, list[Tensor]]:
    tree = PrefixTree(supernet, architectures, batch_size=BATCH_SIZE, held_bytes=held_bytes)
    tree.calibrate(batches)
    logits: dict[Architecture, list[Tensor]] = {}
    for batch in batches:
        for architecture, output in tree.logits(batch):
            logits.setdefault(architecture, []).append(output)
    return logits


def identical(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@contextmanager
def watched_outputs() -> Iterator[list[int]]:
    """Bytes of all operators' outputs that are alive whenever an operator starts, its own input left out."""
    alive: list[weakref.ref[Tensor]] = []
    held_bytes: list[int] = []

    def is_operator(module: nn.Module) -> bool:
        stem = isinstance(module, nn.Sequential) and next(iter(module.named_children()))[0] == "conv"
        return stem or isinstance(module, InvertedBottleneck)

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if is_operator(module):
            outputs = {id(output): output for one in alive if (output := one()) is not None}
            outputs.pop(id(inputs[0]), None)
            held_bytes.append(sum(output.nbytes for output in outputs.values()))

    def after(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if is_operator(module):
            alive.append(weakref.ref(output))

    hooks = [register_module_forward_pre_hook(before), register_module_forward_hook(after)]
    try:
        yield held_bytes
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_computed_together_is_what_each_candidate_computes_alone_to_the_last_bit(
    space: SearchSpace, supernet: Supernet, batches: list[Tensor], seed: int
) -> None:
    architectures = population(space, seed=seed)
    logits = together(supernet, architectures, batches)
    assert logits.keys() == set(architectures)
    assert all(identical(logits[one], alone(supernet, one, batches)) for one in architectures)


@pytest.mark.parametrize("held_kb", [0, 1, 3, 10, 30, 100])
def test_less_memory_holds_less_and_changes_no_bit(
    space: SearchSpace, supernet: Supernet, batches: list[Tensor], held_kb: int
) -> None:
    architectures = population(space)
    unlimited = together(supernet, architectures, batches)
    with watched_outputs() as held_bytes:
        limited = together(supernet, architectures, batches, held_bytes=held_kb * 1000)
    assert max(held_bytes) <= held_kb * 1000
    assert all(identical(limited[one], unlimited[one]) for one in architectures)


def test_an_output_is_held_where_there_is_memory_for_it(
    space: SearchSpace, supernet: Supernet, batches: list[Tensor]
) -> None:
    """Otherwise the test before this one would be blind."""
    with watched_outputs() as held_bytes:
        together(supernet, population(space), batches)
    assert max(held_bytes) > 30_000


def test_every_prefix_is_computed_once_where_memory_allows(space: SearchSpace, supernet: Supernet) -> None:
    architectures = population(space)
    prefixes = set()
    for architecture in architectures:
        chosen = [(layer, choice) for layer, choice in enumerate(architecture) if choice != IDENTITY]
        prefixes |= {tuple(chosen[:length]) for length in range(len(chosen) + 1)}  # the empty one is the stem
    tree = PrefixTree(supernet, architectures, batch_size=BATCH_SIZE, held_bytes=PLENTY)
    assert tree.operators == len(prefixes) + len(set(architectures))  # each has a head


def test_without_memory_every_architecture_is_computed_alone(space: SearchSpace, supernet: Supernet) -> None:
    architectures = set(population(space))
    tree = PrefixTree(supernet, architectures, batch_size=BATCH_SIZE, held_bytes=0)
    networks: list[Network] = [space.network(architecture) for architecture in architectures]
    assert tree.macs == sum(network.macs for network in networks)
    assert tree.operators == sum(len(network.operators) for network in networks)


def test_a_little_memory_saves_a_part_of_the_work(space: SearchSpace, supernet: Supernet) -> None:
    nothing, little, plenty = (
        PrefixTree(supernet, population(space), batch_size=BATCH_SIZE, held_bytes=held_bytes).macs
        for held_bytes in (0, 10_000, PLENTY)
    )
    assert plenty < little < nothing


def test_an_architecture_that_occurs_twice_is_computed_once(
    space: SearchSpace, supernet: Supernet, batches: list[Tensor]
) -> None:
    once = population(space, size=3)
    trees = [PrefixTree(supernet, asked, batch_size=BATCH_SIZE, held_bytes=0) for asked in (once, [*once, *once])]
    assert trees[0].macs == trees[1].macs
    assert [len(outputs) for outputs in together(supernet, [*once, *once], batches).values()] == [len(batches)] * 3


@pytest.mark.parametrize("training", [True, False])
def test_the_supernet_is_never_altered(
    space: SearchSpace, supernet: Supernet, batches: list[Tensor], training: bool
) -> None:
    supernet.train(training)
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    together(supernet, population(space), batches)
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
    assert all(module.training == training for module in supernet.modules())


def test_weights_are_those_of_the_supernet_itself(
    space: SearchSpace, supernet: Supernet, batches: list[Tensor]
) -> None:
    """A generation needs no second copy of them."""
    known = {id(parameter) for parameter in supernet.parameters()}
    used: set[int] = set()
    hook = register_module_forward_pre_hook(lambda module, _: used.update(map(id, module.parameters(recurse=False))))
    together(supernet, population(space), batches)
    hook.remove()
    assert used
    assert used <= known


@pytest.mark.parametrize("training", [True, False])
def test_logits_before_calibration_are_refused(
    space: SearchSpace, supernet: Supernet, batches: list[Tensor], training: bool
) -> None:
    supernet.train(training)
    tree = PrefixTree(supernet, population(space), batch_size=BATCH_SIZE, held_bytes=PLENTY)
    with pytest.raises(AssertionError):
        tree.logits(batches[0])

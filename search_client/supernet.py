"""The supernet: every choice of every layer, with weights that all architectures share (SPOS, single path).

Training uses the statistics of the batch, and a candidate gets statistics of its own. The running statistics of the
supernet mix all paths and are never read.
"""

from collections.abc import Iterator
from copy import deepcopy

from torch import Tensor, nn

from search_client.networks import build_operator
from search_client.spaces import IDENTITY, Architecture, SearchSpace


class Supernet(nn.Module):
    """N(S, W) of the paper (equation 1). Batch normalisation has no scale and shift, as in SPOS."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        self.stem = build_operator(space.stem, affine=False)
        self.layers = nn.ModuleList()
        for index, layer in enumerate(space.layers):
            choices = nn.ModuleDict()
            for choice in layer.choices:
                if (operator := space.operator(index, choice)) is not None:
                    choices[choice] = build_operator(operator, affine=False)
            self.layers.append(choices)
        self.head = build_operator(space.head, affine=False)

    def forward(self, x: Tensor, architecture: Architecture) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W) along one path."""
        for module in self.path(architecture):
            x = module(x)
        return x

    def candidate(self, architecture: Architecture) -> nn.Sequential:
        """A copy of one path that shares nothing with the supernet; its modules are those of `build_network`.

        Its batch-norm statistics are those of `with_own_statistics`.
        """
        return deepcopy(nn.Sequential(*map(with_own_statistics, self.path(architecture))))

    def inherit(self, parent: "Supernet") -> None:
        """Take over the weights of every choice that both supernets have (section 3.2, Pruned Supernet Training)."""
        own = self.state_dict()
        inherited = {name: value for name, value in parent.state_dict().items() if name in own}
        self.load_state_dict(inherited, strict=False)

    def path(self, architecture: Architecture) -> Iterator[nn.Module]:
        """Stem, chosen operators, head: one module for each operator of `SearchSpace.network`."""
        yield self.stem
        for choices, choice in zip(self.layers, architecture, strict=True):
            if choice != IDENTITY:
                assert isinstance(choices, nn.ModuleDict)
                yield choices[choice]
        yield self.head


def with_own_statistics(module: nn.Module) -> nn.Module:
    """A copy that shares the weights, but no batch-norm statistics.

    They are empty, and become the plain average over the batches that the copy is shown in training mode.
    """
    shared = {id(parameter): parameter for parameter in module.parameters()}
    copy = deepcopy(module, memo=shared)
    for part in copy.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None  # cumulative average
    return copy

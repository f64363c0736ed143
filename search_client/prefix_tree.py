"""A generation as a tree: architectures that begin alike share what they compute.

What a layer computes depends on the images, on the layers before it and on its choice. All are calibrated on the same
images, so its batch-norm statistics depend on nothing else either: what is shared and what is computed for each
architecture alone agree to the last bit.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from torch import Tensor, nn

from latency_contract.operators import Conv, Head, IBConv
from search_client.spaces import Architecture
from search_client.supernet import Supernet, with_own_statistics

BYTES_OF_A_NUMBER = 4  # float32


class _Step(NamedTuple):
    operator: Conv | IBConv | Head
    module: nn.Module  # the supernet's, which tells steps apart


class _Path(NamedTuple):
    architecture: Architecture
    steps: tuple[_Step, ...]  # stem, operators, head: without Identity, which computes nothing


@dataclass(frozen=True, eq=False)
class _Segment:
    """Operators that follow each other without a fork, and the segments that go on from their output."""

    steps: tuple[_Step, ...]
    modules: nn.Sequential  # weights of the supernet, statistics of its own
    branches: tuple["_Segment", ...]  # none where an architecture ends
    architecture: Architecture  # where it ends; at a fork, the first of those that go on


class PrefixTree:
    """Candidates of a supernet, computed together; an architecture that occurs twice is computed once.

    A fork's output is held until the last branch has taken it up. Where it would not fit into `held_bytes` beside
    the outputs that are held already, every branch computes it again, with statistics of its own: with 0, nothing is
    shared. What one operator needs while it runs, its input included, comes on top.
    """

    def __init__(
        self, supernet: Supernet, architectures: Iterable[Architecture], *, batch_size: int, held_bytes: int
    ) -> None:
        """`batch_size`: of the largest batch that will be shown."""
        self._batch_size = batch_size
        paths = [_path(supernet, architecture) for architecture in dict.fromkeys(architectures)]
        self._roots = self._grown(paths, depth=0, free_bytes=held_bytes)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return sum(step.operator.macs for segment in self._segments() for step in segment.steps)

    @property
    def operators(self) -> int:
        """How many operators are computed for one image."""
        return sum(len(segment.steps) for segment in self._segments())

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Once: average the batch-norm statistics of every candidate over batches of images (B, 3, H, W)."""
        for images in batches:
            for _ in self._outputs(images):
                pass
        for segment in self._segments():
            segment.modules.eval()

    def logits(self, images: Tensor) -> Iterator[tuple[Architecture, Tensor]]:
        """Logits (B, classes) of images (B, 3, H, W) by every calibrated candidate, one after the other."""
        assert not any(segment.modules.training for segment in self._segments())
        return self._outputs(images)

    def _outputs(self, images: Tensor) -> Iterator[tuple[Architecture, Tensor]]:
        """Depth first; an output lives as long as a branch that starts from it waits."""
        waiting = [(segment, images) for segment in reversed(self._roots)]
        while waiting:
            segment, x = waiting.pop()
            x = segment.modules(x)  # (B, C, H', W'), or logits
            if segment.branches:
                waiting += [(branch, x) for branch in reversed(segment.branches)]
            else:
                yield segment.architecture, x

    def _grown(self, paths: Sequence[_Path], *, depth: int, free_bytes: int) -> tuple[_Segment, ...]:
        """What goes on from one output that `depth` steps of all paths have made, and that is held if need be."""
        segments: list[_Segment] = []
        for group in _by_step(paths, depth):
            fork = _fork(group, depth)
            steps = group[0].steps[depth:fork]
            output_bytes = self._output_bytes(steps[-1])
            branches: tuple[_Segment, ...] = ()
            if len(group) > 1 and output_bytes > free_bytes:  # the fork moves up to here
                for branch in _by_step(group, fork):
                    segments += self._grown(branch, depth=depth, free_bytes=free_bytes)
                continue
            if len(group) > 1:
                branches = self._grown(group, depth=fork, free_bytes=free_bytes - output_bytes)
            modules = nn.Sequential(*(with_own_statistics(step.module) for step in steps))
            segments.append(_Segment(steps, modules.train(), branches, group[0].architecture))
        return tuple(segments)

    def _output_bytes(self, step: _Step) -> int:
        return self._batch_size * prod(step.operator.output_shape) * BYTES_OF_A_NUMBER

    def _segments(self) -> Iterator[_Segment]:
        waiting = list(self._roots)
        while waiting:
            segment = waiting.pop()
            waiting += segment.branches
            yield segment


def _path(supernet: Supernet, architecture: Architecture) -> _Path:
    operators = supernet.space.network(architecture).operators
    return _Path(architecture, tuple(map(_Step, operators, supernet.path(architecture))))


def _by_step(paths: Sequence[_Path], depth: int) -> list[list[_Path]]:
    """Paths with the same step at this depth, together."""
    groups: dict[nn.Module, list[_Path]] = {}
    for path in paths:
        groups.setdefault(path.steps[depth].module, []).append(path)
    return list(groups.values())


def _fork(paths: Sequence[_Path], depth: int) -> int:
    """The first depth from here at which the paths differ; the length of a path that is alone.

    No path is the beginning of another, as each ends with the head.
    """
    if len(paths) == 1:
        return len(paths[0].steps)
    while all(path.steps[depth].module is paths[0].steps[depth].module for path in paths):
        depth += 1
    return depth

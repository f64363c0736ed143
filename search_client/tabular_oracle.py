"""Accuracies that somebody else published: every network of a space, trained alone. No supernet, no images.

NAS-Bench-Macro (Su et al. 2021) is the one table that is read: https://github.com/xiusu/NAS-Bench-Macro.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from search_client.errors import InvalidData
from search_client.spaces import Architecture, SearchSpace, load_space

NAS_BENCH_MACRO = "nas-bench-macro"


class TabularOracle:
    """Accuracy in [0, 1] of NAS-Bench-Macro: the mean of three trainings on CIFAR-10, on the test images.

    `fingerprint` is the SHA-256 of the file.
    """

    def __init__(self, path: Path, space: SearchSpace) -> None:
        """Raises InvalidData: the file is not the benchmark's, or the space is another."""
        if space != load_space(NAS_BENCH_MACRO):
            raise InvalidData(
                f"{path} knows the networks of the space {NAS_BENCH_MACRO}, not those of '{space.name}'."
                f" Use --space {NAS_BENCH_MACRO}."
            )
        try:
            content = path.read_bytes()
            accuracies = {digits: entry["mean_acc"] / 100 for digits, entry in json.loads(content).items()}
        except OSError as error:
            raise InvalidData(f"{path} cannot be read: {error.strerror}.") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _no_table(path) from error
        self.name = f"{NAS_BENCH_MACRO}:{path.name}"
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self._digits = [{choice: str(place) for place, choice in enumerate(layer.choices)} for layer in space.layers]
        self._accuracies = accuracies
        wanted = {self._key(architecture) for architecture in all_architectures(space)}
        if accuracies.keys() != wanted or not all(
            0 <= value <= 1 and math.isfinite(value) for value in accuracies.values()
        ):
            raise _no_table(path)

    def evaluate(self, architectures: Sequence[Architecture]) -> list[float]:
        return [self._accuracies[self._key(architecture)] for architecture in architectures]

    def _key(self, architecture: Architecture) -> str:
        """A digit a layer: the place of its choice in the full space, whatever a stage has pruned."""
        return "".join(digits[choice] for digits, choice in zip(self._digits, architecture, strict=True))


def load_oracle(setting: str, space: SearchSpace) -> TabularOracle:
    """The oracle of the setting `oracle`, written TABLE:PATH. Raises InvalidData."""
    table, _, path = setting.partition(":")
    if table != NAS_BENCH_MACRO or not path:
        raise InvalidData(
            f"There is no oracle '{setting}'. Use {NAS_BENCH_MACRO}:PATH, with the path of its JSON file."
        )
    return TabularOracle(Path(path), space)


def all_architectures(space: SearchSpace) -> Iterator[Architecture]:
    """Every architecture of a small space."""
    return product(*(layer.choices for layer in space.layers))


def distinct_architectures(space: SearchSpace) -> list[Architecture]:
    """One architecture for every network of a small space.

    Where a layer keeps the shape, Identity before it or behind it makes the same network: of the 6,561 architectures
    of NAS-Bench-Macro, 3,969 are distinct. A rank correlation is taken over these, or some networks count many times.
    """
    first: dict[object, Architecture] = {}
    for architecture in all_architectures(space):
        first.setdefault(space.network(architecture).operators, architecture)
    return list(first.values())


def _no_table(path: Path) -> InvalidData:
    return InvalidData(
        f"{path} is not the accuracy table of NAS-Bench-Macro. Use nas-bench-macro_cifar10.json of"
        " https://github.com/xiusu/NAS-Bench-Macro."
    )

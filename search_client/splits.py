"""Which images are trained on, which validated on, and which are kept for the end.

Validation images are drawn from the training part, a fixed number per class, as in section 4.1 of the paper; the
test part is never seen by a search.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from search_client.errors import InvalidData

TEST_FRACTION = 0.2  # of each class, where a data set has no test part of its own


class Splits(NamedTuple):
    """Places of images in a data set; the test part comes after the training part where it has one of its own."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class Drawing:
    """How a data set is split."""

    validation_per_class: int
    train_per_class: int | None
    seed: int


def split(
    labels: NDArray[np.int64],
    candidates: NDArray[np.int64],
    tests: NDArray[np.int64] | None,
    *,
    classes: Sequence[str],
    drawing: Drawing,
) -> Splits:
    """Each class of the candidates is split alike, and the order is shuffled; without tests, some become the tests."""
    rng = np.random.default_rng(drawing.seed)
    train, validation, drawn_tests = [], [], []
    by_class = candidates[np.argsort(labels[candidates], kind="stable")]
    ends = np.cumsum(np.bincount(labels[candidates], minlength=len(classes)))
    for name, of_class in zip(classes, np.split(by_class, ends[:-1]), strict=True):
        members = rng.permutation(of_class)
        test_count = round(TEST_FRACTION * len(members)) if tests is None else 0
        if len(members) - test_count <= drawing.validation_per_class:
            raise InvalidData(
                f"Class {name} has {len(members) - test_count} images to train and validate on, which leaves none to"
                f" train on with validation_per_class = {drawing.validation_per_class}. Use a smaller number."
            )
        drawn_tests.append(members[:test_count])
        validation.append(members[test_count : test_count + drawing.validation_per_class])
        train.append(members[test_count + drawing.validation_per_class :][: drawing.train_per_class])
    return Splits(
        rng.permutation(np.concatenate(train)),
        rng.permutation(np.concatenate(validation)),
        rng.permutation(np.concatenate(drawn_tests)) if tests is None else tests,
    )

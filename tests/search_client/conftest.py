from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The networks here are so small that threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def photos() -> Callable[[int], list[Image.Image]]:
    """So many different parts of scikit-learn's two photos, of different sizes."""
    samples = [Image.fromarray(pixels) for pixels in load_sample_images().images]

    def make(count: int) -> list[Image.Image]:
        rng = np.random.default_rng(0)
        parts = []
        for index in range(count):
            width, height = (int(side) for side in rng.integers(40, 90, size=2))
            left, top = int(rng.integers(640 - width)), int(rng.integers(427 - height))
            parts.append(samples[index % 2].crop((left, top, left + width, top + height)))
        return parts

    return make


@pytest.fixture
def photo_folder(tmp_path: Path, photos: Callable[[int], list[Image.Image]]) -> Callable[..., Path]:
    """A directory of photos in ImageNet's layout, as JPEG and PNG files."""

    def make(*, train: int, val: int, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
        parts = iter(photos((train + val) * len(classes)))
        for part, count in (("train", train), ("val", val)):
            for name in classes:
                directory = tmp_path / "photos" / part / name
                directory.mkdir(parents=True)
                for index in range(count):
                    next(parts).save(directory / f"{index}.{'png' if index % 3 == 0 else 'JPEG'}")
        return tmp_path / "photos"

    return make

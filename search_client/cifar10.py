"""CIFAR-10 (Krizhevsky 2009) from files: its official binary and Python forms, and a bundle of JPEG images."""

import io
import pickle
import zipfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from search_client.errors import InvalidData
from search_client.pixel_sets import Pixels, PixelSet, resized

SIDE = 32  # pixels
IMAGE_BYTES = 3 * SIDE * SIDE  # the red plane, the green one, the blue one, each row by row
BUNDLE = "cifar10_full_jpegbytes.npz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _Form(NamedTuple):
    """A form of several files, each with the images of one batch."""

    directory: str  # its usual name
    train: Sequence[str]
    test: str
    read: Callable[[Path], Pixels]


def cifar10(path: Path, side: int) -> PixelSet:
    """50,000 training and 10,000 test images of 32x32 pixels, resized to `side` pixels.

    Raises:
        InvalidData: nothing at `path` is CIFAR-10 in a known form, or a file of it is missing or damaged.
    """
    train, test = (Pixels(resized(part.pixels, side=side), part.labels) for part in _loaded(path))
    return PixelSet(train, test, CLASSES, flip=True)


def _loaded(path: Path) -> tuple[Pixels, Pixels]:
    """Training and test part. Which form it is, the names of the files say."""
    if path.is_file() and path.suffix == ".npz":
        return _bundle(path)
    for form in _FORMS:
        for directory in (path, path / form.directory):
            if any((directory / name).is_file() for name in (*form.train, form.test)):
                return _batches(directory, form)
    if (path / BUNDLE).is_file():
        return _bundle(path / BUNDLE)
    raise InvalidData(
        f"{path} is not CIFAR-10. Give the directory with data_batch_1.bin to data_batch_5.bin and test_batch.bin"
        f" (binary form), the one with data_batch_1 to data_batch_5 and test_batch (Python form), or {BUNDLE}."
    )


def _batches(directory: Path, form: _Form) -> tuple[Pixels, Pixels]:
    if missing := [name for name in (*form.train, form.test) if not (directory / name).is_file()]:
        raise InvalidData(f"{directory} lacks {', '.join(missing)} of CIFAR-10. Unpack the whole archive again.")
    train = [form.read(directory / name) for name in form.train]
    joined = Pixels(torch.cat([part.pixels for part in train]), torch.cat([part.labels for part in train]))
    return joined, form.read(directory / form.test)


def _binary(path: Path) -> Pixels:
    """Records of one byte for the label and 3,072 for the image."""
    content = np.fromfile(path, dtype=np.uint8)
    if len(content) == 0 or len(content) % (1 + IMAGE_BYTES):
        raise _damaged(path, f"{len(content)} bytes are not a number of records of {1 + IMAGE_BYTES}")
    records = content.reshape(-1, 1 + IMAGE_BYTES)
    return _from_planes(records[:, 1:], records[:, 0].astype(np.int64), path)


def _python(path: Path) -> Pixels:
    """A pickled dictionary: `data` (N, 3072) uint8 and `labels`, as Python 2 wrote it."""
    try:
        with path.open("rb") as file:
            batch = _BatchUnpickler(file, encoding="bytes").load()
        return _from_planes(batch[b"data"], np.array(batch[b"labels"], dtype=np.int64), path)
    except InvalidData:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise _damaged(path, str(error) or type(error).__name__) from error


class _BatchUnpickler(pickle.Unpickler):
    """A pickle may call whatever it names. This one may name arrays of bytes, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _dtype
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which has no place in CIFAR-10")


def _dtype(name: bytes | str, align: int = 0, copy: int = 1) -> np.dtype[Any]:
    """As NumPy before 2.4 took the numbers that Python 2 wrote for truth values."""
    return np.dtype(name.decode() if isinstance(name, bytes) else name, align=bool(align), copy=bool(copy))


def _bundle(path: Path) -> tuple[Pixels, Pixels]:
    """Encoded images one after the other, with the offset of each, as in this project's outside data."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:  # which leaves a file of its own open where it fails
            return _encoded(arrays, "train", path), _encoded(arrays, "test", path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, str(error)) from error


def _encoded(arrays: Any, part: str, path: Path) -> Pixels:
    encoded, offsets = arrays[f"jpeg_{part}"].tobytes(), arrays[f"offset_{part}"].tolist()
    pixels = np.empty((len(offsets) - 1, SIDE, SIDE, 3), dtype=np.uint8)
    for index, (start, end) in enumerate(pairwise(offsets)):
        with Image.open(io.BytesIO(encoded[start:end])) as image:
            pixels[index] = np.asarray(image.convert("RGB"))
    return _labelled(torch.from_numpy(pixels), arrays[f"y_{part}"].astype(np.int64), path)


def _from_planes(planes: NDArray[np.uint8], labels: NDArray[np.int64], path: Path) -> Pixels:
    if planes.dtype != np.uint8 or planes.ndim != 2 or planes.shape[1] != IMAGE_BYTES:
        raise _damaged(path, f"its images are {planes.dtype} {planes.shape} instead of uint8 (N, {IMAGE_BYTES})")
    channels_last = planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return _labelled(torch.from_numpy(np.ascontiguousarray(channels_last)), labels, path)


def _labelled(pixels: torch.Tensor, labels: NDArray[np.int64], path: Path) -> Pixels:
    if labels.shape != (len(pixels),) or not ((labels >= 0) & (labels < len(CLASSES))).all():
        raise _damaged(path, f"there is not a label from 0 to {len(CLASSES) - 1} for each of {len(pixels)} images")
    return Pixels(pixels, torch.from_numpy(labels))


def _damaged(path: Path, reason: str) -> InvalidData:
    return InvalidData(f"{path} cannot be read as CIFAR-10: {reason}. Fetch the file again.")


_FORMS = (
    _Form("cifar-10-batches-bin", [f"data_batch_{n}.bin" for n in range(1, 6)], "test_batch.bin", _binary),
    _Form("cifar-10-batches-py", [f"data_batch_{n}" for n in range(1, 6)], "test_batch", _python),
)

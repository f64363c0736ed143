"""The official forms are written here, byte for byte as described where they are published."""

import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from search_client.cifar10 import BUNDLE, CLASSES, cifar10
from search_client.errors import InvalidData
from search_client.pixel_sets import PixelSet

PER_BATCH = 20
BATCHES = (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")


def python2_pickle(images: NDArray[np.uint8], labels: list[int]) -> bytes:
    """The dictionary as Python 2 and NumPy pickled it in 2009, opcode for opcode (protocol 2)."""

    def string(content: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(content)) + content  # a `str` of Python 2

    byte = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R(K\x03" + string(b"|")
    byte += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
    shape = b"K" + bytes([len(images)]) + b"M" + struct.pack("<H", 3072) + b"\x86"
    array += b"(K\x01" + shape + byte + b"\x89" + string(images.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(b"labels") + numbers + b"u."


@pytest.fixture(scope="module")
def planes() -> dict[str, tuple[NDArray[np.uint8], list[int]]]:
    """Images (20, 3072) and labels of each batch."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(256, size=(PER_BATCH, 3072), dtype=np.uint8), rng.integers(10, size=PER_BATCH).tolist())
        for name in BATCHES
    }


@pytest.fixture
def binary(tmp_path: Path, planes: dict[str, tuple[NDArray[np.uint8], list[int]]]) -> Path:
    directory = tmp_path / "cifar-10-batches-bin"
    directory.mkdir()
    for name, (images, labels) in planes.items():
        records = b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))
        (directory / f"{name}.bin").write_bytes(records)
    return directory


@pytest.fixture
def python(tmp_path: Path, planes: dict[str, tuple[NDArray[np.uint8], list[int]]]) -> Path:
    directory = tmp_path / "cifar-10-batches-py"
    directory.mkdir()
    for name, (images, labels) in planes.items():
        (directory / name).write_bytes(python2_pickle(images, labels))
    return directory


def same(one: PixelSet, other: PixelSet) -> bool:
    assert one.test is not None
    assert other.test is not None
    pairs = zip((*one.train, *one.test), (*other.train, *other.test), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def test_binary_and_python_form_give_the_same_images(binary: Path, python: Path) -> None:
    images = cifar10(binary, 32)
    assert images.train.pixels.shape == (100, 32, 32, 3)
    assert images.test is not None
    assert images.test.pixels.shape == (20, 32, 32, 3)
    assert same(images, cifar10(python, 32))


def test_pixels_are_those_of_the_official_description(
    binary: Path, planes: dict[str, tuple[NDArray[np.uint8], list[int]]]
) -> None:
    """ "The first 1024 bytes are the red channel values, the next 1024 the green … stored in row-major order"."""
    images, labels = planes["data_batch_2"]
    loaded = cifar10(binary, 32).train
    assert loaded.pixels[20 + 3, 5, 7].tolist() == [images[3, channel * 1024 + 5 * 32 + 7] for channel in range(3)]
    assert loaded.labels[20:40].tolist() == labels


def test_the_directory_above_the_usual_one_is_recognised(binary: Path, python: Path) -> None:
    assert same(cifar10(binary.parent, 32), cifar10(binary, 32))
    shutil.rmtree(binary)
    assert same(cifar10(python.parent, 32), cifar10(python, 32))


def test_images_are_resized(binary: Path) -> None:
    assert cifar10(binary, 16).train.pixels.shape == (100, 16, 16, 3)


def test_a_missing_batch_is_named(binary: Path) -> None:
    (binary / "data_batch_3.bin").unlink()
    with pytest.raises(InvalidData, match=r"lacks data_batch_3\.bin of CIFAR-10\. Unpack"):
        cifar10(binary, 32)


def test_another_directory_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidData, match=r"is not CIFAR-10\. Give the directory with data_batch_1\.bin .* or cifar10_"
    ):
        cifar10(tmp_path, 32)


def test_a_truncated_file_is_refused(binary: Path, python: Path) -> None:
    for file in (binary / "test_batch.bin", python / "data_batch_1"):
        file.write_bytes(file.read_bytes()[:5000])
        with pytest.raises(InvalidData, match=rf"{file.name} cannot be read as CIFAR-10: .* Fetch the file again"):
            cifar10(file.parent, 32)


def test_a_label_that_no_class_has_is_refused(binary: Path) -> None:
    (binary / "test_batch.bin").write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(InvalidData, match="not a label from 0 to 9"):
        cifar10(binary, 32)


def test_a_pickle_that_calls_something_is_refused_before_it_does(python: Path) -> None:
    (python / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch harmed'\ntR.")
    with pytest.raises(InvalidData, match=r"it asks for os\.system, which has no place in CIFAR-10"):
        cifar10(python, 32)
    assert not Path("harmed").exists()


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    (tmp_path / BUNDLE).write_bytes(b"PK\x03\x04 and no more")
    for path in (tmp_path / "other.npz", tmp_path / BUNDLE):
        with pytest.raises(InvalidData, match=r"npz cannot be read as CIFAR-10: .* Fetch the file again"):
            cifar10(path, 32)


def test_the_bundle_of_jpeg_images_is_read(shared_data: Path, tmp_path: Path) -> None:
    """Its first 500 images of each part: its order is class by class, so these are airplanes."""
    with np.load(shared_data / BUNDLE) as whole:
        cut: dict[str, Any] = {}
        for part in ("train", "test"):
            offsets = whole[f"offset_{part}"][:501]
            cut |= {f"offset_{part}": offsets, f"y_{part}": whole[f"y_{part}"][:500]}
            cut[f"jpeg_{part}"] = whole[f"jpeg_{part}"][: offsets[-1]]
        assert [str(name) for name in whole["class_names"]] == list(CLASSES)
    np.savez(tmp_path / BUNDLE, **cut)
    images = cifar10(tmp_path, 32)
    assert images.train.pixels.shape == (500, 32, 32, 3)
    assert images.train.labels.tolist() == [0] * 500
    red, _, blue = images.train.pixels.float().mean(dim=(0, 1, 2))
    assert blue > red + 10  # the sky

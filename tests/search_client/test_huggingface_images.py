import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from search_client.decoding import decoded
from search_client.errors import InvalidData
from search_client.huggingface_images import huggingface_images

CLASSES = ["cat", "dog", "owl"]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


@pytest.fixture
def saved(tmp_path: Path, photos: Callable[[int], list[Image.Image]]) -> Callable[..., Path]:
    """Three photos in each part, saved to disk; `columns` replaces what is in a row."""

    def make(*parts: str, **columns: Any) -> Path:
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
        kinds |= {name: kind for name, (kind, _) in columns.items()}
        content = {"image": photos(3), "label": [2, 0, 1]} | {name: values for name, (_, values) in columns.items()}
        rows = datasets.Dataset.from_dict(content, features=datasets.Features(kinds))
        if parts:
            datasets.DatasetDict(dict.fromkeys(parts, rows)).save_to_disk(str(tmp_path / "set"))
        else:
            rows.save_to_disk(str(tmp_path / "set"))
        return tmp_path / "set"

    return make


@pytest.mark.parametrize("parts", [("train", "validation", "test"), ("train", "test")])
def test_images_are_those_that_were_saved(
    saved: Callable[..., Path], photos: Callable[[int], list[Image.Image]], parts: tuple[str, ...]
) -> None:
    listed = huggingface_images(saved(*parts))
    assert listed.classes == tuple(CLASSES)
    assert listed.train.labels.tolist() == [2, 0, 1]
    assert listed.train.names == ["train/0", "train/1", "train/2"]
    assert listed.test.names[0] == f"{parts[1]}/0"
    for index, photo in enumerate(photos(3)):
        content = listed.test.read(index)
        assert listed.test.sizes[index] == len(content)
        assert np.array_equal(np.asarray(decoded(content)), np.asarray(photo))


def test_labels_may_be_integers(saved: Callable[..., Path]) -> None:
    listed = huggingface_images(saved("train", "test", label=(datasets.Value("int32"), [1, 0, 1])))
    assert listed.classes == ("0", "1")
    assert listed.train.labels.tolist() == [1, 0, 1]


def test_images_without_a_label_are_refused(saved: Callable[..., Path]) -> None:
    path = saved("train", "validation", label=(datasets.Value("int64"), [0, 1, -1]))
    with pytest.raises(InvalidData, match=r"has labels in train that are not from 0 to 1"):
        huggingface_images(path)


def test_a_set_without_a_part_to_test_on_is_refused(saved: Callable[..., Path]) -> None:
    with pytest.raises(InvalidData, match=r"must hold the parts train and validation \(or test\), but holds train\."):
        huggingface_images(saved("train"))


def test_a_single_part_is_refused(saved: Callable[..., Path]) -> None:
    with pytest.raises(InvalidData, match="but holds a single part"):
        huggingface_images(saved())


def test_which_column_is_the_label_must_be_clear(saved: Callable[..., Path]) -> None:
    path = saved("train", "test", width=(datasets.Value("int64"), [1, 2, 3]))
    with pytest.raises(InvalidData, match=r"one column of type ClassLabel or integer, but has label, width\. Use"):
        huggingface_images(path)


def test_another_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"cannot be read as a Hugging Face data set: .* that `save_to_disk` wrote"):
        huggingface_images(tmp_path)


def test_what_to_install_is_said_where_datasets_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidData, match=r"pip install 'pad-nas\[huggingface\]'"):
        huggingface_images(tmp_path)

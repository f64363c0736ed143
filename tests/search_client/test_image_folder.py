import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from search_client.errors import InvalidData
from search_client.image_folder import image_folder


def test_classes_are_directories_in_order_of_their_names(photo_folder: Callable[..., Path]) -> None:
    root = photo_folder(train=3, val=2, classes=("zebra", "ant"))
    listed = image_folder(root)
    assert listed.classes == ("ant", "zebra")
    assert listed.train.names == [f"train/{name}/{n}" for name in listed.classes for n in ("0.png", "1.JPEG", "2.JPEG")]
    assert listed.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert listed.test.labels.tolist() == [0, 0, 1, 1]
    file = root / listed.test.names[3]
    assert listed.test.read(3) == file.read_bytes()
    assert listed.test.sizes[3] == file.stat().st_size


def test_other_and_hidden_files_are_no_images(photo_folder: Callable[..., Path]) -> None:
    root = photo_folder(train=2, val=1)
    for name in ("notes.txt", "._0.JPEG"):
        (root / "train" / "cat" / name).write_text("no image")
    (root / "train" / ".cache").mkdir()
    assert len(image_folder(root).train.names) == 4


def test_a_missing_directory_is_refused_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"no directory .*train\. Images belong into train/CLASS/ and val/CLASS/"):
        image_folder(tmp_path)


def test_images_that_are_not_sorted_into_classes_are_refused(photo_folder: Callable[..., Path]) -> None:
    root = photo_folder(train=1, val=1)
    shutil.rmtree(root / "val")
    (root / "val").mkdir()
    with pytest.raises(InvalidData, match=r"val holds no directory\. Give each class one"):
        image_folder(root)


def test_different_classes_for_validation_are_refused_by_name(photo_folder: Callable[..., Path]) -> None:
    root = photo_folder(train=1, val=1)
    (root / "val" / "dog").rename(root / "val" / "wolf")
    with pytest.raises(InvalidData, match=r"the same classes, but only one of them has dog, wolf\."):
        image_folder(root)


def test_an_empty_class_is_refused_by_name(photo_folder: Callable[..., Path]) -> None:
    root = photo_folder(train=1, val=1)
    (root / "train" / "dog" / "0.png").unlink()
    with pytest.raises(InvalidData, match=r"train/dog holds no image\. Images end in \.bmp, \.jpeg"):
        image_folder(root)

"""Photos in ImageNet's layout: `train/CLASS/*` and `val/CLASS/*`."""

import os
from pathlib import Path

import numpy as np

from search_client.decoding import Photos, PhotoSet
from search_client.errors import InvalidData

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}  # in capitals too


def image_folder(path: Path) -> PhotoSet:
    """Classes are the directories of `train`, in order of their names.

    Raises:
        InvalidData: a directory is missing, a class is empty, or `val` has other classes.
    """
    classes, validation_classes = (_directories(path / part) for part in ("train", "val"))
    if different := sorted(set(classes) ^ set(validation_classes)):
        raise InvalidData(
            f"{path / 'train'} and {path / 'val'} must hold the same classes, but only one of them has"
            f" {', '.join(different[:3])}{' and others' if len(different) > 3 else ''}."
            " Give each class a directory in both."
        )
    return PhotoSet(_photos(path, "train", classes), _photos(path, "val", classes), tuple(classes))


def _directories(path: Path) -> list[str]:
    if not path.is_dir():
        raise InvalidData(
            f"There is no directory {path}. Images belong into train/CLASS/ and val/CLASS/ of {path.parent}."
        )
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InvalidData(f"{path} holds no directory. Give each class one, with the images in it.")
    return names


def _photos(root: Path, part: str, classes: list[str]) -> Photos:
    places: list[str] = []
    sizes: list[int] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = sorted(
            (entry.name, entry.stat().st_size) for entry in os.scandir(root / part / name) if _wanted(entry)
        )
        if not images:
            raise InvalidData(
                f"{root / part / name} holds no image. Images end in {', '.join(sorted(SUFFIXES))}."
                " Add some, or remove the class from train and val."
            )
        places += [f"{part}/{name}/{image}" for image, _ in images]
        sizes += [size for _, size in images]
        labels += [label] * len(images)
    return Photos(
        # A name may be no Unicode, as of archives from long ago; what is written down of it has to be.
        [os.fsencode(place).decode(errors="backslashreplace") for place in places],
        np.array(sizes),
        np.array(labels),
        read=lambda index: (root / places[index]).read_bytes(),
    )


def _wanted(entry: os.DirEntry[str]) -> bool:
    hidden = entry.name.startswith(".")  # as macOS leaves beside images
    return not hidden and Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file()

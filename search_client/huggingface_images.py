"""Photos in a data set that Hugging Face's `datasets` saved to disk; the one module that imports it."""

from pathlib import Path
from typing import Any

import numpy as np

from search_client.decoding import Photos, PhotoSet
from search_client.errors import InvalidData

TEST_PARTS = ("validation", "test")  # the first that is there; ImageNet's `test` has no labels


def huggingface_images(path: Path) -> PhotoSet:
    """A `DatasetDict` with `train` and `validation` or `test`, of one image and one label each.

    Raises:
        InvalidData: `datasets` is not installed, or there is no such data set at `path`.
    """
    try:
        import datasets
    except ImportError as error:
        raise InvalidData(
            "Hugging Face data sets are read by the package `datasets`. Install it: pip install 'pad-nas[huggingface]'."
        ) from error
    try:
        parts = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise InvalidData(
            f"{path} cannot be read as a Hugging Face data set: {error}. Give a directory that `save_to_disk` wrote."
        ) from error
    test_part = next((part for part in TEST_PARTS if isinstance(parts, dict) and part in parts), None)
    if test_part is None or "train" not in parts:
        there = ", ".join(parts) if isinstance(parts, dict) else "a single part"
        raise InvalidData(
            f"{path} must hold the parts train and validation (or test), but holds {there}."
            " Save a `DatasetDict` with these names."
        )
    features = parts["train"].features
    image = _only([name for name, kind in features.items() if isinstance(kind, datasets.Image)], "Image", path)
    label = _only([name for name, kind in features.items() if _is_label(kind)], "ClassLabel or integer", path)
    train, test = (
        _photos(part, parts[part].select_columns([image, label]).cast_column(image, datasets.Image(decode=False)), path)
        for part in ("train", test_part)
    )
    names = getattr(features[label], "names", None) or [str(number) for number in range(int(train.labels.max()) + 1)]
    for part, photos in (("train", train), (test_part, test)):
        if not ((photos.labels >= 0) & (photos.labels < len(names))).all():
            raise InvalidData(
                f"{path} has labels in {part} that are not from 0 to {len(names) - 1}, as those of its {len(names)}"
                " classes are. Remove the images without a label, or number the classes from 0."
            )
    return PhotoSet(train, test, tuple(names))


def _only(columns: list[str], kind: str, path: Path) -> str:
    if len(columns) != 1:
        raise InvalidData(
            f"{path} must have one column of type {kind}, but has {', '.join(columns) or 'none'}."
            " Use `select_columns` before you save it."
        )
    return columns[0]


def _is_label(feature: Any) -> bool:
    """ClassLabel has the dtype int64 too."""
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint"))


def _photos(part: str, rows: Any, path: Path) -> Photos:
    """`rows` is a `datasets.Dataset` of an image, not decoded, and a label."""
    import pyarrow.compute as arrow

    image, label = rows.column_names
    encoded = arrow.struct_field(rows.data.column(image), "bytes")
    if encoded.null_count:
        raise InvalidData(
            f"{path} does not hold the bytes of every image of {part}. Save it with `save_to_disk` again."
        )
    return Photos(
        names=[f"{part}/{row}" for row in range(len(rows))],
        sizes=arrow.binary_length(encoded).to_numpy().astype(np.int64),
        labels=rows.data.column(label).to_numpy().astype(np.int64),
        read=lambda index: bytes(rows[index][image]["bytes"]),
    )

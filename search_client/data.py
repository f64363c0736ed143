"""Image data sets by name: what a search trains on, validates on and is tested on."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_client.cifar10 import cifar10
from search_client.decoding import DecodingPass, PhotoSet, decode_all, first_few, must_be_few
from search_client.errors import InvalidData
from search_client.huggingface_images import huggingface_images
from search_client.image_folder import image_folder
from search_client.images import ImageSet, PixelImages
from search_client.photo_images import PhotoImages
from search_client.pixel_sets import Pixels, PixelSet, digits
from search_client.progress import ConsoleProgress
from search_client.splits import Drawing, split

# Name to a function that makes square images of this many pixels a side from what is at a path.
PIXEL_SETS: dict[str, Callable[[Path, int], PixelSet]] = {"digits": lambda _, side: digits(side), "cifar10": cifar10}
# Name to a function that lists the images at a path.
PHOTO_SETS: dict[str, Callable[[Path], PhotoSet]] = {"folder": image_folder, "huggingface": huggingface_images}
OnDecoded = Callable[[DecodingPass], None]
KNOWN = ("digits", *(f"{kind}:PATH" for kind in (*PIXEL_SETS, *PHOTO_SETS) if kind != "digits"))


@dataclass(frozen=True, eq=False)
class ImageData:
    name: str
    classes: int
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    fingerprint: str  # two searches with one fingerprint saw the same images, split alike
    validation_indices_sha256: str  # of their sorted places in the data set, little-endian int64
    decoding: DecodingPass | None = None  # of photos

    def record(self) -> dict[str, Any]:
        """What a search writes down about its images."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            "name": self.name,
            "sha256": self.fingerprint,
            "classes": self.classes,
            "images": {part: len(images.labels) for part, images in parts.items()},
            "validation_indices_sha256": self.validation_indices_sha256,
            "left_out": [] if self.decoding is None else sorted(self.decoding.damaged),
        }


def load_data(
    name: str,
    *,
    input_size: int,
    validation_per_class: int,
    seed: int,
    train_per_class: int | None = None,
    known: DecodingPass | None = None,
    on_decoded: OnDecoded = lambda _: None,
    progress: ConsoleProgress | None = None,
) -> ImageData:
    """A data set for networks with inputs of `input_size` pixels a side, split by `seed`.

    `name` is one of `KNOWN`. At most `train_per_class` images of a class are trained on. Photos are decoded once to
    find damaged ones, unless `known` says what an earlier pass found; `on_decoded` is told what this one found, also
    where too many are damaged.

    Raises:
        InvalidData: no data set has this name, it cannot be read, or a class has too few images.
    """
    kind, _, path = name.partition(":")
    if name not in KNOWN and (f"{kind}:PATH" not in KNOWN or not path):
        raise InvalidData(f"There is no data set '{name}'. Known data sets: {', '.join(KNOWN)}.")
    place = Path(path).expanduser()
    if not place.exists():
        raise InvalidData(f"There is nothing at {place}. Give the path of the data set: --data {kind}:PATH.")
    drawing = Drawing(validation_per_class, train_per_class, seed)
    if kind in PIXEL_SETS:
        return _in_memory(name, PIXEL_SETS[kind](place, input_size), drawing)
    return _on_demand(
        name,
        PHOTO_SETS[kind](place),
        drawing,
        input_size=input_size,
        known=known,
        on_decoded=on_decoded,
        progress=progress or ConsoleProgress(),
    )


def _in_memory(name: str, data: PixelSet, drawing: Drawing) -> ImageData:
    """Normalised by the statistics of what is trained on."""
    first = len(data.train.labels)
    tests = None if data.test is None else np.arange(first, first + len(data.test.labels))
    splits = split(data.train.labels.numpy(), np.arange(first), tests, classes=data.classes, drawing=drawing)
    everything = (
        data.train
        if data.test is None
        else Pixels(*(torch.cat(pair) for pair in zip(data.train, data.test, strict=True)))
    )
    mean, deviation = _statistics(everything.pixels[torch.from_numpy(splits.train)])
    train, validation, test = (
        PixelImages(everything.pixels[part], everything.labels[part], mean, deviation, data.flip) for part in splits
    )
    return ImageData(
        name=name,
        classes=len(data.classes),
        train=train,
        validation=validation,
        test=test,
        fingerprint=_fingerprint(train, validation, test),
        validation_indices_sha256=_sha256(splits.validation),
    )


def _on_demand(
    name: str,
    data: PhotoSet,
    drawing: Drawing,
    *,
    input_size: int,
    known: DecodingPass | None,
    on_decoded: OnDecoded,
    progress: ConsoleProgress,
) -> ImageData:
    photos = data.everything
    listing = photos.listing(range(len(photos.names)))
    if known is None or known.listing != listing:
        with progress.task("decoding every image once", len(photos.names)) as advance:
            known = DecodingPass(listing, decode_all(photos, advance=advance))
        on_decoded(known)
    must_be_few(known.damaged, images=len(photos.names))
    if known.damaged:
        progress.say(f"left out {len(known.damaged)} images that do not decode: {first_few(known.damaged)}")
    whole = np.array([name not in known.damaged for name in photos.names])
    in_train = np.arange(len(whole)) < len(data.train.names)
    splits = split(
        photos.labels,
        np.flatnonzero(whole & in_train),
        np.flatnonzero(whole & ~in_train),
        classes=data.classes,
        drawing=drawing,
    )
    train, validation, test = (PhotoImages(photos, torch.from_numpy(part), input_size) for part in splits)
    return ImageData(
        name=name,
        classes=len(data.classes),
        train=train,
        validation=validation,
        test=test,
        fingerprint=hashlib.sha256("".join(photos.listing(part) for part in splits).encode()).hexdigest(),
        validation_indices_sha256=_sha256(splits.validation),
        decoding=known,
    )


def _statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3,) of pixels (N, H, W, 3), from counts of their 256 values."""
    counts = torch.zeros((3, 256), dtype=torch.float64)
    for part in torch.split(pixels, 1000):
        for channel in range(3):
            counts[channel] += torch.bincount(part[..., channel].flatten(), minlength=256)
    values, total = torch.arange(256, dtype=torch.float64), counts[0].sum()
    mean = counts @ values / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(dim=1) / (total - 1)
    return mean.float(), variance.sqrt().float()


def _fingerprint(*parts: PixelImages) -> str:
    """SHA-256 of every image and label."""
    digest = hashlib.sha256()
    for part in parts:
        for tensor in (part.pixels, part.labels):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _sha256(indices: NDArray[np.int64]) -> str:
    return hashlib.sha256(np.sort(indices).astype("<i8").tobytes()).hexdigest()

"""From the bytes of a photo to RGB, and the pass over all photos that finds the damaged ones before training does."""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from search_client.errors import InvalidData
from search_client.progress import Advance
from search_client.worker_processes import chunked, in_order, workers_for

BACKGROUND = (255, 255, 255)  # what shows through a transparent image, as on a web page
LEFT_OUT_AT_MOST = 0.01  # of all images; with more, something else is wrong than a few damaged files
NAMED = 3  # images that a message names


@dataclass(frozen=True, eq=False)
class Photos:
    """Encoded images with their labels, to be read one by one."""

    names: Sequence[str]
    sizes: NDArray[np.int64]  # (N,) bytes
    labels: NDArray[np.int64]  # (N,)
    read: Callable[[int], bytes]  # the bytes of the image with this index; raises OSError

    def listing(self, indices: Iterable[int]) -> str:
        """SHA-256 of names, sizes and labels, in this order. The bytes themselves may be 140 GB."""
        digest = hashlib.sha256()
        for index in indices:
            digest.update(f"{self.names[index]}\0{self.sizes[index]}\0{self.labels[index]}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class PhotoSet:
    """A data set of photos with a test part of its own."""

    train: Photos
    test: Photos
    classes: tuple[str, ...]

    @property
    def everything(self) -> Photos:
        """First the training part, then the test part."""
        first = len(self.train.names)
        return Photos(
            names=[*self.train.names, *self.test.names],
            sizes=np.concatenate([self.train.sizes, self.test.sizes]),
            labels=np.concatenate([self.train.labels, self.test.labels]),
            read=lambda index: self.train.read(index) if index < first else self.test.read(index - first),
        )


@dataclass(frozen=True)
class DecodingPass:
    """What decoding every image once has shown. It holds for as long as the listing is the same."""

    listing: str  # SHA-256
    damaged: dict[str, str]  # from an image's name to the reason


def decoded(content: bytes) -> Image.Image:
    """A whole image in RGB. Orientation of a camera is not applied, as is ImageNet's practice.

    Raises:
        InvalidData: it does not decode; the text is the reason alone.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that nobody here reads
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                return _rgb(image)
    except UnidentifiedImageError:
        raise InvalidData("it is no image that Pillow knows") from None  # Pillow's text has an address in it
    except Exception as error:  # a damaged file may raise anything
        raise InvalidData(str(error) or type(error).__name__) from error


def _rgb(image: Image.Image) -> Image.Image:
    """Transparency is composited on white; 16 bits of grey become 8."""
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        opaque = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(opaque, with_alpha).convert("RGB")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def decode_all(photos: Photos, *, advance: Advance) -> dict[str, str]:
    """Names of the images that do not decode, each with the reason."""
    images = len(photos.names)

    def damaged_of(chunk: range) -> dict[str, str]:
        damaged = {}
        for index in chunk:
            try:
                decoded(photos.read(index))
            except InvalidData as error:
                damaged[photos.names[index]] = str(error)
            except OSError as error:
                damaged[photos.names[index]] = error.strerror or str(error)
        return damaged

    chunks = chunked(range(images))
    damaged: dict[str, str] = {}
    for chunk, found in zip(chunks, in_order(damaged_of, chunks, workers=workers_for(images)), strict=True):
        damaged |= found
        advance(chunk.stop, f"{len(damaged)} damaged" if damaged else "")
    return damaged


def must_be_few(damaged: Mapping[str, str], *, images: int) -> None:
    """Raises InvalidData where more than 1 % of all images do not decode."""
    if len(damaged) > LEFT_OUT_AT_MOST * images:
        raise InvalidData(
            f"{len(damaged)} of {images} images do not decode, which is more than {LEFT_OUT_AT_MOST:.0%}:"
            f" {first_few(damaged)}. Replace or remove them."
        )


def first_few(damaged: Mapping[str, str]) -> str:
    """Names with reasons, for a message."""
    named = [f"{name} ({reason})" for name, reason in list(damaged.items())[:NAMED]]
    return ", ".join(named) + (" and others" if len(damaged) > NAMED else "")

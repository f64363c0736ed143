"""Photos as networks see them: decoded whenever they are asked for, cropped and normalised as ImageNet's are.

Scored on: the short side resized to 256/224 of the network's input, and of that the centre. Trained on: a random part
of the image, mirrored half of the time, its colours altered, with the numbers of Single Path
One-Shot (Guo et al. 2019).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from search_client.decoding import Photos, decoded
from search_client.errors import InvalidData
from search_client.worker_processes import CHUNK, chunked, in_order, workers_for

MEAN = torch.tensor([0.485, 0.456, 0.406]) * 255  # of ImageNet's red, green and blue, as everybody uses them
DEVIATION = torch.tensor([0.229, 0.224, 0.225]) * 255
RESIZED_FRACTION = 256 / 224  # of the input's side, to which the short side is resized before the centre is cut out
AREA = (0.08, 1.0)  # of the image, that a random crop has
ASPECT = (3 / 4, 4 / 3)  # width over height of a random crop
CROP_TRIES = 10  # then the centre, as in torchvision
JITTER = 0.4  # brightness, contrast and saturation are multiplied by 0.6 to 1.4
JITTERED = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)

Transform = Callable[[Image.Image, int], Image.Image]  # of an image and its place in the epoch


@dataclass(frozen=True, eq=False)
class PhotoImages:
    """Some of a data set's photos."""

    photos: Photos
    chosen: Tensor  # (N,) int64: which
    input_size: int  # pixels a side
    workers: int | None = None  # processes that decode; None: as many as are worth it

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self.photos.labels)[self.chosen]

    def batches(self, indices: Tensor, *, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches(indices, batch_size, lambda image, _: centre_crop(image, self.input_size))

    def augmented_batches(
        self, indices: Tensor, *, batch_size: int, seed: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Random crop, mirroring and colours."""

        def augmented(image: Image.Image, place: int) -> Image.Image:
            rng = np.random.default_rng([*seed, place])
            image = random_crop(image, self.input_size, rng=rng)
            if rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return jittered(image, rng=rng)

        return self._batches(indices, batch_size, augmented)

    def _batches(self, indices: Tensor, batch_size: int, transform: Transform) -> Iterator[tuple[Tensor, Tensor]]:
        places = self.chosen[indices].tolist()  # in `photos`, by place in this epoch

        def pixels(chunk: range) -> Tensor | str:
            """(n, H, W, 3) uint8, or what is wrong: an exception of a process arrives with a traceback in its text."""
            made = []
            for place in chunk:
                try:
                    image = decoded(self.photos.read(places[place]))
                except (InvalidData, OSError) as error:
                    return f"{self.photos.names[places[place]]} could be read when the search began: {error}"
                made.append(np.asarray(transform(image, place)))
            return torch.from_numpy(np.stack(made))

        batches = [range(len(places))[start : start + batch_size] for start in range(0, len(places), batch_size)]
        chunks = [chunk for batch in batches for chunk in chunked(batch)]
        workers = workers_for(len(places)) if self.workers is None else self.workers
        results = in_order(pixels, chunks, workers=workers, ahead=math.ceil(batch_size / CHUNK))
        labels = self.labels[indices]
        for batch in batches:
            x = torch.empty((len(batch), 3, self.input_size, self.input_size), memory_format=torch.channels_last)
            for chunk in chunked(range(len(batch))):
                part = next(results)
                if isinstance(part, str):
                    raise InvalidData(f"{part}. Restore it; the same command goes on where this one was.")
                normalised = (part.float() - MEAN) / DEVIATION
                x[chunk.start : chunk.stop] = normalised.permute(0, 3, 1, 2)
            yield x, labels[batch.start : batch.stop]


def centre_crop(image: Image.Image, side: int) -> Image.Image:
    """What a network is scored on."""
    width, height = image.size
    short = round(side * RESIZED_FRACTION)
    scale = short / min(width, height)
    size = (max(int(width * scale), short), max(int(height * scale), short))
    left, top = (round((length - side) / 2) for length in size)
    return image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))


def random_crop(image: Image.Image, side: int, *, rng: np.random.Generator) -> Image.Image:
    """A part of random area and aspect, resized (Szegedy et al. 2014, as torchvision's RandomResizedCrop draws it)."""
    width, height = image.size
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            break
    else:  # an image far longer than wide, or wider than long
        crop_width = min(width, max(1, round(height * ASPECT[1])))
        crop_height = min(height, max(1, round(width / ASPECT[0])))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
    crop = image.crop((left, top, left + crop_width, top + crop_height))
    return crop.resize((side, side), Image.Resampling.BILINEAR)


def jittered(image: Image.Image, *, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation, altered in random order."""
    for which in rng.permutation(len(JITTERED)):
        image = JITTERED[which](image).enhance(rng.uniform(1 - JITTER, 1 + JITTER))
    return image

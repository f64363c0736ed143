import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from search_client.decoding import Photos
from search_client.errors import InvalidData
from search_client.photo_images import DEVIATION, MEAN, PhotoImages, centre_crop, jittered, random_crop

SIDE = 56  # pixels; the short side is resized to 64


@pytest.fixture(scope="module")
def images(photos: Callable[[int], list[Image.Image]]) -> PhotoImages:
    """Sixty PNG files in memory."""
    contents = []
    for photo in photos(60):
        file = io.BytesIO()
        photo.save(file, "PNG")
        contents.append(file.getvalue())
    sizes = np.array([len(content) for content in contents])
    listed = Photos([str(n) for n in range(60)], sizes, np.arange(60) % 3, read=lambda index: contents[index])
    return PhotoImages(listed, torch.arange(60), SIDE, workers=0)


def joined(images: PhotoImages, *, batch_size: int, seed: list[int]) -> torch.Tensor:
    order = torch.arange(59, -1, -1)
    return torch.cat([x for x, _ in images.augmented_batches(order, batch_size=batch_size, seed=seed)])


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_images_are_the_same_with_and_without_worker_processes(images: PhotoImages) -> None:
    parallel = PhotoImages(images.photos, images.chosen, SIDE, workers=2)
    assert torch.equal(joined(images, batch_size=40, seed=[1]), joined(parallel, batch_size=40, seed=[1]))
    one, two = (torch.cat([x for x, _ in some.batches(torch.arange(60), batch_size=25)]) for some in (images, parallel))
    assert torch.equal(one, two)


def test_what_is_altered_depends_on_seed_and_place_alone(images: PhotoImages) -> None:
    assert torch.equal(joined(images, batch_size=60, seed=[1]), joined(images, batch_size=7, seed=[1]))
    assert not torch.equal(joined(images, batch_size=60, seed=[1]), joined(images, batch_size=60, seed=[2]))
    twice = torch.zeros(2, dtype=torch.int64)
    ((x, _),) = images.augmented_batches(twice, batch_size=2, seed=[1])
    assert not torch.equal(x[0], x[1])


def test_batches_are_normalised_centre_crops_with_channels_last_in_memory(images: PhotoImages) -> None:
    (first, labels), _ = images.batches(torch.tensor([7, 3, 4]), batch_size=2)
    assert first.shape == (2, 3, SIDE, SIDE)
    assert first.dtype == torch.float32
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [1, 0]
    photo = Image.open(io.BytesIO(images.photos.read(3)))
    pixels = np.asarray(centre_crop(photo, SIDE), dtype=np.float64) / 255
    expected = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(first[1].permute(1, 2, 0), expected, atol=1e-5)


def test_a_set_hands_out_the_photos_that_were_chosen_for_it(images: PhotoImages) -> None:
    some = PhotoImages(images.photos, torch.tensor([5, 50]), SIDE, workers=0)
    assert some.labels.tolist() == [2, 2]
    ((x, _),) = some.batches(torch.tensor([1]), batch_size=8)
    ((y, _),) = images.batches(torch.tensor([50]), batch_size=8)
    assert torch.equal(x, y)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (1000, 30)])
def test_a_centre_crop_is_the_centre_of_the_image(size: tuple[int, int]) -> None:
    """Where a pixel's value is its distance from the left edge, the crop's mean is that of the whole."""
    width, height = size
    ramp = np.broadcast_to(np.linspace(0, 255, width).round().astype(np.uint8), (height, width))
    pixels = np.asarray(centre_crop(Image.fromarray(np.ascontiguousarray(ramp)), 224), dtype=float)
    assert pixels.shape == (224, 224)
    assert pixels.mean() == pytest.approx(127.5, abs=1)
    visible = 224 / (256 * width / min(size))  # share of the width
    assert np.ptp(pixels) == pytest.approx(255 * visible, abs=3)


def test_random_crops_have_the_area_and_aspect_of_the_recipe() -> None:
    """Each pixel holds its column and row, so the corners of a crop say where it was."""
    columns, rows = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    image = Image.fromarray(np.stack([columns, rows, rows], axis=-1))
    areas, aspects = [], []
    for seed in range(300):
        pixels = np.asarray(random_crop(image, 64, rng=np.random.default_rng(seed)), dtype=float)
        # The first and last pixel are the means of as many columns as one pixel covers.
        width, height = (np.ptp(pixels[..., channel]) * 64 / 63 for channel in (0, 1))
        areas.append(width * height / 256**2)
        aspects.append(math.log(width / height))
    assert 0.07 < min(areas) < 0.15
    assert 0.9 < max(areas) < 1.02
    assert np.mean(areas) == pytest.approx(0.5, abs=0.06)  # of 0.08 to 1; large crops that do not fit are drawn again
    assert -math.log(4 / 3) - 0.05 < min(aspects) < max(aspects) < math.log(4 / 3) + 0.05
    assert np.mean(aspects) == pytest.approx(0, abs=0.03)


def test_an_image_that_no_crop_fits_gives_its_centre() -> None:
    pixels = np.zeros((10, 1000), dtype=np.uint8)
    pixels[:, 490:510] = 255
    crop = np.asarray(random_crop(Image.fromarray(pixels), 32, rng=np.random.default_rng(0)))
    assert crop.min() == 255


def test_half_of_the_images_are_mirrored() -> None:
    file = io.BytesIO()
    Image.fromarray(np.broadcast_to(np.arange(64, dtype=np.uint8) * 4, (64, 64)).copy()).save(file, "PNG")
    one = Photos(["ramp"], np.array([1]), np.array([0]), read=lambda _: file.getvalue())
    images = PhotoImages(one, torch.tensor([0]), 32, workers=0)
    ((x, _),) = images.augmented_batches(torch.zeros(200, dtype=torch.int64), batch_size=200, seed=[0])
    mirrored = (x[..., 0] > x[..., -1]).float().mean().item()
    assert 0.4 < mirrored < 0.6


def test_colours_are_altered_by_up_to_two_fifths() -> None:
    grey = Image.new("RGB", (8, 8), (100, 100, 100))  # whose contrast and saturation cannot change
    values = [np.asarray(jittered(grey, rng=np.random.default_rng(seed))).mean() for seed in range(200)]
    assert 59 <= min(values) < 65
    assert 135 < max(values) <= 141
    red = Image.new("RGB", (8, 8), (200, 0, 0))
    altered = [np.asarray(jittered(red, rng=np.random.default_rng(seed)))[0, 0].tolist() for seed in range(20)]
    assert len({tuple(colour) for colour in altered}) == 20


def test_a_photo_that_has_gone_since_is_named(images: PhotoImages) -> None:
    def gone(index: int) -> bytes:
        raise FileNotFoundError(2, "No such file or directory", f"{index}.png")

    lost = PhotoImages(
        Photos(images.photos.names, images.photos.sizes, images.photos.labels, gone), images.chosen, SIDE
    )
    with pytest.raises(InvalidData, match=r"^17 could be read when the search began: .*No such file.* Restore it"):
        next(lost.batches(torch.tensor([17]), batch_size=1))


def test_normalisation_is_that_of_imagenet() -> None:
    assert MEAN.tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert DEVIATION.tolist() == pytest.approx([58.395, 57.12, 57.375])

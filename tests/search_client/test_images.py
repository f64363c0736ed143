import pytest
import torch

from search_client.images import PixelImages


@pytest.fixture
def images() -> PixelImages:
    pixels = torch.randint(0, 256, (50, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return PixelImages(pixels, torch.arange(50), mean=torch.zeros(3), deviation=torch.ones(3), flip=False)


def test_batches_are_normalised_images_with_channels_last_in_memory(images: PixelImages) -> None:
    scaled = PixelImages(
        images.pixels, images.labels, mean=torch.tensor([1.0, 2, 3]), deviation=torch.tensor([2.0, 4, 8]), flip=False
    )
    batches = list(scaled.batches(torch.tensor([7, 3, 4]), batch_size=2))
    assert [labels.tolist() for _, labels in batches] == [[7, 3], [4]]
    x = batches[0][0]
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    expected = (images.pixels[7].double() - torch.tensor([1, 2, 3])) / torch.tensor([2, 4, 8])
    torch.testing.assert_close(x[0].permute(1, 2, 0).double(), expected)


def test_augmented_images_are_crops_of_the_image_padded_with_its_border(images: PixelImages) -> None:
    ((moved, labels),) = images.augmented_batches(torch.arange(50), batch_size=50, seed=[0])
    original = images.pixels.permute(0, 3, 1, 2).float()
    padded = torch.nn.functional.pad(original, (2, 2, 2, 2), mode="replicate")
    seen = set()
    for label in labels.tolist():
        offsets = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(padded[label, :, top : top + 16, left : left + 16], moved[label])
        ]
        assert len(offsets) == 1
        seen.update(offsets)
    assert len(seen) > 15  # of 25


def test_half_of_the_images_are_mirrored_where_that_makes_sense(images: PixelImages) -> None:
    mirrored = PixelImages(images.pixels, images.labels, images.mean, images.deviation, flip=True)
    centre = images.pixels[:, 8, 8].float()  # a crop moves it by two at most
    ((x, _),) = mirrored.augmented_batches(torch.arange(50), batch_size=50, seed=[0])
    assert not torch.equal(x[:, :, 8, 8], centre)
    original = images.pixels.permute(0, 3, 1, 2).float()
    padded = torch.nn.functional.pad(original, (2, 2, 2, 2), mode="replicate")
    crops = [[padded[:, :, top : top + 16, left : left + 16] for left in range(5)] for top in range(5)]
    flips = sum(
        any(torch.equal(crops[top][left][index].flip(2), x[index]) for top in range(5) for left in range(5))
        for index in range(50)
    )
    assert 12 < flips < 38


def test_what_is_altered_depends_on_the_seed_alone(images: PixelImages) -> None:
    def altered(*seed: int) -> torch.Tensor:
        return torch.cat([x for x, _ in images.augmented_batches(torch.arange(50), batch_size=20, seed=seed)])

    assert torch.equal(altered(1, 2), altered(1, 2))
    assert not torch.equal(altered(1, 2), altered(1, 3))

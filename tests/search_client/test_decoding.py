import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from search_client.decoding import Photos, decode_all, decoded, must_be_few
from search_client.errors import InvalidData


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photos_of(contents: list[bytes]) -> Photos:
    sizes = np.array([len(content) for content in contents])
    names = [f"{index}.jpg" for index in range(len(contents))]
    return Photos(names, sizes, np.zeros(len(contents), dtype=np.int64), read=lambda index: contents[index])


def test_grey_images_become_rgb() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.stack([ramp] * 3, axis=-1)
    assert np.array_equal(np.asarray(decoded(encoded(Image.fromarray(ramp)))), expected)


def test_sixteen_bits_of_grey_become_eight() -> None:
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    expected = np.stack([ramp // 257] * 3, axis=-1)
    assert np.array_equal(np.asarray(decoded(encoded(Image.fromarray(ramp)))), expected)


def test_palette_images_become_rgb(photos: Callable[[int], list[Image.Image]]) -> None:
    palette = photos(1)[0].quantize(16)
    assert np.array_equal(np.asarray(decoded(encoded(palette))), np.asarray(palette.convert("RGB")))


def test_cmyk_images_become_rgb(photos: Callable[[int], list[Image.Image]]) -> None:
    photo = photos(1)[0]
    image = decoded(encoded(photo.convert("CMYK"), "JPEG", quality=95))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image, dtype=float) - np.asarray(photo)).mean() < 4


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_images_are_composited_on_white(mode: str) -> None:
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[..., 3] = [0, 51, 255]  # black that is invisible, a fifth visible, opaque
    content = encoded(Image.fromarray(pixels).convert(mode))
    assert np.asarray(decoded(content)).tolist() == [[[255] * 3, [204] * 3, [0] * 3]]


def test_transparent_colours_of_a_palette_are_composited_on_white() -> None:
    palette = Image.fromarray(np.array([[0, 1, 1]], dtype=np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 10, 20, 30])
    content = encoded(palette, transparency=bytes([0, 255]))
    assert np.asarray(decoded(content)).tolist() == [[[255] * 3, [10, 20, 30], [10, 20, 30]]]


def test_orientation_of_a_camera_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert decoded(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).size == (8, 4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_truncated_image_does_not_decode(kind: str, photos: Callable[[int], list[Image.Image]]) -> None:
    content = encoded(photos(1)[0], kind)
    decoded(content)
    with pytest.raises(InvalidData):
        decoded(content[: len(content) // 2])


def test_an_image_that_would_fill_the_memory_does_not_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9999)
    with pytest.raises(InvalidData, match="exceeds limit"):
        decoded(content)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_all_damaged_images_are_found_with_their_reasons(photos: Callable[[int], list[Image.Image]]) -> None:
    contents = [encoded(photo, "JPEG") for photo in photos(10)] * 30  # enough for worker processes
    contents[7] = contents[7][:-100]
    contents[150] = b"<html>404"
    done: list[int] = []
    damaged = decode_all(photos_of(contents), advance=lambda count, _="": done.append(count))
    assert damaged["150.jpg"] == "it is no image that Pillow knows"
    assert "truncated" in damaged["7.jpg"]
    assert len(damaged) == 2
    assert done[-1] == 300


def test_more_than_one_percent_of_damaged_images_are_refused(photos: Callable[[int], list[Image.Image]]) -> None:
    contents = [encoded(photo, "JPEG") for photo in photos(100)]
    contents[3] = b""
    must_be_few(decode_all(photos_of(contents), advance=lambda _, __="": None), images=100)
    contents[4] = b""
    damaged = decode_all(photos_of(contents), advance=lambda _, __="": None)
    with pytest.raises(InvalidData, match=r"2 of 100 images do not decode, .* 1%: 3\.jpg \(.*\), 4\.jpg .* Replace"):
        must_be_few(damaged, images=100)

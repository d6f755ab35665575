"""Canonical pixels as an RGB picture: all kinds at 8 bits, and the ground of what is transparent."""

import io

import numpy as np
import pytest
from helpers import encoded
from PIL import Image

from engine.images import canonical as px
from engine.images.pil_images import from_image
from engine.images.rgb_picture import to_rgb8

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


RNG = np.random.default_rng(20240611)
PICTURE = RNG.integers(0, 256, (37, 41, 3), np.uint8)
SAMPLES = RNG.integers(0, 65536, (5, 4, 4), np.uint16)
BITS = RNG.integers(0, 2, (10, 13, 3), np.uint8)


def test_a_picture_for_looking_at_is_the_picture():
    assert np.array_equal(to_rgb8(px.from_array(PICTURE)), PICTURE)
    assert np.array_equal(to_rgb8(px.from_array(BITS)), BITS * 255)
    assert np.array_equal(to_rgb8(px.from_array(SAMPLES[..., :3])), SAMPLES[..., :3] >> 8)


def test_a_picture_for_looking_at_lies_on_white():
    picture = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)])
    picture[0, 0, 3], picture[0, 1, 3] = 0, 128
    seen = to_rgb8(px.from_array(picture))
    assert seen[0, 0].tolist() == [255, 255, 255]
    assert np.all(seen[0, 1] >= PICTURE[0, 1])
    assert np.array_equal(seen[1:], PICTURE[1:])


# --- the ground of transparent pictures -----------------------------------------------------------


def drawing(value: int, seed: int) -> Image.Image:
    """Some ellipses of one grey on transparency."""
    from PIL import ImageDraw

    image = Image.new("RGBA", (128, 128), (value, value, value, 0))
    draw = ImageDraw.Draw(image)
    for x, y in np.random.default_rng(seed).integers(10, 80, (4, 2)).tolist():
        draw.ellipse((x, y, x + 26, y + 20), fill=(value, value, value, 255))
    return image


@pytest.mark.parametrize("value", [60, 128, 192, 211, 226, 238, 245, 254])
def test_a_drawing_on_transparency_stands_out_from_its_ground(value):
    from engine.images import fingerprint

    def of(image: Image.Image) -> tuple[int, int]:
        bits, quality = fingerprint.fingerprint(from_image(image))
        return int.from_bytes(bits), quality

    first, quality = of(drawing(value, 1))
    half, _ = of(drawing(value, 1).resize((64, 64)))
    compressed, _ = of(Image.open(io.BytesIO(encoded(drawing(value, 1), "WEBP", quality=60))))
    other, _ = of(drawing(value, 2))
    assert quality >= 10
    assert (first ^ half).bit_count() <= 31
    assert (first ^ compressed).bit_count() <= 31
    assert (first ^ other).bit_count() > 31


def test_nothing_but_transparency_is_white():
    empty = px.from_array(np.zeros((4, 4, 4), np.uint8) + np.uint8([9, 9, 9, 0]))
    assert (to_rgb8(empty) == 255).all()

"""The distortions that make copies of pictures: a fixed list of pure functions.

Each takes (H, W, 3) uint8 and a seed, and returns (H', W', 3) uint8. Its random numbers depend only on
the seed and its name, so that a new distortion does not change the others.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Array = npt.NDArray[np.uint8]
Distortion = Callable[[Array, int], Array]

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def jpeg30(picture: Array, seed: int) -> Array:
    """Save as a JPEG of quality 30."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=30)
    return _array(Image.open(file, formats=["JPEG"]))


def half(picture: Array, seed: int) -> Array:
    """Shrink to half the width and half the height."""
    height, width, _ = picture.shape
    size = max(1, width // 2), max(1, height // 2)
    return _array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def crop80(picture: Array, seed: int) -> Array:
    """Crop to 80 % of the area, with the same aspect ratio, anywhere."""
    return _cropped(picture, 0.8, _random(seed, "crop80"))


def crop60(picture: Array, seed: int) -> Array:
    """Crop to 60 % of the area, with the same aspect ratio, anywhere."""
    return _cropped(picture, 0.6, _random(seed, "crop60"))


def rotate5(picture: Array, seed: int) -> Array:
    """Turn by 5°, left or right; the uncovered corners are black."""
    angle = 5 if _random(seed, "rotate5").random() < 0.5 else -5
    return _array(Image.fromarray(picture).rotate(angle, Image.Resampling.BICUBIC))


def flip(picture: Array, seed: int) -> Array:
    """Mirror left to right."""
    return np.ascontiguousarray(picture[:, ::-1])


def jitter(picture: Array, seed: int) -> Array:
    """Multiply brightness, contrast and saturation by 0.7 … 1.3, and turn the hue by up to 18°."""
    random = _random(seed, "jitter")
    brightness, contrast, saturation = random.uniform(0.7, 1.3, 3)
    turn = int(random.integers(-13, 14))  # 256 is a full turn
    x = picture.astype(np.float64) * brightness
    middle = (x @ _LUMA).mean()
    x = middle + (x - middle) * contrast
    grey = (x @ _LUMA)[..., None]
    hsv = np.array(Image.fromarray(_bytes(grey + (x - grey) * saturation)).convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(np.int64) + turn) & 255
    return _array(Image.fromarray(hsv, "HSV"))


def blur(picture: Array, seed: int) -> Array:
    """Blur with a Gaussian of σ = 2 pixels."""
    return _array(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(2)))


def noise(picture: Array, seed: int) -> Array:
    """Add Gaussian noise of σ = 10, of 255, to each value."""
    return _bytes(picture + _random(seed, "noise").normal(0, 10, picture.shape))


def overlay(picture: Array, seed: int) -> Array:
    """Draw a yellow face over 10 % of the area, anywhere."""
    height, width, _ = picture.shape
    # An ellipse fills π / 4 of its box.
    share = math.sqrt(0.1 * 4 / math.pi)
    wide, high = max(2.0, share * width), max(2.0, share * height)
    x, y = _random(seed, "overlay").random(2) * (max(0, width - wide), max(0, height - high))

    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
        return (x + left * wide, y + top * high, x + right * wide, y + bottom * high)

    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    pen.ellipse(box(0, 0, 1, 1), fill=(255, 204, 51))
    for left in (0.27, 0.61):
        pen.ellipse(box(left, 0.28, left + 0.12, 0.46), fill=(60, 40, 20))
    pen.chord(box(0.25, 0.35, 0.75, 0.82), 0, 180, fill=(160, 40, 30))
    return _array(image)


def grey(picture: Array, seed: int) -> Array:
    """Remove colour: three equal channels of luma."""
    return _bytes(np.repeat((picture @ _LUMA)[..., None], 3, axis=-1))


DISTORTIONS: dict[str, Distortion] = {
    "jpeg30": jpeg30,
    "half": half,
    "crop80": crop80,
    "crop60": crop60,
    "rotate5": rotate5,
    "flip": flip,
    "jitter": jitter,
    "blur": blur,
    "noise": noise,
    "overlay": overlay,
    "grey": grey,
}


def _cropped(picture: Array, area: float, random: np.random.Generator) -> Array:
    height, width, _ = picture.shape
    side = math.sqrt(area)
    high, wide = max(1, round(height * side)), max(1, round(width * side))
    top = int(random.integers(0, height - high + 1))
    left = int(random.integers(0, width - wide + 1))
    return np.ascontiguousarray(picture[top : top + high, left : left + wide])


def _random(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox([seed, zlib.crc32(name.encode())]))


def _array(image: Image.Image) -> Array:
    return np.array(image.convert("RGB"))


def _bytes(values: npt.NDArray[np.float64]) -> Array:
    return np.rint(values).clip(0, 255).astype(np.uint8)

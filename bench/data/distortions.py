"""Fixed, seeded changes that make a copy of a photograph: a picture in, a file out."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from engine.errors import UsageError

Change = Callable[[Image.Image, np.random.Generator], bytes]


def upright(data: bytes) -> Image.Image:
    """A photograph as people see it: RGB, turned by its EXIF orientation."""
    with Image.open(io.BytesIO(data)) as image:
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            raise UsageError("a photograph with transparent pixels cannot be changed like the rest")
        return ImageOps.exif_transpose(image).convert("RGB")


def as_file(image: Image.Image, container: str, **options: int) -> bytes:
    """The bytes of an image file in the given container (``"PNG"``, ``"BMP"``, ``"JPEG"``)."""
    file = io.BytesIO()
    image.save(file, container, **options)
    return file.getvalue()


def crop_to(share: float) -> Change:
    """Keep this share of each side, at a uniformly drawn place."""

    def crop(image: Image.Image, draw: np.random.Generator) -> bytes:
        width, height = round(image.width * share), round(image.height * share)
        left = int(draw.integers(0, image.width - width + 1))
        top = int(draw.integers(0, image.height - height + 1))
        return as_file(image.crop((left, top, left + width, top + height)), "PNG")

    return crop


def jpeg(image: Image.Image, draw: np.random.Generator) -> bytes:
    """Compress it again, at quality 50."""
    return as_file(image, "JPEG", quality=50)


def half(image: Image.Image, draw: np.random.Generator) -> bytes:
    """Halve both sides."""
    size = max(1, image.width // 2), max(1, image.height // 2)
    return as_file(image.resize(size, Image.Resampling.LANCZOS), "PNG")


def brightness(image: Image.Image, draw: np.random.Generator) -> bytes:
    """Multiply every value by 0.8 or by 1.2."""
    return as_file(ImageEnhance.Brightness(image).enhance(float(draw.choice([0.8, 1.2]))), "PNG")


def flip(image: Image.Image, draw: np.random.Generator) -> bytes:
    """Mirror left and right."""
    return as_file(ImageOps.mirror(image), "PNG")


CHANGES: dict[str, Change] = {
    "crop to 80 % a side": crop_to(0.8),
    "JPEG quality 50": jpeg,
    "half the size": half,
    "brightness ± 20 %": brightness,
    "mirrored": flip,
}

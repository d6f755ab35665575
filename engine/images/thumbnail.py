"""A small picture of an image as the bytes of a PNG file, for people to look at."""

from __future__ import annotations

import io

from PIL import Image

from engine.images.rgb_picture import to_rgb8
from engine.records import Pixels


def thumbnail_png(pixels: Pixels, size: int) -> bytes:
    """The whole image, its longer side ``size`` pixels at most and never enlarged; RGB, 8 bits.

    What is transparent has the ground of ``to_rgb8``.
    """
    image = Image.fromarray(to_rgb8(pixels))
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()

"""Makes a small PNG of an image, for people to look at."""

from __future__ import annotations

import io

from PIL import Image

from engine.images.rgb_picture import to_rgb8
from engine.records import Pixels


def thumbnail_png(pixels: Pixels, size: int) -> bytes:
    """Return a PNG of the whole image, at most ``size`` pixels on the longer side; never enlarged.

    It is 8-bit RGB. Transparent parts get the ground of ``to_rgb8``.
    """
    image = Image.fromarray(to_rgb8(pixels))
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()

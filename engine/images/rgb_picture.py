"""Converts canonical pixels to 8-bit RGB pictures, for fingerprints and encoders."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.images.canonical import HEADER_BYTES
from engine.records import Kind, Pixels

# A white drawing on transparency would be a blank page on a white ground. So the ground depends on the
# mean luma (0-255) of the opaque part, weighted by alpha. A smaller or compressed copy keeps that
# to one or two. Every rule has a value at which the ground changes; a ground that moved smoothly
# with the picture would meet it somewhere. This value lies between the lumas that drawings often
# have: below it light grey (211), gainsboro (220) and yellow (226), above it #eee (238), white
# smoke (245) and white.
_ABOUT_WHITE = 232


def to_rgb8(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """Convert to (H, W, 3) uint8: bits to 0 and 255, 16 bits to the upper 8, alpha over a ground.

    The ground is white, or black if the opaque part is about white (``_ABOUT_WHITE``).
    """
    shape = (pixels.height, pixels.width, pixels.channels)
    body = np.frombuffer(pixels.canonical, np.uint8)[HEADER_BYTES:]
    if pixels.kind is Kind.BITS:
        count = pixels.height * pixels.width * pixels.channels
        array = (np.unpackbits(body, count=count) * np.uint8(255)).reshape(shape)
    elif pixels.kind is Kind.U16:
        array = (body.view("<u2") >> 8).astype(np.uint8).reshape(shape)
    else:
        array = body.reshape(shape)
    if pixels.channels == 3:
        return array
    alpha = array[..., 3:].astype(np.uint16)
    colour = array[..., :3] * alpha
    red, green, blue = (int(total) for total in colour.sum(axis=(0, 1), dtype=np.uint64))
    luma = 299 * red + 587 * green + 114 * blue
    if luma <= _ABOUT_WHITE * 1000 * int(alpha.sum(dtype=np.uint64)):
        colour += 255 * (255 - alpha)
    colour //= 255
    return colour.astype(np.uint8)


def pil_rgb8(pixels: Pixels) -> Image.Image:
    """Return ``to_rgb8`` as a PIL image. It is a copy of four bytes a pixel, so share it."""
    return Image.fromarray(to_rgb8(pixels))

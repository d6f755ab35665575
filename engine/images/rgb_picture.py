"""Canonical pixels as an 8-bit RGB picture: what fingerprints and encoders look at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.images.canonical import HEADER_BYTES
from engine.records import Kind, Pixels

# A drawing in white on transparency would be a blank page on white. Which ground it gets depends on the
# mean luma (0-255) of what is opaque, weighted by alpha, which a smaller or compressed copy keeps to one
# or two. No rule is without a value where the ground changes: one whose ground moved smoothly with the
# picture would somewhere meet it. This one lies between the lumas that drawings often have: below it
# light grey (211), gainsboro (220) and yellow (226), above it #eee (238), white smoke (245) and white.
_ABOUT_WHITE = 232


def to_rgb8(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 for looking at: bits as 0 and 255, 16 bits as the upper 8, alpha over a ground.

    The ground is white, or black where what is opaque is about white (``_ABOUT_WHITE``).
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


def squash(picture: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """The whole of (H, W, 3) as (size, size, 3): what encoders look at, in training and after it.

    Bilinear with antialiasing; the shape of the picture is lost, nothing at its edges is.
    """
    if picture.shape[:2] == (size, size):
        return picture
    image = Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)

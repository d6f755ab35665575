"""Canonical pixels to a 256-bit fingerprint, which changes little when the picture changes little.

Stored for every image from the first on, so that looking for near copies never needs the images
again. Two kinds, told apart by the image's own kind:

8 and 16 bits   PDQ (Facebook, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing
                Algorithm", 2019), of a copy shrunk to at most 128 × 128, with PDQ's quality (0-100).
bits            256 of the image's bits at places drawn once for its size; noise in a bit image flips
                bits, which a frequency transform would smear over all 256. Quality is twice the
                share of the rarer value, in percent: a flat image is 0.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine import pixels as px
from engine.records import Kind, Pixels

FINGERPRINT_VERSION = 1
FINGERPRINT_BYTES = 32
# PDQ works on 64 × 64; at 512 × 512 its own filter takes 4 times as long and no copy is found better.
# Bilinear: of box, Lanczos and it, the one whose copies at half and a third of the size are nearest.
_SIDE = 128
# The same in every store, so that fingerprints can be compared across shards.
_AT_ONCE = 256  # images
_SEED = 0x656E67696E65


def fingerprint(pixels: Pixels) -> tuple[bytes, int]:
    """The 32-byte fingerprint of one image and its quality (0-100)."""
    if pixels.kind is Kind.BITS:
        row = np.frombuffer(pixels.canonical, np.uint8)[None, px.HEADER_BYTES :]
        bits, quality = fingerprint_bits(row, pixels.height * pixels.width * pixels.channels)
        return bits[0].tobytes(), int(quality[0])
    import pdqhash

    picture = Image.fromarray(px.to_rgb8(pixels))
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    vector, quality = pdqhash.compute(np.asarray(picture))
    return np.packbits(vector.astype(np.uint8)).tobytes(), int(quality)


def fingerprint_bits(
    packed: npt.NDArray[np.uint8], count: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Fingerprints of packed rows of ``count`` bits each.

    ``packed`` is (n, ceil(count / 8)) uint8; returns (n, 32) uint8 and the qualities (n,) uint8.
    """
    places, masks = _places(count)
    bits = np.empty((len(packed), FINGERPRINT_BYTES), np.uint8)
    for at in range(0, len(packed), _AT_ONCE):  # so that the 256 bytes an image stay in the cache
        values = packed[at : at + _AT_ONCE].take(places, axis=1, mode="clip")
        values &= masks
        bits[at : at + len(values)].reshape(-1)[:] = np.packbits(values.reshape(-1))
    words = np.bitwise_count(bits.view(np.uint64)).astype(np.int64)
    ones = words[:, 0] + words[:, 1] + words[:, 2] + words[:, 3]
    return bits, (np.minimum(ones, 256 - ones) * 200 >> 8).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _places(count: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint8]]:
    """Byte and mask of each of the 256 sampled bits, sorted so that memory is walked forwards."""
    raw = np.random.Philox(key=_SEED).random_raw(4096)
    # Rejection-free and independent of NumPy's generators, whose streams may change: distinct places
    # as long as the image has more bits than the sample.
    places = dict.fromkeys(int(value % np.uint64(count)) for value in raw)
    chosen = sorted(list(places)[:256])
    bits = np.array((chosen * (256 // len(chosen) + 1))[:256], np.int64)
    return (bits >> 3).astype(np.intp), (128 >> (bits & 7)).astype(np.uint8)

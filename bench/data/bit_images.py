"""Seeded bit images: 100×100 RGB, every channel value one random bit, made in chunks.

Row r of a set depends on its seed and r only. So any row can be made again for a query, and the rows
from n on are misses for a set of n.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from engine.images.canonical import HEADER_BYTES
from engine.sources.synthetic import generate

SHAPE = (100, 100, 3)
IMAGE_BYTES = 30_000  # of an unpacked image, one byte a channel value
PACKED_BYTES = IMAGE_BYTES // 8
CHUNK = 64  # images made at a time: 1.9 MB unpacked
_PACKED_CHUNK = 1024  # packed images made at a time

Images = npt.NDArray[np.uint8]


def packed(seed: int, first: int, count: int) -> Images:
    """Rows ``[first, first + count)`` as the engine packs them: (count, 3750) uint8, 8 bits a byte."""
    return generate(seed, first, count)[:, HEADER_BYTES:]


def unpacked(seed: int, first: int, count: int) -> Images:
    """The same rows as values 0 and 1: (count, 100, 100, 3) uint8."""
    return np.unpackbits(packed(seed, first, count), axis=1).reshape(count, *SHAPE)


def packed_set(seed: int, n: int) -> Images:
    """Rows ``[0, n)`` in one array without gaps: (n, 3750) uint8."""
    rows = np.empty((n, PACKED_BYTES), np.uint8)
    for first in range(0, n, _PACKED_CHUNK):
        part = rows[first : first + _PACKED_CHUNK]
        part[:] = packed(seed, first, len(part))
    return rows


def packed_rows(seed: int, numbers: npt.NDArray[np.int64]) -> Images:
    """Any rows, packed: (n, 3750) uint8."""
    rows = np.empty((len(numbers), PACKED_BYTES), np.uint8)
    for row, number in zip(rows, numbers.tolist(), strict=True):
        row[:] = packed(seed, number, 1)[0]
    return rows


def packed_misses(n: int, seed: int, first: int, count: int) -> Images:
    """``count`` packed images that are not in a set of ``n``; another ``first`` gives other ones.

    As in ``misses``, every other image is new, and the rest differ in one bit from an image of the set.
    """
    draw = np.random.default_rng([seed, n, 1, first])
    images = packed(seed, n + first, count).copy()
    near = images[1::2]
    near[:] = packed_rows(seed, draw.integers(0, n, len(near)))
    bits = draw.integers(0, IMAGE_BYTES, len(near))
    near[np.arange(len(near)), bits >> 3] ^= (128 >> (bits & 7)).astype(np.uint8)
    return images


def hits(n: int, seed: int, count: int) -> Iterator[tuple[int, Images]]:
    """Draw ``count`` rows from a set of ``n``: the number and the image (100, 100, 3) of each."""
    for row in np.random.default_rng([seed, n]).integers(0, n, count):
        yield int(row), unpacked(seed, int(row), 1)[0]


def misses(n: int, seed: int, count: int) -> Iterator[tuple[None, Images]]:
    """``count`` images that are not in a set of ``n``.

    Every other one is new. The rest are images of the set with one bit flipped: only a method that
    compares all bits can tell them from the original.
    """
    draw = np.random.default_rng([seed, n, 1])
    for i in range(count):
        if i % 2 == 0:
            yield None, unpacked(seed, n + i, 1)[0]
        else:
            image = unpacked(seed, int(draw.integers(0, n)), 1)[0]
            image.reshape(-1)[draw.integers(0, IMAGE_BYTES)] ^= 1
            yield None, image

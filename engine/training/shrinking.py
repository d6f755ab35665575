"""Shrinks the pictures of a training run, and finds the largest side that fits on the disk."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.errors import UsageError

Array = npt.NDArray[np.uint8]

# Limit of the longer side, as a multiple of the shorter one, for narrow strips of pixels.
_LONGEST = 8


def shrunk(rgb: Array, side: int) -> Array:
    """(H, W, 3) uint8 with the shorter side shrunk to ``side`` pixels; never enlarged."""
    target = np.array([rgb.shape[:2]], np.int64)
    height, width = target_sizes(target, side)[0].tolist()
    if (height, width) == rgb.shape[:2]:
        return rgb
    image = Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8)


def target_sizes(sizes: npt.NDArray[np.int64], side: int) -> npt.NDArray[np.int64]:
    """(n, 2) heights and widths → (n, 2) shrunk heights and widths."""
    shorter = sizes.min(1, keepdims=True)
    longest = _LONGEST * side
    factor = np.minimum(side / shorter, longest / sizes.max(1, keepdims=True))
    # Rounding must not take a shorter side below ``side``.
    least = np.minimum(np.where(factor * shorter >= side - 0.5, side, 1), sizes)
    small = np.maximum(least, np.rint(sizes * factor).astype(np.int64))
    return np.where(factor >= 1, sizes, small)


def largest_side(sizes: npt.NDArray[np.int64], side: int, square: int, most: int) -> int:
    """The largest side with which all pictures fit into ``most`` bytes; ``UsageError`` if none fits."""

    def total(side: int) -> int:
        return int(target_sizes(sizes, side).prod(1).sum() + len(sizes) * square**2) * 3

    if side <= square or total(square) > most:
        smallest = min(side, square)
        raise UsageError(
            f"{len(sizes):,} pictures of {smallest} pixels a side take {_gib(total(smallest))} of "
            f"disk, but the limit is {_gib(most)}: choose a smaller image size or fewer images"
        )
    # The pictures fit with ``low`` and not with ``high``.
    low, high = square, side
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total(middle) <= most else (low, middle)
    return low


def _gib(count: int) -> str:
    return f"{count / (1 << 30):,.2f} GiB"

"""Packed bit images of one size, as callers pass them and as they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config import whole
from engine.errors import UsageError
from engine.images.canonical import HEADER_BYTES, array_kind, rows_from_array, rows_header
from engine.records import Kind, Pixels


class PackedBits:
    """n bit images of one size, eight values to a byte, as they are hashed, stored and compared.

    ``packed`` is (n, ceil(height · width · 3 / 8)) uint8: the values of each image row by row, three
    channels interleaved, the first value in the highest bit, zeros after the last one. That is what
    ``numpy.packbits(images.reshape(n, -1), axis=1)`` returns. Slices of it are ``PackedBits``
    too, and so are some of its images, by a mask or indices.

    Raises ``UsageError`` if ``packed`` has another shape or dtype, or ones after the last value.
    """

    __slots__ = ("height", "packed", "width")

    def __init__(self, packed: npt.NDArray[np.uint8], height: int, width: int) -> None:
        if not isinstance(packed, np.ndarray):
            raise UsageError(f"packed bits are an array of uint8, not a {type(packed).__name__}")
        try:
            sides = whole(height), whole(width)
        except TypeError:
            sides = 0, 0
        if min(sides) < 1:
            raise UsageError(f"a height and width of {height!r} and {width!r}: whole numbers ≥ 1")
        height, width = sides
        values = height * width * 3
        size = -(-values // 8)
        if packed.ndim != 2 or packed.shape[1] != size or packed.dtype != np.uint8:
            raise UsageError(
                f"packed bits of shape {packed.shape} and dtype {packed.dtype}: for images of "
                f"{height} × {width} (n, {size}) uint8 is needed"
            )
        unused = 8 * size - values
        if unused and (packed[:, -1] & ((1 << unused) - 1)).any():
            raise UsageError(f"packed bits: the last {unused} bits of an image must be 0")
        self.packed = packed
        self.height = height
        self.width = width

    @classmethod
    def pack(cls, images: npt.NDArray[Any]) -> PackedBits:
        """Pack (n, H, W), (n, H, W, 1) or (n, H, W, 3) of bool or of 0 and 1; grey becomes RGB."""
        if array_kind(images) is not Kind.BITS:
            raise UsageError("images with values above 1 are not bit images: pass images > 0")
        n, height, width = images.shape[:3]
        packed = np.empty((n, -(-height * width * 3 // 8)), np.uint8)
        # In small steps, because an unpacked grey image takes three bytes per pixel.
        for at in range(0, n, 256):
            rows = rows_from_array(images[at : at + 256], Kind.BITS)
            packed[at : at + len(rows)] = rows[:, HEADER_BYTES:]
        return cls(packed, height, width)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.packed)

    def __getitem__(self, which: slice | int | npt.NDArray[Any]) -> PackedBits:
        """Return some of the images, or one, as ``PackedBits``.

        ``which`` may be an array too: (n,) bool, or indices.
        """
        if isinstance(which, np.ndarray) and which.ndim == 1:
            return PackedBits(self.packed[which], self.height, self.width)
        if not isinstance(which, slice):
            # Indexing the range raises IndexError, and resolves negative indices.
            which = range(len(self))[which]
            which = slice(which, which + 1)
        return PackedBits(self.packed[which], self.height, self.width)

    def only(self) -> Pixels:
        """Return the single image as ``Pixels``; ``UsageError`` if there is not exactly one."""
        if len(self.packed) != 1:
            raise UsageError(f"{len(self.packed)} images, where one is needed")
        canonical = rows_header(Kind.BITS, self.height, self.width) + self.packed[0].tobytes()
        return Pixels(Kind.BITS, self.height, self.width, 3, 1, canonical)

    def canonical(self) -> npt.NDArray[np.uint8]:
        """Return the canonical form of each image: (n, 16 + bytes) uint8, copied."""
        out = np.empty((len(self.packed), HEADER_BYTES + self.packed.shape[1]), np.uint8)
        out[:, :HEADER_BYTES] = np.frombuffer(
            rows_header(Kind.BITS, self.height, self.width), np.uint8
        )
        out[:, HEADER_BYTES:] = self.packed
        return out

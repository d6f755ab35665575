"""Images that are in memory already: an array, or packed bits, under a name that the caller gives."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from engine import digest
from engine.errors import UsageError
from engine.pixels import (
    HEADER_BYTES,
    PackedBits,
    array_kind,
    rows_from_array,
    rows_header,
)
from engine.records import Kind
from engine.sources.base import RowBlock

PREFIX = "memory:"

Images = PackedBits | npt.NDArray[np.uint8] | npt.NDArray[np.bool_]


class MemoryArray:
    """n images of one size: ``PackedBits``, or an array (n, H, W) or (n, H, W, 3).

    It is stamped with a checksum of its contents. The same name with the same images is what is
    there already, and an ingest of it that was interrupted goes on; with other images it replaces
    what the name stood for, as a changed file does.
    """

    def __init__(self, images: Images, name: str) -> None:
        """``UsageError`` if it is no such array or ``name`` is no name."""
        if not isinstance(name, str) or not name or "\0" in name:
            raise UsageError("images in memory need a name: name='camera-3'")
        self.name = PREFIX.encode() + os.fsencode(name)
        self._images = images
        self.count = len(images)
        if isinstance(images, PackedBits):
            self.kind = Kind.BITS
            header = rows_header(Kind.BITS, images.height, images.width)
            data = images.packed
            self._each = data.shape[1] + HEADER_BYTES
        else:
            self.kind = array_kind(images)
            header = rows_header(self.kind, *images.shape[1:3]) + bytes([images.ndim])
            data = images.view(np.uint8)
            self._each = int(np.prod(images.shape[1:])) * (1 if images.ndim == 4 else 3)
        self.row_bytes = self._each
        data = np.ascontiguousarray(data)
        # With the header: the same bytes in another shape are other images.
        contents = digest.stamp(data.data) if self.count else 0
        self.mtime_ns = digest.stamp(header + contents.to_bytes(8, "big"))
        self.size = data.nbytes

    def blocks(self, start: int, most_rows: int, most_bytes: int) -> Iterator[RowBlock]:
        """Canonical rows from ``start`` on."""
        step = max(1, min(most_rows, most_bytes // self._each))
        for at in range(start, self.count, step):
            part = self._images[at : at + step]
            if isinstance(part, PackedBits):
                yield RowBlock(at, part.canonical(), Kind.BITS)
            else:
                yield RowBlock(at, rows_from_array(part, self.kind), self.kind)

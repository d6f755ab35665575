"""The committed fingerprints, mapped, and a linear scan for those near a query's.

Row r belongs to image r + 1; an extent has ``Limits.extent_rows`` rows, 2^20 by default. The scan is
linear because a million fingerprints are 32 MB, which take a few milliseconds. An index over Hamming
distances of 31 would have to read nearly all of them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.records import Place
from engine.storage import extents
from engine.storage.extent_reader import ExtentReader

# Rows per block, so that intermediate results stay in the processor's cache.
_BLOCK = 1 << 14
_WORDS = 4  # 64-bit words per row


class NearRows(NamedTuple):
    """Some rows within the distance of one query."""

    query: int
    rows: npt.NDArray[np.int64]  # (n,)
    distances: npt.NDArray[np.int64]  # (n,)
    prints: npt.NDArray[np.uint8]  # (n, 32)


class Fingerprints:
    """The fingerprints of a store: (rows, 32) uint8. The caller passes the committed lengths."""

    def __init__(self, store: Path, block_rows: int = _BLOCK) -> None:
        """``block_rows``: how many rows are compared at a time."""
        self._block_rows = block_rows
        self._reader = ExtentReader(store, extents.FINGERPRINTS)

    def near(
        self,
        queries: npt.NDArray[np.uint8],
        most: int,
        committed: Sequence[Sequence[int]],
        *,
        holes: bool = False,
    ) -> Iterator[NearRows]:
        """Yield the rows within ``most`` bits of one of (m, 32) ``queries``, in row order per query.

        ``committed``: the number and the data bytes of each extent, as in a state. ``holes``: many rows
        may never have been written and read as zeros; they are skipped unless a query is near zero.
        Raises ``StoreDamagedError`` if an extent is gone or cut short.
        """
        words = np.ascontiguousarray(queries).view(np.uint64)
        holes = holes and bool((np.bitwise_count(words).sum(axis=1) > most).all())
        # Each query is repeated for a whole block: a loop over 64 Ki words, not 16 Ki of four.
        block_rows = self._block_rows
        repeated = [np.tile(row, block_rows) for row in words]
        unlike = np.empty(block_rows * _WORDS, np.uint64)
        counts = np.empty(block_rows * _WORDS, np.uint8)
        for first, block in self._blocks(committed, holes=holes):
            flat = block.reshape(-1)
            size = len(flat)
            for number, query in enumerate(repeated):
                np.bitwise_xor(flat, query[:size], out=unlike[:size])
                np.bitwise_count(unlike[:size], out=counts[:size])
                # Add two pairs of counts at once. A count is at most 64, so the sums do not carry over.
                pairs = counts[:size].view(np.uint16)
                both = pairs[0::2] + pairs[1::2]
                distances = (both & 0xFF) + (both >> 8)
                at = np.flatnonzero(distances <= most)
                if len(at):
                    prints = block[at].view(np.uint8)
                    yield NearRows(number, at + first, distances[at].astype(np.int64), prints)

    def _blocks(
        self, committed: Sequence[Sequence[int]], *, holes: bool
    ) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield the first row of each block, and the block: (n, 4) uint64, a view of the map.

        ``holes``: skip rows that are in a hole.
        """
        width = extents.FINGERPRINTS.row_bytes
        first = 0
        for number, size in committed:
            count = size // width
            mapped = np.asarray(self._reader.rows(number, count, np.uint64))
            spans = self._reader.written(number, count * width) if holes else [(0, count * width)]
            for start, stop in spans:
                # Announce all of it at once: page by page, the disk's queue would stay nearly empty.
                self._reader.announce([Place(number, start, stop - start)])
                end = -(-stop // width)
                for at in range(start // width, end, self._block_rows):
                    yield first + at, mapped[at : min(at + self._block_rows, end)]
            first += count

    def close(self) -> None:
        """Close the maps."""
        self._reader.close()

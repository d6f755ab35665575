"""The committed fingerprints, mapped, and the scan of all of them for those near a query's.

Row r is that of image r + 1; an extent has ``Limits.extent_rows`` of them, 2^20 by default. A
linear scan: a million are 32 MB, which take a few milliseconds, and no index over Hamming distances of
31 looks at much less than all.
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

_BLOCK = 1 << 14  # rows: what is made of them stays in the processor's cache
_WORDS = 4  # of 64 bits, a row


class NearRows(NamedTuple):
    """Some of the rows within the distance of one of the queries."""

    query: int
    rows: npt.NDArray[np.int64]  # (n,)
    distances: npt.NDArray[np.int64]  # (n,)
    prints: npt.NDArray[np.uint8]  # (n, 32)


class Fingerprints:
    """(rows, 32) uint8, where the caller says what of each extent is committed."""

    def __init__(self, store: Path, block_rows: int = _BLOCK) -> None:
        """``block_rows`` are compared at a time."""
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
        """The rows within ``most`` bits of one of (m, 32) ``queries``.

        ``committed``: the number and the data bytes of each extent, as a state has them. In the order
        of rows, and for each query by itself. ``StoreDamagedError`` if an extent is gone or cut short.
        ``holes``: many may never have been written, and are zeros; they are passed over unless a query
        is near to that.
        """
        words = np.ascontiguousarray(queries).view(np.uint64)
        holes = holes and bool((np.bitwise_count(words).sum(axis=1) > most).all())
        # A query as often as there are rows in a block: one loop over 64 Ki words and not 16 Ki of four.
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
                # Two sums in one: of two counts, at most 128 each, so that nothing is carried over.
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
        """The first row of each block, and the block: (n, 4) uint64, a view of the map.

        ``holes``: not of rows that are in one.
        """
        width = extents.FINGERPRINTS.row_bytes
        first = 0
        for number, size in committed:
            count = size // width
            mapped = np.asarray(self._reader.rows(number, count, np.uint64))
            spans = self._reader.written(number, count * width) if holes else [(0, count * width)]
            for start, stop in spans:
                # All of it at once: page by page, a disk would be asked for too little at a time.
                self._reader.announce([Place(number, start, stop - start)])
                end = -(-stop // width)
                for at in range(start // width, end, self._block_rows):
                    yield first + at, mapped[at : min(at + self._block_rows, end)]
            first += count

    def close(self) -> None:
        """Give the maps back."""
        self._reader.close()

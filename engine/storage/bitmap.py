"""A set of image ids as a bitmap: one bit for every id in use, whether or not it is in the set.

10 million ids take 1.25 MB, so a set fits in memory where a list of ids would not. A set no longer
changes once it has been handed out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_BLOCK = 1 << 16  # bytes of the bitmap that are unpacked at a time


class IdSet:
    """A set of ids from 0 to ``size`` - 1."""

    def __init__(self, bits: npt.NDArray[np.uint8], size: int) -> None:
        """``bits`` is (ceil(size / 8),) uint8, lowest bit first; bits from ``size`` on are 0."""
        self.bits = bits
        self.size = size
        self._count = -1  # not counted yet

    @classmethod
    def none(cls, size: int) -> IdSet:
        """Return the empty set over ids below ``size``."""
        return cls(np.zeros(-(-size // 8), np.uint8), size)

    @classmethod
    def of(cls, ids: npt.NDArray[np.int64], size: int | None = None) -> IdSet:
        """Return the set of those (n,) ids that are below ``size`` and not negative.

        By default, ``size`` is the greatest id plus 1, and the set takes the memory for that.
        """
        made = cls.none(size if size is not None else int(ids.max(initial=-1)) + 1)
        made.add(ids)
        return made

    def add(self, ids: npt.NDArray[np.int64]) -> None:
        """Add those of the (n,) ids that are below ``size``. Only while the set is being built."""
        able = ids[(ids >= 0) & (ids < self.size)]
        np.bitwise_or.at(self.bits, able >> 3, (1 << (able & 7)).astype(np.uint8))
        self._count = -1

    def discard(self, ids: npt.NDArray[np.int64]) -> None:
        """Take out those of the (n,) ids that are in the set. Only by its one owner."""
        able = ids[(ids >= 0) & (ids < self.size)]
        np.bitwise_and.at(self.bits, able >> 3, ~(1 << (able & 7)).astype(np.uint8))
        self._count = -1

    def add_span(self, first: int, count: int) -> None:
        """Add the ids ``first`` .. ``first + count - 1`` below ``size``. Only while building."""
        first, end = max(first, 0), min(first + count, self.size)
        if first >= end:
            return
        low, high = first >> 3, (end + 7) >> 3
        flags = np.unpackbits(self.bits[low:high], bitorder="little")
        flags[first - 8 * low : end - 8 * low] = 1
        self.bits[low:high] = np.packbits(flags, bitorder="little")
        self._count = -1

    def has(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return for each of (n,) ids whether it is in the set: (n,) bool."""
        inside: npt.NDArray[np.bool_] = (ids >= 0) & (ids < self.size)
        if not self.size:
            return inside
        at = np.where(inside, ids, 0)
        there: npt.NDArray[np.bool_] = (self.bits[at >> 3] >> (at & 7) & 1).astype(np.bool_)
        return inside & there

    def __contains__(self, id_: int) -> bool:
        return 0 <= id_ < self.size and bool(self.bits[id_ >> 3] >> (id_ & 7) & 1)

    def __len__(self) -> int:
        if self._count < 0:
            blocks = (self.bits[at : at + _BLOCK] for at in range(0, len(self.bits), _BLOCK))
            self._count = sum(int(np.bitwise_count(b).sum(dtype=np.int64)) for b in blocks)
        return self._count

    def ids(self) -> npt.NDArray[np.int64]:
        """Return all ids, ascending: (len,) int64, 64 times the memory of the bitmap if it is full."""
        return np.concatenate([np.empty(0, np.int64), *self.blocks()])

    def blocks(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yield all ids, ascending, at most 2^19 at a time: (n,) int64."""
        for at in range(0, len(self.bits), _BLOCK):
            # Unpack only the bytes that have a bit set.
            some = np.flatnonzero(self.bits[at : at + _BLOCK])
            flags = np.unpackbits(self.bits[at + some, None], axis=1, bitorder="little")
            row, bit = np.nonzero(flags)
            if len(some):
                yield (at + some[row]) * 8 + bit

    def union(self, other: IdSet) -> IdSet:
        """Return the ids that are in either set."""
        small, large = sorted((self, other), key=lambda one: one.size)
        bits = large.bits.copy()
        bits[: len(small.bits)] |= small.bits
        return IdSet(bits, large.size)

    def both(self, other: IdSet) -> IdSet:
        """Return the ids that are in both sets."""
        small, large = sorted((self, other), key=lambda one: one.size)
        return IdSet(small.bits & large.bits[: len(small.bits)], small.size)

    def without(self, other: IdSet) -> IdSet:
        """Return the ids that are in this set but not in the other."""
        bits = self.bits.copy()
        common = min(len(bits), len(other.bits))
        bits[:common] &= ~other.bits[:common]
        return IdSet(bits, self.size)

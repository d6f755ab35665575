"""Finds whose vectors are, where their ids are damaged and do not follow from the commit.

1. An id that is named once in all, and is one that was given, is right: no flipped bit leaves that.
2. Of the other rows few combinations are left, and the checksum of the append proves the right one.
3. Vectors are made again, of images or of the arrays that they were rows of, and compared.
4. One vector and one image that is left are each other's, where each image has a vector.

What cannot be known is 0: of no image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from engine.images import hashing
from engine.storage.bitmap import IdSet
from engine.storage.session import Session

Ids = npt.NDArray[np.int64]
Again = Callable[[Ids], Iterator[tuple[Ids, npt.NDArray[np.float32]]]]

_BLOCK = 1 << 16  # ids that are looked through at a time
_TRIED_BYTES = 1 << 32  # that are hashed to find a combination with the right checksum
_TRIED_ROWS = 3
_COMPARED_BYTES = 64 << 20  # of vectors that are compared
_MAX_COMPARED = 1 << 16  # images whose vectors are made again
_SAME = 1e-4  # squared distance, of the squared length, below which two vectors are the same


class Owners:
    """The ids of one damaged append: ``extent`` of the rows ``start`` to ``end`` of all."""

    def __init__(self, store: Session, damaged: bytes, start: int, end: int) -> None:
        self._store = store
        self._start, self._end = start, end
        self._size = store.snapshot.state.next_id
        self._is_imported = store.snapshot.space.is_imported
        self._dim = store.snapshot.space.dim
        self.ids = np.frombuffer(damaged, np.int64).copy()
        self.ids[(self.ids < 1) | (self.ids >= self._size)] = 0
        self._elsewhere = IdSet.none(self._size)

    def keep_sure(self, doubtful: Ids) -> Ids:
        """Put 0 for all ids that may be wrong; returns those that more than one vector was named."""
        seen = IdSet.none(self._size)
        seen.add(doubtful)
        found = self._store.snapshot.open_vectors()
        try:
            for span in ((0, self._start), (self._end, found.rows)):
                for block in found.id_blocks(*span, _BLOCK):
                    self._elsewhere.add(block[block > 0])
        finally:
            found.close()
        _, at, counts = np.unique(self.ids, return_inverse=True, return_counts=True)
        wrong = (counts[at] > 1) | seen.has(self.ids) | self._elsewhere.has(self.ids)
        doubtful = np.union1d(doubtful, self.ids[wrong])
        self.ids[wrong] = 0
        if self._is_imported:
            order = np.argsort(self.ids, kind="stable")
            images = self._store.snapshot.may_be_images(self.ids[order])
            self.ids[order[images]] = 0
        return doubtful

    def settle(self, checksum: int, again: Again) -> None:
        """Find what can be known of the rows that are 0; ``checksum`` is that of the right ids."""
        if self._is(checksum) or self._try(checksum):
            return
        self._compare(again)
        if self._is(checksum) or self._try(checksum):
            return
        rows, left = self._rows(), self._live_left()
        if self._is_imported and len(rows) == len(left) == 1:
            self.ids[rows] = left

    def _is(self, checksum: int) -> bool:
        return hashing.checksum(self.ids.tobytes()) == checksum

    def _rows(self) -> Ids:
        return np.flatnonzero(self.ids == 0)

    def _left(self) -> Ids:
        """All ids that no vector is known to be of."""
        left = IdSet.none(self._size)
        left.add_span(1, self._size - 1)
        named = IdSet(self._elsewhere.bits.copy(), self._size)
        named.add(self.ids[self.ids > 0])
        blocks = list(left.without(named).blocks())
        return np.concatenate(blocks) if blocks else np.empty(0, np.int64)

    def _live_left(self) -> Ids:
        """Those of them that are of images which are there, and may have a vector."""
        left = self._left()
        if not len(left):
            return left
        if self._is_imported:
            left = left[~self._store.snapshot.may_be_images(left)]
        return np.array(self._store.snapshot.those_there(left.tolist()), np.int64)

    def _try(self, checksum: int) -> bool:
        """Find the combination of ids that has the right checksum."""
        rows, left = self._rows(), self._left()
        if not len(rows) or len(rows) > _TRIED_ROWS:
            return False
        options = [0, *left.tolist()]  # 0: a row that an earlier repair has set aside
        if len(options) ** len(rows) * self.ids.nbytes > _TRIED_BYTES:
            return False
        before = self.ids.copy()
        for some in itertools.product(options, repeat=len(rows)):
            self.ids[rows] = some
            if self._is(checksum):
                return True
        self.ids = before
        return False

    def _compare(self, again: Again) -> None:
        """Make the vectors of images again, and give each the row that has it."""
        rows, left = self._rows(), self._live_left()
        if not len(rows) or len(rows) * self._dim * 4 > _COMPARED_BYTES:
            return
        if not self._is_imported and len(left) > _MAX_COMPARED:
            return
        found = self._store.snapshot.open_vectors()
        try:
            there = found.gather(self._start + rows).astype(np.float64)
        finally:
            found.close()
        squares = np.einsum("ij,ij->i", there, there)
        free = np.ones(len(rows), np.bool_)
        for ids, vectors in again(left):
            block = vectors.astype(np.float64)
            apart = squares - 2 * block @ there.T + np.einsum("ij,ij->i", block, block)[:, None]
            for id_, distances in zip(ids.tolist(), apart, strict=True):
                distances[~free] = np.inf
                at = int(np.argmin(distances))
                if free[at] and distances[at] <= _SAME * max(squares[at], 1e-12):
                    self.ids[rows[at]] = id_
                    free[at] = False

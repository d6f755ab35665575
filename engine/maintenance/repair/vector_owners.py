"""Finds the ids of vectors, where these are damaged and do not follow from the commit.

1. An id that was given, and that only one vector has, is right: a flipped bit never gives such an id.
2. For the other rows few combinations remain; the checksum of the append proves the right one.
3. Vectors are made again, from images or from their arrays, and compared.
4. If one vector and one row without pixels remain, they belong together, since each has a vector.

Where images may have imported vectors, not all of them have one. Then an id that the checksum does not
prove may be that of another image, and counts as unknown.

An id that cannot be found is 0, which is no image's.
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

_BLOCK = 1 << 16  # ids read at a time
_TRIED_BYTES = 1 << 32  # bytes hashed to find a combination with the right checksum, at most
_TRIED_ROWS = 3
_COMPARED_BYTES = 64 << 20  # bytes of vectors compared, at most
_MAX_COMPARED = 1 << 16  # images whose vectors are made again, at most
_SAME = 1e-4  # squared distance by squared length below which two vectors are the same


class Owners:
    """The ids of one damaged append, which has rows ``start`` to ``end`` of all vectors."""

    def __init__(self, store: Session, damaged: bytes, start: int, end: int) -> None:
        self._store = store
        self._start, self._end = start, end
        self._size = store.snapshot.state.next_id
        space = store.snapshot.space
        self._of_images = space.of_images
        # Whether imported vectors belong to rows without pixels only, all of which have one.
        self._is_imported = space.is_imported and not space.of_images
        self._dim = store.snapshot.space.dim
        self.ids = np.frombuffer(damaged, np.int64).copy()
        self.ids[(self.ids < 1) | (self.ids >= self._size)] = 0
        self._elsewhere = IdSet.none(self._size)

    def keep_sure(self, doubtful: Ids) -> Ids:
        """Put 0 for all ids that may be wrong; returns the ids that more than one vector has.

        ``doubtful`` (m,) has such ids of earlier appends.
        """
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
        """Find the ids of rows that are 0, as far as possible; ``checksum`` is that of all right ids."""
        if self._is(checksum) or self._try(checksum) or self._swap(checksum):
            return
        if self._of_images:
            self._forget_images()
        self._compare(again)
        if self._is(checksum) or self._try(checksum):
            return
        rows, left = self._rows(), self._live_left()
        if self._is_imported and len(rows) == len(left) == 1:
            self.ids[rows] = left

    def comparable(self) -> list[int]:
        """The ids without a known vector that may be known once their vectors can be made again."""
        left = self._live_left()
        return left.tolist() if self._is_imported or len(left) <= _MAX_COMPARED else []

    def _is(self, checksum: int) -> bool:
        return hashing.checksum(self.ids.tobytes()) == checksum

    def _rows(self) -> Ids:
        return np.flatnonzero(self.ids == 0)

    def _left(self) -> Ids:
        """All ids without a known vector: (n,)."""
        left = IdSet.none(self._size)
        left.add_span(1, self._size - 1)
        named = IdSet(self._elsewhere.bits.copy(), self._size)
        named.add(self.ids[self.ids > 0])
        blocks = list(left.without(named).blocks())
        return np.concatenate(blocks) if blocks else np.empty(0, np.int64)

    def _live_left(self) -> Ids:
        """The ids without a known vector whose images are there and may have one: (n,)."""
        left = self._left()
        if not len(left):
            return left
        if self._is_imported:
            left = left[~self._store.snapshot.may_be_images(left)]
        return np.array(self._store.snapshot.those_there(left.tolist()), np.int64)

    def _try(self, checksum: int) -> bool:
        """Find the combination of ids that has the right checksum; whether there is one."""
        rows, left = self._rows(), self._left()
        if not len(rows) or len(rows) > _TRIED_ROWS:
            return False
        # An earlier repair may have committed 0 for a row.
        options = [0, *left.tolist()]
        if len(options) ** len(rows) * self.ids.nbytes > _TRIED_BYTES:
            return False
        before = self.ids.copy()
        for some in itertools.product(options, repeat=len(rows)):
            self.ids[rows] = some
            if self._is(checksum):
                return True
        self.ids = before
        return False

    def _swap(self, checksum: int) -> bool:
        """Find the one id that has become another image's, by the checksum; whether there is one."""
        if not self._of_images or len(self._rows()):
            return False
        left = self._left()
        if len(left) * len(self.ids) * self.ids.nbytes > _TRIED_BYTES:
            return False
        for row, before in enumerate(self.ids.tolist()):
            for id_ in left.tolist():
                self.ids[row] = id_
                if self._is(checksum):
                    return True
            self.ids[row] = before
        return False

    def _forget_images(self) -> None:
        """Put 0 for the ids of all images: some may be wrong, and their vectors another image's."""
        # A wrong id may also be that of an image which was removed.
        self.ids[self._store.snapshot.removed_ids().has(self.ids)] = 0
        order = np.argsort(self.ids, kind="stable")
        images = self._store.snapshot.may_be_images(self.ids[order])
        self.ids[order[images]] = 0

    def _compare(self, again: Again) -> None:
        """Make the vectors of images again, and put each image's id where the same vector lies."""
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

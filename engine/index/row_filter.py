"""Restricts a search to the vector rows of some images."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.index.inner_product import Numbers
from engine.index.segment import Segment
from engine.index.spans import Span
from engine.storage.bitmap import IdSet
from engine.storage.vectors import Vectors

COMPARED_ROWS = 1 << 16  # up to so many wanted rows, all are compared instead of searched by codes
_IDS = 1 << 14  # ids read at a time


@dataclass(frozen=True, slots=True)
class RowFilter:
    """The wanted rows: a bitmap of labels for each segment, and the rows themselves if they are few."""

    ids: IdSet
    count: int  # wanted rows
    alive: tuple[npt.NDArray[np.uint8], ...]
    sizes: Numbers  # (nlist + 1,) wanted rows in each list; the last is 0, for list -1
    covered: int  # wanted rows in segments
    rows: Numbers | None


class RowFilters:
    """Makes the filter for a set of images, and caches the last one, since queries often share a set.

    Several threads may use it at once.
    """

    def __init__(
        self,
        vectors: Vectors,
        segments: Sequence[Segment],
        spans: Sequence[Sequence[Span]],
        nlist: int,
        compared_rows: int,
    ) -> None:
        """A filter of up to ``compared_rows`` rows lists them all."""
        self._vectors = vectors
        self._segments = segments
        self._spans = spans
        self._nlist = nlist
        self._compared_rows = compared_rows
        self._last: RowFilter | None = None
        self._lock = threading.Lock()

    def of(self, ids: IdSet | None) -> RowFilter | None:
        """The rows of these images; None for None, which means all images."""
        if ids is None:
            return None
        with self._lock:
            if self._last is None or self._last.ids is not ids:
                self._last = self._make(ids)
            return self._last

    def _make(self, ids: IdSet) -> RowFilter:
        there = np.zeros(self._vectors.rows, np.bool_)
        at = 0
        for block in self._vectors.id_blocks(0, self._vectors.rows, _IDS):
            there[at : at + len(block)] = ids.has(block)
            at += len(block)
        count = int(there.sum())
        alive = tuple(
            np.packbits(_by_label(there, spans), bitorder="little") for spans in self._spans
        )
        sizes = np.zeros(self._nlist + 1, np.int64)
        if count <= self._compared_rows and count * 2 < len(there):
            return RowFilter(ids, count, alive, sizes, 0, np.flatnonzero(there))
        for segment, spans in zip(self._segments, self._spans, strict=True):
            sizes[:-1] += segment.sizes_of(_by_label(there, spans))
        return RowFilter(ids, count, alive, sizes, int(sizes.sum()), None)


def _by_label(there: npt.NDArray[np.bool_], spans: Sequence[Span]) -> npt.NDArray[np.bool_]:
    """Whether each label of a segment is wanted, from whether each row is (rows,)."""
    return np.concatenate([there[span.row : span.row + span.rows] for span in spans])

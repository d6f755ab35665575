"""Finds candidates by the codes of the segments that share one quantizer.

    queries → nearest lists → candidates of each segment, by their codes

The nearest lists are found once for all segments. If these have too few wanted rows, more lists are
probed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.index.inner_product import Block, Numbers
from engine.index.probe import ProbeRadius
from engine.index.quantizer import Quantizer
from engine.index.row_filter import RowFilter
from engine.index.segment import Segment
from engine.index.spans import Span, labels_of, rows_of
from engine.storage.bitmap import IdSet
from engine.storage.manifest import OperatingPoint, QuantizerEntry
from engine.storage.vectors import Vectors

CANDIDATES = 1 << 20  # candidates of all queries in memory
_WIDENED = 64  # queries that probe many lists at a time
_MAX_OF_ALL = 0.9  # if this share of some lists' rows is wanted, that is as good as all
_SAME_LIST = (
    0.5  # smallest distance of a list, as a share of the mean distance of vectors to theirs
)
_MIN_DISTANCE = 1e-6  # the same if all vectors are centroids, limited by float32
_SEARCHES = 32  # searches after which preparing for more pays off
_log = logging.getLogger("engine.index")

Found = tuple[Block, Numbers]


class CodeScan:
    """Searches the segments of one quantizer, at least one, by their codes.

    Several threads may search at once.
    """

    def __init__(
        self,
        vectors: Vectors,
        quantizer: Quantizer,
        entry: QuantizerEntry,
        segments: Sequence[Segment],
        spans: Sequence[Sequence[Span]],
    ) -> None:
        """``spans`` are the rows of the vectors that each segment covers."""
        self.quantizer = quantizer
        self.covered = sum(segment.entry.rows for segment in segments)
        self._vectors = vectors
        self._entry = entry
        self._segments = segments
        self._spans = spans
        self._searched = 0
        counted = np.sum([segment.sizes for segment in segments], axis=0)
        # The last size is for list -1, which stands for no list.
        self._sizes: Numbers = np.append(counted, 0)

    def candidates(
        self, queries: Block, k: int, point: OperatingPoint, row_filter: RowFilter | None
    ) -> Numbers:
        """The rows that may be the k nearest of (nq, dim) queries, (nq, m), in any order.

        Padded with -1. m is the point's re-rank depth, at least k, and at most the number of rows.
        """
        self._note(len(queries))
        depth = min(max(point.rerank_depth, k), self.covered)
        prepared = self.quantizer.prepare_queries(queries)
        radius = self._radius(point.probe_radius) if point.probe_radius is not None else None
        close, lists = self.quantizer.centroids.nearest(prepared, point.nprobe, radius)
        if row_filter is None:
            rows = self._probe(prepared, close, lists, depth, None)[1]
            if rows.min() >= 0:  # no query has too few
                return rows
            enough = min(k, self.covered)
            need = np.full(len(queries), enough)
            todo = np.flatnonzero((rows >= 0).sum(axis=1) < enough)
        else:
            enough = min(k, row_filter.covered)
            need, ready = self._need(lists, enough, row_filter)
            if ready.all():
                return self._probe(prepared, close, lists, depth, row_filter)[1]
            rows = np.full((len(queries), depth), -1, np.int64)
            if ready.any():
                rows[ready] = self._probe(
                    prepared[ready], close[ready], lists[ready], depth, row_filter
                )[1]
            todo = np.flatnonzero(~ready)
        if not len(todo):
            return rows
        _log.debug("%d of %d queries probe more lists", len(todo), len(queries))
        times = self._times(close, lists, enough)
        for at in range(0, len(todo), _WIDENED):
            some = todo[at : at + _WIDENED]
            rows[some] = self._widen(
                prepared[some], point.nprobe, depth, row_filter, need[some], enough, times[some]
            )
        return rows

    def _need(
        self, lists: Numbers, enough: int, row_filter: RowFilter
    ) -> tuple[Numbers, npt.NDArray[np.bool_]]:
        """How many wanted rows lists (nq, nprobe) should have, (nq,), and for which queries they do."""
        # Look at about as many wanted rows as if all rows were wanted.
        need = np.minimum(_MAX_OF_ALL * self._sizes[lists].sum(axis=1), row_filter.covered)
        need = np.maximum(need, enough).astype(np.int64)
        held = row_filter.sizes[lists]
        # The wanted rows must also be in the nearest lists, or other lists may have nearer ones.
        ready = held.sum(axis=1) >= need
        if not (held[:, 0] >= enough).all():
            every = _first(_held(self._sizes, lists), enough)
            ready &= _first(held.cumsum(axis=1), enough) == every
        return need, ready

    def _times(self, close: Block, lists: Numbers, enough: int) -> Block:
        """The distance of the last list as a multiple of that of the first with enough rows: (nq, 1)."""
        far = 1 - close
        last = (lists >= 0).sum(axis=1, keepdims=True) - 1
        nearest = np.take_along_axis(far, _first(_held(self._sizes, lists), enough)[:, None], 1)
        least = np.float32(self._radius(1).min_distance)
        times: Any = np.take_along_axis(far, last, 1) / np.maximum(nearest, least)
        return times  # type: ignore[no-any-return]

    def _widen(
        self,
        prepared: Block,
        nprobe: int,
        depth: int,
        row_filter: RowFilter | None,
        need: Numbers,
        enough: int,
        times: Block,
    ) -> Numbers:
        """Candidates from more lists, as many as are needed: (nq, depth).

        The lists have ``need`` (nq,) wanted rows. They include all lists up to ``times`` (nq, 1) the
        distance of the first list with which they have ``enough``.
        """
        sizes = row_filter.sizes if row_filter is not None else self._sizes
        nlist, least = self.quantizer.nlist, np.float32(self._radius(1).min_distance)
        rows = np.full((len(prepared), depth), -1, np.int64)
        todo = np.arange(len(prepared))
        while len(todo):
            nprobe = min(4 * nprobe, nlist)
            close, lists = self.quantizer.centroids.nearest(prepared[todo], nprobe)
            far, held = 1 - close, _held(sizes, lists)
            nearest = np.take_along_axis(far, _first(held, enough)[:, None], 1)
            limit = times[todo] * np.maximum(nearest, least)
            before = held - sizes[lists]
            in_hand = (before < need[todo, None]) | (far <= limit)
            ready = ((held[:, -1] >= need[todo]) & ~in_hand[:, -1]) | (nprobe == nlist)
            if ready.any():
                some, near = todo[ready], np.where(in_hand, lists, -1)[ready]
                rows[some] = self._probe(prepared[some], close[ready], near, depth, row_filter)[1]
            todo = todo[~ready]
        return rows

    def ranked(
        self, queries: Block, nprobe: int, depth: int, row_filter: RowFilter | None
    ) -> Numbers:
        """Candidates (nq, depth), best first by their codes; padded with -1."""
        self._note(len(queries))
        step = max(1, CANDIDATES // depth)
        found = [np.empty((0, depth), np.int64)]
        for at in range(0, len(queries), step):
            prepared = self.quantizer.prepare_queries(queries[at : at + step])
            close, lists = self.quantizer.centroids.nearest(prepared, nprobe)
            scores, rows = self._probe(prepared, close, lists, depth, row_filter)
            # Candidates of several segments are not in order.
            if (scores[:, 1:] > scores[:, :-1]).any():
                order = np.argsort(-scores, axis=1, kind="stable")
                rows = np.take_along_axis(rows, order, 1)
            found.append(rows)
        return np.concatenate(found)

    def list_distances(self, queries: Block) -> Block:
        """Distances of all lists from (nq, dim) queries, as multiples of the nearest's: (nq, nlist)."""
        close = self.quantizer.centroids.closeness(self.quantizer.prepare_queries(queries))
        return self._radius(1).distances(close, close.max(axis=1, keepdims=True))

    def lists_of(self, rows: Numbers) -> Numbers:
        """The list of each of (n,) rows, -1 if it is in no segment; reads all labels."""
        out = np.full(len(rows), -1, np.int64)
        for segment, spans in zip(self._segments, self._spans, strict=True):
            labels = labels_of(spans, rows)
            mine = np.flatnonzero(labels >= 0)
            there, lists = segment.lists_of(IdSet.of(labels[mine]))
            # A damaged segment may lack some labels.
            if len(there):
                at = np.minimum(np.searchsorted(there, labels[mine]), len(there) - 1)
                out[mine] = np.where(there[at] == labels[mine], lists[at], -1)
        return out

    def _probe(
        self,
        prepared: Block,
        close: Block,
        lists: Numbers,
        depth: int,
        row_filter: RowFilter | None,
    ) -> Found:
        """Approximate inner products of candidates and their rows, (nq, depth), in any order."""
        if not self._vectors.warm:
            for segment in self._segments:
                segment.ask_for(lists)
        found: list[Found] = []
        for number, segment in enumerate(self._segments):
            alive = row_filter.alive[number] if row_filter is not None else None
            scores, labels = segment.candidates(prepared, depth, close, lists, alive)
            found.append((scores, rows_of(self._spans[number], labels)))
        if len(found) == 1:
            return found[0]
        scores = np.concatenate([scores for scores, _ in found], axis=1)
        rows = np.concatenate([rows for _, rows in found], axis=1)
        scores[rows < 0] = -np.inf
        keep = np.argpartition(scores, -depth, axis=1)[:, -depth:]
        return np.take_along_axis(scores, keep, 1), np.take_along_axis(rows, keep, 1)

    def _radius(self, times: float) -> ProbeRadius:
        return ProbeRadius(times, max(_SAME_LIST * (1 - self._entry.closeness), _MIN_DISTANCE))

    def _note(self, queries: int) -> None:
        """Count searches; after some, make the next ones faster."""
        self._searched += queries
        if self._searched > _SEARCHES:
            self.quantizer.centroids.speed_up()


def _held(sizes: Numbers, lists: Numbers) -> Numbers:
    """The cumulative number of rows of lists (nq, nprobe)."""
    return sizes[lists].cumsum(axis=1)


def _first(held: Numbers, enough: int) -> Numbers:
    """The position of the first list with which there are enough rows, or of the last list: (nq,)."""
    there = held >= enough
    found: Numbers = np.where(there.any(axis=1), there.argmax(axis=1), held.shape[1] - 1)
    return found

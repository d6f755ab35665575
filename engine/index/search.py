"""Top-k search over all vectors of a store: segments by their codes, then the vectors themselves.

    queries → candidates of the segments, by their codes → their vectors → the best k
                                rows in no segment: all of them ↗

The wanted recall decides how many lists are probed and how many candidates are compared in full
(``engine.index.operating_point``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from engine.errors import StoreDamagedError
from engine.index.exact import compare_ranges, compare_rows
from engine.index.inner_product import Block, Numbers
from engine.index.operating_point import choose
from engine.index.quantizer import Quantizer
from engine.index.quantizer_file import load_quantizer
from engine.index.random_pairs import FEW, measure_pairs
from engine.index.rerank import inner_products
from engine.index.row_filter import COMPARED_ROWS, RowFilter, RowFilters
from engine.index.scan import CANDIDATES, CodeScan, Found
from engine.index.segment import Segment
from engine.index.segment_layout import require_layout_of_faiss
from engine.index.spans import Span, gaps, rows_of, spans_of
from engine.index.top_k import TopK
from engine.storage.bitmap import IdSet
from engine.storage.durable import UnreadableError
from engine.storage.index_files import segment_path
from engine.storage.manifest import (
    Measured,
    OperatingPoint,
    QuantizerEntry,
    RandomPairs,
    SegmentEntry,
)
from engine.storage.vectors import Vectors

_QUERIES = 1024  # at a time


class VectorIndex:
    """Vectors and the segments over them. The rows of a damaged segment are searched exactly.

    It does not change after it was made, so several threads may search it at once.
    """

    def __init__(
        self,
        store: Path,
        vectors: Vectors,
        quantizers: Sequence[QuantizerEntry] = (),
        entries: Sequence[SegmentEntry] = (),
        measured: Measured | None = None,
        *,
        compared_rows: int = COMPARED_ROWS,
    ) -> None:
        """``entries`` are live. Up to ``compared_rows`` wanted rows are compared without codes.

        ``UnreadableError`` or ``MemoryError`` if this process cannot read files that may be whole. A
        writer must not take their segments for damaged ones, and drop them.
        """
        self.vectors = vectors
        self.measured = measured
        self.quantizer: Quantizer | None = None
        self.segments: list[Segment] = []
        self.problems: list[str] = []  # messages about files that could not be opened
        self.scan: CodeScan | None = None  # None if no segment could be opened
        self._entry: QuantizerEntry | None = None
        self._spans: list[list[Span]] = []  # spans of each segment
        self._lock = threading.Lock()
        self._pairs: RandomPairs | None = None
        self._has_pairs = False
        self._users = 0
        self._closed = False
        if entries:
            # Only the newest quantizer is live; segments of older ones are about to be built again.
            number = max(entry.quantizer for entry in entries)
            self._open(store, quantizers, [e for e in entries if e.quantizer == number])
        if self.quantizer is not None and self._entry is not None and self.segments:
            self.scan = CodeScan(vectors, self.quantizer, self._entry, self.segments, self._spans)
        covered = sorted((one.row, one.row + one.rows) for spans in self._spans for one in spans)
        self._bare = gaps(covered, vectors.rows)
        nlist = self.quantizer.nlist if self.quantizer is not None else 0
        self._filters = RowFilters(vectors, self.segments, self._spans, nlist, compared_rows)

    def _open(
        self, store: Path, quantizers: Sequence[QuantizerEntry], entries: Sequence[SegmentEntry]
    ) -> None:
        try:
            require_layout_of_faiss()
        except UnreadableError as error:
            self.problems.append(f"{store}: {error}; until then all rows are searched exactly")
            return
        try:
            found = next((q for q in quantizers if q.number == entries[0].quantizer), None)
            if found is None:
                raise StoreDamagedError(
                    f"{store}: its manifest does not name the quantizer of its segments"
                )
            self.quantizer = load_quantizer(store, found, self.vectors.dim)
            self._entry = found
        except StoreDamagedError as error:
            self.problems.append(
                f"{error}: all rows are searched exactly; run 'engine check --fix'"
            )
            return
        for entry in entries:
            try:
                opened = Segment(segment_path(store, entry.number), entry, self.quantizer)
            except StoreDamagedError as error:
                self.problems.append(
                    f"{error}: its rows are searched exactly; run 'engine check --fix'"
                )
                continue
            self.segments.append(opened)
            self._spans.append(spans_of(self.vectors, entry))

    def spans_in(self, entry: SegmentEntry) -> list[tuple[int, int]]:
        """The ranges of rows, (start, end), of a segment over these vectors."""
        return [(one.row, one.row + one.rows) for one in spans_of(self.vectors, entry)]

    def rows_in(self, entry: SegmentEntry) -> Callable[[Numbers], Numbers]:
        """A function from labels of a segment over these vectors to their rows."""
        spans = spans_of(self.vectors, entry)
        return lambda labels: rows_of(spans, labels)

    @property
    def quantizer_entry(self) -> QuantizerEntry | None:
        """The manifest's entry of the live quantizer."""
        return self._entry

    @property
    def bare(self) -> list[tuple[int, int]]:
        """The ranges of rows, (start, end), that are in no segment."""
        return list(self._bare)

    @property
    def random_pairs(self) -> RandomPairs | None:
        """How alike random pairs of the vectors are; None if there are too few.

        The values that were measured with recall, or else those of a small sample, read now.
        """
        if self.measured is not None and self.measured.random_pairs is not None:
            return self.measured.random_pairs
        with self._lock:
            if not self._has_pairs:
                self._pairs, self._has_pairs = measure_pairs(self.vectors, FEW), True
            return self._pairs

    def is_indexed(self, rows: Numbers) -> npt.NDArray[np.bool_]:
        """Whether each row is in a segment; rows have any shape."""
        there = rows >= 0
        for start, end in self._bare:
            there &= (rows < start) | (rows >= end)
        return there

    def point(self, k: int, recall: float | None) -> OperatingPoint | None:
        """How far a search for k looks at a recall; None if it compares all vectors."""
        if self._entry is None or not self.segments:
            return None
        return choose(self.measured, self._entry, k, recall)

    def search(
        self,
        queries: Block,
        k: int,
        *,
        recall: float | None = None,
        point: OperatingPoint | None = None,
        wanted: IdSet | None = None,
        step: Callable[[], None] = lambda: None,
    ) -> Found:
        """The k largest inner products of each of (nq, dim) contiguous queries.

        ``recall`` is the share of them to find, 1 for all, by default the store's target; ``point`` says
        how far to look instead. With ``wanted``, only rows of these images are found. ``step`` is called
        after each block of compared vectors; an exception from it ends the search.

        Returns scores (nq, k) float32, best first, and vector rows (nq, k) int64, both padded
        (-inf and -1) if there are fewer than k vectors. Among equal vectors, any may be left out.
        """
        point = point or self.point(k, recall)
        row_filter = self._filters.of(wanted)
        depth = min(max(point.rerank_depth, k), self.vectors.rows) if point is not None else 0
        most = min(k, self.vectors.rows)
        nprobe = point.nprobe if point is not None else 0
        at_once = max(1, min(_QUERIES, CANDIDATES // max(depth, most, nprobe, 1)))
        if len(queries) <= at_once and most == k:
            return self._search(queries, k, point, row_filter, step)
        found = TopK(len(queries), k)
        for at in range(0, len(queries) if most else 0, at_once):
            some = slice(at, at + at_once)
            scores, rows = self._search(queries[some], most, point, row_filter, step)
            found.scores[some, :most], found.rows[some, :most] = scores, rows
        return found.scores, found.rows

    def _search(
        self,
        queries: Block,
        k: int,
        point: OperatingPoint | None,
        row_filter: RowFilter | None,
        step: Callable[[], None],
    ) -> Found:
        best = TopK(len(queries), k)
        if not len(queries):
            return best.scores, best.rows
        if row_filter is not None and row_filter.rows is not None:
            compare_rows(self.vectors, queries, row_filter.rows, best)
        elif point is None:
            compare_ranges(self.vectors, queries, best, [(0, self.vectors.rows)], row_filter, step)
        else:
            assert self.scan is not None
            rows = self.scan.candidates(queries, k, point, row_filter)
            best.add(inner_products(self.vectors, queries, rows), rows)
            compare_ranges(self.vectors, queries, best, self._bare, row_filter, step)
        best.drop_duplicates()
        if point is not None and best.rows[:, -1].min() < 0:
            # FastScan leaves out rows at the largest possible distance: for a zero query, all rows.
            most = row_filter.count if row_filter is not None else self.vectors.rows
            short = np.flatnonzero((best.rows >= 0).sum(axis=1) < min(k, most))
            if len(short):
                again = np.ascontiguousarray(queries[short])
                found = self._search(again, k, None, row_filter, step)
                best.scores[short], best.rows[short] = found
        return best.scores, best.rows

    def search_ids(
        self,
        queries: Block,
        k: int,
        *,
        recall: float | None = None,
        wanted: IdSet | None = None,
    ) -> Found:
        """``search``, with the ids of images instead of rows."""
        scores, rows = self.search(queries, k, recall=recall, wanted=wanted)
        ids = self.vectors.ids(rows)
        # A repair has put 0 for a vector whose image is not known.
        if not ids.all():
            order = np.argsort(ids == 0, axis=1, kind="stable")
            ids, scores = np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
            scores[ids == 0], ids[ids == 0] = -np.inf, -1
        return scores, ids

    def ranked(self, queries: Block, nprobe: int, depth: int, wanted: IdSet | None) -> Numbers:
        """Candidates from segments only, (nq, depth), best first by their codes; padded with -1."""
        assert self.scan is not None
        return self.scan.ranked(queries, nprobe, depth, self._filters.of(wanted))

    def __enter__(self) -> Self:
        """Keep the index open while it is searched, even if another thread closes it."""
        with self._lock:
            self._users += 1
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            last = self._closed and not self._users
        if last:
            self._let_go()

    def close(self) -> None:
        """Close the files, once no thread searches them."""
        with self._lock:
            self._closed, idle = True, not self._users
        if idle:
            self._let_go()

    def _let_go(self) -> None:
        self.segments.clear()
        self.vectors.close()

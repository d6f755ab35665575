"""Top-k search over all vectors of a store: segments by their codes, then the vectors themselves.

    queries → nearest lists → candidates of each segment, by their codes → their vectors → the best k
                                                     rows in no segment: all of them ↗

The lists are looked for once for all segments, which share their quantizer. How many lists and how many
candidates is chosen by the recall that is wanted (``engine.index.operating_point``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engine.errors import StoreDamagedError
from engine.index.inner_product import Numbers, of_one
from engine.index.operating_point import choose
from engine.index.quantizer import SUFFIX, Quantizer, Reach
from engine.index.segment import Segment, path_of
from engine.storage.bitmap import IdSet
from engine.storage.manifest import (
    INDEX_FOLDER,
    Measured,
    OperatingPoint,
    QuantizerEntry,
    SegmentEntry,
)
from engine.storage.vectors import Vectors

_QUERIES = 1024  # at a time
_IDS = 1 << 14  # that are looked through at a time
_MANY = 64  # queries that are compared with all vectors at once
_MAPPED_BLOCKS = 16  # of vectors, 8 MB each, that stay mapped behind them meanwhile
_CANDIDATES = 1 << 20  # of all queries in hand
_WIDENED = 64  # queries that look at many lists, at a time
_FEW = 1 << 16  # wanted rows that are all compared rather than looked for by their codes
_MAX_OF_ALL = 0.9  # of the rows of some lists, that are wanted: as good as all
_SAME_LIST = 0.5  # of the mean distance to the nearest centroid: what is nearer counts as so far
_MIN_DISTANCE = 1e-6  # where all vectors are centroids; as float32 has it
_SEARCHES = 32  # after which it pays to prepare for more

Queries = npt.NDArray[np.float32]
Found = tuple[npt.NDArray[np.float32], Numbers]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which rows count: of each segment a bitmap of its labels; and all of them, where they are few."""

    ids: IdSet
    count: int
    alive: tuple[npt.NDArray[np.uint8], ...]
    sizes: Numbers  # (nlist + 1,): how many of them each list holds; 0 of list -1
    covered: int  # how many of them lie in segments
    rows: Numbers | None


class VectorIndex:
    """Vectors and the segments over them. A segment that cannot be read is searched exactly.

    What it was made with does not change any more, so several threads may search it at once.
    """

    def __init__(
        self,
        store: Path,
        vectors: Vectors,
        quantizers: Sequence[QuantizerEntry] = (),
        entries: Sequence[SegmentEntry] = (),
        measured: Measured | None = None,
    ) -> None:
        """``entries`` are live."""
        self.vectors = vectors
        self.measured = measured
        self.quantizer: Quantizer | None = None
        self.segments: list[Segment] = []
        self.problems: list[str] = []  # what could not be opened
        self._entry: QuantizerEntry | None = None
        self._spans: list[list[tuple[int, int, int]]] = []  # of each segment: label, row, rows
        self._searched = 0
        self._wanted: _Wanted | None = None
        self._finding = threading.Lock()
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False
        if entries:
            # One quantizer is live; segments of another one are about to be built anew.
            number = max(entry.quantizer for entry in entries)
            self._open(store, quantizers, [e for e in entries if e.quantizer == number])
        covered = sorted((row, row + rows) for spans in self._spans for _, row, rows in spans)
        self._bare = _gaps(covered, vectors.rows)
        self._covered = sum(segment.entry.rows for segment in self.segments)
        sizes = [segment.sizes for segment in self.segments]
        counted = np.sum(sizes, axis=0) if sizes else np.zeros(0, np.int64)
        self._sizes: Numbers = np.append(counted, 0)  # the last is that of list -1, which is none

    def _open(
        self, store: Path, quantizers: Sequence[QuantizerEntry], entries: Sequence[SegmentEntry]
    ) -> None:
        try:
            found = next((q for q in quantizers if q.number == entries[0].quantizer), None)
            if found is None:
                raise StoreDamagedError(f"{store}: the quantizer of its segments is not named")
            self.quantizer = load_quantizer(store, found, self.vectors.dim)
            self._entry = found
        except StoreDamagedError as error:
            self.problems.append(
                f"{error}: all rows are searched exactly; run 'engine check --fix'"
            )
            return
        for entry in entries:
            try:
                self.segments.append(Segment(path_of(store, entry.number), entry, self.quantizer))
            except StoreDamagedError as error:
                self.problems.append(
                    f"{error}: its rows are searched exactly; run 'engine check --fix'"
                )
                continue
            self._spans.append(self._spans_of(entry))

    def _spans_of(self, entry: SegmentEntry) -> list[tuple[int, int, int]]:
        """Where the ranges of a segment are: label, row, rows of each."""
        spans, label = [], 0
        for extent, first, rows in entry.ranges:
            at = self.vectors.first_of(extent)
            assert at is not None  # live: all of it is committed
            spans.append((label, at + first, rows))
            label += rows
        return spans

    def spans_in(self, entry: SegmentEntry) -> list[tuple[int, int]]:
        """The spans of rows of a segment over these vectors: (start, end)."""
        return [(row, row + rows) for _, row, rows in self._spans_of(entry)]

    def rows_in(self, entry: SegmentEntry) -> Callable[[Numbers], Numbers]:
        """What tells the rows that labels of a segment over these vectors stand for."""
        spans = self._spans_of(entry)
        return lambda labels: _rows_of(spans, labels)

    @property
    def quantizer_entry(self) -> QuantizerEntry | None:
        """The live quantizer as the manifest has it."""
        return self._entry

    def point(self, k: int, recall: float | None) -> OperatingPoint | None:
        """How far a search for k looks at a recall; None where it looks at everything."""
        if self._entry is None or not self.segments:
            return None
        return choose(self.measured, self._entry, k, recall)

    def search(
        self,
        queries: Queries,
        k: int,
        *,
        recall: float | None = None,
        point: OperatingPoint | None = None,
        wanted: IdSet | None = None,
    ) -> Found:
        """The k largest inner products of each of (nq, dim) contiguous queries.

        ``recall``: the share of them to be found, 1 for all; by default what the store wants.
        ``point`` says how far to look instead. ``wanted``: only rows of these images.

        Returns scores (nq, k) float32, best first, and vector rows (nq, k) int64, both padded
        (-inf and -1) where there are fewer than k vectors. Of equal ones any may be left out.
        """
        point = point or self.point(k, recall)
        among = self._among(wanted) if wanted is not None else None
        depth = min(max(point.depth, k), self.vectors.rows) if point is not None else 0
        most = min(k, self.vectors.rows)  # that there can be
        step = max(1, min(_QUERIES, _CANDIDATES // max(depth, most, 1)))
        if len(queries) <= step and most == k:
            return self._search(queries, k, point, among)
        found = _Best(len(queries), k)
        for at in range(0, len(queries) if most else 0, step):
            some = slice(at, at + step)
            scores, rows = self._search(queries[some], most, point, among)
            found.scores[some, :most], found.rows[some, :most] = scores, rows
        return found.scores, found.rows

    def _search(
        self, queries: Queries, k: int, point: OperatingPoint | None, among: _Wanted | None
    ) -> Found:
        best = _Best(len(queries), k)
        if not len(queries):
            return best.scores, best.rows
        if among is not None and among.rows is not None:
            self._compare(queries, among.rows, best)
        elif point is None:
            self._exact(queries, best, [(0, self.vectors.rows)], among)
        else:
            best.add(*self._by_codes(queries, k, point, among))
            self._exact(queries, best, self._bare, among)
        best.drop_doubled()
        if point is not None and best.rows[:, -1].min() < 0:
            # FastScan leaves out what is as far away as can be: of a zero query, all there is.
            most = among.count if among is not None else self.vectors.rows
            short = np.flatnonzero((best.rows >= 0).sum(axis=1) < min(k, most))
            if len(short):
                found = self._search(np.ascontiguousarray(queries[short]), k, None, among)
                best.scores[short], best.rows[short] = found
        return best.scores, best.rows

    def search_ids(
        self,
        queries: Queries,
        k: int,
        *,
        recall: float | None = None,
        wanted: IdSet | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """``search``, with the ids of images in the place of rows."""
        scores, rows = self.search(queries, k, recall=recall, wanted=wanted)
        ids = self.vectors.ids(rows)
        if not ids.all():  # a repair did not know whose a vector is
            order = np.argsort(ids == 0, axis=1, kind="stable")
            ids, scores = np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
            scores[ids == 0], ids[ids == 0] = -np.inf, -1
        return scores, ids

    def is_indexed(self, rows: Numbers) -> npt.NDArray[np.bool_]:
        """Which rows, of any shape, lie in a segment."""
        there = rows >= 0
        for start, end in self._bare:
            there &= (rows < start) | (rows >= end)
        return there

    @property
    def bare(self) -> list[tuple[int, int]]:
        """The spans of rows that lie in no segment: (start, end)."""
        return list(self._bare)

    def ranked(self, queries: Queries, nprobe: int, depth: int, wanted: IdSet | None) -> Numbers:
        """Candidates of the segments alone, (nq, depth), in the order of their codes; padded with -1."""
        assert self.quantizer is not None
        among = self._among(wanted) if wanted is not None else None
        self._count(len(queries))
        step = max(1, _CANDIDATES // depth)
        found = [np.empty((0, depth), np.int64)]
        for at in range(0, len(queries), step):
            fitted = self.quantizer.queries(queries[at : at + step])
            close, lists = self.quantizer.nearest(fitted, nprobe)
            scores, rows = self._candidates(fitted, close, lists, depth, among)
            if (scores[:, 1:] > scores[:, :-1]).any():  # put together of several segments
                order = np.argsort(-scores, axis=1, kind="stable")
                rows = np.take_along_axis(rows, order, 1)
            found.append(rows)
        return np.concatenate(found)

    def farness(self, queries: Queries) -> npt.NDArray[np.float32]:
        """How many times as far as the nearest list each list is of (nq, dim) queries: (nq, nlist)."""
        assert self.quantizer is not None
        close = self.quantizer.closeness(self.quantizer.queries(queries))
        return self._reach(1).far(close, close.max(axis=1, keepdims=True))

    def _reach(self, times: float) -> Reach:
        assert self._entry is not None
        return Reach(times, max(_SAME_LIST * (1 - self._entry.closeness), _MIN_DISTANCE))

    def lists_of(self, rows: Numbers) -> Numbers:
        """The list that each of (n,) rows is coded in, -1 if it lies in no segment; reads all labels."""
        out = np.full(len(rows), -1, np.int64)
        for segment, spans in zip(self.segments, self._spans, strict=True):
            labels = np.full(len(rows), -1, np.int64)
            for label, first, count in spans:
                here = (rows >= first) & (rows < first + count)
                labels[here] = rows[here] - first + label
            mine = np.flatnonzero(labels >= 0)
            there, lists = segment.lists_of(IdSet.of(labels[mine]))
            if len(there):  # all of them, unless it is damaged
                at = np.minimum(np.searchsorted(there, labels[mine]), len(there) - 1)
                out[mine] = np.where(there[at] == labels[mine], lists[at], -1)
        return out

    # --- by codes ---------------------------------------------------------------------------------

    def _by_codes(
        self, queries: Queries, k: int, point: OperatingPoint, among: _Wanted | None
    ) -> Found:
        """The rows of segments that are candidates, (nq, depth), with their inner products."""
        assert self.quantizer is not None
        self._count(len(queries))
        depth = min(max(point.depth, k), self._covered)
        fitted = self.quantizer.queries(queries)
        reach = self._reach(point.reach) if point.reach is not None else None
        close, lists = self.quantizer.nearest(fitted, point.nprobe, reach)
        if among is None:
            rows = self._candidates(fitted, close, lists, depth, None)[1]
            if rows.min() >= 0:  # as many as were asked for
                return self.vectors.products(queries, rows), rows
            sizes, enough = self._sizes, min(k, self._covered)
            need = np.full(len(queries), enough)
            todo = np.flatnonzero((rows >= 0).sum(axis=1) < enough)
        else:
            sizes, total = among.sizes, among.covered
            enough = min(k, total)
            # As many wanted rows are looked at as there would be rows if all were wanted.
            need = np.minimum(_MAX_OF_ALL * self._sizes[lists].sum(axis=1), total)
            need = np.maximum(need, enough).astype(np.int64)
            held = sizes[lists]
            # And they are where the others are: else those that are near may lie in any other list.
            ready = held.sum(axis=1) >= need
            if not (held[:, 0] >= enough).all():
                every = _first(_held(self._sizes, lists), enough)
                ready &= _first(held.cumsum(axis=1), enough) == every
            if ready.all():
                rows = self._candidates(fitted, close, lists, depth, among)[1]
                return self.vectors.products(queries, rows), rows
            rows = np.full((len(queries), depth), -1, np.int64)
            if ready.any():
                rows[ready] = self._candidates(
                    fitted[ready], close[ready], lists[ready], depth, among
                )[1]
            todo = np.flatnonzero(~ready)
        far = 1 - close
        last = (lists >= 0).sum(axis=1, keepdims=True) - 1
        nearest = np.take_along_axis(far, _first(_held(self._sizes, lists), enough)[:, None], 1)
        least = np.float32(self._reach(1).least)
        times: Any = np.take_along_axis(far, last, 1) / np.maximum(nearest, least)
        for at in range(0, len(todo), _WIDENED):
            some = todo[at : at + _WIDENED]
            rows[some] = self._wider(
                fitted[some], point.nprobe, depth, among, need[some], enough, times[some]
            )
        return self.vectors.products(queries, rows), rows

    def _wider(
        self,
        fitted: Queries,
        nprobe: int,
        depth: int,
        among: _Wanted | None,
        need: Numbers,
        enough: int,
        times: Queries,
    ) -> Numbers:
        """Candidates out of more lists: the nearest ones that hold what is needed, (nq, depth).

        They hold ``need`` (nq,) rows that count, and all lists are among them that are not more than
        ``times`` (nq, 1) as far as the one with which they hold ``enough``.
        """
        assert self.quantizer is not None
        sizes = among.sizes if among is not None else self._sizes
        nlist, least = self.quantizer.nlist, np.float32(self._reach(1).least)
        rows = np.full((len(fitted), depth), -1, np.int64)
        todo = np.arange(len(fitted))
        while len(todo):
            nprobe = min(4 * nprobe, nlist)
            close, lists = self.quantizer.nearest(fitted[todo], nprobe)
            far, held = 1 - close, _held(sizes, lists)
            nearest = np.take_along_axis(far, _first(held, enough)[:, None], 1)
            limit = times[todo] * np.maximum(nearest, least)
            before = held - sizes[lists]
            in_hand = (before < need[todo, None]) | (far <= limit)
            ready = ((held[:, -1] >= need[todo]) & ~in_hand[:, -1]) | (nprobe == nlist)
            if ready.any():
                some, near = todo[ready], np.where(in_hand, lists, -1)[ready]
                rows[some] = self._candidates(fitted[some], close[ready], near, depth, among)[1]
            todo = todo[~ready]
        return rows

    def _candidates(
        self,
        fitted: Queries,
        close: Queries,
        lists: Numbers,
        depth: int,
        among: _Wanted | None,
    ) -> Found:
        """Approximate inner products of candidates and their rows, (nq, depth), in any order."""
        if not self.vectors.warm:
            for segment in self.segments:
                segment.ask_for(lists)
        found: list[Found] = []
        for number, segment in enumerate(self.segments):
            alive = among.alive[number] if among is not None else None
            scores, labels = segment.candidates(fitted, depth, close, lists, alive)
            found.append((scores, _rows_of(self._spans[number], labels)))
        if len(found) == 1:
            return found[0]
        scores = np.concatenate([scores for scores, _ in found], axis=1)
        rows = np.concatenate([rows for _, rows in found], axis=1)
        scores[rows < 0] = -np.inf
        keep = np.argpartition(scores, -depth, axis=1)[:, -depth:]
        return np.take_along_axis(scores, keep, 1), np.take_along_axis(rows, keep, 1)

    def _count(self, queries: int) -> None:
        """Take notice of searches, and make the next ones faster once there were some."""
        self._searched += queries
        if self._searched > _SEARCHES and self.quantizer is not None:
            self.quantizer.hasten()

    # --- exactly ----------------------------------------------------------------------------------

    def _exact(
        self,
        queries: Queries,
        best: _Best,
        ranges: Sequence[tuple[int, int]],
        among: _Wanted | None,
    ) -> None:
        for start, stop in ranges:
            at = let_go = start
            for block in self.vectors.blocks(start, stop, self.vectors.at_once):
                # With many queries a block takes far longer to compare than to be mapped again.
                if len(queries) >= _MANY and at - let_go >= _MAPPED_BLOCKS * self.vectors.at_once:
                    self.vectors.let_go()
                    let_go = at
                rows = np.arange(at, at + len(block), dtype=np.int64)
                at += len(block)
                if among is not None:
                    some = among.ids.has(self.vectors.ids(rows))
                    block, rows = block[some], rows[some]
                if len(rows):
                    best.add_block(queries, block, rows)

    def _compare(self, queries: Queries, rows: Numbers, best: _Best) -> None:
        step = self.vectors.at_once
        for at in range(0, len(rows), step):
            some = rows[at : at + step]
            best.add_block(queries, self.vectors.gather(some), some)

    # --- what is wanted ---------------------------------------------------------------------------

    def _among(self, ids: IdSet) -> _Wanted:
        """Which rows are of these images. The last answer is kept: the next query asks the same."""
        with self._finding:
            if self._wanted is None or self._wanted.ids is not ids:
                self._wanted = self._find(ids)
            return self._wanted

    def _find(self, ids: IdSet) -> _Wanted:
        there = np.zeros(self.vectors.rows, np.bool_)
        at = 0
        for block in self.vectors.id_blocks(0, self.vectors.rows, _IDS):
            there[at : at + len(block)] = ids.has(block)
            at += len(block)
        count = int(there.sum())
        alive = tuple(
            np.packbits(
                np.concatenate([there[row : row + rows] for _, row, rows in spans]),
                bitorder="little",
            )
            for spans in self._spans
        )
        if count <= _FEW and count * 2 < len(there):
            return _Wanted(ids, count, alive, self._sizes, 0, np.flatnonzero(there))
        sizes = np.zeros(len(self._sizes) - 1, np.int64)
        for segment, spans in zip(self.segments, self._spans, strict=True):
            sizes += segment.sizes_of(np.concatenate([there[r : r + n] for _, r, n in spans]))
        return _Wanted(ids, count, alive, np.append(sizes, 0), int(sizes.sum()), None)

    def __enter__(self) -> Self:
        """Keep it open while it is searched, whoever closes it meanwhile."""
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
        """Let go of it, once nobody searches it any more."""
        with self._lock:
            self._closed, idle = True, not self._users
        if idle:
            self._let_go()

    def _let_go(self) -> None:
        self.segments.clear()
        self.vectors.close()


class _Best:
    """The k best (score, row) of each query so far."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.scores = np.full((queries, k), -np.inf, np.float32)
        self.rows = np.full((queries, k), -1, np.int64)
        self._empty = True

    def add_block(self, queries: Queries, block: Queries, rows: Numbers) -> None:
        """Add (n, dim) vectors with their rows (n,)."""
        if len(queries) == 1:
            scores = np.empty((1, len(block)), np.float32)
            of_one(queries, np.ascontiguousarray(block), scores[0])
            self.add(scores, np.broadcast_to(rows, scores.shape))
            return
        import faiss

        most = min(self.k, len(block))
        scores, at = faiss.knn(
            queries, np.ascontiguousarray(block), most, metric=faiss.METRIC_INNER_PRODUCT
        )
        missing = at < 0  # of scores below every float32, which faiss leaves out
        scores[missing] = -np.inf
        self.add(scores, np.where(missing, -1, rows[at]))

    def add(self, scores: npt.NDArray[np.float32], rows: Numbers) -> None:
        """Add (nq, n) scores and their rows; a score that is no number, of damaged vectors, is none."""
        if not np.isfinite(scores).all():
            bad = np.isnan(scores) | (rows < 0)
            scores, rows = np.where(bad, np.float32("-inf"), scores), np.where(bad, -1, rows)
        if len(scores) == 1 and scores.shape[1] > 2 * self.k:
            # Sorting all of them would take ten times as long; those that are equal to the last stay.
            least = np.partition(scores[0], -self.k)[-self.k]
            few = np.flatnonzero(scores[0] >= least)
            scores, rows = scores[:, few], rows[:, few]
        elif scores.shape[1] > 2 * self.k:
            keep = np.argpartition(scores, -self.k, axis=1)[:, -self.k :]
            scores = np.take_along_axis(scores, keep, 1)
            rows = np.take_along_axis(rows, keep, 1)
        if not self._empty:
            scores = np.concatenate([self.scores, scores], axis=1)
            rows = np.concatenate([self.rows, rows], axis=1)
        # By score, then by row, so that equal vectors come in a stable order.
        if len(scores) == 1:  # the general way takes five times as long
            best = np.lexsort((rows[0], -scores[0]))[: self.k]
            self.scores[0, : len(best)], self.rows[0, : len(best)] = scores[0, best], rows[0, best]
        else:
            order = np.lexsort((rows, -scores), axis=1)[:, : self.k]
            most = order.shape[1]
            self.scores[:, :most] = np.take_along_axis(scores, order, 1)
            self.rows[:, :most] = np.take_along_axis(rows, order, 1)
        self._empty = False

    def drop_doubled(self) -> None:
        """Keep each row once: labels of a damaged segment may name one twice."""
        doubled = self.rows[:, 1:] == self.rows[:, :-1]  # with equal scores, so next to each other
        if not doubled.any():
            return
        doubled &= self.rows[:, 1:] >= 0
        for query in np.flatnonzero(doubled.any(axis=1)).tolist():
            first = np.sort(np.unique(self.rows[query], return_index=True)[1])
            first = first[self.rows[query, first] >= 0]
            scores, rows = self.scores[query, first], self.rows[query, first]
            self.scores[query], self.rows[query] = -np.inf, -1
            self.scores[query, : len(rows)], self.rows[query, : len(rows)] = scores, rows


def load_quantizer(store: Path, entry: QuantizerEntry, dim: int) -> Quantizer:
    """The quantizer that the manifest names; ``StoreDamagedError`` if it cannot be read."""
    path = quantizer_path(store, entry.number)
    return Quantizer.load(path, entry.number, dim, entry.nlist, entry.bytes, entry.xxh64)


def quantizer_path(store: Path, number: int) -> Path:
    """Where quantizer ``number`` lies."""
    return store / INDEX_FOLDER / f"{number:08d}{SUFFIX}"


def _held(sizes: Numbers, lists: Numbers) -> Numbers:
    """How many rows lists (nq, nprobe) hold together with those before them."""
    return sizes[lists].cumsum(axis=1)


def _first(held: Numbers, enough: int) -> Numbers:
    """The first list with which there are enough rows, or the last one: (nq,)."""
    there = held >= enough
    found: Numbers = np.where(there.any(axis=1), there.argmax(axis=1), held.shape[1] - 1)
    return found


def _rows_of(spans: Sequence[tuple[int, int, int]], labels: Numbers) -> Numbers:
    """The vector rows that labels stand for, by (label, row, rows) of each span; -1 stays."""
    if len(spans) == 1:
        first = spans[0][1]
        return np.where(labels >= 0, labels + first, -1) if first else labels
    starts = np.array([label for label, _, _ in spans])
    moved = np.array([row - label for label, row, _ in spans])
    return np.where(labels >= 0, labels + moved[np.searchsorted(starts, labels, "right") - 1], -1)


def _gaps(covered: Sequence[tuple[int, int]], rows: int) -> list[tuple[int, int]]:
    """The spans of rows that are not ``covered``: sorted (start, end)."""
    gaps, at = [], 0
    for start, end in covered:
        if start > at:
            gaps.append((at, start))
        at = max(at, end)
    if at < rows:
        gaps.append((at, rows))
    return gaps

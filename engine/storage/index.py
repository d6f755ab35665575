"""Top-k search over all vectors of a store: segments first, then the rows that are in none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.errors import StoreDamagedError
from engine.storage.manifest import SegmentEntry
from engine.storage.segments import Segment
from engine.storage.vectors import Vectors

_BLOCK = 1 << 14  # rows, times
_SOME = 1 << 12  # rows that are copied
_QUERIES = 256  # at a time: 16 MiB of scores
_log = logging.getLogger("engine")

Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


class VectorIndex:
    """Vectors and the segments over them. A segment that cannot be read is searched exactly."""

    def __init__(self, store: Path, vectors: Vectors, entries: Sequence[SegmentEntry]) -> None:
        self.vectors = vectors
        self.segments: list[Segment] = []
        for entry in entries:
            try:
                self.segments.append(Segment(store, entry, vectors.dim))
            except StoreDamagedError as error:
                _log.warning("%s: its rows are searched exactly; run 'engine check --fix'", error)
        self._bare = _gaps([segment.entry for segment in self.segments], vectors.rows)

    def search(self, queries: npt.NDArray[np.float32], k: int, *, exact: bool = False) -> Found:
        """The k largest inner products of each of (nq, dim) queries.

        Returns scores (nq, k) float32, best first, and vector rows (nq, k) int64, both padded
        (-inf and -1) where there are fewer than k vectors.
        """
        if len(queries) > _QUERIES:
            parts = [
                self.search(queries[at : at + _QUERIES], k, exact=exact)
                for at in range(0, len(queries), _QUERIES)
            ]
            return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        best = _Best(len(queries), k)
        if exact:
            self._exact(queries, best, [(0, self.vectors.rows)])
            return best.scores, best.rows
        for segment in self.segments:
            # Codes only rank roughly: ten times as many as asked for are ranked again in full.
            depth = min(max(10 * k, 100), segment.entry.rows)
            nprobe = max(16, segment.entry.nlist // 16)
            rows = segment.candidates(queries, depth, nprobe)
            if ((rows >= 0).sum(axis=1) < min(k, segment.entry.rows)).any():
                # The nearest lists hold fewer than k: look into all of them.
                rows = segment.candidates(queries, depth, segment.entry.nlist)
            first, end = segment.entry.first_row, segment.entry.first_row + segment.entry.rows
            for i, mine in enumerate(rows):
                # Sorted, and none that is padding (-1) or that a damaged segment made up or doubled.
                mine = np.unique(mine[(mine >= first) & (mine < end)])
                best.add(i, self.vectors.gather(mine) @ queries[i], mine)
        self._exact(queries, best, self._bare)
        return best.scores, best.rows

    def search_all(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        wanted: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]],
    ) -> Found:
        """What an exact ``search`` returns, of those vectors only whose ids are ``wanted``.

        One pass, which asks for some thousands of ids, (n,), at a time.
        """
        best = _Best(len(queries), k)
        for start in range(0, self.vectors.rows, _SOME):
            rows = np.arange(start, min(start + _SOME, self.vectors.rows), dtype=np.int64)
            rows = rows[wanted(self.vectors.ids(rows))]
            block = self.vectors.gather(rows)
            for at in range(0, len(queries) if len(rows) else 0, _QUERIES):
                for i, scores in enumerate(queries[at : at + _QUERIES] @ block.T, at):
                    best.add(i, scores, rows)
        return best.scores, best.rows

    def _exact(
        self,
        queries: npt.NDArray[np.float32],
        best: _Best,
        ranges: Sequence[tuple[int, int]],
    ) -> None:
        for start, stop in ranges:
            at = start
            for block in self.vectors.blocks(start, stop, _BLOCK):
                rows = np.arange(at, at + len(block), dtype=np.int64)
                for i, scores in enumerate(queries @ block.T):
                    best.add(i, scores, rows)
                at += len(block)

    def close(self) -> None:
        """Give the maps back."""
        self.segments.clear()
        self.vectors.close()


class _Best:
    """The k best (score, row) of each query so far."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.scores = np.full((queries, k), -np.inf, np.float32)
        self.rows = np.full((queries, k), -1, np.int64)

    def add(self, query: int, scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> None:
        if len(scores) > self.k:
            keep = np.argpartition(scores, -self.k)[-self.k :]
            scores, rows = scores[keep], rows[keep]
        scores = np.concatenate([self.scores[query], scores])
        rows = np.concatenate([self.rows[query], rows])
        # By score, then by row, so that equal vectors come in a stable order.
        order = np.lexsort((rows, -scores))[: self.k]
        self.scores[query], self.rows[query] = scores[order], rows[order]


def _gaps(entries: Sequence[SegmentEntry], rows: int) -> list[tuple[int, int]]:
    """The row ranges that no segment covers."""
    gaps, at = [], 0
    for entry in sorted(entries, key=lambda entry: entry.first_row):
        if entry.first_row > at:
            gaps.append((at, entry.first_row))
        at = max(at, entry.first_row + entry.rows)
    if at < rows:
        gaps.append((at, rows))
    return gaps

"""Exact neighbours, found in a stream of blocks of vectors, and the recall of an index."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from .arrays import Vectors

_QUERIES = 512  # compared with a block at a time: their scores take 34 MB for 16,384 rows

Rows = npt.NDArray[np.int64]


class Nearest:
    """The ``k`` rows with the largest inner product with each query, of the blocks seen so far."""

    def __init__(self, queries: Vectors, k: int) -> None:
        """``queries``: (nq, d)."""
        self._queries = queries
        self._scores = np.full((len(queries), k), -np.inf, np.float32)
        self._rows = np.full((len(queries), k), -1, np.int64)
        self._seen = 0

    def add(self, block: Vectors) -> None:
        """Look at the next rows, (n, d)."""
        numbers = np.arange(self._seen, self._seen + len(block))
        for first in range(0, len(self._queries), _QUERIES):
            some = slice(first, first + _QUERIES)
            new = self._queries[some] @ block.T
            for query, scores in enumerate(new, first):
                self._keep(query, scores, numbers)
        self._seen += len(block)

    def _keep(self, query: int, scores: Vectors, numbers: Rows) -> None:
        k = self._scores.shape[1]
        # After some blocks few rows are better, and sorting all of them would take far longer.
        better = np.flatnonzero(scores > self._scores[query].min())
        every = np.concatenate([self._scores[query], scores[better]])
        best = np.argpartition(-every, k - 1)[:k]
        self._scores[query] = every[best]
        self._rows[query] = np.concatenate([self._rows[query], numbers[better]])[best]

    def rows(self) -> Rows:
        """Best first: (nq, k) int64, -1 where there are fewer."""
        order = np.argsort(-self._scores, axis=1, kind="stable")
        return np.take_along_axis(self._rows, order, axis=1)


def exact(blocks: Iterable[Vectors], queries: Vectors, k: int) -> Rows:
    """The ``k`` nearest rows of each query, best first: (nq, k) int64; ``blocks`` in order."""
    nearest = Nearest(queries, k)
    for block in blocks:
        nearest.add(block)
    return nearest.rows()


def recall(found: Rows, wanted: Rows) -> float:
    """The share of the wanted rows, (nq, k), that are among the rows found, (nq, any)."""
    there = wanted >= 0
    hits = (wanted[:, :, None] == found[:, None, :]).any(axis=2) & there
    return float(hits.sum() / max(1, there.sum()))

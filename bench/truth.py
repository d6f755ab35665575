"""Exact neighbours, computed over a stream of blocks of vectors; and how many of them were found."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from .arrays import Vectors

_QUERIES = 512  # compared with a block at a time: scores take 34 MB for 16,384 rows

Rows = npt.NDArray[np.int64]


def exact(blocks: Iterable[Vectors], queries: Vectors, k: int) -> Rows:
    """The ``k`` rows with the largest inner product with each query, best first: (nq, k) int64.

    -1 where there are fewer rows. ``blocks`` hold rows 0, 1, … in order.
    """
    scores = np.full((len(queries), k), -np.inf, np.float32)
    found = np.full((len(queries), k), -1, np.int64)
    first = 0
    for block in blocks:
        for at in range(0, len(queries), _QUERIES):
            some = slice(at, at + _QUERIES)
            _merge(scores[some], found[some], queries[some] @ block.T, first)
        first += len(block)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)


def _merge(scores: Vectors, found: Rows, new: Vectors, first: int) -> None:
    """Keep the best of what was found and of a block's scores, (nq, rows), in place."""
    k = scores.shape[1]
    # Few blocks have anything better once some have been seen: only those queries are sorted.
    for query in np.flatnonzero(new.max(axis=1) > scores.min(axis=1)):
        both = np.concatenate([scores[query], new[query]])
        best = np.argpartition(-both, k - 1)[:k]
        rows = np.concatenate([found[query], np.arange(first, first + new.shape[1])])
        scores[query], found[query] = both[best], rows[best]


def recall(found: Rows, wanted: Rows) -> float:
    """The share of the wanted rows, (nq, k), that is among those found, (nq, any)."""
    there = wanted >= 0
    hits = (found[:, :, None] == wanted[:, None, :]).any(axis=1) & there
    return float(hits.sum() / max(1, there.sum()))

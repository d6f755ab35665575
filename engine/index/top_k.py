"""Keeps the k best rows of each query."""

from __future__ import annotations

import numpy as np

from engine.index.inner_product import Block, Numbers, of_one


class TopK:
    """The k best (score, row) of each query so far."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.scores = np.full((queries, k), -np.inf, np.float32)
        self.rows = np.full((queries, k), -1, np.int64)
        self._empty = True

    def add_block(self, queries: Block, block: Block, rows: Numbers) -> None:
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
        missing = at < 0  # FAISS leaves out scores below every finite float32
        scores[missing] = -np.inf
        self.add(scores, np.where(missing, -1, rows[at]))

    def add(self, scores: Block, rows: Numbers) -> None:
        """Add (nq, n) scores and their rows; NaN scores, from damaged vectors, are left out."""
        if not np.isfinite(scores).all():
            bad = np.isnan(scores) | (rows < 0)
            scores, rows = np.where(bad, np.float32("-inf"), scores), np.where(bad, -1, rows)
        if len(scores) == 1 and scores.shape[1] > 2 * self.k:
            # Sorting all would take ten times as long. Scores equal to the last one stay.
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
        # By score, then by row, so that equal vectors have a stable order. For one query, the general
        # way takes five times as long.
        if len(scores) == 1:
            best = np.lexsort((rows[0], -scores[0]))[: self.k]
            self.scores[0, : len(best)], self.rows[0, : len(best)] = scores[0, best], rows[0, best]
        else:
            order = np.lexsort((rows, -scores), axis=1)[:, : self.k]
            most = order.shape[1]
            self.scores[:, :most] = np.take_along_axis(scores, order, 1)
            self.rows[:, :most] = np.take_along_axis(rows, order, 1)
        self._empty = False

    def drop_duplicates(self) -> None:
        """Keep each row once: labels of a damaged segment may name a row twice."""
        # Duplicates have equal scores, so they are neighbours.
        doubled = self.rows[:, 1:] == self.rows[:, :-1]
        if not doubled.any():
            return
        doubled &= self.rows[:, 1:] >= 0
        for query in np.flatnonzero(doubled.any(axis=1)).tolist():
            first = np.sort(np.unique(self.rows[query], return_index=True)[1])
            first = first[self.rows[query, first] >= 0]
            scores, rows = self.scores[query, first], self.rows[query, first]
            self.scores[query], self.rows[query] = -np.inf, -1
            self.scores[query, : len(rows)], self.rows[query, : len(rows)] = scores, rows

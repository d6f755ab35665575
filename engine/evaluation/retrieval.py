"""Scores copy retrieval: whether the picture nearest to a copy is its original.

The index of originals and distractors is streamed. Only the best pictures for each query are kept, so
distractors take no memory, however many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

DEPTH = 10
"""The number of nearest pictures per query over which the average precision is computed."""

_COMPARED = 16 << 20  # scores in memory at a time, some 16 bytes each


@dataclass(frozen=True, slots=True)
class Score:
    """The score of a retrieval; ``found`` (queries,) bool is whether the right picture came first."""

    found: npt.NDArray[np.bool_]
    micro_average_precision: float


class Retrieval:
    """The best wrong pictures of each of n queries so far, and the score of its right picture."""

    def __init__(self, queries: Vectors, *, compared: int = _COMPARED) -> None:
        """``queries`` is (n, d), of unit length, or zero if the encoder has no vector.

        ``compared`` scores are in memory at a time.
        """
        self._compared = compared
        n, _ = queries.shape
        self._queries = queries
        self.right = np.full(n, -np.inf, np.float32)
        self.best = np.full((n, DEPTH), -np.inf, np.float32)  # scores of wrong pictures, best first
        self.who = np.full((n, DEPTH), -1, np.int64)  # numbers of these pictures

    def meet(
        self,
        vectors: Vectors,
        numbers: npt.NDArray[np.int64],
        answers: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Compare all queries with a block of the index: ``vectors`` (m, d) and ``numbers`` (m,).

        ``answers`` (n,) are the right numbers of the queries; None if the block holds none of them.
        """
        step = max(1, self._compared // max(1, len(self._queries)))
        for at in range(0, len(numbers), step):
            self._meet(vectors[at : at + step], numbers[at : at + step], answers)

    def _meet(
        self,
        vectors: Vectors,
        numbers: npt.NDArray[np.int64],
        answers: npt.NDArray[np.int64] | None,
    ) -> None:
        scores = self._queries @ vectors.T  # (n, m)
        if answers is not None:
            rows, columns = np.nonzero(answers[:, None] == numbers)
            self.right[rows] = np.maximum(self.right[rows], scores[rows, columns])
            scores[rows, columns] = -np.inf
        depth = min(DEPTH, len(numbers))
        top = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
        both = np.concatenate((self.best, np.take_along_axis(scores, top, 1)), axis=1)
        who = np.concatenate((self.who, numbers[top]), axis=1)
        order = np.argsort(-both, axis=1, kind="stable")[:, :DEPTH]
        self.best = np.take_along_axis(both, order, 1)
        self.who = np.take_along_axis(who, order, 1)

    def score(self) -> Score:
        """The queries that found the right picture, and the average precision over all queries."""
        return Score(self.right > self.best[:, 0], micro_average_precision(self.right, self.best))


def micro_average_precision(right: npt.NDArray[np.float32], wrong: Vectors) -> float:
    """Micro average precision: the average precision of the answers of all queries in one ranking.

    It is the measure of the Image Similarity Challenge (Douze et al., 2021, arXiv:2106.09672).

    Each of n queries returns its ``DEPTH`` nearest pictures with their scores, and one picture is right
    for each query. All returned pictures are ranked by score, whatever their query:

        µAP = Σᵢ p(i) · Δr(i),   p(i) = right ones among the first i / i,   Δr(i) = 1 / n or 0

    Δr(i) is 1 / n if the i-th picture is right. So µAP also measures whether one threshold suits all
    queries. ``right`` (n,) are the scores of the right pictures, and ``wrong`` (n, DEPTH) the highest
    scores of the others. Of equal scores the wrong ones come first, so a tie counts as not found.
    """
    n = len(right)
    if not n:
        return 0.0
    before = (wrong >= right[:, None]).sum(1)
    named = (before < wrong.shape[1]) & np.isfinite(right)
    # The right picture replaces the last wrong one.
    kept = np.isfinite(wrong)
    kept[named, -1] = False
    scores = np.concatenate((wrong[kept], right[named]))
    is_right = np.concatenate((np.zeros(int(kept.sum()), bool), np.ones(int(named.sum()), bool)))
    # Of equal scores, False comes first.
    order = np.lexsort((is_right, -scores))
    is_right = is_right[order]
    precision = np.cumsum(is_right) / np.arange(1, len(is_right) + 1)
    return float(precision[is_right].sum() / n)

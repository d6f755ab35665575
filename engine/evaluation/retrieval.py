"""Copy retrieval: is a copy's nearest picture, of originals and distractors, the one it was made of?

The index is streamed: of each block of it only the best that a query met are kept, so neither pictures
nor vectors of distractors are in memory, however many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

DEPTH = 10
"""Pictures that each query may name, its nearest: what the average precision is taken over."""

_COMPARED = 16 << 20  # scores at a time, of some 16 bytes each


@dataclass(frozen=True, slots=True)
class Score:
    """What a retrieval came to; ``found`` is (queries,) bool, whether the right picture came first."""

    found: npt.NDArray[np.bool_]
    micro_average_precision: float


class Retrieval:
    """The best that each of n queries met so far, and the score of what it should meet."""

    def __init__(self, queries: Vectors, *, compared: int = _COMPARED) -> None:
        """``queries`` is (n, d), of unit length, or zero where an encoder has nothing to say.

        ``compared`` scores are held at a time.
        """
        self._compared = compared
        n, _ = queries.shape
        self._queries = queries
        self.right = np.full(n, -np.inf, np.float32)
        self.best = np.full((n, DEPTH), -np.inf, np.float32)  # of wrong pictures, from the highest
        self.who = np.full((n, DEPTH), -1, np.int64)  # their numbers

    def meet(
        self,
        vectors: Vectors,
        numbers: npt.NDArray[np.int64],
        answers: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Compare all queries with a block of the index: (m, d), and their numbers (m,).

        ``answers`` (n,) says which number is right for each query; leave it out if none is here.
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
        """Which queries found the right picture, and the average precision over all of them."""
        return Score(self.right > self.best[:, 0], micro_average_precision(self.right, self.best))


def micro_average_precision(right: npt.NDArray[np.float32], wrong: Vectors) -> float:
    """Micro average precision: that of all queries' answers, put in one order.

    It is the measure of the Image Similarity Challenge (Douze et al., 2021, arXiv:2106.09672).

    Each of n queries names its ``DEPTH`` nearest pictures with their scores; one picture is right for
    each. All that are named are ordered by score, whatever their query:

        µAP = Σᵢ p(i) · Δr(i),   p(i) = right ones among the first i / i,   Δr(i) = 1 / n or 0

    where Δr(i) is 1 / n if the i-th is right. So it asks, beyond each query's own order, whether one
    threshold would do for all. ``right`` is (n,): the score of what is right; ``wrong`` (n, DEPTH): the
    highest of what is not. Of equal scores wrong ones come first: what cannot be told apart is not
    found.
    """
    n = len(right)
    if not n:
        return 0.0
    before = (wrong >= right[:, None]).sum(1)
    named = (before < wrong.shape[1]) & np.isfinite(right)
    # The right picture takes the place of the last wrong one.
    kept = np.isfinite(wrong)
    kept[named, -1] = False
    scores = np.concatenate((wrong[kept], right[named]))
    is_right = np.concatenate((np.zeros(int(kept.sum()), bool), np.ones(int(named.sum()), bool)))
    order = np.lexsort((is_right, -scores))  # of equal scores False first
    is_right = is_right[order]
    precision = np.cumsum(is_right) / np.arange(1, len(is_right) + 1)
    return float(precision[is_right].sum() / n)

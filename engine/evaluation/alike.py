"""Measures whether the pictures nearest to a picture show the same kind of thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from engine.errors import UsageError
from engine.evaluation.embedded import embed
from engine.evaluation.labelled import Labelled
from engine.evaluation.pictures import Picture
from engine.evaluation.timing import Timed, Vectors

NEIGHBOURS = 3
"""The number of nearest pictures that are looked at."""

_COMPARED = 16 << 20  # scores in memory at a time

Labels = npt.NDArray[np.int64]


class Alike:
    """One run. ``pictures``, ``queries`` and ``classes`` are counts.

    ``chance`` is the result of vectors that say nothing.
    """

    def __init__(
        self,
        labelled: Labelled,
        entrants: Sequence[Timed],
        *,
        most: int,
        seed: int,
        reject: Callable[[Picture], None],
        tick: Callable[[int], None],
    ) -> None:
        """Take at most ``most`` pictures; ``tick(count)`` counts those just done."""
        self._labelled = labelled
        self._entrants = entrants
        self._most = most
        self._seed = seed
        self._reject, self._tick = reject, tick
        self.pictures = self.queries = self.classes = 0
        self.chance = 0.0

    def run(self) -> list[float]:
        """The precision of each entrant, in their order: see ``precision``."""
        found = embed(
            self._labelled,
            self._entrants,
            most=self._most,
            seed=self._seed,
            what="to compare",
            reject=self._reject,
            tick=self._tick,
        )
        names, labels = np.unique(found.labels, return_inverse=True)
        sizes = np.bincount(labels)[labels]
        asked = np.flatnonzero(sizes > NEIGHBOURS)
        if not len(asked) or len(names) < 2:
            raise UsageError(
                f"the pictures to compare need two classes or more, and one of them at least "
                f"{NEIGHBOURS + 1} pictures"
            )
        self.pictures, self.queries, self.classes = len(labels), len(asked), len(names)
        self.chance = float(((sizes[asked] - 1) / (len(labels) - 1)).mean())
        return [precision(vectors, labels, asked) for vectors in found.vectors]


def precision(
    vectors: Vectors, labels: Labels, asked: Labels, k: int = NEIGHBOURS, compared: int = _COMPARED
) -> float:
    """The mean share of the k nearest other vectors that have a query's label (precision at k).

    ``vectors`` is (n, d), of unit length or zero, and ``labels`` (n,). ``asked`` (m,) are the rows that
    are queries; each needs k others. Of equal cosines, a vector of another label counts as nearer, so
    vectors that are all the same get no credit. A vector of zero finds nothing.
    """
    n, _ = vectors.shape
    right = 0
    step = max(1, compared // n)
    for at in range(0, len(asked), step):
        rows = asked[at : at + step]
        scores = vectors[rows] @ vectors.T
        scores[np.arange(len(rows)), rows] = -np.inf
        same: npt.NDArray[np.bool_] = np.equal(labels[rows][:, None], labels[None])
        # Sorted by cosine, and among equal ones by whether the label is the same.
        nearest = np.lexsort((same, -scores), axis=1)[:, :k]
        hits = np.take_along_axis(same, nearest, 1) & np.any(vectors[rows], axis=1, keepdims=True)
        right += int(hits.sum())
    return right / (k * len(asked))

"""The similar tier: the images whose vectors are closest to a query's."""

from __future__ import annotations

import logging
import math

import numpy as np
import numpy.typing as npt

from engine.errors import UsageError
from engine.index.open import OpenIndex
from engine.index.random_pairs import is_stranger, share_below
from engine.records import SimilarHit
from engine.search.hits import Hits
from engine.search.settings import LookupSettings
from engine.storage.bitmap import IdSet
from engine.storage.manifest import RandomPairs

_MAX_SCORE = 1.01  # of two unit vectors, rounding included
_log = logging.getLogger("engine.search")


class SimilarTier:
    """Searches the vectors of one store, always with the same settings."""

    def __init__(
        self, index: OpenIndex, hits: Hits, settings: LookupSettings, *, cosine: bool
    ) -> None:
        """``cosine``: whether vectors and queries have length 1."""
        self._index = index
        self._hits = hits
        self._k = settings.k
        self._cosine = cosine
        self._min_score = settings.min_score
        self._min_percentile = settings.min_percentile
        self._recall = settings.recall

    def closest(
        self,
        rows: int,
        vector: npt.NDArray[np.float32],
        taken: set[int],
        wanted: IdSet | None,
    ) -> tuple[SimilarHit, ...]:
        """The best k of all ``rows`` vectors, without ids in ``taken``; ``vector`` is (1, dim)."""
        # More than k, since the nearest may be taken. Not ``len(taken)`` more: near copies may be
        # many, and need not be similar.
        most = min(self._k + min(len(taken), 3 * self._k), rows)
        hits, enough = self._best(vector, most, taken, wanted)
        # Too many of the nearest were taken.
        while not enough and most < rows:
            most = min(2 * most, rows)
            hits, enough = self._best(vector, most, taken, wanted)
        return tuple(hits)

    def _best(
        self,
        vector: npt.NDArray[np.float32],
        most: int,
        taken: set[int],
        wanted: IdSet | None,
    ) -> tuple[list[SimilarHit], bool]:
        """The best k among the ``most`` nearest vectors, and whether a larger search finds no more."""
        scores, ids = self._index.search(vector, most, recall=self._recall, wanted=wanted)
        hits: list[SimilarHit] = []
        pairs, rows = self._random_pairs()
        for score, id_ in zip(scores[0].tolist(), ids[0].tolist(), strict=True):
            if id_ < 0:
                return hits, True
            if id_ in taken:
                continue
            # Not a number, or more than the product of unit vectors.
            if not (abs(score) < _MAX_SCORE if self._cosine else math.isfinite(score)):
                _log.warning("image %d: its vector is damaged; run 'engine check'", id_)
                continue
            if self._min_score is not None and score < self._min_score:
                return hits, True
            share = share_below(pairs, score) if pairs is not None else None
            if self._min_percentile is not None and (share or 0) * 100 < self._min_percentile:
                return hits, True
            hit = self._hits.similar(
                id_,
                round(min(score, 1.0) if self._cosine else score, 6),
                # Rounded down, since 100 would be a promise.
                math.floor(share * 1e6) / 1e4 if share is not None else None,
                stranger=share is not None and is_stranger(share, rows),
            )
            if hit is None:
                continue
            hits.append(hit)
            if len(hits) == self._k:
                return hits, True
        return hits, False

    def _random_pairs(self) -> tuple[RandomPairs | None, int]:
        """How alike random pairs are, and the number of vectors."""
        index = self._index.current
        pairs = index.random_pairs if index is not None else None
        if pairs is None and self._min_percentile is not None:
            raise UsageError(
                "min_score= in percent needs a store with more vectors: give a score, such as 0.8"
            )
        return pairs, index.vectors.rows if index is not None else 0

"""The read path: one query through the tiers, strictest first; an id stays where it was first found.

query → identical (file hash; key, then verified) → near (fingerprints, pixels) → similar (encode, index)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
import numpy.typing as npt

from engine.config import DEFAULT_MAX_DISTANCE, whole
from engine.encoders.onnx import OnnxEncoder
from engine.errors import EncoderError, ImageError, UsageError
from engine.images.fingerprint import FINGERPRINT_BITS
from engine.images.rgb_picture import to_rgb8
from engine.index.open import OpenIndex
from engine.index.operating_point import check_recall
from engine.index.search import VectorIndex
from engine.index.unit_vectors import normalized
from engine.records import Decoded, IdenticalHit, LookupResult, NearHit, SimilarHit
from engine.search.hits import identical_hit, near_hits
from engine.search.identical import id_of_file, rows_of_pixels
from engine.search.near import near_images
from engine.search.similar import SimilarTier
from engine.search.tiers import IDENTICAL, NEAR, SIMILAR, searched_tiers
from engine.sources.query import Query
from engine.storage.bitmap import IdSet
from engine.storage.session import Session

_NUMBER = float | int | np.floating | np.integer
_log = logging.getLogger("engine.search")


class _NoVectorError(Exception):
    """The encoder has nothing to say of one picture; other queries are not concerned."""


class Lookup:
    """Answers queries from one store. The encoder is loaded when it is first needed."""

    def __init__(
        self,
        store: Session,
        index: OpenIndex,
        encoder: Callable[[], OnnxEncoder],
        *,
        k: int,
        tiers: Sequence[str] | None = None,
        min_score: float | None = None,
        max_distance: int = DEFAULT_MAX_DISTANCE,
        recall: float | None = None,
    ) -> None:
        """``tiers``: which to search, by default all that the store has."""
        k = check_k(k)
        space = store.snapshot.space
        self._is_imported = space.is_imported
        self._cosine = space.is_cosine
        most = 1.0 if self._cosine else math.inf
        if min_score is not None and not (
            isinstance(min_score, _NUMBER) and abs(min_score) <= most
        ):
            what = "a cosine, between -1 and 1" if self._cosine else "a number"
            raise UsageError(f"min_score= is {what}, not {min_score!r}")
        distance = _whole_or(max_distance, -1)
        if not 0 <= distance <= FINGERPRINT_BITS:
            raise UsageError(
                f"max_distance= is a number of bits, 0 to {FINGERPRINT_BITS}, not {max_distance!r}"
            )
        self._store = store
        self._index = index
        self._encoder = encoder
        self._max_distance = distance
        self._similar_tier = SimilarTier(
            store,
            index,
            k=k,
            cosine=self._cosine,
            min_score=min_score,
            recall=check_recall(recall) if recall is not None else None,
        )
        self._asked = tiers is not None
        self.tiers = searched_tiers(store, tiers)
        if tiers is not None and SIMILAR not in self.tiers:
            for name, value in (("recall=", recall), ("min_score=", min_score)):
                if value is not None:
                    raise UsageError(
                        f"{name} is of the similar tier, which is not asked: leave it out"
                    )
        # Imported vectors say nothing of images, which have none to compare with them.
        self._of_images = tuple(t for t in self.tiers if t != SIMILAR or not self._is_imported)

    def one(self, query: Query, wanted: IdSet | None = None) -> LookupResult:
        """Search every tier for one query. A query that is no image has an ``error``.

        ``wanted``: which images may be found, if not all.
        ``UsageError`` for a query of a kind that the tiers which were asked for are not for.
        """
        if query.vector is not None:
            return self._one_vector(query.name, query.vector, wanted)
        if self._asked and self._of_images != self.tiers:
            raise UsageError(
                f"{self._store.path} holds imported vectors, and an image has none: look up "
                'FILE.npy#ROW of vectors, or leave tiers=["similar"] out'
            )
        spent: dict[str, float] = {}
        found: list[IdenticalHit] = []
        nearby: tuple[NearHit, ...] = ()
        similar: tuple[SimilarHit, ...] = ()
        searched = self._of_images
        self._store.snapshot.count_lookups(1)
        try:
            if IDENTICAL in searched and query.data is not None:
                started = perf_counter()
                id_ = id_of_file(self._store, query.data, wanted)
                if id_ is not None:
                    found.append(identical_hit(self._store, id_, "digest"))
                _spend(spent, "identical", started)
            if searched != (IDENTICAL,) or not found:
                started = perf_counter()
                decoded = query.decode(self._store.memory.decoding)
                started = _spend(spent, "decode", started)
                if IDENTICAL in searched:
                    self._by_pixels(decoded, found, wanted)
                    _spend(spent, "identical", started)
                taken = {hit.id for hit in found}
                if NEAR in searched:
                    nearby = self._near(decoded, taken, spent, wanted)
                    taken.update(hit.id for hit in nearby)
                if SIMILAR in searched:
                    try:
                        similar = self._similar(decoded, taken, spent, wanted)
                    except EncoderError as error:
                        if self._asked:
                            raise
                        _log.warning("the similar tier was not searched: %s", error)
                        searched = tuple(tier for tier in searched if tier != SIMILAR)
                    except _NoVectorError as error:
                        searched = tuple(tier for tier in searched if tier != SIMILAR)
                        if not searched:
                            return LookupResult(query.name, error=str(error))
                        _log.warning("%s: the similar tier was not searched: %s", query.name, error)
        except ImageError as error:
            if not found:
                return LookupResult(query.name, error=str(error))
            # Known by its bytes, though it cannot be decoded here and now.
            _log.warning("%s: only its bytes were looked up: %s", query.name, error)
            searched = (IDENTICAL,)
        if len(found) > 1:
            found.sort(key=lambda hit: hit.id)
        return LookupResult(query.name, searched, tuple(found), nearby, similar, spent)

    def _by_pixels(self, decoded: Decoded, found: list[IdenticalHit], wanted: IdSet | None) -> None:
        known = {hit.id for hit in found}
        for row, verified in rows_of_pixels(self._store, decoded, known, wanted):
            found.append(identical_hit(self._store, row.id, verified, in_runs=row.in_runs))

    def _near(
        self, decoded: Decoded, taken: set[int], spent: dict[str, float], wanted: IdSet | None
    ) -> tuple[NearHit, ...]:
        started = perf_counter()
        query = decoded.pixels
        found = near_images(self._store, query, self._max_distance, taken, wanted)
        hits = near_hits(self._store, query, found)
        _spend(spent, "near", started)
        return hits

    def _similar(
        self, decoded: Decoded, taken: set[int], spent: dict[str, float], wanted: IdSet | None
    ) -> tuple[SimilarHit, ...]:
        index = self._index.current
        rows = index.vectors.rows if index is not None else 0
        if wanted is not None:
            rows = min(rows, len(wanted))
        if index is None or not rows:
            return ()
        started = perf_counter()
        encoder = self._encoder()
        started = _spend(spent, "load", started)  # only the first query of a process pays for it
        vector = encoder.encode([to_rgb8(decoded.pixels)])
        _spend(spent, "encode", started)
        if not vector.any():
            raise _NoVectorError("the encoder gives no vector for it")
        return self._closest(index, vector, taken, spent, wanted)

    def _one_vector(
        self, name: str, vector: npt.NDArray[np.float32], wanted: IdSet | None
    ) -> LookupResult:
        """Search the similar tier for a vector, (dim,)."""
        index = self._index.current
        if index is None:
            raise UsageError(f"{self._store.path} has no vectors to compare {name} with")
        if SIMILAR not in self.tiers:
            raise UsageError(
                f"{name} is a vector, which is looked up in the similar tier alone: leave "
                f"tiers= out"
            )
        if len(vector) != index.vectors.dim:
            raise UsageError(
                f"{name} has {len(vector)} dimensions, and the vectors of {self._store.path} have "
                f"{index.vectors.dim}"
            )
        if not np.isfinite(vector).all():
            return LookupResult(name, error="holds NaN or infinite values")
        query = vector[None]
        if self._cosine:
            query, lengths = normalized(query)
            if not lengths[0]:
                return LookupResult(name, error="has length zero, and so no direction")
        spent: dict[str, float] = {}
        hits = self._closest(index, query, set(), spent, wanted) if index.vectors.rows else ()
        return LookupResult(name, (SIMILAR,), similar=hits, milliseconds=spent)

    def _closest(
        self,
        index: VectorIndex,
        vector: npt.NDArray[np.float32],
        taken: set[int],
        spent: dict[str, float],
        wanted: IdSet | None,
    ) -> tuple[SimilarHit, ...]:
        """The best k of all vectors, without those ``taken``; ``vector`` is (1, dim)."""
        started = perf_counter()
        hits = self._similar_tier.closest(index.vectors.rows, vector, taken, wanted)
        _spend(spent, "similar", started)
        return hits


def _spend(spent: dict[str, float], stage: str, started: float) -> float:
    """Add the milliseconds of a stage since ``started``; returns the time now."""
    now = perf_counter()
    spent[stage] = spent.get(stage, 0.0) + (now - started) * 1e3
    return now


def check_k(k: object) -> int:
    """How many hits are wanted; ``UsageError`` if it is no whole number of 1 or more."""
    number = _whole_or(k, 0)
    if number < 1:
        raise UsageError(f"k must be 1 or more, not {k!r}")
    return number


def _whole_or(value: object, instead: int) -> int:
    try:
        return whole(value)
    except TypeError:
        return instead

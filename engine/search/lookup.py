"""The read path: one query through the tiers, strictest first; an id stays where it was first found.

query → identical (file hash; key, then verified) → near (fingerprints, pixels) → similar (encode, index)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter

import numpy as np
import numpy.typing as npt

from engine.encoders.onnx import OnnxEncoder
from engine.errors import EncoderError, ImageError, UsageError
from engine.images.rgb_picture import to_rgb8
from engine.index.open import OpenIndex
from engine.index.search import VectorIndex
from engine.index.unit_vectors import normalized
from engine.records import Decoded, IdenticalHit, LookupResult, NearHit, SimilarHit
from engine.search.hits import Hits
from engine.search.identical import id_of_file, rows_of_pixels
from engine.search.near import NearImages, near_images
from engine.search.settings import LookupSettings
from engine.search.similar import SimilarTier
from engine.search.tiers import IDENTICAL, NEAR, SIMILAR, searched_tiers
from engine.sources.query import Query
from engine.storage.bitmap import IdSet
from engine.storage.session import Session

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
        settings: LookupSettings,
    ) -> None:
        """``UsageError`` where the store has not what ``settings`` ask for."""
        space = store.snapshot.space
        self._is_imported = space.is_imported
        self._cosine = space.is_cosine
        score = settings.min_score
        if self._cosine and score is not None and abs(score) > 1:
            raise UsageError(f"min_score= is a cosine, between -1 and 1, not {score!r}")
        self._store = store
        self._index = index
        self._encoder = encoder
        self._settings = settings
        self._hits = Hits(store, settings.max_sources)
        self._similar_tier = SimilarTier(index, self._hits, settings, cosine=self._cosine)
        self._asked = settings.tiers is not None
        self.tiers = searched_tiers(store, settings.tiers)
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
        near_count = 0
        similar: tuple[SimilarHit, ...] = ()
        searched = self._of_images
        self._store.snapshot.count_lookups(1)
        try:
            if IDENTICAL in searched and query.data is not None:
                started = perf_counter()
                id_ = id_of_file(self._store, query.data, wanted)
                if id_ is not None:
                    found.append(self._hits.identical(id_, "digest"))
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
                    near, nearby = self._near(decoded, taken, spent, wanted)
                    near_count = len(near.ids)
                    taken.update(near.ids.tolist())
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
        return LookupResult(query.name, searched, tuple(found), nearby, near_count, similar, spent)

    def _by_pixels(self, decoded: Decoded, found: list[IdenticalHit], wanted: IdSet | None) -> None:
        known = {hit.id for hit in found}
        for row, verified in rows_of_pixels(self._store, decoded, known, wanted):
            found.append(self._hits.identical(row.id, verified, in_runs=row.in_runs))

    def _near(
        self, decoded: Decoded, taken: set[int], spent: dict[str, float], wanted: IdSet | None
    ) -> tuple[NearImages, tuple[NearHit, ...]]:
        """All images near, as numbers; and the hits of the nearest."""
        started = perf_counter()
        query, settings = decoded.pixels, self._settings
        found = near_images(self._store, query, settings.max_distance, taken, wanted)
        hits = self._hits.near(query, found, settings.near_limit)
        _spend(spent, "near", started)
        return found, hits

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

"""Looks queries up in all tiers, strictest first; an id appears only in the first tier that finds it.

query → identical (file hash; key, then verified) → near (fingerprints, pixels) → similar (encode, index)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
import numpy.typing as npt

from engine.encoders.onnx import OnnxEncoder
from engine.encoders.text import TextEncoder
from engine.errors import EncoderError, ImageError, UsageError
from engine.images.preprocessing import Preprocessing
from engine.index.open import OpenIndex
from engine.index.unit_vectors import normalized
from engine.records import IdenticalHit, LookupResult, NearHit, SimilarHit
from engine.search.batch_work import BatchWork
from engine.search.hits import Hits
from engine.search.identical import id_of_file, rows_of_pixels
from engine.search.near import NearImages, near_images
from engine.search.query_work import QueryWork
from engine.search.settings import LookupSettings
from engine.search.similar import SimilarTier
from engine.search.stored_query import stored_query
from engine.search.tiers import IDENTICAL, NEAR, SIMILAR, searched_tiers
from engine.sources.query import Query
from engine.storage.bitmap import IdSet
from engine.storage.extent_reader import MovedError
from engine.storage.session import Session

_NUMBER = float | int | np.floating | np.integer
_log = logging.getLogger("engine.search")


class _NoVectorError(Exception):
    """The encoder gives no vector for one picture; other queries are not affected."""


class Lookup:
    """Answers queries from one store, as long as its vector space stays the same.

    The encoder is loaded when it is first needed.
    """

    def __init__(
        self,
        store: Session,
        index: OpenIndex,
        encoder: Callable[[], OnnxEncoder],
        settings: LookupSettings,
        texts: Callable[[], TextEncoder],
    ) -> None:
        """``UsageError`` if the store lacks something that ``settings`` ask for."""
        self._space = space = store.snapshot.space
        self._is_imported = space.is_imported
        self._cosine = space.is_cosine
        self._hash_seed = store.snapshot.settings.hash_seed
        score, most = settings.min_score, 1.0 if self._cosine else math.inf
        if score is not None and not (isinstance(score, _NUMBER) and abs(score) <= most):
            what = "a cosine, between -1 and 1" if self._cosine else "a number"
            raise UsageError(f"min_score= is {what}, not {score!r}")
        self._store = store
        self._index = index
        self._encoder = encoder
        self._texts = texts
        self._settings = settings
        self._hits = Hits(store, settings.max_sources)
        self._similar_tier = SimilarTier(index, self._hits, settings, cosine=self._cosine)
        self._asked = settings.tiers is not None
        self.tiers = searched_tiers(store, settings.tiers)
        # Most queries that are images have no vector to compare with imported ones.
        self._of_images = tuple(t for t in self.tiers if t != SIMILAR or not self._is_imported)

    def one(self, query: Query, wanted: IdSet | None = None) -> LookupResult:
        """Search every tier for one query. The result of a query that is not an image has an ``error``.

        ``wanted`` are the images that may be found, None for all. ``UsageError`` if the requested tiers
        do not take a query of this kind.
        """
        found = self._answer(self._work(query, None), wanted)
        self._require_same()
        return found

    def prepare(self, queries: Sequence[Query], wanted: IdSet | None) -> BatchWork:
        """The work of some queries, for ``answers``; other threads may do a part of it before that.

        The pixels of all are in memory together: see ``batches`` in ``engine.search.batches``.
        """
        encoder = self._loaded_encoder(wanted)
        preprocessing = encoder.preprocessing if encoder is not None else None
        works = [self._work(query, preprocessing) for query in queries]
        ahead = [work for work in works if self._needs_pixels(work, wanted)]
        return BatchWork(works, ahead, encoder, self._space)

    def answers(self, batch: BatchWork, wanted: IdSet | None) -> list[LookupResult]:
        """``one`` for each query of a batch, in their order.

        Another ``Lookup``, of an earlier commit, may have prepared the batch. If a later commit changed
        the encoder, what that one made is made again.
        """
        batch.suit(self._space)
        found = [self._answer(work, wanted) for work in batch.works]
        self._require_same()
        return found

    def _require_same(self) -> None:
        """Raise ``MovedError`` if the store has moved to another encoder since this was made.

        The query may have been encoded by one and compared with the vectors of the other.
        """
        if self._store.snapshot.space != self._space:
            raise MovedError(f"the encoder of {self._store.path} was replaced; ask again")

    def _work(self, query: Query, preprocessing: Preprocessing | None) -> QueryWork:
        return QueryWork(
            query,
            max_decoding=self._store.memory.decoding,
            max_distance=self._settings.max_distance if NEAR in self._of_images else None,
            preprocessing=preprocessing,
            hash_seed=self._hash_seed if IDENTICAL in self._of_images else None,
        )

    def _loaded_encoder(self, wanted: IdSet | None) -> OnnxEncoder | None:
        """The encoder of the queries; None if nothing is encoded, or it cannot be loaded."""
        if SIMILAR not in self._of_images or not self._rows(wanted):
            return None
        try:
            return self._encoder()
        # Each query reports it.
        except EncoderError:
            return None

    def _needs_pixels(self, work: QueryWork, wanted: IdSet | None) -> bool:
        """Whether a query has to be decoded; if only the identical tier is searched, not always."""
        if not work.query.has_pixels:
            return False
        if self._of_images != (IDENTICAL,):
            return True
        file_hash = work.file_hash()
        return file_hash is None or id_of_file(self._store, file_hash, wanted) is None

    def _answer(self, work: QueryWork, wanted: IdSet | None) -> LookupResult:
        query = work.query
        if query.is_text:
            return self._one_text(work, wanted)
        if query.stored is not None and query.stored.generation != self._space.generation:
            # Its vector is of an encoder that has been replaced.
            try:
                now = stored_query(self._store, query.stored.id)
            except ImageError as error:
                return LookupResult(work.name, error=str(error))
            return self._answer(self._work(now, None), wanted)
        if query.vector is not None:
            if query.unreadable:
                if SIMILAR not in self.tiers:
                    return LookupResult(query.name, error=query.unreadable)
                _log.warning("%s: only its vector was looked up: %s", query.name, query.unreadable)
            return self._one_vector(query.name, query.vector, wanted)
        searched = self.tiers if query.own_vector is not None else self._of_images
        if self._asked and searched != self.tiers:
            raise UsageError(
                f"{self._store.path} holds imported vectors, and an image has no vector to compare: "
                "look up a vector, FILE.npy#ROW, or the id of an image that has one, or leave "
                'tiers=["similar"] out'
            )
        found: list[IdenticalHit] = []
        nearby: tuple[NearHit, ...] = ()
        near_count = 0
        similar: tuple[SimilarHit, ...] = ()
        self._store.snapshot.count_lookups(1)
        try:
            if IDENTICAL in searched:
                self._by_file(work, found, wanted)
            if searched != (IDENTICAL,) or not found:
                work.decoded()
                if IDENTICAL in searched:
                    self._by_pixels(work, found, wanted)
                taken = {hit.id for hit in found}
                if NEAR in searched:
                    near, nearby = self._near(work, taken, wanted)
                    near_count = len(near.ids)
                    taken.update(near.ids.tolist())
                if SIMILAR in searched:
                    try:
                        similar = self._similar(work, taken, wanted)
                    except EncoderError as error:
                        if self._asked:
                            raise
                        _log.warning("the similar tier was not searched: %s", error)
                        searched = tuple(tier for tier in searched if tier != SIMILAR)
                    except _NoVectorError as error:
                        searched = tuple(tier for tier in searched if tier != SIMILAR)
                        if not searched:
                            return LookupResult(work.name, error=str(error))
                        _log.warning("%s: the similar tier was not searched: %s", work.name, error)
        except ImageError as error:
            if not found:
                return LookupResult(work.name, error=str(error))
            # The file is known by its SHA-256, though it cannot be decoded now.
            _log.warning("%s: only its bytes were looked up: %s", work.name, error)
            searched = (IDENTICAL,)
        if len(found) > 1:
            found.sort(key=lambda hit: hit.id)
        return LookupResult(
            work.name, searched, tuple(found), nearby, near_count, similar, work.spent
        )

    def _by_file(self, work: QueryWork, found: list[IdenticalHit], wanted: IdSet | None) -> None:
        file_hash = work.file_hash()
        if file_hash is not None:
            with work.stage("identical"):
                id_ = id_of_file(self._store, file_hash, wanted)
                if id_ is not None:
                    found.append(self._hits.identical(id_, "digest"))

    def _by_pixels(self, work: QueryWork, found: list[IdenticalHit], wanted: IdSet | None) -> None:
        key, form = work.key(self._hash_seed), work.decoded().pixels.canonical
        known = {hit.id for hit in found}
        with work.stage("identical"):
            for row, verified in rows_of_pixels(self._store, key, form, known, wanted):
                found.append(self._hits.identical(row.id, verified, in_runs=row.in_runs))

    def _near(
        self, work: QueryWork, taken: set[int], wanted: IdSet | None
    ) -> tuple[NearImages, tuple[NearHit, ...]]:
        """All near images, as numbers, and the hits of the nearest."""
        query, most = work.decoded().pixels, self._settings.max_distance
        prints = work.prints(most)
        with work.stage("near"):
            found = near_images(self._store, query, prints, most, taken, wanted)
            return found, self._hits.near(query, found, self._settings.near_limit)

    def _rows(self, wanted: IdSet | None) -> int:
        """The number of vectors to compare with a query."""
        index = self._index.current
        rows = index.vectors.rows if index is not None else 0
        return rows if wanted is None else min(rows, len(wanted))

    def _similar(
        self, work: QueryWork, taken: set[int], wanted: IdSet | None
    ) -> tuple[SimilarHit, ...]:
        index = self._index.current
        if index is None or not self._rows(wanted):
            return ()
        vector = work.vector
        if vector is None:
            # Loads the encoder for the first query of a process.
            with work.stage("load"):
                encoder = self._encoder()
            picture = work.picture(encoder.preprocessing)
            with work.stage("encode"):
                vector = encoder.encode([picture])
        if not vector.any():
            raise _NoVectorError("the encoder gives no vector for it")
        with work.stage("similar"):
            return self._similar_tier.closest(index.vectors.rows, vector, taken, wanted)

    def text_encoder(self) -> TextEncoder:
        """What encodes texts; ``UsageError`` if the store has none, or other tiers are asked for."""
        if self._asked and SIMILAR not in self.tiers:
            raise UsageError(
                "a text is looked up in the similar tier only: leave tiers= out, or add similar"
            )
        return self._texts()

    def _one_text(self, work: QueryWork, wanted: IdSet | None) -> LookupResult:
        """Search the similar tier for a text."""
        self._store.snapshot.count_lookups(1)
        with work.stage("load"):
            encoder = self.text_encoder()
        with work.stage("encode"):
            vector = encoder.encode([work.name])
        if not vector.any():
            return LookupResult(work.name, error="the encoder gives no vector for it")
        hits: tuple[SimilarHit, ...] = ()
        index = self._index.current
        if index is not None and self._rows(wanted):
            with work.stage("similar"):
                hits = self._similar_tier.closest(index.vectors.rows, vector, set(), wanted)
        return LookupResult(work.name, (SIMILAR,), similar=hits, milliseconds=work.spent)

    def _one_vector(
        self, name: str, vector: npt.NDArray[np.float32], wanted: IdSet | None
    ) -> LookupResult:
        """Search the similar tier for a vector, (dim,)."""
        index = self._index.current
        if index is None:
            raise UsageError(f"{self._store.path} has no vectors to compare {name} with")
        if SIMILAR not in self.tiers:
            raise UsageError(
                f"{name} is a vector, and only the similar tier takes vectors: leave tiers= out"
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
        started = perf_counter()
        hits: tuple[SimilarHit, ...] = ()
        if index.vectors.rows:
            hits = self._similar_tier.closest(index.vectors.rows, query, set(), wanted)
        spent = {"similar": (perf_counter() - started) * 1e3}
        return LookupResult(name, (SIMILAR,), similar=hits, milliseconds=spent)

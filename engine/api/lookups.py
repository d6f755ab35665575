"""The searching methods of ``Store``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice

import numpy as np
import numpy.typing as npt

from engine.api.encodings import QUERIES, Encodings
from engine.config import (
    DEFAULT_K,
    DEFAULT_MAX_DISTANCE,
    DEFAULT_NEAR_LIMIT,
    SOURCES_SHOWN,
    whole,
)
from engine.errors import ImageError, UsageError
from engine.images import canonical
from engine.images.packed_bits import PackedBits
from engine.index.operating_point import check_recall
from engine.index.unit_vectors import normalized
from engine.records import (
    ImageRecord,
    Kind,
    LookupResult,
)
from engine.search.ahead import BatchesAhead, PreparedBatch
from engine.search.batch_work import BatchWork
from engine.search.filters import Ids, Names, SearchedIn, Within
from engine.search.identical import identical_ids
from engine.search.lookup import Lookup
from engine.search.queries import QueryLike, rows_of, text_queries, text_query
from engine.search.settings import LookupSettings, check_k
from engine.search.stored_query import stored_id
from engine.search.tiers import IDENTICAL
from engine.search.where import Conditions, WhereMetadata
from engine.sources.exclusions import Exclusions, Patterns
from engine.sources.in_memory import (
    Images,
    unlike,
)
from engine.sources.items import Reject
from engine.sources.query import Query
from engine.storage.bitmap import IdSet

_ANSWER_BYTES = 4 + 8  # a score and an id
_LOOKED_UP = 4096  # at most so many images in canonical form at a time


class Lookups(Encodings):
    """The methods of ``Store`` that search."""

    def lookup(
        self,
        query: QueryLike | None = None,
        *,
        text: str | None = None,
        k: int = DEFAULT_K,
        tiers: Sequence[str] | None = None,
        min_score: float | str | None = None,
        max_distance: int = DEFAULT_MAX_DISTANCE,
        near_limit: int | None = DEFAULT_NEAR_LIMIT,
        max_sources: int | None = SOURCES_SHOWN,
        recall: float | None = None,
        ids: Ids | None = None,
        source: Names | None = None,
        where: Conditions | None = None,
    ) -> LookupResult:
        """Look up one image, or one text.

        ``query`` is a path (or ``FILE.npy#ROW``), a file's bytes, an array, a PIL image, ``PackedBits``
        of one image, or the id of a stored image, also as ``"#ID"``. Instead of it, ``text`` says what
        the images show. It is searched for in "similar" only, and the store's encoder must take texts.
        A text of more tokens than the encoder takes is cut, with a warning.

        ``tiers``: any of "identical", "near" and "similar"; by default all that the store has. Similar:
        the nearest ``k``, found with a recall of ``recall`` (see ``search_vectors``). Near: all images
        within ``max_distance``, of 256; ``near_count`` counts them, and the nearest ``near_limit`` are
        listed. A hit lists ``max_sources`` of its sources and counts all. None means no limit. A vector
        is searched for in "similar" only. If the vectors were imported, a query may also be an array
        (dim,) of floats. "similar" then finds nothing for an image, unless it is one of the store, by
        its id, that has a vector.

        ``ids``, ``source`` and ``where`` restrict the search. ``ids``: any integers; unknown ids are
        ignored. ``source``: one path or several, as ``remove`` takes them. ``where``: conditions on the
        metadata, ``{"label": "cat"}``, ``{"year": (">", 1999)}`` or ``{"year": [(">", 1999), ("<=",
        2005)]}``, with "==", "<", "<=", ">" and ">=" between numbers or between texts. It reads all
        records once per commit. If ``k`` images pass, ``k`` are found. A hit lists its sources outside
        ``source`` too.

        Raises ``ImageError`` if the query cannot be read as an image. Raises ``UsageError`` if the store
        has no image from a source, or no image with a field of ``where``, and for an empty text or an
        encoder that takes none.
        """
        if text is not None and query is not None:
            raise UsageError("look up a query or a text=, not both")
        if isinstance(query, list | tuple) and any(isinstance(one, QUERIES) for one in query):
            raise UsageError(f"a list of {len(query)} queries: use lookup_many")
        settings = LookupSettings.of(
            k=k,
            tiers=tiers,
            min_score=min_score,
            max_distance=max_distance,
            near_limit=near_limit,
            max_sources=max_sources,
            recall=recall,
        )
        within = self._within(ids, source, where)
        self._session.follow()
        self._finder(settings)
        # Two queries are enough to see that a large array is not one image.
        asked = self._queries_of(query, None) if text is None else iter([text_query(text)])
        named = list(islice(asked, 2))
        if len(named) != 1:
            count = "more than one image" if named else "no image"
            raise UsageError(f"{query!s} holds {count}: use lookup_many([{query!r:.60}])")
        result = self._answer(settings, named[0], within)
        if result.error is not None:
            raise ImageError(f"{result.query}: {result.error}")
        return result

    def __contains__(self, query: object) -> bool:
        """Whether an image is in the store.

        ``query`` is an id; or a record from iterating, for whether this store still has that image; or
        anything else that ``lookup`` takes, which is looked up in the identical tier. A query that
        cannot be read raises ``ImageError``.
        """
        if isinstance(query, ImageRecord):
            self._session.follow()
            record = self._session.snapshot.record(query.id)
            return record is not None and self._session.snapshot.get(query.id).proof == query.proof
        named = stored_id(query) if isinstance(query, str) else None
        try:
            id_ = named if named is not None else whole(query)
        except TypeError:
            return bool(self.lookup(query, tiers=[IDENTICAL], max_sources=0).identical)  # type: ignore[arg-type]
        self._session.follow()
        return self._session.snapshot.record(id_) is not None

    def lookup_many(
        self,
        queries: Iterable[QueryLike] = (),
        *,
        texts: Sequence[str] = (),
        k: int = DEFAULT_K,
        tiers: Sequence[str] | None = None,
        min_score: float | str | None = None,
        max_distance: int = DEFAULT_MAX_DISTANCE,
        near_limit: int | None = DEFAULT_NEAR_LIMIT,
        max_sources: int | None = SOURCES_SHOWN,
        recall: float | None = None,
        ids: Ids | None = None,
        source: Names | None = None,
        exclude: Patterns = (),
        where: Conditions | None = None,
    ) -> Iterator[LookupResult]:
        """Look up many images, and then many texts, and yield one result for each.

        A query is whatever ``lookup`` takes, or the path of a folder, an array or an archive, which
        stands for all its images. The result of an unreadable query has an ``error``. An array is bits
        or 8-bit as a whole, as in ``ingest``.

        A list, a tuple, an array (n, H, W[, 1 or 3]) or ``PackedBits`` is looked up in batches on all
        cores, each batch as of one commit. Any other iterable is looked up query by query, so that its
        producer can wait for each answer. A query that is not a path is called by its number,
        "image 3". A text is looked up as by ``lookup(text=...)``.

        ``exclude``: patterns of files and folders to skip inside folders, as in ``ingest``. The other
        arguments are those of ``lookup``. A wrong one raises ``UsageError`` at the call.
        """
        if isinstance(queries, QUERIES) and not isinstance(queries, PackedBits):
            raise UsageError("queries come in a list: use lookup for one")
        if isinstance(queries, np.ndarray) and (
            queries.ndim < 3 or (queries.ndim == 3 and queries.shape[-1] in (3, 4))
        ):
            raise UsageError(f"an array of shape {queries.shape} is one image: use lookup")
        each: Iterable[object] = queries
        if isinstance(queries, np.ndarray):
            canonical.require_images(queries)
            each = rows_of(queries)
        named = text_queries(texts)
        settings = LookupSettings.of(
            k=k,
            tiers=tiers,
            min_score=min_score,
            max_distance=max_distance,
            near_limit=near_limit,
            max_sources=max_sources,
            recall=recall,
        )
        left_out = Exclusions(exclude)
        self._session.follow()
        self._finder(settings)
        if named:
            self._again(lambda: self._finder(settings).text_encoder())
        within = self._within(ids, source, where)
        if within is not None:
            within.ids(self._session)
        asked = itertools.chain.from_iterable(
            self._queries_of(query, number, left_out) for number, query in enumerate(each)
        )
        in_batches = isinstance(queries, Sequence | np.ndarray | PackedBits)
        look = self._in_batches if in_batches else self._one_by_one
        found = look(asked, settings, within)
        if not named:
            return found
        # Texts come one by one, because a batch loads the encoder of images.
        return itertools.chain(found, self._one_by_one(named, settings, within))

    def _one_by_one(
        self,
        asked: Iterable[Query | Reject],
        settings: LookupSettings,
        within: Within | None,
    ) -> Iterator[LookupResult]:
        for query in asked:
            self._session.follow(within_a_call=True)
            yield self._answer(settings, query, within)

    def _in_batches(
        self,
        asked: Iterable[Query | Reject],
        settings: LookupSettings,
        within: Within | None,
    ) -> Iterator[LookupResult]:
        def prepare(queries: Sequence[Query]) -> BatchWork:
            return self._again(
                lambda: self._finder(settings).prepare(queries, self._ids_in(within))
            )

        with BatchesAhead(asked, self._session.memory, prepare) as ahead:
            # In a forked process, nothing would ever be prepared.
            self._session.require_own()
            while (batch := ahead.next()) is not None:
                self._session.follow(within_a_call=True)
                results = self._answers(settings, batch, within)
                # Its pixels are not needed while the caller uses the results.
                del batch
                yield from results
                self._session.require_own()

    def _answers(
        self, settings: LookupSettings, batch: PreparedBatch, within: Within | None
    ) -> Iterator[LookupResult]:
        """The results of a batch, all as of one commit."""
        found = iter(
            self._again(lambda: self._finder(settings).answers(batch.work, self._ids_in(within)))
        )
        return iter(
            [next(found) if isinstance(one, Query) else _refused(one) for one in batch.queries]
        )

    def _ids_in(self, within: Within | None) -> IdSet | None:
        return within.ids(self._session) if within is not None else None

    def find_identical(self, images: Images) -> npt.NDArray[np.int64]:
        """The id of the verified identical image for each of n images of one size, or -1: (n,) int64.

        ``images`` is an array (n, H, W), (n, H, W, 1) or (n, H, W, 3) of bool or uint8, or
        ``PackedBits``, which cost least. An array that holds only 0 and 1 is of bits. For many images
        this takes a tenth of the time of as many calls of ``lookup``. For their sources, see
        ``sources``.
        """
        other = unlike(images)
        if other:
            raise UsageError(f"images must be an array or PackedBits, not {other}")
        kind = None if isinstance(images, PackedBits) else canonical.array_kind(images)
        self._session.follow()
        return self._again(lambda: self._find_identical(images, kind))

    def search_vectors(
        self,
        queries: npt.ArrayLike,
        k: int = DEFAULT_K,
        *,
        recall: float | None = None,
        ids: Ids | None = None,
        source: Names | None = None,
        where: Conditions | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The k nearest vectors to each query: scores (nq, k) float32 and image ids (nq, k) int64.

        ``queries`` is (nq, dim), finite. The score is the inner product, best first. It is the cosine
        for vectors of length 1: those of encoders, and imported vectors that were normalized, whose
        queries are normalized too. Missing results have score -inf and id -1.

        ``recall`` is the share of the k nearest to find, by default the store's own (see ``optimize``).
        How far to look for it was measured on the store's vectors. With 1, all vectors are compared.
        ``ids``, ``source`` and ``where`` restrict the search, as in ``lookup``.

        Many queries are searched on all cores. Several threads may call this at once, as long as none
        of them writes with this ``Store``.
        """
        k = check_k(k)
        share = check_recall(recall) if recall is not None else None
        # Check this before taking a lock that a thread of the parent may have held at the fork.
        self._session.require_own()
        within = None
        if ids is not None or source is not None or where is not None:
            with self._refresh_lock:
                # Outside the retries, because ids may be an iterator that can be read only once.
                within = self._within(ids, source, where)
        return self._again(lambda: self._search_vectors(queries, k, share, within))

    def _search_vectors(
        self,
        queries: npt.ArrayLike,
        k: int,
        recall: float | None,
        within: Within | None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        with ExitStack() as stack:
            with self._refresh_lock:
                self._session.follow()
                space = self._session.snapshot.space
                if not space.exists:
                    raise UsageError(
                        f'{self.path} has no vectors: it was filled with encoder="none"'
                    )
                wanted = within.ids(self._session) if within is not None else None
                index, among = self._index.to_search(wanted)
                # Keep this index open, whatever other threads do now.
                stack.enter_context(index)
            block = self._as_queries(queries, index.vectors.dim, normalize=space.normalized)
            answer = _ANSWER_BYTES * len(block) * k
            if answer > self._session.memory.total:
                raise UsageError(
                    f"{len(block):,} queries for {k:,} each have an answer of {answer:,} bytes, which "
                    f"is more than memory= allows: ask for fewer, or raise memory="
                )
            return index.search_ids(block, k, recall=recall, wanted=among)

    def _as_queries(
        self, queries: npt.ArrayLike, dim: int, *, normalize: bool
    ) -> npt.NDArray[np.float32]:
        """Queries ready to compare: (nq, dim) float32, C order; ``UsageError`` for anything else."""
        try:
            with np.errstate(over="ignore"):
                block = np.asarray(queries, np.float32, order="C")
        # A tensor that requires a gradient raises RuntimeError.
        except (TypeError, ValueError, RuntimeError) as error:
            why = unlike(queries) or " ".join(str(error).split())
            raise UsageError(f"queries must be an array of numbers: {why}") from None
        if block.ndim != 2 or block.shape[1] != dim:
            needed = "(1, d) for one" if block.ndim == 1 else f"(n, {dim})"
            raise UsageError(f"queries have shape {block.shape}: {needed} is needed")
        if not np.isfinite(block).all():
            raise UsageError("queries hold values that are NaN, infinite or too large for float32")
        if normalize:
            block, lengths = normalized(block)
            if (lengths == 0).any():
                at = int(np.argmin(lengths))
                raise UsageError(f"query {at} has length zero: it cannot be normalized")
        return block

    def _finder(self, settings: LookupSettings) -> Lookup:
        asked = (settings, self._session.snapshot.space)
        # Kept for the next query, which nearly always has the same settings. The space is in the key,
        # because the store may adopt an encoder.
        if self._last_lookup_key != asked or self._last_lookup is None:
            self._last_lookup = Lookup(
                self._session, self._index, self._own_encoder, settings, self._own_text_encoder
            )
            self._last_lookup_key = asked
        return self._last_lookup

    def _within(
        self, ids: Ids | None, source: Names | None, where: Conditions | None
    ) -> Within | None:
        """The restriction of a search, or None. The next search reuses its parts if they are equal."""
        if ids is None and source is None and where is None:
            return None
        sources = SearchedIn(source) if source is not None else None
        if sources is not None:
            if self._last_sources is None or self._last_sources.names != sources.names:
                self._last_sources = sources
            sources = self._last_sources
        asked = WhereMetadata(where) if where is not None else None
        if asked is not None:
            if self._last_where is None or self._last_where.key != asked.key:
                self._last_where = asked
            asked = self._last_where
        return Within(ids, sources, asked)

    def _find_identical(self, images: Images, kind: Kind | None) -> npt.NDArray[np.int64]:
        ids = np.empty(len(images), np.int64)
        step = max(1, min(_LOOKED_UP, self._session.memory.block // _row_bytes(images)))
        for at in range(0, len(images), step):
            part = images[at : at + step]
            if isinstance(part, PackedBits):
                rows = part.canonical()
            else:
                assert kind is not None
                rows = canonical.rows_from_array(part, kind)
            ids[at : at + len(rows)] = identical_ids(self._session, rows)
        return ids

    def _answer(
        self, settings: LookupSettings, query: Query | Reject, within: Within | None
    ) -> LookupResult:
        return _refused(query) if isinstance(query, Reject) else self._one(settings, query, within)

    def _one(self, settings: LookupSettings, query: Query, within: Within | None) -> LookupResult:
        # A retry may find another encoder, and so need another ``Lookup``.
        return self._again(lambda: self._finder(settings).one(query, self._ids_in(within)))


def _refused(query: Reject) -> LookupResult:
    return LookupResult(os.fsdecode(query.name), error=query.reason)


def _row_bytes(images: Images) -> int:
    """About how many bytes one image takes."""
    array = images.packed if isinstance(images, PackedBits) else images
    return max(1, array.nbytes // max(1, len(array)))

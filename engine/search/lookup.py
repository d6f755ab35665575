"""The read path: one query through the tiers, strictest first; an id stays where it was first found.

query → identical (file hash; key, then verified) → near (fingerprints, pixels) → similar (encode, index)
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

import numpy as np
import numpy.typing as npt

from engine.config import DEFAULT_MAX_DISTANCE, whole
from engine.encoders.onnx import OnnxEncoder
from engine.errors import EncoderError, ImageError, StoreDamagedError, UsageError
from engine.images import canonical, hashing
from engine.images.fingerprint import FINGERPRINT_BITS
from engine.index.operating_point import check_recall
from engine.index.search import VectorIndex
from engine.index.unit_vectors import normalized
from engine.records import Buffer, Decoded, IdenticalHit, LookupResult, NearHit, SimilarHit
from engine.search.near import near
from engine.sources.locate import Query
from engine.storage.bitmap import IdSet
from engine.storage.rows import ImageRow
from engine.storage.writer import StoreFiles

IDENTICAL, NEAR, SIMILAR = "identical", "near", "similar"
TIERS = (IDENTICAL, NEAR, SIMILAR)
_AT_ONCE = 4096  # rows of a batch
_PROBE = 64  # rows that show whether the others will come from memory
_COLD_SECONDS = 8e-6  # a key, on average; from memory it takes 3, from disk 70, in a queue 15
_MAX_SCORE = 1.01  # of two unit vectors, rounding included
_NUMBER = float | int | np.floating | np.integer
_log = logging.getLogger("engine")


class _NoVectorError(Exception):
    """The encoder has nothing to say of one picture; other queries are not concerned."""


class Lookup:
    """Answers queries from one store. The encoder is loaded when it is first needed."""

    def __init__(
        self,
        store: StoreFiles,
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
        entry = store.manifest.encoder
        self._given = entry is not None and entry.given
        # Of vectors that have length 1 the inner product is the cosine.
        self._cosine = entry is None or not entry.given or entry.normalized
        most = 1.0 if self._cosine else math.inf
        if min_score is not None and not (
            isinstance(min_score, _NUMBER) and abs(min_score) <= most
        ):
            raise UsageError(f"min-score is a cosine, between -1 and 1, not {min_score!r}")
        distance = _whole_or(max_distance, -1)
        if not 0 <= distance <= FINGERPRINT_BITS:
            raise UsageError(
                f"max-distance is a number of bits, 0 to {FINGERPRINT_BITS}, not {max_distance!r}"
            )
        self._store = store
        self._encoder = encoder
        self._k = k
        self._min_score = min_score
        self._max_distance = distance
        self._recall = check_recall(recall) if recall is not None else None
        self._asked = tiers is not None
        self.tiers = _tiers(store, tiers)
        if tiers is not None and SIMILAR not in self.tiers:
            for name, value in (("recall", recall), ("min-score", min_score)):
                if value is not None:
                    raise UsageError(
                        f"{name} is of the similar tier, which is not asked: leave it out"
                    )
        # Given vectors say nothing of images, which have none to compare with them.
        self._of_images = tuple(t for t in self.tiers if t != SIMILAR or not self._given)

    def one(self, query: Query, wanted: IdSet | None = None) -> LookupResult:
        """Search every tier for one query. A query that is no image has an ``error``.

        ``wanted``: which images may be found, if not all.
        ``UsageError`` for a query of a kind that the tiers which were asked for are not for.
        """
        if query.vector is not None:
            return self._one_vector(query.name, query.vector, wanted)
        if self._asked and self._of_images != self.tiers:
            raise UsageError(
                f"{self._store.path} holds vectors that were given, and an image has none: look up "
                f"FILE.npy#ROW of vectors, or leave --tier similar out"
            )
        spent: dict[str, float] = {}
        found: list[IdenticalHit] = []
        nearby: tuple[NearHit, ...] = ()
        similar: tuple[SimilarHit, ...] = ()
        searched = self._of_images
        self._store.count_lookups(1)
        try:
            if IDENTICAL in searched and query.data is not None:
                started = perf_counter()
                self._by_file(query.data, found, wanted)
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

    def _by_file(self, data: bytes, found: list[IdenticalHit], wanted: IdSet | None) -> None:
        """The image that a file of exactly these bytes was; SHA-256 decides, so nothing to verify."""
        id_ = self._store.files([hashing.file_hash(data)])[0]
        if id_ is not None and (wanted is None or id_ in wanted):
            found.append(self._hit(id_, "digest"))

    def _by_pixels(self, decoded: Decoded, found: list[IdenticalHit], wanted: IdSet | None) -> None:
        canonical = decoded.pixels.canonical
        key = hashing.key(canonical, self._store.settings.hash_seed)
        for row in self._store.image_of(key):
            if wanted is not None and row.id not in wanted:
                continue
            if not found or all(hit.id != row.id for hit in found):
                verified = _verify(self._store, row, canonical)
                if verified:
                    found.append(self._hit(row.id, verified, in_runs=row.in_runs))

    def _hit(self, id_: int, verified: str, *, in_runs: bool = False) -> IdenticalHit:
        names, count = self._sources(id_, in_runs=in_runs)
        # Rows of arrays have none, and what is not read costs nothing.
        record = self._store.record(id_) if not in_runs else None
        return IdenticalHit(id_, names, count, verified, record.metadata if record else None)

    def _sources(self, id_: int, *, in_runs: bool = False) -> tuple[tuple[str, ...], int]:
        names, count = self._store.sources_of(id_, in_runs=in_runs)
        return tuple([os.fsdecode(name) for name in names]), count

    def _near(
        self, decoded: Decoded, taken: set[int], spent: dict[str, float], wanted: IdSet | None
    ) -> tuple[NearHit, ...]:
        started = perf_counter()
        query = decoded.pixels
        values = query.height * query.width * query.channels
        hits = []
        found = near(self._store, query, self._max_distance, taken, wanted)
        for id_, distance, unlike in zip(*(column.tolist() for column in found), strict=True):
            record = self._store.record(id_)
            if record is None:  # removed meanwhile
                continue
            names, count = self._sources(id_)
            by_pixels = (None, None) if unlike < 0 else (unlike, values)
            hits.append(
                NearHit(id_, distance, by_pixels[0], names, count, by_pixels[1], record.metadata)
            )
        _spend(spent, "near", started)
        return tuple(hits)

    def _similar(
        self, decoded: Decoded, taken: set[int], spent: dict[str, float], wanted: IdSet | None
    ) -> tuple[SimilarHit, ...]:
        index = self._store.index
        rows = index.vectors.rows if index is not None else 0
        if wanted is not None:
            rows = min(rows, len(wanted))
        if index is None or not rows:
            return ()
        started = perf_counter()
        encoder = self._encoder()
        started = _spend(spent, "load", started)  # only the first query of a process pays for it
        vector = encoder.encode([canonical.to_rgb8(decoded.pixels)])
        _spend(spent, "encode", started)
        if not vector.any():
            raise _NoVectorError("the encoder gives no vector for it")
        return self._closest(index, vector, taken, spent, wanted)

    def _one_vector(
        self, name: str, vector: npt.NDArray[np.float32], wanted: IdSet | None
    ) -> LookupResult:
        """Search the similar tier for a vector, (dim,)."""
        index = self._store.index
        if index is None:
            raise UsageError(f"{self._store.path} has no vectors to compare {name} with")
        if SIMILAR not in self.tiers:
            raise UsageError(
                f"{name} is a vector, which is looked up in the similar tier alone: leave --tier and "
                f"--exact out"
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
        rows = index.vectors.rows
        # As many as may be taken; but near copies may be many, and need not be similar.
        most = min(self._k + min(len(taken), 3 * self._k), rows)
        hits, enough = self._most_similar(vector, most, taken, wanted)
        while not enough and most < rows:  # what was taken had their places
            most = min(2 * most, rows)
            hits, enough = self._most_similar(vector, most, taken, wanted)
        _spend(spent, "similar", started)
        return tuple(hits)

    def _most_similar(
        self,
        vector: npt.NDArray[np.float32],
        most: int,
        taken: set[int],
        wanted: IdSet | None,
    ) -> tuple[list[SimilarHit], bool]:
        """The best k among the ``most`` nearest vectors; and whether asking for more is no use."""
        scores, ids = self._store.search(vector, most, recall=self._recall, wanted=wanted)
        hits: list[SimilarHit] = []
        for score, id_ in zip(scores[0].tolist(), ids[0].tolist(), strict=True):
            if id_ < 0:
                return hits, True
            if id_ in taken:
                continue
            # Not a number, or more than unit vectors can give.
            if not (abs(score) < _MAX_SCORE if self._cosine else math.isfinite(score)):
                _log.warning("image %d: its vector is damaged; run 'engine check'", id_)
                continue
            if self._min_score is not None and score < self._min_score:
                return hits, True
            record = self._store.record(id_)
            if record is None:
                continue
            names, count = self._sources(id_)
            value = round(min(score, 1.0) if self._cosine else score, 6)
            hits.append(SimilarHit(id_, value, names, count, record.metadata))
            if len(hits) == self._k:
                return hits, True
        return hits, False


def identical_ids(store: StoreFiles, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The image that each canonical row is, verified, or -1: (n, canonical bytes) → (n,) int64."""
    n = len(rows)
    store.count_lookups(n)
    ids = np.empty(n, np.int64)
    at, size = 0, _PROBE if n > 4 * _PROBE else n
    cold = False
    while at < n:
        block = rows[at : at + size]
        ids[at : at + size], seconds = _identical_ids(store, block, cold)
        cold = seconds > len(block) * _COLD_SECONDS
        at, size = at + size, _AT_ONCE
    return ids


def _identical_ids(
    store: StoreFiles, rows: npt.NDArray[np.uint8], cold: bool
) -> tuple[npt.NDArray[np.int64], float]:
    """The images of some rows, and how many seconds it took to find their keys.

    ``cold``: keys must come from disk; then many threads make a queue of reads.
    """
    n, length = rows.shape
    canonical = list(rows)
    keys = hashing.keys(canonical, store.settings.hash_seed)
    started = perf_counter()
    columns = store.image_columns(keys, spread=cold)
    seconds = perf_counter() - started
    ids = np.full(n, -1, np.int64)
    at = np.flatnonzero(columns.found)
    kept = columns.kept & columns.canonical
    easy = kept & (columns.lengths == length) & ~columns.shared
    same = np.zeros(len(at), np.bool_)
    if easy.any():
        wanted = [canonical[i] for i in at[easy].tolist()]
        with contextlib.suppress(StoreDamagedError):  # one by one it is told which are lost
            same[easy] = store.kept_pixels.equal(
                columns.extents[easy], columns.offsets[easy], wanted
            )
    bare = np.flatnonzero(~kept & ~columns.shared)
    if len(bare):
        proofs = hashing.proofs([canonical[i] for i in at[bare].tolist()])
        proof_columns = np.frombuffer(b"".join(proofs), np.uint8).reshape(-1, hashing.PROOF_BYTES)
        same[bare] = (proof_columns == columns.proofs[bare]).all(axis=1)
    ids[at[same]] = columns.ids[same]
    for i in at[~same]:  # a collision, or damage: next to never
        for row in store.image_of(keys[i]):
            if _verify(store, row, canonical[i].tobytes()):
                ids[i] = row.id
    return ids, seconds


def _verify(store: StoreFiles, row: ImageRow, canonical: Buffer) -> str | None:
    """How a key's image was shown to be the query: "bytes", "digest", or None if it is not."""
    if row.place is not None and row.canonical:
        try:
            kept = store.kept(row.place)
        except StoreDamagedError as error:
            _log.warning("image %d: %s", row.id, error)
            kept = None
        if kept == (canonical if isinstance(canonical, bytes) else bytes(canonical)):
            return "bytes"
        if kept is not None:
            if hashing.proof(kept) == row.proof:
                return None  # another image with the same key: a collision
            _log.warning("image %d: its kept pixels are damaged; run 'engine check'", row.id)
    return "digest" if hashing.proof(canonical) == row.proof else None


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


def tier_names(wanted: Iterable[str] | None) -> tuple[str, ...] | None:
    """Tiers as somebody asks for them; ``UsageError`` if they are something else."""
    if isinstance(wanted, str) or not (wanted is None or isinstance(wanted, Iterable)):
        raise UsageError(f"tiers is a list of {', '.join(TIERS)}, not {wanted!r}")
    return None if wanted is None else tuple(wanted)


def _tiers(store: StoreFiles, wanted: Sequence[str] | None) -> tuple[str, ...]:
    has = TIERS if store.manifest.encoder else (IDENTICAL, NEAR)
    if wanted is None:
        return has
    for tier in wanted:
        if tier not in TIERS:
            raise UsageError(f"there is no tier {tier!r}: choose among {', '.join(TIERS)}")
        if tier not in has:
            raise UsageError(
                f"{store.path} has no {tier} tier: it was filled with --encoder none, and images "
                f"get vectors when they are first ingested: make another store"
            )
    return tuple(tier for tier in TIERS if tier in wanted)

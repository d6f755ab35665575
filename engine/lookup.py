"""The read path: one query through the tiers, strictest first; an id stays where it was first found.

query → identical (file hash; key, then verified) → near (not yet) → similar (encode, index)
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from engine import digest, pixels
from engine.encoders.onnx import OnnxEncoder
from engine.errors import EncoderError, ImageError, StoreDamagedError, UsageError
from engine.records import Decoded, IdenticalHit, LookupResult, SimilarHit
from engine.sources.locate import Query
from engine.storage.rows import ImageRow
from engine.store import StoreFiles

IDENTICAL, NEAR, SIMILAR = "identical", "near", "similar"
TIERS = (IDENTICAL, NEAR, SIMILAR)
_log = logging.getLogger("engine")


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
    ) -> None:
        """``tiers``: which to search, by default all that the store has."""
        if k < 1:
            raise UsageError(f"k must be 1 or more, not {k}")
        if min_score is not None and not -1 <= min_score <= 1:
            raise UsageError(f"min-score is a cosine, between -1 and 1, not {min_score}")
        self._store = store
        self._encoder = encoder
        self._k = k
        self._min_score = min_score
        self._asked = tiers is not None
        self.tiers = _tiers(store, tiers)

    def one(self, query: Query) -> LookupResult:
        """Search every tier for one query. A query that is no image has an ``error``."""
        clock = _Clock()
        found: dict[int, IdenticalHit] = {}
        similar: tuple[SimilarHit, ...] = ()
        searched = self.tiers
        try:
            if IDENTICAL in self.tiers and query.data is not None:
                with clock.of("identical"):
                    self._by_file(query.data, found)
            if self.tiers != (IDENTICAL,) or not found:
                with clock.of("decode"):
                    decoded = query.decode(self._store.memory.decoding)
                if IDENTICAL in self.tiers:
                    with clock.of("identical"):
                        self._by_pixels(decoded, found)
                if SIMILAR in self.tiers:
                    try:
                        similar = self._similar(decoded, set(found), clock)
                    except EncoderError as error:
                        if self._asked:
                            raise
                        _log.warning("the similar tier was not searched: %s", error)
                        searched = tuple(tier for tier in searched if tier != SIMILAR)
        except ImageError as error:
            if not found:
                return LookupResult(query.name, error=str(error))
            # Known by its bytes, though it cannot be decoded here and now.
            _log.warning("%s: only its bytes were looked up: %s", query.name, error)
            searched = (IDENTICAL,)
        return LookupResult(
            query.name,
            searched=searched,
            identical=tuple(found[id_] for id_ in sorted(found)),
            similar=similar,
            milliseconds=clock.milliseconds,
        )

    def _by_file(self, data: bytes, found: dict[int, IdenticalHit]) -> None:
        """The image that a file of exactly these bytes was; SHA-256 decides, so nothing to verify."""
        id_ = self._store.files([digest.file_hash(data)])[0]
        if id_ is not None:
            found[id_] = self._hit(id_, "digest")

    def _by_pixels(self, decoded: Decoded, found: dict[int, IdenticalHit]) -> None:
        canonical = decoded.pixels.canonical
        key = digest.key(canonical, self._store.settings.hash_seed)
        for row in self._store.images_of([key])[0]:
            if row.id not in found:
                verified = self._verify(row, decoded)
                if verified:
                    found[row.id] = self._hit(row.id, verified)

    def _verify(self, row: ImageRow, decoded: Decoded) -> str | None:
        """How a key's image was shown to be the query: "bytes", "digest", or None if it is not."""
        canonical = decoded.pixels.canonical
        record = self._store.record(row.id)
        if record is None:
            raise StoreDamagedError(f"image {row.id} has a key and no record; run 'engine check'")
        if row.place is not None and record.keeps_canonical:
            try:
                kept = self._store.kept(row.place)
            except StoreDamagedError as error:
                _log.warning("image %d: %s", row.id, error)
                kept = None
            if kept == canonical:
                return "bytes"
            if kept is not None and digest.proof(kept) == row.proof:
                return None  # another image with the same key: a collision
            if kept is not None:
                _log.warning("image %d: its kept pixels are damaged; run 'engine check'", row.id)
        return "digest" if digest.proof(canonical) == row.proof else None

    def _hit(self, id_: int, verified: str) -> IdenticalHit:
        names, count = self._store.sources_of(id_)
        return IdenticalHit(id_, tuple(map(os.fsdecode, names)), count, verified)

    def _similar(self, decoded: Decoded, taken: set[int], clock: _Clock) -> tuple[SimilarHit, ...]:
        index = self._store.index
        if index is None or not index.vectors.rows:
            return ()
        with clock.of("load"):  # the model; only the first query of a process pays for it
            encoder = self._encoder()
        with clock.of("encode"):
            vector = encoder.encode([pixels.to_rgb8(decoded.pixels)])
        with clock.of("similar"):
            most = min(self._k + len(taken), index.vectors.rows)
            scores, rows = index.search(vector, most)
            hits: list[SimilarHit] = []
            for score, id_ in zip(scores[0], index.vectors.ids(rows[0]), strict=True):
                if id_ < 0 or int(id_) in taken or len(hits) == self._k:
                    continue
                if self._min_score is not None and score < self._min_score:
                    break
                names, count = self._store.sources_of(int(id_))
                value = round(min(float(score), 1.0), 6)
                hits.append(SimilarHit(int(id_), value, tuple(map(os.fsdecode, names)), count))
        return tuple(hits)


class _Clock:
    """Milliseconds spent in each stage of one query."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - started) * 1e3
            self.milliseconds[stage] = round(self.milliseconds.get(stage, 0.0) + spent, 3)


def _tiers(store: StoreFiles, wanted: Sequence[str] | None) -> tuple[str, ...]:
    has = (IDENTICAL, SIMILAR) if store.manifest.encoder else (IDENTICAL,)
    if wanted is None:
        return has
    for tier in wanted:
        if tier not in TIERS:
            raise UsageError(f"there is no tier {tier!r}: {', '.join(TIERS)} are")
        if tier == NEAR:
            raise UsageError("the near tier cannot be searched yet: its fingerprints are stored")
        if tier not in has:
            raise UsageError(
                f"{store.path} has no {tier} tier: it was filled with --encoder none, and images "
                f"get vectors when they are first ingested: make another store"
            )
    return tuple(tier for tier in TIERS if tier in wanted)

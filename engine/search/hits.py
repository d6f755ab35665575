"""Makes hits, with sources and metadata, from the ids that a tier found."""

from __future__ import annotations

import os

from engine.records import IdenticalHit, NearHit, Pixels, SimilarHit
from engine.search.near import NearImages
from engine.storage.session import Session


class Hits:
    """Makes the hits of one lookup."""

    def __init__(self, store: Session, max_sources: int) -> None:
        """A hit names up to ``max_sources`` of its sources, and counts them all."""
        self._store = store
        self._max_sources = max_sources

    def identical(self, id_: int, verified: str, *, in_runs: bool = False) -> IdenticalHit:
        """The hit of an image identical to the query; ``in_runs`` as in the image's row."""
        names, count = self._sources(id_, in_runs=in_runs)
        # Rows of arrays have no metadata, so the record need not be read.
        record = self._store.snapshot.record(id_) if not in_runs else None
        return IdenticalHit(id_, names, count, verified, record.metadata if record else None)

    def near(self, query: Pixels, found: NearImages, max_hits: int) -> tuple[NearHit, ...]:
        """The hits of the first ``max_hits`` images of ``found``, in their order."""
        values = query.height * query.width * query.channels
        hits = []
        columns = (column[:max_hits].tolist() for column in found)
        for id_, distance, unlike in zip(*columns, strict=True):
            record = self._store.snapshot.record(id_)
            if record is None:  # removed in the meantime
                continue
            names, count = self._sources(id_)
            by_pixels = (None, None) if unlike < 0 else (unlike, values)
            hits.append(
                NearHit(id_, distance, by_pixels[0], names, count, by_pixels[1], record.metadata)
            )
        return tuple(hits)

    def similar(
        self, id_: int, score: float, percentile: float | None, *, stranger: bool
    ) -> SimilarHit | None:
        """The hit of an image with its score; None if it was removed in the meantime."""
        record = self._store.snapshot.record(id_)
        if record is None:
            return None
        names, count = self._sources(id_)
        return SimilarHit(id_, score, names, count, record.metadata, percentile, stranger)

    def _sources(self, id_: int, *, in_runs: bool = False) -> tuple[tuple[str, ...], int]:
        names, count = self._store.snapshot.sources_of(id_, self._max_sources, in_runs=in_runs)
        return tuple([os.fsdecode(name) for name in names]), count
